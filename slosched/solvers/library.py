"""The library of queue instances: plans searched and proved, recomputed by the slow evaluators, submitted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from slosched.core.errors import InputError, require
from slosched.core.result import Result, Score, Status
from slosched.planner import model as c
from slosched.planner import reference as continuous_reference
from slosched.solvers.continuous_problem import check_sequence
from slosched.solvers.instances import Best, Instance, read, write
from slosched.solvers.solve import EXACT_LIMITS, solve
from slosched.solvers.solve_continuous import MOST_ENUMERATED
from slosched.solvers.static.generated import named
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem
from slosched.solvers.static.reference import evaluate

STORED_TOLERANCE = 1e-6
"""Relative difference at which a stored value counts as not recomputing."""
FILES = ("static.json", "overload.json")
"""Files that come with the package: synthetic queues, and queues of a simulated engine in overload."""
RUNS = 4
"""Searches, seeds 0 to 3, of which the best plan counts."""


def check(instances: Sequence[Instance]) -> list[str]:
    """Recompute every stored plan with the slow reference evaluator of its kind.

    Returns
    -------
    list of str
        One line per stored value that does not recompute or that crosses its bound; empty if all is well.
    """
    return [
        f"{instance.name}, {objective}: {fault}"
        for instance in instances
        for objective, best in instance.best.items()
        for fault in _faults(instance, Objective.named(objective), best)
    ]


def recompute(instance: Instance, goal: Objective, best: Best) -> tuple[Score, float]:
    """Score and value of a stored plan, by the reference that defines the truth.

    Raises
    ------
    InputError
        If the plan is none of this instance.
    """
    if instance.kind == "static":
        found = evaluate(goal.reweighted(instance.problem()), best.sequence, best.batches)
        return found.score, found.value(goal)
    require(not best.batches, "batches", "empty in continuous batching", best.batches)
    problem = instance.continuous()
    order = check_sequence(best.sequence, problem.n) + problem.running
    jobs, aim = problem.jobs_for(goal.value), problem.aim_for(goal.value)
    served = continuous_reference.evaluate(
        jobs, problem.running, order.tolist(), problem.engine, aim.tolist()
    )
    weight = math.fsum(float(jobs[i, c.WEIGHT]) * chance for i, chance in served.chance.items())
    latency_s = math.fsum(end - float(jobs[i, c.ARRIVAL]) for i, end in served.finish_s.items())
    return Score(weight, latency_s), weight


def _faults(instance: Instance, goal: Objective, best: Best) -> list[str]:
    try:
        score, value = recompute(instance, goal, best)
    except InputError as error:
        return [str(error)]
    faults = []
    for name, stored, real in (
        ("weight", best.weight, score.weight),
        ("latency_s", best.latency_s, score.latency_s),
        ("value", best.value, value),
    ):
        if not abs(stored - real) <= STORED_TOLERANCE * max(1.0, abs(real)):
            faults.append(f"{name} must be {real!r}, got {stored!r}.")
    if best.bound is not None:
        over = best.bound - best.value if goal.minimised else best.value - best.bound
        if not over <= STORED_TOLERANCE * max(1.0, abs(best.value)):
            faults.append(f"bound must not be beyond the value {best.value!r}, got {best.bound!r}.")
    return faults


def submit(instances: Sequence[Instance], submitted: Sequence[Instance]) -> tuple[list[Instance], list[str]]:
    """Take over better plans from a submitted file.

    Every submitted plan is recomputed on OUR instance of the same name. Bounds and proofs of a submission
    cannot be checked: ours stay.

    Returns
    -------
    tuple
        The library and one line per improvement.

    Raises
    ------
    InputError
        If a name is not in the library, or a plan does not recompute.
    """
    ours = {instance.name: instance for instance in instances}
    news = []
    for theirs in submitted:
        require(theirs.name in ours, "submission", "instances of the library", theirs.name)
        for objective, plan in theirs.best.items():
            mine, goal = ours[theirs.name], Objective.named(objective)
            old = mine.best.get(objective)
            bound, optimal = (old.bound, False) if old else (None, False)
            kept = dataclasses.replace(plan, bound=bound, optimal=optimal)
            faults = _faults(mine, goal, kept)
            require(not faults, f"submission {mine.name}, {objective}", "a plan that recomputes", faults[:1])
            score = Score(plan.weight, plan.latency_s)
            if old is None or goal.better(score, plan.value, Score(old.weight, old.latency_s), old.value):
                ours[mine.name] = dataclasses.replace(mine, best={**mine.best, objective: kept})
                before = "none" if old is None else f"{old.value:.9g} ({old.latency_s:.6f} s)"
                news.append(
                    f"{mine.name}, {objective}: {before} -> {plan.value:.9g} ({plan.latency_s:.6f} s)"
                )
    return list(ours.values()), news


def with_best_known(instance: Instance, *, moves: int = 200_000, exact_s: float = 10.0) -> Instance:
    """The instance with the best plans that searches and exact methods find.

    Static, for lex and g: the best of `RUNS` annealings of `moves` moves; then the labelling method up to 20
    requests, else CP-SAT's bound up to 60, either with `exact_s` seconds. Continuous, for lex: enumeration up
    to 8 requests, else the best of `RUNS` searches of ``moves / 100`` moves and, up to 60, CP-SAT's bound.
    A bound that is not proved is None, or the weight of what is not hopeless.

    Raises
    ------
    InputError
        If a number is off its domain.
    """
    require(moves >= 100, "moves", "at least 100", moves)
    require(0 <= exact_s < math.inf, "exact_s", "a finite number of seconds of at least 0", exact_s)
    if instance.kind == "continuous":
        return instance.with_best(Objective.LEX, _continuous_best(instance, moves // 100, exact_s))
    for goal in (Objective.LEX, Objective.G):
        instance = instance.with_best(goal, _static_best(instance.problem(), goal, moves, exact_s))
    return instance


MOST_BOUNDED = 60
"""Most requests for which CP-SAT is asked for a bound."""


def _better(goal: Objective, one: Result, other: Result) -> bool:
    return goal.better(one.score, one.objective, other.score, other.objective)


def _best_of(goal: Objective, runs: Iterable[Result]) -> Result:
    """The best of some results, the first among equals."""
    first, *rest = runs
    for run in rest:
        if _better(goal, run, first):
            first = run
    return first


def _static_best(problem: StaticProblem, goal: Objective, moves: int, exact_s: float) -> Result:
    best = _best_of(goal, (solve(problem, objective=goal, moves=moves, seed=seed) for seed in range(RUNS)))
    exact = "labelling" if problem.n <= EXACT_LIMITS["labelling"] else "cpsat"
    if best.status is Status.OPTIMAL or exact_s == 0 or problem.n > MOST_BOUNDED:
        return best
    start = (best.sequence, best.batches)
    proved = solve(problem, solver=exact, objective=goal, budget_ms=exact_s * 1e3, start=start)
    if _better(goal, proved, best) or proved.status is Status.OPTIMAL:
        return proved
    return dataclasses.replace(best, bound=_tighter(best.bound, proved.bound))


def _continuous_best(instance: Instance, moves: int, exact_s: float) -> Result:
    problem, goal = instance.continuous(), Objective.LEX
    if problem.n <= MOST_ENUMERATED:
        return solve(problem, solver="enumerate", objective=goal, budget_ms=60_000)
    best = _best_of(goal, (solve(problem, objective=goal, moves=moves, seed=seed) for seed in range(RUNS)))
    if exact_s == 0 or problem.n > MOST_BOUNDED:
        return best
    proved = solve(
        problem,
        solver="cpsat",
        objective=goal,
        moves=0,
        budget_ms=exact_s * 1e3,
        start=best.sequence.tolist(),
    )
    return dataclasses.replace(best, bound=_tighter(best.bound, proved.bound))


def _tighter(one: float | None, other: float | None) -> float | None:
    """The smaller of two bounds on something maximised."""
    known = [bound for bound in (one, other) if bound is not None]
    return min(known, default=None)


def build(names: Iterable[str], *, moves: int = 2_000_000, exact_s: float = 10.0) -> list[Instance]:
    """Synthetic instances by name (`slosched.solvers.static.generated.named`) with their best-known plans."""
    source = "generated by slosched.solvers.static.generated"
    return [
        with_best_known(Instance.of(named(name), name, source=source), moves=moves, exact_s=exact_s)
        for name in names
    ]


def folder() -> Path:
    """Where the package keeps its instances."""
    return Path(str(resources.files("slosched.solvers") / "data"))


def library() -> list[Instance]:
    """The instances that come with the package."""
    return [instance for file in FILES for instance in read(folder() / file)]


def store(instances: Sequence[Instance], into: Path | None = None) -> list[Path]:
    """Write the package's instances back to their files, in the package or another folder."""
    known = {instance.name: instance for instance in instances}
    written = []
    for file in FILES:
        path = (into or folder()) / file
        write(path, [known[old.name] for old in read(folder() / file)])
        written.append(path)
    return written
