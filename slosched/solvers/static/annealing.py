"""Annealing of static batches: schedules, seeds, chains, and never a plan worse than the start."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats
from slosched.core.result import Score
from slosched.solvers.static import kernels as static
from slosched.solvers.static.delta import anneal
from slosched.solvers.static.kernels import Budget, Case, Cooling
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem
from slosched.solvers.static.reference import Batched, evaluate_fast, full_batches

CYCLE_MOVES = 300
"""Moves a request in one cycle from hot to cold."""
MOVES_PER_MS = 7000
"""Of one core, roughly: only the number of cycles of a search by time depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Temperatures in units of sigma, about a third of the makespan.

    Parameters
    ----------
    hot, cold
        First and last temperature.
    weight_worth
        Latency, in sigma, that one unit of mean weight is worth.
    stages, cycles
        Geometric steps from hot to cold, and how often.
    """

    hot: float
    cold: float
    weight_worth: float = 25.0
    stages: int = 64
    cycles: int = 1

    @classmethod
    def of(cls, n: int, objective: Objective, moves: float = 0.0) -> Schedule:
        """The schedule that did best on generated instances of that size at millisecond budgets.

        A cycle has about `CYCLE_MOVES` moves a request: a longer search is better begun anew than cooled
        more slowly.
        """
        cycles = max(1, round(moves / (CYCLE_MOVES * max(1, n))))
        if objective is Objective.G:
            hot = 3.0 if n <= 20 else 1.0 if n <= 50 else 0.3 if n <= 200 else 0.1
            return cls(hot=hot, cold=0.01 if n <= 20 else 0.001, cycles=cycles)
        worth = 100.0 if 20 < n <= 200 else 25.0
        if n <= 50:
            return cls(hot=40.0 if n <= 12 else 20.0, cold=0.02, weight_worth=worth, cycles=cycles)
        hot = 5.0 if n <= 100 else 2.0 if n <= 200 else 0.2 if n <= 500 else 0.05
        return cls(hot=hot, cold=0.003, weight_worth=worth, cycles=cycles)

    def seconds(self, sigma: float, mean_weight: float) -> Cooling:
        """The schedule in seconds, for a scale of energy and a mean weight of a request."""
        return Cooling(
            lam=self.weight_worth * sigma / mean_weight, hot=self.hot * sigma, cold=self.cold * sigma,
            stages=self.stages, cycles=self.cycles,
        )  # fmt: skip


def records(problem: StaticProblem) -> Floats:
    """Records for the kernels, shape (n, 8): u, v, c, a, c2, a2, weight, bmax."""
    columns = (
        problem.u,
        problem.v,
        problem.c,
        problem.a,
        problem.c2,
        problem.a2,
        problem.weight,
        problem.bmax,
    )
    table = np.empty((problem.n, len(columns)))
    for k, column in enumerate(columns):
        table[:, k] = column
    np.clip(table, static.NEVER, static.ALWAYS, out=table)
    return table


def case_of(problem: StaticProblem, mode: int) -> Case:
    """What a kernel must know of a problem; `mode` is one of the kernels' modes of comparison."""
    return Case(
        rec=records(problem), elapsed_total_s=float(problem.elapsed_total_s),
        max_batch=min(problem.max_batch, problem.n), mode=mode,
    )  # fmt: skip


def budget_of(moves: int | None, budget_ms: float | None, begin_ns: int) -> Budget:
    """A kernel's budget: proposals, milliseconds from `begin_ns` on, or both; None for no such limit."""
    length_ns = -1 if budget_ms is None else int(budget_ms * 1e6)
    return Budget(moves=-1 if moves is None else moves, begin_ns=begin_ns, length_ns=length_ns)


def tpot_records(problem: StaticProblem) -> Floats:
    """Decode seconds per batch member, decode seconds beside, and the limit on both, shape (n, 3)."""
    per_size, beside = problem.decode_terms
    limit = np.minimum(problem.tpot_s * problem.output_tokens, static.ALWAYS)
    return np.ascontiguousarray(np.stack([per_size, beside, limit], axis=1))


def sigma_s(table: Floats, max_batch: int) -> float:
    """The scale of energy and temperature: a third of the makespan of full batches."""
    n = len(table)
    return float(np.mean(table[:, static.U] * max_batch + table[:, static.V])) / max_batch * n / 3.0


def seed_words(seed: int, chain: int = 0) -> NDArray[np.uint64]:
    """Generator state for a chain: two 64-bit words from a seed."""
    return np.random.SeedSequence([seed, chain]).generate_state(2, np.uint64) | np.uint64(1)


def anneal_static(
    problem: StaticProblem,
    start: Batched,
    objective: Objective = Objective.LEX,
    *,
    moves: int | None = None,
    budget_ms: float | None = None,
    begin_ns: int | None = None,
    seed: int = 0,
    chains: int = 1,
    schedule: Schedule | None = None,
) -> tuple[Batched, int]:
    """Improve a plan by annealing with delta evaluation.

    Parameters
    ----------
    problem
        The requests; for goodput the reweighted problem.
    start
        Plan to start from; the answer is never worse by the objective.
    objective
        `LEX`, `G` or `GOODPUT`.
    moves
        Proposals per chain: the same answer for the same seed everywhere.
    budget_ms
        Wall time in milliseconds counted from `begin_ns` (monotonic nanoseconds, now by default). With both,
        the schedule follows `moves` and time only cuts it short.
    seed, chains
        Chains run in threads, chain k from generator (seed, k); the best is returned, ties to the first.
    schedule
        Temperatures; by size, objective and length of the search if None.

    Returns
    -------
    tuple
        The plan and the moves evaluated, all chains together.
    """
    begin_ns = time.monotonic_ns() if begin_ns is None else begin_ns
    case = case_of(problem, static.G if objective is Objective.G else static.LEX)
    budget = budget_of(moves, budget_ms, begin_ns)
    expected = moves if moves is not None else MOVES_PER_MS * (budget_ms or 0.0)
    schedule = schedule or Schedule.of(problem.n, objective, expected)
    cooling = schedule.seconds(sigma_s(case.rec, case.max_batch), float(problem.weight.mean()) or 1.0)

    def chain(k: int) -> tuple[Batched, float, float, int]:
        found = anneal(case, *start, budget, cooling, static.THRESHOLDS, seed_words(seed, k), False)
        return (found[0], found[1]), found[2], found[3], found[4]

    if chains == 1:
        runs = [chain(0)]
    else:
        with ThreadPoolExecutor(max_workers=chains) as pool:
            runs = list(pool.map(chain, range(chains)))
    best = evaluate_fast(problem, *start)
    plan = start
    for candidate, weight, latency_s, _ in runs:
        claimed = Score(weight, latency_s)
        if objective.better(claimed, 0.0, best.score, 0.0):
            # drift may flip a tie: only the reference decides
            real = evaluate_fast(problem, *candidate)
            if objective.better(real.score, 0.0, best.score, 0.0):
                best, plan = real, candidate
    return plan, sum(run[3] for run in runs)


def tardiness_annealing(
    problem: StaticProblem,
    start: Batched,
    *,
    moves: int | None = None,
    budget_ms: float | None = None,
    begin_ns: int | None = None,
    seed: int = 0,
) -> tuple[Batched, int]:
    """Improve a plan's weighted tardiness by annealing with full evaluation of every move.

    Parameters and the promise are those of `anneal_static`.
    """
    begin_ns = time.monotonic_ns() if begin_ns is None else begin_ns
    case, budget = case_of(problem, static.TARDINESS), budget_of(moves, budget_ms, begin_ns)
    scale = sigma_s(case.rec, case.max_batch) * (float(problem.weight.mean()) or 1.0)
    cooling = Cooling(lam=0.0, hot=scale, cold=1e-3 * scale, stages=64, cycles=1)
    found = static.anneal_full(
        case, tpot_records(problem), *start, budget, cooling, static.THRESHOLDS, seed_words(seed), False
    )
    plan = (found[0], found[1])
    before, after = evaluate_fast(problem, *start), evaluate_fast(problem, *plan)
    return (plan if after.tardiness_s < before.tardiness_s else start), found[5]


def huang_annealing(
    problem: StaticProblem, *, seed: int = 0, scaled: bool = False, last: bool = False
) -> tuple[Batched, int]:
    """The published annealing, for comparison.

    Starts from shortest first, or arrival order if that has the larger G, in full batches; returns at once if
    shortest first meets every limit. Constants as known from a third-party port: T from 500 to 20, factor
    0.95, 100 moves a level, G in requests per millisecond, the best plan kept.

    Parameters
    ----------
    problem
        The requests.
    seed
        Seed of the moves.
    scaled
        Read T = 500 as 5 % of the start's G instead, so that the temperature means something.
    last
        Return the last plan instead of the best.
    """
    table, size = records(problem), min(problem.max_batch, problem.n)
    batches = full_batches(problem.n, size)
    shortest = np.argsort(problem.exec_s(size), kind="stable")
    first = evaluate_fast(problem, shortest, batches)
    if bool(first.prediction.met.all()):
        return (shortest, batches), 1
    arrival = np.argsort(-problem.elapsed_s, kind="stable")
    second = evaluate_fast(problem, arrival, batches)
    order, g = (arrival, second.score.g) if second.score.g > first.score.g else (shortest, first.score.g)
    unit = 1e-3
    if scaled:
        unit = 500.0 / (0.05 * g) if g > 0 else 1e9
    found = static.huang(
        table, problem.elapsed_total_s, size, order, batches, seed_words(seed), 500.0, 20.0, 0.95, 100, unit
    )
    return ((found[2], found[3]) if last else (found[0], found[1])), found[4]
