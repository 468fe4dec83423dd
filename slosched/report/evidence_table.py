"""A study as tables for a terminal."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table

from slosched.core.words import between
from slosched.lab.evidence import LIGHT_LOAD, OURS, Summary
from slosched.lab.statistics import League

RATIOS = {
    "ttft_mean_s": "mean TTFT",
    "ttft_p99_s": "p99 TTFT",
    "e2e_mean_s": "mean e2e",
    "e2e_p99_s": "p99 e2e",
}


def evidence_tables(summary: Summary) -> list[Table]:
    """A table for each league, for light load, and for named cells; those that say nothing are left out."""
    found = [_league(title, standings) for title, standings in summary.leagues.items()]
    if summary.light:
        found.append(_light(summary))
    if summary.cells:
        found.append(_cells(summary))
    return found


def _table(title: str, heads: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=True)
    return table


def _league(title: str, league: League) -> Table:
    duels = [f"{league.ours or 'ours'} less it"] if league.duels else []  # without ours there are none
    draws = len(league.draws)
    over = "one random scenario" if draws == 1 else f"{draws} random scenarios"
    table = _table(
        f"Policies: {title}. SLOs kept in %, by weight, over {over}",
        ["policy", "attainment", *duels, "ahead", "level", "behind", "regret", "p90", "worst"],
    )
    for s in league.standings:
        shares = [f"{100 * v:.0f}" if math.isfinite(v) else "–" for v in (s.ahead, s.level, s.behind)]
        regrets = [
            f"{100 * v:.1f}" if math.isfinite(v) else "–"
            for v in (s.regret_mean, s.regret_p90, s.regret_worst)
        ]
        duel = [
            between(league.duels[s.policy], sign="+", values=draws) if s.policy in league.duels else ""
        ] * len(duels)
        style = "bold" if s.policy == league.ours else None
        table.add_row(s.policy, between(s.attainment, values=draws), *duel, *shares, *regrets, style=style)
    return table


def _light(summary: Summary) -> Table:
    table = _table(
        f"Latency over that of FCFS below load {LIGHT_LOAD:g} ({summary.light_draws} draws)",
        ["policy", *RATIOS.values()],
    )
    for policy, row in summary.light.items():
        cells = [
            f"{i.mean:.2f} ({i.low:.2f} to {i.high:.2f})" if math.isfinite(i.mean) else "–"
            for i in row.values()
        ]
        table.add_row(policy, *cells, style="bold" if policy.startswith(OURS) else None)
    return table


def _cells(summary: Summary) -> Table:
    labels = list(next(iter(summary.cells.values())))
    table = _table("SLOs kept in %, by weight, in named cells", ["cell", *labels])
    for name, row in summary.cells.items():
        table.add_row(name, *(f"{100 * row[label].mean:.1f}" for label in labels))
    return table
