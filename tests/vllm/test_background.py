"""Plans made beside the engine, on the state after one step for the next, are as good as those before it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.integrations.vllm.background import PlansAhead
from slosched.policies import policy
from slosched.testing.virtual_clock import VirtualEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

LIMITS = EngineLimits(
    max_num_seqs=8, max_num_batched_tokens=256, kv_blocks=2000, block_tokens=16, max_model_len=2048,
    prefix_cache=False,
)  # fmt: skip
ENGINE = Engine(limits=LIMITS, step_time=StepTimeModel(base_s=0.016, prefill_token_s=3.6e-4, sequence_s=2e-3))


def tiers(n: int, seed: int, rate_rps: float) -> Workload:
    """The same work for all; what they were promised differs."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    work = Workload.plain(
        np.sort(rng.uniform(0, n / rate_rps, n)), rng.integers(30, 200, n), rng.integers(10, 80, n)
    )
    return replace(
        work,
        ttft_s=np.array([0.6, 2.0, 8.0])[kind],
        tpot_s=np.array([0.048, 0.1, np.inf])[kind],
        atoms=np.full((n, work.atoms.shape[1]), 40.0),
    )


class Beside(VirtualEngine):
    """Plans are made by the background thread, each done in time for the next step."""

    late = 0
    """Plans that come a step late, of which one in `late` does; 0 for none."""

    def use_policy(self, *args: Any, **kwargs: Any) -> None:
        super().use_policy(*args, **kwargs)
        planner = self.scheduler.slosched.planner
        planner.background = PlansAhead(planner._decide)

    def schedule(self) -> Any:
        background = self.scheduler.slosched.planner.background
        while not background.idle:
            time.sleep(0.0002)
        if self.late and self.steps % self.late == 0:  # as if the thread had not been given the processor
            newest, background.latest = background.latest, self.last
            output = super().schedule()
            if background.idle and background.latest is self.last:
                background.latest = newest
        else:
            output = super().schedule()
        self.last = background.latest
        return output

    last: Any = None


def attained(kind: type[VirtualEngine], work: Workload, *, late: int = 0) -> tuple[float, Any]:
    engine = kind(work, ENGINE)
    if isinstance(engine, Beside):
        engine.late = late
    engine.use_policy(policy("slosched", seed=0))
    engine.run()
    engine.scheduler.slosched.close()
    return float(engine.result(0.0).outcomes.met.mean()), engine.scheduler.slosched.stats


@pytest.mark.parametrize("late", [0, 2])
def test_planning_beside_the_engine_costs_next_to_nothing(late: int) -> None:
    """In overload, on time or every other one a step late: carried out twice, a plan lets in twice as many as
    it meant to, which cost 5 points here.
    """
    here, beside = [], []
    for seed in range(3):
        work = tiers(150, seed, 7.0)
        here.append(attained(VirtualEngine, work)[0])
        found, stats = attained(Beside, work, late=late)
        assert stats.plans > 100
        assert not stats.fallbacks
        beside.append(found)
    assert np.mean(beside) > np.mean(here) - 0.025, (here, beside)
