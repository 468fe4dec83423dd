"""What a study says: us against the best rival in every cell, capacity, and the gap to the bound."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from slosched.core.table import Floats
from slosched.lab.evidence_config import OURS, PRIORITY, REFERENCE
from slosched.lab.evidence_grid import Grid
from slosched.lab.study import TARGET
from slosched.report.metrics import CONFIDENCE, Metrics

RESAMPLES = 4000
CROWDED = 0.9
"""Share of the time with somebody waiting, under the reference, from which a cell is called saturated."""

OVERLOAD = 1.0
"""Loads above this count as overload."""

TAIL_RIVALS = ("uniboost", "hrrn")
"""Rivals whose tails ours are held against."""

TAILS: dict[str, Callable[[Metrics], float]] = {
    "e2e_p99_s": lambda m: m.e2e_s.p99,
    "ttft_p99_s": lambda m: m.ttft_s.p99,
    "max_wait_s": lambda m: m.max_wait_s,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSummary:
    """One mix, load and forecast.

    Parameters
    ----------
    attainment
        Mean weighted attainment by policy.
    best_rival
        The other policy with the highest; ties by the order of the configuration.
    advantage, advantage_low, advantage_high
        Ours less the best rival's, seed by seed, and the bootstrap interval of its mean.
    miss_ratio
        Our misses over the best rival's; NaN if that has none.
    bound
        What nobody can beat, mean over seeds; `gap` is the share of it that we leave.
    saturated
        Whether somebody waited nearly all the time under the reference.
    tails
        For each figure of `TAILS` and rival of `TAIL_RIVALS` in the study: ours over theirs.
    """

    mix: str
    load: float
    forecast: str
    attainment: dict[str, float]
    best_rival: str
    advantage: float
    advantage_low: float
    advantage_high: float
    miss_ratio: float
    bound: float
    gap: float
    saturated: bool
    tails: dict[str, float]

    @property
    def lost(self) -> bool:
        """Whether the best rival is better beyond its interval."""
        return self.advantage_high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All cells, the capacity of each policy and the headline."""

    cells: tuple[CellSummary, ...]
    capacity_load: dict[str, dict[str, float]]
    headline: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def summarise(grid: Grid) -> Summary:
    """Everything that is claimed from a study; needs `slosched` and a rival among its policies."""
    cells = []
    capacity: dict[str, dict[str, float]] = {}
    for mix in grid.config.mixes:
        bounds: dict[float, list[float]] = {}
        for cell, value in grid.bounds(mix):
            bounds.setdefault(cell.load, []).append(value)
        for forecast in grid.config.forecasts:
            runs: dict[tuple[float, str], list[Metrics]] = {}
            for cell, metrics in grid.metrics(mix, forecast):
                runs.setdefault((cell.load, cell.policy), []).append(metrics)
            for load in grid.config.loads:
                here = {p: runs[load, p] for p in grid.config.policies}
                bound = statistics.fmean(bounds[load])
                cells.append(_cell(mix, load, forecast, here, grid.config.rivals, bound))
            mine = [c for c in cells if (c.mix, c.forecast) == (mix, forecast)]
            capacity[f"{mix}, {forecast}"] = {
                p: load_at_target([c.load for c in mine], [c.attainment[p] for c in mine])
                for p in grid.config.policies
            }
    return Summary(
        cells=tuple(cells), capacity_load=capacity, headline=_headline(cells, capacity, grid.config.rivals)
    )


def _cell(
    mix: str,
    load: float,
    forecast: str,
    runs: dict[str, list[Metrics]],
    rivals: Sequence[str],
    bound: float,
) -> CellSummary:
    values = {p: np.array([m.weighted.value for m in found]) for p, found in runs.items()}
    means = {p: float(v.mean()) for p, v in values.items()}
    best = max(rivals, key=lambda p: means[p])
    differences = values[OURS] - values[best]
    low, high = bootstrap(differences)
    missed = 1 - means[best]
    tails = {}
    for figure, of in TAILS.items():
        for rival in TAIL_RIVALS:
            if rival in runs:
                theirs = statistics.fmean(of(m) for m in runs[rival])
                ours = statistics.fmean(of(m) for m in runs[OURS])
                tails[f"{figure} over {rival}"] = ours / theirs if theirs > 0 else math.nan
    return CellSummary(
        mix=mix,
        load=load,
        forecast=forecast,
        attainment=means,
        best_rival=best,
        advantage=float(differences.mean()),
        advantage_low=low,
        advantage_high=high,
        miss_ratio=(1 - means[OURS]) / missed if missed > 1e-9 else math.nan,
        bound=bound,
        gap=1 - means[OURS] / bound if bound > 0 else 0.0,
        saturated=all(m.queue.time_share >= CROWDED for m in runs.get(REFERENCE, runs[best])),
        tails=tails,
    )


def bootstrap(differences: Floats, *, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean of paired differences at `CONFIDENCE`, by resampling seeds (percentiles).

    Examples
    --------
    >>> low, high = bootstrap(np.array([0.01, 0.02, 0.03]))
    >>> 0.01 <= low < 0.02 < high <= 0.03
    True
    """
    rng = np.random.default_rng(seed)
    means = rng.choice(differences, size=(RESAMPLES, len(differences))).mean(axis=1)
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def load_at_target(loads: Sequence[float], attained: Sequence[float]) -> float:
    """Highest load with the target attainment, linear between loads; at the grid's end it is the last load.

    Examples
    --------
    >>> round(load_at_target([0.5, 1.0, 1.5], [1.0, 0.95, 0.85]), 3)
    1.25
    """
    pairs = sorted(zip(loads, attained, strict=True))
    if pairs[0][1] < TARGET:
        return math.nan
    for (low, before), (high, after) in pairwise(pairs):
        if after < TARGET:
            return low + (high - low) * (before - TARGET) / (before - after)
    return pairs[-1][0]


def _headline(
    cells: Sequence[CellSummary], capacity: dict[str, dict[str, float]], rivals: Sequence[str]
) -> dict[str, Any]:
    """Wins and losses; a mean of ratios leaves out those that cannot be formed, and says how many."""
    busy = [c for c in cells if c.load > OVERLOAD]
    ratios = [c.miss_ratio for c in busy if math.isfinite(c.miss_ratio)]
    tails = [
        (f"{c.mix}, {c.load:g}x, {c.forecast}: {name}", value)
        for c in cells
        for name, value in c.tails.items()
        if math.isfinite(value)
    ]
    gains: dict[str, list[float]] = {"best rival": [], REFERENCE: [], PRIORITY: []}
    for loads in capacity.values():
        ours = loads[OURS]
        theirs = {p: loads[p] for p in rivals if math.isfinite(loads[p])}
        if not math.isfinite(ours) or not theirs:
            continue
        gains["best rival"].append(ours / max(theirs.values()))
        for name in (REFERENCE, PRIORITY):
            if name in theirs:
                gains[name].append(ours / theirs[name])
    return {
        "cells": len(cells),
        "cells_lost": [
            {"mix": c.mix, "load": c.load, "forecast": c.forecast, "rival": c.best_rival,
             "advantage": c.advantage, "interval": [c.advantage_low, c.advantage_high]}
            for c in cells if c.lost
        ],
        "cells_won": sum(c.advantage_low > 0 for c in cells),
        "overload_miss_ratio_geometric_mean": _geometric(ratios),
        "overload_cells_without_misses_of_the_rival": len(busy) - len(ratios),
        "tail_rivals": [p for p in TAIL_RIVALS if p in rivals],
        "tails_no_worse": sum(v <= 1.02 for _, v in tails) / len(tails) if tails else math.nan,
        "tails_worse": [name for name, v in tails if v > 1.02],
        "capacity_gain_geometric_mean": {name: _geometric(found) for name, found in gains.items()},
        "gap_to_bound_median": statistics.median(c.gap for c in cells),
    }  # fmt: skip


def _geometric(ratios: Sequence[float]) -> float:
    if not ratios:
        return math.nan
    return math.exp(statistics.fmean(math.log(max(r, 1e-3)) for r in ratios))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
