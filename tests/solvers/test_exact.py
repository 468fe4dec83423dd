"""Exact methods for static batches: they agree with each other and with enumeration, and refuse clearly."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.errors import InputError
from slosched.core.result import LATENCY_TOLERANCE, Result, Status
from slosched.solvers.static import cpsat, enumeration, labelling
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import BatchCost, StaticProblem
from slosched.solvers.static.reference import evaluate, full_batches


def random_problem(n: int, max_batch: int, seed: int, *, weighted: bool = True) -> StaticProblem:
    """A small queue with ties in lengths, all kinds of limits, TPOT limits that bind, and some hopeless."""
    rng = np.random.default_rng([n, max_batch, seed])
    out = rng.choice([5, 20, 20, 60, 150], n).astype(float)
    scale = 0.9 * n / max_batch * rng.choice([0.4, 0.8, 1.2])
    limits: dict[str, Any] = {
        "ttft_s": np.where(rng.random(n) < 0.5, rng.uniform(0.05, scale, n), math.inf),
        "tpot_s": np.where(rng.random(n) < 0.3, rng.uniform(0.015, 0.02, n), math.inf),
        "e2e_s": np.where(rng.random(n) < 0.6, rng.uniform(0.2, 2 * scale + 0.5, n), math.inf),
    }
    weight = rng.choice([0.0, 0.5, 1.0, 2.0, 4.0], n) if weighted else 1.0
    return StaticProblem.build(
        prompt_tokens=rng.choice([10, 100, 100, 400], n),
        output_tokens=out,
        elapsed_s=rng.choice([0.0, 0.0, 0.1], n),
        weight=weight,
        max_batch=max_batch,
        **limits,
    )


def naive_start(problem: StaticProblem) -> tuple[list[int], list[int]]:
    """First come, first served, in full batches: a poor plan to beat."""
    return list(range(problem.n)), full_batches(problem.n, problem.max_batch).tolist()


def check(result: Result, problem: StaticProblem, objective: Objective) -> None:
    """The result's claims hold by the reference evaluator, and its bound does not cross its value."""
    again = evaluate(problem, result.sequence, result.batches)
    assert again.score == result.score
    assert again.value(objective) == result.objective
    assert result.bound is None or result.bound >= result.objective - 1e-12


def same(one: Result, two: Result, objective: Objective) -> bool:
    """Whether two optima have the same value."""
    if objective is Objective.G:
        return one.objective == pytest.approx(two.objective, rel=1e-9)
    return one.objective == pytest.approx(two.objective, abs=1e-9) and one.score.latency_s == pytest.approx(
        two.score.latency_s, rel=2 * LATENCY_TOLERANCE
    )


@pytest.mark.parametrize("objective", [Objective.LEX, Objective.G])
@pytest.mark.parametrize("max_batch", [1, 2, 3, 6])
def test_labelling_equals_enumeration(max_batch: int, objective: Objective) -> None:
    """On small queues of every kind the labelling optimum is that of trying every plan, from a poor start."""
    for seed in range(12):
        problem = random_problem(6, max_batch, seed)
        every = enumeration.solve_static(problem, objective)
        labels = labelling.solve_static(problem, objective, start=naive_start(problem))
        assert every.status is labels.status is Status.OPTIMAL
        check(every, problem, objective)
        check(labels, problem, objective)
        assert same(labels, every, objective), seed
        assert every.bound == every.objective


@given(n=st.integers(1, 5), max_batch=st.integers(1, 5), seed=st.integers(0, 10**6), g=st.booleans())
@settings(max_examples=60, deadline=None)
def test_labelling_equals_enumeration_on_any_size(n: int, max_batch: int, seed: int, g: bool) -> None:
    """The two agree for any small n and batch limit, batch limits beyond n included."""
    objective = Objective.G if g else Objective.LEX
    problem = random_problem(n, max_batch, seed)
    every = enumeration.solve_static(problem, objective)
    labels = labelling.solve_static(problem, objective, start=naive_start(problem))
    assert same(labels, every, objective)


@pytest.mark.slow
def test_eight_requests_in_batches_of_eight_are_enumerated() -> None:
    """Eight requests in one batch or many make 545,835 plans, and labelling finds the best of them."""
    problem = random_problem(8, 8, 3)
    every = enumeration.solve_static(problem, budget_s=120)
    assert every.moves == 545_835
    assert same(labelling.solve_static(problem), every, Objective.LEX)


def test_labelling_equals_subset_programme_at_batch_one(oracles: ModuleType) -> None:
    """With batches of one, labelling agrees with the single-machine programme over subsets at n = 13."""
    for seed in range(4):
        problem = random_problem(13, 1, seed)
        run, latest = problem.exec_s(1), problem.latest_start_s(1)
        _, weight, completions = oracles.single_machine_subsets(run, latest, problem.weight)
        labels = labelling.solve_static(problem)
        assert labels.objective == pytest.approx(weight, abs=1e-9)
        assert labels.score.latency_s == pytest.approx(completions + problem.elapsed_total_s, rel=1e-8)


def test_a_good_start_changes_effort_but_not_the_optimum() -> None:
    """Labelling from first come, first served and from an annealed start end in the same value."""
    for seed in range(6):
        problem = random_problem(9, 3, seed)
        poor = labelling.solve_static(problem, start=naive_start(problem))
        good = labelling.solve_static(problem)
        assert same(poor, good, Objective.LEX)
        assert good.moves <= poor.moves


def test_renumbering_requests_changes_nothing() -> None:
    """The optimum does not depend on the order in which requests are listed."""
    problem = random_problem(8, 3, 5)
    turned = np.random.default_rng(0).permutation(8)
    fields = ("prompt_tokens", "output_tokens", "elapsed_s", "ttft_s", "tpot_s", "e2e_s", "weight")
    other = StaticProblem.build(**{name: getattr(problem, name)[turned] for name in fields}, max_batch=3)
    for objective in (Objective.LEX, Objective.G):
        one, two = labelling.solve_static(problem, objective), labelling.solve_static(other, objective)
        assert same(one, two, objective)


@pytest.mark.parametrize("objective", [Objective.LEX, Objective.G])
def test_label_overflow_claims_nothing(objective: Objective) -> None:
    """With room for few labels the search ends in LIMIT with a true bound, and with room it is optimal."""
    problem = random_problem(10, 2, 4)
    start = naive_start(problem)
    cramped = labelling.solve_static(problem, objective, start=start, max_labels=50)
    roomy = labelling.solve_static(problem, objective, start=start)
    assert (cramped.status, roomy.status) == (Status.LIMIT, Status.OPTIMAL)
    check(cramped, problem, objective)
    assert cramped.bound is not None
    assert cramped.objective - 1e-9 <= roomy.objective <= cramped.bound + 1e-9


def test_growing_label_store_does_not_change_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search whose store grew many times in the middle of sets ends as one with room from the beginning."""
    problem = random_problem(10, 3, 4)
    start = naive_start(problem)
    roomy = labelling.solve_static(problem, start=start)
    monkeypatch.setattr(labelling, "FIRST_LABELS", 1)
    grown = labelling.solve_static(problem, start=start)
    assert roomy.status is grown.status is Status.OPTIMAL
    assert grown.moves > roomy.moves  # sets that were interrupted were begun again
    assert same(roomy, grown, Objective.LEX)


def test_no_time_is_a_limit() -> None:
    """With a budget of 0 every exact method returns its start, as LIMIT."""
    problem = random_problem(12, 3, 1)
    start = naive_start(problem)
    result = labelling.solve_static(problem, budget_s=0, start=start)
    assert result.status in (Status.LIMIT, Status.OPTIMAL)
    check(result, problem, Objective.LEX)
    tiny = random_problem(7, 3, 1)
    late = enumeration.solve_static(tiny, budget_s=0, start=naive_start(tiny))
    assert late.status is Status.LIMIT
    assert late.bound is None
    assert late.sequence.tolist() == list(range(7))


@pytest.mark.parametrize("seed", range(4))
def test_cpsat_equals_labelling(seed: int) -> None:
    """CP-SAT proves the same weight, lexicographic value and ratio as labelling."""
    pytest.importorskip("ortools")
    problem = random_problem(6, 1 + seed, seed, weighted=seed % 2 == 0)
    for objective in (Objective.LEX, Objective.G):
        labels = labelling.solve_static(problem, objective)
        sat = cpsat.solve_static(problem, objective, 20, naive_start(problem), resolution_s=1e-6)
        check(sat, problem, objective)
        assert sat.status is Status.OPTIMAL
        assert sat.objective == pytest.approx(labels.objective, rel=1e-5)
        assert sat.score.latency_s == pytest.approx(labels.score.latency_s, rel=1e-5)
    weight = cpsat.solve_static(problem, "attainment", 20)
    assert weight.status is Status.OPTIMAL
    assert weight.objective == pytest.approx(labelling.solve_static(problem).objective, abs=1e-4)


def test_coarse_cpsat_never_claims_too_much() -> None:
    """At a unit of half a second CP-SAT's bound still holds, and its plan still has the value it claims."""
    pytest.importorskip("ortools")
    for seed in range(4):
        problem = random_problem(6, 2, seed, weighted=False)
        best = labelling.solve_static(problem)
        coarse = cpsat.solve_static(problem, "attainment", 10, naive_start(problem), resolution_s=0.5)
        check(coarse, problem, Objective.LEX)
        assert coarse.bound is not None
        assert coarse.objective <= best.objective <= coarse.bound


def poor_run(problem: StaticProblem, *, ratio: bool = False) -> cpsat._Run:
    """A search that begins with a poor plan, so that what it finds hides nothing."""
    start = naive_start(problem)
    plan = np.array(start[0], dtype=np.int64), np.array(start[1], dtype=np.int64)
    return cpsat._Run(problem, ratio, time.perf_counter() + 300, 2, 0, plan, evaluate(problem, *plan).score)


@pytest.mark.parametrize("resolution_s", [1e-6, 0.02, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_cpsat_attainment_bound(resolution_s: float, weighted: bool) -> None:
    """Whatever the unit of time, the bound is at least the optimum, and at a fine one it is the optimum."""
    pytest.importorskip("ortools")
    for seed in range(5):
        problem = random_problem(6, 1 + seed % 3, seed, weighted=weighted)
        best = labelling.solve_static(problem).objective
        run = poor_run(problem)
        model = cpsat._Model(cpsat._Rounded.of(problem, resolution_s, None), everyone=False)
        proved, bound = run.attainment(model)
        assert proved
        assert bound >= best - 1e-9
        if resolution_s < 1e-3:
            assert bound == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("resolution_s", [1e-6, 0.02])
def test_cpsat_ratio_bound(resolution_s: float) -> None:
    """The same of weight over latency."""
    pytest.importorskip("ortools")
    for seed in range(4):
        problem = random_problem(5, 1 + seed % 3, seed)
        best = labelling.solve_static(problem, Objective.G).objective
        run = poor_run(problem, ratio=True)
        _, bound = run.dinkelbach(cpsat._Model(cpsat._Rounded.of(problem, resolution_s, None), everyone=True))
        assert bound >= best * (1 - 1e-9)
        if resolution_s < 1e-3:
            assert bound == pytest.approx(best, rel=1e-3)


def test_rounding_makes_nothing_harder() -> None:
    """Executions round down and latest starts up: a plan on time to the instant stays on time."""
    problem = random_problem(6, 3, 1)
    for unit_s in (1e-5, 0.013, 0.4):
        whole = cpsat._Rounded.of(problem, unit_s, None)
        for size in range(1, 4):
            run_s, latest_s = problem.exec_s(size), problem.latest_start_s(size)
            for i in range(6):
                assert run_s[i] - unit_s < whole.runs[i][size] * unit_s <= run_s[i] * (1 + 1e-12)
                if latest_s[i] >= 0:
                    assert whole.latest[i][size] * unit_s >= min(latest_s[i], problem.exec_s(3).sum()) - 1e-12


def test_cpsat_out_of_time_keeps_start_and_true_bound() -> None:
    """With hardly any time CP-SAT returns at least its start and a bound that the optimum respects."""
    pytest.importorskip("ortools")
    problem = random_problem(12, 4, 2)
    best = labelling.solve_static(problem)
    start = (best.sequence, best.batches)
    for objective in ("attainment", "lex", "g"):
        hurried = cpsat.solve_static(problem, objective, 0.0, start)
        target = labelling.solve_static(problem, "g").objective if objective == "g" else best.objective
        assert hurried.score.weight >= best.score.weight or objective == "g"
        assert hurried.bound is None or hurried.bound >= target - 1e-9


def test_cpsat_with_few_batches_gives_no_bound() -> None:
    """Capping the number of batches is a restriction: the plan counts, the bound does not."""
    pytest.importorskip("ortools")
    problem = random_problem(6, 3, 1)
    capped = cpsat.solve_static(problem, "attainment", 5, max_batches=2)
    assert capped.status is Status.LIMIT
    assert capped.bound is None


def test_published_batching_optima_are_not_beaten() -> None:
    """Without the sizes, and with completion before the batch ends, published optima are upper bounds.

    The published problem limits a batch by the sum of sizes and ends every job with its batch, neither of
    which static batches can express. Relaxed to the most jobs that ever fit, it must not cost more, and where
    no two jobs fit together it costs the same.
    """
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("SLOSCHED_DATA") or root.parent / "shared" / "data")
    path = folder / "combinatorial" / "pbatch_sizes.jsonl.gz"
    if not path.exists():
        pytest.skip("pbatch_sizes.jsonl.gz is absent: set SLOSCHED_DATA to the data folder")
    with gzip.open(path, "rt") as lines:
        rows = [row for line in lines if (row := json.loads(line))["n"] == 10]
    cost = BatchCost(**{name: float(name == "prefill_token") for name in BatchCost.__slots__})
    singles = 0
    for row in rows[::3]:
        fit = max(1, int(np.searchsorted(np.cumsum(sorted(row["s"])), row["B"], side="right")))
        problem = StaticProblem.build(prompt_tokens=row["p"], output_tokens=1.0, max_batch=fit, cost=cost)
        best = labelling.solve_static(problem, start=(range(10), [1] * 10))
        assert best.status is Status.OPTIMAL
        assert best.score.latency_s <= row["sumC_opt"] + 1e-6
        if fit == 1:
            singles += 1
            assert best.score.latency_s == pytest.approx(row["sumC_opt"])
    assert singles > 0


def test_no_requests_and_one_request() -> None:
    """The empty queue and a single request are solved at once by every method."""
    pytest.importorskip("ortools")
    empty = StaticProblem.build(prompt_tokens=[], output_tokens=[], max_batch=4)
    one = StaticProblem.build(prompt_tokens=[10], output_tokens=[5], e2e_s=[9.0], max_batch=4)
    for solve in (enumeration.solve_static, labelling.solve_static, cpsat.solve_static):
        for objective in ("lex", "g"):
            nothing = solve(empty, objective)
            assert (nothing.status, nothing.objective) == (Status.OPTIMAL, 0.0)
            single = solve(one, objective)
            assert (single.status, single.score.weight) == (Status.OPTIMAL, 1.0)


def test_all_hopeless_all_met_and_no_weight() -> None:
    """Queues where nothing can be won or lost are proved optimal by least latency alone."""
    for limit, weight, value in ((1e-3, 1.0, 0.0), (1e6, 1.0, 5.0), (5.0, 0.0, 0.0)):
        problem = StaticProblem.build(
            prompt_tokens=[10] * 5, output_tokens=[9, 5, 5, 20, 1], e2e_s=limit, weight=weight, max_batch=2
        )
        for objective in (Objective.LEX, Objective.G):
            labels = labelling.solve_static(problem, objective)
            every = enumeration.solve_static(problem, objective)
            assert labels.status is Status.OPTIMAL
            assert labels.score.weight == value
            assert same(labels, every, objective)


def test_too_many_requests_are_refused_with_the_alternative() -> None:
    """Beyond its reach each method says how far it goes and what to use instead."""
    problem = random_problem(23, 2, 0)
    for solve, words in (
        (enumeration.solve_static, "at most 8 .* labelling"),
        (labelling.solve_static, "at most 22 .* cpsat"),
    ):
        with pytest.raises(InputError, match=words):
            solve(problem)
    with pytest.raises(InputError, match="use anneal"):
        cpsat.solve_static(random_problem(201, 2, 0))
    with pytest.raises(InputError, match="batches"):
        labelling.solve_static(random_problem(22, 22, 0))


@pytest.mark.parametrize("solve", [enumeration.solve_static, labelling.solve_static, cpsat.solve_static])
def test_bad_arguments_are_named(solve: object) -> None:
    """Unknown objectives, negative budgets and starts that are no plan are refused by name."""
    assert callable(solve)
    problem = random_problem(4, 2, 0)
    with pytest.raises(InputError, match="objective"):
        solve(problem, "speed")
    with pytest.raises(InputError, match="objective"):
        solve(problem, "tardiness")
    with pytest.raises(InputError, match="budget_s"):
        solve(problem, budget_s=-1)
    with pytest.raises(InputError, match="sequence"):
        solve(problem, start=([0, 0, 1, 2], [2, 2]))


SCRIPT = """
import numpy as np
from slosched.solvers.static import enumeration
from slosched.solvers.static import labelling
from slosched.solvers.static import tardiness
from slosched.solvers.static.problem import StaticProblem
problem = StaticProblem.build(
    prompt_tokens=[10, 100, 100, 400, 20], output_tokens=[5, 20, 20, 60, 9], ttft_s=[.3, .2, 1, 9, .1],
    e2e_s=[np.inf, .6, .9, 2.0, np.inf], tpot_s=[.0165, 1, 1, 1, 1], weight=[1, 2, 1, .5, 4], max_batch=3,
)
start = [0, 1, 2, 3, 4], [3, 2]
for goal in ("lex", "g"):
    labels = labelling.solve_static(problem, goal, start=start)
    every = enumeration.solve_static(problem, goal)
    assert labels.status.value == "optimal"
    assert abs(labels.objective - every.objective) < 1e-9
    print(repr(labels.objective), labels.sequence.tolist(), labels.batches.tolist(), labels.moves)
jobs = [5, 3, 8, 2, 7, 4], [1, 9, 2, 3, 5, 4], [6, 5, 9, 4, 12, 8]
found = tardiness.solve_tardiness(*jobs, moves=3000, seed=3)
print(found.objective, found.sequence.tolist(), found.moves)
"""


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK"])
def test_kernels_run_unjitted_and_with_bounds_checks(setting: str, tmp_path: Path) -> None:
    """Interpreted, bounds-checked and compiled kernels give the same plans in separate processes."""

    def run(**extra: str) -> str:
        command = [sys.executable, "-W", "error", "-c", SCRIPT]
        environment = {**os.environ, **extra}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=300
        ).stdout

    assert run(**{setting: "1", "NUMBA_CACHE_DIR": str(tmp_path)}) == run()
