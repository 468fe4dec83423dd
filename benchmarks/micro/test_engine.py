"""Micro benchmarks of what runs at every step: planner, policies, simulator. ``make bench-micro``."""

from __future__ import annotations

from typing import Any

import pytest

from slosched.planner.planner import Planner
from slosched.policies import POLICIES, policy
from slosched.simulator import simulate
from slosched.workloads.mixes import mix


@pytest.mark.parametrize("waiting", [100, 1000, 10_000])
def test_planner_step(benchmark: Any, queue: Any, waiting: int) -> None:
    """One step of the planner on a standing queue, with a comparison of rules when one is due."""
    planner, engine = Planner(), queue(waiting).snapshot
    planned = benchmark.pedantic(planner.plan, args=(engine,), rounds=200, warmup_rounds=16)
    assert 0 < len(planned.order) <= waiting


@pytest.mark.parametrize("name", list(POLICIES))
def test_policy_plan(benchmark: Any, queue: Any, name: str) -> None:
    """One plan of a policy with 1,000 waiting and 64 running."""
    chosen, engine = policy(name), queue(1000).snapshot
    plan = benchmark.pedantic(chosen.plan, args=(engine,), rounds=50, warmup_rounds=2)
    assert len(plan.sequence) == 1000


@pytest.mark.parametrize("name", ["fcfs", "edf", "slosched"])
def test_simulator_steps(benchmark: Any, name: str) -> None:
    """A replay of 300 requests; `steps_per_s` in the extra information."""
    work = mix("azure", rate_per_s=15.0, requests=300, seed=1)
    run = benchmark.pedantic(lambda: simulate(work, name), rounds=3, warmup_rounds=1)
    assert run.outcomes.finished.all()
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["steps_per_s"] = run.log.steps / benchmark.stats.stats.median
