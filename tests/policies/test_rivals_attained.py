"""Policies that go by attained service, each against its rule on small queues."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.policies import policy
from slosched.policies.departures import Departures
from slosched.policies.rivals.attained import Atlas, Mlfq, Plas
from slosched.policies.rivals.uniboost import Tail, UniBoost, boost_s
from slosched.simulator import simulate
from slosched.workloads.prefix import shared_prefix

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)
ONE = EngineLimits(max_num_seqs=1)


def request(name: str, prompt: int = 10, output: float = 1000, **fields: object) -> Request:
    return Request(
        request_id=name, prompt_tokens=prompt, forecast=LengthForecast.point(output),
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def snapshot_of(
    waiting: list[Request], running: list[Request], limits: EngineLimits = ONE, now_s: float = 1.0
) -> Snapshot:
    """A queue whose table the test then keeps and changes, as an engine does."""
    snapshot = Snapshot.of(waiting, running, engine=Engine(limits=limits, step_time=MODEL), now_s=now_s)
    snapshot.table.detached = False
    return snapshot


def victims(name: str, snapshot: Snapshot, **parameters: Any) -> list[str]:
    plan = policy(name, **parameters).plan(snapshot)
    plan.check()
    return [snapshot.table.request_ids[row] for row in plan.preempt.tolist()]


def test_las_counts_whole_quanta() -> None:
    """Fewest quanta of output first, by arrival within one; a running request gives way to fewer quanta."""
    waiting = [
        request("three", generated_tokens=399, arrival_s=0.1),
        request("one", generated_tokens=120, arrival_s=0.3),
        request("also one", generated_tokens=199, arrival_s=0.2),
        request("new", arrival_s=0.4),
    ]
    snapshot = snapshot_of(waiting, [request("run", generated_tokens=250)])
    plan = policy("las", quantum_tokens=100).plan(snapshot)
    assert plan.request_ids == ["new", "also one", "one", "three"]
    assert victims("las", snapshot, quantum_tokens=100) == ["run"]
    assert victims("las", snapshot_of(waiting[:1], [request("run", generated_tokens=250)])) == []
    # Equals do not preempt each other: both have no whole quantum of 400.
    assert victims("las", snapshot, quantum_tokens=400) == []


def test_victims_are_the_worst_and_no_more_than_needed() -> None:
    """Two slots are wanted by two newcomers: the two most served leave, and nobody for one who cannot fit."""
    running = [request(f"r{g}", generated_tokens=g) for g in (500, 2000, 900, 1300)]
    limits = EngineLimits(max_num_seqs=4)
    two = snapshot_of([request("a"), request("b")], running, limits)
    assert victims("las", two) == ["r2000", "r1300"]
    # 400 blocks for a prompt of 6400 tokens: even all four do not hold that many.
    tight = EngineLimits(max_num_seqs=8, kv_blocks=320)
    assert victims("las", snapshot_of([request("big", prompt=6400)], running, tight)) == []
    # 63 + 1 blocks are free of 320 - 32 - 126 - 57 - 82 = 23: r2000 alone makes room.
    assert victims("las", snapshot_of([request("fits", prompt=1000)], running, tight)) == ["r2000"]


def test_mlfq_joins_the_level_that_holds_the_prefill() -> None:
    """Quanta .02, .04, .08: a prefill of 11 ms joins the top, one of 60 ms the third, a huge one the last."""
    waiting = [
        request("huge", prompt=9000, arrival_s=0.1),
        request("60 ms", prompt=500, arrival_s=0.2),
        request("11 ms", prompt=10, arrival_s=0.3),
    ]
    snapshot = snapshot_of(waiting, [], EngineLimits())
    mlfq = Mlfq(quantum_s=0.02, levels=4)
    assert mlfq.plan(snapshot).request_ids == ["11 ms", "60 ms", "huge"]
    assert mlfq.key(snapshot, np.array([2, 1, 0])).tolist() == [0, 2, 3]


def test_mlfq_demotes_preempts_and_promotes() -> None:
    """A running request sinks when its quantum is spent, gives way to newcomers, and rises after its wait."""
    both = snapshot_of([request("new", arrival_s=1.0)], [request("old", prompt=10, generated_tokens=1)])
    mlfq = Mlfq(quantum_s=0.02, levels=4, promote_s=5.0)
    old, new = np.array([1]), np.array([0])
    mlfq.plan(replace(both, now_s=0.5, waiting=both.waiting[:0]))
    assert mlfq.key(both, old).tolist() == [0]
    assert len(mlfq.plan(replace(both, now_s=0.519)).preempt) == 0
    plan = mlfq.plan(replace(both, now_s=0.521))
    assert mlfq.key(both, old).tolist() == [1]
    assert plan.preempt.tolist() == [1]
    # Levels 1 and 2 last .04 and .08 s: after .13 s on the engine it is at the bottom, level 3.
    mlfq.plan(replace(both, now_s=0.65))
    assert mlfq.key(both, old).tolist() == [3]
    waiting = replace(both, waiting=np.array([1]), running=new)
    mlfq.plan(replace(waiting, now_s=0.66))
    assert mlfq.key(both, old).tolist() == [3]
    mlfq.plan(replace(waiting, now_s=5.65))
    assert mlfq.key(both, old).tolist() == [3]
    mlfq.plan(replace(waiting, now_s=5.67))
    assert mlfq.key(both, old).tolist() == [0]


def with_programs(snapshot: Snapshot, begins: list[int]) -> Snapshot:
    snapshot.table.program_index[: len(begins)] = begins
    return snapshot


def test_plas_adds_up_the_program() -> None:
    """A new call of a served program goes behind one of a fresh program, live and finished calls counted."""
    waiting = [request("again", arrival_s=0.1), request("fresh", arrival_s=0.2)]
    running = [request("first", generated_tokens=450), request("other", generated_tokens=500)]
    snapshot = with_programs(snapshot_of(waiting, running, EngineLimits(max_num_seqs=2)), [7, 8, 7, -1])
    plas = policy("plas")
    plan = plas.plan(snapshot)
    assert plan.request_ids == ["fresh", "again"]  # 0 and 450 tokens
    # "first" and "other" have got a quantum each, "fresh" none: the first of equals gives way.
    assert plan.preempt.tolist() == [2]
    # "first" leaves with 460 tokens: they go on counting.
    snapshot.table.generated_tokens[2] = 460
    snapshot.table.serial[2] = -1
    later = replace(snapshot, running=snapshot.running[1:])
    assert plas.plan(later).request_ids == ["fresh", "again"]


def test_plas_promotes_programs_that_waited_long() -> None:
    """A program that waited ten times as long as it ran goes to the top in spite of its service."""
    waiting = [request("served", generated_tokens=900, arrival_s=0.0), request("fresh", arrival_s=0.5)]
    snapshot = snapshot_of(waiting, [request("run", generated_tokens=1)])
    plas = policy("plas", promote_ratio=10.0)
    alone = replace(snapshot, waiting=snapshot.waiting[:0], running=np.array([0]))
    plas.plan(replace(alone, now_s=1.0))
    plas.plan(replace(alone, now_s=2.0))  # "served" ran for a second
    assert plas.plan(replace(snapshot, now_s=11.9)).request_ids == ["fresh", "served"]
    assert plas.plan(replace(snapshot, now_s=12.1)).request_ids == ["served", "fresh"]


def test_atlas_takes_the_longest_path() -> None:
    """Calls side by side do not add up; a call starts where the longest finished path of its program ends."""
    running = [request("a", generated_tokens=450), request("b", generated_tokens=900)]
    waiting = [request("c", arrival_s=0.1), request("d", arrival_s=0.2)]
    snapshot = with_programs(snapshot_of(waiting, running, EngineLimits(max_num_seqs=4)), [5, 6, 5, 5])
    atlas, plas = Atlas(), Plas()
    before = replace(snapshot, waiting=snapshot.waiting[:0])
    both: tuple[Atlas | Plas, ...] = (atlas, plas)
    for one in both:
        one.plan(before)
    gone = replace(snapshot, waiting=snapshot.waiting[:0], running=snapshot.running[:0])
    left = replace(snapshot, running=snapshot.running[:0])
    snapshot.table.serial[[2, 3]] = -1
    for one in both:
        one.plan(gone)
        assert one.plan(left).request_ids == ["d", "c"]
    rows = np.array([0, 1])
    assert atlas.key(left, rows).tolist() == [2, 0]  # the longer, 900: two quanta of 400
    assert plas.key(left, rows).tolist() == [3, 0]  # the sum, 1350: three


def test_departures_are_read_from_free_rows_only() -> None:
    """A row that left is reported once, and not at all when a newcomer has it."""
    snapshot = snapshot_of([request("a"), request("b")], [request("c"), request("d")], EngineLimits())
    left = Departures()
    assert left.since(snapshot).tolist() == []
    snapshot.table.serial[1] = -1
    snapshot.table.serial[3] = 99
    later = replace(snapshot, waiting=np.array([0]), running=np.array([2, 3]))
    assert left.since(later).tolist() == [1]
    assert left.since(later).tolist() == []


@pytest.mark.parametrize("gamma", [0.01, 1.0, 10.0, 200.0])
def test_boost_is_the_formula(gamma: float) -> None:
    """b(w) = ln(1 / (1 - exp(-gamma w))) / gamma, falling with w."""
    work = np.array([0.001, 0.02, 0.5, 3.0])
    expected = [np.log(1 / (1 - np.exp(-gamma * w))) / gamma for w in work.tolist()]
    assert boost_s(work, gamma) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert np.all(np.diff(boost_s(work, gamma)) <= 0)


def test_uniboost_goes_from_fcfs_to_shortest_first() -> None:
    """With a large gamma boosts vanish; with a small one they outweigh arrivals: least attained first."""
    waiting = [
        request("long", prompt=3000, generated_tokens=1, arrival_s=0.0),
        request("mid", prompt=700, generated_tokens=1, arrival_s=0.5),
        request("new", prompt=5000, arrival_s=0.9),
    ]
    snapshot = snapshot_of(waiting, [], EngineLimits())
    assert policy("uniboost", gamma=200.0).plan(snapshot).request_ids == ["long", "mid", "new"]
    assert policy("uniboost", gamma=0.01).plan(snapshot).request_ids == ["new", "mid", "long"]


def test_memguard_by_hand() -> None:
    """Service is rounded down to 256 times a power of two, prompt and output alike."""
    rows = [request(str(g), prompt=100, generated_tokens=g) for g in (0, 100, 156, 411, 412, 5000)]
    snapshot = snapshot_of(rows, [], EngineLimits())
    uniboost = UniBoost(gamma=1.0)
    work = 64e-6 * np.array([256, 256, 256, 256, 512, 4096])
    assert uniboost.key(snapshot, np.arange(6)) == pytest.approx(-boost_s(work, 1.0), rel=1e-12)


def test_memguard_evicts_at_boundaries_only() -> None:
    """A running request gives way only at the plan after it has crossed a boundary, if it ranks behind."""
    waiting = [request("new", prompt=5, arrival_s=0.5)]
    snapshot = snapshot_of(waiting, [request("run", prompt=100, generated_tokens=400)])
    uniboost = UniBoost(gamma=0.1)
    t = snapshot.table

    def victims_at(generated: int) -> int:
        t.generated_tokens[1] = generated
        t.computed_tokens[1] = 100 + generated - 1
        return len(uniboost.plan(snapshot).preempt)

    # First seen at 500 tokens, level 0; 512 is the boundary. It is passed with nobody in line.
    assert [victims_at(400), victims_at(411)] == [0, 0]
    assert victims_at(412) == 1
    assert victims_at(413) == 0  # not evicted then, safe until 1024
    assert victims_at(923) == 0
    assert victims_at(924) == 1
    # Moving 1 s of arrival beats no boost at all when gamma is large.
    assert len(UniBoost(gamma=200.0).plan(snapshot).preempt) == 0


def finished(latencies_s: list[float], tail: Tail) -> None:
    """Show a tail estimator requests that come and go with these latencies."""
    for i, latency_s in enumerate(latencies_s):
        snapshot = snapshot_of([request("x", arrival_s=0.0)], [], EngineLimits(), now_s=latency_s)
        tail.observe(snapshot)
        snapshot.table.serial[0] = -1
        tail.observe(replace(snapshot, waiting=snapshot.waiting[:0]))
        assert len(tail._latencies_s) == i + 1


@pytest.mark.parametrize("released", [True, False])
def test_gamma_follows_the_tail(released: bool) -> None:
    """Nothing before 200 requests; then .3 of the way to the target of the slope, or of the released rule."""
    tail = Tail(10.0, (1.0, 200.0), released)
    latencies = [1.0 + 0.02 * i for i in range(200)]
    finished(latencies[:199], tail)
    assert tail.gamma == 10.0
    finished_one = latencies[199]
    p95, p99 = np.percentile(latencies, (95, 99))
    snapshot = snapshot_of([request("x", arrival_s=0.0)], [], EngineLimits(), now_s=finished_one)
    tail.observe(snapshot)
    snapshot.table.serial[0] = -1
    tail.observe(replace(snapshot, waiting=snapshot.waiting[:0]))
    target = 200 / (1 + 4 * (p99 / p95 - 1)) if released else np.log(0.05 / 0.01) / (p99 - p95)
    assert tail.gamma == pytest.approx(10 + 0.3 * (np.clip(target, 1, 200) - 10))


@pytest.mark.parametrize("name", ["las", "mlfq", "plas", "atlas", "uniboost"])
def test_everybody_gets_on_under_preemption(name: str) -> None:
    """Preempting policies finish all sessions on a small engine, with a shared prefix cache."""
    rng = np.random.default_rng(5)
    n = 80
    prompt, output = rng.integers(5, 60, size=n), rng.integers(1, 90, size=n)
    session = np.arange(n) % 7
    work = Workload.plain(
        np.sort(rng.random(n) * 2), prompt, output, prefix=shared_prefix(session, prompt, prompt // 2, 16)
    )
    limits = EngineLimits(max_num_seqs=4, kv_blocks=40, prefix_cache=True)
    small: dict[str, dict[str, Any]] = {
        "las": {"quantum_tokens": 20},
        "plas": {"quantum_tokens": 20},
        "atlas": {"quantum_tokens": 20},
        "uniboost": {"guard_tokens": 8, "gamma": 0.05},
    }
    run = simulate(work, policy(name, **small.get(name, {})), engine=Engine(limits=limits, step_time=MODEL))
    assert run.outcomes.finished.all()
    assert run.outcomes.preemptions.sum() > 5


def test_las_serves_the_short_sooner() -> None:
    """With a few long answers among short ones, all at once, LAS has a lower mean latency than FCFS."""
    rng = np.random.default_rng(3)
    output = np.where(rng.random(60) < 0.2, 300, 20)
    work = Workload.plain(np.zeros(60), np.full(60, 10), output)
    limits = EngineLimits(max_num_seqs=2)
    mean = {
        name: float(simulate(work, one, engine=Engine(limits=limits, step_time=MODEL)).outcomes.e2e_s.mean())
        for name, one in (("las", policy("las", quantum_tokens=30)), ("fcfs", policy("fcfs")))
    }
    assert mean["las"] < 0.8 * mean["fcfs"]


def test_uniboost_forgets_no_service() -> None:
    """A request evicted during its prefill keeps its level, and crosses no boundary a second time."""
    waiting = [request("new", prompt=5, arrival_s=0.5)]
    snapshot = snapshot_of(waiting, [request("run", prompt=3000)])
    uniboost = UniBoost(gamma=0.1)
    t = snapshot.table

    def plan_at(computed: int) -> int:
        t.computed_tokens[1] = computed
        return len(uniboost.plan(snapshot).preempt)

    assert [plan_at(0), plan_at(400), plan_at(600)] == [0, 0, 1]
    t.computed_tokens[1] = 0
    uniboost.plan(replace(snapshot, waiting=np.array([1]), running=np.array([0])))
    assert uniboost.key(snapshot, np.array([1])) == pytest.approx(-boost_s(np.array([512 * 64e-6]), 0.1))
    assert [plan_at(0), plan_at(600), plan_at(1000), plan_at(1100)] == [0, 0, 0, 1]


def test_preemption_can_be_turned_off() -> None:
    """Without `preempt` the queue is sorted and the engine's running requests are left alone."""
    snapshot = snapshot_of([request("new")], [request("run", generated_tokens=5000)])
    for name in ("las", "plas", "atlas"):
        assert victims(name, snapshot) == ["run"]
        assert victims(name, snapshot, preempt=False) == []
        assert policy(name, preempt=False).plan(snapshot).running_order is None
