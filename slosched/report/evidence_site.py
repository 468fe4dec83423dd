"""A static site of a study: opens from disk, needs no network, and no JavaScript to be read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from slosched.core.words import between
from slosched.core.writing import write_files
from slosched.lab.cells import provenance_of
from slosched.lab.environment import environment
from slosched.lab.evidence import (
    LIGHT,
    LIGHT_LOAD,
    MEANS,
    OURS,
    REFERENCE,
    Evidence,
    Summary,
    headline,
)
from slosched.lab.fleet import FleetScenario
from slosched.lab.scenarios import Scenario
from slosched.lab.statistics import Interval, League
from slosched.report.evidence_table import RATIOS
from slosched.report.export import flatten
from slosched.report.html import METHOD, Bar, Cell, Row, Section, Table, render

METHODS = (
    *METHOD[:2],
    "A draw is a scenario, a load and a seed together: engine, classes, arrivals, limits, weights, tenants "
    "and forecasts are drawn at random (slosched/lab/population.py). Every policy runs it once.",
    "Load 1 is the traffic that keeps the engine busy with batches as full as slots, memory and token budget "
    "allow, by its step-time model: no policy, limit or seed enters (slosched/lab/offered_load.py).",
    "Counted are the requests planned within the window less its first and last tenth; a short burst counts "
    "whole.",
    "The best rival of a draw is chosen after the fact, which favours the rivals; regret is what a policy is "
    "behind it. Variants of one policy are no rivals of each other.",
    "Intervals are 95 %: a paired bootstrap over draws, Student's t over the seeds of a named cell.",
    "Policies that may refuse requests are a league of their own: a refusal counts as missed, and shortens "
    "the queue for everybody else.",
    "Policies named NAME@TOKENS run on an engine whose token budget a step the operator has cut by hand.",
)


HEADS = {
    "goodput_rps": "goodput req/s", "goodput_tps": "goodput tokens/s", "ttft_mean_s": "TTFT mean s",
    "ttft_p50_s": "TTFT p50 s", "ttft_p99_s": "TTFT p99 s", "tpot_p50_s": "TPOT p50 s",
    "tpot_p99_s": "TPOT p99 s", "e2e_mean_s": "e2e mean s", "e2e_p50_s": "e2e p50 s",
    "e2e_p99_s": "e2e p99 s", "longest_wait_s": "longest wait s", "jain": "fairness (Jain)",
    "warm_up_weighted": "attainment in warm-up", "drain_weighted": "attainment in drain",
}  # fmt: skip
"""Headings of figures whose name is not what a reader calls them."""


def write_site(study: Evidence, summary: Summary, folder: Path, complaints: Sequence[str] = ()) -> Path:
    """Write index.html, results.json, runs.csv and scenarios.yaml.

    Parameters
    ----------
    study
        The finished study.
    summary
        What it says.
    folder
        Made if absent.
    complaints
        What a reader should know about the runs: corrupt results that were run again.

    Returns
    -------
    Path
        The index page.
    """
    scenarios = yaml.safe_dump_all(
        [s.model_dump(mode="json") for s in study.scenarios], sort_keys=False, default_flow_style=None
    )
    files = {
        "index.html": _index(study, summary, complaints),
        "results.json": json.dumps(results(study, summary), indent=1, allow_nan=False).encode(),
        "runs.csv": _runs_csv(study),
        "scenarios.yaml": scenarios.encode(),
    }
    write_files(folder, files)
    return folder / "index.html"


def results(study: Evidence, summary: Summary) -> dict[str, Any]:
    """A study as plain values: what was asked, what came out, and where it was made."""
    return {
        "config": study.config.model_dump(mode="json"),
        "headline": headline(summary),
        "digest": study.digest,
        "provenance": provenance_of(study.records.values()),
        "policy_code": {
            label: study.records[label, 0].key["policy_code"] for label in study.labels if study.scenarios
        },
        "leagues": {title: found.to_dict() for title, found in summary.leagues.items()},
        "light_draws": summary.light_draws,
        "light": {p: {f: _interval_dict(i) for f, i in row.items()} for p, row in summary.light.items()},
        "means": summary.means,
        "queues": summary.queues,
        "cells": {c: {p: _interval_dict(i) for p, i in row.items()} for c, row in summary.cells.items()},
        "draws": [
            {"name": s.name, "load": s.load, "about": describe(s)}
            | {"weighted": {label: study.records[label, place].result["weighted"] for label in study.labels}}
            for place, s in enumerate(study.scenarios)
        ],
        "plan_us": {label: _plan_us(study, label) for label in study.labels},
    }


def describe(scenario: Scenario) -> str:
    """A scenario in one line.

    Examples
    --------
    >>> from slosched.lab.named_cells import named
    >>> describe(named("heavy-minority"))
    'h100-llama-3.1-8b, 1024 slots, budget 8192; conversation TTFT+TPOT; 10 % of weight 10'
    """
    classes = []
    for traffic in scenario.classes:
        kinds = [k.upper() for k in ("ttft", "tpot", "e2e") if getattr(traffic, f"{k}_x") is not None]
        shape = "" if len(traffic.profile) <= 2 and traffic.cv == 1 else " (uneven)"
        classes.append(f"{traffic.family} {'+'.join(kinds) or 'best effort'}{shape}")
    engine = f"{scenario.preset}, {scenario.max_num_seqs} slots, budget {scenario.max_num_batched_tokens}"
    if isinstance(scenario, FleetScenario):
        engine = f"{scenario.engines} engines, {scenario.kind}: {engine}"
    parts = [engine, ", ".join(classes)]
    if scenario.heavy_share:
        parts.append(f"{100 * scenario.heavy_share:.0f} % of weight {scenario.heavy_weight:g}")
    if scenario.greedy_share:
        parts.append(f"a tenant with {100 * scenario.greedy_share:.0f} %")
    return "; ".join(parts)


def _index(study: Evidence, summary: Summary, complaints: Sequence[str]) -> bytes:
    sections = [
        Section(
            title=f"Policies that {'may refuse' if 'refuse' in title else 'serve everybody'}",
            table=_league(found),
            bars=_bars(found),
        )
        for title, found in summary.leagues.items()
    ]
    if summary.light:
        sections.append(Section(title="Where nothing is short", table=_light(summary)))
    if summary.means:
        sections.append(Section(title="Means over the random scenarios", table=_means(study, summary)))
    if summary.cells:
        sections.append(Section(title="Named cells", table=_cells(summary, study.labels)))
    sections.append(Section(title="Every scenario", table=_draws(study)))
    return render(
        "study.html",
        title="slosched: the evidence",
        size=f"{len(study.records)} runs: {len(study.labels)} policies, {study.random} random scenarios, "
        f"{len(study.scenarios) - study.random} others. Results {study.digest}.",
        headline=headline(summary),
        sections=sections,
        method=METHODS,
        complaints=complaints,
        provenance=[
            f"{name}: {', '.join(values)}" for name, values in provenance_of(study.records.values()).items()
        ],
        environment=[f"{key}: {value}" for key, value in flatten(environment()).items()],
    )


def _points(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def _row(policy: str, values: Sequence[str]) -> Row:
    return Row.of(policy, values, ours=policy.startswith(OURS))


def _league(found: League) -> Table:
    heads = [
        "policy", "attainment %", "less the best rival's", "ahead %", "level %", "behind %", "regret mean",
        "p90", "worst", "where", "to",
    ]  # fmt: skip
    if found.ours is not None:
        heads.append(f"{found.ours} less it")
    rows, draws = [], len(found.draws)
    for s in found.standings:
        values = [
            between(s.attainment, values=draws), between(s.advantage, sign="+", values=draws),
            _points(s.ahead), _points(s.level),
            _points(s.behind), _points(s.regret_mean), _points(s.regret_p90), _points(s.regret_worst),
            s.worst_draw, s.worst_rival,
        ]  # fmt: skip
        if found.ours is not None:
            duel = found.duels.get(s.policy)
            values.append("" if duel is None else between(duel, sign="+", values=draws))
        rows.append(_row(s.policy, values))
    return Table(
        heads=tuple(heads),
        rows=tuple(rows),
        caption=f"Weighted attainment over {draws} draw{'s' * (draws != 1)}; "
        "ahead, behind: by more than two points.",
    )


def _bars(found: League) -> tuple[Bar, ...]:
    """Attainment of each policy, best first, as the table has them."""
    return tuple(
        Bar(
            head=s.policy, mean=100 * s.attainment.mean, low=100 * s.attainment.low,
            high=100 * s.attainment.high, ours=s.policy.startswith(OURS),
        )
        for s in found.standings
    )  # fmt: skip


def _light(summary: Summary) -> Table:
    rows = [
        _row(
            policy,
            [
                f"{i.mean:.2f} ({i.low:.2f} to {i.high:.2f})" if math.isfinite(i.mean) else "–"
                for i in row.values()
            ],
        )
        for policy, row in summary.light.items()
        if policy != REFERENCE
    ]
    return Table(
        heads=("policy", *(RATIOS[figure] for figure in LIGHT)),
        rows=tuple(rows),
        caption=f"Latency over that of FCFS, geometric mean over the {summary.light_draws} draws below load "
        f"{LIGHT_LOAD:g} whose queue is stable under it.",
    )


def _means(study: Evidence, summary: Summary) -> Table:
    shown = [figure for figure in MEANS if any(figure in row for row in summary.means.values())]
    rows = []
    for policy, row in summary.means.items():
        plan = _plan_us(study, policy)
        queue = ", ".join(f"{count} {word}" for word, count in summary.queues[policy].items())
        values = [f"{row[f]:{',.0f' if row[f] >= 1000 else '.3g'}}" if f in row else "–" for f in shown]
        rows.append(_row(policy, [*values, "–" if plan is None else f"{plan:.0f}", queue]))
    return Table(
        heads=("policy", *(HEADS.get(f, f.replace("_", " ")) for f in shown), "plan p50, µs", "queues"),
        rows=tuple(rows),
        caption="Shares from 0 to 1, seconds, per second; plan times are those of the machine below.",
    )


def _cells(summary: Summary, labels: Sequence[str]) -> Table:
    rows = []
    for name, row in summary.cells.items():
        best = max(row[label].mean for label in labels)
        cells = [Cell(text=between(row[p]), key=row[p].mean, best=row[p].mean == best) for p in labels]
        rows.append(Row(head=name, cells=tuple(cells)))
    return Table(
        heads=("cell", *labels),
        rows=tuple(rows),
        caption="Weighted attainment in %, means over seeds. Underlined: highest mean of its row.",
    )


def _draws(study: Evidence) -> Table:
    labels = study.labels
    rows = []
    for place, scenario in enumerate(study.scenarios[: study.random]):
        values = [f"{100 * study.records[label, place].result['weighted']:.1f}" for label in labels]
        row = Row.of(scenario.name, [f"{scenario.load:g}", *values])
        rows.append(replace(row, cells=(*row.cells, Cell(text=describe(scenario), words=True))))
    return Table(
        heads=("draw", "load", *labels, "what"), rows=tuple(rows), caption="Weighted attainment in %."
    )


def _plan_us(study: Evidence, label: str) -> float | None:
    """Mean over scenarios of the median plan time in microseconds."""
    known = [
        p
        for place in range(len(study.scenarios))
        if (p := study.records[label, place].provenance.get("plan_p50_us")) is not None
    ]
    return sum(known) / len(known) if known else None


def _interval_dict(interval: Interval) -> dict[str, float | None]:
    values = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _runs_csv(study: Evidence) -> bytes:
    rows = [
        {"scenario": study.scenarios[place].name, "seed": study.scenarios[place].seed,
         "load": study.scenarios[place].load, "policy": label, **record.result,
         **{k: record.provenance[k] for k in ("wall_s", "plan_p50_us", "plan_p99_us")}}
        for (label, place), record in study.records.items()
    ]  # fmt: skip
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()
