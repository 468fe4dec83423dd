"""Replay a workload through several simulated engines behind a router."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine, find_engine
from slosched.core.errors import InputError, require
from slosched.core.outcome import Run, RunLog
from slosched.core.thinking import aim_now
from slosched.core.workload import Workload
from slosched.policies.base import Policy
from slosched.policies.registry import policy_of
from slosched.routers import router as router_by_name
from slosched.routers.base import EngineStatus, FleetSnapshot, Router, Routing
from slosched.routers.books import FleetBooks
from slosched.simulator import kernel as k
from slosched.simulator.engine import (
    Columns,
    Contents,
    SimulatedEngine,
    columns_of,
    contents_of,
    outcomes_of,
    refuse_oversize,
)

_PS = 1e-12
KINDS = ("join", "drain", "fail")

MAX_IDLE_EVENTS = 1000
"""Looks in a row at which all engines are idle and nothing is sent: beyond this the router holds for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An engine that joins, drains or fails.

    Parameters
    ----------
    at_s
        When, in seconds, at least 0.
    engine
        Index of the engine. One with a "join" is not there before its first; one that joins after it has
        failed starts anew, with nobody and with an empty cache.
    kind
        "join": it takes requests from now on. "drain": it takes no more, and finishes what it has. "fail":
        it is gone; answers that had begun are lost, requests without a token come back to the router.
    """

    at_s: float
    engine: int
    kind: str

    def __post_init__(self) -> None:
        require(0 <= self.at_s < np.inf, "at_s", "a finite number of seconds of at least 0", self.at_s)
        require(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}", self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRun(Run):
    """One router and policy on one workload.

    Parameters
    ----------
    router
        Its name.
    engine_of
        Index of the engine that had each request last; -1 where none did.
    logs
        How each engine fared; `log` is the fleet's.
    route_s
        Wall time of each of the router's decisions; empty if not measured.
    moved
        Requests taken back from one engine's queue for another's.
    lost
        Requests whose answer was cut off by a failing engine.
    """

    router: str
    engine_of: Ints
    logs: tuple[RunLog, ...]
    route_s: Floats
    moved: int
    lost: NDArray[np.bool_]


def simulate_fleet(
    workload: Workload,
    engines: Sequence[Engine | str],
    router: str | Router = "slosched",
    policy: str | Callable[[], Policy] = "slosched",
    *,
    seed: int = 0,
    delay_s: float = 0.001,
    statistics_s: float = 0.1,
    changes: Sequence[Change] = (),
    measure: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FleetRun:
    """Replay `workload` through several engines on one clock, each as exact as `simulate`.

    Parameters
    ----------
    workload
        Requests to replay; each must fit every engine.
    engines
        The engines, at least one: each an engine, or the name of a preset or of a JSON file.
    router
        A router by name or a fresh object.
    policy
        Name of the policy on every engine, or a function that makes a fresh one.
    seed
        Seed of router and policies; engine i has seed + i.
    delay_s
        Seconds from a decision until the request is at its engine, and from a token until the router has
        seen it.
    statistics_s
        Seconds from one statement of an engine about itself to the next; what the router knows is up to
        that old. It is published at the first end of a step. 0 shows the state after the step in progress.
    changes
        Engines that join, drain or fail.
    measure
        Whether to time routing decisions and plans.
    progress
        Called now and then with (finished requests, all requests).

    Raises
    ------
    InputError
        If a request can never fit, a name is unknown, or a router or policy decides what it may not.

    Examples
    --------
    >>> from slosched.core.engine import DEFAULT_ENGINE
    >>> work = Workload.plain(np.zeros(4), np.full(4, 100), np.full(4, 5))
    >>> run = simulate_fleet(work, [DEFAULT_ENGINE] * 2, router="round-robin", policy="fcfs")
    >>> run.engine_of.tolist(), bool(run.outcomes.finished.all())
    ([0, 1, 0, 1], True)
    """
    require(len(engines) > 0, "engines", "at least one engine", list(engines))
    for name, value in (("delay_s", delay_s), ("statistics_s", statistics_s)):
        require(0 <= value < np.inf, name, "a finite number of seconds of at least 0", value)
    for change in changes:
        require(0 <= change.engine < len(engines), "engine", f"an index below {len(engines)}", change.engine)
    found = [find_engine(engine) for engine in engines]
    for engine in found:
        refuse_oversize(workload, engine.limits)
    chosen = router_by_name(router, seed=seed) if isinstance(router, str) else router
    begin = time.perf_counter()
    fleet = _Fleet(workload, found, chosen, policy, seed, delay_s, statistics_s, measure)
    fleet.run(changes, progress)
    return fleet.result(time.perf_counter() - begin)


class _Said(NamedTuple):
    """Statistics on their way to the router."""

    seen_ps: int
    engine: int
    status: EngineStatus
    rows: Ints
    generated: Ints
    computed: Ints


# Events at the same time: first what changes the fleet, then what is said about it, then who comes.
_CHANGE, _STATISTICS, _TICK, _ARRIVAL = range(4)


class _Fleet:
    """Engines, the router's books, and the events between them."""

    def __init__(
        self,
        workload: Workload,
        engines: Sequence[Engine],
        router: Router,
        policy: str | Callable[[], Policy],
        seed: int,
        delay_s: float,
        statistics_s: float,
        measure: bool,
    ) -> None:
        self.workload, self.router, self.seed, self.measure = workload, router, seed, measure
        self.delay_ps, self.period_ps = round(delay_s / _PS), round(statistics_s / _PS)
        self.columns: Columns = columns_of(workload)
        self._contents: dict[int, Contents] = {}
        self._make_policy = policy
        self._kinds = list(engines)
        self.engines: list[SimulatedEngine] = [self._fresh(i) for i in range(len(engines))]
        self.former: list[tuple[int, SimulatedEngine]] = []  # those that failed and came back anew
        self.policy = self.engines[0].policy.name
        first = self.engines[0]
        if first.thinks:  # routers see the same limits as policies do
            aim_now(first.snapshot(), np.arange(len(workload)))
        n = len(workload)
        # What the router has seen: static columns are the workload's, dynamic ones its own.
        self.seen = self.columns.table.with_columns(
            generated_tokens=np.zeros(n, dtype=np.int64),
            computed_tokens=np.zeros(n, dtype=np.int64),
            cached_tokens=np.zeros(n, dtype=np.int64),
            first_token_s=np.full(n, np.nan),
        ).shared()
        prefix = workload.prefix
        self.books = FleetBooks(engines, self.seen, block_tokens=prefix.block_tokens if prefix else 16)
        self.alive = [True] * len(engines)
        self.said: list[_Said] = []
        self.last_said = [-1] * len(engines)
        self.engine_of = np.full(n, -1, dtype=np.int64)
        self.lost = np.zeros(n, dtype=np.bool_)
        self.moved = 0
        self.route_s: list[float] = []
        self.turns = bool(self.columns.is_turn.any())
        self.events: list[tuple[int, int, int]] = []
        self.coming = 0  # arrivals and changes among the events
        self.idle_events = 0

    def _fresh(self, index: int) -> SimulatedEngine:
        """An engine as it starts: with nobody, and with an empty cache."""
        policy, engine = self._make_policy, self._kinds[index]
        its = policy_of(policy, seed=self.seed + index) if isinstance(policy, str) else policy()
        block = engine.limits.block_tokens
        if engine.limits.prefix_cache and block not in self._contents:
            self._contents[block] = contents_of(self.workload, block)
        return SimulatedEngine(
            self.workload, self.columns, its, its.engine_for(engine), returns_turns=True,
            contents=self._contents.get(block),
        )  # fmt: skip

    def run(self, changes: Sequence[Change], progress: Callable[[int, int], None] | None) -> None:
        """All events in order of time, then every engine to its end."""
        requests = self.columns.requests
        first = np.flatnonzero(~self.columns.is_turn)
        self.events = [(int(requests.arrival_ps[row]), _ARRIVAL, int(row)) for row in first]
        for i, change in enumerate(changes):
            self.events.append((round(change.at_s / _PS), _CHANGE, i))
            if change.kind == "join":
                self.books.accept(change.engine, False)
        self.coming = len(self.events)
        tick_ps = 0 if np.isinf(self.router.tick_s) else round(self.router.tick_s / _PS)
        for period_ps, kind in ((self.period_ps, _STATISTICS), (tick_ps, _TICK)):
            if period_ps:
                self.events.append((period_ps, kind, 0))
        heapq.heapify(self.events)
        while True:
            if not self.events or not (self.coming or self._may_still_decide()):
                if self._advance(k.FOREVER):
                    continue
                break
            now_ps, kind, index = heapq.heappop(self.events)
            if self._advance(now_ps):  # a turn comes before
                heapq.heappush(self.events, (now_ps, kind, index))
                continue
            self._look(now_ps)
            if kind == _CHANGE:
                self.coming -= 1
                self._change(changes[index], now_ps)
            elif kind == _STATISTICS:
                self._publish(now_ps)
                heapq.heappush(self.events, (now_ps + self.period_ps, _STATISTICS, 0))
            elif kind == _TICK:
                heapq.heappush(self.events, (now_ps + tick_ps, _TICK, 0))
                self._route(now_ps, asked=True)
            else:
                self.coming -= 1
                if requests.arrival_ps[index] != now_ps:  # the answer before it was lost with its engine
                    continue
                self.books.arrived(index, self._ids(index))
                self._route(now_ps, asked=True)
                if progress is not None and index % 500 == 0:
                    progress(int((requests.finish_ps != -1).sum()), len(self.workload))
        if len(self.books.pending.all) and any(view.accepts for view in self.books.engines):
            raise InputError(f"router {self.router.name!r} must not hold requests for ever.")

    def _may_still_decide(self) -> bool:
        """Whether the router has something left to do though nobody will come."""
        busy = any(not engine.idle for engine in self._living())
        self.idle_events = 0 if busy else self.idle_events + 1
        if self.idle_events > MAX_IDLE_EVENTS or not any(view.accepts for view in self.books.engines):
            return False
        return len(self.books.pending.all) > 0 or (self.router.holds and busy)

    def _living(self) -> list[SimulatedEngine]:
        return [engine for engine, alive in zip(self.engines, self.alive, strict=True) if alive]

    def _advance(self, now_ps: int) -> bool:
        """Bring every engine to `now_ps`; True if a turn was sent before that, and engines wait for it.

        Sessions tie the engines together: the one whose clock is behind all others goes first and no further
        than they are, so that nobody begins a step after a turn that might have come to it.
        """
        lagging = [e for e in self._living() if e.next_ps < now_ps]
        if not self.turns:
            for engine in lagging:
                engine.advance(now_ps, measure=self.measure)
            return False
        while lagging:
            engine = min(lagging, key=lambda e: e.next_ps)
            others = [e.next_ps for e in lagging if e is not engine]
            engine.advance(min(now_ps, min(others, default=now_ps) + 1), measure=self.measure)
            sent, engine.turns_sent = engine.turns_sent, []
            times = [int(self.columns.requests.arrival_ps[row]) for row in sent]
            for row, ps in zip(sent, times, strict=True):
                heapq.heappush(self.events, (ps, _ARRIVAL, row))
            self.coming += len(sent)
            if times and min(times) < now_ps:
                return True
            if engine.next_ps >= now_ps:
                lagging.remove(engine)
        return False

    def _look(self, now_ps: int) -> None:
        """What the router has learnt by now: tokens that passed it, ends, statistics."""
        requests, seen_ps = self.columns.requests, now_ps - self.delay_ps
        for view in list(self.books.engines):
            rows = view.rows
            if not len(rows):
                continue
            finish, first = requests.finish_ps[rows], requests.first_ps[rows]
            begun = rows[(first >= 0) & (first <= seen_ps)]
            self.seen.first_token_s[begun] = requests.first_token_s[begun]
            for row in rows[(finish != -1) & (finish <= seen_ps)].tolist():
                self.books.ended(row)
        while self.said and self.said[0].seen_ps <= now_ps:
            said = heapq.heappop(self.said)
            if self.alive[said.engine]:
                self.books.said(said.engine, said.status)
                self.seen.generated_tokens[said.rows] = said.generated
                self.seen.computed_tokens[said.rows] = said.computed
        if not self.period_ps:
            for i in range(len(self.engines)):
                if self.alive[i]:
                    said = self._statement(i, now_ps)
                    self.books.said(i, said.status)
                    self.seen.generated_tokens[said.rows] = said.generated
                    self.seen.computed_tokens[said.rows] = said.computed

    def _publish(self, now_ps: int) -> None:
        for i, alive in enumerate(self.alive):
            if not alive:
                continue
            said = self._statement(i, now_ps)
            if said.seen_ps > self.last_said[i]:  # else a step has lasted longer than the period
                heapq.heappush(self.said, said)
                self.last_said[i] = said.seen_ps

    def _statement(self, index: int, now_ps: int) -> _Said:
        """What an engine says at the first end of a step from now on."""
        engine, requests = self.engines[index], self.columns.requests
        state, q = engine.state, engine.queues
        running, waiting = q.running[: state[k.RUNNING]].copy(), q.waiting[: state[k.WAITING]]
        at_ps = max(now_ps, int(state[k.NOW]))
        generated, computed = requests.generated[running], requests.computed[running]
        todo = int(np.maximum(0, requests.prompt[running] + generated - computed - 1).sum())
        status = EngineStatus(
            at_s=at_ps * _PS,
            waiting=len(waiting),
            running=len(running),
            kv_used=1.0 - float(state[k.FREE]) / engine.engine.limits.kv_blocks,
            prompt_tokens=todo + self._left(waiting),
        )
        return _Said(at_ps + self.delay_ps, index, status, running, generated, computed)

    def _left(self, waiting: Ints) -> int:
        """Tokens that waiting requests have to compute before their next output token."""
        r = self.columns.requests
        return int((r.prompt[waiting] + r.generated[waiting] - r.cached[waiting]).sum())

    def _ids(self, row: int) -> Ints:
        prefix = self.workload.prefix
        if prefix is None:
            return np.empty(0, dtype=np.int64)
        return prefix.ids[prefix.offsets[row] : prefix.offsets[row + 1]]

    def _route(self, now_ps: int, *, asked: bool) -> None:
        """Ask the router about everybody it holds, and carry out what it says."""
        if not any(view.accepts for view in self.books.engines):
            return
        now_s = now_ps * _PS
        if self.router.holds:
            if len(self.books.pending.all) or asked:
                self._carry_out(self._ask(self.books.snapshot(now_s)), now_ps)
            return
        for row in self.books.pending.all.tolist():
            snapshot = self.books.snapshot(now_s, rows=[row])
            routing = self._ask(snapshot)
            if not routing.send and not routing.refuse:
                raise InputError(f"router {self.router.name!r} must send or refuse, since it does not hold.")
            self._carry_out(routing, now_ps)

    def _ask(self, snapshot: FleetSnapshot) -> Routing:
        begin = time.perf_counter() if self.measure else 0.0
        routing = self.router.route(snapshot)
        if self.measure:
            self.route_s.append(time.perf_counter() - begin)
        routing.check(snapshot)
        return routing

    def _carry_out(self, routing: Routing, now_ps: int) -> None:
        for row in routing.refuse:
            self.columns.requests.finish_ps[row] = k.REJECTED
            self.books.ended(row)
        for row, engine in routing.send:
            here = self.books.place.get(row)
            if here == engine:
                continue
            if here is not None:
                if not self.engines[here].withdraw(row):
                    continue
                self.moved += 1
            self.books.sent(row, engine)
            self.engine_of[row] = engine
            self.engines[engine].deliver(np.array([row]), np.array([now_ps + self.delay_ps]))

    def _change(self, change: Change, now_ps: int) -> None:
        if change.kind == "join":
            if not self.alive[change.engine]:
                self.former.append((change.engine, self.engines[change.engine]))
                self.engines[change.engine] = self._fresh(change.engine)
            self.alive[change.engine] = True
            self.books.accept(change.engine, True)
        elif change.kind == "drain":
            self.books.accept(change.engine, False)
        elif self.alive[change.engine]:
            self._fail(change.engine, now_ps)
        self._route(now_ps, asked=False)

    def _fail(self, index: int, now_ps: int) -> None:
        """An engine is gone: begun answers are lost, all else comes back; its last step never ended."""
        r = self.columns.requests
        self.alive[index] = False
        self.said = [said for said in self.said if said.engine != index]  # nobody hears of it any more
        heapq.heapify(self.said)
        self.last_said[index] = -1
        for row in self.books.engines[index].rows.tolist():
            turn = int(r.next_turn[row])
            if turn >= 0 and r.finish_ps[row] > now_ps:
                r.arrival_ps[turn] = -1
        for row in self.books.died(index).tolist():
            if 0 <= r.finish_ps[row] <= now_ps:
                self.books.ended(row)
            elif 0 <= r.first_ps[row] <= now_ps:
                r.finish_ps[row] = -1
                self.lost[row] = True
                self.books.ended(row)
            else:
                for column in (r.computed, r.cached, r.generated, r.served, r.peak, r.blocks):
                    column[row] = 0
                for column in (r.hit, r.admitted_ps, r.first_ps, r.finish_ps):
                    column[row] = -1
                r.first_token_s[row] = np.nan
                self.seen.generated_tokens[row] = self.seen.computed_tokens[row] = 0
                self.engine_of[row] = -1
                self.books.back(row)

    def _log(self, index: int, wall_s: float) -> RunLog:
        """How an engine fared, its former lives included."""
        former = [engine.log(wall_s) for i, engine in self.former if i == index]
        last = self.engines[index].log(wall_s)
        return _together([*former, last], wall_s) if former else last

    def result(self, wall_s: float) -> FleetRun:
        """What happened."""
        logs = tuple(self._log(index, wall_s) for index in range(len(self.engines)))
        return FleetRun(
            policy=self.policy,
            engine="simulator",
            outcomes=outcomes_of(self.workload, self.columns.requests),
            log=_together(logs, wall_s),
            seed=self.seed,
            router=self.router.name,
            engine_of=self.engine_of,
            logs=logs,
            route_s=np.array(self.route_s),
            moved=self.moved,
            lost=self.lost,
        )


def _together(logs: Sequence[RunLog], wall_s: float) -> RunLog:
    """The fleet's log: counts and engine time in sum, depths in sum at the times any engine was sampled."""
    times = np.unique(np.concatenate([log.depth_time_s for log in logs]))

    def depth(name: str) -> Ints:
        """Sum over the engines of a sampled number, at the times of all samples."""
        total = np.zeros(len(times), dtype=np.int64)
        for log in logs:
            at = np.searchsorted(log.depth_time_s, times, side="right") - 1
            values = np.concatenate([getattr(log, name), [0]])  # index -1: nothing sampled yet
            total += values[at]
        return total

    return replace(
        logs[0],
        steps=sum(log.steps for log in logs),
        plans=sum(log.plans for log in logs),
        plan_s=np.concatenate([log.plan_s for log in logs]),
        depth_time_s=times,
        depth_waiting=depth("depth_waiting"),
        depth_running=depth("depth_running"),
        busy_s=sum(log.busy_s for log in logs),
        wall_s=wall_s,
    )
