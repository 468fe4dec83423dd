"""Scheduling problems on one machine whose optimum is known from a textbook: oracles for the other solvers.

Plain Python and numpy, written for clarity. All times are in one unit of the caller's choice (seconds,
milliseconds): nothing here converts. Jobs are rows ``0..n-1``; every order returned is a permutation of them.

The static problem with batches of one request is the special case of a single machine with processing time
``exec(i, 1)`` and due date ``latest start(i, 1) + exec(i, 1)``.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError, require

MAX_SUBSET_JOBS = 20


def _jobs(
    processing: npt.ArrayLike, due: npt.ArrayLike | None = None, weight: npt.ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    """Check and convert the three columns of a single-machine problem; absent ones become neutral."""
    p = np.asarray(processing, dtype=np.float64)
    require(p.ndim == 1, "processing", "one-dimensional", p.shape)
    d = np.full(p.size, np.inf) if due is None else np.asarray(due, dtype=np.float64)
    w = np.ones(p.size) if weight is None else np.asarray(weight, dtype=np.float64)
    require(d.shape == p.shape, "due", f"of shape {p.shape}", d.shape)
    require(w.shape == p.shape, "weight", f"of shape {p.shape}", w.shape)
    require(bool(np.all(np.isfinite(p) & (p >= 0))), "processing", "finite numbers of at least 0", p.tolist())
    require(not bool(np.any(np.isnan(d))), "due", "numbers (infinite: no due date)", d.tolist())
    require(bool(np.all(np.isfinite(w) & (w >= 0))), "weight", "finite numbers of at least 0", w.tolist())
    return p, d, w


def spt(processing: npt.ArrayLike) -> Ints:
    """Order by shortest processing time: least sum of completion times [1]_. Ties keep the row order.

    References
    ----------
    .. [1] W. E. Smith, Various optimizers for single-stage production, Naval Research Logistics
       Quarterly 3 (1956).

    Examples
    --------
    >>> spt([3.0, 1.0, 2.0]).tolist()
    [1, 2, 0]
    """
    p, _, _ = _jobs(processing)
    return np.argsort(p, kind="stable").astype(np.int64)


def moore_hodgson(processing: npt.ArrayLike, due: npt.ArrayLike) -> tuple[Ints, int]:
    """Order with the most jobs finished by their due dates (every job counts alike).

    Parameters
    ----------
    processing, due
        Shape (n,). A due date below the processing time cannot be met; infinite means no due date.

    Returns
    -------
    order
        The jobs that are on time by due date, then the late ones by row.
    on_time
        How many are on time: the optimum.

    References
    ----------
    .. [1] J. M. Moore, An n job, one machine sequencing algorithm for minimizing the number of late jobs,
       Management Science 15 (1968); the version that evicts the longest job is due to T. J. Hodgson.

    Examples
    --------
    >>> order, on_time = moore_hodgson([4.0, 2.0, 2.0], [4.0, 3.0, 4.5])
    >>> order.tolist(), on_time
    ([1, 2, 0], 2)
    """
    p, d, _ = _jobs(processing, due)
    by_due = np.argsort(d, kind="stable").tolist()
    kept: list[tuple[float, int]] = []
    evicted: list[int] = []
    end = 0.0
    for job in by_due:
        heapq.heappush(kept, (-float(p[job]), job))
        end += float(p[job])
        if end > d[job]:
            minus_p, longest = heapq.heappop(kept)
            end += minus_p
            evicted.append(longest)
    late = set(evicted)
    order = [job for job in by_due if job not in late] + sorted(evicted)
    return np.array(order, dtype=np.int64), len(kept)


def lawler_moore(processing: npt.ArrayLike, due: npt.ArrayLike, weight: npt.ArrayLike) -> tuple[Ints, int]:
    """Order with the greatest weight of jobs finished by their due dates; weights are integers.

    ``least[v]`` is the least total processing time of a set of jobs that are all on time and weigh ``v``:
    O(n · sum of weights) steps.

    Parameters
    ----------
    processing, due
        Shape (n,), real.
    weight
        Shape (n,), whole numbers of at least 0.

    Returns
    -------
    order
        The jobs that are on time by due date, then the late ones by row.
    weight_on_time
        The optimum.

    Raises
    ------
    InputError
        If a weight is not a whole number.

    References
    ----------
    .. [1] E. L. Lawler, J. M. Moore, A functional equation and its application to resource allocation and
       sequencing problems, Management Science 16 (1969).

    Examples
    --------
    >>> order, value = lawler_moore([2.0, 2.0, 3.0], [2.0, 3.0, 5.0], [1, 5, 3])
    >>> order.tolist(), value
    ([1, 2, 0], 8)
    """
    p, d, w = _jobs(processing, due, weight)
    require(bool(np.all(w == np.floor(w))), "weight", "whole numbers", w.tolist())
    whole = w.astype(np.int64)
    by_due = np.argsort(d, kind="stable")
    total = int(whole.sum())
    least = np.full(total + 1, np.inf)
    least[0] = 0.0
    taken = np.zeros((p.size, total + 1), dtype=bool)
    for row, job in enumerate(by_due.tolist()):
        gain = int(whole[job])
        candidate = np.full(total + 1, np.inf)
        candidate[gain:] = least[: total + 1 - gain] + p[job]
        taken[row] = (candidate <= d[job]) & (candidate < least)
        least = np.where(taken[row], candidate, least)
    best = int(np.flatnonzero(np.isfinite(least))[-1])
    on_time: list[int] = []
    value = best
    for row in range(p.size - 1, -1, -1):
        if taken[row, value]:
            on_time.append(int(by_due[row]))
            value -= int(whole[by_due[row]])
    late = sorted(set(range(p.size)) - set(on_time))
    return np.array(on_time[::-1] + late, dtype=np.int64), best


def smith_backward(processing: npt.ArrayLike, due: npt.ArrayLike) -> Ints | None:
    """Order with the least sum of completion times among those that meet every due date; None if none does.

    From the back: the longest job whose due date is not before the end of what is left goes last [1]_.

    References
    ----------
    .. [1] W. E. Smith, Various optimizers for single-stage production, Naval Research Logistics
       Quarterly 3 (1956), on the problem with deadlines.

    Examples
    --------
    >>> order = smith_backward([3.0, 1.0, 2.0], [3.0, 9.0, 9.0])
    >>> order.tolist()
    [0, 1, 2]
    >>> smith_backward([3.0, 1.0], [2.0, 9.0]) is None
    True
    """
    p, d, _ = _jobs(processing, due)
    left = list(range(p.size))
    order: list[int] = []
    while left:
        # The end is summed afresh: a running difference would lose jobs that are due exactly at the end.
        end = float(np.sum(p[left]))
        fitting = [job for job in left if d[job] >= end - 1e-9 * (1.0 + abs(end))]
        if not fitting:
            return None
        last = max(fitting, key=lambda job: (p[job], job))
        order.append(last)
        left.remove(last)
    return np.array(order[::-1], dtype=np.int64)


def single_machine_subsets(
    processing: npt.ArrayLike, latest_start: npt.ArrayLike, weight: npt.ArrayLike
) -> tuple[Ints, float, float]:
    """Lexicographic optimum on one machine: greatest weight started in time, then least sum of completions.

    A programme over all subsets: what has been run fixes the time, so one pair (weight, sum of completions)
    per subset suffices. O(n 2^n), for n up to 20.

    Parameters
    ----------
    processing
        Shape (n,).
    latest_start
        Shape (n,); a job counts if it starts no later; negative infinity: never.
    weight
        Shape (n,).

    Returns
    -------
    order
        An optimal permutation.
    weight_on_time, sum_of_completions
        Its value.

    Raises
    ------
    InputError
        If there are more than 20 jobs: use `slosched.solvers.static.labelling` or its `cpsat`.

    References
    ----------
    .. [1] M. Held, R. M. Karp, A dynamic programming approach to sequencing problems, Journal of SIAM 10
       (1962).

    Examples
    --------
    >>> order, weight, completions = single_machine_subsets([2.0, 1.0], [0.0, 5.0], [1.0, 1.0])
    >>> order.tolist(), weight, completions
    ([0, 1], 2.0, 5.0)
    """
    p, latest, w = _jobs(processing, latest_start, weight)
    n = p.size
    if n > MAX_SUBSET_JOBS:
        raise InputError(
            f"n must be at most {MAX_SUBSET_JOBS} for the programme over subsets, got {n}; "
            "use the labelling or cpsat solver."
        )
    full = 1 << n
    end = np.zeros(full)
    gained = np.full(full, -np.inf)
    completions = np.full(full, np.inf)
    last = np.zeros(full, dtype=np.int64)
    gained[0] = completions[0] = 0.0
    for job in range(n):
        end[1 << job : 2 << job] = end[: 1 << job] + p[job]
    members = np.bitwise_count(np.arange(full, dtype=np.uint64))
    for size in range(1, n + 1):
        masks = np.flatnonzero(members == size)
        for job in range(n):
            reached = masks[(masks >> job) & 1 == 1]
            before = reached ^ (1 << job)
            value = gained[before] + np.where(end[before] <= latest[job], w[job], 0.0)
            total = completions[before] + end[reached]
            better = (value > gained[reached]) | ((value == gained[reached]) & (total < completions[reached]))
            chosen = reached[better]
            gained[chosen], completions[chosen], last[chosen] = value[better], total[better], job
    order: list[int] = []
    mask = full - 1
    while mask:
        order.append(int(last[mask]))
        mask ^= 1 << order[-1]
    return np.array(order[::-1], dtype=np.int64), float(gained[full - 1]), float(completions[full - 1])
