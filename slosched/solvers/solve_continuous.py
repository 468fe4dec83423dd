"""Solvers of the order of a queue in continuous batching: simple orders, search, enumeration, a bound."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError, require
from slosched.core.result import WEIGHT_TOLERANCE, Result, Status
from slosched.planner import model as c
from slosched.solvers.annealing import SAMPLED, anneal, typical_loss
from slosched.solvers.continuous_problem import ContinuousProblem, check_sequence
from slosched.solvers.orders import CONSTRUCTIVE, PLAIN, QueueOrders

ALIASES = {
    "search": "anneal",
    "lstf": "least-laxity",
    "lstf+d": "least-laxity+d",
    "moore-hodgson": "moore-hodgson 1",
}
"""Other names of solvers."""

SEARCHES = ("portfolio", "anneal")
EXACT = ("enumerate", "cpsat")
SOLVERS = (*PLAIN, *CONSTRUCTIVE, *SEARCHES, *EXACT)
"""Names of solvers."""

MOST_ENUMERATED = 8
CHUNK = 64
"""Moves between two looks at the clock."""

HOT, COLD = 0.5, 0.005
"""Temperatures at the ends of a cycle, in typical losses: at first a typical loss is taken once in seven
times, at the end never, and only ties and gains are."""

CYCLE = 400
"""Moves of a cycle of annealing per request, at least."""

MOST_CYCLES = 12
"""Cycles of a chain, at most: restarts pay on short queues, where a cycle soon ends in a valley."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """The problem as arrays of the evaluator."""

    problem: ContinuousProblem
    jobs: Floats
    aim: Floats

    def value(self, order: Ints, scratch: c.Scratch) -> float:
        """Value of job indices in order."""
        p = self.problem
        found: float = c.evaluate(
            self.jobs, p.running, order, len(order), p.engine, self.aim, p.prefill_tokens, scratch
        )
        return found


def solve_continuous(
    problem: ContinuousProblem,
    *,
    solver: str = "anneal",
    objective: str = "soft",
    budget_ms: float | None = None,
    moves: int | None = None,
    seed: int = 0,
    chains: int = 1,
    start: ArrayLike | None = None,
) -> Result:
    """Order the waiting requests of an engine that batches continuously.

    Parameters
    ----------
    problem
        The engine and its queue.
    solver
        A name in `SOLVERS` or `ALIASES`. "anneal" (or "search") is simulated annealing by swaps and
        insertions from the best simple order, in cycles (`slosched.solvers.annealing`); "enumerate" tries all
        orders of at most 8 requests; "cpsat" is the search with a bound from CP-SAT.
    objective
        "soft", "lex" or "goodput", see `slosched.solvers.continuous_problem.OBJECTIVES`.
    budget_ms
        Wall time in milliseconds, at least 0, of simple orders and search together. Without `budget_ms` and
        `moves`: 1 ms for the search, 10 s for the exact solvers.
    moves
        Evaluations of each chain, at least 0, those of the simple orders included, which take half of them at
        most: the result then depends on the seed alone.
    seed, chains
        Seed at least 0; chains of search in threads, at least 1.
    start
        A sequence to start from; the search never returns a worse one.

    Returns
    -------
    Result
        `sequence` holds places in ``snapshot.waiting``; `batches` is empty. Score, objective and prediction
        are of this model (`ContinuousProblem.evaluate`). `bound` is None unless the objective is "lex" or
        "goodput" and all forecasts are points: then it is the weight of all requests that could meet their
        limits alone in the engine, or CP-SAT's bound on how many of them could so with slots and prompts in
        the KV cache shared, in any order of admission. It bounds this model; no bound is known for forecasts
        with spread or softened limits.

    Raises
    ------
    InputError
        On an unknown name, a value off its domain, or more requests than enumeration takes.

    Examples
    --------
    >>> p = ContinuousProblem.build(prompt_tokens=[4000, 100], output_tokens=[80, 20], e2e_s=[9.0, 0.25])
    >>> result = solve_continuous(p, objective="lex", moves=50)
    >>> result.sequence.tolist(), result.objective, result.bound
    ([1, 0], 2.0, 2.0)
    """
    begin_s = time.perf_counter()
    name = ALIASES.get(solver, solver)
    require(
        name in SOLVERS, "solver", f"one of {', '.join((*SOLVERS, *ALIASES))} in continuous batching", solver
    )
    model = _Model(problem=problem, jobs=problem.jobs_for(objective), aim=problem.aim_for(objective))
    given = None if start is None else check_sequence(start, problem.n)
    deadline_s = None
    if budget_ms is not None or (moves is None and name != "portfolio"):
        default_ms = 10_000.0 if name in EXACT else 1.0
        deadline_s = begin_s + (default_ms if budget_ms is None else budget_ms) / 1e3
    status, bound = Status.FEASIBLE, _free_bound(model, objective)
    if name == "enumerate":
        sequence, made, status = _enumerate(model, deadline_s)
    elif name in SEARCHES or name == "cpsat":
        half_s = None if deadline_s is None else begin_s + 0.5 * (deadline_s - begin_s)
        sequence, made = _portfolio(model, given, half_s if name == "anneal" else deadline_s, moves)
        rest = None if moves is None else max(0, moves - made)
        if name == "cpsat":
            require(
                bound is not None, "objective", "lex or goodput with point forecasts for cpsat", objective
            )
            searched_s = None if deadline_s is None else begin_s + 0.3 * (deadline_s - begin_s)
            sequence, more = _anneal(model, sequence, searched_s, rest, seed, chains)
            bound = min(bound or math.inf, _cpsat_bound(model, deadline_s))
            made += more
        elif name == "anneal" and problem.n > 1:
            sequence, more = _anneal(model, sequence, deadline_s, rest, seed, chains)
            made += more
    else:
        sequence, made = QueueOrders(problem.snapshot, problem.snapshot.waiting).first(name, problem.n), 1
    found = problem.evaluate(sequence, objective)
    if status is Status.OPTIMAL or problem.n <= 1:
        status, bound = Status.OPTIMAL, found.value
    return Result(
        status=status,
        score=found.score,
        objective=found.value,
        bound=bound,
        sequence=sequence,
        batches=np.empty(0, dtype=np.int64),
        moves=made,
        seconds=time.perf_counter() - begin_s,
        solver=solver,
        prediction=found.prediction,
    )


def _portfolio(
    model: _Model, start: Ints | None, deadline_s: float | None, moves: int | None
) -> tuple[Ints, int]:
    """The best of the start and of as many constructive orders as there is time for, and how many."""
    problem = model.problem
    if problem.n <= 1:
        return np.arange(problem.n), 1
    most = math.inf if moves is None else max(1, moves // 2)
    best = np.arange(problem.n) if start is None else start
    scratch = c.scratch_for(model.jobs)
    value, made = model.value(best + problem.running, scratch), 1
    orders: QueueOrders | None = None
    for name in CONSTRUCTIVE:
        if made >= most or (deadline_s is not None and time.perf_counter() >= deadline_s):
            break
        orders = orders or QueueOrders(problem.snapshot, problem.snapshot.waiting)
        order = orders.first(name, problem.n)
        candidate = model.value(order + problem.running, scratch)
        made += 1
        if candidate > value:
            best, value = order, candidate
    return best, made


def _anneal(
    model: _Model, start: Ints, deadline_s: float | None, moves: int | None, seed: int, chains: int
) -> tuple[Ints, int]:
    """The best of all chains, ties to the first, and the moves of all."""
    if model.problem.n <= 1:
        return start, 0
    if chains == 1:
        found = [_chain(model, start, deadline_s, moves, seed, 0)]
    else:
        with ThreadPoolExecutor(chains) as pool:
            runs = [pool.submit(_chain, model, start, deadline_s, moves, seed, k) for k in range(chains)]
            found = [run.result() for run in runs]
    best = max(found, key=lambda run: run[0])
    return best[1], sum(run[2] for run in found)


def _chain(
    model: _Model, start: Ints, deadline_s: float | None, moves: int | None, seed: int, chain: int
) -> tuple[float, Ints, int]:
    """Anneal in cycles, each from the best order but for every third, which shuffles; value, order, moves."""
    p = model.problem
    rng = np.random.default_rng((seed, chain))
    state = np.array([rng.integers(1, 2**63)], dtype=np.uint64)
    scratch = c.scratch_for(model.jobs)
    fixed = (p.engine, model.aim, p.prefill_tokens)
    best = start + p.running
    pace = _Pace(deadline_s, moves)
    value = model.value(best, scratch)
    pace.took(1)
    if pace.moves_left() < SAMPLED + 1:
        return value, start, 1
    loss = typical_loss(model.jobs, p.running, best.copy(), *fixed, state, scratch)
    pace.took(SAMPLED + 1)
    cycle = 0
    while (whole := pace.moves_left()) > 0:
        # Few long cycles on long queues; on short ones, where a walk ends in a valley soon, many.
        length = max(1, min(whole, max(CYCLE * p.n, whole // MOST_CYCLES)))
        shuffled = cycle % 3 == 2
        order = rng.permutation(best) if shuffled else best.copy()
        hot = loss * (HOT if shuffled or cycle == 0 else HOT / 4)
        made = 0
        while made < length and pace.moves_left() > 0:
            part = min(pace.chunk(), length - made)
            heat = tuple(hot * (COLD / HOT) ** (k / length) for k in (made, made + part))
            value = anneal(model.jobs, p.running, order, best, *fixed, part, heat, state, scratch)
            made += part
            pace.took(part)
        cycle += 1
    return value, best - p.running, pace.made


class _Pace:
    """How many moves are left, of a number or of a time at the pace of the moves so far."""

    def __init__(self, deadline_s: float | None, moves: int | None) -> None:
        self._deadline_s, self._moves = deadline_s, moves
        self._began_s = time.perf_counter()
        self.made = 0

    def took(self, moves: int) -> None:
        """Count moves that were made."""
        self.made += moves

    def moves_left(self) -> int:
        """Moves that number and time allow, at the pace of the moves so far."""
        left = math.inf if self._moves is None else float(self._moves - self.made)
        if self._deadline_s is not None:
            now_s = time.perf_counter()
            each_s = (now_s - self._began_s) / max(1, self.made)
            left = min(left, max(0.0, self._deadline_s - now_s) / max(each_s, 1e-9))
        return int(left)

    def chunk(self) -> int:
        """Moves until the clock is looked at again."""
        return max(1, min(self.moves_left(), CHUNK if self._deadline_s is not None else 1 << 40))


def _enumerate(model: _Model, deadline_s: float | None) -> tuple[Ints, int, Status]:
    """The best of all orders, the first among equals; LIMIT if time ran out."""
    p = model.problem
    if p.n > MOST_ENUMERATED:
        raise InputError(
            f"n must be at most {MOST_ENUMERATED} for solver 'enumerate', which tries all orders, got {p.n}; "
            "use cpsat for a bound or anneal for a plan."
        )
    scratch, best, made = c.scratch_for(model.jobs), -math.inf, 0
    best_order = np.arange(p.n)
    orders: Iterator[tuple[int, ...]] = itertools.permutations(range(p.n))
    for order in orders:
        if deadline_s is not None and made % 256 == 255 and time.perf_counter() >= deadline_s:
            return best_order, made, Status.LIMIT
        sequence = np.array(order, dtype=np.int64)
        value = model.value(sequence + p.running, scratch)
        made += 1
        if value > best:
            best, best_order = value, sequence
    return best_order, made, Status.OPTIMAL


def _free_bound(model: _Model, objective: str) -> float | None:
    """Weight of all that could meet their limits alone in the engine; None where that is no bound."""
    p = model.problem
    if objective == "soft" or not p.certain:
        return None
    latest = p.alone[1]
    return float(model.jobs[latest >= 0, c.WEIGHT].sum())


def _cpsat_bound(model: _Model, deadline_s: float | None) -> float:
    """Bound on the weight met from slots and KV cache shared; `_free_bound` applies.

    A request holds its slot at least as long as alone in the engine, and its prompt's place in the cache
    from its start, as the model has it; whoever needs more than the whole cache runs alone.
    """
    from slosched.solvers.cpsat_continuous import solve_continuous_fixed

    p, r = model.problem, model.problem.running
    hold_s, latest = p.alone
    capacity = max(1, math.floor(float(p.engine[c.KV_TOKENS])))
    need = np.minimum(p.jobs[r:, c.HAVE] + p.jobs[r:, c.TODO], capacity)
    weight = model.jobs[:, c.WEIGHT]
    fixed = float(weight[:r][latest[:r] >= 0].sum())
    left_s = 10.0 if deadline_s is None else max(0.0, deadline_s - time.perf_counter())
    found = solve_continuous_fixed(
        hold_s[r:], latest[r:], weight[r:], need, int(p.engine[c.SLOTS]), capacity,
        running_s=hold_s[:r], running_kv_tokens=p.jobs[:r, c.HAVE], budget_s=left_s,
    )  # fmt: skip
    return fixed + found.bound + WEIGHT_TOLERANCE
