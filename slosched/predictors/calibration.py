"""From scores to forecasts: which lengths a score stands for, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slosched.core.arrays import Floats
from slosched.core.errors import require
from slosched.core.forecast import FORECAST_ATOMS, OUTLIVED_GROWTH

LEVELS = (np.arange(FORECAST_ATOMS) + 0.5) / FORECAST_ATOMS
"""Probability levels of the atoms."""

COVERAGE = 0.8
"""Share of answers that fall between the 10 % and the 90 % quantile of a calibrated forecast."""

MOST_LOG = 300.0
"""Largest logarithm of a length in tokens: far beyond any answer, and means of such lengths are finite."""

TAIL = 1.0 + 1.0 / OUTLIVED_GROWTH
"""Pareto index beyond the longest answer that was seen to its end: the one whose mean residual life is
`slosched.core.forecast.OUTLIVED_GROWTH` of the present length."""


def censored_quantiles(
    tokens: ArrayLike,
    cut: ArrayLike,
    levels: ArrayLike = LEVELS,
    weights: ArrayLike | None = None,
) -> Floats:
    """Quantiles of lengths some of which are only lower bounds (Kaplan and Meier 1958).

    Parameters
    ----------
    tokens
        Lengths, shape (n,), n at least 1.
    cut
        Whether a length is a lower bound, shape (n,).
    levels
        Probabilities, ascending, shape (m,).
    weights
        Weight of each length, above 0; 1 by default.

    Returns
    -------
    ndarray
        Shape (m,), ascending. Levels that no whole answer reaches lie on a Pareto tail of index `TAIL`.

    Examples
    --------
    >>> censored_quantiles([10, 20, 30, 40], [False] * 4, [0.1, 0.5, 0.9]).tolist()
    [10.0, 25.0, 40.0]
    >>> censored_quantiles([10, 20, 20, 20], [False, True, True, True], [0.1, 0.5]).round(1).tolist()
    [10.0, 21.7]
    """
    value = np.asarray(tokens, dtype=np.float64)
    open_ = np.asarray(cut, dtype=np.bool_)
    weight = np.ones(len(value)) if weights is None else np.asarray(weights, dtype=np.float64)
    p = np.asarray(levels, dtype=np.float64)
    require(len(value) > 0, "tokens", "one or more lengths", len(value))
    order = np.lexsort((open_, value))  # at a tie those that ended come before those cut off
    value, open_, weight = value[order], open_[order], weight[order]
    at_risk = np.cumsum(weight[::-1])[::-1]
    ended = np.flatnonzero(~open_)
    alive = np.cumprod(1.0 - np.minimum(1.0, weight[ended] / at_risk[ended]))
    if len(ended) == 0:
        return np.asarray(value[-1] * (1.0 - p) ** (-1.0 / TAIL))
    before = np.concatenate([[1.0], alive[:-1]])
    # Each whole answer stands at the middle of its step of the distribution.
    middle = 1.0 - (before + alive) / 2.0
    found = np.interp(p, middle, value[ended])
    left = alive[-1]
    if left > 1e-12:
        beyond = p > 1.0 - left
        last = value[-1]
        found = np.where(beyond, last * (left / np.maximum(1.0 - p, 1e-12)) ** (1.0 / TAIL), found)
    return np.maximum.accumulate(np.asarray(found))


def require_finite(name: str, array: NDArray[np.generic]) -> None:
    """Raise `InputError` with the first number that is not finite, if there is one."""
    values = np.asarray(array, dtype=np.float64).ravel()
    odd = values[~np.isfinite(values)]
    require(len(odd) == 0, name, "finite", float(odd[0]) if len(odd) else None)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Atoms by score: interpolated between knots, flat beyond them.

    Parameters
    ----------
    scores
        Knots, shape (k,), ascending.
    log_atoms
        Logarithms of the atoms at each knot, shape (k, FORECAST_ATOMS), ascending both ways: a higher score
        never means a shorter forecast.
    """

    scores: Floats
    log_atoms: Floats

    def __post_init__(self) -> None:
        ok = self.scores.ndim == 1 and len(self.scores) > 0
        require(ok, "scores", "one or more numbers in a row", self.scores.shape)
        ok = self.log_atoms.shape == (len(self.scores), FORECAST_ATOMS)
        require(ok, "log_atoms", "one row of atoms for each score", self.log_atoms.shape)
        require_finite("scores", self.scores)
        require_finite("log_atoms", self.log_atoms)
        largest = float(self.log_atoms.max())
        require(largest <= MOST_LOG, "log_atoms", f"at most {MOST_LOG:g}", largest)
        ok = bool(np.all(np.diff(self.scores) >= 0) and np.all(np.diff(self.log_atoms, axis=1) >= 0))
        require(ok, "calibration", "ascending scores and atoms", "others")

    def atoms(self, scores: ArrayLike) -> Floats:
        """Atoms of each score, shape (n, FORECAST_ATOMS)."""
        at = np.asarray(scores, dtype=np.float64)
        columns = [np.interp(at, self.scores, self.log_atoms[:, k]) for k in range(FORECAST_ATOMS)]
        return np.asarray(np.maximum(np.exp(np.stack(columns, axis=1)), 1.0))


def calibrate(scores: ArrayLike, tokens: ArrayLike, cut: ArrayLike, *, seed: int = 0) -> Calibration:
    """Fit a calibration to scores of prompts that the ranker has not seen, and the lengths that came.

    Around each knot the quantiles of the nearest lengths (censored ones as such), made monotone in the score
    by isotonic regression; then the spread is scaled so that on answers held out `COVERAGE` fall between the
    10 % and 90 % quantiles (split conformal, as in Romano, Patterson and Candès 2019, the error measured in
    half-widths of the interval).

    Parameters
    ----------
    scores, tokens, cut
        One of each per answer, shape (n,), n at least 2.
    seed
        Of the split.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> score = rng.normal(size=2000)
    >>> made = calibrate(score, np.exp(5 + score + rng.normal(size=2000)), np.zeros(2000, bool))
    >>> made.atoms([-1.0, 1.0])[:, 4].round(-1).tolist()  # doctest: +SKIP
    [60.0, 470.0]
    """
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    c = np.asarray(cut, dtype=np.bool_)
    require(len(s) >= 2, "answers", "two or more", len(s))
    half = np.random.default_rng(seed).permutation(len(s)) % 2 == 0
    factors = []
    for fit in (half, ~half):
        table = _table(s[fit], t[fit], c[fit])
        factors.append(_spread(table.atoms(s[~fit]), t[~fit], c[~fit]))
    whole = _table(s, t, c)
    middle = whole.log_atoms[:, 3:5].mean(axis=1, keepdims=True)
    spread = middle + np.mean(factors) * (whole.log_atoms - middle)
    return Calibration(whole.scores, np.maximum.accumulate(np.maximum(spread, 0.0), axis=1))


def _table(s: Floats, t: Floats, c: NDArray[np.bool_]) -> Calibration:
    from scipy.optimize import isotonic_regression

    order = np.argsort(s, kind="stable")
    s, t, c = s[order], t[order], c[order]
    n = len(s)
    near = min(n, max(40, n // 10))
    knots = np.unique(np.linspace(0, n - near, max(2, min(24, n // 40))).astype(np.int64))
    places = [slice(k, k + near) for k in knots.tolist()]
    rows = np.log([np.maximum(1.0, censored_quantiles(t[at], c[at])) for at in places])
    rows = np.stack([isotonic_regression(rows[:, k]).x for k in range(FORECAST_ATOMS)], axis=1)
    centres = np.array([np.median(s[at]) for at in places])
    return Calibration(np.maximum.accumulate(centres), np.maximum.accumulate(rows, axis=1))


def interval(atoms: Floats) -> tuple[Floats, Floats]:
    """10 % and 90 % quantile of each row of atoms, as `LengthForecast.quantile_tokens` gives them."""
    reach = (0.1 - LEVELS[0]) / (LEVELS[1] - LEVELS[0])
    low = atoms[:, 0] + reach * (atoms[:, 1] - atoms[:, 0])
    high = atoms[:, -1] - reach * (atoms[:, -1] - atoms[:, -2])
    return low, high


def _spread(atoms: Floats, tokens: Floats, cut: NDArray[np.bool_]) -> float:
    """How many times as wide the interval must be to hold its share of these answers."""
    low, high = (np.log(edge) for edge in interval(atoms))
    middle, y = np.log(atoms[:, 3:5]).mean(axis=1), np.log(tokens)
    known = ~cut | (y > high)  # an answer cut off inside the interval may have ended in or beyond it
    width = np.where(y >= middle, high - middle, middle - low)
    miss = (np.abs(y - middle) / np.maximum(width, 1e-6))[known]
    if len(miss) == 0:
        return 1.0
    level = min(1.0, np.ceil((len(miss) + 1) * COVERAGE) / len(miss))
    return float(np.clip(np.quantile(miss, level), 0.25, 4.0))
