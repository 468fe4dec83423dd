"""Figures of one run of a study, as flat numbers with the same names everywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats
from slosched.core.outcome import Outcomes, Run, RunLog

WARM_UP, DRAIN = 0.1, 0.1
"""Shares of the window cut at its beginning, where the engine is still empty, and at its end, where nobody
comes after. What was met there is shown apart."""
GROWING, GROWING_LEAST = 1.5, 5.0
"""A queue grows if it is, in the last third of the window, that many times as long as in the second third,
and at least so many requests long."""
BURSTING = 4.0
"""A queue bursts if its longest is that many times its mean, and it does not grow."""
DIGITS = 9
"""Significant digits kept: more would differ between mathematical libraries."""

STABLE, BURSTS, GROWS = "stable", "bursting", "growing"

Rows = NDArray[np.bool_]


def figures(run: Run, *, window_s: float, burst: bool = False) -> dict[str, Any]:
    """Figures of a run of a scenario.

    Parameters
    ----------
    run
        The finished run.
    window_s
        Seconds over which requests were planned to come.
    burst
        Whether the scenario is a short burst, of which nothing is cut.

    Returns
    -------
    dict
        Shares from 0 to 1, seconds, requests and tokens per second; None where there is nothing to measure.
        All but those whose names begin with ``all_``, ``warm_up_`` or ``drain_`` are over the requests
        planned within the window less warm-up and drain, the same under every policy.

        - ``weighted``, ``attainment``: share that kept all limits, by weight and by number.
        - ``goodput_rps``, ``goodput_tps``: requests and output tokens of those, per second.
        - ``lowest_class``, ``worst_tenant``: the lowest weighted attainment of a class, of a tenant;
          ``jain``: Jain's index of the tenants' attainments.
        - ``ttft_mean_s``, ``ttft_p50_s``, ``ttft_p99_s``, the same of ``tpot`` and ``e2e``: of requests that
          have them.
        - ``longest_wait_s``: until first admission or, for those never admitted, the end of the run.
        - ``refused``, ``preempted``: requests refused, never sent because a turn before was refused included;
          preemptions.
        - ``queue``: stable, bursting or growing; ``waiting_mean``, ``waiting_max`` within the window.
        - ``plans``, ``steps``.
    """
    out = run.outcomes
    work = out.workload
    at = work.arrival_s
    inner = np.ones(len(work), dtype=np.bool_)
    early, late = ~inner, ~inner
    if not burst:
        early, late = at < WARM_UP * window_s, at >= (1 - DRAIN) * window_s
        inner = ~early & ~late
    seconds = window_s * (1.0 if burst else 1 - WARM_UP - DRAIN)
    met = out.met
    good = inner & met
    tenants = _by_label(out, work.tenant_index, len(work.tenants), inner)
    classes = _by_label(out, work.class_index, len(work.classes), inner)
    refused = np.isnan(out.arrival_s) if out.rejected is None else out.rejected | np.isnan(out.arrival_s)
    state, mean, most = _queue(run.log, window_s)
    row: dict[str, Any] = {
        "weighted": _weighted(out, inner),
        "attainment": float(met[inner].mean()) if inner.any() else math.nan,
        "goodput_rps": float(good.sum()) / seconds,
        "goodput_tps": float(work.output_tokens[good].sum()) / seconds,
        "lowest_class": min(classes, default=math.nan),
        "worst_tenant": min(tenants, default=math.nan),
        "jain": jain(np.array(tenants)),
        **_latencies(out, inner),
        "longest_wait_s": _longest_wait_s(out, inner & ~refused),
        "refused": int(refused[inner].sum()),
        "preempted": int(out.preemptions[inner].sum()),
        "requests": int(inner.sum()),
        "queue": state,
        "waiting_mean": mean,
        "waiting_max": most,
        "all_weighted": _weighted(out, np.ones(len(work), dtype=np.bool_)),
        "warm_up_weighted": _weighted(out, early),
        "drain_weighted": _weighted(out, late),
        "plans": run.log.plans,
        "steps": run.log.steps,
    }
    return {name: _rounded(value) for name, value in row.items()}


def plan_times_us(log: RunLog) -> dict[str, float | None]:
    """Wall time of plans: median and 99th percentile in microseconds; None if they were not measured."""
    if not len(log.plan_s):
        return {"plan_p50_us": None, "plan_p99_us": None}
    p50, p99 = np.percentile(log.plan_s, (50, 99)) * 1e6
    return {"plan_p50_us": round(float(p50), 1), "plan_p99_us": round(float(p99), 1)}


def jain(values: Floats) -> float:
    """Jain's index of fairness, (Σx)² / (n Σx²): 1 if all are equal, 1/n if one has everything.

    NaN if there are none, 1 if all are 0.

    Examples
    --------
    >>> jain(np.array([1.0, 0.0]))
    0.5
    """
    if not len(values):
        return math.nan
    square = float(values @ values)
    return float(values.sum()) ** 2 / (len(values) * square) if square > 0 else 1.0


def _weighted(out: Outcomes, rows: Rows) -> float:
    weight = out.workload.weight[rows]
    total = float(weight.sum())
    return float(weight[out.met[rows]].sum()) / total if total > 0 else math.nan


def _by_label(out: Outcomes, label: NDArray[np.int64], count: int, rows: Rows) -> list[float]:
    """Weighted attainment of each label that has requests."""
    found = [_weighted(out, rows & (label == index)) for index in range(count)]
    return [value for value in found if not math.isnan(value)]


def _latencies(out: Outcomes, rows: Rows) -> dict[str, float]:
    found = {}
    for kind in ("ttft", "tpot", "e2e"):
        values = getattr(out, f"{kind}_s")[rows]
        values = values[np.isfinite(values)]
        some = len(values) > 0
        found[f"{kind}_mean_s"] = float(values.mean()) if some else math.nan
        for percent in (50, 99):
            found[f"{kind}_p{percent}_s"] = float(np.percentile(values, percent)) if some else math.nan
    return found


def _longest_wait_s(out: Outcomes, rows: Rows) -> float:
    """Longest time to admission among some requests; who was never admitted waits to the last finish."""
    sent = out.arrival_s[rows]
    end_s = float(out.finish_s[out.finished].max()) if out.finished.any() else math.nan
    until = np.where(np.isfinite(out.admitted_s[rows]), out.admitted_s[rows], np.maximum(end_s, sent))
    return float((until - sent).max(initial=0.0))


def _queue(log: RunLog, window_s: float) -> tuple[str, float, int]:
    """What the waiting line does within the window: in a word, its mean over time, and its longest."""
    inside = log.depth_time_s < window_s
    time_s, waiting = log.depth_time_s[inside], log.depth_waiting[inside]
    if not len(time_s):
        return STABLE, 0.0, 0
    held = np.diff(np.append(time_s, window_s))

    def mean(low: float, high: float) -> float:
        share = np.clip(np.minimum(time_s + held, high) - np.maximum(time_s, low), 0.0, None)
        return float(share @ waiting) / (high - low)

    whole, most = mean(0.0, window_s), int(waiting.max())
    second, third = mean(window_s / 3, 2 * window_s / 3), mean(2 * window_s / 3, window_s)
    if third > GROWING * second and third >= GROWING_LEAST:
        return GROWS, whole, most
    return (BURSTS if most > BURSTING * max(1.0, whole) else STABLE), whole, most


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
