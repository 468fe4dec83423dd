"""The rules that compete for the engine, and which of them leads.

The rules form a grid: every combination of a few values for each part of a `slosched.planner.rollout.Rule`.
Now and then the leader, its neighbours (one part different) and some others are rolled forward on the same
futures. What each was worth more than the leader, as a share of the weight at stake, is averaged over the
recent past. A rule that is ahead by more than `LEAD_MARGIN` takes over.
"""

from __future__ import annotations

import itertools

import numpy as np

from slosched.core.table import Floats, Ints
from slosched.planner import rollout as r

ORDERS = ((1.0, 1.0), (1.0, 4.0), (0.0, 1.0))
"""Urgency and price: two between earliest due first and least work per weight first, and the latter."""

CAUTIONS = (1.0, 2.0, 4.0)
"""A prompt that shares the engine takes so many times what it takes alone before it counts as lost."""

LEAST_TOKENS = 16.0
"""Prompt tokens that a step may always hold: one KV block, so that no prompt stands still."""

FADE_S = 20.0
"""Time constant of the average, seconds: with 8, two sets of tuning draws were .2 and 1.1 points worse."""

DOUBT = 1.0
"""Comparisons without a difference that every rule starts with, so that one lucky future decides nothing."""

LEAD_MARGIN = 0.002
"""Share of the weight at stake that a rule must be ahead to take over."""

OTHERS = 4
"""Rules far from the leader that are tried each time, so that no better one stays unseen."""

PARTS = ((r.URGENCY, r.PRICE), (r.SIT,), (r.WHOLE,), (r.CAUTION,), (r.ANSWER,), (r.SPREAD,))
"""Entries of a rule that change together."""


def family() -> Floats:
    """All rules, shape (rules, RULE_SIZE); the first is where everybody starts."""
    rows = []
    for (urgency, price), sit, whole, caution, answer, spread in itertools.product(
        ORDERS[::-1], (0.0, 1.0), (0.0, 1.0), CAUTIONS, (1.0, 0.0), (0.0, 1.0)
    ):
        rule = r.Rule(
            urgency=urgency, price=price, park=np.inf, hold=1.0, sit=sit, whole=whole, caution=caution,
            answer=answer, least=LEAST_TOKENS, spread=spread,
        )  # fmt: skip
        rows.append(rule)
    return np.array(rows)


class Leader:
    """Which rule leads.

    Parameters
    ----------
    seed
        Seed of the choice of others to try.
    rules
        The rules that compete, shape (rules, RULE_SIZE); all of `family` by default.

    Attributes
    ----------
    now
        Index of the leader.
    """

    def __init__(self, seed: int = 0, rules: Floats | None = None) -> None:
        self.rules = family() if rules is None else rules
        self.now = 0
        self._rng = np.random.default_rng([seed, 0x1EAD])
        self._gain = np.zeros(len(self.rules))
        self._count = np.zeros(len(self.rules))
        self._seen_s = np.nan
        differs = np.zeros((len(self.rules), len(self.rules)), dtype=np.int64)
        for part in PARTS:
            columns = self.rules[:, part]
            differs += (columns[:, None, :] != columns[None, :, :]).any(axis=2)
        self._near = differs <= 1

    @property
    def rule(self) -> Floats:
        """The rule that leads, shape (RULE_SIZE,)."""
        return np.asarray(self.rules[self.now])

    def candidates(self) -> Ints:
        """Indices of the rules to compare now, the leader first."""
        near = np.flatnonzero(self._near[self.now])
        others = self._rng.integers(0, len(self.rules), OTHERS)
        everyone = np.concatenate([[self.now], near, others])
        _, first = np.unique(everyone, return_index=True)
        return np.asarray(everyone[np.sort(first)])

    def learn(self, rows: Ints, value: Floats, now_s: float) -> None:
        """Take in what the rules `rows` (the leader first) are worth, in shares of the weight at stake."""
        if now_s > self._seen_s:
            fade = np.exp((self._seen_s - now_s) / FADE_S)
            self._gain *= fade
            self._count *= fade
        self._seen_s = now_s
        self._gain[rows] += value - value[0]
        self._count[rows] += 1.0
        ahead = self._gain / (self._count + DOUBT)
        best = int(np.argmax(ahead))
        if ahead[best] > LEAD_MARGIN:
            self._gain -= self._gain[best] / self._count[best] * self._count
            self.now = best
