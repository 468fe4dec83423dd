"""Shares of service between tenants, by virtual token counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.policies.departures import Departures


class TenantShares:
    """Discounts the weight of requests whose tenant is over its share of their class's recent service.

    Each tenant has a counter in each class: tokens of prefill and twice those of decode that its requests
    got, as in the virtual token counter (Sheng et al., OSDI 2024, section 4), fading with `window_s`. Of the
    tenants of a class that have requests in the engine, one that has more than its share of their counters
    gets its requests' weight times (share due / share had)^strength. Within a class weights are then scaled
    so that their sum over live requests stays: fairness moves service between tenants, not between classes.
    A tenant that is alone gets everything.

    Parameters
    ----------
    strength
        Exponent, at least 0; 0 is no fairness.
    shares
        What tenants are due relative to each other, above 0 each; 1 for those not named.
    window_s
        Time constant of the counters, above 0.
    """

    def __init__(
        self, strength: float, shares: Mapping[str, float] | None = None, window_s: float = 60.0
    ) -> None:
        require(0 <= strength < np.inf, "fairness", "a finite number of at least 0", strength)
        require(0 < window_s < np.inf, "fairness_s", "a finite number of seconds above 0", window_s)
        self.shares = {} if shares is None else dict(shares)
        for name, share in self.shares.items():
            require(0 < share < np.inf, f"tenant_shares of {name}", "a finite number above 0", share)
        self.strength, self.window_s = strength, window_s
        self._left = Departures()
        self._had = np.zeros((0, 0))  # by class and tenant
        self._now_s = 0.0

    def __call__(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with other weights; counts what was served since the last call."""
        t = snapshot.table
        self._count(snapshot)
        rows = np.concatenate([snapshot.waiting, snapshot.running])
        factor = self._factors(snapshot, rows)
        if (factor == 1.0).all():
            return snapshot
        weight = t.weight.copy()
        weight[rows] *= factor
        kind = t.class_index[rows]
        before = np.bincount(kind, weights=t.weight[rows])
        after = np.bincount(kind, weights=weight[rows])
        weight[rows] *= np.divide(before, after, out=np.ones_like(before), where=after > 0)[kind]
        return replace(snapshot, table=t.with_columns(weight=weight))

    def _count(self, snapshot: Snapshot) -> None:
        """Add service since the last call to the counters."""
        t = snapshot.table
        shape = (max(len(t.classes), self._had.shape[0]), max(len(t.tenants), self._had.shape[1]))
        if shape != self._had.shape:
            had = np.zeros(shape)
            had[: self._had.shape[0], : self._had.shape[1]] = self._had
            self._had = had
        self._had *= np.exp(min(0.0, self._now_s - snapshot.now_s) / self.window_s)
        self._now_s = snapshot.now_s
        rows = np.concatenate([snapshot.running, snapshot.waiting, self._left.since(snapshot)])
        seen = t.extra("tenants.seen")
        got = (t.served_tokens + t.generated_tokens)[rows].astype(np.float64)
        np.add.at(self._had, (t.class_index[rows], t.tenant_index[rows]), np.maximum(0.0, got - seen[rows]))
        seen[rows] = got

    def _factors(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Factor of each row's weight, above 0 and at most 1."""
        t = snapshot.table
        kind, tenant = t.class_index[rows], t.tenant_index[rows]
        here = np.zeros(self._had.shape)
        here[kind, tenant] = 1.0
        due = here * np.array([self.shares.get(name, 1.0) for name in t.tenants])
        had = here * self._had
        total_due, total_had = due.sum(axis=1, keepdims=True), had.sum(axis=1, keepdims=True)
        over = had * total_due > due * total_had
        ratio = np.divide(due * total_had, had * total_due, out=np.ones_like(had), where=over)
        return np.asarray(ratio[kind, tenant] ** self.strength)
