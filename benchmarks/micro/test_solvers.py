"""Micro benchmarks of the solvers: ``make bench-micro``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slosched.planner import model as c
from slosched.planner import reference as continuous_reference
from slosched.solvers.static import kernels as static
from slosched.solvers.static.annealing import budget_of, case_of, records, seed_words, sigma_s
from slosched.solvers.static.delta import anneal
from slosched.solvers.static.generated import generate
from slosched.solvers.static.reference import evaluate, full_batches

MOVES = 10_000


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_static_evaluation(benchmark: Any, n: int) -> None:
    """One full evaluation of a static plan, compiled."""
    problem = generate(n, 8, seed=1)
    table, order, batches = records(problem), np.arange(n), full_batches(n, 8)
    weight, _, _ = benchmark(static.evaluate_plan, table, np.empty((0, 3)), 0.0, order, batches, len(batches))
    assert weight >= 0


def test_static_reference(benchmark: Any) -> None:
    """One evaluation of a static plan by the plain-Python reference, n = 200."""
    problem = generate(200, 8, seed=1)
    order, batches = list(range(200)), full_batches(200, 8).tolist()
    assert benchmark(evaluate, problem, order, batches).score.latency_s > 0


@pytest.mark.parametrize(("n", "b"), [(12, 4), (50, 8), (200, 8), (1000, 8)])
def test_annealing_moves(benchmark: Any, n: int, b: int) -> None:
    """Ten thousand moves of annealing by delta evaluation; `moves_per_s` is in the extra information."""
    problem = generate(n, b, seed=1)
    case, budget = case_of(problem, static.LEX), budget_of(MOVES, None, 0)
    scale = sigma_s(case.rec, b)
    cooling = static.Cooling(lam=25 * scale, hot=2 * scale, cold=0.003 * scale, stages=64, cycles=1)
    order, batches = np.argsort(problem.exec_s(b), kind="stable"), full_batches(n, b)

    def run() -> Any:
        return anneal(case, order, batches, budget, cooling, static.THRESHOLDS, seed_words(0), False)

    found = benchmark(run)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["moves_per_s"] = found[4] / benchmark.stats.stats.median


@pytest.mark.parametrize("n", [100, 1000])
def test_continuous_evaluation(benchmark: Any, queue: Any, n: int) -> None:
    """One evaluation of an order in continuous batching; `ns_per_request` in the extra information."""
    problem = queue(n)
    jobs, order = problem.jobs, np.arange(problem.running, problem.running + n)
    aim, scratch = problem.aim_for("soft"), c.scratch_for(problem.jobs)
    benchmark(c.evaluate, jobs, problem.running, order, n, problem.engine, aim, np.inf, scratch)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["ns_per_request"] = 1e9 * benchmark.stats.stats.median / len(jobs)


def test_continuous_reference(benchmark: Any, queue: Any) -> None:
    """The same by the token-by-token reference, 20 waiting behind 8."""
    problem = queue(20, running=8)
    arguments = (problem.jobs, 8, list(range(8, 28)), problem.engine, problem.aim_for("soft").tolist())
    assert len(benchmark(continuous_reference.evaluate, *arguments).finish_s) == 28


def test_insertion(benchmark: Any, queue: Any) -> None:
    """The best place of one newcomer among 256."""
    problem = queue(257)
    jobs, order = problem.jobs, np.arange(problem.running, problem.running + 257)
    aim, scratch = problem.aim_for("soft"), c.scratch_for(problem.jobs)

    def insert() -> float:
        found: float = c.insert(
            jobs, problem.running, order.copy(), 256, problem.engine, aim, np.inf, scratch
        )
        return found

    assert np.isfinite(benchmark(insert))
