"""`solve` on the model of continuous batching: orders, search, enumeration and bounds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from slosched.core.arrays import Ints
from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.result import Status
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.planner import model as c
from slosched.planner import reference
from slosched.solvers.annealing import anneal
from slosched.solvers.continuous_problem import OBJECTIVES, ContinuousProblem
from slosched.solvers.solve import solve
from slosched.solvers.solve_continuous import ALIASES, EXACT, SOLVERS
from slosched.solvers.static.problem import StaticProblem

STEP = StepTimeModel(base_s=0.02, prefill_token_s=1e-4, sequence_s=1e-3, kv_token_s=1e-6)


def problem(n: int, seed: int = 0, running: int = 2, **engine: Any) -> ContinuousProblem:
    """A crowded engine of three slots."""
    rng = np.random.default_rng(seed)
    m = n + running
    runs = np.arange(m) < running
    output = rng.integers(5, 60, m)
    return ContinuousProblem.build(
        prompt_tokens=rng.integers(20, 600, m),
        output_tokens=output,
        elapsed_s=rng.uniform(0.5, 1, m),
        ttft_s=np.where(rng.random(m) < 0.5, rng.uniform(0.6, 4, m), math.inf),
        tpot_s=np.where(rng.random(m) < 0.3, rng.uniform(0.02, 0.06, m), math.inf),
        e2e_s=np.where(rng.random(m) < 0.5, rng.uniform(1, 9, m), math.inf),
        weight=rng.choice([1.0, 2.0, 0.5], m),
        running=running,
        generated_tokens=np.where(runs, output // 2, 0),
        computed_tokens=np.where(runs, 40 + output, 0),
        first_token_s=np.where(runs, -0.2, math.nan),
        engine=Engine(
            limits=EngineLimits(max_num_seqs=3, kv_blocks=engine.pop("kv_blocks", 4000)), step_time=STEP
        ),
        **engine,
    )


@pytest.mark.parametrize("solver", [*SOLVERS, *ALIASES])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_solver_returns_a_permutation_scored_as_claimed(solver: str, objective: str) -> None:
    """The sequence is a permutation, and the plain Python reference gives it the value claimed."""
    if solver == "cpsat":
        pytest.importorskip("ortools")
    p = problem(6, 3)
    if solver == "cpsat" and objective == "soft":
        with pytest.raises(InputError, match="lex or goodput with point forecasts"):
            solve(p, solver=solver, objective=objective)
        return
    result = solve(p, solver=solver, objective=objective, budget_ms=4000.0, moves=300)
    assert sorted(result.sequence.tolist()) == list(range(6))
    truth = reference.evaluate(
        p.jobs_for(objective), p.running, (result.sequence + p.running).tolist(), p.engine,
        p.aim_for(objective).tolist(),
    )  # fmt: skip
    weight = p.jobs_for(objective)[:, 9]
    claimed = truth.value if objective == "soft" else sum(weight[i] * x for i, x in truth.chance.items())
    assert result.objective == pytest.approx(claimed, abs=1e-6)
    latency_s = sum(truth.finish_s.values()) - float(p.jobs[:, 8].sum())
    assert result.score.latency_s == pytest.approx(latency_s, rel=1e-9)
    assert result.prediction is not None
    first_s = [truth.first_s[i + p.running] - p.jobs[i + p.running, 8] for i in range(6)]
    assert result.prediction.ttft_s.tolist() == pytest.approx(first_s, rel=1e-9)
    assert result.bound is None or result.bound >= result.objective - 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_search_reaches_the_best_of_all_orders(seed: int) -> None:
    """On six requests a short search finds the value that enumeration proves, for every objective."""
    p = problem(6, seed)
    for objective in OBJECTIVES:
        best = solve(p, solver="enumerate", objective=objective)
        found = solve(p, objective=objective, moves=3000, seed=1)
        assert best.status is Status.OPTIMAL
        assert best.bound == best.objective
        assert best.gap == 0
        assert best.moves == math.factorial(6)
        assert found.objective == pytest.approx(best.objective, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_bounds_are_never_below_the_optimum(seed: int) -> None:
    """CP-SAT's bound and the one from requests alone never cross the proved optimum, full cache or not."""
    pytest.importorskip("ortools")
    p = problem(6, seed, kv_blocks=60 if seed % 2 else 4000, running=seed % 3)
    for objective in ("lex", "goodput"):
        best = solve(p, solver="enumerate", objective=objective).objective
        alone = solve(p, objective=objective, moves=10).bound
        together = solve(p, solver="cpsat", objective=objective, budget_ms=3000.0, moves=500)
        assert alone is not None
        assert together.bound is not None
        assert best <= together.bound + 1e-6
        assert together.bound <= alone + 1e-6
        assert together.objective <= best + 1e-9


def test_bound_is_unknown_where_it_is_not_valid() -> None:
    """With softened limits, or forecasts with spread, no bound is claimed."""
    spread = [
        Request(
            request_id=str(i), prompt_tokens=90, forecast=LengthForecast.lognormal(50, 0.5), slo=Slo(e2e_s=1)
        )
        for i in range(5)
    ]
    assert solve(Snapshot.of(spread), objective="lex", moves=9).bound is None
    assert solve(problem(5), objective="soft", moves=9).bound is None
    with pytest.raises(InputError, match="objective must be lex or goodput with point forecasts"):
        solve(Snapshot.of(spread), solver="cpsat", objective="lex")


def test_search_is_no_worse_than_its_start_and_reproducible() -> None:
    """Given moves, the result depends on the seed alone, in threads too, and never falls below the start."""
    p = problem(60, 5)
    start = np.random.default_rng(0).permutation(60)
    for chains in (1, 3):
        one, two = (solve(p, moves=700, seed=4, chains=chains, start=start) for _ in range(2))
        assert one.sequence.tolist() == two.sequence.tolist()
        assert one.objective >= p.evaluate(start).value
        assert one.objective >= solve(p, solver="portfolio").objective - 1e-12
        assert 690 * chains <= one.moves <= 700 * chains
    alone = solve(p, moves=700, seed=4, start=start)
    assert one.objective >= alone.objective - 1e-12


def test_search_improves_on_the_portfolio() -> None:
    """On a crowded queue the search is worth more than the best simple order."""
    gains = [
        solve(problem(40, seed), moves=2000).objective
        - solve(problem(40, seed), solver="portfolio").objective
        for seed in range(4)
    ]
    assert min(gains) >= 0
    assert max(gains) > 0.1


def test_budget_of_zero_and_time_budget() -> None:
    """No time gives the order of arrival; a time budget is kept to within a few evaluations."""
    p = problem(50, 1)
    solve(p, moves=10)
    none = solve(p, budget_ms=0)
    assert none.objective >= p.evaluate(np.arange(50)).value
    assert none.objective <= solve(p, solver="portfolio").objective
    best = min(solve(p, budget_ms=30.0, seed=seed).seconds for seed in range(5))
    assert best < 0.06


def test_snapshot_is_continuous_by_default_and_static_on_request() -> None:
    """A snapshot is solved on the model of continuous batching; its static problem gives batches."""
    snapshot = problem(9).snapshot
    assert len(solve(snapshot, moves=50).batches) == 0
    assert solve(StaticProblem.of(snapshot), moves=50).batches.sum() == 9
    whole = solve(ContinuousProblem(snapshot=snapshot), moves=50)
    assert whole.sequence.tolist() == solve(snapshot, moves=50).sequence.tolist()


def test_prefill_limit_reaches_the_model() -> None:
    """A limit on prompt tokens per step delays first tokens."""
    free = problem(4)
    paced = dataclasses.replace(free, prefill_tokens=16.0)
    order = np.arange(4)
    with pytest.raises(InputError, match="prefill_tokens must be at least 1"):
        dataclasses.replace(free, prefill_tokens=0.5)
    assert paced.evaluate(order).prediction.ttft_s.min() > free.evaluate(order).prediction.ttft_s.min()


@pytest.mark.parametrize("n", [0, 1])
def test_trivial_queues(n: int) -> None:
    """Nobody, or one request: the only order, proved best."""
    result = solve(problem(n), moves=20)
    assert result.sequence.tolist() == list(range(n))
    assert result.status is Status.OPTIMAL
    assert result.bound == result.objective


def test_all_hopeless_all_met_all_weightless() -> None:
    """Degenerate queues have finite values and, where nothing can be gained, a bound that says so."""
    engine = Engine(step_time=STEP)
    common: dict[str, Any] = {"prompt_tokens": [100, 200, 300], "output_tokens": [5, 6, 7], "engine": engine}
    hopeless = ContinuousProblem.build(**common, e2e_s=1e-3)
    met = ContinuousProblem.build(**common, e2e_s=1e3)
    weightless = ContinuousProblem.build(**common, weight=0.0, e2e_s=0.2)
    for p, bound in ((hopeless, 0.0), (met, 3.0), (weightless, 0.0)):
        result = solve(p, objective="lex", moves=60)
        assert result.objective == result.bound == bound
        assert result.gap == 0
        assert math.isfinite(result.score.latency_s)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "huang-literal"}, "solver must be one of fcfs, .* in continuous batching"),
        ({"objective": "g"}, "objective must be one of soft, lex, goodput in continuous batching"),
        ({"objective": "tardiness"}, "defined for static batches"),
        ({"objective": "speed"}, "objective must be one of"),
        ({"budget_ms": -1.0}, "budget_ms must be"),
        ({"budget_ms": math.nan}, "budget_ms must be"),
        ({"moves": -1}, "moves must be"),
        ({"chains": 0}, "chains must be"),
        ({"start": [0, 0, 1]}, "sequence must be a permutation"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Each bad argument is one error that names it."""
    with pytest.raises(InputError, match=message):
        solve(problem(9), **arguments)


def test_enumeration_refuses_more_than_eight() -> None:
    """Nine requests are refused with the alternative named."""
    with pytest.raises(InputError, match=r"at most 8 .* use cpsat for a bound or anneal"):
        solve(problem(9), solver="enumerate")


def test_enumeration_out_of_time_claims_nothing() -> None:
    """Without time enumeration says so and proves nothing."""
    result = solve(problem(8), solver="enumerate", budget_ms=1.0)
    assert result.status is Status.LIMIT
    assert result.bound is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_tokens", [0, 5]),
        ("prompt_tokens", [1.5, 5]),
        ("output_tokens", [math.nan, 1]),
        ("output_tokens", [3, 4, 5]),
        ("elapsed_s", [-1, 0]),
        ("e2e_s", [0, 1]),
        ("tpot_s", [math.nan, 1]),
        ("weight", [math.inf, 1]),
        ("running", 3),
    ],
)
def test_bad_columns_are_refused(field: str, value: object) -> None:
    """A column off its domain is named with its value."""
    columns: dict[str, Any] = {"prompt_tokens": [10, 20], "output_tokens": [5, 5], field: value}
    with pytest.raises(InputError, match=f"{field} must be"):
        ContinuousProblem.build(**columns)


def test_duplicate_names_are_refused() -> None:
    """Two waiting requests of one name are an error that names it."""
    snapshot = problem(3).snapshot
    snapshot.table.request_ids[3] = snapshot.table.request_ids[4]
    with pytest.raises(InputError, match="request_id must be unique, got '4'"):
        solve(snapshot)


def test_exact_names() -> None:
    """The exact solvers are listed among all."""
    assert set(EXACT) < set(SOLVERS)


def test_annealing_takes_worse_orders_when_hot_and_none_when_cold() -> None:
    """Metropolis: what it walks through depends on the temperature; the best met is kept."""
    p = problem(30, 3)
    scratch, jobs, aim = c.scratch_for(p.jobs), p.jobs, p.aim_for("soft")
    start = np.arange(30) + p.running
    fixed = (p.engine, aim, p.prefill_tokens)

    def value(order: Ints) -> float:
        return float(c.evaluate(jobs, p.running, order, 30, *fixed, scratch))

    for heat, falls in (((1e9, 1e9), True), ((0.0, 0.0), False)):
        order, best = start.copy(), start.copy()
        rng = np.array([12345], dtype=np.uint64)
        lowest = np.inf
        for _ in range(40):
            before = value(order)
            found = anneal(jobs, p.running, order, best, *fixed, 5, heat, rng, scratch)
            lowest = min(lowest, value(order) - before)
            assert found == value(best)
            assert sorted(order.tolist()) == sorted(start.tolist())
        assert (lowest < 0) is falls
        assert value(best) >= value(start)


@pytest.mark.parametrize("n", [30, 400])
def test_budgets_hold_for_the_simple_orders_too(n: int) -> None:
    """Few moves, or no time, are not spent on the portfolio first; one order is always looked at."""
    p = problem(n)
    for moves in (0, 1, 5, 40):
        assert solve(p, moves=moves).moves <= max(2, moves)
    assert solve(p, budget_ms=0.0).moves <= 2


def test_restarts_leave_a_valley() -> None:
    """On short queues most seeds end at the best value, and none far from it."""
    p = problem(20, 1)
    values = [solve(p, objective="lex", moves=20_000, seed=seed).objective for seed in range(5)]
    assert sum(value == max(values) for value in values) >= 3
    assert min(values) >= 0.97 * max(values)
