"""TRAIL's memory-aware variant: victims that make room, what is lost counted, old requests kept."""

from __future__ import annotations

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.policies.rivals.trail import Trail
from slosched.simulator import simulate

LIMITS = EngineLimits(max_num_seqs=8, kv_blocks=40, block_tokens=16)
STEP = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-4, kv_token_s=0.0)


def request(name: str, prompt: int, length: int, generated: int = 0) -> Request:
    return Request(
        request_id=name, prompt_tokens=prompt, forecast=LengthForecast.point(length),
        generated_tokens=generated,
    )  # fmt: skip


def victims(policy: Trail, waiting: Request, *running: Request) -> list[str]:
    snapshot = Snapshot.of([waiting], running, engine=Engine(limits=LIMITS, step_time=STEP))
    plan = policy.plan(snapshot)
    return [running[row - 1].request_id for row in plan.preempt.tolist()]


def test_a_victim_makes_room_for_the_head() -> None:
    """The longest remaining holds two blocks, of no use to a head that needs twelve."""
    head = request("head", 190, 5)
    running = request("small", 30, 900, 1), request("large", 470, 300, 1)
    assert victims(Trail(), head, *running) == ["small"]
    assert victims(Trail(memory=True), head, *running) == ["large"]
    assert victims(Trail(memory=True), head, running[0], request("other", 300, 300, 290)) == []


def test_what_must_be_computed_again_counts() -> None:
    """500 tokens lost cost some five steps: worth it for 20 more to come than the head has, not for 3."""
    running = request("long", 500, 60, 20)
    assert victims(Trail(memory=True), request("head", 300, 20), running) == ["long"]
    assert victims(Trail(memory=True), request("head", 300, 37), running) == []
    assert victims(Trail(), request("head", 300, 37), running) == ["long"]


def test_memory_is_taken_from_the_young_and_long_first() -> None:
    """Running order: past the cut-off first, then by what is left."""
    running = [request("young", 10, 100, 5), request("old", 10, 100, 95), request("younger", 10, 40, 1)]
    snapshot = Snapshot.of([request("head", 10, 5)], running, engine=Engine(limits=LIMITS, step_time=STEP))
    order = Trail(memory=True).plan(snapshot).running_order
    assert order is not None
    assert [running[row - 1].request_id for row in order.tolist()] == ["old", "younger", "young"]
    assert Trail().plan(snapshot).running_order is None


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_less_is_computed_twice_where_memory_is_short(share: float) -> None:
    """Five seeds of overload on a small cache: fewer tokens recomputed, and the mean latency no worse."""
    lost, latency = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        n = 150
        output = np.minimum(300, rng.geometric(1 / 60, n))
        work = Workload.plain(np.sort(rng.uniform(0.0, 3.0, n)), rng.integers(20, 300, n), output)
        runs = [
            simulate(
                work,
                Trail(preemptible_share=share, memory=memory),
                engine=Engine(limits=LIMITS, step_time=STEP),
            )
            for memory in (False, True)
        ]
        assert all(run.outcomes.finished.all() for run in runs)
        lost.append([run.outcomes.recomputed_tokens.sum() for run in runs])
        latency.append([run.outcomes.e2e_s.mean() for run in runs])
    plain, aware = np.median(lost, axis=0)
    assert aware < plain, (plain, aware)
    plain_s, aware_s = np.median(latency, axis=0)
    assert aware_s < 1.02 * plain_s, (plain_s, aware_s)
