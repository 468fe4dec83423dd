"""Every policy in vLLM's real scheduler: all requests end, nothing is left, and the simulator agrees."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest

from slosched.core.engine import LOOPS, Engine, EngineLimits
from slosched.core.outcome import Run
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import PrefixBlocks, Workload
from slosched.planner.plan import Plan
from slosched.policies import POLICIES, policy
from slosched.policies.base import Policy
from slosched.simulator import simulate
from slosched.testing.chaos import chaos_workload

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

MODEL = StepTimeModel(base_s=0.004, prefill_token_s=3e-5, sequence_s=4e-5, kv_token_s=3e-8)
SHORT_OF_MEMORY, SHORT_OF_SLOTS = (
    EngineLimits(max_num_seqs=seqs, max_num_batched_tokens=64, kv_blocks=blocks, max_model_len=512)
    for seqs, blocks in ((6, 40), (4, 200))
)

ONCE_STALE = ("hrrn-sglang",)
"""Policies that count tokens of prefill: vLLM forgets how far a preempted prompt had come, and between plans
slosched does not look, so that what such a request got is known only approximately."""


def installed() -> str:
    """The loop of the vLLM that is installed."""
    from slosched.testing.harness import installed_loop

    return installed_loop()


@cache
def overloaded(seed: int, n: int = 40) -> Workload:
    """Far more requests than the engine can serve in time, with all kinds of limits."""
    rng = np.random.default_rng(seed)
    work = Workload.plain(
        np.sort(rng.random(n) * 0.5), rng.integers(1, 200, size=n), rng.integers(1, 60, size=n)
    )
    return replace(
        work,
        ttft_s=np.where(rng.random(n) < 0.5, 0.001 + rng.random(n), np.inf),
        tpot_s=np.where(rng.random(n) < 0.5, 0.004 + 0.01 * rng.random(n), np.inf),
        e2e_s=np.where(rng.random(n) < 0.5, 0.01 + 3 * rng.random(n), np.inf),
        weight=rng.choice([0.0, 1.0, 2.0], size=n),
        priority=rng.integers(0, 3, size=n),
        atoms=np.sort(np.maximum(1.0, work.atoms * rng.lognormal(0, 1, work.atoms.shape)), axis=1),
    )


def virtual(
    chosen: Policy, limits: EngineLimits, seed: int, *, depth: int = 1, asynchronous: bool = False
) -> Run:
    """A run in which every token is checked, and afterwards that no request, row or block is left."""
    from slosched.testing.chaos import ChaosEngine

    engine = ChaosEngine(
        overloaded(seed), Engine(limits=limits, step_time=MODEL), depth=depth, asynchronous=asynchronous
    )
    engine.use_policy(chosen)
    engine.disturb(0, abort=0.0, reset=0.0)
    engine.run()
    engine.scheduler.schedule()  # vLLM's own clean-up
    engine.check_empty()
    stats = engine.scheduler.slosched.stats
    assert stats.fallbacks == {}
    assert not stats.breaker_open
    run = engine.result(0.0)
    refused = run.outcomes.rejected
    assert refused is not None
    assert (run.outcomes.finished ^ refused).all()
    assert chosen.rejects or not refused.any()
    return run


def agree(real: Run, model: Run) -> bool:
    """Whether all times, refusals and preemptions are equal."""
    names = ("admitted_s", "first_token_s", "finish_s", "preemptions", "rejected")
    return all(
        np.array_equal(
            np.asarray(getattr(real.outcomes, name), dtype=np.float64),
            np.asarray(getattr(model.outcomes, name), dtype=np.float64),
            equal_nan=True,
        )
        for name in names
    )


@pytest.mark.parametrize("limits", [SHORT_OF_MEMORY, SHORT_OF_SLOTS], ids=["memory", "slots"])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_does_in_vllm_what_it_does_in_the_simulator(name: str, limits: EngineLimits) -> None:
    """Plans are asked for at the same instants and carried out alike, to the picosecond."""
    short_of_memory = limits is SHORT_OF_MEMORY
    limits = replace(limits, loop=installed())
    for seed in (0, 1):
        real = virtual(policy(name), limits, seed)
        model = simulate(overloaded(seed), name, engine=Engine(limits=limits, step_time=MODEL))
        if name in ONCE_STALE and short_of_memory:
            assert real.outcomes.finish_s.max() == pytest.approx(model.outcomes.finish_s.max(), rel=0.05)
        else:
            assert agree(real, model)


@pytest.mark.parametrize("limits", [SHORT_OF_MEMORY, SHORT_OF_SLOTS], ids=["memory", "slots"])
@pytest.mark.parametrize("name", [name for name in POLICIES if name not in ONCE_STALE])
def test_every_policy_lives_with_pauses_of_prompts_as_in_the_simulator(
    name: str, limits: EngineLimits
) -> None:
    """With `prefill_schedule_interval`, which vLLM has without data parallel since 0.33."""
    if (loop := installed()) == LOOPS[0]:
        pytest.skip("the installed vLLM has the interval with data parallel only: 0.33 is wanted")
    paused = replace(limits, loop=loop, prefill_schedule_interval=4)
    real = virtual(policy(name), paused, 0)
    assert agree(real, simulate(overloaded(0), name, engine=Engine(limits=paused, step_time=MODEL)))


@pytest.mark.parametrize(("asynchronous", "depth"), [(False, 2), (True, 1), (True, 2)])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_serves_everybody(name: str, asynchronous: bool, depth: int) -> None:
    """With steps in flight, and with the asynchronous scheduler."""
    virtual(policy(name), SHORT_OF_MEMORY, 2, depth=depth, asynchronous=asynchronous)


class OneField(Policy):
    """Arrival order, and one field of the plan used at random."""

    name: ClassVar[str] = "one-field"
    preempts: bool = True
    paces: ClassVar[bool] = True
    rejects: bool = True
    skips: ClassVar[bool] = True

    def __init__(self, field: str) -> None:
        self.field, self.rng = field, np.random.default_rng(3)

    def plan(self, snapshot: Snapshot) -> Plan:
        rng, waiting, running = self.rng, snapshot.waiting, snapshot.running
        plan = Plan(snapshot=snapshot, policy=self.name, order=waiting)
        if self.field == "prefill_tokens":
            return replace(plan, prefill_tokens=int(rng.integers(1, 64)))
        if self.field == "running_order":
            return replace(plan, running_order=rng.permutation(running))
        if self.field == "order":
            return replace(plan, order=rng.permutation(waiting))
        rows = waiting if self.field in ("hold", "reject") else running
        share = 0.3 if self.field in ("hold", "skip") else 0.02
        if self.field == "hold" and len(running) == 0:  # the adapter never lets everybody wait for ever
            return plan
        changes: dict[str, Any] = {self.field: rows[rng.random(len(rows)) < share]}
        return replace(plan, **changes)


@pytest.mark.parametrize("limits", [SHORT_OF_MEMORY, SHORT_OF_SLOTS], ids=["memory", "slots"])
@pytest.mark.parametrize(
    "field", ["order", "hold", "preempt", "running_order", "prefill_tokens", "reject", "skip"]
)
def test_each_field_of_a_plan_is_carried_out(field: str, limits: EngineLimits) -> None:
    """As the simulator does it; and it makes a difference."""
    plain = simulate(overloaded(4), "fcfs", engine=Engine(limits=limits, step_time=MODEL))
    real = virtual(OneField(field), limits, 4)
    model = simulate(overloaded(4), OneField(field), engine=Engine(limits=limits, step_time=MODEL))
    assert agree(real, model)
    assert not agree(real, plain)


class Watched(Policy):
    """Another policy, and what it is shown of those who run, by arrival."""

    name: ClassVar[str] = "watched"
    paces: ClassVar[bool] = True

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.seen: dict[float, list[list[float]]] = {}

    def plan(self, snapshot: Snapshot) -> Plan:
        """Plan as the other does."""
        t = snapshot.table
        rows = snapshot.running[np.argsort(t.arrival_s[snapshot.running])]
        columns = (t.arrival_s, t.class_index, t.generated_tokens, t.computed_tokens, t.cached_tokens,
                   t.served_tokens, t.preemptions)  # fmt: skip
        self.seen[snapshot.now_s] = [column[rows].tolist() for column in columns]
        return self.inner.plan(snapshot)


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_a_policy_is_shown_in_vllm_what_it_is_shown_in_the_simulator(prefix_cache: bool) -> None:
    """Classes, tokens, cached prefixes and preemptions, step by step."""
    from slosched.testing.virtual_clock import simulate_vllm

    def inner() -> Policy:
        """Ours may ask what waiting prompts find in the cache, which vLLM is asked for only in part."""
        return OneField("preempt") if prefix_cache else policy("slosched:preempt=true")

    work = chaos_workload(60, 5, prefix_cache=prefix_cache)
    work = replace(
        work, ttft_s=np.full(60, 20.0), classes=("later", "first"), class_index=1 - np.arange(60) % 2
    )
    limits = EngineLimits(max_num_seqs=4, max_num_batched_tokens=256, kv_blocks=200, max_model_len=512,
                          prefix_cache=prefix_cache, loop=installed())  # fmt: skip
    engine = Engine(limits=limits, step_time=MODEL)
    real, model = Watched(inner()), Watched(inner())
    there, here = simulate_vllm(work, real, engine=engine), simulate(work, model, engine=engine)
    assert here.outcomes.preemptions.sum() > 5
    assert prefix_cache == any(max(columns[4], default=0) > 0 for columns in model.seen.values())
    assert real.seen == model.seen
    assert agree(there, here)


def test_the_last_block_of_a_trace_is_shared_as_far_as_the_prompt_goes() -> None:
    """A trace's prompt block that is filled only in part is cached by whole blocks of the engine."""
    from slosched.testing.virtual_clock import simulate_vllm

    n, limits = 12, replace(SHORT_OF_SLOTS, prefix_cache=True)
    prefix = PrefixBlocks(
        offsets=np.arange(0, 2 * n + 1, 2), ids=np.tile([5, 6, 5, 7], n // 2), block_tokens=64
    )
    work = Workload.plain(
        0.05 * np.arange(n, dtype=np.float64),
        np.tile([100, 120], n // 2),
        np.full(n, 5),
        prefix=prefix,
        name="shared",
    )
    real = simulate_vllm(work, "fcfs", engine=Engine(limits=limits, step_time=MODEL))
    model = simulate(work, "fcfs", engine=Engine(limits=limits, step_time=MODEL))
    assert agree(real, model)
    assert real.outcomes.cached_tokens.tolist() == model.outcomes.cached_tokens.tolist()
    assert real.outcomes.cached_tokens[2:].tolist() == [96, 112] * (n // 2 - 1)
