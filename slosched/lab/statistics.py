"""What a study says: means, regret, wins and losses, each with an interval over draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import require
from slosched.core.metrics import CONFIDENCE

RESAMPLES = 4000
CLOSE = 0.02
"""Two policies are level in a draw if their attainments differ by at most two points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over draws with its bootstrap interval at `CONFIDENCE`."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Floats) -> Interval:
        """Mean of paired values, one per draw, resampled over draws (percentiles); NaN where there are none.

        Examples
        --------
        >>> one = Interval.of(np.array([0.01, 0.02, 0.03]))
        >>> round(one.mean, 3), 0.01 <= one.low < 0.02 < one.high <= 0.03
        (0.02, True)
        """
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(mean=math.nan, low=math.nan, high=math.nan)
        rng = np.random.default_rng(0)
        means = rng.choice(values, size=(RESAMPLES, len(values))).mean(axis=1)
        low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
        return cls(mean=float(values.mean()), low=float(low), high=float(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one policy fares over all draws.

    Parameters
    ----------
    policy
        Its label.
    attainment
        Mean weighted attainment.
    advantage
        Its attainment less that of the best rival of each draw; the best is chosen after the fact, which
        favours the rivals.
    ahead, level, behind
        Shares of draws in which it is more than two points ahead of the best rival, within two points, and
        more than two behind.
    regret_mean, regret_p90, regret_worst
        What it is behind the best rival, 0 where it is not: mean, 90th percentile and most.
    worst_draw, worst_rival
        Where that is, and to whom.
    """

    policy: str
    attainment: Interval
    advantage: Interval
    ahead: float
    level: float
    behind: float
    regret_mean: float
    regret_p90: float
    regret_worst: float
    worst_draw: str
    worst_rival: str


@dataclass(frozen=True, slots=True, kw_only=True)
class League:
    """All policies of one kind over the same draws.

    Parameters
    ----------
    draws
        Names of the draws.
    standings
        The best mean first; ties by label.
    duels
        Mean difference of the first-named policy to each other one, by label.
    ours
        Label of the policy that duels are about; None if it is not in the league.
    """

    draws: tuple[str, ...]
    standings: tuple[Standing, ...]
    duels: dict[str, Interval]
    ours: str | None

    def of(self, policy: str) -> Standing:
        """The standing of a policy."""
        return next(s for s in self.standings if s.policy == policy)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def league(
    attained: Mapping[str, Sequence[float]],
    draws: Sequence[str],
    *,
    families: Mapping[str, str] | None = None,
    ours: str | None = None,
) -> League:
    """Standings of policies that all ran the same draws.

    Parameters
    ----------
    attained
        {label: attainment of each draw}, shares from 0 to 1, all of the length of `draws`.
    draws
        Names of the draws, at least one.
    families
        {label: family}; policies of one family are no rivals of each other. By default each is its own.
    ours
        Label that duels are about.

    Examples
    --------
    >>> found = league({"a": [0.9, 0.5], "b": [0.8, 0.7]}, ["x", "y"], ours="a")
    >>> a = found.of("a")
    >>> a.ahead, a.behind, round(a.regret_worst, 2), a.worst_draw, a.worst_rival
    (0.5, 0.5, 0.2, 'y', 'b')
    """
    require(len(draws) > 0, "draws", "one or more", list(draws))
    for label, values in attained.items():
        require(len(values) == len(draws), f"attainment of {label}", f"{len(draws)} values", len(values))
    family = families or {label: label for label in attained}
    table = {label: np.asarray(values, dtype=np.float64) for label, values in attained.items()}
    standings = []
    for label, own in table.items():
        rivals = [other for other in table if family[other] != family[label]]
        standings.append(_standing(label, own, {r: table[r] for r in rivals}, draws))
    standings.sort(key=lambda s: (-s.attainment.mean, s.policy))
    duels = {}
    if ours in table:
        duels = {other: Interval.of(table[ours] - values) for other, values in table.items() if other != ours}
    return League(
        draws=tuple(draws),
        standings=tuple(standings),
        duels=duels,
        ours=ours if ours in table else None,
    )


def best_rival(rivals: Mapping[str, Floats]) -> tuple[Floats, list[str]]:
    """The highest attainment among rivals in each draw, and whose it is; ties go to the first named."""
    names = list(rivals)
    stacked = np.stack([rivals[name] for name in names])
    best = np.argmax(stacked, axis=0)
    return stacked.max(axis=0), [names[i] for i in best.tolist()]


def _standing(label: str, own: Floats, rivals: Mapping[str, Floats], draws: Sequence[str]) -> Standing:
    none = not rivals
    best, whose = (np.full(len(own), np.nan), [""] * len(own)) if none else best_rival(rivals)
    advantage = own - best
    regret = np.maximum(0.0, -advantage)
    worst = 0 if none else int(np.argmax(regret))

    def share(which: np.ndarray[Any, Any]) -> float:
        return math.nan if none else float(which.mean())

    return Standing(
        policy=label,
        attainment=Interval.of(own),
        advantage=Interval.of(advantage),
        ahead=share(advantage > CLOSE),
        level=share(np.abs(advantage) <= CLOSE),
        behind=share(advantage < -CLOSE),
        regret_mean=float(regret.mean()),
        regret_p90=float(np.quantile(regret, 0.9)),
        regret_worst=float(regret[worst]),
        worst_draw=draws[worst] if not none and regret[worst] > 0 else "",
        worst_rival=whose[worst] if not none and regret[worst] > 0 else "",
    )


def ratios(own: Sequence[float | None], reference: Sequence[float | None]) -> Interval:
    """Geometric mean of paired ratios, with its interval; pairs that are not both above 0 are left out.

    Examples
    --------
    >>> round(ratios([2.0, 2.0, None], [1.0, 4.0, 1.0]).mean, 6)
    1.0
    """
    logs = [
        math.log(a / b)
        for a, b in zip(own, reference, strict=True)
        if a is not None and b is not None and a > 0 < b
    ]
    found = Interval.of(np.array(logs))
    return Interval(mean=math.exp(found.mean), low=math.exp(found.low), high=math.exp(found.high))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
