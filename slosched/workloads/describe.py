"""What a workload looks like, in numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.workload import Workload


def describe(workload: Workload) -> dict[str, object]:
    """Statistics of a workload, ready for JSON; None where one is not defined.

    Parameters
    ----------
    workload
        Anything, also empty.

    Returns
    -------
    dict
        ``requests``, ``span_s`` (first to last arrival), ``rate_per_s``, ``gap_cv`` (coefficient of
        variation of the gaps between arrivals; 1 for Poisson), ``dispersion_1s`` (variance over mean of the
        counts per second; 1 for Poisson), ``sessions``, ``closed_loop_turns`` (requests that are sent only
        after another's answer; the times above are then those planned), ``prefix_share`` (share of prompt
        blocks that an endless prefix cache would hold already), ``classes`` with lengths, limits and weights
        of each, ``forecast_error`` (median of |log(mean forecast / true length)|), ``name`` and ``source``.

    Examples
    --------
    >>> w = Workload.plain(np.arange(5.0), np.full(5, 100), np.full(5, 10))
    >>> about = describe(w)
    >>> about["requests"], about["rate_per_s"], about["gap_cv"]
    (5, 1.0, 0.0)
    """
    n = len(workload)
    span = float(workload.arrival_s[-1] - workload.arrival_s[0]) if n else 0.0
    gaps = np.diff(workload.arrival_s)
    error = np.abs(np.log(workload.atoms.mean(axis=1) / workload.output_tokens))
    return {
        "name": workload.name,
        "source": workload.source,
        "requests": n,
        "span_s": span,
        "rate_per_s": (n - 1) / span if span > 0 else None,
        "gap_cv": float(gaps.std() / gaps.mean()) if span > 0 else None,
        "dispersion_1s": dispersion(workload.arrival_s, 1.0),
        "sessions": int(np.unique(workload.session[workload.session >= 0]).size),
        "closed_loop_turns": int(np.sum(workload.previous >= 0)),
        "prefix_share": prefix_share(workload),
        "forecast_error": float(np.median(error)) if n else None,
        "classes": {
            label: _describe_class(workload, workload.class_index == index)
            for index, label in enumerate(workload.classes)
        },
    }


def dispersion(arrival_s: Floats, window_s: float) -> float | None:
    """Variance over mean of the arrivals per window of `window_s`; None for under two windows."""
    if len(arrival_s) == 0:
        return None
    windows = ((arrival_s - arrival_s[0]) // window_s).astype(np.int64)
    filled, counts = np.unique(windows, return_counts=True)
    total = int(filled[-1]) + 1
    if total < 2:
        return None
    # Windows without arrivals count too, but a long silence must not cost memory.
    mean = len(arrival_s) / total
    return float((np.sum(counts.astype(np.float64) ** 2) / total - mean**2) / mean)


def prefix_share(workload: Workload) -> float | None:
    """Share of prompt blocks seen before in the workload; None where prompts have no block ids."""
    if workload.prefix is None or len(workload.prefix.ids) == 0:
        return None
    ids = workload.prefix.ids
    return 1.0 - len(np.unique(ids)) / len(ids)


def _describe_class(workload: Workload, rows: NDArray[np.bool_]) -> dict[str, object]:
    limits = {
        name: _range(getattr(workload, name)[rows]) for name in ("ttft_s", "tpot_s", "e2e_s", "ttfat_s")
    }
    thinking = (
        {} if workload.thinking is None else {"thinking_tokens": _quantiles(workload.thinking.tokens[rows])}
    )
    return thinking | {
        "requests": int(rows.sum()),
        "share": float(rows.mean()) if len(rows) else None,
        "prompt_tokens": _quantiles(workload.prompt_tokens[rows]),
        "output_tokens": _quantiles(workload.output_tokens[rows]),
        "limits_s": {name: limit for name, limit in limits.items() if limit is not None},
        "weight": _range(workload.weight[rows]),
    }


def _quantiles(values: Ints) -> dict[str, float] | None:
    if len(values) == 0:
        return None
    p50, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99])
    return {
        "mean": float(values.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(values.max()),
    }


def _range(values: Floats) -> list[float] | None:
    finite = values[np.isfinite(values)]
    return [float(finite.min()), float(finite.max())] if len(finite) else None
