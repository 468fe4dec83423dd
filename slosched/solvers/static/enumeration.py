"""Every plan of static batches, one by one: the referee of the referees, for up to eight requests.

Walks the tree of ordered partitions into batches without any bound or dominance, so that nothing clever can
be wrong. Eight requests in batches of up to eight make 545,835 plans.
"""

from __future__ import annotations

import time

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import InputError, require
from slosched.core.result import Result, Score, Status
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem
from slosched.solvers.static.reference import IntsLike, check_plan, evaluate, full_batches

MAX_REQUESTS = 8


class _OutOfTimeError(Exception):
    """The budget has run out."""


class _Tree:
    """The walk: the batches so far, and the best plan seen."""

    def __init__(self, problem: StaticProblem, objective: Objective, deadline: float) -> None:
        self.n = problem.n
        self.ratio = objective is Objective.G
        self.deadline = deadline
        self.best: Score | None = None
        self.best_masks: list[int] = []
        self.plans = 0
        self._path: list[int] = []
        # batches[mask]: size, seconds, sum of execution, and (latest start, weight) of each member
        self.batches: dict[int, tuple[int, float, float, list[tuple[float, float]]]] = {}
        for mask in range(1, 1 << self.n):
            members = [i for i in range(self.n) if mask >> i & 1]
            size = len(members)
            if size <= problem.max_batch:
                run = problem.exec_s(size)[members].tolist()
                latest = problem.latest_start_s(size)[members].tolist()
                terms = list(zip(latest, problem.weight[members].tolist(), strict=True))
                self.batches[mask] = (size, max(run), sum(run), terms)

    def walk(self, left: int, now: float, weight: float, latency: float) -> None:
        """Visit every plan that continues the path with the requests in mask `left`."""
        if left == 0:
            self.plans += 1
            if self.plans % 4096 == 1 and time.perf_counter() >= self.deadline:
                raise _OutOfTimeError
            score = Score(weight, latency)
            if self.best is None or (score.better_g(self.best) if self.ratio else score.better(self.best)):
                self.best, self.best_masks = score, self._path.copy()
            return
        mask = left
        while mask:
            batch = self.batches.get(mask)
            if batch is not None:
                size, span, run, terms = batch
                gained = weight
                for latest, worth in terms:
                    if now <= latest:
                        gained += worth
                self._path.append(mask)
                self.walk(left ^ mask, now + span, gained, latency + size * now + run)
                self._path.pop()
            mask = (mask - 1) & left

    def plan(self) -> tuple[Ints, Ints]:
        """Sequence and batches of the best plan."""
        groups = [[i for i in range(self.n) if mask >> i & 1] for mask in self.best_masks]
        sequence = np.array([i for group in groups for i in group], dtype=np.int64)
        return sequence, np.array([len(group) for group in groups], dtype=np.int64)


def solve_static(
    problem: StaticProblem,
    objective: str | Objective = Objective.LEX,
    budget_s: float = 60.0,
    start: tuple[IntsLike, IntsLike] | None = None,
) -> Result:
    """Optimum of static batches by looking at every plan.

    Parameters
    ----------
    problem
        At most 8 requests.
    objective
        "lex" or "g".
    budget_s
        Wall time in seconds, at least 0.
    start
        (sequence, batches) to return if time runs out before anything better was seen.

    Returns
    -------
    Result
        OPTIMAL, or LIMIT with the best plan seen and no bound. `moves` counts plans.

    Raises
    ------
    InputError
        If there are more than 8 requests (use labelling or cpsat), or another argument is off its domain.

    Examples
    --------
    >>> p = StaticProblem.build(prompt_tokens=[100] * 3, output_tokens=[50, 20, 9], e2e_s=1.0, max_batch=2)
    >>> result = solve_static(p)
    >>> result.objective, result.moves
    (2.0, 12)
    """
    began = time.perf_counter()
    goal = Objective.named(objective)
    require(goal in (Objective.LEX, Objective.G), "objective", "lex or g for enumeration", goal.value)
    require(budget_s >= 0, "budget_s", "a number of at least 0", budget_s)
    if problem.n > MAX_REQUESTS:
        raise InputError(
            f"n must be at most {MAX_REQUESTS} for enumeration, got {problem.n}; "
            "use the labelling or cpsat solver."
        )
    if start is None:
        start = np.arange(problem.n, dtype=np.int64), full_batches(problem.n, problem.max_batch)
    sequence, batches = check_plan(problem, *start)
    tree = _Tree(problem, goal, began + budget_s)
    status = Status.OPTIMAL
    try:
        tree.walk((1 << problem.n) - 1, 0.0, 0.0, problem.elapsed_total_s)
    except _OutOfTimeError:
        status = Status.LIMIT
    first = evaluate(problem, sequence, batches).score
    better = Score.better_g if goal is Objective.G else Score.better
    if tree.best is not None and (status is Status.OPTIMAL or better(tree.best, first)):
        sequence, batches = tree.plan()
    checked = evaluate(problem, sequence, batches)
    value = checked.value(goal)
    return Result(
        status=status,
        score=checked.score,
        objective=value,
        bound=value if status is Status.OPTIMAL else None,
        sequence=sequence,
        batches=batches,
        moves=tree.plans,
        seconds=time.perf_counter() - began,
        solver="enumeration",
        prediction=checked.prediction,
    )
