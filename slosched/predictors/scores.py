"""How the sources of a forecast have done in one class: losses, bets against the history, latest misses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats
from slosched.core.errors import require
from slosched.predictors.calibration import censored_quantiles

HISTORY = "history"
"""Name of the source that is always there."""

KEPT = 256
"""Latest answers of a class that correct a source."""

LEAST = 16
"""Answers of a class before a source is corrected by them."""

EVERY = 8
"""Answers after which corrections are made anew."""

MOST_LOSS = 0.5
"""Losses above this count as this in bets, which need a bound: a length wrong by a factor of e."""

BETS = np.array([0.1, 0.3, 0.6, 0.9])
"""Shares of the wealth that are staked, side by side: the mean wealth is within 4 times of the best's."""

MOST_WEALTH = 1e12
"""Bound on wealth, for numbers' sake."""

STRENGTHS = np.array([0.5, 1.0])
"""How far a corrected source is followed, from the history's middle (0) to its own (1)."""

FORMS = 1 + len(STRENGTHS)
"""Forms in which a source is tried: as it is, and corrected with each of `STRENGTHS`."""


@dataclass(slots=True)
class Scores:
    """What a class's answers have shown of each source.

    Attributes
    ----------
    answers
        How many there were.
    losses
        By source, of each form, shape (FORMS,).
    wealth, bets
        By source, of bets on each form, shape (FORMS, len(BETS)), and how many answers were bet on.
    misses, filled
        By source, the latest misses with a mark for cut answers, shape (KEPT, len(STRENGTHS) + 1), and how
        many were noted.
    factors
        By source, logarithms of its corrections, one row for each of `STRENGTHS`.
    """

    answers: int = 0
    since: int = 0
    losses: dict[str, Floats] = field(default_factory=dict)
    wealth: dict[str, Floats] = field(default_factory=dict)
    bets: dict[str, int] = field(default_factory=dict)
    misses: dict[str, Floats] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    factors: dict[str, Floats] = field(default_factory=dict)

    def bet(self, name: str, history: float, losses: Floats) -> None:
        """Bet on a source after an answer: the history's loss, and that of each form, shape (FORMS,)."""
        gain = (min(history, MOST_LOSS) - np.minimum(losses, MOST_LOSS)) / MOST_LOSS
        # A wealth of 1 is shared out over the answers at which a bet may begin, 1 / (k (k + 1)) at the k-th:
        # a source that was wrong at first need not win that back.
        k = self.bets[name] = self.bets.get(name, 0) + 1
        before = self.wealth.get(name, 0.0) + 1.0 / (k * (k + 1.0))
        self.wealth[name] = np.minimum(before * (1.0 + gain[:, None] * BETS), MOST_WEALTH)

    def wealth_of(self, name: str) -> float:
        """Mean wealth of the bets on a source; 0 before the first."""
        return float(self.wealth[name].mean()) if name in self.wealth else 0.0

    def note(self, name: str, misses: Floats, cut: bool) -> None:
        """Keep the misses of a source's corrected forms, shape (len(STRENGTHS),)."""
        ring = self.misses.setdefault(name, np.zeros((KEPT, 1 + len(STRENGTHS))))
        at = self.filled.get(name, 0)
        ring[at % KEPT, :-1], ring[at % KEPT, -1] = misses, cut
        self.filled[name] = at + 1

    def noted(self) -> None:
        """An answer is noted for all sources: every few of them make corrections anew."""
        self.since += 1
        if self.since >= EVERY:
            self.since = 0
            self.correct()

    def correct(self) -> None:
        """Make the corrections of all sources anew from their latest misses."""
        for name, ring in self.misses.items():
            known = ring[: min(KEPT, self.filled[name])]
            if len(known) >= LEAST:
                cuts: NDArray[np.bool_] = known[:, -1] > 0
                columns = range(len(STRENGTHS))
                self.factors[name] = np.log([censored_quantiles(np.exp(known[:, k]), cuts) for k in columns])

    # files ------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Plain values, numbers to six digits; factors are made anew from misses."""
        plain: dict[str, Any] = {"answers": self.answers}
        for name in ("losses", "wealth", "misses"):
            plain[name] = {n: _rounded(v) for n, v in list(getattr(self, name).items())}
        return plain | {"bets": dict(self.bets), "filled": dict(self.filled)}

    @classmethod
    def of(cls, content: Mapping[str, Any], without: Collection[str]) -> Scores:
        """What `as_dict` gave, but for some sources, alone and beside others.

        Raises
        ------
        InputError, KeyError, TypeError, ValueError
            If it is something else.
        """
        made = cls(answers=int(content["answers"]))
        shapes = {
            "losses": (FORMS,), "wealth": (FORMS, len(BETS)), "misses": (KEPT, 1 + len(STRENGTHS)),
        }  # fmt: skip
        for name, shape in shapes.items():
            for source, values in content[name].items():
                array = np.array(values, dtype=np.float64)
                ok = array.shape == shape and bool(np.isfinite(array).all())
                require(ok, name, f"finite numbers of shape {shape}", array.shape)
                getattr(made, name)[str(source)] = array
        for name in ("bets", "filled"):
            getattr(made, name).update({str(n): int(count) for n, count in content[name].items()})
        counts = [made.answers, *made.bets.values(), *made.filled.values()]
        require(min(counts) >= 0, "counts", "at least 0", min(counts))
        for by_source in (made.losses, made.wealth, made.misses, made.bets, made.filled):
            for source in [n for n in by_source if not set(n.split("+")).isdisjoint(without)]:
                del by_source[source]
        known = made.losses.keys() - {HISTORY}
        require(known == made.wealth.keys() == made.bets.keys(), "sources", "the same in all", sorted(known))
        require(made.misses.keys() == made.filled.keys(), "sources", "the same in all", sorted(made.misses))
        made.correct()
        return made


def _rounded(values: Floats) -> Any:
    return [_rounded(v) for v in values] if values.ndim else float(f"{values:.6g}")
