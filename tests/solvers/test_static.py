"""Static batches: the kernels against the plain Python reference, and what every solver promises."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.result import LATENCY_TOLERANCE, WEIGHT_TOLERANCE, Result, Score, Status
from slosched.core.snapshot import Snapshot
from slosched.solvers.solve import EXACT, SOLVERS, solve
from slosched.solvers.static import constructive
from slosched.solvers.static import kernels as static
from slosched.solvers.static.annealing import (
    anneal_static,
    budget_of,
    case_of,
    records,
    seed_words,
    sigma_s,
    tpot_records,
)
from slosched.solvers.static.delta import anneal
from slosched.solvers.static.generated import generate
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import BatchCost, StaticProblem
from slosched.solvers.static.reference import evaluate, evaluate_fast, full_batches, score_lists

OBJECTIVES = list(Objective)


def both_limits(n: int, max_batch: int, seed: int) -> StaticProblem:
    """A problem in which requests have any combination of the three limits."""
    base = generate(n, max_batch, load=0.6, seed=seed, weighted=seed % 2 == 1)
    rng = np.random.default_rng(seed)
    late = np.where(np.isinf(base.e2e_s), base.ttft_s, base.e2e_s)
    ttft = np.where(rng.random(n) < 0.5, late * rng.uniform(0.5, 1.0, n), np.inf)
    e2e = np.where(rng.random(n) < 0.5, late * rng.uniform(1.0, 1.5, n), np.inf)
    return dataclasses.replace(base, ttft_s=ttft, e2e_s=e2e)


def random_plan(problem: StaticProblem, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random permutation cut at random."""
    sizes: list[int] = []
    while sum(sizes) < problem.n:
        sizes.append(int(rng.integers(1, min(problem.max_batch, problem.n - sum(sizes)) + 1)))
    return rng.permutation(problem.n), np.array(sizes, dtype=np.int64)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch=st.sampled_from([1, 2, 3, 8]), seed=st.integers(0, 10_000))
def test_evaluators_agree(n: int, batch: int, seed: int) -> None:
    """Plain Python, numpy and the kernel give one score, tardiness and set of latencies for any plan."""
    problem = both_limits(n, batch, seed)
    plan = random_plan(problem, np.random.default_rng(seed + 1))
    truth, fast = evaluate(problem, *plan), evaluate_fast(problem, *plan)
    assert fast.score.weight == pytest.approx(truth.score.weight)
    assert fast.score.latency_s == pytest.approx(truth.score.latency_s)
    assert fast.tardiness_s == pytest.approx(truth.tardiness_s, abs=1e-9)
    for name in ("start_s", "ttft_s", "tpot_s", "e2e_s"):
        assert getattr(fast.prediction, name) == pytest.approx(getattr(truth.prediction, name))
    assert fast.prediction.met.tolist() == truth.prediction.met.tolist()
    kernel = static.evaluate_plan(
        records(problem), tpot_records(problem), problem.elapsed_total_s, *plan, len(plan[1])
    )
    assert kernel == pytest.approx((truth.score.weight, truth.score.latency_s, truth.tardiness_s), abs=1e-9)
    lists = score_lists(records(problem).tolist(), problem.elapsed_total_s, *(part.tolist() for part in plan))
    assert lists == pytest.approx((truth.score.weight, truth.score.latency_s))


def test_met_means_the_limits_hold() -> None:
    """A request counts as met iff its predicted TTFT, TPOT and e2e keep the limits it was promised."""
    for seed in range(20):
        problem = both_limits(30, 4, seed)
        found = evaluate(problem, *random_plan(problem, np.random.default_rng(seed))).prediction
        kept = (
            (found.ttft_s <= problem.ttft_s)
            & (found.tpot_s <= problem.tpot_s)
            & (found.e2e_s <= problem.e2e_s)
        )
        assert found.met.tolist() == kept.tolist()


@pytest.mark.parametrize("mode", [static.LEX, static.G])
@pytest.mark.parametrize(("n", "batch"), [(2, 1), (3, 2), (7, 8), (12, 4), (40, 1), (60, 5), (90, 16)])
def test_delta_equals_full_recomputation(n: int, batch: int, mode: int) -> None:
    """After every accepted move the running weight, latency, starts and margins equal a full evaluation."""
    moved = 0
    for seed in range(4):
        problem = both_limits(n, batch, seed)
        size = min(batch, n)
        start = random_plan(dataclasses.replace(problem, max_batch=size), np.random.default_rng(seed))
        scale = sigma_s(records(problem), size)
        cooling = static.Cooling(lam=25 * scale, hot=20 * scale, cold=0.003 * scale, stages=64, cycles=1)
        case, budget = case_of(problem, mode), budget_of(5000, None, 0)
        found = anneal(case, *start, budget, cooling, static.THRESHOLDS, seed_words(seed), True)
        accepted, weight_error, latency_error = found[5:]
        moved += accepted
        assert weight_error < 1e-9
        assert latency_error < 1e-9
        truth = evaluate(problem, found[0], found[1]).score
        assert (found[2], found[3]) == pytest.approx((truth.weight, truth.latency_s))
    assert moved > 0


def test_every_move_is_exercised() -> None:
    """Annealing of a mid-size problem ends with batch sizes it did not start with, in both directions."""
    problem = generate(60, 6, load=0.5, seed=1)
    start = (np.arange(60), full_batches(60, 3))
    plan, _ = anneal_static(problem, start, moves=30_000)
    assert plan[1].max() > 3
    assert plan[1].min() < 3 or len(plan[1]) != 20


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_solver_returns_a_plan_that_scores_as_claimed(solver: str, objective: Objective) -> None:
    """Each solver returns a permutation cut into batches, valued as the reference evaluator values it."""
    for n, batch, seed in ((2, 1, 0), (9, 4, 1), (25, 1, 2), (31, 8, 3)):
        problem = both_limits(n, batch, seed)
        result = solve(problem, solver=solver, objective=objective, moves=2000, seed=seed)
        truth = evaluate(objective.reweighted(problem), result.sequence, result.batches)
        assert result.score.weight == pytest.approx(truth.score.weight)
        assert result.score.latency_s == pytest.approx(truth.score.latency_s)
        assert result.objective == pytest.approx(truth.value(objective))
        assert result.prediction is not None
        assert result.prediction.met.tolist() == truth.prediction.met.tolist()
        if result.bound is not None:
            assert result.objective <= result.bound + 1e-9
        assert result.solver == solver


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_annealing_is_never_worse_than_its_start(objective: Objective) -> None:
    """Whatever plan it starts from, annealing returns one at least as good by the objective."""
    for seed in range(8):
        problem = both_limits(20, 4, seed)
        start = random_plan(problem, np.random.default_rng(seed))
        goal = objective.reweighted(problem)
        before = evaluate(goal, *start)
        for moves in (0, 1, 50, 1000):
            after = solve(problem, objective=objective, start=start, moves=moves, seed=seed)
            value = before.value(objective)
            assert not objective.better(before.score, value, after.score, after.objective)


def test_annealing_is_never_worse_than_the_simple_orders() -> None:
    """Without a start, annealing is at least as good as every simple plan it could begin with."""
    for seed in range(6):
        problem = generate(40, 4, load=0.5, seed=seed, weighted=True)
        best = solve(problem, moves=3000).score
        for name in ("sjf", "best-fit", "batch-list", "moore-hodgson", "portfolio"):
            assert not solve(problem, solver=name).score.better(best)


def test_a_small_budget_builds_fewer_plans_and_a_list_of_batches_wins_on_long_queues() -> None:
    """The portfolio grows with the budget; at 300 requests lists of batches beat the other simple plans."""
    problem = generate(300, 4, load=0.6, seed=8)
    counts = [len(constructive.candidates(problem, budget_ms=budget)) for budget in (0.0, 1.0, 5.0, None)]
    assert counts == sorted(counts)
    assert counts[0] < counts[1] < counts[2]
    listed = solve(problem, solver="batch-list").objective
    for name in ("sjf", "edf+d", "best-fit", "moore-hodgson"):
        assert listed > 1.05 * solve(problem, solver=name).objective


def test_annealing_beats_the_published_one_on_mid_size_queues() -> None:
    """At 100 requests our annealing attains more than the published one read literally at equal moves."""
    ours = literal = 0.0
    for seed in range(3):
        problem = generate(100, 4, load=0.6, seed=seed)
        ours += solve(problem, moves=6300, seed=seed).score.weight
        literal += solve(problem, solver="huang-literal", seed=seed).score.weight
    assert ours > 1.1 * literal


def test_huang_literal_best_kept_is_not_below_its_starts() -> None:
    """The published annealing with the best kept has at least the G of shortest first; its last less."""
    problem = generate(60, 4, load=0.6, seed=5)
    start = solve(problem, solver="sjf", objective="g").objective
    assert solve(problem, solver="huang-literal", objective="g").objective >= start
    assert solve(problem, solver="huang-last", objective="g").objective < start
    assert solve(problem, solver="huang-literal").moves == 6300


@pytest.mark.parametrize("objective", ["lex", "g"])
def test_annealing_finds_the_optimum_of_small_problems(objective: str) -> None:
    """At 8 requests, 20,000 moves reach the proved optimum in at least 9 of 10 problems."""
    hits = 0
    for seed in range(10):
        problem = generate(8, 1 + seed % 4, load=0.5, seed=seed, weighted=seed % 2 == 1)
        exact = solve(problem, solver="labelling", objective=objective)
        assert exact.status is Status.OPTIMAL
        found = solve(problem, objective=objective, moves=20_000)
        goal = Objective.named(objective)
        assert not goal.better(found.score, found.objective, exact.score, exact.objective)
        hits += not goal.better(exact.score, exact.objective, found.score, found.objective)
    assert hits >= 9


def test_constructives_meet_their_textbook_optimum() -> None:
    """One at a time with unit weights, Moore-Hodgson attains what enumeration proves to be the most."""
    for seed in range(6):
        problem = generate(7, 1, load=0.5, seed=seed)
        exact = solve(problem, solver="enumerate")
        assert solve(problem, solver="moore-hodgson").objective == exact.objective
        weighted = generate(7, 1, load=0.5, seed=seed, weighted=True)
        assert (
            solve(weighted, solver="lawler-moore").objective == solve(weighted, solver="enumerate").objective
        )


def test_relabelling_does_not_matter() -> None:
    """Naming the requests otherwise changes neither the value of a plan nor what simple solvers do."""
    rng = np.random.default_rng(0)
    problem = generate(24, 4, load=0.6, seed=3, weighted=True)
    names = rng.permutation(problem.n)
    columns = {
        column: getattr(problem, column)[names]
        for column in ("prompt_tokens", "output_tokens", "elapsed_s", "ttft_s", "tpot_s", "e2e_s", "weight")
    }
    renamed = dataclasses.replace(problem, **columns)
    new_name = np.argsort(names)
    sequence, batches = random_plan(problem, rng)
    assert evaluate(problem, sequence, batches).score == evaluate(renamed, new_name[sequence], batches).score
    for solver in ("fcfs", "edf", "lstf+d", "sjf", "moore-hodgson", "best-fit", "batch-list", "portfolio"):
        one, other = solve(problem, solver=solver), solve(renamed, solver=solver)
        assert new_name[one.sequence].tolist() == other.sequence.tolist()


SCRIPT = """
import sys, warnings
warnings.filterwarnings("ignore")
import numpy as np
from slosched.solvers.static.generated import generate
from slosched.solvers.solve import solve
for n, b in ((9, 1), (10, 4), (5, 8)):
    p = generate(n, b, load=0.5, seed=n, weighted=True)
    for objective in sys.argv[1].split(","):
        r = solve(p, objective=objective, moves=300, seed=3)
        print(r.sequence.tolist(), r.batches.tolist(), round(r.objective, 9))
    for solver in sys.argv[2].split(","):
        r = solve(p, solver=solver, seed=3)
        print(r.sequence.tolist(), r.batches.tolist(), round(r.objective, 9))
"""


def run_script(objectives: str, solvers: str, **environment: str) -> str:
    """Output of the script above in a fresh process, by default compiled."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, objectives, solvers],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout


def test_same_seed_same_result_in_every_process_and_without_the_compiler() -> None:
    """A seed and a move budget give one result in two processes and in the interpreter."""
    what = ("lex,g,tardiness", "huang-literal,lawler-moore,best-fit,batch-list")
    plain = run_script(*what)
    assert plain.count("\n") == 21
    assert run_script(*what) == plain
    assert run_script(*what, NUMBA_DISABLE_JIT="1") == plain


@pytest.mark.slow
def test_kernels_keep_their_bounds(tmp_path: Path) -> None:
    """With numba's bounds checks on, the kernels raise nothing and give the same plans."""
    what = ("lex,g", "moore-hodgson,best-fit,batch-list")
    # A cache of its own: numba's key does not contain the flag.
    checked = run_script(*what, NUMBA_BOUNDSCHECK="1", NUMBA_OPT="0", NUMBA_CACHE_DIR=str(tmp_path))
    assert checked == run_script(*what)


def test_chains_are_reproducible_and_no_worse() -> None:
    """Three chains in threads give the same plan every time, at least as good as the first chain alone."""
    problem = generate(60, 4, load=0.5, seed=2)
    alone = solve(problem, moves=3000, seed=7)
    one, two = (solve(problem, moves=3000, seed=7, chains=3) for _ in range(2))
    assert one.sequence.tolist() == two.sequence.tolist()
    assert not alone.score.better(one.score)
    assert one.moves > alone.moves


def test_time_budget_is_kept() -> None:
    """A budget of milliseconds ends annealing soon after it, also at a thousand requests."""
    problem = generate(1000, 8, seed=0)
    solve(problem, budget_ms=1.0)
    assert min(solve(problem, budget_ms=20.0).seconds for _ in range(5)) < 0.030


def test_two_limits_on_one_request() -> None:
    """With a TTFT and an e2e limit the tighter of the two lines decides, in every batch size."""
    cost = BatchCost()
    for ttft, e2e in ((0.2, 9.0), (9.0, 0.5), (0.2, 0.5)):
        problem = StaticProblem.build(
            prompt_tokens=[100, 100], output_tokens=[10, 10], ttft_s=ttft, e2e_s=e2e, max_batch=2, cost=cost
        )
        for size in (1, 2):
            first = ttft - cost.prefill_s(batch=size, tokens=100)
            end = e2e - cost.prefill_s(batch=size, tokens=100)
            end -= cost.decode_s(batch=size, prompt_tokens=100, output_tokens=10)
            assert problem.latest_start_s(size)[0] == pytest.approx(min(first, end))


def test_problem_of_a_snapshot() -> None:
    """A snapshot's waiting requests become the problem, with their waits, forecasts and limits."""
    requests = [
        Request(
            request_id=str(i),
            prompt_tokens=10 * (i + 1),
            forecast=LengthForecast.point(5 + i),
            slo=Slo(e2e_s=3.0) if i else Slo(),
            arrival_s=float(i),
            weight=float(i),
        )
        for i in range(3)
    ]
    problem = StaticProblem.of(Snapshot.of(requests, now_s=4.0), max_batch=2)
    assert problem.elapsed_s.tolist() == [4.0, 3.0, 2.0]
    assert problem.output_tokens.tolist() == [5.0, 6.0, 7.0]
    assert problem.e2e_s.tolist() == [np.inf, 3.0, 3.0]
    assert problem.max_batch == 2
    assert solve(Snapshot.of(requests, now_s=4.0)).sequence.shape == (3,)


def test_defined_trivial_results() -> None:
    """No request, one request, all hopeless, all met, weights of zero and budgets of zero are all defined."""
    nothing = solve(StaticProblem.build(prompt_tokens=[], output_tokens=[]))
    assert (nothing.status, nothing.objective, nothing.sequence.tolist()) == (Status.OPTIMAL, 0.0, [])
    for name in (*SOLVERS, *EXACT):
        one = solve(StaticProblem.build(prompt_tokens=[5], output_tokens=[5], max_batch=4), solver=name)
        assert (one.status, one.sequence.tolist(), one.batches.tolist()) == (Status.OPTIMAL, [0], [1])
    hopeless = StaticProblem.build(prompt_tokens=[5, 900, 70], output_tokens=[5, 6, 7], e2e_s=1e-6)
    lost = solve(hopeless, moves=500)
    assert (lost.objective, lost.bound, lost.sequence.tolist()) == (0.0, 0.0, [0, 2, 1])
    assert lost.status is Status.OPTIMAL
    easy = StaticProblem.build(prompt_tokens=[5, 900, 70], output_tokens=[5, 6, 7], e2e_s=1e6, max_batch=2)
    assert solve(easy, moves=500).objective == 3.0
    worthless = dataclasses.replace(easy, weight=np.zeros(3))
    for objective in OBJECTIVES:
        for name in SOLVERS:
            assert solve(worthless, solver=name, objective=objective, moves=100).objective == 0.0
    assert solve(easy, budget_ms=0).moves == 0
    assert solve(easy, moves=0).moves == 0
    endless = StaticProblem.build(prompt_tokens=[5, 900, 70], output_tokens=[5, 6, 7], max_batch=2)
    assert solve(endless, moves=500).objective == 3.0


def test_the_gap_is_unknown_without_a_bound() -> None:
    """The G objective of a heuristic has no bound and hence no gap; a proved result has gap 0."""
    problem = generate(8, 2, load=0.5, seed=0)
    heuristic = solve(problem, objective="g", moves=100)
    assert (heuristic.bound, heuristic.gap) == (None, None)
    assert solve(problem, solver="labelling").gap == 0.0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt_tokens": [np.nan, 1.0]}, "prompt_tokens"),
        ({"output_tokens": [0.0, 1.0]}, "output_tokens"),
        ({"elapsed_s": [-1.0, 1.0]}, "elapsed_s"),
        ({"weight": [-1.0, 1.0]}, "weight"),
        ({"weight": [np.inf, 1.0]}, "weight"),
        ({"ttft_s": [0.0, 1.0]}, "ttft_s"),
        ({"e2e_s": [np.nan, 1.0]}, "e2e_s"),
        ({"tpot_s": [1.0]}, "tpot_s"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": 2.5}, "max_batch"),
    ],
)
def test_bad_problems_name_the_field(change: dict[str, object], field: str) -> None:
    """A problem with a value outside its domain is refused, naming the field."""
    good: dict[str, object] = {"prompt_tokens": [1.0, 2.0], "output_tokens": [1.0, 2.0]}
    with pytest.raises(InputError, match=field):
        StaticProblem.build(**{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_bad_coefficients_are_refused(value: float) -> None:
    """A cost coefficient that is not a finite number of at least 0 is refused by name."""
    with pytest.raises(InputError, match="decode_base"):
        BatchCost(decode_base=value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "magic"}, "solver must be one of fcfs"),
        ({"objective": "speed"}, "objective must be one of"),
        ({"objective": "soft"}, "ContinuousProblem"),
        ({"budget_ms": -1.0}, "budget_ms"),
        ({"budget_ms": np.nan}, "budget_ms"),
        ({"moves": -5}, "moves"),
        ({"seed": -1}, "seed"),
        ({"chains": 0}, "chains"),
        ({"start": [0, 0, 1]}, "sequence must be a permutation"),
        ({"start": ([0, 1, 2], [3])}, "batches must be sizes"),
        ({"solver": "cpsat", "objective": "tardiness"}, "use anneal"),
    ],
)
def test_bad_arguments_of_solve(arguments: dict[str, object], message: str) -> None:
    """Each argument of solve outside its domain is an error that says what is allowed."""
    problem = generate(3, 2, seed=0)
    with pytest.raises(InputError, match=message):
        solve(problem, **arguments)  # type: ignore[arg-type]


def test_exact_methods_refuse_large_problems_with_an_alternative() -> None:
    """Beyond their reach the exact solvers say why and name another solver."""
    problem = generate(30, 2, seed=0)
    with pytest.raises(InputError, match=r"grows exponentially.*labelling up to 20 requests, cpsat"):
        solve(problem, solver="enumerate")
    with pytest.raises(InputError, match=r"grows exponentially.*cpsat for a bound or anneal"):
        solve(problem, solver="labelling")
    with pytest.raises(InputError, match="moore-hodgson"):
        solve(dataclasses.replace(problem, weight=problem.weight * 0.5), solver="lawler-moore")


def test_scores_compare_with_tolerance() -> None:
    """Rounding of weight or latency makes no plan better; a real difference does."""
    assert not Score(1.0 + 1e-12, 5.0).better(Score(1.0, 5.0))
    assert not Score(1.0, 5.0 - 1e-12).better(Score(1.0, 5.0))
    assert Score(1.0, 4.9).better(Score(1.0, 5.0))
    assert Score(2.0, 10.0).better_g(Score(1.0, 5.1))
    assert Score(0.0, 0.0).g == 0.0
    assert Score(3.0, 0.5).g == 6.0


def test_a_relative_difference_counts_from_a_billionth_on() -> None:
    """Of latency, and of at least one second of it; of weight over latency, whichever way."""
    assert not Score(1.0, 1e6 - 5e-4).better(Score(1.0, 1e6))
    assert Score(1.0, 1e6 - 5e-3).better(Score(1.0, 1e6))
    assert not Score(1.0, 0.1 - 5e-10).better(Score(1.0, 0.1))
    assert Score(1.0, 0.1 - 2e-9).better(Score(1.0, 0.1))
    assert Score(1.0, 1.5 - 1.7e-9).better(Score(1.0, 1.5))
    assert not Score(1.0, 5.0).better(Score(1.0, 5.0))
    assert not Score(1.0, 5.0).better(Score(2.0, 9.0))
    assert not Score(1.0, 0.0).better(Score(1.0, LATENCY_TOLERANCE))  # the tolerance itself is no difference
    assert not Score(1.0 + WEIGHT_TOLERANCE / 2, 5.0).better(Score(1.0, 4.0))
    assert Score(1.0 + 2 * WEIGHT_TOLERANCE, 5.0).better(Score(1.0, 4.0))
    # Weight 3 in 10 s is less than 1 in 3 s, and more than 1 in 4.
    assert not Score(3.0, 10.0).better_g(Score(1.0, 3.0))
    assert Score(3.0, 10.0).better_g(Score(1.0, 4.0))
    assert not Score(3.0, 10.0).better_g(Score(3.0, 10.0))
    assert not Score(3.0, 10.0).better_g(Score(3.0, 10.0 + 5e-9))
    assert Score(3.0, 10.0).better_g(Score(3.0, 10.0 + 5e-8))
    assert not Score(0.0, 10.0).better_g(Score(0.0, 20.0))


def test_the_gap_is_relative_to_the_bound() -> None:
    """Whichever side it lies on; 0 where proved or met, unknown without a finite bound."""

    def gap(objective: float, bound: float | None, status: Status = Status.FEASIBLE) -> float | None:
        nobody = np.empty(0, dtype=np.int64)
        return Result(
            status=status, score=Score(0.0, 0.0), objective=objective, sequence=nobody, batches=nobody,
            bound=bound,
        ).gap  # fmt: skip

    assert gap(8.0, 10.0) == pytest.approx(0.2)
    assert gap(12.0, 10.0) == pytest.approx(0.2)
    assert gap(-12.0, -10.0) == pytest.approx(0.2)
    assert gap(5.0, 5.0) == gap(0.0, 0.0) == 0.0
    assert gap(0.0, 5.0) == 1.0
    assert gap(5.0, None) is gap(5.0, math.inf) is None
    assert gap(8.0, 10.0, Status.OPTIMAL) == 0.0
