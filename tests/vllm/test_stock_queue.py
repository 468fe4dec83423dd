"""While nobody has an SLO, requests wait in vLLM's own queue; with the first one they move to slosched's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.policies import policy
from slosched.simulator import simulate

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

MODEL = StepTimeModel(base_s=0.004, prefill_token_s=3e-5, sequence_s=4e-5)
LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, kv_blocks=40, max_model_len=512)
N = 40


def work(first_slo: int) -> Workload:
    """A queue in which everybody from one place on has limits."""
    rng = np.random.default_rng(1)
    plain = Workload.plain(np.sort(rng.random(N) * 0.5), rng.integers(1, 200, N), rng.integers(1, 60, N))
    promised = np.arange(N) >= first_slo
    return replace(
        plain,
        ttft_s=np.where(promised, 0.2 + rng.random(N), np.inf),
        e2e_s=np.where(promised, 0.5 + 3 * rng.random(N), np.inf),
    )


@pytest.mark.parametrize(("asynchronous", "depth"), [(False, 1), (False, 2), (True, 2)])
@pytest.mark.parametrize("name", ["edf", "edf+d", "slosched"])
@pytest.mark.parametrize("first_slo", [0, 1, N // 2, N])
def test_requests_move_with_the_first_slo(name: str, first_slo: int, asynchronous: bool, depth: int) -> None:
    """Nobody is lost, every token is right, and the order is that of the simulator."""
    from slosched.testing.chaos import ChaosEngine

    engine = ChaosEngine(
        work(first_slo), Engine(limits=LIMITS, step_time=MODEL), depth=depth, asynchronous=asynchronous
    )
    engine.use_policy(policy(name))
    engine.disturb(0, abort=0.0, reset=0.0)
    controller, stock = engine.scheduler.slosched, engine.scheduler.waiting
    assert stock is not controller.queue
    moved_at = N
    while engine.busy:
        if engine.scheduler.waiting is controller.queue:
            moved_at = min(moved_at, engine.sent - 1)
        engine.advance()
    assert moved_at >= first_slo
    assert (engine.scheduler.waiting is controller.queue) == (first_slo < N)
    assert len(stock) == 0
    engine.scheduler.schedule()
    engine.check_empty()
    assert controller.stats.errors == {}
    assert controller.stats.plans > 0 or first_slo == N
    run = engine.result(0.0)
    assert run.outcomes.finished.all()
    if depth == 1 and first_slo == 0:
        model = simulate(engine.workload, name, engine=Engine(limits=LIMITS, step_time=MODEL))
        assert np.array_equal(run.outcomes.finish_s, model.outcomes.finish_s)


def test_a_policy_that_needs_no_slo_has_its_queue_at_once() -> None:
    """Shortest job first orders requests nobody promised anything to."""
    from slosched.testing.virtual_clock import VirtualEngine

    engine = VirtualEngine(work(N), Engine(limits=LIMITS, step_time=MODEL))
    engine.use_policy(policy("sjf"))
    assert engine.scheduler.waiting is engine.scheduler.slosched.queue
