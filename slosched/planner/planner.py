"""The order of a live queue, kept from step to step and improved a little at each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slosched.core.errors import require
from slosched.core.jit import njit
from slosched.core.snapshot import Snapshot
from slosched.core.table import Floats, Ints
from slosched.planner import model as c
from slosched.planner.orders import CONSTRUCTIVE, QueueOrders
from slosched.planner.pacing import next_step, safe_step_s
from slosched.planner.thread import BackgroundSearch, Task

AIM = (0.25, 0.5, 0.1, 1e-3, 0.1)
"""As `slosched.planner.model.DEFAULT_AIM`, but sure of a pace within `SAFE_SHARE` of the limit."""

BUDGET_SHARES = (0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)
"""Step times tried: those of a step with these shares of the engine's token budget and nothing else."""

PACING_GAIN = 0.1
"""Expected met requests that a step time must gain over the longest safe one (`safe_step_s`)."""

HURRY = 0.02
"""Expected misses among the prompts from which on answers that can sit steps out do so."""

IDLE_FADE = 0.8
"""Weight of the past in the share of answers that sit a step out."""

FORGET_S = 20.0
"""Time constant of the estimate of how much prompt work arrives."""

MOST_FUTURE = 0.9
"""Largest share of time that prompts of future requests are expected to take."""

CONSTRUCTION_SHARE = 0.5
"""Share of a time budget after which no further constructive order is tried in that plan."""

CHUNK = 3
"""Search moves between two looks at the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerParams:
    """How much the planner searches.

    Parameters
    ----------
    moves
        Search moves per plan, at least 0.
    window
        Positions at the head of the queue that moves start from, at least 1.
    horizon
        Requests at the head of the queue that are evaluated, at least 2; the rest keeps its order.
    replan_steps
        Plans from one comparison of all constructive orders to the next, at least 1.
    replan_limit
        Most requests that the constructive orders sort, at least `horizon`.
    pace
        Whether to limit prefill; without, only the order is planned.
    interrupt
        Whether prompts may be interrupted between two steps; without, one that has begun goes on first.
    age_price
        The oldest request without a first token goes first where that costs no more than this many expected
        met requests per second it has waited, at least 0; 0 for never.
    aim
        Soft margins and prices, see `slosched.planner.model.DEFAULT_AIM`.
    """

    moves: int = 16
    window: int = 32
    horizon: int = 256
    replan_steps: int = 8
    replan_limit: int = 512
    pace: bool = True
    interrupt: bool = True
    age_price: float = 0.001
    aim: tuple[float, float, float, float, float] = AIM

    def __post_init__(self) -> None:
        require(self.moves >= 0, "moves", "at least 0", self.moves)
        require(self.window >= 1, "window", "at least 1", self.window)
        require(self.horizon >= 2, "horizon", "at least 2", self.horizon)
        require(self.replan_steps >= 1, "replan_steps", "at least 1", self.replan_steps)
        require(self.replan_limit >= self.horizon, "replan_limit", "at least the horizon", self.replan_limit)
        require(self.age_price >= 0, "age_price", "at least 0", self.age_price)
        ok = (
            len(self.aim) == 5
            and self.aim[0] > 0
            and self.aim[1] >= 0
            and self.aim[2] > 0
            and self.aim[3] >= 0
            and self.aim[4] >= 0
        )
        require(ok, "aim", "(above 0, at least 0, above 0, at least 0, at least 0)", self.aim)


class Planned(NamedTuple):
    """What a step should do.

    Parameters
    ----------
    order
        Waiting rows, first to be admitted first.
    prefill_tokens
        Most prompt tokens to compute, or infinity.
    running_order
        All running rows: those that decode, then those in prefill, as planned; None if that is their order.
    skip
        Running rows in prefill that let a waiting request go first, and answers that sit the step out.
    """

    order: Ints
    prefill_tokens: float
    running_order: Ints | None
    skip: Ints


class Planner:
    """Keeps an order between steps: newcomers inserted at their best place, the head searched, all re-planned
    now and then.

    Parameters
    ----------
    params
        Search effort.
    seed
        Seed of the search.
    clock, budget_s
        If both are given, work stops when `budget_s` seconds of `clock` are used up in one plan: for live
        engines. Without them the effort is a count of moves, and plans depend on the snapshots alone.
    background
        Whether a thread goes on searching between plans: each plan starts from what it has made of the last
        one. Plans then depend on timing.

    Attributes
    ----------
    value
        Modelled value of the last plan, see `slosched.planner.model.evaluate`.
    chosen
        How often each constructive order won, by name.
    """  # fmt: skip

    def __init__(
        self,
        params: PlannerParams | None = None,
        *,
        seed: int = 0,
        clock: Callable[[], float] | None = None,
        budget_s: float | None = None,
        background: bool = False,
    ) -> None:
        self.params = params or PlannerParams()
        self.value = 0.0
        self.chosen: dict[str, int] = {}
        self._aim = np.array(self.params.aim, dtype=np.float64)
        self._rng = np.array([2 * seed + 88_172_645_463_325_253], dtype=np.uint64)
        self._clock, self._budget_s = clock, budget_s
        self._rows: Ints = np.empty(0, dtype=np.int64)
        self._mark = np.zeros(0, dtype=np.bool_)
        self._turn = 0  # index into CONSTRUCTIVE
        self._serials: Ints = np.empty(0, dtype=np.int64)
        self._step_s = np.inf  # seconds a step with prompts may take
        self._idle = 0.0  # share of the answers that sit such a step out
        self._plans = 0
        self._future = 0.0
        self._seen_s = 0.0
        self._submitted: Ints = np.empty(0, dtype=np.int64)  # places in `_rows` by job, -1 for no job
        self._worker = None
        if background:
            self._worker = BackgroundSearch(window=self.params.window, aim=self._aim, seed=seed)
        self._seen_serial = -1

    def plan(self, snapshot: Snapshot) -> Planned:
        """Order of the waiting rows, and what to do with prompts in the next step.

        Running requests whose prompt is not complete are ordered among the waiting ones: a prompt may be
        interrupted between two steps, since that costs nothing but the memory it holds.
        """
        self._begin_s = self._clock() if self._clock is not None else 0.0
        t, running = snapshot.table, snapshot.running
        decoding, begun = _begun(running, t.prompt_tokens, t.generated_tokens, t.computed_tokens)
        engine = c.engine_of(snapshot)
        if not self.params.interrupt or len(begun) == 0:
            order, limit, idle = self._order(snapshot, engine, len(begun) > 0)
            return Planned(order, limit, None, idle)
        prompts = np.concatenate([begun, snapshot.waiting])
        seen = replace(snapshot, running=decoding, waiting=prompts)
        order, limit, idle = self._order(seen, engine, True)
        order, begun, ahead = _part(order, begun, self._mark)
        # The engine serves running requests first: who stands behind the first waiting one is passed over.
        skip = begun[ahead:] if _fits(snapshot, order[:1]) else begun[:0]
        served, skip = np.concatenate([decoding, begun]), np.concatenate([idle, skip])
        return Planned(order, limit, None if np.array_equal(served, running) else served, skip)

    def _order(self, snapshot: Snapshot, engine: Floats, begun: bool) -> tuple[Ints, float, Ints]:
        """Order of the waiting rows, the most prompt tokens to compute in the next step (or infinity), and
        running rows that sit it out; `begun` tells whether a prompt is already in the engine.
        """
        self._adopt()
        kept, fresh = self._keep(snapshot)
        real = engine.copy()
        # What answers cost a step of the model is what those cost that do not sit it out.
        engine[[c.SEQUENCE, c.KV_TOKEN]] *= 1.0 - self._idle
        engine[c.FUTURE], engine[c.STEP] = min(MOST_FUTURE, self._future), self._step_s
        due = self._plans % self.params.replan_steps == 0 or len(fresh) > 4
        self._plans += 1
        horizon = self.params.horizon
        if due and len(kept) + len(fresh) > 1:
            pool, jobs, order, tail = self._constructed(snapshot, np.concatenate([kept, fresh]), engine)
            count = len(order)
        else:
            pool, tail = np.concatenate([kept[:horizon], fresh]), kept[horizon:]
            jobs, count = c.jobs_of(snapshot, pool), len(pool) - len(fresh)
            order = np.arange(len(snapshot.running), len(jobs), dtype=np.int64)
        running, scratch = len(snapshot.running), c.scratch_for(jobs)
        while count < len(order) and self._used() < 1.0:  # without time they stay at the end of the head
            self.value = c.insert(jobs, running, order, count, engine, self._aim, np.inf, scratch)
            count += 1
        if self.params.pace:
            self._pace(jobs, running, order, engine, scratch, everything=due)
        self._search(jobs, running, order, engine, scratch)
        self._oldest_first(jobs, running, order, engine, scratch)
        self._rows = np.concatenate([pool[order - running], tail])
        self._serials = snapshot.table.serial[self._rows]
        if self._worker is not None and len(order) > 1:
            self._submitted = np.full(len(jobs), -1, dtype=np.int64)
            self._submitted[order] = np.arange(len(order))
            self._worker.submit(
                Task(
                    version=self._plans, jobs=jobs, running=running, order=order, engine=engine
                )
            )  # fmt: skip
        hurry = False
        # Who sits a step out keeps its slot longer: not where slots are what others wait for.
        seats = running + len(snapshot.waiting) <= snapshot.limits.max_num_seqs
        if seats and np.isfinite(self._step_s) and running > 0 and (begun or _fits(snapshot, self._rows[:1])):
            c.evaluate(jobs, running, order, len(order), engine, self._aim, np.inf, scratch)
            hurry = c.at_risk(jobs, order, engine, self._aim, scratch) > HURRY
        limit, idle = next_step(jobs, running, order, real, self._step_s, hurry)
        if running > 0:
            self._idle = IDLE_FADE * self._idle + (1.0 - IDLE_FADE) * len(idle) / running
        return self._rows, limit, snapshot.running[idle]

    def close(self) -> None:
        """End the background thread, if there is one."""
        if self._worker is not None:
            self._worker.close()

    def _adopt(self) -> None:
        """Take over what the background search has made of the last plan."""
        found = None if self._worker is None else self._worker.take(self._plans)
        if found is not None:
            places = self._submitted[found.order]
            behind = np.arange(len(places), len(self._rows), dtype=np.int64)
            places = np.concatenate([places, behind])
            self._rows, self._serials = self._rows[places], self._serials[places]

    def _used(self) -> float:
        """Share of the time budget that is used up; 0 without a budget."""
        if self._clock is None or self._budget_s is None:
            return 0.0
        return (self._clock() - self._begin_s) / self._budget_s if self._budget_s > 0 else 1.0

    def _search(self, jobs: Floats, running: int, order: Ints, engine: Floats, scratch: c.Scratch) -> None:
        """Search the head of `order` in place, within the moves and the time budget."""
        left, timed = self.params.moves, self._clock is not None and self._budget_s is not None
        while left > 0 and self._used() < 1.0:
            moves = CHUNK if timed else left
            self.value = c.search(
                jobs, running, order, len(order), self.params.window, engine, self._aim, np.inf, moves,
                self._rng, scratch,
            )  # fmt: skip
            left -= moves + 1  # a call evaluates its start, too

    def _oldest_first(
        self, jobs: Floats, running: int, order: Ints, engine: Floats, scratch: c.Scratch
    ) -> None:
        """Move the request that has waited longest to the head of `order`, if that costs little enough."""
        price = self.params.age_price
        if price == 0 or len(order) < 2 or self._used() >= 1.0:
            return
        arrival = np.where(jobs[order, c.GENERATED] == 0, jobs[order, c.ARRIVAL], np.inf)
        place = int(np.argmin(arrival))
        if place == 0 or not np.isfinite(arrival[place]):
            return
        if not self.params.pace and self.params.moves == 0:
            self.value = c.evaluate(jobs, running, order, len(order), engine, self._aim, np.inf, scratch)
        moved = np.concatenate([order[place : place + 1], order[:place], order[place + 1 :]])
        value = c.evaluate(jobs, running, moved, len(moved), engine, self._aim, np.inf, scratch)
        if value >= self.value - price * (engine[c.NOW] - arrival[place]):
            order[:], self.value = moved, value

    def _keep(self, snapshot: Snapshot) -> tuple[Ints, Ints]:
        """Rows of the last order that still wait, in its order, and the newcomers by arrival.

        Also updates the share of time that arriving prompts take.
        """
        t, waiting = snapshot.table, snapshot.waiting
        if len(self._mark) < t.capacity:
            self._mark = np.zeros(t.capacity, dtype=np.bool_)
        kept, fresh, newest, tokens, pairs = _follow(
            self._rows, self._serials, waiting, snapshot.running, t.serial, t.prompt_tokens, t.cached_tokens,
            self._seen_serial, self._mark,
        )  # fmt: skip
        if newest > self._seen_serial:
            self._seen_serial = newest
            model = snapshot.step_time
            token_s = model.prefill_token_s + model.knee_token_s  # steps that hold prompts are above the knee
            work_s = tokens * token_s + pairs * model.attention_work_s
            fade = float(np.exp(min(0.0, self._seen_s - snapshot.now_s) / FORGET_S))
            self._future = self._future * fade + work_s / FORGET_S
            self._seen_s = snapshot.now_s
        return kept, fresh

    def _constructed(
        self, snapshot: Snapshot, waiting: Ints, engine: Floats
    ) -> tuple[Ints, Floats, Ints, Ints]:
        """The best of the simple orders and of the present one, over the first `horizon` places of each.

        With a time budget they take turns: as many are tried as there is time for.

        Returns
        -------
        tuple
            Rows that are jobs, the jobs, the best order as job indices, and the rows behind it.
        """
        rows = waiting[: self.params.replan_limit]
        count, running = min(len(rows), self.params.horizon), len(snapshot.running)
        orders = QueueOrders(snapshot, rows)
        heads: dict[str, Ints] = {}
        for _ in CONSTRUCTIVE:
            if heads and self._used() > CONSTRUCTION_SHARE / 2:
                break
            name = CONSTRUCTIVE[self._turn]
            heads[name] = orders.first(name, count)
            self._turn = (self._turn + 1) % len(CONSTRUCTIVE)
        heads["kept"] = np.arange(count, dtype=np.int64)
        # Only requests at the head of some order become jobs.
        named = np.zeros(len(rows), dtype=np.bool_)
        for head in heads.values():
            named[head] = True
        members = np.flatnonzero(named)
        place = np.empty(len(rows), dtype=np.int64)
        place[members] = np.arange(running, running + len(members))
        jobs = c.jobs_of(snapshot, rows[members])
        scratch = c.scratch_for(jobs)
        best, best_name = -np.inf, ""
        for name, head in heads.items():
            if best_name and name != "kept" and self._used() > CONSTRUCTION_SHARE:
                continue
            value = c.evaluate(jobs, running, place[head], count, engine, self._aim, np.inf, scratch)
            if value > best:
                best, best_name = value, name
        self.chosen[best_name] = self.chosen.get(best_name, 0) + 1
        head = heads[best_name]
        named[:] = True
        named[head] = False
        return rows[members], jobs, place[head], np.concatenate([rows[named], waiting[len(rows) :]])

    def _pace(
        self, jobs: Floats, running: int, order: Ints, engine: Floats, scratch: c.Scratch, everything: bool
    ) -> None:
        """Choose the step time: the longest that endangers no answer, or another that is worth more by
        `PACING_GAIN`, among all when `everything`, else among the present one and its neighbours.
        """
        whole_s = engine[c.BUDGET] * (engine[c.PREFILL_TOKEN] + engine[c.KNEE_TOKEN])
        steps = [float(engine[c.BASE] + share * whole_s) for share in BUDGET_SHARES]
        now, used = self._step_s, self._used()
        if everything and used < CONSTRUCTION_SHARE:
            tried = [np.inf, *steps]
        elif used < 1.0:
            tried = [np.inf, *[x for x in steps if x > now][-1:], now, *[x for x in steps if x < now][:1]]
        else:
            tried = [now]
        safe = self._step_s = engine[c.STEP] = safe_step_s(jobs, running, engine)
        self.value = c.evaluate(jobs, running, order, len(order), engine, self._aim, np.inf, scratch)
        least = self.value + PACING_GAIN
        for step_s in dict.fromkeys(tried):
            if step_s == safe:
                continue
            if self._used() >= 1.0:
                break
            engine[c.STEP] = step_s
            value = c.evaluate(jobs, running, order, len(order), engine, self._aim, np.inf, scratch)
            if value > least:
                self._step_s, self.value, least = step_s, value, value
        engine[c.STEP] = self._step_s


def _fits(snapshot: Snapshot, row: Ints) -> bool:
    """Whether a waiting row, if there is one, would be admitted now."""
    if len(row) == 0 or snapshot.free_seqs <= 0:
        return False
    tokens = int(snapshot.table.prompt_tokens[row[0]] + snapshot.table.generated_tokens[row[0]])
    return -(-tokens // snapshot.limits.block_tokens) <= snapshot.free_blocks


@njit(nogil=True, cache=True)
def _begun(running: Ints, prompt: Ints, generated: Ints, computed: Ints) -> tuple[Ints, Ints]:
    """Running rows that decode, and those still in prefill; both in their order."""
    decoding, begun = np.empty(len(running), np.int64), np.empty(len(running), np.int64)
    d, b = 0, 0
    for row in running:
        if generated[row] > 0 and prompt[row] + generated[row] - computed[row] <= 1:
            decoding[d] = row
            d += 1
        else:
            begun[b] = row
            b += 1
    return decoding[:d], begun[:b]


@njit(nogil=True, cache=True)
def _part(order: Ints, begun: Ints, mark: NDArray[np.bool_]) -> tuple[Ints, Ints, int]:
    """Waiting and begun rows of an order of both, and how many begun ones stand before all waiting ones.

    `mark` is False everywhere, before and after.
    """
    waiting, running = np.empty(len(order) - len(begun), np.int64), np.empty(len(begun), np.int64)
    w, r, ahead = 0, 0, 0
    for row in begun:
        mark[row] = True
    for row in order:
        if mark[row]:
            mark[row] = False
            running[r] = row
            r += 1
            ahead += w == 0
        else:
            waiting[w] = row
            w += 1
    return waiting, running, ahead


@njit(nogil=True, cache=True)
def _follow(
    rows: Ints, serials: Ints, waiting: Ints, running: Ints, serial: Ints, prompt: Ints, cached: Ints,
    seen: int, mark: NDArray[np.bool_],
) -> tuple[Ints, Ints, int, float, float]:  # fmt: skip
    """Who of `rows` still waits, who waits besides, and what has arrived: newest serial, prompt tokens, pairs
    of such a token and one it attends to.

    `mark` is False everywhere, before and after.
    """
    kept, fresh = np.empty(len(waiting), np.int64), np.empty(len(waiting), np.int64)
    newest, tokens, pairs, k, f = seen, 0.0, 0.0, 0, 0
    for x in range(len(waiting)):
        row = waiting[x]
        mark[row] = True
        if serial[row] > seen:
            newest = max(newest, serial[row])
            todo = float(prompt[row] - cached[row])
            tokens += todo
            pairs += todo * (cached[row] + 0.5 * todo)
    for x in range(len(running)):
        row = running[x]
        if serial[row] > seen:
            newest = max(newest, serial[row])
            todo = float(prompt[row] - cached[row])
            tokens += todo
            pairs += todo * (cached[row] + 0.5 * todo)
    for x in range(len(rows)):
        row = rows[x]
        if row < len(serial) and mark[row] and serial[row] == serials[x]:
            kept[k] = row
            k += 1
            mark[row] = False
    for x in range(len(waiting)):
        row = waiting[x]
        if mark[row]:
            fresh[f] = row
            f += 1
            mark[row] = False
    return kept[:k], fresh[:f], newest, tokens, pairs
