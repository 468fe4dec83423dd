"""Plans built at once: dispatch orders, Moore-Hodgson on the fluid surrogate, lists of batches, best fit, the
best of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.result import Score
from slosched.solvers.static import kernels as static
from slosched.solvers.static import one_machine
from slosched.solvers.static.annealing import records, tpot_records
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem
from slosched.solvers.static.reference import Batched, full_batches

LAWLER_MOORE_CELLS = 4_000_000
"""Most (request, weight) cells of the portfolio's Lawler-Moore."""


def _size(problem: StaticProblem) -> int:
    return min(problem.max_batch, max(1, problem.n))


def _cut(problem: StaticProblem, order: Ints) -> Batched:
    return order, full_batches(problem.n, problem.max_batch)


def _by(key: Floats) -> Ints:
    return np.argsort(key, kind="stable")


def hopeless(problem: StaticProblem) -> NDArray[np.bool_]:
    """Requests that miss their limits even if they start now and alone, shape (n,)."""
    return problem.latest_start_s(1) < 0


def fcfs_key(problem: StaticProblem) -> Floats:
    """Longest wait first."""
    return -problem.elapsed_s


def edf_key(problem: StaticProblem) -> Floats:
    """Seconds until the first latency limit runs out."""
    return np.minimum(problem.ttft_s, problem.e2e_s) - problem.elapsed_s


def lstf_key(problem: StaticProblem) -> Floats:
    """Latest start in a full batch."""
    size = _size(problem)
    return np.minimum(problem.c - problem.a * size, problem.c2 - problem.a2 * size)


def sjf_key(problem: StaticProblem) -> Floats:
    """Predicted execution in a full batch."""
    return problem.exec_s(_size(problem))


def dispatch(problem: StaticProblem, key: Floats, *, demote: bool = False) -> Batched:
    """Full batches in ascending key, ties by index; with `demote` the hopeless go last, shortest first."""
    order = _by(key)
    if demote:
        lost = hopeless(problem)
        tail = _by(sjf_key(problem))
        order = np.concatenate([order[~lost[order]], tail[lost[tail]]])
    return _cut(problem, order)


def fluid(problem: StaticProblem, phi: float) -> tuple[Floats, Floats]:
    """Fluid processing times and due dates in seconds, shape (n,) each; due at -inf if never on time."""
    size = _size(problem)
    processing = phi * problem.exec_s(size) / size
    return processing, problem.latest_start_s(size) + processing


def _kept_first(
    kept: NDArray[np.bool_], processing: Floats, due: Floats, by_due: Ints, shortest: Ints
) -> Ints:
    first = one_machine.smith_backward(processing, due, by_due[kept[by_due]])
    return np.concatenate([first, shortest[~kept[shortest]]])


def moore_hodgson_order(problem: StaticProblem, phi: float = 1.0, shortest: Ints | None = None) -> Ints:
    """Kept set of Moore-Hodgson by Smith's backward rule, then the others, shortest first."""
    processing, due = fluid(problem, phi)
    by_due = _by(due)
    kept = one_machine.moore_hodgson(processing, due, problem.weight, by_due)
    return _kept_first(kept, processing, due, by_due, _by(processing) if shortest is None else shortest)


def moore_hodgson(problem: StaticProblem, phi: float = 1.0) -> Batched:
    """`moore_hodgson_order` in full batches; at max_batch 1 exact for unit weights."""
    return _cut(problem, moore_hodgson_order(problem, phi))


def lawler_moore(problem: StaticProblem, phi: float = 1.0) -> Batched:
    """As `moore_hodgson` with the exact weighted set of the fluid problem; whole weights only."""
    processing, due = fluid(problem, phi)
    kept = one_machine.lawler_moore(processing, due, problem.weight)
    return _cut(problem, _kept_first(kept, processing, due, _by(due), _by(processing)))


def best_fit(problem: StaticProblem, kappa: float = 1.0) -> Batched:
    """Insertion of each request where it lengthens the plan least without making another late.

    Requests are taken by latest start plus `kappa` times execution, both over their means.
    """
    size = _size(problem)
    latest = lstf_key(problem)
    horizon = float(problem.exec_s(size).sum())
    latest = np.clip(latest, -horizon, horizon)
    run = problem.exec_s(size)
    scale = float(np.abs(latest).mean()) or 1.0
    order = _by(latest / scale + kappa * run / float(run.mean()))
    plan: Batched = static.best_fit(records(problem), size, order)
    return plan


def _sorted_in_windows(order: Ints, key: Floats, window: int) -> Ints:
    """The order with every window of that many requests sorted by key."""
    n = len(order)
    padded = np.full(-(-n // window) * window, np.inf)
    padded[:n] = key[order]
    within = np.argsort(padded.reshape(-1, window), axis=1, kind="stable")
    out: Ints = order[(within + np.arange(0, len(padded), window)[:, None]).reshape(-1)[:n]]
    return out


def batch_list(problem: StaticProblem, phi: float = 1.5, patience: float = 1.0) -> Batched:
    """`one_machine.batch_list`: batches of like length around the most urgent of Moore-Hodgson's kept set."""
    size = _size(problem)
    cap = np.clip(problem.bmax, 1, size)
    latest = np.minimum(problem.c - problem.a * cap, problem.c2 - problem.a2 * cap)
    latest = np.where(problem.bmax > 0, latest, -np.inf)
    run = problem.u * cap + problem.v
    return one_machine.batch_list(run, latest, problem.weight, cap, size, phi=phi, patience=patience)


def candidates(problem: StaticProblem, *, budget_ms: float | None = None) -> list[Batched]:
    """Plans of the portfolio: shortest first, and what else fits a share of a budget, the most useful first.

    The share is 40 %, up to 50 requests 5 %: there annealing is so hot at first that its start hardly counts.
    What a plan costs is estimated from the size of the problem, not measured, so that the same problem and
    budget give the same plans on every machine. At max_batch 1 Moore-Hodgson is exact for equal weights and
    Lawler-Moore for whole ones; otherwise lists of batches, best fit and sorted windows, in several shapes.
    """
    size, n, run = _size(problem), problem.n, sjf_key(problem)
    shortest = _by(run)
    plans = [_cut(problem, shortest)]
    left_ms = math.inf if budget_ms is None else (0.4 if n > 50 else 0.05) * budget_ms
    recipes: list[tuple[float, Callable[[], list[Batched]]]] = []
    if size == 1:
        plans.append(moore_hodgson(problem))
        equal = n == 0 or np.ptp(problem.weight) == 0
        cells = n * (float(problem.weight.sum()) + 1.0)
        if not equal and cells <= LAWLER_MOORE_CELLS and np.all(problem.weight % 1 == 0):
            recipes.append((0.03 + 1e-6 * cells, lambda: [lawler_moore(problem)]))
        if not equal:
            recipes.append((0.02 + 4e-4 * n, lambda: [best_fit(problem)]))
    else:
        list_ms, fit_ms, window_ms = 0.05 + 6e-4 * n, 0.03 + 3e-4 * n, 0.06 + 2e-4 * n

        def windows(phi: float) -> list[Batched]:
            order = moore_hodgson_order(problem, phi, shortest)
            sorted_ = (_sorted_in_windows(order, run, k * size) for k in (2, 4))
            return [_cut(problem, one) for one in (order, *sorted_)]

        recipes = [
            (list_ms, lambda: [batch_list(problem, 1.5, 1.0)]),
            (fit_ms, lambda: [best_fit(problem, 1.0)]),
            (list_ms, lambda: [batch_list(problem, 1.3, 0.6)]),
            (window_ms, lambda: windows(1.3)),
            (list_ms, lambda: [batch_list(problem, 2.4, 0.8)]),
            (window_ms, lambda: windows(1.9)),
            (list_ms, lambda: [batch_list(problem, 1.15, 0.8)]),
            (list_ms, lambda: [batch_list(problem, 2.0, 1.0)]),
            (list_ms, lambda: [batch_list(problem, 1.7, 0.6)]),
            (fit_ms, lambda: [best_fit(problem, 3.0)]),
        ]
        plans.extend(recipes.pop(0)[1]())  # it beats all others together: always
        left_ms -= list_ms
    for cost_ms, build in recipes:
        left_ms -= cost_ms
        if left_ms < 0:
            break
        plans.extend(build())
    return plans


def best_of(problem: StaticProblem, plans: list[Batched], objective: Objective = Objective.LEX) -> Batched:
    """The best of some plans by the objective, ties to the earlier one."""
    table, elapsed = records(problem), problem.elapsed_total_s
    tpot = tpot_records(problem) if objective is Objective.TARDINESS else np.empty((0, 3))
    best: tuple[Batched, Score, float] | None = None
    for plan in plans:
        weight, latency, tardiness = static.evaluate_plan(table, tpot, elapsed, *plan, len(plan[1]))
        score = Score(weight, latency)
        if best is None or objective.better(score, tardiness, best[1], best[2]):
            best = plan, score, tardiness
    assert best is not None
    return best[0]


def portfolio(
    problem: StaticProblem, objective: Objective = Objective.LEX, *, budget_ms: float | None = None
) -> Batched:
    """The best of `candidates` by the objective."""
    return best_of(problem, candidates(problem, budget_ms=budget_ms), objective)
