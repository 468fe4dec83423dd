"""Shares of a class that are to keep their limits, whatever it costs the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.policies.departures import Departures

RISE = 0.2
"""Logarithm by which a class's price rises for a missed request, times the share promised. Where
72 % are kept without, .05, .1, .2 and .4 keep .973, .980, .985 and .983 of .99 promised (four seeds)."""

HIGHEST = 1000.0
"""Largest price: a promise that cannot be kept does not go on rising for ever."""


Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]


class ClassPromises:
    """Raises the weight of a class until the share of its requests that was promised keeps all limits.

    A promise is a constraint, not a weight: "99 of 100 requests of this class". Each class that has one gets
    a price, the multiplier of its requests' weight. With every request that is decided the price moves by a
    step of stochastic dual ascent: up by `RISE` times the share for one that missed, down by `RISE` times
    the rest for one that kept its limits. It stands still where exactly the share is kept. It never falls
    below 1, so that a promise which costs nothing changes nothing. A price acts on all that weights act on:
    order, and which rule leads.

    Source: stochastic approximation of a chance constraint's multiplier, as in Borkar, *An actor-critic
    algorithm for constrained Markov decision processes*, Systems & Control Letters 54 (2005).

    Parameters
    ----------
    promised
        Share of each class, above 0 and below 1, by its name; other classes are promised nothing.
    """

    def __init__(self, promised: Mapping[str, float]) -> None:
        require(isinstance(promised, Mapping), "promised", "a mapping of classes to shares", promised)
        self.promised = dict(promised)
        for name, share in self.promised.items():
            ok = isinstance(share, int | float) and 0 < share < 1
            require(ok, f"promised of {name}", "a share above 0 and below 1", share)
        self.prices = dict.fromkeys(self.promised, 1.0)
        self._left = Departures()
        self._now_s = -np.inf

    def __call__(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the prices in its weights; learns from what was decided since the last call."""
        t = snapshot.table
        gone = self._left.since(snapshot)
        rows = np.concatenate([snapshot.waiting, snapshot.running])
        self._learn(snapshot, gone, rows)
        price = np.array([self.prices.get(name, 1.0) for name in t.classes] or [1.0])
        if (price == 1.0).all():
            return snapshot
        weight = t.weight.copy()
        weight[rows] *= price[t.class_index[rows]]
        return replace(snapshot, table=t.with_columns(weight=weight))

    def _learn(self, snapshot: Snapshot, gone: Ints, live: Ints) -> None:
        """Move prices by requests that have ended, and by those whose limit has passed while they live."""
        t, now_s = snapshot.table, snapshot.now_s
        decided = t.extra("promises.decided")
        waited_s = now_s - t.arrival_s[live]
        late = waited_s > np.where(np.isnan(t.first_token_s[live]), t.ttft_s[live], np.inf)
        late |= waited_s > t.e2e_s[live]
        for rows, over in ((gone, False), (live[late], True)):
            fresh = rows[decided[rows] == 0.0]
            decided[fresh] = 1.0
            limits = np.stack([t.ttft_s[fresh], t.tpot_s[fresh], t.e2e_s[fresh]])
            fresh = fresh[np.isfinite(limits).any(axis=0)]
            kept = np.zeros(len(fresh), dtype=np.bool_) if over else self._kept(snapshot, fresh)
            for label, met in zip(t.class_index[fresh].tolist(), kept.tolist(), strict=True):
                name = t.classes[label]
                if name in self.promised:
                    move = RISE * (self.promised[name] - float(met))
                    self.prices[name] = float(np.clip(self.prices[name] * np.exp(move), 1.0, HIGHEST))
        self._now_s = now_s

    def _kept(self, snapshot: Snapshot, rows: Ints) -> Bools:
        """Whether requests that have ended kept all limits; who left without a token has not.

        They ended after the last plan, which counts as their end.
        """
        t, first_s = snapshot.table, snapshot.table.first_token_s[rows]
        ended_s = np.maximum(self._now_s, first_s)
        kept = first_s - t.arrival_s[rows] <= t.ttft_s[rows]  # NaN for no token: False
        kept &= ended_s - t.arrival_s[rows] <= t.e2e_s[rows]
        tokens = np.maximum(1, t.generated_tokens[rows] - 1)
        kept &= (ended_s - first_s) / tokens <= t.tpot_s[rows] * (1 + 1e-9)
        return np.asarray(kept)
