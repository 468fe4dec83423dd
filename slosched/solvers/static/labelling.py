"""Exact static batches by forward labelling: sets of finished requests, Pareto labels, an incumbent.

A label of a set of finished requests is (end time, weight attained, total latency). Sets are visited in
increasing order of their bit mask, so that every extension of a set is visited after it. A label is dropped
when another label of its set ends no later with no less weight and no more latency (dominance), or when even
the best that can follow it does not beat the incumbent (bounding). What survives is extended by every batch
of requests that are left. Memory that runs out ends the search without a claim, never with a wrong optimum.

Bounds, with r requests left in batches of at most b from time T on, each at its batch of one (which is the
loosest, execution growing with the batch): at most b requests start at T; before the i-th of them starts,
i - b have ended, which takes at least M(i - b), M(m) being the sum of every b-th of the m shortest executions
counted from the longest. Hence the starts sum to at least r·T + sum of M(i - b), and a request can be i-th
among those on time only if its latest start is no less than T + M(i - b).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.errors import InputError, require
from slosched.core.jit import njit
from slosched.core.result import LATENCY_TOLERANCE, WEIGHT_TOLERANCE, Result, Score, Status
from slosched.solvers.static.annealing import anneal_static
from slosched.solvers.static.constructive import portfolio
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem
from slosched.solvers.static.reference import IntsLike, check_plan, evaluate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ints32 = NDArray[np.int32]

MAX_REQUESTS = 22
MAX_SUBSETS = 1 << 21
DEFAULT_LABELS = 1 << 23
FIRST_LABELS = 1 << 12
START_MOVES = 10_000
_HALF = 11  # weights of sets are looked up in two tables of 2^11 entries
_LOOK = 16
_DONE, _MORE, _FULL = 0, 1, 2
_USED, _FREE, _MASK, _MOVES = 0, 1, 2, 3


@njit(nogil=True, cache=True)
def _tabulate(
    exec_s: Floats, latest_s: Floats, weight: Floats, largest: int,
    masks: Ints, index: Ints32, size: Ints, span: Floats, run: Floats, gain: Floats, tight: Floats,
) -> int:  # fmt: skip
    """Fill the tables of all batches up to `largest`; the batch of mask m has row ``index[m]``.

    span: seconds it lasts; run: sum of its members' execution; gain: weight of members that can be on time in
    a batch of this size at all; tight: time up to which all of these are.
    """
    n = len(weight)
    chosen = np.empty(largest, np.int64)
    depth = following = count = mask = 0
    while True:
        if following < n and depth < largest:
            chosen[depth] = following
            depth += 1
            mask |= 1 << following
            following += 1
            longest = total = worth = 0.0
            limit = math.inf
            for k in range(depth):
                i = chosen[k]
                total += exec_s[i, depth]
                longest = max(longest, exec_s[i, depth])
                if latest_s[i, depth] >= 0.0:
                    worth += weight[i]
                    limit = min(limit, latest_s[i, depth])
            masks[count] = mask
            index[mask] = count
            size[count] = depth
            span[count] = longest
            run[count] = total
            gain[count] = worth
            tight[count] = limit
            count += 1
        elif depth > 0:
            depth -= 1
            following = chosen[depth] + 1
            mask ^= 1 << chosen[depth]
        else:
            return count


@njit(nogil=True, cache=True)
def _latency_floor(left: int, shortest: Floats, by_exec: Ints, largest: int, packed: Floats) -> float:
    """Least execution plus waiting, from now on, of the requests in mask `left`; `packed` is scratch."""
    floor = 0.0
    m = 0
    for k in range(len(by_exec)):
        i = by_exec[k]
        if (left >> i) & 1:
            packed[m] = shortest[i] + (packed[m - largest] if m >= largest else 0.0)
            floor += shortest[i] + (packed[m - largest] if m >= largest else 0.0)
            m += 1
    return floor


@njit(nogil=True, cache=True)
def _weight_ceiling(
    now: float, left: int, shortest: Floats, latest: Floats, weight: Floats,
    by_exec: Ints, largest: int, packed: Floats, chosen: Floats,
) -> float:  # fmt: skip
    """Most weight of mask `left` that can still be on time from `now` on; `packed`, `chosen` are scratch."""
    m = 0
    for k in range(len(by_exec)):
        i = by_exec[k]
        if (left >> i) & 1 and latest[i] >= now:
            packed[m] = shortest[i] + (packed[m - largest] if m >= largest else 0.0)
            m += 1
    ended = count = 0
    total = 0.0
    for i in range(len(latest)):
        if (left >> i) & 1 and latest[i] >= now:
            while ended < m and now + packed[ended] <= latest[i]:
                ended += 1
            if count < ended + largest:
                chosen[count] = weight[i]
                count += 1
                total += weight[i]
            else:
                least = 0
                for k in range(1, count):
                    if chosen[k] < chosen[least]:
                        least = k
                if chosen[least] < weight[i]:
                    total += weight[i] - chosen[least]
                    chosen[least] = weight[i]
    return total


@njit(nogil=True, cache=True)
def _hopeless(ceiling: float, floor: float, best_weight: float, best_latency: float, ratio: bool) -> bool:
    """Whether no plan with at most `ceiling` weight and at least `floor` latency beats the incumbent."""
    if ratio:
        return ceiling * best_latency <= best_weight * floor * (1.0 + 1e-10)
    if ceiling < best_weight - WEIGHT_TOLERANCE:
        return True
    tie = ceiling <= best_weight + WEIGHT_TOLERANCE
    return tie and floor >= best_latency - LATENCY_TOLERANCE * max(1.0, best_latency)


@njit(nogil=True, cache=True)
def _advance(
    shortest: Floats, latest: Floats, latest_s: Floats, weight: Floats, by_exec: Ints, largest: int,
    low: Floats, high: Floats,
    masks: Ints, index: Ints32, size: Ints, span: Floats, run: Floats, gain: Floats, tight: Floats,
    floors: Floats, head: Ints32, count: Ints32,
    ends: Floats, weights: Floats, latencies: Floats, parent: Ints32, batch: Ints32, following: Ints32,
    best: Floats, best_from: Ints, cursor: Ints, ratio: bool, work: int,
) -> int:  # fmt: skip
    """Visit sets until all are done, the labels are full or `work` extensions have been looked at.

    Requests are numbered by latest start. `cursor` holds labels used, head of the list of free ones, the next
    set and the extensions so far; `best` the incumbent's weight and latency, `best_from` its last label and
    batch (-1: the caller's start). Interrupted within a set, the call may be repeated: labels that are made
    twice dominate each other.
    """
    n = len(weight)
    everything = (1 << n) - 1
    half = (1 << _HALF) - 1
    packed, chosen = np.empty(n), np.empty(n)
    fitting = np.empty(len(masks), np.int64)
    members, stack = np.empty(n, np.int64), np.empty(largest, np.int64)
    front_weight, front_latency = np.empty(64), np.empty(64)
    stop = cursor[_MOVES] + work
    while cursor[_MASK] < everything:
        done = cursor[_MASK]
        if count[done] == 0:
            cursor[_MASK] += 1
            continue
        if cursor[_MOVES] >= stop:
            return _MORE
        left = everything ^ done

        # 1. Sort the labels of this set by end time; drop the dominated and the hopeless.
        rows = np.empty(count[done], np.int64)
        row = head[done]
        for k in range(count[done]):
            rows[k] = row
            row = following[row]
        if len(rows) > 1:
            rows = rows[np.argsort(ends[rows])]
        kept = front = 0
        for k in range(len(rows)):
            row = rows[k]
            dropped = False
            for f in range(front):
                if front_weight[f] >= weights[row] and front_latency[f] <= latencies[row]:
                    dropped = True
                    break
            if not dropped:
                remaining = n - _bits(done)
                floor = latencies[row] + remaining * ends[row] + floors[left]
                ceiling = weights[row] + _weight_ceiling(
                    ends[row], left, shortest, latest, weight, by_exec, largest, packed, chosen
                )
                dropped = _hopeless(ceiling, floor, best[0], best[1], ratio)
            if dropped:
                following[row] = cursor[_FREE]
                cursor[_FREE] = row
                continue
            rows[kept] = row
            kept += 1
            f = 0
            for g in range(front):
                if front_weight[g] > weights[row] or front_latency[g] < latencies[row]:
                    front_weight[f] = front_weight[g]
                    front_latency[f] = front_latency[g]
                    f += 1
            if f == len(front_weight):
                more_weight, more_latency = np.empty(2 * f), np.empty(2 * f)
                more_weight[:f], more_latency[:f] = front_weight, front_latency
                front_weight, front_latency = more_weight, more_latency
            front_weight[f] = weights[row]
            front_latency[f] = latencies[row]
            front = f + 1
        count[done] = kept
        for k in range(kept):
            following[rows[k]] = rows[k + 1] if k + 1 < kept else -1
        if kept == 0:
            cursor[_MASK] += 1
            continue
        head[done] = rows[0]

        # 2. The batches that can be formed of what is left.
        remaining = 0
        for i in range(n):
            if (left >> i) & 1:
                members[remaining] = i
                remaining += 1
        fits = depth = position = mask = 0
        while True:
            if position < remaining and depth < largest:
                stack[depth] = position
                mask |= 1 << members[position]
                depth += 1
                position += 1
                fitting[fits] = index[mask]
                fits += 1
            elif depth > 0:
                depth -= 1
                position = stack[depth] + 1
                mask ^= 1 << members[stack[depth]]
            else:
                break

        # 3. Extend every label by every such batch.
        for k in range(kept):
            row = rows[k]
            now = ends[row]
            cursor[_MOVES] += fits
            for f in range(fits):
                s = fitting[f]
                end = now + span[s]
                rest = left ^ masks[s]
                reached = weights[row]
                if now <= tight[s]:
                    reached += gain[s]
                else:
                    bits = masks[s]
                    i = 0
                    while bits:
                        if bits & 1 and now <= latest_s[i, size[s]]:
                            reached += weight[i]
                        bits >>= 1
                        i += 1
                latency = latencies[row] + size[s] * now + run[s]
                if rest == 0:
                    if not _hopeless(reached, latency, best[0], best[1], ratio):
                        best[0], best[1] = reached, latency
                        best_from[0], best_from[1] = row, masks[s]
                    continue
                lo, hi = 0, n  # requests from `lo` on can still start at `end`
                while lo < hi:
                    middle = (lo + hi) >> 1
                    if latest[middle] >= end:
                        hi = middle
                    else:
                        lo = middle + 1
                able = (rest >> lo) << lo
                ceiling = reached + low[able & half] + high[able >> _HALF]
                if not ratio and ceiling < best[0] - WEIGHT_TOLERANCE:
                    continue
                if floors[rest] < 0.0:
                    floors[rest] = _latency_floor(rest, shortest, by_exec, largest, packed)
                floor = latency + (remaining - size[s]) * end + floors[rest]
                if _hopeless(ceiling, floor, best[0], best[1], ratio):
                    continue
                target = done | masks[s]
                # A look at the newest labels of the set saves most of the room for dominated ones.
                other = head[target] if count[target] > 0 else -1
                seen = 0
                while other >= 0 and seen < _LOOK:
                    if ends[other] <= end and weights[other] >= reached and latencies[other] <= latency:
                        break
                    other = following[other]
                    seen += 1
                if other >= 0 and seen < _LOOK:
                    continue
                new = cursor[_FREE]
                if new >= 0:
                    cursor[_FREE] = following[new]
                elif cursor[_USED] < len(ends):
                    new = cursor[_USED]
                    cursor[_USED] += 1
                else:
                    return _FULL
                ends[new], weights[new], latencies[new] = end, reached, latency
                parent[new], batch[new] = row, masks[s]
                following[new] = head[target]
                head[target] = new
                count[target] += 1
        cursor[_MASK] += 1
    return _DONE


@njit(nogil=True, cache=True)
def _bits(mask: int) -> int:
    count = 0
    while mask:
        mask &= mask - 1
        count += 1
    return count


@dataclass(slots=True)
class _Search:
    """Tables of one problem, its requests renumbered by latest start (`order` maps back), and its labels."""

    order: Ints
    tables: tuple[Any, ...]
    by_set: tuple[Any, ...]
    labels: tuple[NDArray[Any], ...]
    best: Floats
    best_from: Ints
    cursor: Ints

    @classmethod
    def of(cls, problem: StaticProblem, largest: int, start: Score, max_labels: int) -> _Search:
        n = problem.n
        order = np.argsort(problem.latest_start_s(1), kind="stable")
        exec_s, latest_s = np.zeros((n, largest + 1)), np.full((n, largest + 1), -math.inf)
        for size in range(1, largest + 1):
            exec_s[:, size] = problem.exec_s(size)[order]
            latest_s[:, size] = problem.latest_start_s(size)[order]
        weight = np.ascontiguousarray(problem.weight[order])
        subsets = _subset_count(n, largest)
        index = np.full(1 << n, -1, dtype=np.int32)
        masks, size_of = np.zeros(subsets, dtype=np.int64), np.zeros(subsets, dtype=np.int64)
        span, run, gain, tight = (np.zeros(subsets) for _ in range(4))
        batches = (masks, index, size_of, span, run, gain, tight)
        _tabulate(exec_s, latest_s, weight, largest, *batches)
        low, high = np.zeros(1 << _HALF), np.zeros(1 << _HALF)
        for i in range(n):
            table, bit = (low, i) if i < _HALF else (high, i - _HALF)
            table[1 << bit : 2 << bit] = table[: 1 << bit] + weight[i]
        shortest, latest = exec_s[:, 1].copy(), latest_s[:, 1].copy()
        by_exec = np.argsort(shortest, kind="stable")
        floors = np.full(1 << n, -1.0)
        floors[-1] = _latency_floor((1 << n) - 1, shortest, by_exec, largest, np.empty(n))
        search = cls(
            order=order,
            tables=(shortest, latest, latest_s, weight, by_exec, largest, low, high, *batches),
            by_set=(floors, np.full(1 << n, -1, dtype=np.int32), np.zeros(1 << n, dtype=np.int32)),
            labels=(*(np.empty(0) for _ in range(3)), *(np.empty(0, dtype=np.int32) for _ in range(3))),
            best=np.array([start.weight, start.latency_s]),
            best_from=np.array([-1, 0], dtype=np.int64),
            cursor=np.array([1, -1, 0, 0], dtype=np.int64),
        )
        search.grow(min(FIRST_LABELS, max_labels))
        ends, weights, latencies, parent, batch, following = search.labels
        ends[0] = weights[0] = 0.0
        latencies[0] = problem.elapsed_total_s
        parent[0], batch[0], following[0] = -1, 0, -1
        search.by_set[1][0], search.by_set[2][0] = 0, 1
        return search

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` labels."""
        old, self.labels = self.labels, tuple(np.empty(capacity, dtype=a.dtype) for a in self.labels)
        for before, after in zip(old, self.labels, strict=True):
            after[: len(before)] = before

    def run(self, ratio: bool, deadline: float, max_labels: int) -> bool:
        """Search to the end; False if time or memory ran out first."""
        work = 20_000
        while True:
            code = _advance(
                *self.tables, *self.by_set, *self.labels,
                self.best, self.best_from, self.cursor, ratio, work,
            )  # fmt: skip
            if code == _DONE:
                return True
            if code == _FULL:
                if len(self.labels[0]) >= max_labels:
                    return False
                self.grow(min(4 * len(self.labels[0]), max_labels))
            if time.perf_counter() >= deadline:
                return False
            work = 1_000_000

    def root_bounds(self) -> tuple[float, float]:
        """Most weight and least latency of any plan, from the bounds at the empty set."""
        shortest, latest, _, weight, by_exec, largest = self.tables[:6]
        n = len(self.order)
        everything = (1 << n) - 1
        ceiling = _weight_ceiling(
            0.0, everything, shortest, latest, weight, by_exec, largest, np.empty(n), np.empty(n)
        )
        return float(ceiling), float(self.labels[2][0] + self.by_set[0][everything])

    def plan(self) -> tuple[Ints, Ints] | None:
        """The best plan found, None if it is the start."""
        label, mask = (int(x) for x in self.best_from)
        if label < 0:
            return None
        groups: list[list[int]] = []
        while mask:
            groups.append([int(self.order[i]) for i in range(len(self.order)) if mask >> i & 1])
            mask, label = int(self.labels[4][label]), int(self.labels[3][label])
        groups.reverse()
        return np.concatenate(groups), np.array([len(group) for group in groups])


def _subset_count(n: int, largest: int) -> int:
    return sum(math.comb(n, size) for size in range(1, largest + 1))


def solve_static(
    problem: StaticProblem,
    objective: str | Objective = Objective.LEX,
    budget_s: float = 10.0,
    start: tuple[IntsLike, IntsLike] | None = None,
    *,
    max_labels: int = DEFAULT_LABELS,
) -> Result:
    """Optimum of static batches by forward labelling.

    Parameters
    ----------
    problem
        At most 22 requests, and at most 2^21 different batches: n = 22 with batches of 8 is beyond it.
    objective
        "lex" or "g".
    budget_s
        Wall time in seconds, at least 0; looked at about every 10 ms.
    start
        (sequence, batches) of a plan to beat; a good one prunes much. By default the best of a few greedy
        orders.
    max_labels
        Labels held at once, 36 bytes each, at least 1.

    Returns
    -------
    Result
        OPTIMAL with the plan and its value as bound; or LIMIT with the best plan so far and the bound at the
        root, if time or labels ran out. `moves` counts extensions looked at.

    Raises
    ------
    InputError
        If the problem is too large (use the cpsat or anneal solver), or another argument is off its domain.

    Examples
    --------
    >>> p = StaticProblem.build(prompt_tokens=[100] * 3, output_tokens=[50, 20, 9], e2e_s=1.0, max_batch=2)
    >>> result = solve_static(p)
    >>> result.status.value, result.objective
    ('optimal', 2.0)
    """
    began = time.perf_counter()
    goal = Objective.named(objective)
    require(goal in (Objective.LEX, Objective.G), "objective", "lex or g for labelling", goal.value)
    require(budget_s >= 0, "budget_s", "a number of at least 0", budget_s)
    require(max_labels >= 1, "max_labels", "an integer of at least 1", max_labels)
    largest = max(1, min(problem.max_batch, problem.n))
    if problem.n > MAX_REQUESTS or _subset_count(problem.n, largest) > MAX_SUBSETS:
        raise InputError(
            f"n must be at most {MAX_REQUESTS} with at most {MAX_SUBSETS} batches for labelling, got "
            f"{problem.n} with max_batch {problem.max_batch}; use the cpsat solver for a bound or anneal."
        )
    sequence, batches = annealed_start(problem, goal) if start is None else check_plan(problem, *start)
    first = evaluate(problem, sequence, batches)
    if problem.n == 0:
        return _result(problem, goal, Status.OPTIMAL, sequence, batches, None, 0, began)
    search = _Search.of(problem, largest, first.score, max_labels)
    finished = search.run(goal is Objective.G, began + budget_s, max_labels)
    found = search.plan()
    if found is not None:
        sequence, batches = found
    ceiling, floor = search.root_bounds()
    bound = Score(ceiling, floor).g if goal is Objective.G else ceiling
    status = Status.OPTIMAL if finished else Status.LIMIT
    moves = int(search.cursor[_MOVES])
    return _result(problem, goal, status, sequence, batches, bound, moves, began)


def _result(
    problem: StaticProblem,
    goal: Objective,
    status: Status,
    sequence: Ints,
    batches: Ints,
    bound: float | None,
    moves: int,
    began: float,
) -> Result:
    checked = evaluate(problem, sequence, batches)
    value = checked.value(goal)
    return Result(
        status=status,
        score=checked.score,
        objective=value,
        bound=value if status is Status.OPTIMAL else bound,
        sequence=sequence,
        batches=batches,
        moves=moves,
        seconds=time.perf_counter() - began,
        solver="labelling",
        prediction=checked.prediction,
    )


def annealed_start(problem: StaticProblem, objective: Objective = Objective.LEX) -> tuple[Ints, Ints]:
    """A plan to beat: the best constructive one after a fixed number of annealing moves (milliseconds)."""
    if problem.n <= 1:
        return np.arange(problem.n), np.ones(problem.n, dtype=np.int64)
    plan = portfolio(problem, objective)
    moves = START_MOVES if problem.n <= 12 else 4 * START_MOVES
    return anneal_static(problem, plan, objective, moves=moves)[0]
