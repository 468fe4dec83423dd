"""Our router: the engine where most weight is expected to keep its limits if it takes the request."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.routers import lane
from slosched.routers.base import EngineView, FleetSnapshot, Router, Routing
from slosched.routers.floors import Floors

EQUAL = 6
"""Gains are equal that agree to so many decimals of the newcomer's weight: far below what a model can tell,
far above what sums round off."""


class Slosched(Router):
    """Sends a request where most weight is expected to keep its limits: its own, less what others lose.

    An engine under our policy serves, roughly, the least work per weight first, and parks requests whose
    limits are lost. So at each engine the newcomer waits for those with less work per weight, and delays
    those with more (`slosched.routers.lane`). A first token waits for prompts, a slot and memory, a whole
    answer for all work. Each wait becomes a chance: longer than the request can bear or not, the wait being
    exponential with that mean. A tight pace leaves an engine less time for others, a slow engine makes more
    work of the same request, a cached prompt is none. Among equal gains, as where nobody has limits, the
    engine decides where the weighted waiting of all grows least; then that with the least seconds of work,
    lost requests included; then that with the fewest; then the first.

    Some engines take no tight paces where that surely pays (`slosched.routers.floors`). It holds nobody.

    Parameters
    ----------
    refuse
        Whether to refuse a request that will miss a limit on every engine even if nothing but the prompts
        before it, and its own work, takes time there. Best effort is never refused.
    floors
        Whether engines may be kept free of tight paces.
    seed
        Seed of the futures that floors are compared on.
    """

    name: ClassVar[str] = "slosched"

    def __init__(self, *, refuse: bool = False, floors: bool = True, seed: int = 0) -> None:
        require(isinstance(refuse, bool), "refuse", "true or false", refuse)
        require(isinstance(floors, bool), "floors", "true or false", floors)
        self.refuse = refuse
        self._lines = _Lines()
        self._floors = Floors(seed=seed) if floors else None

    def live(self) -> None:
        """Compare floors in a thread from now on."""
        if self._floors is not None:
            self._floors.live()

    def close(self) -> None:
        """End the thread."""
        if self._floors is not None:
            self._floors.close()

    def route(self, fleet: FleetSnapshot) -> Routing:
        """Send the newcomer where it gains most."""
        row = int(fleet.pending[0])
        gain, increase, seconds, late = self._lines.judged(row, fleet)
        if self.refuse and late.all():
            return Routing(refuse=(row,))
        worth = max(lane.LEAST_WEIGHT, float(fleet.table.weight[row]))
        ahead = fleet.outstanding()[fleet.open]
        barred = np.zeros(len(ahead), dtype=np.bool_)
        if self._floors is not None:
            self._floors.watch(row, fleet)
            barred = ~self._floors.allowed(row, fleet)
        order = np.lexsort((ahead, seconds, increase, -np.round(gain / worth, EQUAL), barred))
        best = fleet.open[int(order[0])]
        self._lines.sent(row, best)
        return Routing(send=((row, best),))


class _Lines:
    """The lines, kept from decision to decision: only engines whose requests changed are read again."""

    def __init__(self) -> None:
        self._jobs: Floats = np.zeros((0, lane.WIDTH))
        self._serial: Ints = np.zeros(0, dtype=np.int64)  # whose request a row of jobs is; -1 for nobody's
        self._engines: list[Floats] = []
        self._lines: list[Floats] = []
        self._seen: list[tuple[Ints | None, float, int]] = []
        self._todo: Floats = np.empty(0)

    def judged(self, row: int, fleet: FleetSnapshot) -> Floats:
        """What `lane.judge` says of a newcomer at each open engine, shape (4, open engines)."""
        self._update(fleet)
        self._fill(np.array([row]), fleet)
        job = self._jobs[row]
        self._todo = np.maximum(1.0, job[lane.PROMPT] - fleet.hits(row))
        open_ = fleet.open
        found = np.empty((4, len(open_)))
        new = np.empty(lane.LINE_WIDTH)
        for i, e in enumerate(open_):
            job[lane.TODO] = self._todo[e]
            lane.place(job, False, self._engines[e], new)
            found[:, i] = lane.judge(self._lines[e], new, self._engines[e], fleet.now_s)
        return found

    def sent(self, row: int, engine: int) -> None:
        """The request judged last goes to `engine`: that much of its prompt is not cached there."""
        self._jobs[row, lane.TODO] = self._todo[engine]

    def _update(self, fleet: FleetSnapshot) -> None:
        t = fleet.table
        more = t.capacity - len(self._jobs)
        if more > 0:
            self._jobs = np.concatenate([self._jobs, np.zeros((more, lane.WIDTH))])
            self._serial = np.concatenate([self._serial, np.full(more, -1)])
        for view in fleet.engines[len(self._seen) :]:
            self._engines.append(np.array(lane.engine_columns(view.engine)))
            self._lines.append(np.empty((0, lane.LINE_WIDTH)))
            self._seen.append((None, np.nan, -1))
        for e, view in enumerate(fleet.engines):
            said = view.status.at_s if view.status is not None else -1.0
            begun = int(np.count_nonzero(~np.isnan(t.first_token_s[view.rows])))
            if self._seen[e][0] is not view.rows or self._seen[e][1:] != (said, begun):
                self._seen[e] = (view.rows, said, begun)
                self._lines[e] = self._read(view, self._engines[e], fleet)

    def _read(self, view: EngineView, engine: Floats, fleet: FleetSnapshot) -> Floats:
        t, jobs, rows = fleet.table, self._jobs, view.rows
        self._fill(rows, fleet)
        begun = ~np.isnan(t.first_token_s[rows])
        waiting = rows[~begun]
        left = t.prompt_tokens[waiting] - t.computed_tokens[waiting]
        known = np.where(jobs[waiting, lane.TODO] > 0, jobs[waiting, lane.TODO], np.inf)
        jobs[waiting, lane.TODO] = np.maximum(1.0, np.minimum(known, left))
        return np.asarray(lane.line_up(jobs, rows, begun.astype(np.int64), engine))

    def _fill(self, rows: Ints, fleet: FleetSnapshot) -> None:
        t, jobs = fleet.table, self._jobs
        jobs[rows, lane.GENERATED] = t.generated_tokens[rows]
        rows = rows[self._serial[rows] != t.serial[rows]]  # all else about a request stays as it is
        if not len(rows):
            return
        self._serial[rows] = t.serial[rows]
        jobs[rows, lane.TODO] = 0.0
        jobs[rows, lane.PROMPT], jobs[rows, lane.LENGTH] = t.prompt_tokens[rows], t.atoms[rows].mean(axis=1)
        jobs[rows, lane.FIRST_DUE] = t.arrival_s[rows] + t.ttft_s[rows]
        jobs[rows, lane.E2E_DUE] = t.arrival_s[rows] + t.e2e_s[rows]
        jobs[rows, lane.TPOT], jobs[rows, lane.WEIGHT] = t.tpot_s[rows], t.weight[rows]
