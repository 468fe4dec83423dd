"""What every run of the simulator must keep, whatever the policy."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine, EngineLimits, preset
from slosched.core.errors import InputError
from slosched.core.metrics import Metrics
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import PrefixBlocks, Workload
from slosched.planner.plan import Plan
from slosched.policies import policy as policy_by_name
from slosched.policies.base import KeyPolicy, Policy
from slosched.simulator import StepRecord, simulate
from slosched.simulator import engine as engine_module
from slosched.simulator import kernel as k
from slosched.workloads import generate, mix

RandomCase = Callable[[int], tuple[Workload, EngineLimits]]
GOLDEN = Path(__file__).with_name("golden.json")


class ConstantKey(KeyPolicy):
    """FCFS that asks for a plan at every step."""

    name: ClassVar[str] = "constant"

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """All equal."""
        return np.zeros(len(rows))


class RandomPreemption(KeyPolicy):
    """Shortest prompt first; one step in five preempts a random running request."""

    name: ClassVar[str] = "random-preemption"
    preempts: bool = True

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Prompt length."""
        return snapshot.table.prompt_tokens[rows].astype(np.float64)

    def plan(self, snapshot: Snapshot) -> Plan:
        """Sort; perhaps preempt."""
        plan = super().plan(snapshot)
        if self.rng.random() < 0.8 or len(snapshot.running) == 0:
            return plan
        return replace(plan, preempt=self.rng.choice(snapshot.running, 1))


class Returns(Policy):
    """A policy whose plans differ from a plain one by what it was given."""

    name: ClassVar[str] = "returns"
    preempts: bool = True

    def __init__(self, **changes: object) -> None:
        self.changes = changes

    def plan(self, snapshot: Snapshot) -> Plan:
        """All waiting requests by arrival, changed."""
        plan = Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting)
        return replace(plan, **self.changes)  # type: ignore[arg-type]


def rows(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


def plain(*requests: tuple[float, int, int], prefix: PrefixBlocks | None = None) -> Workload:
    """Requests as (arrival, prompt, output)."""
    columns = list(zip(*requests, strict=True)) or [(), (), ()]
    arrival, prompt, output = (np.array(column) for column in columns)
    return Workload.plain(arrival.astype(float), prompt.astype(int), output.astype(int), prefix=prefix)


def times(
    workload: Workload, policy: str | Policy, limits: EngineLimits, model: StepTimeModel, recorded: bool
) -> tuple[list[float], ...]:
    o = simulate(
        workload, policy, engine=Engine(limits=limits, step_time=model), record=[] if recorded else None
    ).outcomes
    return tuple(
        column.tolist()
        for column in (
            o.admitted_s, o.first_token_s, o.finish_s, o.preemptions, o.recomputed_tokens, o.cached_tokens,
        )
    )  # fmt: skip


@pytest.mark.parametrize("policy", ["fcfs", "priority", "edf", "srpt", "random"])
def test_everybody_is_served_once(policy: str, random_case: RandomCase, model: StepTimeModel) -> None:
    """Each request is computed exactly once beside recomputation, in order of time, within the limits."""
    for seed in range(15):
        work, limits = random_case(seed)
        logs: list[StepRecord] = []
        chosen = RandomPreemption(seed) if policy == "random" else policy_by_name(policy)
        run = simulate(work, chosen, engine=Engine(limits=limits, step_time=model), record=logs)
        o, log = run.outcomes, logs[0]
        assert o.finished.all(), seed
        assert np.all(o.admitted_s >= work.arrival_s - 1e-9), seed
        assert np.all((o.admitted_s < o.first_token_s) & (o.first_token_s <= o.finish_s)), seed
        # The last output token is never computed; cached prompt tokens are not either.
        needed = work.prompt_tokens + work.output_tokens - 1
        computed = np.bincount(log.row, weights=log.tokens, minlength=len(work)).astype(int)
        if limits.prefix_cache:
            assert np.all(computed <= needed + o.recomputed_tokens), seed
        else:
            assert np.array_equal(computed, needed + o.recomputed_tokens), seed
        assert np.all((o.recomputed_tokens == 0) | (o.preemptions > 0)), seed
        per_step = np.bincount(log.step, weights=log.tokens)
        assert per_step.max() <= limits.max_num_batched_tokens, seed
        assert np.bincount(log.step).max() <= limits.max_num_seqs, seed
        assert len(np.unique(log.step * len(work) + log.row)) == len(log.row), seed
        assert log.tokens.min() >= 1, seed
        assert np.all(np.diff(run.log.depth_time_s) > 0), seed
        assert run.log.depth_running.max() <= limits.max_num_seqs, seed


@pytest.mark.parametrize("policy", ["fcfs", "edf", "slosched"])
def test_memory_comes_back(policy: str, random_case: RandomCase, model: StepTimeModel) -> None:
    """After a run all blocks are free, nobody holds one, and the free list has each block once."""
    for seed in range(12):
        work, limits = random_case(seed)
        columns = engine_module.columns_of(work)
        engine = engine_module.SimulatedEngine(
            work, columns, policy_by_name(policy), Engine(limits=limits, step_time=model)
        )
        engine.deliver(np.arange(len(work)), columns.requests.arrival_ps)
        engine.advance()
        assert engine.state[k.FREE] == limits.kv_blocks
        assert engine.state[k.FINISHED] == len(work)
        assert not engine.requests.blocks.any()
        if limits.prefix_cache:
            assert not engine.pool.users.any()
            assert engine.pool.free_slots[-1] == limits.max_num_seqs
            block, seen = int(engine.pool.after[0]), []
            while block != 0:
                seen.append(block)
                block = int(engine.pool.after[block])
            assert sorted(seen) == list(range(1, limits.kv_blocks + 1))


@pytest.mark.parametrize(
    "policy", ["fcfs", "priority", "edf", "least-laxity+d", "sjf", "srpt", "ltr", "trail", "slosched"]
)
def test_decode_runs_in_closed_form(policy: str, random_case: RandomCase, model: StepTimeModel) -> None:
    """Runs of decode steps taken at once end at the same picosecond as step by step."""
    for seed in range(12):
        work, limits = random_case(seed)
        once = times(work, policy, limits, model, recorded=False)
        assert once == times(work, policy, limits, model, recorded=True), seed


def test_static_equals_dynamic(random_case: RandomCase, model: StepTimeModel) -> None:
    """FCFS sorted once by the engine equals FCFS planned at every step."""
    for seed in range(40):
        work, limits = random_case(seed)
        static = times(work, "fcfs", limits, model, recorded=False)
        assert static == times(work, ConstantKey(), limits, model, recorded=False), seed


def test_preemption_changes_no_tokens(random_case: RandomCase, model: StepTimeModel) -> None:
    """Random preemption delays requests and recomputes tokens, yet everybody gets the whole answer."""
    preempted = 0
    for seed in range(20):
        work, limits = random_case(seed)
        run = simulate(work, RandomPreemption(seed), engine=Engine(limits=limits, step_time=model))
        preempted += int(run.outcomes.preemptions.sum())
        assert run.outcomes.finished.all()
    assert preempted > 30


@pytest.mark.parametrize("name", ["agentic", "mooncake"])
@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_shared_prefixes(name: str, policy: str) -> None:
    """Real prefix trees under memory pressure: everybody finishes, and the cache is hit."""
    limits = EngineLimits(kv_blocks=6000, prefix_cache=True)
    work = mix(name, rate_per_s=0.3, requests=40, seed=1, limits=limits)
    o = simulate(work, policy, engine=Engine(limits=limits)).outcomes
    assert o.finished.all()
    assert np.isfinite(o.ttft_s).all()
    assert o.cached_tokens.sum() > 0
    assert np.all(o.cached_tokens < work.prompt_tokens)


def test_prefix_cache_saves_time() -> None:
    """A prompt seen before is computed but for its last block, and its first token comes sooner."""
    prefix = PrefixBlocks(offsets=rows(0, 8, 16), ids=np.tile(np.arange(8), 2), block_tokens=16)
    work = plain((0.0, 128, 4), (5.0, 128, 4), prefix=prefix)
    with_cache = simulate(work, engine=Engine(limits=EngineLimits(prefix_cache=True))).outcomes
    without = simulate(work, engine=Engine(limits=EngineLimits(prefix_cache=False))).outcomes
    assert with_cache.cached_tokens.tolist() == [0, 112]
    assert without.cached_tokens.tolist() == [0, 0]
    assert with_cache.ttft_s[1] < without.ttft_s[1]
    assert with_cache.ttft_s[0] == without.ttft_s[0]


def test_prefix_blocks_must_divide() -> None:
    """Engine blocks that do not divide the trace's blocks are refused."""
    prefix = PrefixBlocks(offsets=rows(0, 1), ids=rows(3), block_tokens=24)
    work = plain((0.0, 24, 1), prefix=prefix)
    with pytest.raises(InputError, match="block_tokens must divide the 24 tokens"):
        simulate(work, engine=Engine(limits=EngineLimits(prefix_cache=True)))


def test_empty_and_single() -> None:
    """No requests take no steps; one request takes its chunks and its tokens."""
    nothing = simulate(plain())
    assert (nothing.log.steps, len(nothing.outcomes.finish_s)) == (0, 0)
    limits = EngineLimits(max_num_batched_tokens=100)
    model = StepTimeModel(base_s=0.01)
    run = simulate(plain((2.0, 250, 4)), engine=Engine(limits=limits, step_time=model))
    assert run.log.steps == 3 + 3
    assert run.outcomes.ttft_s[0] == pytest.approx(0.03, abs=1e-12)
    assert run.outcomes.finish_s[0] == pytest.approx(2.06, abs=1e-12)
    assert run.outcomes.tpot_s[0] == pytest.approx(0.01, abs=1e-12)
    assert simulate(plain((0.0, 1, 1))).log.steps == 1


@pytest.mark.parametrize(
    ("request_", "limits", "message"),
    [
        ((0.0, 90, 11), EngineLimits(max_model_len=100), r"at most 100 \(max_model_len\), got 101"),
        ((0.0, 90, 11), EngineLimits(kv_blocks=6), r"at most 96 \(the KV cache\), got 101 in request 1 of"),
        (
            (0.0, 90, 11),
            EngineLimits(max_num_batched_tokens=100, chunked_prefill=False),
            r"at most 100 \(max_num_batched_tokens\) without chunked prefill, got 101",
        ),
    ],
)
def test_oversize_is_refused(request_: tuple[float, int, int], limits: EngineLimits, message: str) -> None:
    """A request that can never fit is named with the bound it breaks."""
    with pytest.raises(InputError, match=message):
        simulate(plain((0.0, 5, 5), request_), engine=Engine(limits=limits))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": rows(2)}, "order must be distinct rows"),
        ({"order": rows(0, 99)}, "order must be distinct rows"),
        ({"order": rows(-1)}, "order must be distinct rows"),
        ({"order": rows(10**9)}, "order must be distinct rows"),
        ({"hold": rows(0, 0)}, "hold must be distinct rows"),
        ({"hold": rows(-3)}, "hold must be distinct rows"),
        ({"hold": rows(2)}, "hold must be distinct rows"),
        ({"preempt": rows(0)}, "preempt must be distinct rows"),
        ({"preempt": rows(-1)}, "preempt must be distinct rows"),
        ({"running_order": rows(0)}, "running_order must be all running rows"),
        ({"reject": rows(2)}, "reject must be distinct rows"),
        ({"reject": rows(0, 0)}, "reject must be distinct rows"),
        ({"reject": rows(-1)}, "reject must be distinct rows"),
        ({"skip": rows(0)}, "skip must be distinct rows"),
        ({"skip": rows(10**9)}, "skip must be distinct rows"),
    ],
)
def test_bad_plans_are_refused(changes: dict[str, Ints], message: str) -> None:
    """A plan with rows that are not where it says ends the run with a message that names the field."""
    work = plain((0.0, 10, 5), (0.0, 10, 5), (9.0, 10, 5))
    with pytest.raises(InputError, match=message):
        simulate(work, Returns(**changes))


@pytest.mark.parametrize("running_order", [rows(0, 0), rows(0, 2), rows(1, -2), rows(0)])
def test_bad_running_order_is_refused(running_order: Ints) -> None:
    """A running order that loses or invents a request is refused."""

    class Reorders(Returns):
        def plan(self, snapshot: Snapshot) -> Plan:
            plan = Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting)
            return replace(plan, running_order=running_order) if len(snapshot.running) == 2 else plan

    limits = EngineLimits(max_num_seqs=2)
    with pytest.raises(InputError, match="running_order must be all running rows"):
        simulate(plain((0.0, 10, 5), (0.0, 10, 5), (0.0, 10, 5)), Reorders(), engine=Engine(limits=limits))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("mine", "policy returns: plan: order must be distinct rows of its queue"),
        ("slosched.policies.ours", "plan of policy 'returns' must use rows of its snapshot"),
    ],
)
def test_stale_snapshot_is_refused(module: str, words: str) -> None:
    """A plan made on another snapshot is refused even if it is consistent with that one."""
    stale: list[Plan] = []

    class Stale(Returns):
        def plan(self, snapshot: Snapshot) -> Plan:
            stale.append(super().plan(snapshot))
            return stale[0]

    Stale.__module__ = module  # others' policies are watched, so that the fault is told earlier
    work = plain((0.0, 10, 5), (0.1, 10, 5), (0.1, 10, 5))
    with pytest.raises(InputError, match=words):
        simulate(work, Stale())


def test_holding_for_a_while_is_carried_out() -> None:
    """A held request waits while the engine idles, and goes when it is let go."""

    class Holds(Returns):
        def plan(self, snapshot: Snapshot) -> Plan:
            plan = super().plan(snapshot)
            return replace(plan, hold=snapshot.waiting) if snapshot.step < 10 else plan

    run = simulate(plain((0.0, 10, 1)), Holds(), engine=Engine(step_time=StepTimeModel(base_s=0.01)))
    assert run.outcomes.admitted_s[0] == pytest.approx(0.1, abs=1e-9)
    assert run.log.busy_s == pytest.approx(0.01, abs=1e-12)


def test_holding_for_ever_is_an_error() -> None:
    """A policy that never lets anybody in ends with an error instead of an endless run."""

    class Holds(Returns):
        def plan(self, snapshot: Snapshot) -> Plan:
            return replace(super().plan(snapshot), hold=snapshot.waiting)

    with pytest.raises(InputError, match="policy 'returns' must not hold all requests for ever"):
        simulate(plain((0.0, 10, 1)), Holds())


def test_refused_requests_miss_and_are_counted() -> None:
    """A refused request leaves at once, never finishes, and is counted; the engine goes on."""

    class Refuses(Returns):
        rejects: bool = True

        def plan(self, snapshot: Snapshot) -> Plan:
            long = snapshot.waiting[snapshot.table.prompt_tokens[snapshot.waiting] > 50]
            return replace(super().plan(snapshot), reject=long, hold=long)

    work = plain((0.0, 90, 3), (0.0, 10, 3), (5.0, 60, 3), (9.0, 20, 3))
    run = simulate(work, Refuses(), engine=Engine(step_time=StepTimeModel(base_s=0.01)))
    o, m = run.outcomes, Metrics.of(run)
    assert o.rejected is not None
    assert o.rejected.tolist() == [True, False, True, False]
    assert o.finished.tolist() == o.met.tolist() == [False, True, False, True]
    assert np.isnan(o.first_token_s[o.rejected]).all()
    assert (m.requests, m.finished, m.rejected) == (4, 2, 2)
    assert m.max_wait_s == pytest.approx(0.0, abs=1e-9)
    assert o.finish_s[3] == pytest.approx(9.03, abs=1e-9)  # refusing took no time
    assert run.log.steps == 6


def test_skipped_requests_keep_their_memory() -> None:
    """A running request that is passed over gets no token and computes nothing again."""

    class Skips(Returns):
        skips: ClassVar[bool] = True

        def plan(self, snapshot: Snapshot) -> Plan:
            skip = snapshot.running[:1] if 2 <= snapshot.step < 7 else rows()
            return replace(super().plan(snapshot), skip=skip)

    work = plain((0.0, 10, 4), (0.0, 10, 4))
    o = simulate(work, Skips(), engine=Engine(step_time=StepTimeModel(base_s=0.01))).outcomes
    # The second is done in 4 steps; then nothing else could run, and the first goes on in spite of the plan.
    assert o.finish_s == pytest.approx([0.06, 0.04], abs=1e-9)
    assert o.recomputed_tokens.tolist() == [0, 0]


def test_decodes_can_follow_new_prefills() -> None:
    """With a short budget, skipping decodes leaves its tokens to a newcomer."""

    class PrefillFirst(Returns):
        skips: ClassVar[bool] = True

        def plan(self, snapshot: Snapshot) -> Plan:
            t, running = snapshot.table, snapshot.running
            decodes = running[t.computed_tokens[running] >= t.prompt_tokens[running]]
            return replace(super().plan(snapshot), skip=decodes if len(snapshot.waiting) else rows())

    logs: list[StepRecord] = []
    limits = EngineLimits(max_num_batched_tokens=10)
    work = plain((0.0, 10, 3), (0.015, 10, 2))
    simulate(
        work, PrefillFirst(), engine=Engine(limits=limits, step_time=StepTimeModel(base_s=0.01)), record=logs
    )
    steps = list(zip(logs[0].step.tolist(), logs[0].row.tolist(), logs[0].tokens.tolist(), strict=True))
    assert steps == [(0, 0, 10), (1, 0, 1), (2, 1, 10), (3, 0, 1), (3, 1, 1)]


def test_unknown_policy() -> None:
    """An unknown policy name is answered with the known ones."""
    with pytest.raises(InputError, match=r"policy must be one of fcfs, priority, .*, got 'nope'"):
        simulate(plain((0.0, 1, 1)), "nope")


def digest(workload: Workload, limits: EngineLimits, policy: str) -> str:
    """Fingerprint of all times of a run."""
    model = preset("h100-llama-3.1-8b").step_time
    text = json.dumps(times(workload, policy, limits, model, recorded=False))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def golden_run(policy: str) -> str:
    """Fingerprint of a small overloaded run."""
    work = generate("chat", rate_per_s=40.0, duration_s=4.0, seed=3)
    return digest(work, EngineLimits(max_num_seqs=16, kv_blocks=1200), policy)


@pytest.mark.parametrize("policy", ["fcfs", "priority", "sjf", "edf", "srpt"])
def test_golden_trace(policy: str) -> None:
    """A fixed workload gives the times it has always given; delete the file's entry if that is to change."""
    known = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden_run(policy) == known[policy]


def test_same_result_in_another_process() -> None:
    """Times do not depend on the process, the hash seed or the order of imports."""
    code = (
        "from slosched.simulator import simulate; from slosched.workloads import generate;"
        "from slosched import Engine, EngineLimits;"
        "w = generate('chat', rate_per_s=40.0, duration_s=2.0, seed=5);"
        "e = Engine(limits=EngineLimits(max_num_seqs=12));"
        "print(simulate(w, 'slosched', engine=e).outcomes.finish_s.tolist())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
    ).stdout  # fmt: skip
    work = generate("chat", rate_per_s=40.0, duration_s=2.0, seed=5)
    here = simulate(
        work, "slosched", engine=Engine(limits=EngineLimits(max_num_seqs=12))
    ).outcomes.finish_s.tolist()
    assert there.strip() == str(here)
    assert len(here) > 40


def test_progress_is_reported() -> None:
    """A progress function hears of finished requests, never more than there are."""
    seen: list[tuple[int, int]] = []
    work = generate("chat", rate_per_s=30.0, duration_s=2.0, seed=1)
    limits = EngineLimits(max_num_seqs=4)
    simulate(
        work, "trail", engine=Engine(limits=limits), progress=lambda done, total: seen.append((done, total))
    )
    assert seen
    assert all(0 <= done <= total == len(work) for done, total in seen)


def test_plans_are_timed_on_demand() -> None:
    """Each plan is timed if asked for, none otherwise."""
    work = plain((0.0, 10, 5), (0.0, 10, 5))
    limits = EngineLimits(max_num_seqs=1)
    run = simulate(work, "edf", engine=Engine(limits=limits), measure_plans=True)
    assert len(run.log.plan_s) == run.log.plans > 0
    assert len(simulate(work, "edf", engine=Engine(limits=limits)).log.plan_s) == 0
