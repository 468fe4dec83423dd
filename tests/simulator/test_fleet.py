"""Several engines on one clock: each as exact as one alone, and what happens when they come and go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.routers import ROUTERS, FleetSnapshot, PickRouter, Router, Routing
from slosched.simulator import Change, simulate, simulate_fleet

RandomCase = Callable[[int], tuple[Workload, EngineLimits]]


def engine(limits: EngineLimits, model: StepTimeModel, name: str = "one") -> Engine:
    return Engine(name=name, limits=limits, step_time=model)


class Fixed(PickRouter):
    """Sends row i where it was told to."""

    name: ClassVar[str] = "fixed"

    def __init__(self, where: list[int]) -> None:
        self.where = where

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        return self.where[row]


@pytest.mark.parametrize("policy", ["fcfs", "edf", "trail", "qoserve", "slosched"])
@pytest.mark.parametrize("statistics_s", [0.0, 0.05])
def test_one_engine_is_the_simulator(
    policy: str, statistics_s: float, random_case: RandomCase, model: StepTimeModel
) -> None:
    """A fleet of one engine without delay gives the times of `simulate`, to the digit."""
    for seed in range(8):
        work, limits = random_case(seed)
        alone = simulate(work, policy, engine=engine(limits, model))
        fleet = simulate_fleet(
            work, [engine(limits, model)], "round-robin", policy, delay_s=0.0, statistics_s=statistics_s
        )
        assert np.array_equal(alone.outcomes.finish_s, fleet.outcomes.finish_s, equal_nan=True), seed
        assert np.array_equal(alone.outcomes.first_token_s, fleet.outcomes.first_token_s, equal_nan=True)
        assert np.array_equal(alone.outcomes.cached_tokens, fleet.outcomes.cached_tokens), seed
        assert alone.log.steps == fleet.log.steps, seed


@pytest.mark.parametrize("policy", ["fcfs", "edf", "slosched"])
def test_engines_do_not_touch_each_other(policy: str, random_case: RandomCase, model: StepTimeModel) -> None:
    """Two engines with fixed shares give the times of two simulations of those shares."""
    for seed in range(8):
        work, limits = random_case(seed)
        where = np.random.default_rng(seed).integers(0, 2, len(work))
        run = simulate_fleet(
            work, [engine(limits, model)] * 2, Fixed(where.tolist()), policy, delay_s=0.0, seed=3
        )
        assert np.array_equal(run.engine_of, where)
        for one in range(2):
            part = work.rows(where == one)
            alone = simulate(part, policy, engine=engine(limits, model), seed=3 + one)
            there = run.outcomes.finish_s[where == one]
            assert np.array_equal(alone.outcomes.finish_s, there, equal_nan=True), seed


def test_delay_is_added(model: StepTimeModel) -> None:
    """A request to an idle engine has its first token later by just the routing delay."""
    work = Workload.plain(np.array([0.0]), np.array([50]), np.array([3]))
    at = [
        float(
            simulate_fleet(work, [engine(EngineLimits(), model)], delay_s=d, policy="fcfs").outcomes.ttft_s[0]
        )
        for d in (0.0, 0.25)
    ]
    assert at[1] - at[0] == pytest.approx(0.25, abs=1e-9)


def burst(n: int = 40) -> Workload:
    """Requests over two seconds, with limits."""
    rng = np.random.default_rng(1)
    work = Workload.plain(np.sort(rng.random(n) * 2), rng.integers(20, 200, n), rng.integers(5, 60, n))
    return replace(work, ttft_s=np.full(n, 0.8), weight=rng.choice([1.0, 3.0], n))


SMALL = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, kv_blocks=200)


@pytest.mark.parametrize("router", list(ROUTERS))
def test_nothing_is_lost(router: str, model: StepTimeModel) -> None:
    """Every request ends once, whatever the router, while engines join and drain."""
    work = burst()
    changes = [Change(at_s=0.5, engine=2, kind="join"), Change(at_s=1.0, engine=0, kind="drain")]
    run = simulate_fleet(work, [engine(SMALL, model)] * 3, router, "edf", changes=changes)
    assert run.outcomes.finished.all()
    late = work.arrival_s > 1.06
    assert not np.any(run.engine_of[late] == 0)
    assert not np.any(run.engine_of[work.arrival_s < 0.45] == 2) or run.router == "dynamo"
    again = simulate_fleet(work, [engine(SMALL, model)] * 3, router, "edf", changes=changes)
    assert np.array_equal(run.outcomes.finish_s, again.outcomes.finish_s)


@pytest.mark.parametrize("router", ["round-robin", "slosched", "dynamo"])
def test_a_failing_engine_loses_only_what_it_was_answering(router: str, model: StepTimeModel) -> None:
    """Answers that had begun are lost; all others are answered elsewhere, once."""
    work = burst()
    run = simulate_fleet(
        work, [engine(SMALL, model)] * 2, router, "fcfs", changes=[Change(at_s=1.0, engine=0, kind="fail")]
    )
    o = run.outcomes
    assert run.lost.any()
    assert np.array_equal(o.finished, ~run.lost)
    assert np.all(o.first_token_s[run.lost] <= 1.0)
    late = o.finished & (o.finish_s > 1.0)
    assert np.all(run.engine_of[late] == 1)


def test_all_engines_down(model: StepTimeModel) -> None:
    """With nobody left, what waits has missed; an engine that joins later takes the rest."""
    work = burst()
    fail = [Change(at_s=1.0, engine=0, kind="fail")]
    run = simulate_fleet(work, [engine(SMALL, model)], "least-requests", "fcfs", changes=fail)
    assert 0 < run.outcomes.finished.sum() < len(work)
    assert np.all(run.outcomes.finish_s[run.outcomes.finished] <= 1.0)
    join = [*fail, Change(at_s=3.0, engine=1, kind="join")]
    run = simulate_fleet(work, [engine(SMALL, model)] * 2, "least-requests", "fcfs", changes=join)
    assert np.array_equal(run.outcomes.finished, ~run.lost)


class Mover(Router):
    """Sends all to engine 0, then moves what waits to engine 1 at its first look."""

    name: ClassVar[str] = "mover"
    holds = True
    tick_s = 0.05

    def route(self, fleet: FleetSnapshot) -> Routing:
        send = [(int(row), 0) for row in fleet.pending]
        if not send:
            send = [(int(row), 1) for row in fleet.engines[0].rows[4:]]
        return Routing(send=tuple(send))


@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_moves(policy: str, model: StepTimeModel) -> None:
    """Requests of which nothing was computed change engines; begun ones stay; all are answered once."""
    work = replace(burst(30), arrival_s=np.zeros(30))
    run = simulate_fleet(work, [engine(SMALL, model)] * 2, Mover(), policy)
    assert run.outcomes.finished.all()
    assert run.moved == int((run.engine_of == 1).sum()) > 15
    assert (
        run.outcomes.finish_s.max()
        < simulate(work, policy, engine=engine(SMALL, model)).outcomes.finish_s.max()
    )


class Holder(Router):
    """Never sends anything."""

    name: ClassVar[str] = "holder"
    holds = True
    tick_s = 0.1

    def route(self, fleet: FleetSnapshot) -> Routing:
        return Routing()


class Outside(PickRouter):
    """Names an engine that is not there."""

    name: ClassVar[str] = "outside"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        return 7


def test_bad_routers(model: StepTimeModel) -> None:
    """A router that holds for ever, or names what is not there, is told so."""
    for router, words in ((Holder(), "must not hold"), (Outside(), "engines that accept")):
        with pytest.raises(InputError, match=words):
            simulate_fleet(burst(), [engine(SMALL, model)] * 2, router, "fcfs")


def test_stale_statistics_are_old(model: StepTimeModel) -> None:
    """No status is younger than the router's clock, and none older than the period, a step and the delay."""
    ages: list[float] = []

    class Watch(PickRouter):
        name: ClassVar[str] = "watch"

        def pick(self, row: int, fleet: FleetSnapshot) -> int:
            for view in fleet.engines:
                if view.status is not None:
                    ages.append(fleet.now_s - view.status.at_s)
            return row % 2

    simulate_fleet(burst(), [engine(SMALL, model)] * 2, Watch(), "fcfs", statistics_s=0.5, delay_s=0.01)
    assert min(ages) >= 0.01 - 1e-9
    assert 0.4 < max(ages) < 0.56


def test_bad_input(model: StepTimeModel) -> None:
    """Each argument outside its domain is named."""
    one = [engine(SMALL, model)]
    gone = [Change(at_s=1.0, engine=1, kind="fail")]
    calls: dict[str, Callable[[], object]] = {
        "engines": lambda: simulate_fleet(burst(), []),
        "delay_s": lambda: simulate_fleet(burst(), one, delay_s=-1.0),
        "statistics_s": lambda: simulate_fleet(burst(), one, statistics_s=float("nan")),
        "kind": lambda: Change(at_s=1.0, engine=0, kind="explode"),
        "at_s": lambda: Change(at_s=-1.0, engine=0, kind="fail"),
        "index below 1": lambda: simulate_fleet(burst(), one, changes=gone),
        "router must be one of": lambda: simulate_fleet(burst(), one, "best"),
        "max_model_len": lambda: simulate_fleet(
            burst(), [*one, engine(replace(SMALL, max_model_len=10), model)]
        ),
    }
    for words, call in calls.items():
        with pytest.raises(InputError, match=words):
            call()


def sessions(n: int = 12, turns: int = 4) -> Workload:
    """Agents whose next call follows the answer before at once, or after a pause."""
    rng = np.random.default_rng(5)
    count = n * turns
    think = np.where(np.arange(count) % turns == 0, -1.0, rng.choice([0.0, 0.002, 0.3], count))
    work = Workload.plain(
        np.repeat(np.sort(rng.random(n)), turns),
        rng.integers(20, 200, count),
        rng.integers(5, 40, count),
        session=np.repeat(np.arange(n), turns),
        think_s=think,
    )
    return replace(work, ttft_s=np.full(count, 0.8))


@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_closed_loops(policy: str, model: StepTimeModel) -> None:
    """Turns follow their answers to the digit on one engine, and to the pause on several."""
    work = sessions()
    alone = simulate(work, policy, engine=engine(SMALL, model))
    fleet = simulate_fleet(work, [engine(SMALL, model)], "round-robin", policy, delay_s=0.0)
    assert np.array_equal(alone.outcomes.finish_s, fleet.outcomes.finish_s)
    run = simulate_fleet(work, [engine(SMALL, model)] * 3, "least-requests", policy)
    assert run.outcomes.finished.all()
    turn = work.previous >= 0
    waited = run.outcomes.arrival_s[turn] - run.outcomes.finish_s[work.previous[turn]]
    assert waited == pytest.approx(work.think_s[turn], abs=1e-9)
    assert np.all(run.outcomes.admitted_s - run.outcomes.arrival_s >= 0.001 - 1e-9)


def test_a_lost_answer_ends_its_session(model: StepTimeModel) -> None:
    """A turn is not sent if the answer before it was cut off; it has missed, and nothing waits for it."""
    work = sessions()
    fail = [Change(at_s=0.7, engine=0, kind="fail")]
    run = simulate_fleet(work, [engine(SMALL, model)] * 2, "round-robin", "edf", changes=fail)
    assert run.lost.any()
    after = np.flatnonzero(work.previous >= 0)
    cut = after[run.lost[work.previous[after]]]
    assert np.all(np.isnan(run.outcomes.arrival_s[cut]))
    sent = np.isfinite(run.outcomes.arrival_s)
    assert np.array_equal(run.outcomes.finished, sent & ~run.lost)


class UntilIt(PickRouter):
    """Sends to engine 0 before a time, to engine 1 from then on."""

    name: ClassVar[str] = "until-it"

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        return 0 if fleet.now_s < self.until_s and 0 in fleet.open else 1


@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_an_engine_that_comes_back_starts_anew(policy: str, model: StepTimeModel) -> None:
    """It goes on with nothing it had: nobody is served twice, and nobody elsewhere is faster for it."""
    fail = [Change(at_s=0.0, engine=0, kind="join"), Change(at_s=1.0, engine=0, kind="fail")]
    back = [*fail, Change(at_s=1.01, engine=0, kind="join")]
    for work in (burst(), sessions()):
        gone, again = (
            simulate_fleet(work, [engine(SMALL, model)] * 2, UntilIt(1.0), policy, changes=changes)
            for changes in (fail, back)
        )
        assert gone.lost.any()
        assert np.array_equal(gone.lost, again.lost)
        assert not np.any(again.lost & again.outcomes.finished)
        assert np.array_equal(gone.outcomes.finish_s, again.outcomes.finish_s, equal_nan=True)
        assert [log.steps for log in gone.logs] == [log.steps for log in again.logs]
        used = simulate_fleet(work, [engine(SMALL, model)] * 2, "round-robin", policy, changes=back)
        assert np.any((used.engine_of == 0) & (used.outcomes.arrival_s > 1.01))
        assert used.logs[0].steps > gone.logs[0].steps


AWKWARD_S = (0.0, 0.1, 0.101, 0.25, 0.5, 0.7, 1.0)
"""Arrivals and changes fall together here, or a routing delay apart."""


@st.composite
def troubled(draw: st.DrawFn) -> tuple[Workload, list[Change], int]:
    """A workload, with turns perhaps, and what happens to one to three engines, at awkward instants."""
    count, engines = draw(st.integers(1, 16)), draw(st.integers(1, 3))
    turns = draw(st.sampled_from([1, 1, 2, 4]))
    count = max(1, count // turns) * turns
    starts = sorted(draw(st.sampled_from(AWKWARD_S)) for _ in range(count // turns))
    first = np.arange(count) % turns == 0
    think = [-1.0 if first[i] else draw(st.sampled_from([0.0, 0.002, 0.1])) for i in range(count)]
    lengths = [(draw(st.integers(1, 150)), draw(st.integers(1, 30))) for _ in range(count)]
    prompts, answers = (np.array(column) for column in zip(*lengths, strict=True))
    arrivals = np.repeat(np.array(starts), turns)
    session = np.repeat(np.arange(count // turns), turns) if turns > 1 else None
    work = Workload.plain(
        arrivals, prompts, answers, session=session, think_s=np.array(think) if turns > 1 else None
    )
    change = st.builds(
        Change,
        at_s=st.sampled_from(AWKWARD_S),
        engine=st.integers(0, engines - 1),
        kind=st.sampled_from(["join", "drain", "fail"]),
    )
    return replace(work, ttft_s=np.full(count, 0.4)), draw(st.lists(change, max_size=6)), engines


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    troubled(),
    st.sampled_from(["round-robin", "least-requests", "dynamo", "slosched:floors=false,refuse=true"]),
    st.sampled_from(["fcfs", "edf"]),
    st.sampled_from([0.0, 0.001, 0.1]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_whatever_happens_to_engines(
    model: StepTimeModel,
    case: tuple[Workload, list[Change], int],
    router: str,
    policy: str,
    delay_s: float,
    statistics_s: float,
) -> None:
    """Each request ends once: answered, cut off, refused, never sent, or left where no engine is.

    An engine that fails for good answers nobody afterwards. Whoever waits at the end had no engine to go to.
    """
    work, changes, engines = case
    run = simulate_fleet(
        work, [engine(SMALL, model)] * engines, router, policy,
        changes=changes, delay_s=delay_s, statistics_s=statistics_s,
    )  # fmt: skip
    o, count = run.outcomes, len(work)
    refused = np.zeros(count, dtype=np.bool_) if o.rejected is None else o.rejected
    ended = o.finished.astype(int) + run.lost + refused
    assert np.all(ended <= 1)
    joins = {change.engine for change in changes if change.kind == "join"}
    takes, alive = [i not in joins for i in range(engines)], [True] * engines
    for change in sorted(changes, key=lambda one: one.at_s):
        takes[change.engine] = change.kind == "join"
        alive[change.engine] = change.kind == "join" or (change.kind == "drain" and alive[change.engine])
        later = [
            c for c in changes if c.engine == change.engine and c.kind == "join" and c.at_s >= change.at_s
        ]
        if change.kind == "fail" and not later:
            there = o.finished & (run.engine_of == change.engine)
            assert np.all(o.finish_s[there] <= change.at_s + 1e-9)
    left = (ended == 0) & np.isfinite(o.arrival_s)
    assert not (left.any() and any(takes))
    assert not any(alive[run.engine_of[i]] for i in np.flatnonzero(left) if run.engine_of[i] >= 0)
    done = o.finished
    assert np.all(o.first_token_s[done] >= o.arrival_s[done] + delay_s - 1e-9)
    turn = np.flatnonzero(work.previous >= 0)
    sent = turn[np.isfinite(o.arrival_s[turn])]
    assert np.all(o.finished[work.previous[sent]])
