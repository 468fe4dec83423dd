"""`solve`: one front for all solvers of a queue, in static batches here, in continuous ones by
`slosched.solvers.solve_continuous`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Ints
from slosched.core.errors import InputError, require
from slosched.core.result import Result, Status
from slosched.core.snapshot import Snapshot
from slosched.solvers.continuous_problem import ContinuousProblem
from slosched.solvers.solve_continuous import solve_continuous
from slosched.solvers.static import constructive
from slosched.solvers.static.annealing import (
    anneal_static,
    huang_annealing,
    tardiness_annealing,
)
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem
from slosched.solvers.static.reference import Batched, check_plan, evaluate_fast, full_batches

Start = Sequence[int] | Ints | tuple[Sequence[int] | Ints, Sequence[int] | Ints]
"""A sequence (cut into full batches), or a sequence with the sizes of its batches."""

DEFAULT_BUDGET_MS = 1.0
DEFAULT_EXACT_BUDGET_MS = 10_000.0
EXACT_LIMITS = {"enumeration": 8, "labelling": 20}
"""Most requests the exact methods take here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a solver is asked: a problem of at least two requests and the limits of the search."""

    problem: StaticProblem
    objective: Objective
    begin_ns: int
    budget_ms: float | None
    moves: int | None
    seed: int
    chains: int
    start: Batched | None


class Solver(Protocol):
    """A solver: the plan, the moves it took."""

    def __call__(self, task: Task) -> tuple[Batched, int]:
        """Order and cut the requests of a task."""


def _dispatch(key: Callable[[StaticProblem], NDArray[np.float64]], demote: bool) -> Solver:
    return lambda task: (constructive.dispatch(task.problem, key(task.problem), demote=demote), 1)


def _build(build: Callable[[StaticProblem], Batched]) -> Solver:
    return lambda task: (build(task.problem), 1)


def _portfolio(task: Task) -> tuple[Batched, int]:
    plans = constructive.candidates(task.problem)
    return constructive.best_of(task.problem, plans, task.objective), len(plans)


def _anneal(task: Task) -> tuple[Batched, int]:
    start = task.start or constructive.portfolio(task.problem, task.objective, budget_ms=task.budget_ms)
    if task.budget_ms == 0 or task.moves == 0:
        return start, 0
    if task.objective is Objective.TARDINESS:
        return tardiness_annealing(
            task.problem,
            start,
            moves=task.moves,
            budget_ms=task.budget_ms,
            begin_ns=task.begin_ns,
            seed=task.seed,
        )
    return anneal_static(
        task.problem,
        start,
        task.objective,
        moves=task.moves,
        budget_ms=task.budget_ms,
        begin_ns=task.begin_ns,
        seed=task.seed,
        chains=task.chains,
    )


def _huang(scaled: bool, last: bool = False) -> Solver:
    return lambda task: huang_annealing(task.problem, seed=task.seed, scaled=scaled, last=last)


SOLVERS: dict[str, Solver] = {
    "fcfs": _dispatch(constructive.fcfs_key, False),
    "edf": _dispatch(constructive.edf_key, False),
    "lstf": _dispatch(constructive.lstf_key, False),
    "sjf": _dispatch(constructive.sjf_key, False),
    "edf+d": _dispatch(constructive.edf_key, True),
    "lstf+d": _dispatch(constructive.lstf_key, True),
    "sjf+d": _dispatch(constructive.sjf_key, True),
    "moore-hodgson": _build(constructive.moore_hodgson),
    "lawler-moore": _build(constructive.lawler_moore),
    "best-fit": _build(constructive.best_fit),
    "batch-list": _build(constructive.batch_list),
    "portfolio": _portfolio,
    "anneal": _anneal,
    "huang-literal": _huang(False),
    "huang-scaled": _huang(True),
    "huang-last": _huang(False, last=True),
}
"""Heuristics by name; the exact ones are in `EXACT`."""

EXACT = {"enumerate": "enumeration", "labelling": "labelling", "cpsat": "cpsat"}
"""Exact solvers: name and module, imported on use."""


def solve(
    problem: Snapshot | ContinuousProblem | StaticProblem,
    *,
    solver: str = "anneal",
    objective: str | Objective | None = None,
    budget_ms: float | None = None,
    moves: int | None = None,
    seed: int = 0,
    chains: int = 1,
    start: Start | None = None,
) -> Result:
    """Order a queue.

    Parameters
    ----------
    problem
        A snapshot or a continuous problem: an order of admission for an engine that batches continuously, as
        real ones do, see `slosched.solvers.solve_continuous.solve_continuous`. A static problem (of a
        snapshot: `StaticProblem.of`): an order and its cuts into batches; the rest of this text is about it.
    solver
        A name in `SOLVERS` or `EXACT`.
    objective
        "lex" (most weight attained, then least latency; the default), "g", "goodput" or "tardiness". In
        continuous batching "soft" (the default), "lex" or "goodput".
    budget_ms
        Wall time in milliseconds, at least 0, for solvers that search; 0 gives the best simple plan. Without
        `budget_ms` and `moves`: 1 ms for annealing, 10 s for the exact solvers.
    moves
        Moves to make, at least 0: the result then depends on the seed alone, not on the machine's speed.
    seed, chains
        Seed at least 0; chains of annealing in threads, at least 1.
    start
        Plan to start from; annealing never returns a worse one.

    Returns
    -------
    Result
        `bound` is the weight of requests that are not hopeless (lex, goodput) or what an exact solver proved.

    Raises
    ------
    InputError
        On an unknown name, a value outside its domain, or more requests than an exact solver takes.

    Examples
    --------
    >>> p = StaticProblem.build(prompt_tokens=[200, 100], output_tokens=[80, 20], e2e_s=[4.0, 0.7])
    >>> result = solve(p, moves=200)
    >>> result.sequence.tolist(), result.objective, result.bound
    ([1, 0], 2.0, 2.0)
    """
    begin_ns = time.monotonic_ns()
    _check(budget_ms, moves, seed, chains)
    if isinstance(problem, Snapshot):
        problem = ContinuousProblem(snapshot=problem)
    if isinstance(problem, ContinuousProblem):
        name = objective.value if isinstance(objective, Objective) else objective or "soft"
        return solve_continuous(
            problem,
            solver=solver,
            objective=name,
            budget_ms=budget_ms,
            moves=moves,
            seed=seed,
            chains=chains,
            start=start,  # type: ignore[arg-type]
        )
    goal = Objective.named(objective or Objective.LEX)
    known = (*SOLVERS, *EXACT)
    require(solver in known, "solver", f"one of {', '.join(known)}", solver)
    original = problem
    ok = isinstance(original, StaticProblem)
    require(ok, "problem", "a Snapshot, a ContinuousProblem or a StaticProblem", problem)
    weighted = goal.reweighted(original)
    plan = None if start is None else _plan(weighted, start)
    if original.n <= 1:
        only = np.arange(original.n, dtype=np.int64)
        return _result(weighted, goal, solver, (only, np.ones_like(only)), 0, begin_ns)
    if solver in EXACT:
        return _exact(weighted, goal, solver, budget_ms, plan, begin_ns)
    if budget_ms is None and moves is None:
        budget_ms = DEFAULT_BUDGET_MS
    task = Task(
        problem=weighted,
        objective=goal,
        begin_ns=begin_ns,
        budget_ms=budget_ms,
        moves=moves,
        seed=seed,
        chains=chains,
        start=plan,
    )
    found, made = SOLVERS[solver](task)
    return _result(weighted, goal, solver, found, made, begin_ns)


def _check(budget_ms: float | None, moves: int | None, seed: int, chains: int) -> None:
    ok = budget_ms is None or 0 <= budget_ms < 1e12
    require(ok, "budget_ms", "a finite number of milliseconds of at least 0, or None", budget_ms)
    ok = moves is None or (isinstance(moves, int) and moves >= 0)
    require(ok, "moves", "an integer of at least 0, or None", moves)
    require(isinstance(seed, int) and seed >= 0, "seed", "an integer of at least 0", seed)
    require(isinstance(chains, int) and 1 <= chains <= 64, "chains", "an integer from 1 to 64", chains)


def _plan(problem: StaticProblem, start: Start) -> Batched:
    if isinstance(start, tuple) and len(start) == 2 and np.ndim(start[0]) == 1:
        return check_plan(problem, start[0], start[1])  # type: ignore[arg-type]
    return check_plan(problem, start, full_batches(problem.n, problem.max_batch))  # type: ignore[arg-type]


def _result(
    problem: StaticProblem, goal: Objective, solver: str, plan: Batched, moves: int, begin_ns: int
) -> Result:
    """Value a heuristic's plan; `problem` is the reweighted one."""
    found = evaluate_fast(problem, *plan)
    value = found.value(goal)
    bound, proved = _bound(problem, goal, found.score.weight, found.score.latency_s)
    if problem.n <= 1:
        bound, proved = value, True
    return Result(
        status=Status.OPTIMAL if proved else Status.FEASIBLE,
        score=found.score,
        objective=value,
        bound=bound,
        sequence=plan[0],
        batches=plan[1],
        moves=moves,
        seconds=(time.monotonic_ns() - begin_ns) / 1e9,
        solver=solver,
        prediction=found.prediction,
    )


def _bound(
    problem: StaticProblem, goal: Objective, weight: float, latency_s: float
) -> tuple[float | None, bool]:
    """A bound that costs nothing, and whether it proves the plan best."""
    if goal not in (Objective.LEX, Objective.GOODPUT):
        return None, False
    bound = float(problem.weight[~constructive.hopeless(problem)].sum())
    if problem.max_batch > 1 or abs(weight - bound) > 1e-9 * max(1.0, bound):
        return bound, False
    # One at a time, shortest first has the least latency of all orders.
    shortest = evaluate_fast(problem, *constructive.dispatch(problem, constructive.sjf_key(problem)))
    return bound, latency_s <= shortest.score.latency_s * (1 + 1e-12)


def _exact(
    problem: StaticProblem,
    goal: Objective,
    solver: str,
    budget_ms: float | None,
    start: Batched | None,
    begin_ns: int,
) -> Result:
    most = EXACT_LIMITS.get(EXACT[solver])
    if most is not None and problem.n > most:
        other = "labelling up to 20 requests, " if solver == "enumerate" else ""
        raise InputError(
            f"n must be at most {most} for solver {solver!r}, whose work grows exponentially, got "
            f"{problem.n}; use {other}cpsat for a bound or anneal for a plan."
        )
    if goal is Objective.TARDINESS:
        raise InputError(
            f"objective must be lex, g or goodput for solver {solver!r}, got 'tardiness'; use anneal."
        )
    begun = start or constructive.portfolio(problem, goal)
    asked = Objective.LEX if goal is Objective.GOODPUT else goal
    if start is None:
        begun, _ = anneal_static(problem, begun, asked, moves=20_000)
    module = importlib.import_module(f"slosched.solvers.static.{EXACT[solver]}")
    budget_s = (DEFAULT_EXACT_BUDGET_MS if budget_ms is None else budget_ms) / 1e3
    used_s = (time.monotonic_ns() - begin_ns) / 1e9
    result: Result = module.solve_static(problem, asked, max(0.0, budget_s - used_s), begun)
    return result


def warm() -> None:
    """Compile, or load from the cache, the kernels behind `solve`."""
    problem = StaticProblem.build(
        prompt_tokens=[10.0] * 6, output_tokens=[5.0] * 6, e2e_s=1.0, weight=np.arange(6.0), max_batch=2
    )
    for name in ("lawler-moore", "portfolio", "anneal", "huang-scaled"):
        solve(problem, solver=name, moves=64)
    solve(problem, objective="tardiness", moves=64)
