"""A step-time model that is wrong by much is corrected, a right one is left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched import Engine, EngineLimits, Snapshot, StepTimeModel, Workload, simulate
from slosched.planner.clock import Clock
from slosched.planner.plan import Plan
from slosched.planner.planner import PlannerParams
from slosched.policies.slosched import Slosched

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=5e-5, sequence_s=1e-4, kv_token_s=1e-8)
ENGINE = Engine(
    limits=EngineLimits(max_num_seqs=64, max_num_batched_tokens=2048, prefix_cache=True), step_time=MODEL
)


class Heard(Clock):
    """Notes what it says."""

    def __init__(self, said: list[float]) -> None:
        super().__init__()
        self.said = said

    def watch(self, snapshot: Snapshot) -> float:
        self.said.append(super().watch(snapshot))
        return self.said[-1]


class Misled(Slosched):
    """Sees a step-time model whose times are `factor` times the engine's."""

    def __init__(self, factor: float) -> None:
        super().__init__(PlannerParams(comparisons=0.0))
        self.model = StepTimeModel(
            base_s=MODEL.base_s * factor,
            prefill_token_s=MODEL.prefill_token_s * factor,
            sequence_s=MODEL.sequence_s * factor,
            kv_token_s=MODEL.kv_token_s * factor,
        )
        self.corrections: list[float] = []
        self.planner._clock = Heard(self.corrections)

    def plan(self, snapshot: Snapshot) -> Plan:
        seen = replace(snapshot, engine=replace(snapshot.engine, step_time=self.model))
        return replace(super().plan(seen), snapshot=snapshot)


def traffic(seed: int, n: int = 300) -> Workload:
    """Overload with limits on first token and pace, and gaps without any request."""
    rng = np.random.default_rng(seed)
    output = rng.integers(5, 120, n)
    gaps = rng.exponential(0.02, n) + 4.0 * (rng.random(n) < 0.02)
    plain = Workload.plain(np.cumsum(gaps), rng.integers(50, 1500, n), output)
    return replace(
        plain,
        ttft_s=np.full(n, 1.0),
        tpot_s=np.full(n, 0.03),
        atoms=np.repeat(output[:, None].astype(np.float64), 8, axis=1),
    )


def kept(factor: float, seed: int) -> tuple[float, list[float]]:
    """Share of requests within their limits, and the corrections."""
    work, policy = traffic(seed), Misled(factor)
    done = simulate(work, policy, engine=ENGINE).outcomes
    ok = (done.ttft_s <= work.ttft_s) & (done.tpot_s <= work.tpot_s * (1 + 1e-9))
    return float(ok.mean()), policy.corrections


@pytest.mark.parametrize("seed", range(2))
def test_a_right_model_is_left_alone(seed: int) -> None:
    """Idle gaps and answers that end do not look like slow steps."""
    assert set(kept(1.0, seed)[1]) == {1.0}


@pytest.mark.parametrize("factor", [1 / 3, 3.0])
def test_a_wrong_model_is_corrected(factor: float) -> None:
    """The factor is found, and what is kept is about what a right model keeps."""
    right, _ = kept(1.0, 0)
    wrong, corrections = kept(factor, 0)
    assert np.median(corrections[100:]) * factor == pytest.approx(1.0, rel=0.15)
    assert wrong >= right - 0.05
