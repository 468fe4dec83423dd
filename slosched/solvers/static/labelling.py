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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError, require
from slosched.core.jit import BORROWED, ZERO, njit
from slosched.core.result import LATENCY_TOLERANCE, WEIGHT_TOLERANCE, Result, Score, Status
from slosched.solvers.static.annealing import anneal_static
from slosched.solvers.static.constructive import portfolio
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem
from slosched.solvers.static.reference import IntsLike, check_plan, evaluate

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


class Requests(NamedTuple):
    """The requests, numbered by latest start."""

    shortest: Floats
    """Execution in a batch of one, shape (n,)."""
    latest: Floats
    """Latest start in a batch of one, shape (n,)."""
    latest_s: Floats
    """Latest start by batch size, shape (n, largest + 1)."""
    weight: Floats
    by_exec: Ints
    """Requests, the shortest first."""
    largest: int
    """Largest batch."""
    low: Floats
    high: Floats
    """Weight of a set by its lower and by its upper bits, shape (2^11,) each."""


class Batches(NamedTuple):
    """All batches up to the largest size; the batch of mask m has row ``row_of[m]``."""

    masks: Ints
    row_of: Ints32
    size: Ints
    span: Floats
    """Seconds it lasts."""
    run: Floats
    """Sum of its members' execution."""
    gain: Floats
    """Weight of members that can be on time in a batch of this size at all."""
    tight: Floats
    """Time up to which all of these are."""


class Sets(NamedTuple):
    """By set of finished requests, shape (2^n,)."""

    floors: Floats
    """Least latency of the requests in the set, negative until it is asked for."""
    head: Ints32
    """Its first label."""
    held: Ints32
    """How many labels it has."""


class Labels(NamedTuple):
    """Labels: what they stand for, where they come from, the next one of the same set or of the free ones."""

    ends: Floats
    weights: Floats
    latencies: Floats
    parent: Ints32
    batch: Ints32
    following: Ints32


class Incumbent(NamedTuple):
    """The best plan so far and the comparison."""

    best: Floats
    """Weight and latency."""
    best_from: Ints
    """Its last label and batch; -1: the caller's start."""
    ratio: bool
    """Whether weight over latency counts."""


class Scratch(NamedTuple):
    """Room to work in: two floats a request, batches, requests, a stack."""

    packed: Floats
    chosen: Floats
    fitting: Ints
    members: Ints
    stack: Ints


@njit()
def _tabulate(exec_s: Floats, latest_s: Floats, weight: Floats, largest: int, batches: Batches) -> int:
    """Fill the tables of all batches up to `largest`; returns how many there are."""
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
            batches.masks[count] = mask
            batches.row_of[mask] = count
            batches.size[count] = depth
            batches.span[count] = longest
            batches.run[count] = total
            batches.gain[count] = worth
            batches.tight[count] = limit
            count += 1
        elif depth > 0:
            depth -= 1
            following = chosen[depth] + 1
            mask ^= 1 << chosen[depth]
        else:
            return count


@njit(**BORROWED)
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


@njit(**BORROWED)
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


@njit(**BORROWED)
def _hopeless(ceiling: float, floor: float, best_weight: float, best_latency: float, ratio: bool) -> bool:
    """Whether no plan with at most `ceiling` weight and at least `floor` latency beats the incumbent."""
    if ratio:
        return ceiling * best_latency <= best_weight * floor * (1.0 + 1e-10)
    if ceiling < best_weight - WEIGHT_TOLERANCE:
        return True
    tie = ceiling <= best_weight + WEIGHT_TOLERANCE
    return tie and floor >= best_latency - LATENCY_TOLERANCE * max(1.0, best_latency)


@njit(**BORROWED)
def _dominated(front: Any, size: int, weight: float, latency: float) -> bool:
    """Whether a label that ends earlier has no less weight and no more latency."""
    for f in range(size):  # noqa: SIM110
        if front[0, f] >= weight and front[1, f] <= latency:
            return True
    return False


@njit(**BORROWED)
def _narrowed(front: Any, size: int, weight: float, latency: float) -> int:
    """Drop what a new label makes superfluous of the front; returns how many are left."""
    f = 0
    for g in range(size):
        if front[0, g] > weight or front[1, g] < latency:
            front[0, f] = front[0, g]
            front[1, f] = front[1, g]
            f += 1
    return f


@njit()
def _pareto(
    requests: Requests, sets: Sets, labels: Labels, incumbent: Incumbent, scratch: Scratch, done: int,
    cursor: Ints,
) -> Ints:  # fmt: skip
    """Sort the labels of a set by end time, drop the dominated and the hopeless; returns those left."""
    n = len(requests.weight)
    left = ((1 << n) - 1) ^ done
    remaining = n - _bits(done)
    rows = np.empty(sets.held[done], np.int64)
    row = sets.head[done]
    for k in range(len(rows)):
        rows[k] = row
        row = labels.following[row]
    if len(rows) > 1:
        rows = rows[np.argsort(labels.ends[rows])]
    front = np.empty((2, 64))
    kept = size = ZERO
    for k in range(len(rows)):
        row = rows[k]
        weight, latency, end = labels.weights[row], labels.latencies[row], labels.ends[row]
        dropped = _dominated(front, size, weight, latency)
        if not dropped:
            ceiling = weight + _weight_ceiling(
                end, left, requests.shortest, requests.latest, requests.weight, requests.by_exec,
                requests.largest, scratch.packed, scratch.chosen,
            )  # fmt: skip
            floor = latency + remaining * end + sets.floors[left]
            dropped = _hopeless(ceiling, floor, incumbent.best[0], incumbent.best[1], incumbent.ratio)
        if dropped:
            labels.following[row] = cursor[_FREE]
            cursor[_FREE] = row
            continue
        rows[kept] = row
        kept += 1
        size = _narrowed(front, size, weight, latency)
        if size == front.shape[1]:
            more = np.empty((2, 2 * size))
            more[:, :size] = front
            front = more
        front[0, size], front[1, size] = weight, latency
        size += 1
    sets.held[done] = kept
    for k in range(kept):
        labels.following[rows[k]] = rows[k + 1] if k + 1 < kept else -1
    if kept > 0:
        sets.head[done] = rows[0]
    return rows[:kept]


@njit(**BORROWED)
def _formable(batches: Batches, scratch: Scratch, left: int, n: int, largest: int) -> int:
    """Write the rows of all batches that mask `left` can form to `scratch.fitting`; returns how many."""
    members, stack = scratch.members, scratch.stack
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
            scratch.fitting[fits] = batches.row_of[mask]
            fits += 1
        elif depth > 0:
            depth -= 1
            position = stack[depth] + 1
            mask ^= 1 << members[stack[depth]]
        else:
            return fits


@njit(**BORROWED)
def _on_time(requests: Requests, batches: Batches, s: int, now: float) -> float:
    """Weight of the members of batch `s` that are on time if it starts now."""
    if now <= batches.tight[s]:
        return float(batches.gain[s])
    total = 0.0
    bits = batches.masks[s]
    i = 0
    while bits:
        if bits & 1 and now <= requests.latest_s[i, batches.size[s]]:
            total += requests.weight[i]
        bits >>= 1
        i += 1
    return total


@njit(**BORROWED)
def _able_weight(requests: Requests, rest: int, end: float) -> float:
    """Weight of mask `rest` that can still start at `end`."""
    lo, hi = 0, len(requests.latest)  # requests from `lo` on can
    while lo < hi:
        middle = (lo + hi) >> 1
        if requests.latest[middle] >= end:
            hi = middle
        else:
            lo = middle + 1
    able = (rest >> lo) << lo
    return float(requests.low[able & ((1 << _HALF) - 1)] + requests.high[able >> _HALF])


@njit(**BORROWED)
def _seen(sets: Sets, labels: Labels, target: int, end: float, weight: float, latency: float) -> bool:
    """Whether one of the newest labels of the set dominates: saves most of the room for dominated ones."""
    other = sets.head[target] if sets.held[target] > 0 else -1
    looked = 0
    while other >= 0 and looked < _LOOK:
        if (
            labels.ends[other] <= end
            and labels.weights[other] >= weight
            and labels.latencies[other] <= latency
        ):
            return True
        other = labels.following[other]
        looked += 1
    return False


@njit(**BORROWED)
def _free_label(labels: Labels, cursor: Ints) -> int:
    """A label to write to, -1 if all are in use."""
    new = cursor[_FREE]
    if new >= 0:
        cursor[_FREE] = labels.following[new]
        return int(new)
    if cursor[_USED] < len(labels.ends):
        cursor[_USED] += 1
        return int(cursor[_USED]) - 1
    return -1


@njit(**BORROWED)
def _extend(
    requests: Requests, batches: Batches, sets: Sets, labels: Labels, incumbent: Incumbent, scratch: Scratch,
    cursor: Ints, done: int, row: int, fits: int, remaining: int,
) -> bool:  # fmt: skip
    """Extend one label by each of the first `fits` batches of `scratch.fitting`; False if labels ran out."""
    left = ((1 << len(requests.weight)) - 1) ^ done
    best, ratio = incumbent.best, incumbent.ratio
    now, weight, latency_now = labels.ends[row], labels.weights[row], labels.latencies[row]
    for f in range(fits):
        s = scratch.fitting[f]
        end = now + batches.span[s]
        rest = left ^ batches.masks[s]
        reached = weight + _on_time(requests, batches, s, now)
        latency = latency_now + batches.size[s] * now + batches.run[s]
        if rest == 0:
            if not _hopeless(reached, latency, best[0], best[1], ratio):
                best[0], best[1] = reached, latency
                incumbent.best_from[0], incumbent.best_from[1] = row, batches.masks[s]
            continue
        ceiling = reached + _able_weight(requests, rest, end)
        if not ratio and ceiling < best[0] - WEIGHT_TOLERANCE:
            continue
        if sets.floors[rest] < 0.0:
            sets.floors[rest] = _latency_floor(
                rest, requests.shortest, requests.by_exec, requests.largest, scratch.packed
            )
        floor = latency + (remaining - batches.size[s]) * end + sets.floors[rest]
        if _hopeless(ceiling, floor, best[0], best[1], ratio):
            continue
        target = done | batches.masks[s]
        if _seen(sets, labels, target, end, reached, latency):
            continue
        new = _free_label(labels, cursor)
        if new < 0:
            return False
        labels.ends[new], labels.weights[new], labels.latencies[new] = end, reached, latency
        labels.parent[new], labels.batch[new] = row, batches.masks[s]
        labels.following[new] = sets.head[target]
        sets.head[target] = new
        sets.held[target] += 1
    return True


@njit()
def _advance(
    requests: Requests, batches: Batches, sets: Sets, labels: Labels, incumbent: Incumbent, scratch: Scratch,
    cursor: Ints, work: int,
) -> int:  # fmt: skip
    """Visit sets until all are done, the labels are full or `work` extensions have been looked at.

    `cursor` holds labels used, head of the list of free ones, the next set and the extensions so far.
    Interrupted within a set, the call may be repeated: labels that are made twice dominate each other.
    """
    n = len(requests.weight)
    everything = (1 << n) - 1
    stop = cursor[_MOVES] + work
    while cursor[_MASK] < everything:
        done = cursor[_MASK]
        if sets.held[done] == 0:
            cursor[_MASK] += 1
            continue
        if cursor[_MOVES] >= stop:
            return _MORE
        rows = _pareto(requests, sets, labels, incumbent, scratch, done, cursor)
        if len(rows) > 0:
            fits = _formable(batches, scratch, everything ^ done, n, requests.largest)
            remaining = n - _bits(done)
            for k in range(len(rows)):
                cursor[_MOVES] += fits
                if not _extend(
                    requests, batches, sets, labels, incumbent, scratch, cursor, done, rows[k], fits,
                    remaining,
                ):  # fmt: skip
                    return _FULL
        cursor[_MASK] += 1
    return _DONE


@njit(**BORROWED)
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
    requests: Requests
    batches: Batches
    sets: Sets
    labels: Labels
    incumbent: Incumbent
    scratch: Scratch
    cursor: Ints

    @classmethod
    def of(cls, problem: StaticProblem, largest: int, start: Score, max_labels: int, ratio: bool) -> _Search:
        """The search before its first step, with a plan to beat."""
        n = problem.n
        order = np.argsort(problem.latest_start_s(1), kind="stable")
        exec_s, latest_s = np.zeros((n, largest + 1)), np.full((n, largest + 1), -math.inf)
        for size in range(1, largest + 1):
            exec_s[:, size] = problem.exec_s(size)[order]
            latest_s[:, size] = problem.latest_start_s(size)[order]
        weight = np.ascontiguousarray(problem.weight[order])
        subsets = _subset_count(n, largest)
        batches = Batches(
            masks=np.zeros(subsets, dtype=np.int64), row_of=np.full(1 << n, -1, dtype=np.int32),
            size=np.zeros(subsets, dtype=np.int64), span=np.zeros(subsets), run=np.zeros(subsets),
            gain=np.zeros(subsets), tight=np.zeros(subsets),
        )  # fmt: skip
        _tabulate(exec_s, latest_s, weight, largest, batches)
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
            requests=Requests(shortest, latest, latest_s, weight, by_exec, largest, low, high),
            batches=batches,
            sets=Sets(floors, np.full(1 << n, -1, dtype=np.int32), np.zeros(1 << n, dtype=np.int32)),
            labels=_labels(0),
            incumbent=Incumbent(
                np.array([start.weight, start.latency_s]), np.array([-1, 0], dtype=np.int64), ratio
            ),
            scratch=Scratch(
                np.empty(n),
                np.empty(n),
                np.empty(subsets, np.int64),
                np.empty(n, np.int64),
                np.empty(largest, np.int64),
            ),
            cursor=np.array([1, -1, 0, 0], dtype=np.int64),
        )
        search.grow(min(FIRST_LABELS, max_labels))
        first = search.labels
        first.ends[0] = first.weights[0] = 0.0
        first.latencies[0] = problem.elapsed_total_s
        first.parent[0], first.batch[0], first.following[0] = -1, 0, -1
        search.sets.head[0], search.sets.held[0] = 0, 1
        return search

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` labels."""
        old, self.labels = self.labels, _labels(capacity)
        arrays: Iterator[tuple[Any, Any]] = zip(old, self.labels, strict=True)
        for before, after in arrays:
            after[: len(before)] = before

    def run(self, deadline: float, max_labels: int) -> bool:
        """Search to the end; False if time or memory ran out first."""
        work = 20_000
        while True:
            code = _advance(
                self.requests, self.batches, self.sets, self.labels, self.incumbent, self.scratch,
                self.cursor, work,
            )  # fmt: skip
            if code == _DONE:
                return True
            if code == _FULL:
                if len(self.labels.ends) >= max_labels:
                    return False
                self.grow(min(4 * len(self.labels.ends), max_labels))
            if time.perf_counter() >= deadline:
                return False
            work = 1_000_000

    def root_bounds(self) -> tuple[float, float]:
        """Most weight and least latency of any plan, from the bounds at the empty set."""
        r, everything = self.requests, (1 << len(self.order)) - 1
        ceiling = _weight_ceiling(
            0.0, everything, r.shortest, r.latest, r.weight, r.by_exec, r.largest, self.scratch.packed,
            self.scratch.chosen,
        )  # fmt: skip
        return float(ceiling), float(self.labels.latencies[0] + self.sets.floors[everything])

    def plan(self) -> tuple[Ints, Ints] | None:
        """The best plan found, None if it is the start."""
        label, mask = (int(x) for x in self.incumbent.best_from)
        if label < 0:
            return None
        groups: list[list[int]] = []
        while mask:
            groups.append([int(self.order[i]) for i in range(len(self.order)) if mask >> i & 1])
            mask, label = int(self.labels.batch[label]), int(self.labels.parent[label])
        groups.reverse()
        return np.concatenate(groups), np.array([len(group) for group in groups])


def _labels(capacity: int) -> Labels:
    """Room for so many labels."""
    floats: list[Any] = [np.empty(capacity) for _ in range(3)]
    ints: list[Any] = [np.empty(capacity, np.int32) for _ in range(3)]
    return Labels(*floats, *ints)


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
    search = _Search.of(problem, largest, first.score, max_labels, goal is Objective.G)
    finished = search.run(began + budget_s, max_labels)
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
