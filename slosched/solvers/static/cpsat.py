"""OR-Tools CP-SAT as referee: static batches for attainment, lexicographically and for Huang's ratio.

CP-SAT counts in whole units of `resolution_s`. Executions are rounded down and latest starts up, so every
real plan is a plan of the model with no less weight and no more latency: what CP-SAT proves bounds the real
problem. What it finds is run again with the real numbers and reported by that value, and the caller's start
is kept where it is better: a result is attainable, whatever the rounding. Both meet when the resolution is
fine enough.

Needs the extra ``exact``. With several workers CP-SAT is not reproducible: the optimum is, the plan may not
be.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import InputError, MissingExtraError, require
from slosched.core.result import WEIGHT_TOLERANCE, Result, Score, Status
from slosched.solvers.static.labelling import annealed_start
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem
from slosched.solvers.static.reference import Batched, IntsLike, check_plan, evaluate, full_batches

MAX_REQUESTS = 200
FINEST_S = 1e-7
_FRACTIONS = 1_000_000  # weights that are not whole are counted in millionths


def cp_model() -> Any:
    """The CP-SAT module, or `MissingExtraError`."""
    try:
        from ortools.sat.python import cp_model as module
    except ImportError:
        raise MissingExtraError("ortools", "exact") from None
    return module


def whole_weights(weight: Floats) -> tuple[list[int], float]:
    """Weights as integers no smaller than the real ones, and the factor between them.

    Examples
    --------
    >>> whole_weights(np.array([1.0, 4.0])), whole_weights(np.array([0.5]))
    (([1, 4], 1.0), ([500000], 1000000.0))
    """
    if bool(np.all(weight == np.floor(weight))) and float(weight.sum()) < 2**40:
        return [int(w) for w in weight.tolist()], 1.0
    factor = _FRACTIONS / max(1.0, float(weight.max()))
    return [math.ceil(w * factor) for w in weight.tolist()], factor


@dataclass(slots=True)
class _Rounded:
    """A problem in whole units: tables [request][size], the latest start -1 where there is none."""

    problem: StaticProblem
    unit_s: float
    largest: int
    rows: int
    runs: list[list[int]]
    latest: list[list[int]]
    horizon: int
    weight: list[int]
    factor: float

    @classmethod
    def of(cls, problem: StaticProblem, resolution_s: float, max_batches: int | None) -> _Rounded:
        """The problem in whole units of time, rounded so that nothing feasible is lost."""
        n, largest = problem.n, min(problem.max_batch, problem.n)
        runs = [[0] * (largest + 1) for _ in range(n)]
        latest = [[-1] * (largest + 1) for _ in range(n)]
        # No start of a plan without idle time is later than the sum of all executions at the largest batch.
        end = float(problem.exec_s(largest).sum())
        for size in range(1, largest + 1):
            run, last = problem.exec_s(size), problem.latest_start_s(size)
            for i in range(n):
                runs[i][size] = math.floor(float(run[i]) / resolution_s)
                if last[i] >= 0:
                    latest[i][size] = math.ceil(min(float(last[i]), end) / resolution_s)
        weight, factor = whole_weights(problem.weight)
        return cls(
            problem=problem,
            unit_s=resolution_s,
            largest=largest,
            rows=n if max_batches is None else min(n, max_batches),
            runs=runs,
            latest=latest,
            horizon=math.ceil(end / resolution_s) + 1,
            weight=weight,
            factor=factor,
        )


class _Model:
    """A CP-SAT model of the batches.

    Row k has a start S, a duration d and a size that is one of 0..b (`size[k]`, one boolean each); ``placed``
    says who is in which row. With `everyone` all requests are placed and booleans ``met`` say who is on time;
    without it only those on time are placed, the others being left for the end.
    """

    def __init__(self, rounded: _Rounded, everyone: bool) -> None:
        self.r, self.everyone, self.cp = rounded, everyone, cp_model()
        self.model = self.cp.CpModel()
        n, rows, b = rounded.problem.n, rounded.rows, rounded.largest
        new = self.model.new_int_var
        self.start = [new(0, 0 if k == 0 else rounded.horizon, f"S{k}") for k in range(rows)]
        longest = max((run for runs in rounded.runs for run in runs), default=0)
        self.duration = [new(0, longest, f"d{k}") for k in range(rows)]
        flag = self.model.new_bool_var
        self.size = [[flag(f"z{k},{size}") for size in range(b + 1)] for k in range(rows)]
        self.placed = [[flag(f"x{i},{k}") for k in range(rows)] for i in range(n)]
        self.met = [flag(f"a{i}") for i in range(n)] if everyone else []
        most = rounded.horizon + longest
        self.latency = [new(0, most, f"l{i}") for i in range(n)] if everyone else []
        self._rows()
        self._requests()

    def _rows(self) -> None:
        """Sizes, durations and the order of the rows: used ones first; a row lasts at least its area."""
        r, model = self.r, self.model
        for k in range(r.rows):
            members = [self.placed[i][k] for i in range(r.problem.n)]
            model.add_exactly_one(self.size[k])
            model.add(sum(members) == sum(size * self.size[k][size] for size in range(1, r.largest + 1)))
            area = sum(r.runs[i][1] * self.placed[i][k] for i in range(r.problem.n))
            model.add(r.largest * self.duration[k] >= area)
            if k + 1 < r.rows:
                model.add(self.start[k + 1] == self.start[k] + self.duration[k])
                model.add_implication(self.size[k][0], self.size[k + 1][0])

    def _requests(self) -> None:
        """Where each request may go, and what follows from it."""
        r, model = self.r, self.model
        for i in range(r.problem.n):
            if self.everyone:
                model.add_exactly_one(self.placed[i])
            else:
                model.add_at_most_one(self.placed[i])
            for k in range(r.rows):
                placed = self.placed[i][k]
                model.add(self.duration[k] >= r.runs[i][1]).only_enforce_if(placed)
                for size in range(1, r.largest + 1):
                    here = [placed, self.size[k][size]]
                    model.add(self.duration[k] >= r.runs[i][size]).only_enforce_if(here)
                    if self.everyone:
                        model.add(self.latency[i] >= self.start[k] + r.runs[i][size]).only_enforce_if(here)
                        here.append(self.met[i])
                    if r.latest[i][size] < 0:
                        model.add_bool_or([literal.negated() for literal in here])
                    else:
                        model.add(self.start[k] <= r.latest[i][size]).only_enforce_if(here)

    def on_time(self, i: int) -> Any:
        """1 if request i is on time, else 0."""
        return self.met[i] if self.everyone else sum(self.placed[i])

    @property
    def attained(self) -> Any:
        """Weight on time, in whole units."""
        return sum(worth * self.on_time(i) for i, worth in enumerate(self.r.weight))

    def hint(self, plan: Batched) -> None:
        """Give CP-SAT a value for every variable, from a plan; a plan with too many rows gives none."""
        r, model = self.r, self.model
        met = evaluate(r.problem, *plan).prediction.met
        groups = [group.tolist() for group in np.split(plan[0], np.cumsum(plan[1])[:-1])]
        if not self.everyone:
            groups = [kept for group in groups if (kept := [i for i in group if met[i]])]
        if len(groups) > r.rows:
            return
        model.clear_hints()
        groups += [[] for _ in range(r.rows - len(groups))]
        clock = 0
        for k, group in enumerate(groups):
            span = max((r.runs[i][len(group)] for i in group), default=0)
            area = sum(r.runs[i][1] for i in group)
            span = max(span, -(-area // r.largest))
            model.add_hint(self.start[k], clock)
            model.add_hint(self.duration[k], span)
            for size in range(r.largest + 1):
                model.add_hint(self.size[k][size], size == len(group))
            for i in range(r.problem.n):
                model.add_hint(self.placed[i][k], i in group)
            if self.everyone:
                for i in group:
                    model.add_hint(self.met[i], bool(met[i]))
                    model.add_hint(self.latency[i], clock + r.runs[i][len(group)])
            clock += span

    def plan(self, solver: Any) -> Batched:
        """The plan that the solver holds; requests it did not place follow, shortest first."""
        problem = self.r.problem
        groups = [
            [i for i in range(problem.n) if solver.boolean_value(self.placed[i][k])]
            for k in range(self.r.rows)
        ]
        groups = [group for group in groups if group]
        placed = [i for group in groups for i in group]
        rest = np.setdiff1d(np.arange(problem.n), placed)
        rest = rest[np.argsort(problem.exec_s(1)[rest], kind="stable")]
        sizes = [len(group) for group in groups] + full_batches(len(rest), problem.max_batch).tolist()
        return np.array(placed + rest.tolist(), dtype=np.int64), np.array(sizes, dtype=np.int64)


@dataclass(slots=True)
class _Run:
    """One call of `solve_static`: its limits, the best plan by its real value, and the count of branches."""

    problem: StaticProblem
    ratio: bool
    deadline: float
    workers: int
    seed: int
    best: Batched
    score: Score
    branches: int = 0

    def solve(self, model: _Model) -> tuple[bool, float | None]:
        """Solve, keep a better plan; whether the optimum of the model is proved, and its bound if any."""
        model.hint(self.best)
        solver = model.cp.CpSolver()
        solver.parameters.max_time_in_seconds = max(0.01, self.deadline - time.perf_counter())
        solver.parameters.num_workers = self.workers
        solver.parameters.random_seed = self.seed
        code = solver.solve(model.model)
        self.branches += int(solver.num_branches)
        if code not in (model.cp.OPTIMAL, model.cp.FEASIBLE):
            return False, None  # without a solution CP-SAT's bound may be a mere default
        plan = model.plan(solver)
        score = evaluate(self.problem, *plan).score
        if score.better_g(self.score) if self.ratio else score.better(self.score):
            self.best, self.score = plan, score
        return code == model.cp.OPTIMAL, float(solver.best_objective_bound)

    def attainment(self, model: _Model) -> tuple[bool, float]:
        """Whether the greatest weight of the model is proved, and the bound on the weight."""
        model.model.maximize(model.attained)
        proved, most = self.solve(model)
        ceiling = float(self.problem.weight[self.problem.latest_start_s(1) >= 0].sum())
        if most is None:
            return False, ceiling
        return proved, min(ceiling, math.floor(most + 1e-6) / model.r.factor)

    def latency(self, model: _Model) -> bool:
        """Whether the latency is proved to be the least at the weight attained."""
        r, problem = model.r, self.problem
        model.model.add(model.attained >= sum(r.weight[i] for i in self._met()))
        model.model.minimize(sum(model.latency))
        _, least = self.solve(model)
        floor = problem.elapsed_total_s + (least or 0.0) * r.unit_s
        return self.score.latency_s <= floor + problem.n * (problem.n + 1) * r.unit_s

    def dinkelbach(self, model: _Model) -> tuple[bool, float]:
        """Raise the ratio until no plan is better: whether that is proved, and the bound on the ratio."""
        r, problem = model.r, self.problem
        waited = problem.elapsed_total_s / r.unit_s
        # Least latency there can be: every request at once and alone.
        least = max(waited + sum(runs[1] for runs in r.runs), 1e-9)
        bound = math.inf
        while True:
            before = self.score
            scale = math.ceil(before.latency_s / r.unit_s)
            worth = sum(r.weight[i] for i in self._met())
            model.model.maximize(scale * model.attained - worth * sum(model.latency))
            _, most = self.solve(model)
            if most is not None:
                excess = max(0.0, most - worth * waited)
                units = worth / scale + excess / (scale * least)
                bound = min(bound, units / (r.factor * r.unit_s))
            if not self.score.better_g(before) or time.perf_counter() >= self.deadline:
                slack = problem.n * (problem.n + 1) * r.unit_s / self.score.latency_s
                return bound <= self.score.g * (1 + slack), bound

    def _met(self) -> list[int]:
        met = evaluate(self.problem, *self.best).prediction.met
        return [i for i in range(self.problem.n) if met[i]]


def solve_static(
    problem: StaticProblem,
    objective: str | Objective = Objective.LEX,
    budget_s: float = 60.0,
    start: tuple[IntsLike, IntsLike] | None = None,
    *,
    resolution_s: float = 1e-5,
    max_batches: int | None = None,
    workers: int = 8,
    seed: int = 0,
) -> Result:
    """Static batches by CP-SAT: a plan, and a bound for all plans.

    Parameters
    ----------
    problem
        At most 200 requests.
    objective
        "lex", "g", or "attainment": weight alone, the latency of the plan being left as it comes.
    budget_s
        Wall time in seconds, at least 0, building the model included (a second at 60 requests).
    start
        (sequence, batches) of a plan to hint and to keep where nothing better is found; by default that
        of `annealed_start`.
    resolution_s
        Unit of time in seconds, above 0. Finer: the bound is closer to the real problem.
    max_batches
        At most this many batches, at least 1. None: as many as requests, which a proof needs; with fewer the
        bound is None.
    workers
        Threads of CP-SAT, at least 1; more than cores still helps the bound.
    seed
        Seed of CP-SAT, at least 0.

    Returns
    -------
    Result
        OPTIMAL: the weight equals its bound and, for "lex", the latency is the least at that weight to within
        n·(n+1)·`resolution_s`; for "g", the ratio is proved to the same
        precision of latency. LIMIT: time ran out (or the
        resolution was too coarse). `moves` counts CP-SAT's branches.

    Raises
    ------
    InputError
        If there are more than 200 requests, or another argument is off its domain.
    MissingExtraError
        If OR-Tools is not installed.

    Examples
    --------
    >>> p = StaticProblem.build(prompt_tokens=[100] * 3, output_tokens=[50, 20, 9], e2e_s=1.0, max_batch=2)
    >>> result = solve_static(p, "attainment")
    >>> result.status.value, result.objective, result.bound
    ('optimal', 2.0, 2.0)
    """
    began = time.perf_counter()
    attainment = objective == "attainment"
    goal = Objective.LEX if attainment else Objective.named(objective)
    require(goal in (Objective.LEX, Objective.G), "objective", "attainment, lex or g for cpsat", goal.value)
    require(budget_s >= 0, "budget_s", "a number of at least 0", budget_s)
    require(0 < resolution_s < math.inf, "resolution_s", "a number of seconds above 0", resolution_s)
    require(max_batches is None or max_batches >= 1, "max_batches", "None or at least 1", max_batches)
    require(workers >= 1, "workers", "an integer of at least 1", workers)
    require(seed >= 0, "seed", "an integer of at least 0", seed)
    if problem.n > MAX_REQUESTS:
        raise InputError(f"n must be at most {MAX_REQUESTS} for cpsat, got {problem.n}; use anneal.")
    plan = annealed_start(problem, goal) if start is None else check_plan(problem, *start)
    score = evaluate(problem, *plan).score
    run = _Run(problem, goal is Objective.G, began + budget_s, workers, seed, plan, score)
    bound, proved = 0.0, True
    if problem.n:
        bound, proved = _referee(run, attainment, resolution_s, max_batches)
    checked = evaluate(problem, *run.best)
    value = checked.value(goal)
    restricted = max_batches is not None and max_batches < problem.n
    if proved and not restricted:
        bound = value
    return Result(
        status=Status.OPTIMAL if proved and not restricted else Status.LIMIT,
        score=checked.score,
        objective=value,
        bound=None if restricted or not math.isfinite(bound) else max(bound, value),
        sequence=run.best[0],
        batches=run.best[1],
        moves=run.branches,
        seconds=time.perf_counter() - began,
        solver="cpsat",
        prediction=checked.prediction,
    )


def _referee(run: _Run, attainment: bool, resolution_s: float, max_batches: int | None) -> tuple[float, bool]:
    """Bound on the objective, and whether the best plan is proved to reach the optimum."""
    model = _Model(_Rounded.of(run.problem, resolution_s, max_batches), everyone=not attainment)
    if run.ratio:
        proved, bound = run.dinkelbach(model)
        return bound, proved
    proved, bound = run.attainment(model)
    rounding = run.problem.n / model.r.factor if model.r.factor > 1 else 0.0
    if run.score.weight >= bound - rounding - WEIGHT_TOLERANCE:
        return bound, attainment or run.latency(model)
    if proved and resolution_s > FINEST_S and time.perf_counter() < run.deadline:
        # The best plan of the model is not on time in real numbers: look closer.
        return _referee(run, attainment, resolution_s / 10, max_batches)
    return bound, False
