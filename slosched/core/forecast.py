"""What is believed about a request's output length.

A forecast is `FORECAST_ATOMS` equally likely lengths ("atoms"), sorted. A point forecast repeats one value.
The form is closed under the two things schedulers need: conditioning on tokens already generated keeps the
atoms above that count, and an expectation of anything is a plain mean over atoms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slosched.core.errors import require

FORECAST_ATOMS = 8
"""Atoms of every forecast: enough for a 6 % and a 94 % quantile, few enough to score per atom."""

OUTLIVED_GROWTH = 0.25
"""A request that outlives its forecast is expected to need this share of its present length again: mean
residual life that grows with age, the mark of the heavy tails seen in every public length trace."""

_LEVELS = (np.arange(FORECAST_ATOMS) + 0.5) / FORECAST_ATOMS


@dataclass(frozen=True, slots=True)
class LengthForecast:
    """Predicted output length in tokens as equally likely values.

    Parameters
    ----------
    atoms
        `FORECAST_ATOMS` lengths in tokens, ascending, each finite and at least 1. Use the constructors
        `point`, `quantiles`, `sample` and `lognormal` rather than this field.

    Examples
    --------
    >>> LengthForecast.point(200).mean_tokens
    200.0
    >>> f = LengthForecast.quantiles({0.1: 40, 0.5: 120, 0.9: 700})
    >>> 110 < f.quantile_tokens(0.5) < 140
    True
    >>> f.given(500).mean_tokens > 500  # conditioned on 500 tokens already generated
    True
    """

    atoms: tuple[float, ...]

    def __post_init__(self) -> None:
        ok = len(self.atoms) == FORECAST_ATOMS
        require(ok, "atoms", f"{FORECAST_ATOMS} lengths", self.atoms)
        ok = all(1 <= a < math.inf for a in self.atoms) and list(self.atoms) == sorted(self.atoms)
        require(ok, "atoms", "ascending finite token counts of at least 1", self.atoms)

    @classmethod
    def point(cls, tokens: float) -> LengthForecast:
        """Forecast of exactly `tokens` (at least 1)."""
        require(1 <= tokens < math.inf, "tokens", "a finite number of at least 1", tokens)
        return cls((float(tokens),) * FORECAST_ATOMS)

    @classmethod
    def quantiles(cls, levels: Mapping[float, float]) -> LengthForecast:
        """Forecast from {probability: tokens}, interpolated in log length, flat beyond the outer levels."""
        require(len(levels) > 0, "levels", "at least one {probability: tokens} pair", dict(levels))
        probabilities = sorted(levels)
        tokens = [float(levels[p]) for p in probabilities]
        for p in probabilities:
            require(0 < p < 1, "levels", "probabilities above 0 and below 1", p)
        require(all(1 <= t < math.inf for t in tokens), "levels", "finite lengths of at least 1", tokens)
        require(tokens == sorted(tokens), "levels", "lengths that do not fall with probability", tokens)
        atoms = np.exp(np.interp(_LEVELS, probabilities, np.log(tokens)))
        return cls(tuple(float(a) for a in np.round(np.maximum(atoms, 1.0), 9)))

    @classmethod
    def sample(cls, tokens: Sequence[float] | NDArray[np.float64]) -> LengthForecast:
        """Forecast whose atoms are the quantiles of observed lengths."""
        values = np.asarray(tokens, dtype=np.float64)
        ok = values.size > 0 and bool(np.all((values >= 1) & (values < math.inf)))
        require(ok, "tokens", "one or more finite lengths of at least 1", tokens)
        return cls(tuple(float(a) for a in np.quantile(values, _LEVELS)))

    @classmethod
    def lognormal(cls, median_tokens: float, sigma: float) -> LengthForecast:
        """Lognormal forecast with the given median and standard deviation of log length."""
        require(
            1 <= median_tokens < math.inf, "median_tokens", "a finite number of at least 1", median_tokens
        )
        require(0 <= sigma < math.inf, "sigma", "a finite number of at least 0", sigma)
        return cls(tuple(float(a) for a in lognormal_atoms([median_tokens], sigma)[0]))

    @property
    def mean_tokens(self) -> float:
        """Expected output length in tokens."""
        return sum(self.atoms) / len(self.atoms)

    def quantile_tokens(self, probability: float) -> float:
        """Length in tokens that is not exceeded with `probability` (above 0, below 1), interpolated."""
        require(0 < probability < 1, "probability", "above 0 and below 1", probability)
        return float(np.interp(probability, _LEVELS, self.atoms))

    def given(self, generated_tokens: int) -> LengthForecast:
        """Forecast of the whole length, knowing that the answer is longer than `generated_tokens`."""
        alive = [a for a in self.atoms if a > generated_tokens]
        if not alive:
            return LengthForecast.point(generated_tokens + max(1.0, OUTLIVED_GROWTH * generated_tokens))
        # Each new atom is the mean of its share of the old ones: the expectation stays exact.
        shares = np.repeat(alive, FORECAST_ATOMS).reshape(FORECAST_ATOMS, len(alive))
        return LengthForecast(tuple(float(a) for a in shares.mean(axis=1)))


def lognormal_atoms(median_tokens: ArrayLike, sigma: float) -> NDArray[np.float64]:
    """Atoms of lognormal forecasts, one row per median.

    Parameters
    ----------
    median_tokens
        Medians in tokens, shape (n,), each at least 1.
    sigma
        Standard deviation of the logarithm, at least 0; 0 gives point forecasts.

    Returns
    -------
    ndarray
        Shape (n, FORECAST_ATOMS), ascending within a row, at least 1.
    """
    from scipy.special import ndtri

    factors = np.exp(sigma * ndtri(_LEVELS))
    medians = np.asarray(median_tokens, dtype=np.float64)
    return np.asarray(np.maximum(medians[:, None] * factors[None, :], 1.0))
