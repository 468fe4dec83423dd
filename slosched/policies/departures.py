"""Who has left an engine, for policies that learn from finished requests."""

from __future__ import annotations

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.snapshot import Snapshot


class Departures:
    """Which requests have left since the last plan.

    A policy sees an engine at its plans only. Everybody waits at one plan at least, so nobody is overlooked;
    what a request got after the last plan that showed it is read from its row, which keeps its columns until
    a newcomer takes it. Whose row was taken before the next plan is not reported.
    """

    def __init__(self) -> None:
        self._rows: Ints = np.empty(0, dtype=np.int64)
        self._serials: Ints = self._rows

    def since(self, snapshot: Snapshot) -> Ints:
        """Rows, still readable, of those that were there at the last call and are no more."""
        serial = snapshot.table.serial
        alive = np.concatenate([snapshot.waiting, snapshot.running])
        left = ~np.isin(self._serials, serial[alive])
        rows, was = self._rows[left], self._serials[left]
        self._rows, self._serials = alive, serial[alive]
        readable = (serial[rows] == was) | (serial[rows] < 0)
        return np.asarray(rows[readable])
