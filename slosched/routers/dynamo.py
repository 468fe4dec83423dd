"""Dynamo's queue of the router: due times inside classes, deficit round robin between them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.errors import require
from slosched.routers.base import FleetSnapshot, Router, Routing
from slosched.routers.estimate import expected


class Dynamo(Router):
    """Holds requests while all engines are busy; then due time within a class, deficit round robin between.

    An engine is busy while more prompt tokens wait there than fit `busy_steps` full steps. A request's due
    time is its arrival plus TTFT limit (its end-to-end limit without one). Classes take turns with a quantum
    of tokens each. The engine is the one with the least blocks to compute and to keep: prompt blocks that
    are not cached, and blocks of all requests there (Dynamo's KV router, overlap weight 1).

    Parameters
    ----------
    busy_steps
        Full steps of prompt tokens that make an engine busy, above 0.
    quantum
        Tokens a class may send in its turn, at least 1.
    """

    name: ClassVar[str] = "dynamo"
    holds: bool = True

    def __init__(self, *, busy_steps: float = 4.0, quantum: int = 8192, tick_s: float = 0.05) -> None:
        require(busy_steps > 0, "busy_steps", "a number above 0", busy_steps)
        require(quantum >= 1, "quantum", "at least 1", quantum)
        require(tick_s > 0, "tick_s", "a number of seconds above 0", tick_s)
        self.busy_steps, self.quantum, self.tick_s = busy_steps, quantum, tick_s
        self._credit: dict[int, float] = {}
        self._turn = 0

    def route(self, fleet: FleetSnapshot) -> Routing:
        """Send the requests whose turn it is, as long as an engine is not busy."""
        if not len(fleet.pending):
            return Routing()
        t = fleet.table
        queued = self._queued(fleet)
        send: list[tuple[int, int]] = []
        left = fleet.pending[np.lexsort((fleet.pending, self._due_s(fleet)))].tolist()
        while left:
            free = [
                i for i in fleet.open
                if queued[i] <= self.busy_steps * fleet.engines[i].engine.limits.max_num_batched_tokens
            ]  # fmt: skip
            if not free:
                break
            row = self._next(fleet, left)
            left.remove(row)
            cost = self._blocks(row, fleet)
            best = min(free, key=lambda i: (float(cost[i] + queued[i] / 16), i))
            queued[best] += t.prompt_tokens[row] - float(fleet.hits(row)[best])
            send.append((row, best))
        return Routing(send=tuple(send))

    def _due_s(self, fleet: FleetSnapshot) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        t, rows = fleet.table, fleet.pending
        limit = np.where(np.isfinite(t.ttft_s[rows]), t.ttft_s[rows], t.e2e_s[rows])
        return np.asarray(t.arrival_s[rows] + limit)

    def _queued(self, fleet: FleetSnapshot) -> list[float]:
        t = fleet.table
        return [
            float(t.prompt_tokens[view.rows[np.isnan(t.first_token_s[view.rows])]].sum())
            for view in fleet.engines
        ]

    def _next(self, fleet: FleetSnapshot, left: list[int]) -> int:
        """The first in due time of the class whose turn it is."""
        t = fleet.table
        first: dict[int, int] = {}
        for row in left:
            first.setdefault(int(t.class_index[row]), row)
        classes = sorted(first)
        self._credit = {c: self._credit.get(c, 0.0) for c in classes}  # an empty class keeps no credit
        while True:
            after = [c for c in classes if c >= self._turn]
            its = after[0] if after else classes[0]
            tokens = float(t.prompt_tokens[first[its]])
            if self._credit[its] >= tokens:
                self._credit[its] -= tokens
                self._turn = its
                return first[its]
            self._credit[its] += self.quantum
            self._turn = its + 1

    def _blocks(self, row: int, fleet: FleetSnapshot) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        t = fleet.table
        kept = np.array(
            [float((t.prompt_tokens + t.generated_tokens)[view.rows].sum()) for view in fleet.engines]
        )
        own = expected(row, fleet).prompt_tokens
        return np.asarray((own + kept) / 16)
