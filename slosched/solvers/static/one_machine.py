"""Classical one-machine results on plain arrays: Moore-Hodgson, Smith backward, Lawler-Moore, insertion.

On one machine with processing times p and due dates d these are exact (Moore 1968 with Hodgson's rule; Smith
1956; Lawler and Moore 1969), which makes them oracles for tests. On a queue they work through a fluid
surrogate: a machine that serves b requests at once is taken as one that serves each in a b-th of its time.
`batch_list` turns that surrogate into batches: it serves what Moore-Hodgson keeps, like lengths together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.jit import BORROWED, njit

Flags = NDArray[np.bool_]

LAWLER_MOORE_CELLS = 50_000_000
"""Most (request, weight) cells of the Lawler-Moore table; one byte each."""
STRETCH = 2.0
"""Most a batch may be longer than its most urgent member."""


@njit(nogil=True, cache=True)
def _push(heap: Any, count: Any, key: Any, item: Any) -> Any:
    """Add to a heap with the largest key on top, ties to the larger index; returns the new count."""
    x = count
    while x > 0:
        parent = (x - 1) >> 1
        other = heap[parent]
        if key[other] > key[item] or (key[other] == key[item] and other > item):
            break
        heap[x] = other
        x = parent
    heap[x] = item
    return count + 1


@njit(nogil=True, cache=True)
def _pop(heap: Any, count: Any, key: Any) -> Any:
    """Remove the top, leaving it at heap[count - 1]; returns the new count."""
    top, item = heap[0], heap[count - 1]
    count -= 1
    x = 0
    while True:
        child = 2 * x + 1
        if child >= count:
            break
        right = child + 1
        if right < count:
            a, b = heap[child], heap[right]
            if key[b] > key[a] or (key[b] == key[a] and b > a):
                child = right
        other = heap[child]
        if key[item] > key[other] or (key[item] == key[other] and item > other):
            break
        heap[x] = other
        x = child
    heap[x] = item
    heap[count] = top
    return count


@njit(nogil=True, cache=True)
def _moore_hodgson(order: Any, p: Any, d: Any, key: Any) -> Any:
    kept = np.zeros(len(p), np.bool_)
    heap = np.empty(len(p), np.int64)
    count, total = 0, 0.0
    for x in range(len(order)):
        i = order[x]
        if p[i] > d[i]:
            continue
        count = _push(heap, count, key, i)
        kept[i] = True
        total += p[i]
        while total > d[i]:
            count = _pop(heap, count, key)
            gone = heap[count]
            kept[gone] = False
            total -= p[gone]
            if gone == i:
                break
    return kept


@njit(**BORROWED)
def _keep(
    due: Any, dues: Any, free: Any, kept: Any, latest: Any, p: Any, key: Any, clock: Any, heap: Any
) -> Any:  # fmt: skip
    """Moore-Hodgson from `clock` on, over the first `dues` of `due` that could still be on time.

    `due` shrinks to these; returns how many they are.
    """
    count, total, alive = 0, 0.0, 0
    for x in range(dues):
        i = due[x]
        kept[i] = False
        if not free[i] or latest[i] < clock:
            continue
        due[alive] = i
        alive += 1
        room = latest[i] + p[i] - clock
        count = _push(heap, count, key, i)
        kept[i] = True
        total += p[i]
        while total > room:
            count = _pop(heap, count, key)
            gone = heap[count]
            kept[gone] = False
            total -= p[gone]
            if gone == i:
                break
    return alive


@njit(**BORROWED)
def _fill_up(by_run: Any, free: Any, b: Any, sequence: Any, size: Any, rows: Any, at: Any) -> Any:
    """Write the requests that are left to full batches, the shortest first; returns how many batches."""
    room = 0
    for x in range(len(by_run)):
        i = by_run[x]
        if free[i]:
            if room == 0:
                size[rows] = 0
                rows += 1
                room = b
            sequence[at] = i
            at += 1
            size[rows - 1] += 1
            room -= 1
    return rows


@njit(**BORROWED)
def _in_time(length: Any, lengths: Any, free: Any, latest: Any, clock: Any) -> Any:
    """Keep those of the first `lengths` of `length` that could still be on time; returns how many."""
    alive = 0
    for x in range(lengths):
        i = length[x]
        if free[i] and latest[i] >= clock:
            length[alive] = i
            alive += 1
    return alive


@njit(**BORROWED)
def _insert(score: Any, pick: Any, place: Any, worth: Any, item: Any) -> None:
    """Put an item among the first `place` of a list by descending worth."""
    while place > 0 and score[place - 1] < worth:
        score[place], pick[place] = score[place - 1], pick[place - 1]
        place -= 1
    score[place], pick[place] = worth, item


@njit(nogil=True, cache=True)
def _batch_list(
    run: Any, latest: Any, p: Any, key: Any, cap: Any, by_due: Any, by_run: Any, b: Any, patience: Any,
    stretch: Any, replan: Any,
) -> Any:  # fmt: skip
    n = len(run)
    free, kept = np.ones(n, np.bool_), np.zeros(n, np.bool_)
    due, length, heap = by_due.copy(), by_run.copy(), np.empty(n, np.int64)
    dues, lengths, head = n, n, 0
    sequence, size = np.empty(n, np.int64), np.empty(n, np.int64)
    score, pick, chosen = np.empty(b), np.empty(b, np.int64), np.empty(b, np.int64)
    last = 0.0
    for i in range(n):
        if latest[i] < np.inf:
            last = max(last, latest[i])
    clock, rows, at, since = 0.0, 0, 0, replan
    while True:
        if since >= replan:
            since, head = 0, 0
            dues = _keep(due, dues, free, kept, latest, p, key, clock, heap)
            lengths = _in_time(length, lengths, free, latest, clock)
        while head < dues and not (kept[due[head]] and free[due[head]] and latest[due[head]] >= clock):
            head += 1
        if head == dues:
            if since == 0:
                break
            since = replan
            continue
        urgent = due[head]
        batch, longest = cap[urgent], run[urgent] * stretch
        soonest = min(latest[urgent], last)
        scale = patience / max(last - soonest, 1e-9)
        count, members, total, best, seeded = 0, 0, 0.0, -1.0, False
        for x in range(lengths):  # by length: what is looked at now would be the longest member
            i = length[x]
            e = run[i]
            if e > longest:
                break
            if not free[i] or cap[i] < batch or latest[i] < clock:
                continue
            if i == urgent:
                worth, value, seeded = np.inf, e, True
            else:
                worth = e * max(0.1, 1.0 - scale * (min(latest[i], last) - soonest))
                if not kept[i]:
                    worth *= 0.3
                value = worth
            if count < batch:
                y = count
                count += 1
            elif worth > score[count - 1]:
                y = count - 1
                total -= score[y]
            else:
                continue
            total += value
            _insert(score, pick, y, worth, i)
            if seeded and total > best * e:
                best, members = total / e, count
                chosen[:count] = pick[:count]
        duration = 0.0
        for y in range(members):
            i = chosen[y]
            free[i] = False
            sequence[at] = i
            at += 1
            duration = max(duration, run[i])
        size[rows] = members
        rows += 1
        since += 1
        clock += duration
    rows = _fill_up(by_run, free, b, sequence, size, rows, at)
    return sequence, size[:rows].copy()


@njit(nogil=True, cache=True)
def _smith_backward(order: Any, p: Any, d: Any) -> Any:
    n = len(order)
    out = np.empty(n, np.int64)
    heap = np.empty(n, np.int64)
    total = 0.0
    for x in range(n):
        total += p[order[x]]
    at, count = n - 1, 0
    for position in range(n - 1, -1, -1):
        while at >= 0 and (d[order[at]] >= total or count == 0):
            count = _push(heap, count, p, order[at])
            at -= 1
        count = _pop(heap, count, p)
        out[position] = heap[count]
        total -= p[heap[count]]
    return out


@njit(nogil=True, cache=True)
def _lawler_moore(order: Any, p: Any, d: Any, w: Any) -> Any:
    n, most = len(order), 0
    for x in range(n):
        most += w[order[x]]
    least = np.full(most + 1, np.inf)
    least[0] = 0.0
    taken = np.zeros((n, most + 1), np.uint8)
    reached = 0
    for x in range(n):
        i = order[x]
        reached += w[i]
        for value in range(reached, w[i] - 1, -1):
            end = least[value - w[i]] + p[i]
            if w[i] > 0 and end <= d[i] and end < least[value]:
                least[value] = end
                taken[x, value] = 1
    value = most
    while least[value] == np.inf:
        value -= 1
    kept = np.zeros(len(p), np.bool_)
    for x in range(n - 1, -1, -1):
        if taken[x, value]:
            kept[order[x]] = True
            value -= w[order[x]]
    return kept


def moore_hodgson(
    processing_s: Floats, due_s: Floats, weight: Floats | None = None, order: Ints | None = None
) -> Flags:
    """Which requests to finish in time on one machine.

    Exact for unit weights (fewest late); with weights the request of most time per weight is evicted first,
    which is a heuristic.

    Parameters
    ----------
    processing_s, due_s
        Shape (n,); processing at least 0, due dates may be infinite.
    weight
        Shape (n,), at least 0; None for unit weights.
    order
        The requests in ascending due date, if known already.

    Returns
    -------
    ndarray
        Mask of the kept requests: in order of due date all of them are on time.

    Examples
    --------
    >>> moore_hodgson(np.array([4.0, 1.0, 2.0]), np.array([4.0, 3.0, 5.0])).tolist()
    [False, True, True]
    """
    key = processing_s
    if weight is not None:
        key = np.where(weight > 0, processing_s / np.where(weight > 0, weight, 1.0), np.inf)
    order = np.argsort(due_s, kind="stable") if order is None else order
    kept: Flags = _moore_hodgson(order, processing_s, due_s, key)
    return kept


def batch_list(
    run_s: Floats, latest_s: Floats, weight: Floats, cap: Ints, max_batch: int, *, phi: float, patience: float
) -> tuple[Ints, Ints]:
    """Batches for a machine that serves `max_batch` at once and is held by the longest of a batch.

    Moore-Hodgson on the fluid surrogate says whom to serve at all, and is asked again 8 times on the way.
    The next batch is built around the most urgent of them: out of the requests of at most twice its length,
    those that use the batch best, most time of their own first, less the longer they could still wait; and
    of all lengths that the batch could have, the one that wastes the least. The others come last, shortest
    first.

    Parameters
    ----------
    run_s, latest_s
        Execution time and latest start of each request in a batch of its own `cap`, shape (n,); latest start
        below 0 if never on time, infinity if always.
    weight
        Shape (n,), at least 0.
    cap
        Largest batch in which each request can be on time, 1 to `max_batch`.
    max_batch
        Places of a batch.
    phi
        Seconds of a place that a second of work takes, at least 1: a batch holds its places to its end.
    patience
        From 0 to 1: how much less a request is worth to a batch if its latest start is the last of all, not
        that of the most urgent.

    Returns
    -------
    tuple
        A permutation and the sizes of its batches.

    Examples
    --------
    >>> run, latest = np.array([1.0, 4.0, 4.0, 1.0]), np.array([5.0, 0.0, 9.0, 5.0])
    >>> order, sizes = batch_list(run, latest, np.ones(4), np.full(4, 2), 2, phi=1.0, patience=0.5)
    >>> order.tolist(), sizes.tolist()
    ([1, 2, 0, 3], [2, 2])
    """
    p = phi * run_s / cap
    key = np.where(weight > 0, p / np.where(weight > 0, weight, 1.0), np.inf)
    by_due, by_run = np.argsort(latest_s + p, kind="stable"), np.argsort(run_s, kind="stable")
    replan = -(-len(run_s) // (8 * max_batch))
    found: tuple[Ints, Ints] = _batch_list(
        run_s, latest_s, p, key, cap, by_due, by_run, max_batch, patience, STRETCH, replan
    )
    return found


def smith_backward(processing_s: Floats, due_s: Floats, order: Ints) -> Ints:
    """Order of least total completion time in which all of `order` are on time, if they can be.

    `order` lists the requests in ascending due date; it may leave some out.

    Examples
    --------
    >>> smith_backward(np.array([3.0, 1.0, 2.0]), np.array([4.0, 9.0, 9.0]), np.arange(3)).tolist()
    [1, 0, 2]
    """
    out: Ints = _smith_backward(order, processing_s, due_s)
    return out


def lawler_moore(processing_s: Floats, due_s: Floats, weight: Floats) -> Flags:
    """Which requests to finish in time for the most weight on one machine; exact.

    Parameters
    ----------
    processing_s, due_s
        Shape (n,).
    weight
        Whole numbers of at least 0 whose sum times n is at most `LAWLER_MOORE_CELLS`.

    Raises
    ------
    InputError
        If a weight is not whole or the table would be too large; `moore_hodgson` takes any weights.

    Examples
    --------
    >>> lawler_moore(np.array([4.0, 1.0, 2.0]), np.array([4.0, 3.0, 5.0]), np.array([5.0, 1.0, 1.0])).tolist()
    [True, False, False]
    """
    whole = bool(np.all((weight >= 0) & (weight == np.floor(weight))))
    require(whole, "weight", "whole numbers of at least 0 (or use moore-hodgson)", weight.tolist()[:8])
    cells = len(weight) * (float(weight.sum()) + 1.0)
    domain = f"of sum times n at most {LAWLER_MOORE_CELLS} (or use moore-hodgson)"
    require(cells <= LAWLER_MOORE_CELLS, "weight", domain, cells)
    kept: Flags = _lawler_moore(
        np.argsort(due_s, kind="stable"), processing_s, due_s, weight.astype(np.int64)
    )
    return kept
