"""No schedule may beat the bound; where the optimum is known, the bound is it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.engine import Engine
from slosched.core.limits import EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.lab.bound import attainment_bound
from slosched.simulator import simulate
from slosched.workloads import Workload

ENGINE = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, kv_blocks=60, block_tokens=16)
STEPS = StepTimeModel(
    base_s=0.01, prefill_token_s=2e-4, attention_work_s=1e-7, sequence_s=1e-3, kv_token_s=2e-6,
    knee_tokens=32, knee_token_s=1e-4,
)  # fmt: skip


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    n = draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    limited = replace(
        Workload.plain(
            np.sort(rng.uniform(0, draw(st.sampled_from([0.0, 0.5, 3.0])), n)),
            rng.integers(1, 200, n),
            rng.integers(1, 60, n),
        ),
        weight=rng.uniform(0.1, 3, n),
    )
    kinds = rng.integers(0, 2, (3, n)).astype(bool)
    return replace(
        limited,
        ttft_s=np.where(kinds[0], rng.uniform(0.02, 1.5, n), np.inf),
        tpot_s=np.where(kinds[1], rng.uniform(0.012, 0.06, n), np.inf),
        e2e_s=np.where(kinds[2], rng.uniform(0.1, 4, n), np.inf),
    )


@settings(max_examples=60, deadline=None)
@given(workloads(), st.sampled_from(["fcfs", "edf+d", "sjf+d", "slosched"]))
def test_no_policy_beats_it(workload: Workload, policy: str) -> None:
    run = simulate(workload, policy, engine=Engine(limits=ENGINE, step_time=STEPS))
    met = float(workload.weight[run.outcomes.met].sum() / workload.weight.sum())
    assert met <= attainment_bound(workload, Engine(limits=ENGINE, step_time=STEPS)) + 1e-9


@pytest.mark.parametrize("due_s", [1.0, 3.0, 7.0])
def test_closed_form_of_equal_prompts(due_s: float) -> None:
    steps = StepTimeModel(base_s=0.0, prefill_token_s=1e-2)
    work = Workload.plain(np.zeros(10), np.full(10, 100), np.ones(10, dtype=np.int64))
    work = replace(work, ttft_s=np.full(10, due_s))
    assert attainment_bound(work, Engine(limits=ENGINE, step_time=steps)) == pytest.approx(
        due_s / 10, abs=1e-6
    )


def test_heavier_requests_are_kept() -> None:
    steps = StepTimeModel(base_s=0.0, prefill_token_s=1e-2)
    work = Workload.plain(np.zeros(2), np.full(2, 100), np.ones(2, dtype=np.int64))
    work = replace(work, ttft_s=np.full(2, 1.0), weight=np.array([1.0, 3.0]))
    assert attainment_bound(work, Engine(limits=ENGINE, step_time=steps)) == pytest.approx(0.75, abs=1e-6)


def test_hopeless_alone_counts_as_missed() -> None:
    work = Workload.plain(np.array([0.0, 50.0]), np.array([100, 100]), np.array([10, 10]))
    work = replace(work, e2e_s=np.array([0.05, np.inf]))
    assert attainment_bound(work, Engine(limits=ENGINE, step_time=STEPS)) == pytest.approx(0.5)


def test_nothing_to_bound() -> None:
    none = np.empty(0)
    empty = Workload.plain(none, none.astype(np.int64), none.astype(np.int64))
    assert attainment_bound(empty, Engine(limits=ENGINE, step_time=STEPS)) == 1.0
    free = Workload.plain(np.zeros(3), np.full(3, 50), np.full(3, 5))
    assert attainment_bound(free, Engine(limits=ENGINE, step_time=STEPS)) == 1.0
