"""Our router: the engine that gains most expected met weight by taking the request."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.routers import lane
from slosched.routers.base import EngineView, FleetSnapshot, Router, Routing

PATIENCE_S = 60.0
"""Deadline, from arrival, of a request without limits in the lane's order: behind all with limits in use."""

LOOKS = 16
"""Parked requests that are looked at in one decision: each costs what a newcomer does."""


class Slosched(Router):
    """Sends a request where the modelled fleet keeps most promises, its own and those made before.

    Every engine is a lane of requests (`slosched.routers.lane`): those that decode, and those that wait, in
    order of their deadlines, with their own limits, forecasts and cached prefixes. The gain of an engine is
    the expected met weight with the newcomer less that without it, so harm to others counts. Engines whose
    gain is within `tolerance` of the best count as equal, and the least loaded of them is taken: imbalance is
    paid by those who are yet to come, of whom the model knows nothing.

    A request that gains less than `least_gain` of its weight everywhere is parked: it would cost others what
    it brings. It is looked at again every `tick_s`, and goes to an engine where nobody waits and it harms
    nobody, or after `patience_s` to the least loaded one. So all are served. Nobody is parked while some
    engine says that nobody waits there, or says nothing: the model may be wrong about what an engine can do.

    Parameters
    ----------
    tolerance
        Share of the request's weight within which gains count as equal, at least 0.
    least_gain
        Share of a request's weight, at least 0; 0 parks nobody.
    tick_s
        Seconds from look to look, above 0.
    patience_s
        Longest time that a request is parked, in seconds, at least 0.
    refuse
        Whether to refuse a request whose chance is below `least_chance` on every engine.
    least_chance
        Above 0, at most 1.
    """

    name: ClassVar[str] = "slosched"

    def __init__(
        self,
        *,
        tolerance: float = 0.1,
        least_gain: float = 0.1,
        tick_s: float = 0.1,
        patience_s: float = 20.0,
        refuse: bool = False,
        least_chance: float = 0.05,
    ) -> None:
        require(0 <= tolerance < np.inf, "tolerance", "a finite number of at least 0", tolerance)
        require(0 <= least_gain < np.inf, "least_gain", "a finite number of at least 0", least_gain)
        require(0 < tick_s < np.inf, "tick_s", "a finite number of seconds above 0", tick_s)
        require(0 <= patience_s < np.inf, "patience_s", "a finite number of at least 0", patience_s)
        require(isinstance(refuse, bool), "refuse", "true or false", refuse)
        require(0 < least_chance <= 1, "least_chance", "a number above 0, at most 1", least_chance)
        self.tolerance, self.least_gain, self.patience_s = tolerance, least_gain, patience_s
        self.refuse, self.least_chance = refuse, least_chance
        self.holds = least_gain > 0
        self.tick_s = tick_s if self.holds else np.inf
        self._lanes = _LaneBooks()
        self._looked = 0

    def route(self, fleet: FleetSnapshot) -> Routing:
        """Send each pending request where it gains most, or park it."""
        self._lanes.update(fleet)
        open_ = np.array(fleet.open, dtype=np.int64)
        send: list[tuple[int, int]] = []
        refuse: list[int] = []
        for row in self._turn(fleet.pending).tolist():
            engine = self._engine(row, fleet, open_)
            if engine is None:
                refuse.append(row)
            elif engine >= 0:
                send.append((row, engine))
        return Routing(send=tuple(send), refuse=tuple(refuse))

    def _turn(self, pending: Ints) -> Ints:
        """The newcomer, and the next few of the parked ones."""
        if len(pending) <= LOOKS:
            return pending
        self._looked = (self._looked + LOOKS) % len(pending)
        others = np.roll(pending[:-1], -self._looked)[: LOOKS - 1]
        return np.concatenate([pending[-1:], others])

    def _engine(self, row: int, fleet: FleetSnapshot, open_: Ints) -> int | None:
        """The engine for a request, -1 to park it, None to refuse it."""
        t, lanes = fleet.table, self._lanes
        weight, todo = float(t.weight[row]), lanes.newcomer(row, fleet)
        gain, load, chance = lane.gains(lanes.lanes, row, todo, open_, fleet.now_s)
        promised = min(t.ttft_s[row], t.tpot_s[row], t.e2e_s[row]) < np.inf
        if self.refuse and promised and chance.max() < self.least_chance:
            return None
        near = gain >= gain.max() - self.tolerance * weight
        hopeful = not self.holds or gain.max() >= self.least_gain * weight
        if not hopeful and self._all_queue(fleet) and fleet.now_s - t.arrival_s[row] < self.patience_s:
            near = (lanes.lanes.waits[open_] == 0) & (gain >= -self.tolerance * weight)
            if not near.any():
                return -1
        best = int(open_[int(np.argmin(np.where(near, load, np.inf)))])
        lanes.put(row, best, todo[best])
        return best

    def _all_queue(self, fleet: FleetSnapshot) -> bool:
        """Whether every engine that takes requests says that some wait there."""
        views = (fleet.engines[i] for i in fleet.open)
        return all(view.status is not None and view.status.waiting > 0 for view in views)


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
        self._seen[engine] = (None, np.nan)  # what comes of the decision is in the books, not here

    def _widen(self) -> None:
        self._waiting = np.concatenate([self._waiting, self._waiting], axis=1)
        self._running = np.concatenate([self._running, self._running], axis=1)
