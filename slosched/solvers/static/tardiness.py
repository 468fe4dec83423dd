"""Least weighted tardiness on one machine, 1||sum w_j T_j, by iterated local search.

The classical problem, so that our search can be held against published instances. From a first order by the
apparent tardiness cost, the search walks over positions in a circle. For each it prices every insertion and
every exchange, and takes the best if it improves; a full circle without gain is a local optimum. Then a few
random exchanges kick it away, and it falls back if the next local optimum is worse.

Pricing: an insertion is grown from its neighbour by one step, O(1) each. An exchange of positions a < b moves
what lies between by p_b - p_a: if later, its price only grows, and the sum stops once it exceeds the best
move known; if earlier, it gains at most the tardiness that lies between, a difference of prefix sums.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.jit import njit
from slosched.core.result import Status

PATIENCE = 100
"""Kicks without a new best before the search returns to the best."""
_RETURNS = 4  # to the best, before the search starts afresh
_FURTHEST_KICK = 20
_ROUNDS_PER_LOOK = 8


@njit(nogil=True, cache=True)
def _refresh(order: Ints, p: Floats, w: Floats, d: Floats, columns: Floats, first: int) -> float:
    """Recompute the columns from position `first` on; return the total weighted tardiness.

    Rows of `columns`: processing, weight, due date and completion by position, and the tardiness up to and
    including it.
    """
    n = len(order)
    end = columns[3, first - 1] if first > 0 else 0.0
    total = columns[4, first - 1] if first > 0 else 0.0
    for k in range(first, n):
        job = order[k]
        columns[0, k], columns[1, k], columns[2, k] = p[job], w[job], d[job]
        end += p[job]
        columns[3, k] = end
        total += w[job] * max(0.0, end - d[job])
        columns[4, k] = total
    return total


@njit(nogil=True, cache=True)
def _best_move(columns: Floats, a: int) -> tuple[float, int, int]:
    """The most improving move of position `a`: its price (0: none), its target, and whether it is a swap."""
    times, weights, dues, ends, sums = columns[0], columns[1], columns[2], columns[3], columns[4]
    n = len(times)
    mine, worth, due, end = times[a], weights[a], dues[a], ends[a]
    now = worth * max(0.0, end - due)
    best, target, swap = 0.0, a, 0
    passed = 0.0  # what the jobs gain that `a` is moved behind
    for b in range(a + 1, n):
        moved = worth * max(0.0, ends[b] - due) - now
        late = ends[b] - dues[b]
        passed += weights[b] * (max(0.0, late - mine) - max(0.0, late))
        if passed + moved < best:
            best, target, swap = passed + moved, b, 0
        shift = times[b] - mine
        price = moved + weights[b] * (max(0.0, end + shift - dues[b]) - max(0.0, late))
        if shift >= 0.0:
            for k in range(a + 1, b):
                if price >= best:
                    break
                late = ends[k] - dues[k]
                price += weights[k] * (max(0.0, late + shift) - max(0.0, late))
        elif price - (sums[b - 1] - sums[a]) < best:
            for k in range(a + 1, b):
                late = ends[k] - dues[k]
                price += weights[k] * (max(0.0, late + shift) - max(0.0, late))
        else:
            continue
        if price < best:
            best, target, swap = price, b, 1
    passed = 0.0
    for b in range(a - 1, -1, -1):
        late = ends[b] - dues[b]
        passed += weights[b] * (max(0.0, late + mine) - max(0.0, late))
        moved = worth * max(0.0, ends[b] - times[b] + mine - due) - now
        if passed - now >= best:
            break  # going further forward costs the others more and saves `a` no more than all it has
        if passed + moved < best:
            best, target, swap = passed + moved, b, 0
    return best, target, swap


@njit(nogil=True, cache=True)
def _descend(order: Ints, p: Floats, w: Floats, d: Floats, columns: Floats) -> tuple[float, int]:
    """Improve `order` in place to a local optimum; return its value and the moves priced."""
    n = len(order)
    total = _refresh(order, p, w, d, columns, 0)
    quiet, a, priced = 0, 0, 0
    while quiet < n and total > 0.0:
        price, b, swap = _best_move(columns, a)
        priced += 2 * n - a - 2
        if price < -1e-9 * (1.0 + total):
            job = order[a]
            if swap == 1:
                order[a], order[b] = order[b], job
            elif a < b:
                for k in range(a, b):
                    order[k] = order[k + 1]
                order[b] = job
            else:
                for k in range(a, b, -1):
                    order[k] = order[k - 1]
                order[b] = job
            total = _refresh(order, p, w, d, columns, min(a, b))
            quiet = 0
        else:
            quiet += 1
            a = a + 1 if a + 1 < n else 0
    return total, priced


@njit(nogil=True, cache=True)
def _random(state: npt.NDArray[np.uint64], below: int) -> int:
    """A whole number from 0 to below - 1 by Marsaglia's 64-bit xorshift."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return int(x >> np.uint64(33)) % below


@njit(nogil=True, cache=True)
def _search(
    p: Floats, w: Floats, d: Floats, orders: Ints, values: Floats, counts: Ints,
    state: npt.NDArray[np.uint64], columns: Floats, rounds: int, most: int, target: float,
) -> None:  # fmt: skip
    """Run `rounds` kicks, fewer if `most` moves are priced or `target` is reached.

    Rows of `orders` and entries of `values`: the order at hand, the last local optimum, the best. `counts`:
    moves priced, kicks since the last new best or return to it, returns since then.
    """
    n = orders.shape[1]
    trial, last, best = orders[0], orders[1], orders[2]
    for _ in range(rounds):
        if values[2] <= target or counts[0] >= most:
            return
        trial[:] = last
        kicks = 3 + _random(state, 6)
        if counts[1] == 0 and counts[2] % _RETURNS == _RETURNS - 1:
            kicks = n  # the region of the best is exhausted: start afresh
            values[1] = math.inf
        for _ in range(kicks):
            a = _random(state, n)
            b = min(n - 1, max(0, a - _FURTHEST_KICK + _random(state, 2 * _FURTHEST_KICK + 1)))
            trial[a], trial[b] = trial[b], trial[a]
        value, priced = _descend(trial, p, w, d, columns)
        counts[0] += priced + 1
        counts[1] += 1
        if value <= values[1]:
            last[:], values[1] = trial, value
        if value < values[2] - 1e-9 * (1.0 + values[2]):
            best[:], values[2] = trial, value
            counts[1] = counts[2] = 0
        elif counts[1] >= PATIENCE:
            last[:], values[1] = best, values[2]
            counts[1] = 0
            counts[2] += 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TardinessResult:
    """An order of jobs on one machine.

    Parameters
    ----------
    status
        OPTIMAL if nothing is late (nothing can be better), FEASIBLE otherwise: the search proves nothing.
    sequence
        Jobs in order, shape (n,).
    objective
        Sum of weight times tardiness, in the caller's units.
    bound
        0 if OPTIMAL, None otherwise.
    moves
        Insertions and exchanges priced.
    seconds
        Wall time used.
    """

    status: Status
    sequence: Ints
    objective: float
    bound: float | None
    moves: int
    seconds: float


def weighted_tardiness(
    sequence: npt.ArrayLike, p: npt.ArrayLike, w: npt.ArrayLike, d: npt.ArrayLike
) -> float:
    """Sum of weight times tardiness of the jobs run in this order from time 0.

    Examples
    --------
    >>> weighted_tardiness([1, 0], p=[2, 3], w=[1, 4], d=[4, 3])
    1.0
    """
    order = np.asarray(sequence, dtype=np.int64)
    ends = np.cumsum(np.asarray(p, dtype=np.float64)[order])
    late = np.maximum(0.0, ends - np.asarray(d, dtype=np.float64)[order])
    return float(np.asarray(w, dtype=np.float64)[order] @ late)


@njit(nogil=True, cache=True)
def apparent_tardiness_cost(p: Floats, w: Floats, d: Floats) -> Ints:
    """Greedy order by weight over processing time, discounted by the slack that is left.

    References
    ----------
    .. [1] A. P. J. Vepsalainen, T. E. Morton, Priority rules for job shops with weighted tardiness costs,
       Management Science 33 (1987).

    Examples
    --------
    >>> apparent_tardiness_cost(np.array([2.0, 3.0]), np.array([1.0, 4.0]), np.array([4.0, 3.0])).tolist()
    [1, 0]
    """
    n, end = len(p), 0.0
    scale = max(2.0 * p.sum() / max(1, n), 1e-12)
    left, order = np.ones(n, np.bool_), np.empty(n, np.int64)
    for k in range(n):
        first, most = -1, -1.0
        for i in range(n):
            if left[i]:
                slack = max(0.0, d[i] - p[i] - end)
                urgency = w[i] / max(p[i], 1e-12) * math.exp(-slack / scale)
                if urgency > most:
                    first, most = i, urgency
        order[k] = first
        left[first] = False
        end += p[first]
    return order


def solve_tardiness(
    p: npt.ArrayLike,
    w: npt.ArrayLike,
    d: npt.ArrayLike,
    *,
    budget_ms: float | None = None,
    moves: int | None = None,
    seed: int = 0,
    target: float = 0.0,
) -> TardinessResult:
    """Search for an order of least weighted tardiness.

    Parameters
    ----------
    p, w, d
        Processing times, weights and due dates, shape (n,), in the caller's units: p and w finite and at
        least 0, d finite.
    budget_ms
        Wall time in milliseconds, at least 0, looked at every few kicks; 10 if neither budget is given.
    moves
        Moves to price, at least 0. With it alone the result depends on the seed only.
    seed
        Seed of the kicks, at least 0.
    target
        Stop as soon as the value is no more than this, at least 0.

    Returns
    -------
    TardinessResult
        Never worse than the order by apparent tardiness cost.

    Raises
    ------
    InputError
        If an argument is off its domain.

    References
    ----------
    .. [1] R. K. Congram, C. N. Potts, S. L. van de Velde, An iterated dynasearch algorithm for the
       single-machine total weighted tardiness scheduling problem, INFORMS Journal on Computing 14 (2002):
       the neighbourhood and the kicks; moves are taken singly here.

    Examples
    --------
    >>> result = solve_tardiness([2, 3, 4], [1, 4, 2], [4, 3, 9], moves=1000)
    >>> result.sequence.tolist(), result.objective
    ([1, 0, 2], 1.0)
    """
    began = time.perf_counter()
    columns_in = tuple(np.ascontiguousarray(x, dtype=np.float64) for x in (p, w, d))
    times, weights, dues = columns_in
    for name, values, least in (("p", times, 0.0), ("w", weights, 0.0), ("d", dues, -math.inf)):
        require(values.shape == (times.size,), name, f"of shape ({times.size},)", values.shape)
        ok = bool(np.all(np.isfinite(values) & (values >= least)))
        require(ok, name, "finite" + (" and at least 0" if least == 0 else ""), values.tolist())
    require(budget_ms is None or budget_ms >= 0, "budget_ms", "None or at least 0", budget_ms)
    require(moves is None or moves >= 0, "moves", "None or at least 0", moves)
    require(seed >= 0, "seed", "at least 0", seed)
    require(target >= 0, "target", "at least 0", target)
    if budget_ms is None:
        budget_ms = 10.0 if moves is None else math.inf
    deadline = began + budget_ms / 1e3
    most = moves if moves is not None else 2**62
    orders = np.tile(apparent_tardiness_cost(times, weights, dues), (3, 1))
    value = weighted_tardiness(orders[2], times, weights, dues)
    values, counts, columns = np.full(3, value), np.zeros(3, dtype=np.int64), np.empty((5, times.size))
    state = np.array([(seed * 2_654_435_761 + 88_172_645_463_325_252) % 2**64 or 1], dtype=np.uint64)
    if times.size > 1 and value > target and most > 0 and time.perf_counter() < deadline:
        values[1], counts[0] = _descend(orders[1], times, weights, dues, columns)
        orders[2], values[2] = orders[1], values[1]
        while values[2] > target and counts[0] < most and time.perf_counter() < deadline:
            _search(
                times, weights, dues, orders, values, counts, state, columns,
                _ROUNDS_PER_LOOK, most, target,
            )  # fmt: skip
    value = weighted_tardiness(orders[2], times, weights, dues)
    return TardinessResult(
        status=Status.OPTIMAL if value == 0 else Status.FEASIBLE,
        sequence=orders[2].copy(),
        objective=value,
        bound=0.0 if value == 0 else None,
        moves=int(counts[0]),
        seconds=time.perf_counter() - began,
    )
