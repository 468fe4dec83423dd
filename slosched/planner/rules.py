"""The rules that compete for the engine, and which of them leads.

The rules form a grid: every combination of a few values for each part of a `slosched.planner.rollout.Rule`.
Now and then some of them are rolled forward on the same futures: the leader, the first rule of the grid, the
leader's neighbours (one part different), and those that an annealing walk over the grid visits. What each
was worth more than the first rule, as a share of the weight at stake, is averaged over the recent past. A
rule takes the lead when it is *surely* better: by its mean gain less the error of that mean.
"""

from __future__ import annotations

import itertools

import numpy as np

from slosched.core.table import Floats, Ints
from slosched.planner import rollout as r

ORDERS = ((0.0, 1.0), (1.0, 4.0), (1.0, 1.0), (2.0, 1.0))
"""Urgency and price: least work per weight first, and three between that and earliest due first."""

CAUTIONS = (2.0, 1.0, 4.0)
"""A prompt that shares the engine takes so many times what it takes alone before it counts as lost."""

SLOWS = (0.5, 2.0, r.AS_NOW)
"""An answer takes so many times what it takes alone before its request counts as lost: most answers are
shorter than the mean, and an engine that is full is slower. Or as much as it would at the pace of now."""

CAPS = (np.inf, 2048.0, 512.0, r.TO_THE_KNEE)
"""Most prompt tokens of a step: all that the paces allow, or a steady small share."""

FADE_S = 20.0
"""Time constant of the averages, seconds, at least; longer where the horizon is."""

DOUBT = 1.0
"""Comparisons without a difference that every rule starts with, so that one lucky future decides nothing."""

ERRORS = 1.0
"""Standard errors that are taken off a mean gain. With none the lead follows noise: five tuning draws lost 4
to 8 points; .5 and 2 are as good as 1."""

SPREAD_FADE = 0.02
"""Weight of one gain in the average of their squared distances from the mean."""

LEAST_TRIED = 0.2
"""Faded comparisons that a rule must have been in to lead."""

LEAD_MARGIN = 0.002
"""Share of the weight at stake that a rule must be ahead to take over."""

VISITS = 4
"""Rules that the walk visits in each comparison."""

PARTS = (
    (r.URGENCY, r.PRICE), (r.WHOLE,), (r.CAUTION,), (r.SLOW,), (r.ANSWER,), (r.CAP,), (r.SPREAD,),
)  # fmt: skip
"""Entries of a rule that change together."""


def family() -> Floats:
    """All rules, shape (rules, RULE_SIZE); the first is where everybody starts."""
    rows = []
    for (urgency, price), whole, caution, slow, answer, cap, spread in itertools.product(
        ORDERS, (1.0, 0.0), CAUTIONS, SLOWS, (1.0, 0.0), CAPS, (0.0, 1.0)
    ):
        rule = r.Rule(
            urgency=urgency, price=price, slow=slow, whole=whole, caution=caution, answer=answer, cap=cap,
            spread=spread,
        )  # fmt: skip
        rows.append(rule)
    return np.array(rows)


class Leader:
    """Which rule leads.

    Parameters
    ----------
    seed
        Seed of the walk.
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
        self._walker = 0
        self._path = [0]
        self._rng = np.random.default_rng([seed, 0x1EAD])
        self._gain = np.zeros(len(self.rules))
        self._count = np.zeros(len(self.rules))
        self._variance = 0.0
        self._seen_s = np.nan

    @property
    def rule(self) -> Floats:
        """The rule that leads, shape (RULE_SIZE,)."""
        return np.asarray(self.rules[self.now])

    def candidates(self, *, e2e: bool = True, tpot: bool = True) -> Ints:
        """Indices of the rules to compare now: the leader, the first rule, then all others.

        Parameters
        ----------
        e2e, tpot
            Whether anybody has such a limit. Where nobody has, rules that differ in nothing else do the same,
            and count once.
        """
        visits, at = [self._walker], self._walker
        for _ in range(VISITS):  # a path: whether each step of it is taken is decided in `learn`
            near = self._near(at)
            if len(near):
                at = int(near[self._rng.integers(0, len(near))])
            visits.append(at)
        everyone = np.concatenate([[self.now, 0], self._near(self.now), visits])
        acts = self.rules[everyone]
        if not e2e:
            acts[:, [r.WHOLE, r.SLOW]] = 0.0
            acts[:, r.URGENCY] = np.minimum(1.0, acts[:, r.URGENCY])
        if not tpot:
            acts[:, r.SPREAD] = 0.0
        if (acts[0] == acts[1]).all():
            self.now = everyone[0] = 0
        _, first, which = np.unique(acts, axis=0, return_index=True, return_inverse=True)
        everyone_as = everyone[first[which.reshape(-1)]]  # the first candidate that does the same as each
        self._path = everyone_as[len(everyone) - len(visits) :].tolist()
        self._walker = self._path[0]
        return np.asarray(everyone[np.sort(first)])

    def _near(self, at: int) -> Ints:
        """Indices of the rules that differ from one in one part."""
        parts = [(self.rules[:, part] != self.rules[at, part]).any(axis=1) for part in PARTS]
        return np.flatnonzero(np.sum(parts, axis=0) == 1)

    def learn(self, rows: Ints, value: Floats, now_s: float, fade_s: float = FADE_S) -> None:
        """Take in what rules are worth.

        Parameters
        ----------
        rows
            Indices of rules as `candidates` gave them, all or the first ones; the first rule among them.
        value
            Shares of the weight at stake, shape (len(rows),).
        now_s
            The present.
        fade_s
            Time constant of the averages in seconds, above 0.
        """
        if now_s > self._seen_s:
            fade = np.exp((self._seen_s - now_s) / fade_s)
            self._gain *= fade
            self._count *= fade
        self._seen_s = now_s
        gain = value - value[rows == 0]
        self._learn_spread(rows, gain)
        self._gain[rows] += gain
        self._count[rows] += 1.0
        self._walk(dict(zip(rows.tolist(), value.tolist(), strict=True)))
        error = np.sqrt(self._variance / np.maximum(self._count, LEAST_TRIED))
        sure = self._gain / (self._count + DOUBT) - ERRORS * error
        sure[self._count < LEAST_TRIED] = -np.inf
        sure[0] = 0.0
        best = int(np.argmax(sure))
        if sure[best] > sure[self.now] + LEAD_MARGIN:
            self.now = best

    def _learn_spread(self, rows: Ints, gain: Floats) -> None:
        """How far a gain lies from the mean of its rule, as a variance, for all rules alike."""
        known = (self._count[rows] > LEAST_TRIED) & (rows != 0)
        for apart in gain[known] - self._gain[rows[known]] / self._count[rows[known]]:
            weight = SPREAD_FADE if self._variance > 0.0 else 1.0
            self._variance += weight * (float(apart) ** 2 - self._variance)

    def _walk(self, value: dict[int, float]) -> None:
        """Metropolis walk along the visited path.

        A better rule is moved to, and one that is worse by d with chance exp(-d / T). The temperature T is
        the standard deviation of gains: what may be luck is no hindrance.
        """
        temperature = max(1e-9, float(np.sqrt(self._variance)))
        for rule in self._path[1:]:
            if rule not in value or self._walker not in value:
                return
            loss = value[self._walker] - value[rule]
            if loss <= 0.0 or self._rng.random() < np.exp(-loss / temperature):
                self._walker = rule
