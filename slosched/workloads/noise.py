"""What a scheduler is told about output lengths: from an oracle to a real predictor's errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError, require
from slosched.core.forecast import FORECAST_ATOMS, lognormal_atoms
from slosched.core.thinking import Thinking
from slosched.core.workload import Workload
from slosched.workloads.lengths import fitted

LEVELS = (np.arange(FORECAST_ATOMS) + 0.5) / FORECAST_ATOMS
"""Probability levels of the atoms of a forecast."""

DEFAULT_SIGMA = 0.5
"""Standard deviation of log length of ``lognormal`` without a number."""

BIASED, HINTS = "biased", "hints"
DEFAULT_BIAS = 0.5
"""Factor of ``biased`` without a number."""
DEFAULT_LIARS, LIE = 0.3, 0.1
"""Share of clients whose hints lie in ``hints`` without a number, and what part of the truth they state."""
HINT_SIGMA = 0.2
"""Standard deviation of log length of an honest hint."""

FORECASTS = (
    "oracle", "class-mean", "class-quantiles", "lognormal", "predictor-3", "predictor-5", BIASED, HINTS,
)  # fmt: skip
"""Names of the forecast models; some take a number, as in ``lognormal:0.8``."""


def with_forecast(
    workload: Workload, model: str, *, seed: int = 0, history: Workload | None = None
) -> Workload:
    """The workload with forecasts of its output lengths by one of the models.

    The length of thinking is known to ``oracle``; elsewhere it is the forecast of the whole length times the
    share that thinking has in the class, in `history`.

    Parameters
    ----------
    workload
        Requests with true output lengths.
    model
        One of `FORECASTS`:

        - ``oracle``: the true length.
        - ``class-mean``: the mean length of the class in `history`, as a point.
        - ``class-quantiles``: the quantiles of the class in `history`: calibrated, but the same for all.
        - ``lognormal`` or ``lognormal:SIGMA``: median = true length x exp(SIGMA z) with z standard normal,
          atoms spread by SIGMA around it, so that the truth falls between atoms as often as they say.
        - ``predictor-3``, ``predictor-5``: the errors of a real length classifier with 3 or 5 classes (BERT,
          Qiu et al., arXiv 2404.08509). The rank of the true length within its class draws a predicted
          length class from the measured confusion counts; atoms are the quantiles, among the lengths in
          `history`, of the true ranks seen under that prediction. Only ranks are used, so the errors carry
          over to traces on another scale of lengths; Kendall's tau is .57 (3 classes) and .64 (5).
        - ``biased`` or ``biased:FACTOR``: as ``predictor-5``, each length times FACTOR (above 0).
        - ``hints`` or ``hints:SHARE``: what clients say themselves, as points. A share of the requests, from
          0 to 1, states a tenth of its true length; the others state it with a lognormal error of sigma .2.
    seed
        Seed of the errors.
    history
        Past requests that class statistics come from; by default the workload itself, that is, statistics as
        good as they can be. Classes are matched by name; one without history uses all of it.

    Raises
    ------
    InputError
        If there is no such model, its number is outside its domain, or the history is empty.

    Examples
    --------
    >>> w = Workload.plain(np.arange(3.0), np.array([5, 5, 5]), np.array([10, 20, 90]))
    >>> with_forecast(w, "class-mean").atoms[:, 0].tolist()
    [40.0, 40.0, 40.0]
    """
    made = _with_lengths(workload, model, seed, history)
    if made.thinking is None:
        return made
    true = made.thinking.tokens
    if model == "oracle":
        return replace(made, thinking=Thinking.of(true, made.thinking.ttfat_s))
    past = workload if history is None or history.thinking is None else history
    assert past.thinking is not None
    share = np.zeros(len(made))
    for index, label in enumerate(made.classes):
        known = past.class_index == past.classes.index(label) if label in past.classes else slice(None)
        total = past.output_tokens[known].sum()
        share[made.class_index == index] = past.thinking.tokens[known].sum() / max(1, total)
    return replace(made, thinking=replace(made.thinking, atoms=made.atoms * share[:, None]))


def _with_lengths(workload: Workload, model: str, seed: int, history: Workload | None) -> Workload:
    rng = np.random.default_rng(seed)
    past = workload if history is None else history
    name, _, parameter = model.partition(":")
    if len(workload) == 0:
        return workload
    require(len(past) > 0, "history", "not empty", len(past))
    if name == "oracle" and not parameter:
        truth = workload.output_tokens.astype(np.float64)
        return replace(workload, atoms=np.repeat(truth[:, None], FORECAST_ATOMS, axis=1))
    if name == "lognormal":
        sigma = _number(model, DEFAULT_SIGMA, "of at least 0", 0.0, math.inf)
        median = np.maximum(workload.output_tokens * np.exp(sigma * rng.standard_normal(len(workload))), 1.0)
        return replace(workload, atoms=lognormal_atoms(median, sigma))
    if name == BIASED:
        factor = _number(model, DEFAULT_BIAS, "above 0", 1e-9, math.inf)
        plain = _with_lengths(workload, "predictor-5", seed, history)
        return replace(plain, atoms=np.maximum(plain.atoms * factor, 1.0))
    if name == HINTS:
        liars = rng.random(len(workload)) < _number(model, DEFAULT_LIARS, "from 0 to 1", 0.0, 1.0)
        said = workload.output_tokens * np.exp(HINT_SIGMA * rng.standard_normal(len(workload)))
        point = np.maximum(np.where(liars, LIE * workload.output_tokens, said), 1.0)
        return replace(workload, atoms=np.repeat(point[:, None], FORECAST_ATOMS, axis=1))
    by_class: dict[str, Callable[[Ints, Floats, np.random.Generator], Floats]] = {
        "class-mean": _class_mean,
        "class-quantiles": _class_quantiles,
        "predictor-3": lambda true, seen, stream: _predictor("3", true, seen, stream),
        "predictor-5": lambda true, seen, stream: _predictor("5", true, seen, stream),
    }
    if name not in by_class or parameter:
        raise InputError(f"forecast must be one of {', '.join(FORECASTS)}, got {model!r}.")
    atoms = np.ones((len(workload), FORECAST_ATOMS))
    for index, label in enumerate(workload.classes):
        rows = np.flatnonzero(workload.class_index == index)
        if len(rows):
            atoms[rows] = by_class[name](workload.output_tokens[rows], _lengths_of(past, label), rng)
    return replace(workload, atoms=np.maximum(atoms, 1.0))


def _number(model: str, default: float, domain: str, least: float, most: float) -> float:
    """The number behind the colon of a forecast model, or its default."""
    name, _, text = model.partition(":")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    ok = least <= value <= most and value < math.inf
    require(ok, "forecast", f"{name}:NUMBER with a finite number {domain}", model)
    return value


def _lengths_of(past: Workload, label: str) -> Floats:
    rows = (
        past.class_index == past.classes.index(label) if label in past.classes else np.zeros(len(past), bool)
    )
    lengths = past.output_tokens[rows] if rows.any() else past.output_tokens
    return np.asarray(np.sort(lengths), dtype=np.float64)


def _class_mean(true_tokens: Ints, seen: Floats, rng: np.random.Generator) -> Floats:
    return np.full((len(true_tokens), FORECAST_ATOMS), seen.mean())


def _class_quantiles(true_tokens: Ints, seen: Floats, rng: np.random.Generator) -> Floats:
    return np.tile(np.quantile(seen, LEVELS), (len(true_tokens), 1))


def _predictor(classes: str, true_tokens: Ints, seen: Floats, rng: np.random.Generator) -> Floats:
    """Atoms by the confusion counts of the measured classifier; `seen` is sorted."""
    counts = np.asarray(fitted()["predictor"][classes], dtype=np.float64)
    bins = len(counts)
    # Equal lengths share their ranks evenly: a random one among them.
    low = np.searchsorted(seen, true_tokens, side="left")
    high = np.searchsorted(seen, true_tokens, side="right")
    rank = (low + rng.random(len(true_tokens)) * (high - low)) / len(seen)
    row = np.minimum((rank * bins).astype(np.int64), bins - 1)
    chances = np.cumsum(counts / counts.sum(axis=1, keepdims=True), axis=1)
    guess = (rng.random(len(true_tokens))[:, None] >= chances[row, :-1]).sum(axis=1)
    # Ranks of the truth under each guess: piecewise uniform over the bins, weighted by the counts.
    edges = np.arange(bins + 1) / bins
    cdf = np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts / counts.sum(axis=0), axis=0)])
    ranks = np.stack([np.interp(LEVELS, cdf[:, c], edges) for c in range(counts.shape[1])])
    return np.asarray(np.quantile(seen, ranks)[guess])
