"""Our router: the engine that gains most expected met weight by taking the request."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.errors import require
from slosched.core.table import Floats, Ints
from slosched.routers import lane
from slosched.routers.base import EngineView, FleetSnapshot, Router, Routing

PATIENCE_S = 60.0
"""Deadline, from arrival, of a request without limits in the lane's order: behind all with limits in use."""


class Slosched(Router):
    """Sends a request where the modelled fleet keeps most promises, its own and those made before.

    Every engine is a lane of requests (`slosched.routers.lane`): those that decode, and those that wait, in
    order of their deadlines, with their own limits, forecasts and cached prefixes. The gain of an engine is
    the expected met weight with the newcomer less that without it, so harm to others counts. Engines whose
    gain is within `tolerance` of the best count as equal, and the least loaded of them is taken: imbalance is
    paid by those who are yet to come, of whom the model knows nothing.

    Parameters
    ----------
    tolerance
        Share of the request's weight within which gains count as equal, at least 0.
    refuse
        Whether to refuse a request whose chance is below `least_chance` on every engine.
    least_chance
        Above 0, at most 1.
    """

    name: ClassVar[str] = "slosched"

    def __init__(self, *, tolerance: float = 0.1, refuse: bool = False, least_chance: float = 0.05) -> None:
        require(0 <= tolerance < np.inf, "tolerance", "a finite number of at least 0", tolerance)
        require(isinstance(refuse, bool), "refuse", "true or false", refuse)
        require(0 < least_chance <= 1, "least_chance", "a number above 0, at most 1", least_chance)
        self.tolerance, self.refuse, self.least_chance = tolerance, refuse, least_chance
        self._lanes = _LaneBooks()

    def route(self, fleet: FleetSnapshot) -> Routing:
        """Send each pending request where it gains most; the first of equals."""
        self._lanes.update(fleet)
        open_ = np.array(fleet.open, dtype=np.int64)
        send: list[tuple[int, int]] = []
        refuse: list[int] = []
        for row in fleet.pending.tolist():
            todo = self._lanes.newcomer(row, fleet)
            gain, load, chance = lane.gains(self._lanes.lanes, row, todo, open_, fleet.now_s)
            promised = min(fleet.table.ttft_s[row], fleet.table.tpot_s[row], fleet.table.e2e_s[row]) < np.inf
            if self.refuse and promised and chance.max() < self.least_chance:
                refuse.append(row)
                continue
            near = gain >= gain.max() - self.tolerance * float(fleet.table.weight[row])
            best = int(open_[int(np.argmin(np.where(near, load, np.inf)))])
            self._lanes.put(row, best, todo[best])
            send.append((row, best))
        return Routing(send=tuple(send), refuse=tuple(refuse))


class _LaneBooks:
    """The lanes, kept from decision to decision; only engines whose requests changed are sorted again."""

    def __init__(self) -> None:
        self._jobs: Floats = np.zeros((0, lane.WIDTH))
        self._engines: Floats = np.zeros((0, lane.ENGINE_WIDTH))
        self._waiting: Ints = np.zeros((0, 64), dtype=np.int64)
        self._running: Ints = np.zeros((0, 64), dtype=np.int64)
        self._waits: Ints = np.zeros(0, dtype=np.int64)
        self._runs: Ints = np.zeros(0, dtype=np.int64)
        self._seen: list[tuple[Ints | None, float]] = []

    @property
    def lanes(self) -> lane.Lanes:
        """The lanes as they are now."""
        return lane.Lanes(self._jobs, self._engines, self._waiting, self._waits, self._running, self._runs)

    def update(self, fleet: FleetSnapshot) -> None:
        """Follow the fleet's books."""
        t = fleet.table
        if len(self._jobs) < t.capacity:
            self._jobs = np.concatenate([self._jobs, np.zeros((t.capacity - len(self._jobs), lane.WIDTH))])
        while len(self._seen) < len(fleet.engines):
            view = fleet.engines[len(self._seen)]
            self._engines = np.concatenate([self._engines, [lane.engine_columns(view.engine)]])
            for name in ("_waiting", "_running"):
                old: Ints = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros((1, old.shape[1]), dtype=np.int64)]))
            self._waits, self._runs = np.append(self._waits, 0), np.append(self._runs, 0)
            self._seen.append((None, np.nan))
        for e, view in enumerate(fleet.engines):
            said = view.status.at_s if view.status is not None else -1.0
            if self._seen[e][0] is not view.rows or self._seen[e][1] != said:
                self._seen[e] = (view.rows, said)
                self._sort(e, view, fleet)

    def _sort(self, e: int, view: EngineView, fleet: FleetSnapshot) -> None:
        t, jobs, rows = fleet.table, self._jobs, view.rows
        begun = ~np.isnan(t.first_token_s[rows])
        jobs[rows, lane.FIRST] = t.first_token_s[rows]
        jobs[rows, lane.GENERATED] = t.generated_tokens[rows]
        running, waiting = rows[begun], rows[~begun]
        left = t.prompt_tokens[waiting] - t.computed_tokens[waiting]
        jobs[waiting, lane.TODO] = np.maximum(1.0, np.minimum(jobs[waiting, lane.TODO], left))
        waiting = waiting[np.lexsort((waiting, jobs[waiting, lane.KEY]))]
        while self._waiting.shape[1] < len(rows):
            self._widen()
        self._waits[e], self._runs[e] = len(waiting), len(running)
        self._waiting[e, : len(waiting)] = waiting
        self._running[e, : len(running)] = running

    def newcomer(self, row: int, fleet: FleetSnapshot) -> Floats:
        """Fill in a request's job; returns its prompt tokens to compute at each engine."""
        t, job = fleet.table, self._jobs[row]
        atoms = t.atoms[row]
        job[lane.LENGTH] = atoms.mean()
        job[lane.SPREAD] = 0.5 * (atoms[-1] - atoms[0])
        arrival = t.arrival_s[row]
        job[lane.FIRST_DUE], job[lane.E2E_DUE] = arrival + t.ttft_s[row], arrival + t.e2e_s[row]
        job[lane.TPOT], job[lane.WEIGHT] = t.tpot_s[row], t.weight[row]
        token_s = float(self._engines[0, lane.BASE])
        key = min(job[lane.FIRST_DUE], job[lane.E2E_DUE] - job[lane.LENGTH] * token_s)
        job[lane.KEY] = key if np.isfinite(key) else arrival + PATIENCE_S
        job[lane.PROMPT], job[lane.FIRST], job[lane.GENERATED] = t.prompt_tokens[row], np.nan, 0.0
        return self.todo(row, fleet)

    def todo(self, row: int, fleet: FleetSnapshot) -> Floats:
        """Prompt tokens of a request that each engine would have to compute."""
        return np.asarray(
            np.maximum(1.0, fleet.table.prompt_tokens[row] - fleet.hits(row).astype(np.float64))
        )

    def put(self, row: int, engine: int, todo: float) -> None:
        """Into an engine's line goes a request with so many prompt tokens to compute there."""
        job, n = self._jobs[row], int(self._waits[engine])
        job[lane.TODO] = todo
        if n == self._waiting.shape[1]:
            self._widen()
        line = self._waiting[engine]
        place = int(np.searchsorted(self._jobs[line[:n], lane.KEY], job[lane.KEY], side="right"))
        line[place + 1 : n + 1] = line[place:n].copy()
        line[place] = row
        self._waits[engine] = n + 1

    def _widen(self) -> None:
        self._waiting = np.concatenate([self._waiting, self._waiting], axis=1)
        self._running = np.concatenate([self._running, self._running], axis=1)
