"""Forecasts corrected by what became of them.

Forecasts of a class may be wrong by a factor, in all requests alike. What answers really had, over what was
forecast, is averaged by class over the latest answers; the planner multiplies by it.
"""

from __future__ import annotations

import numpy as np

from slosched.core.snapshot import Snapshot
from slosched.core.table import Floats, Ints

PRIOR_ANSWERS = 20.0
"""Right forecasts that every class starts with: a few answers say little about a factor."""

LATEST_ANSWERS = 200.0
"""Answers after which an older one has lost most of its say."""

WORST_FACTOR = 4.0
"""Largest correction, up or down."""


class Beliefs:
    """Watches who leaves the engine, and keeps one factor for each class."""

    def __init__(self) -> None:
        self._rows: Ints = np.empty(0, dtype=np.int64)
        self._serials: Ints = self._rows
        # By class: answers seen, their tokens, and the tokens that were forecast; older ones fade.
        self._seen, self._real, self._said = np.zeros(1), np.zeros(1), np.zeros(1)

    def watch(self, snapshot: Snapshot) -> Floats:
        """Learn from those who have left since the last call; returns the factors, shape (classes,)."""
        t, running = snapshot.table, snapshot.running
        more = int(t.class_index.max(initial=0)) + 1 - len(self._seen)
        if more > 0:
            self._seen, self._real, self._said = (
                np.concatenate([old, np.zeros(more)]) for old in (self._seen, self._real, self._said)
            )
        for row in self._left(snapshot).tolist():
            label = t.class_index[row]
            for total, value in (
                (self._seen, 1.0), (self._real, t.generated_tokens[row]), (self._said, t.atoms[row].mean()),
            ):  # fmt: skip
                total[label] += value - total[label] / LATEST_ANSWERS
        self._rows, self._serials = running.copy(), t.serial[running].copy()
        return self._factors(snapshot)

    def _left(self, snapshot: Snapshot) -> Ints:
        """Rows, still readable, of answers that ran at the last call and have left the engine."""
        t = snapshot.table
        known = self._rows < t.capacity
        rows, was = self._rows[known], self._serials[known]
        live = np.zeros(t.capacity, dtype=np.bool_)
        live[snapshot.running] = True
        live[snapshot.waiting] = True
        serial = t.serial[rows]
        gone = ((serial == was) & ~live[rows]) | (serial < 0)
        return np.asarray(rows[gone & (t.generated_tokens[rows] > 0)])

    def _factors(self, snapshot: Snapshot) -> Floats:
        """Real over forecast length by class; answers that have outlived their forecast count already."""
        t, running = snapshot.table, snapshot.running
        seen, real, said = self._seen.copy(), self._real.copy(), self._said.copy()
        mean = t.atoms[running].mean(axis=1)
        late = running[t.generated_tokens[running] > mean]
        np.add.at(real, t.class_index[late], t.generated_tokens[late])
        np.add.at(said, t.class_index[late], mean[t.generated_tokens[running] > mean])
        np.add.at(seen, t.class_index[late], 1.0)
        prior = PRIOR_ANSWERS * said / np.maximum(seen, 1e-9)
        factor = np.where(said > 0, (real + prior) / np.maximum(said + prior, 1e-9), 1.0)
        return np.asarray(np.clip(factor, 1.0 / WORST_FACTOR, WORST_FACTOR))
