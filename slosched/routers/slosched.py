"""Our router: the engine where one more request adds least to everybody's waiting."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.routers import lane
from slosched.routers.base import EngineView, FleetSnapshot, Router, Routing


class Slosched(Router):
    """Sends a request where it adds least to the waiting of all, weighted.

    An engine under our policy serves, roughly, the least work per weight first, and parks requests whose
    limits are lost. So at each engine the newcomer waits for those with less work per weight, and delays
    those with more, decoding ones by what is left of them. The increase is its weight times the work before
    it, plus its work times the weight behind it (`slosched.routers.lane`). Lost requests count on neither
    side: an engine with many of them is not a loaded one. Prompt tokens that an engine has cached are no work
    there, and a slow engine makes more of the same request. The first of equals is taken.

    It keeps no constants of its own, and holds nobody.

    Parameters
    ----------
    refuse
        Whether to refuse a request that will miss a limit on every engine even if nothing but the prompts
        before it, and its own work, takes time there. Best effort is never refused.
    """

    name: ClassVar[str] = "slosched"

    def __init__(self, *, refuse: bool = False) -> None:
        require(isinstance(refuse, bool), "refuse", "true or false", refuse)
        self.refuse = refuse
        self._books = _LaneBooks()

    def route(self, fleet: FleetSnapshot) -> Routing:
        """Send each pending request where it adds least."""
        open_ = np.array(fleet.open, dtype=np.int64)
        self._books.update(fleet)
        send: list[tuple[int, int]] = []
        refuse: list[int] = []
        for row in fleet.pending.tolist():
            todo = self._books.newcomer(row, fleet)
            increase, late = lane.increases(self._books.lanes, row, todo, open_, fleet.now_s)
            if self.refuse and late.all():
                refuse.append(row)
            else:
                # Where a newcomer adds equally little, it goes to the fewest: the lost ones take time, too.
                lanes = self._books.lanes
                best = int(open_[np.lexsort((lanes.waits[open_] + lanes.runs[open_], increase))[0]])
                self._books.put(row, best, todo[best])
                send.append((row, best))
        return Routing(send=tuple(send), refuse=tuple(refuse))


class _LaneBooks:
    """The lanes, kept from decision to decision: only engines whose requests changed are read again."""

    def __init__(self) -> None:
        self._jobs: Floats = np.zeros((0, lane.WIDTH))
        self._engines: Floats = np.zeros((0, lane.ENGINE_WIDTH))
        self._waiting: Ints = np.zeros((0, 64), dtype=np.int64)
        self._running: Ints = np.zeros((0, 64), dtype=np.int64)
        self._waits: Ints = np.zeros(0, dtype=np.int64)
        self._runs: Ints = np.zeros(0, dtype=np.int64)
        self._seen: list[tuple[Ints | None, float, int]] = []

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
            self._join(fleet.engines[len(self._seen)])
        for e, view in enumerate(fleet.engines):
            said = view.status.at_s if view.status is not None else -1.0
            begun = int(np.count_nonzero(~np.isnan(t.first_token_s[view.rows])))
            if self._seen[e][0] is not view.rows or self._seen[e][1:] != (said, begun):
                self._seen[e] = (view.rows, said, begun)
                self._read(e, view, fleet)

    def _join(self, view: EngineView) -> None:
        self._engines = np.concatenate([self._engines, [lane.engine_columns(view.engine)]])
        for name in ("_waiting", "_running"):
            old: Ints = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((1, old.shape[1]), dtype=np.int64)]))
        self._waits, self._runs = np.append(self._waits, 0), np.append(self._runs, 0)
        self._seen.append((None, np.nan, -1))

    def _read(self, e: int, view: EngineView, fleet: FleetSnapshot) -> None:
        t, jobs, rows = fleet.table, self._jobs, view.rows
        begun = ~np.isnan(t.first_token_s[rows])
        running, waiting = rows[begun], rows[~begun]
        self._fill(rows, fleet)
        left = t.prompt_tokens[waiting] - t.computed_tokens[waiting]
        known = np.where(jobs[waiting, lane.TODO] > 0, jobs[waiting, lane.TODO], np.inf)
        jobs[waiting, lane.TODO] = np.maximum(1.0, np.minimum(known, left))
        while self._waiting.shape[1] < len(rows):
            self._widen()
        self._waits[e], self._runs[e] = len(waiting), len(running)
        self._waiting[e, : len(waiting)] = waiting
        self._running[e, : len(running)] = running

    def newcomer(self, row: int, fleet: FleetSnapshot) -> Floats:
        """Fill in a request's job; returns its prompt tokens to compute at each engine."""
        self._fill(np.array([row]), fleet)
        prompt = fleet.table.prompt_tokens[row]
        return np.asarray(np.maximum(1.0, prompt - fleet.hits(row).astype(np.float64)))

    def _fill(self, rows: Ints, fleet: FleetSnapshot) -> None:
        t, jobs = fleet.table, self._jobs
        jobs[rows, lane.PROMPT], jobs[rows, lane.LENGTH] = t.prompt_tokens[rows], t.atoms[rows].mean(axis=1)
        jobs[rows, lane.GENERATED] = t.generated_tokens[rows]
        jobs[rows, lane.FIRST_DUE] = t.arrival_s[rows] + t.ttft_s[rows]
        jobs[rows, lane.E2E_DUE] = t.arrival_s[rows] + t.e2e_s[rows]
        jobs[rows, lane.TPOT], jobs[rows, lane.WEIGHT] = t.tpot_s[rows], t.weight[rows]

    def put(self, row: int, engine: int, todo: float) -> None:
        """To an engine goes a request with so many prompt tokens to compute there."""
        self._jobs[row, lane.TODO] = todo
        if self._waits[engine] == self._waiting.shape[1]:
            self._widen()
        self._waiting[engine, self._waits[engine]] = row
        self._waits[engine] += 1
        self._seen[engine] = (None, np.nan, -1)  # what comes of the decision is in the fleet's books

    def _widen(self) -> None:
        self._waiting = np.concatenate([self._waiting, self._waiting], axis=1)
        self._running = np.concatenate([self._running, self._running], axis=1)
