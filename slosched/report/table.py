"""Results as tables for a terminal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from slosched.core.metrics import NO_QUEUE, Latency, Metrics, Share
from slosched.lab.comparison import OURS, Comparison
from slosched.simulator.fleet import FleetRun


def compare_table(comparison: Comparison) -> Table:
    """One row per policy: weighted attainment at each rate, then the price of it at the highest rate."""
    rates = comparison.rates_rps
    top = rates[-1]
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"Requests that met their SLOs, by weight, in % ({comparison.workload}, "
        f"{len(comparison.seeds)} seed{'s' * (len(comparison.seeds) > 1)})",
        caption="\n".join(
            [f"Columns right of the loads are at {comparison.label(top)}.", *notes(comparison)]
        ),
        caption_justify="left",
    )
    table.add_column("policy", no_wrap=True)
    for rate in rates:
        table.add_column(comparison.label(rate), justify="right", no_wrap=True)
    for name in ("95 %\ninterval", "goodput\nreq/s", "p99\nTTFT s", "longest\nwait s", "plan µs\np50/p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for policy in comparison.policies:
        cells: list[Text | str] = [_percent(comparison, policy, rate) for rate in rates]
        kept = comparison.attainment(policy, top)
        cells += [
            f"{100 * kept.low:.1f} to {100 * kept.high:.1f}",
            _number(comparison.spread(policy, top, lambda m: m.goodput_rps).mean),
            _number(comparison.spread(policy, top, lambda m: m.ttft_s.p99).mean),
            _number(comparison.spread(policy, top, lambda m: m.max_wait_s).mean),
            "/".join(
                f"{plan.mean:.0f}" if plan.seeds else "–"
                for plan in (
                    comparison.spread(policy, top, lambda m: m.plan_p50_us),
                    comparison.spread(policy, top, lambda m: m.plan_p99_us),
                )
            ),
        ]
        table.add_row(policy, *cells, style="bold" if policy == OURS else None)
    return table


def notes(comparison: Comparison) -> list[str]:
    """Sentences that must stand below any table of the comparison."""
    over = "over seeds" if len(comparison.seeds) > 1 else "within the one seed (Wilson's)"
    lines = [f"Intervals are 95 %, {over}."]
    if comparison.relative:
        lines.append(
            f"1.00x = {comparison.sustained_rps:.3g} req/s: what the engine sustains with full batches, by "
            "its step-time model."
        )
    idle = [comparison.label(rate) for rate in comparison.rates_rps if not comparison.queued(rate)]
    if idle:
        lines.append(f"At {', '.join(idle)}: {NO_QUEUE[0].lower()}{NO_QUEUE[1:]}")
    return lines + _verdict(comparison)


def _verdict(comparison: Comparison) -> list[str]:
    best = comparison.best_baseline
    if best is None or not comparison.verdict:
        return []
    parts = []
    for rate in comparison.crowded_rates_rps:
        ratio = comparison.misses_beside(OURS, best, rate)
        if math.isfinite(ratio):
            parts.append(f"{ratio:.2f} at {comparison.label(rate)}")
    if not parts:
        return []
    return [f"Misses of {OURS} over those of the best baseline, {best}: {', '.join(parts)}."]


def run_table(metrics: Metrics, *, engines: int = 1) -> Table:
    """Everything about one run; on several engines, their busy time is over that of all."""
    m = metrics
    table = Table(
        title=f"{m.policy} on {m.workload} ({m.engine}, seed {m.seed})",
        caption=None if m.queued else NO_QUEUE,
        show_header=False,
    )
    table.add_column()
    table.add_column()
    for name, value in _run_rows(m, engines):
        table.add_row(name, value)
    return table


def fleet_table(run: FleetRun) -> Table:
    """What each engine of a fleet did."""
    title = f"{len(run.logs)} engines behind {run.router}"
    caption = f"Moved between engines: {run.moved}; lost with an engine: {int(run.lost.sum())}."
    table = Table("engine", "requests", "steps", "busy s", title=title, caption=caption)
    for i, row in enumerate(fleet_rows(run)):
        table.add_row(str(i), str(row["requests"]), str(row["steps"]), _number(row["busy_s"]))
    return table


def fleet_rows(run: FleetRun) -> list[dict[str, Any]]:
    """The same as plain numbers: requests, steps and seconds busy of each engine."""
    sent = np.bincount(run.engine_of[run.engine_of >= 0], minlength=len(run.logs))
    return [
        {"requests": int(count), "steps": log.steps, "busy_s": log.busy_s}
        for count, log in zip(sent, run.logs, strict=True)
    ]


def _run_rows(m: Metrics, engines: int) -> list[tuple[str, str]]:
    rejected = f", {m.rejected} rejected" if m.rejected else ""
    rows = [
        ("requests", f"{m.requests} ({m.finished} finished{rejected}) at {_number(m.offered_rps)}/s"),
        ("met their SLOs", _share(m.attainment)),
        ("… by weight", _share(m.weighted)),
    ]
    rows += [(f"… class {name}", _share(share)) for name, share in m.by_class.items() if share.count]
    rows += [(f"… {kind} limits", _share(share)) for kind, share in m.by_limit.items() if share.count]
    rows += [
        ("goodput", f"{_number(m.goodput_rps)} req/s within limits, {m.throughput_tps:.0f} output tokens/s"),
        ("TTFT", _latency(m.ttft_s, 1.0, "s")),
        *([] if m.ttfat_s is None else [("TTFAT, first answer token", _latency(m.ttfat_s, 1.0, "s"))]),
        ("TPOT", _latency(m.tpot_s, 1e3, "ms")),
        ("e2e", _latency(m.e2e_s, 1.0, "s")),
        ("longest wait", f"{_number(m.max_wait_s)} s"),
        ("best-effort p99 e2e", f"{_number(m.best_effort_p99_e2e_s)} s"),
        (
            "queue",
            f"mean {m.queue.mean:.1f}, most {m.queue.max}, present {m.queue.time_share:.0%} of the time",
        ),
    ]
    if not math.isfinite(m.busy_share):
        # A live server, seen from outside: what it did inside is not known.
        return [*rows, ("run", f"{_number(m.span_s)} s, {m.wall_s:.1f} s with warm-up")]
    planning = f"{m.plans} plans, p50 {_number(m.plan_p50_us)} µs, p99 {_number(m.plan_p99_us)} µs"
    times = f"{engines} × " if engines > 1 else ""
    busy = f"busy {m.busy_share / engines:.0%} of {times}{_number(m.span_s)} s"
    engine = f"{m.steps} steps, {busy}, run in {m.wall_s:.2f} s"
    preempted = f"{m.preemptions}, {m.recomputed_tokens} tokens recomputed"
    return [*rows, ("preemptions", preempted), ("planning", planning), ("engine", engine)]


def _share(share: Share) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def _latency(latency: Latency, scale: float, unit: str) -> str:
    mean, p50, p90, p99 = (_number(scale * v) for v in (latency.mean, latency.p50, latency.p90, latency.p99))
    return f"mean {mean}, p50 {p50}, p90 {p90}, p99 {p99} {unit}"


def _percent(comparison: Comparison, policy: str, rate: float) -> Text:
    spread = comparison.attainment(policy, rate)
    best = max(comparison.attainment(other, rate).mean for other in comparison.policies)
    style = "green" if round(100 * spread.mean, 1) == round(100 * best, 1) else ""
    return Text(f"{100 * spread.mean:.1f}", style=style)


def _number(value: float) -> str:
    """Three significant figures; a dash for what was not measured."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"
