"""A policy that misbehaves costs a step's order at most."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from slosched.core.arrays import Floats, Ints
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request
from slosched.core.snapshot import Snapshot
from slosched.integrations.vllm import guarded_policy as planner_module
from slosched.integrations.vllm.background import PlansAhead
from slosched.integrations.vllm.config import GuardsConfig
from slosched.integrations.vllm.guarded_policy import GuardedPolicy
from slosched.integrations.vllm.metrics import Stats
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy


def _snapshot(n: int = 6, step: int = 0) -> Snapshot:
    requests = [
        Request(request_id=str(i), prompt_tokens=8, forecast=LengthForecast.point(4), arrival_s=float(i))
        for i in range(n)
    ]
    return replace(Snapshot.of(requests[: n - 2], requests[n - 2 :]), step=step)


class Scripted(Policy):
    """Does what a function says."""

    name: ClassVar[str] = "scripted"

    def __init__(self, do: Callable[[Snapshot], Plan]) -> None:
        self.do = do

    def plan(self, snapshot: Snapshot) -> Plan:
        return self.do(snapshot)


def _plan(snapshot: Snapshot, **changes: object) -> Plan:
    return Plan(snapshot=snapshot, policy="scripted", **{"order": snapshot.waiting, **changes})  # type: ignore[arg-type]


def _raises(snapshot: Snapshot) -> Plan:
    raise RuntimeError("policy is broken")


BAD: dict[str, Callable[[Snapshot], Plan]] = {
    "raises": _raises,
    "duplicate": lambda s: _plan(s, order=np.array([0, 0])),
    "unknown row": lambda s: _plan(s, order=np.array([9999])),
    "negative row": lambda s: _plan(s, hold=np.array([-1])),
    "running row ordered": lambda s: _plan(s, order=s.running),
    "waiting row preempted": lambda s: _plan(s, preempt=s.waiting[:1]),
    "running row refused": lambda s: _plan(s, reject=s.running[:1]),
    "waiting row passed over": lambda s: _plan(s, skip=s.waiting[:1]),
    "refused twice": lambda s: _plan(s, reject=s.waiting[[0, 0]]),
    "half a running order": lambda s: _plan(s, running_order=s.running[:1]),
    "floats": lambda s: _plan(s, order=np.array([0.0])),
    "a list": lambda s: _plan(s, order=[0]),
    "negative budget": lambda s: _plan(s, prefill_tokens=-1),
    "not a plan": lambda s: None,  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("kind", list(BAD))
def test_a_bad_plan_leaves_the_step_to_the_engine_and_opens_the_breaker(kind: str) -> None:
    """Counted each time; after the configured number in a row the policy is off."""
    stats = Stats()
    planner = GuardedPolicy(Scripted(BAD[kind]), GuardsConfig(breaker_failures=3), stats, boxed=False)
    for failures in range(1, 4):
        assert not planner.open
        assert planner.decide(_snapshot()) is None
        assert stats.fallbacks == {"policy": failures}
    assert planner.open
    assert planner.decide(_snapshot()) is None
    assert stats.fallbacks == {"policy": 3}


def test_one_good_plan_forgives_earlier_failures() -> None:
    """The breaker counts failures in a row."""
    turns = iter([True, True, False] * 5)

    def sometimes(snapshot: Snapshot) -> Plan:
        return _raises(snapshot) if next(turns) else _plan(snapshot)

    planner = GuardedPolicy(Scripted(sometimes), GuardsConfig(breaker_failures=3), Stats(), boxed=False)
    made = [planner.decide(_snapshot()) is not None for _ in range(15)]
    assert made == [False, False, True] * 5
    assert not planner.open


class NanKeys(KeyPolicy):
    """Keys that cannot be sorted."""

    name: ClassVar[str] = "nan"

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        return np.full(len(rows), np.nan)


def test_keys_that_are_not_numbers_are_a_failure() -> None:
    """NaN has no place in an order."""
    stats = Stats()
    assert GuardedPolicy(NanKeys(), GuardsConfig(), stats, boxed=False).decide(_snapshot()) is None
    assert stats.fallbacks == {"policy": 1}


def test_slow_plans_move_to_the_background_and_are_used_from_there() -> None:
    """Plans beyond the time box are carried out and counted, then made by a thread and taken up when done."""

    def slow(snapshot: Snapshot) -> Plan:
        time.sleep(0.005)
        return _plan(snapshot, order=snapshot.waiting[::-1].copy())

    stats = Stats()
    planner = GuardedPolicy(Scripted(slow), GuardsConfig(time_box_us=1000), stats)
    try:
        for _ in range(2):  # it may be the processor that they wait for
            assert planner.decide(_snapshot()) is not None
            assert planner.background is None
        for _ in range(40):
            if planner.background is None:
                assert planner.decide(_snapshot()) is not None
        assert planner.background is not None
        # Some 30 at .1 each; fewer where a collection of garbage makes plans compute for longer, as it may.
        assert 3 <= stats.fallbacks["overrun"] <= 31
        assert planner.free
        assert planner.latest(0) is None
        planner.launch(_snapshot())
        _await(planner)
        decision = planner.latest(0)
        assert decision is not None
        assert decision.order.tolist() == [3, 2, 1, 0]
        assert planner.latest(1000) is None  # too old to act on
    finally:
        planner.close()


def _await(planner: GuardedPolicy) -> None:
    """Until the background thread has made its plan."""
    for _ in range(4000):
        if planner.background is None or planner.background.idle:
            return
        time.sleep(0.005)
    raise AssertionError("the background thread must end its plan")


class Busy(Policy):
    """Plans that compute for as long as they are told to."""

    name: ClassVar[str] = "busy"

    def __init__(self, own_s: float) -> None:
        self.own_s = own_s

    def plan(self, snapshot: Snapshot) -> Plan:
        end = time.thread_time() + self.own_s
        while time.thread_time() < end:
            pass
        return _plan(snapshot)


def test_a_share_of_a_slow_step_is_free_for_planning() -> None:
    """A plan of a millisecond is too long beside steps of 5 ms, and nothing beside steps of 100 ms."""
    for step_s, background in ((0.005, True), (0.1, False)):
        planner = GuardedPolicy(Busy(0.001), GuardsConfig(), Stats())
        planner.step_s = step_s
        try:
            for _ in range(3):
                planner.decide(_snapshot())
            assert (planner.background is not None) is background
        finally:
            planner.close()


def test_a_machine_that_takes_the_processor_away_is_no_overrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that last three time boxes, of which they compute for a tenth, stay on the engine's thread."""
    now = [0.0]

    def preempted(snapshot: Snapshot) -> Plan:
        now[0] += 0.003
        return _plan(snapshot)

    clock = SimpleNamespace(perf_counter=lambda: now[0], thread_time=lambda: now[0] / 30, sleep=time.sleep)
    monkeypatch.setattr(planner_module, "time", clock)
    stats = Stats()
    planner = GuardedPolicy(Scripted(preempted), GuardsConfig(time_box_us=1000), stats)
    assert all(planner.decide(_snapshot()) is not None for _ in range(20))
    assert planner.background is None
    assert stats.fallbacks == {}


def test_failing_background_plans_open_the_breaker() -> None:
    """A thread's exceptions are counted as those on the engine's thread are."""
    calls = iter(range(10_000))

    def fails_later(snapshot: Snapshot) -> Plan:
        if next(calls) >= 3:
            raise RuntimeError("later")
        time.sleep(0.005)
        return _plan(snapshot)

    planner = GuardedPolicy(Scripted(fails_later), GuardsConfig(time_box_us=500, breaker_failures=4), Stats())
    try:
        planner.background = PlansAhead(planner._decide)
        for _ in range(8):
            planner.launch(_snapshot())
            _await(planner)
        assert planner.open
        assert not planner.free
    finally:
        planner.close()


class Deadline(KeyPolicy):
    """By a number kept in the priority column."""

    name: ClassVar[str] = "by-priority"

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        return snapshot.table.priority[rows].astype(np.float64)


def test_ranking_a_shortlist_gives_the_head_of_ranking_everybody() -> None:
    """In a long queue with arrivals and admissions the first 64 are those of a full sort at every step."""
    rng = np.random.default_rng(0)

    def request(i: int) -> Request:
        return Request(
            request_id=str(i), prompt_tokens=8, forecast=LengthForecast.point(4), arrival_s=float(i),
            priority=int(rng.integers(0, 50)),
        )  # fmt: skip

    first = Snapshot.of([request(i) for i in range(2000)])
    table = first.table
    queued = np.ones(table.capacity, dtype=np.bool_)
    planner = GuardedPolicy(Deadline(), GuardsConfig(time_box_us=1e6), Stats())
    joined: list[int] = []
    made = 2000
    for _ in range(80):
        waiting = np.flatnonzero(queued[: table.capacity] & (table.serial >= 0))
        waiting = waiting[np.argsort(table.serial[waiting])]
        decision = planner.decide(replace(first, waiting=waiting), joined=joined, queued=queued)
        assert decision is not None
        wanted = waiting[np.argsort(table.priority[waiting], kind="stable")][:64]
        assert decision.order[:64].tolist() == wanted.tolist()
        for row in wanted[:3].tolist():
            queued[row] = False
            table.release(row)
        joined = []
        for _ in range(3):
            row = table.add(request(made))
            made += 1
            queued[row] = True
            joined.append(row)


class Clock:
    """Processor and wall time that move only when a plan says so."""

    def __init__(self) -> None:
        self.wall_s = self.own_s = 0.0

    def perf_counter(self) -> float:
        return self.wall_s

    def thread_time(self) -> float:
        return self.own_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In the place of the guard's own."""
    made = Clock()
    monkeypatch.setattr(planner_module, "time", made)
    return made


def timed(clock: Clock, *plans: tuple[float, float], by_key: bool = False) -> GuardedPolicy:
    """A policy whose plans take these processor and wall milliseconds in turn, in a box of one."""
    left = list(plans)

    def spend() -> None:
        own_ms, wall_ms = left.pop(0)
        clock.own_s += own_ms / 1000
        clock.wall_s += wall_ms / 1000

    def scripted(snapshot: Snapshot) -> Plan:
        spend()
        return _plan(snapshot)

    class Timed(Deadline):
        def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
            spend()
            return super().key(snapshot, rows)

    policy = Timed() if by_key else Scripted(scripted)
    return GuardedPolicy(policy, GuardsConfig(time_box_us=1000), Stats())


def decided(planner: GuardedPolicy, count: int) -> list[bool]:
    """Whether plans are made in the background, after each of so many."""
    try:
        found = []
        for _ in range(count):
            assert planner.decide(_snapshot()) is not None
            found.append(planner.background is not None)
        return found
    finally:
        planner.close()


def test_the_third_overrun_in_a_row_moves_planning_away(clock: Clock) -> None:
    """Neither the second nor, after a plan that fits, the third of all."""
    long, fits = (1.01, 1.01), (0.99, 0.99)
    planner = timed(clock, long, long, fits, long, long, long)
    assert decided(planner, 6) == [False] * 5 + [True]
    assert planner._stats.fallbacks == {"overrun": 5}
    assert decided(timed(clock, *[fits] * 40), 40) == [False] * 40


@pytest.mark.parametrize(("own_ms", "wall_ms"), [(250.0, 250.0), (125.0, 1000.0)])
def test_a_plan_may_take_all_of_its_box(clock: Clock, own_ms: float, wall_ms: float) -> None:
    """A quarter of a step of a second here, or four times that in wall time: at equality it fits."""
    planner = timed(clock, *[(own_ms, wall_ms)] * 40)
    planner._guards = GuardsConfig(time_box_share=0.25)
    planner.step_s = 1.0
    assert planner.box_s == 0.25
    assert decided(planner, 40) == [False] * 40
    assert planner._stats.fallbacks == {}


def test_waiting_counts_as_a_tenth_of_an_overrun(clock: Clock) -> None:
    """From four boxes of wall time on, beyond which no processor time explains it."""
    assert decided(timed(clock, *[(0.5, 3.99)] * 40), 40) == [False] * 40
    found = decided(timed(clock, *[(0.5, 4.01)] * 31), 31)
    assert found.index(True) in (29, 30)


def test_policies_by_key_have_ten_times_the_patience(clock: Clock) -> None:
    assert decided(timed(clock, *[(2.0, 2.0)] * 30, by_key=True), 30) == [False] * 29 + [True]


def test_plans_in_the_background_return_once_they_are_quick(clock: Clock) -> None:
    """After 200 in a row within half the box; one slow plan begins the count anew."""
    planner = timed(clock)
    background = planner.background = PlansAhead(planner._decide)

    def collect(own_ms: float, wall_ms: float) -> bool:
        background.own_s, background.seconds = own_ms / 1000, wall_ms / 1000
        planner._collect(background)
        return planner.background is None

    try:
        assert not any(collect(0.5, 0.5) for _ in range(199))
        assert not collect(0.6, 0.6)
        assert not any(collect(0.5, 2.0) for _ in range(199))
        assert not collect(0.0, 0.0)  # nothing was made: nothing is counted
        assert collect(0.5, 2.0)
        assert planner._stats.plans == 400
        assert planner._stats.fallbacks == {}
    finally:
        planner.close()


def test_a_background_plan_beyond_its_limit_is_a_failure(clock: Clock) -> None:
    """At the limit it still counts."""
    limit_s = GuardsConfig().plan_limit_ms / 1000
    planner = timed(clock)
    worker = PlansAhead(planner._decide)
    try:
        for seconds, failures in ((limit_s, {}), (limit_s * 1.01, {"overrun": 1})):
            worker.own_s = worker.seconds = seconds
            planner._collect(worker)
            assert planner._stats.fallbacks == failures
            assert worker.seconds == 0.0
    finally:
        worker.close()


def test_a_background_plan_grows_stale_after_sixteen_steps() -> None:
    """Up to then it is acted on; after, it is counted."""
    planner = GuardedPolicy(Scripted(_plan), GuardsConfig(), Stats())
    planner.background = PlansAhead(planner._decide)
    try:
        planner.launch(_snapshot(step=100))
        _await(planner)
        assert planner.latest(116) is not None
        assert planner._stats.stale_plans == 0
        assert planner.latest(117) is None
        assert planner._stats.stale_plans == 1
    finally:
        planner.close()


def test_a_rehearsal_tells_where_plans_are_made(clock: Clock) -> None:
    """By the quickest of four; never for keys, nor where no box holds; a failure is counted."""
    slow, fits = (2.0, 2.0), (1.0, 1.0)
    for plans, by_key, boxed, moved in (
        ([slow] * 4, False, True, True), ([slow, slow, slow, fits], False, True, False),
        ([slow] * 4, True, True, False), ([slow] * 4, False, False, False),
    ):  # fmt: skip
        planner = timed(clock, *plans, by_key=by_key)
        planner._boxed = boxed
        planner.rehearse(_snapshot())
        assert (planner.background is not None) is moved
        planner.close()
    stats = Stats()
    GuardedPolicy(Scripted(_raises), GuardsConfig(), stats).rehearse(_snapshot())
    assert stats.fallbacks == {"policy": 1}


def test_without_a_box_no_plan_is_too_long(clock: Clock) -> None:
    planner = timed(clock, *[(50.0, 50.0)] * 40)
    planner._boxed = False
    assert decided(planner, 40) == [False] * 40
    assert planner._stats.fallbacks == {}


def test_keys_that_fail_put_nobody_first() -> None:
    """Keys of those who join count as plans; a failure leaves the engine's order, and is forgiven."""
    stats = Stats()
    planner = GuardedPolicy(NanKeys(), GuardsConfig(breaker_failures=2), stats)
    assert planner.keys(_snapshot()) == [math.inf] * 4
    assert (stats.plans, stats.fallbacks) == (0, {"policy": 1})
    planner.policy = Deadline()
    assert planner.keys(_snapshot()) == [0.0] * 4
    assert stats.plans == 1
    planner.policy = NanKeys()
    planner.keys(_snapshot())
    assert not planner.open
    planner.keys(_snapshot())
    assert planner.open
