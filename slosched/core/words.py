"""Figures in words: one way to write an interval, everywhere."""

from __future__ import annotations

import math
from typing import Protocol


class Between(Protocol):
    """A mean with the ends of its interval."""

    @property
    def mean(self) -> float:
        """The mean."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


def between(interval: Between, *, sign: str = "", digits: int = 1, values: int | None = None) -> str:
    """An interval of a share in points, as ``mean (low to high)``; a dash for what was not measured.

    Parameters
    ----------
    interval
        Mean and ends, 1 being 100 points.
    sign
        ``+`` to write the sign of positive figures: for differences.
    digits
        Decimals.
    values
        How many values stand behind it, if known: a single one has no interval.

    Examples
    --------
    >>> from slosched.core.metrics import Spread
    >>> between(Spread(mean=0.813, low=0.79, high=0.84, seeds=5))
    '81.3 (79.0 to 84.0)'
    >>> between(Spread(mean=0.02, low=-0.01, high=0.05, seeds=5), sign="+", digits=0)
    '+2 (-1 to +5)'
    >>> between(Spread(mean=0.813, low=0.813, high=0.813, seeds=1), values=1)
    '81.3'
    """
    if not math.isfinite(interval.mean):
        return "–"
    mean, low, high = (f"{100 * v:{sign}.{digits}f}" for v in (interval.mean, interval.low, interval.high))
    return mean if values == 1 else f"{mean} ({low} to {high})"
