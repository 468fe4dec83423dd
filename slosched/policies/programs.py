"""Calls of one program share one deadline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from slosched.core.snapshot import Snapshot

FEWEST = 1024
"""Programs remembered before those past their deadline, or without one, are forgotten."""


class ProgramDeadlines:
    """Gives every call the deadline of its program, and a program's calls together the weight of one.

    A program is the set of requests with one `program_index`, as the calls of a task. Its deadline is
    that of the first call, arrival + end-to-end limit; a later call has until then, whatever its own
    end-to-end limit says. The calls in the engine at a time share the weight of a call, as a program that
    misses with one misses with all. A call that comes after the deadline begins the program anew. Requests of
    no program, and calls of programs whose first call has no end-to-end limit, are left as they are.
    """

    def __init__(self) -> None:
        self._due_s: dict[int, float] = {}
        self._most = FEWEST

    def __call__(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the programs' limits and weights."""
        t = snapshot.table
        rows = np.concatenate([snapshot.running, snapshot.waiting])
        rows = rows[t.program_index[rows] >= 0]
        due_s = t.extra("programs.due_s", fill=np.nan)
        fresh = rows[np.isnan(due_s[rows])]
        for row in fresh[np.lexsort((t.serial[fresh], t.arrival_s[fresh]))].tolist():
            program, arrival = int(t.program_index[row]), float(t.arrival_s[row])
            if not arrival <= self._due_s.get(program, -np.inf):
                self._due_s[program] = arrival + float(t.e2e_s[row])
            due_s[row] = self._due_s[program]
        self._forget(snapshot.now_s)
        rows = rows[np.isfinite(due_s[rows])]
        if len(rows) == 0:
            return snapshot
        e2e_s, weight = t.e2e_s.copy(), t.weight.copy()
        e2e_s[rows] = due_s[rows] - t.arrival_s[rows]
        _, place, calls = np.unique(t.program_index[rows], return_inverse=True, return_counts=True)
        weight[rows] /= calls[place]
        return replace(snapshot, table=t.with_columns(e2e_s=e2e_s, weight=weight))

    def _forget(self, now_s: float) -> None:
        """Drop programs past their deadline or without one, now and then: clients choose their names."""
        if len(self._due_s) > self._most:
            kept = ((program, due_s) for program, due_s in self._due_s.items() if now_s <= due_s < np.inf)
            self._due_s = dict(kept)
            self._most = max(FEWEST, 2 * len(self._due_s))
