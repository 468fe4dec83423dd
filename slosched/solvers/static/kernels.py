"""Numba kernels for static batches: full evaluation, and what all annealings share.

All kernels of the static formulation share one set of compile options, since the key of numba's cache does
not contain them. A kernel copies what it changes and owns its random numbers, so it runs without the GIL and
gives the same plan for the same seed and move budget.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from slosched.core.arrays import Floats, Ints
from slosched.core.jit import njit

FLAGS = {"reassoc", "nsz", "contract", "arcp"}
"""Reassociation is what lets sums over slots be vectorized (8x); NaN and infinity keep their meaning."""

NEVER = -1e30
"""Margin of an empty slot, or of a member in a batch too large for it."""
ALWAYS = 1e30
"""Latest start of a request without a limit."""

U, V, C, A, C2, A2, WEIGHT, BMAX = range(8)
"""Columns of a record: 8 doubles, one cache line a request."""

LEX, G, TARDINESS = 0, 1, 2
"""Modes of comparison."""

LATENCY_SLACK = 1e-9
WEIGHT_SLACK = 1e-9

THRESHOLDS: Floats = -np.log((np.arange(4096) + 0.5) / 4096)
"""-ln u on a grid: a Metropolis threshold is T times one of these."""

_WORD = (1 << 64) - 1


class Case(NamedTuple):
    """The requests of a kernel, and how it compares plans."""

    rec: Floats
    """Records (u, v, c, a, c2, a2, weight, bmax), shape (n, 8)."""
    elapsed_total_s: float
    """Constant part of the latency."""
    max_batch: int
    mode: int
    """`LEX`, `G` or `TARDINESS`."""


class Budget(NamedTuple):
    """How long a kernel may search."""

    moves: int
    """Proposals to make; -1 to go by time alone, the stages then being equal shares of it."""
    begin_ns: int
    """Monotonic time at which the budget began."""
    length_ns: int
    """Nanoseconds; -1 for no limit of time."""


class Cooling(NamedTuple):
    """Temperatures of an annealing, in seconds."""

    lam: float
    """Seconds of latency that one unit of weight is worth (in mode G: until the first weight is attained)."""
    hot: float
    cold: float
    stages: int
    """Temperatures from hot to cold."""
    cycles: int
    """How often from hot to cold."""


if numba.config.DISABLE_JIT:

    def now_ns(scratch: Ints) -> int:
        """Monotonic clock in nanoseconds."""
        return time.monotonic_ns()

    def next_bits(state: Any) -> Any:
        """As the compiled one, without numpy's warnings about wrapping."""
        s0, s1 = int(state[0]), int(state[1])
        s1 ^= s0
        state[0] = (((s0 << 24) | (s0 >> 40)) ^ s1 ^ (s1 << 16)) & _WORD
        state[1] = ((s1 << 37) | (s1 >> 27)) & _WORD
        return np.uint64((s0 + (s1 ^ s0)) & _WORD)

else:
    _CLOCK_MONOTONIC = 6 if sys.platform == "darwin" else 1
    # An external function, unlike ctypes, leaves the kernel cacheable on disk.
    _clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.voidptr))

    @njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
    def now_ns(scratch: Any) -> Any:
        """Monotonic clock in nanoseconds; `scratch` is an int64 array of length 2."""
        _clock_gettime(_CLOCK_MONOTONIC, scratch.ctypes)
        return scratch[0] * 1_000_000_000 + scratch[1]

    @njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
    def next_bits(state: Any) -> Any:
        """xoroshiro128+ (Blackman and Vigna): 64 random bits, the low ones last in quality."""
        s0, s1 = state[0], state[1]
        out = s0 + s1
        s1 ^= s0
        state[0] = ((s0 << np.uint64(24)) | (s0 >> np.uint64(40))) ^ s1 ^ (s1 << np.uint64(16))
        state[1] = (s1 << np.uint64(37)) | (s1 >> np.uint64(27))
        return out


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def below(bits: Any, n: Any) -> Any:
    """An integer in [0, n) from the upper 32 of 64 random bits."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def latest_start(rec: Any, i: Any, batch: Any) -> Any:
    """Latest start of request i in a batch of that size."""
    if batch > rec[i, BMAX]:
        return NEVER
    first = rec[i, C] - rec[i, A] * batch
    second = rec[i, C2] - rec[i, A2] * batch
    return first if first < second else second


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def better(mode: Any, weight: Any, latency: Any, other_weight: Any, other_latency: Any) -> Any:
    """Whether (weight, latency) beats the other by the true comparison."""
    if mode == G:
        mine, theirs = weight * other_latency, other_weight * latency
        return mine - theirs > LATENCY_SLACK * abs(theirs)
    if abs(weight - other_weight) > WEIGHT_SLACK:
        return weight > other_weight
    return other_latency - latency > LATENCY_SLACK * other_latency


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def evaluate_plan(rec: Any, tpot: Any, elapsed_total: Any, sequence: Any, size: Any, rows: Any) -> Any:
    """(weight, latency, weighted tardiness in seconds) of a plan, computed from nothing.

    `tpot` has shape (n, 3): decode seconds per batch member, decode seconds beside, and the most that the
    TPOT limit allows; shape (0, 3) to leave tardiness out.
    """
    attained, latency, tardiness, clock = 0.0, elapsed_total, 0.0, 0.0
    at = 0
    tardy = tpot.shape[0] > 0
    for k in range(rows):
        batch, longest = size[k], 0.0
        for x in range(at, at + batch):
            i = sequence[x]
            e = rec[i, U] * batch + rec[i, V]
            longest = max(longest, e)
            latency += clock + e
            first = rec[i, C] - rec[i, A] * batch
            second = rec[i, C2] - rec[i, A2] * batch
            latest = first if first < second else second
            if clock <= latest and batch <= rec[i, BMAX]:
                attained += rec[i, WEIGHT]
            if tardy:
                late = max(0.0, clock - latest)
                if batch > rec[i, BMAX]:
                    late += max(0.0, tpot[i, 0] * batch + tpot[i, 1] - tpot[i, 2])
                tardiness += rec[i, WEIGHT] * late
        at += batch
        clock += longest
    return attained, latency, tardiness


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def _cost(mode: Any, lam: Any, attained: Any, latency: Any, tardiness: Any) -> Any:
    """Energy of a fully evaluated plan in seconds; the published G as its negative, in 1/s."""
    if mode == TARDINESS:
        return tardiness
    return latency - lam * attained


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def anneal_full(
    case: Case, tpot: Floats, sequence: Ints, batches: Ints, budget: Budget, cooling: Cooling,
    thresholds: Floats, seed: Any, swaps_only: bool,
) -> Any:  # fmt: skip
    """Anneal a plan by full evaluation of every move: the yardstick of `anneal`, and the tardiness search.

    Parameters as in `slosched.solvers.static.delta.anneal`, with one cycle; `tpot` as in `evaluate_plan`.
    `swaps_only` leaves the batch sizes as they are.

    Returns
    -------
    tuple
        Best sequence, its batches, its weight, latency and tardiness, and the moves made.
    """
    rec, elapsed_total, mode, max_batch = case.rec, case.elapsed_total_s, case.mode, case.max_batch
    moves, lam = budget.moves, cooling.lam
    n, rows = rec.shape[0], batches.shape[0]
    now_sequence, now_size = sequence.copy(), np.zeros(n + 1, np.int64)
    now_size[:rows] = batches
    new_sequence, new_size = now_sequence.copy(), now_size.copy()
    best_sequence, best_size, best_rows = now_sequence.copy(), now_size.copy(), rows
    attained, latency, tardiness = evaluate_plan(rec, tpot, elapsed_total, now_sequence, now_size, rows)
    best = (attained, latency, tardiness)
    scratch = np.zeros(2, np.int64)
    made = 0
    for stage in range(cooling.stages):
        cooled = stage / max(1, cooling.stages - 1)
        temperature = cooling.hot * (cooling.cold / cooling.hot) ** cooled
        if mode == G and best[0] > 0.0:
            lam = best[1] / best[0]
        energy = _cost(mode, lam, attained, latency, tardiness)
        last_move = moves * (stage + 1) // cooling.stages
        stage_ns = budget.length_ns if moves >= 0 else budget.length_ns * (stage + 1) // cooling.stages
        while moves < 0 or made < last_move:
            timed = budget.length_ns >= 0 and made & 3 == 0
            if timed and now_ns(scratch) - budget.begin_ns >= stage_ns:
                break
            made += 1
            bits = next_bits(seed)
            kind = np.int64(bits & np.uint64(7))
            limit = temperature * thresholds[np.int64((bits >> np.uint64(7)) & np.uint64(4095))]
            x, y = below(bits, n), below(next_bits(seed), n)
            new_rows = rows
            if swaps_only or kind < 4:
                new_sequence[x], new_sequence[y] = new_sequence[y], new_sequence[x]
            elif kind < 6:
                moving, step = new_sequence[x], 1 if y > x else -1
                for z in range(x, y, step):
                    new_sequence[z] = new_sequence[z + step]
                new_sequence[y] = moving
            else:
                new_rows = _resize(new_size, rows, max_batch, y, next_bits(seed))
            weight1, latency1, tardiness1 = evaluate_plan(
                rec, tpot, elapsed_total, new_sequence, new_size, new_rows
            )
            energy1 = _cost(mode, lam, weight1, latency1, tardiness1)
            if energy1 - energy <= limit:
                rows, energy = new_rows, energy1
                attained, latency, tardiness = weight1, latency1, tardiness1
                if mode == TARDINESS:
                    improved = tardiness < best[2] - 1e-12
                else:
                    improved = better(mode, attained, latency, best[0], best[1])
                if improved:
                    best, best_rows = (attained, latency, tardiness), rows
                    best_sequence[:] = new_sequence
                    best_size[:] = new_size
                if not swaps_only:
                    now_sequence[:] = new_sequence
                    now_size[:] = new_size
            elif swaps_only:
                new_sequence[x], new_sequence[y] = new_sequence[y], new_sequence[x]
            else:
                new_sequence[:] = now_sequence
                new_size[:] = now_size
    return best_sequence, best_size[:best_rows].copy(), best[0], best[1], best[2], made


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def _resize(size: Any, rows: Any, max_batch: Any, position: Any, bits: Any) -> Any:
    """Move, open or close the border near a position of the sequence; returns the new number of batches."""
    k, at = 0, size[0]
    while at <= position:
        k += 1
        at += size[k]
    kind = np.int64(bits & np.uint64(3))
    if kind == 0 and size[k] > 1:  # split
        cut = 1 + below(bits, size[k] - 1)
        for x in range(rows - 1, k, -1):
            size[x + 1] = size[x]
        size[k + 1] = size[k] - cut
        size[k] = cut
        return rows + 1
    if k + 1 >= rows:
        return rows
    if kind == 1 and size[k] < max_batch:
        size[k] += 1
        size[k + 1] -= 1
    elif kind == 2 and size[k + 1] < max_batch:
        size[k] -= 1
        size[k + 1] += 1
    elif kind == 3 and size[k] + size[k + 1] <= max_batch:
        size[k] += size[k + 1]
        size[k + 1] = 0
    for gone in range(k, k + 2):
        if size[gone] == 0:
            for x in range(gone, rows - 1):
                size[x] = size[x + 1]
            return rows - 1
    return rows


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def huang(
    rec: Any, elapsed_total: Any, max_batch: Any, sequence: Any, batches: Any, seed: Any, hot: Any, cold: Any,
    cooling: Any, level_moves: Any, unit: Any,
) -> Any:  # fmt: skip
    """The published annealing (Huang et al., arXiv 2504.14966), every move evaluated in full.

    Moves, uniformly: squeeze a request into the previous batch if there is room, delay it to the next one
    (the last batch has one spare empty one behind it) if there is room, swap two requests. Accept if G rises,
    else with probability exp(change·unit / T).

    Parameters
    ----------
    rec, elapsed_total, max_batch, sequence, batches, seed
        As in `Case` and `slosched.solvers.static.delta.anneal`.
    hot, cold, cooling, level_moves
        T falls from `hot` by the factor `cooling` after every `level_moves` moves while T >= `cold`.
    unit
        What G is multiplied by before the comparison with T: 1e-3 reads G in requests per millisecond.

    Returns
    -------
    tuple
        Best sequence and batches, the last sequence and batches, and the moves made.
    """
    n, b = rec.shape[0], max_batch
    no_tpot = np.empty((0, 3))
    rows = batches.shape[0]
    order, size = sequence.copy(), np.zeros(n + 2, np.int64)
    size[:rows] = batches
    best_order, best_size, best_rows = order.copy(), size.copy(), rows
    attained, latency, _ = evaluate_plan(rec, no_tpot, elapsed_total, order, size, rows)
    now = attained / latency
    best = now
    new_order, new_size = order.copy(), size.copy()
    made, temperature = 0, hot
    while True:
        for _ in range(level_moves):
            made += 1
            bits = next_bits(seed)
            kind = below(bits, 3)
            x, y = below(next_bits(seed), n), below(next_bits(seed), n)
            new_rows = rows
            if kind == 2:
                new_order[x], new_order[y] = new_order[y], new_order[x]
            else:
                k, first = 0, 0
                while first + size[k] <= x:
                    first += size[k]
                    k += 1
                last = first + size[k] - 1
                if kind == 0 and k > 0 and size[k - 1] < b:
                    # to the head of its batch, then the border moves behind it
                    new_order[x], new_order[first] = new_order[first], new_order[x]
                    new_size[k - 1] += 1
                    new_size[k] -= 1
                elif kind == 1 and size[k + 1] < b and not (k == rows - 1 and size[k] == 1):
                    new_order[x], new_order[last] = new_order[last], new_order[x]
                    new_size[k] -= 1
                    new_size[k + 1] += 1
                    new_rows = max(rows, k + 2)
                if new_size[k] == 0:
                    for z in range(k, new_rows):
                        new_size[z] = new_size[z + 1]
                    new_rows -= 1
            attained, latency, _ = evaluate_plan(rec, no_tpot, elapsed_total, new_order, new_size, new_rows)
            value = attained / latency
            chance = np.float64(next_bits(seed) >> np.uint64(11)) * 2.0**-53
            if value > now or chance < math.exp((value - now) * unit / temperature):
                now, rows = value, new_rows
                order[:] = new_order
                size[:] = new_size
                if now > best:
                    best, best_rows = now, rows
                    best_order[:] = order
                    best_size[:] = size
            else:
                new_order[:] = order
                new_size[:] = size
        temperature *= cooling
        if temperature < cold:
            break
    return best_order, best_size[:best_rows].copy(), order, size[:rows].copy(), made


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def best_fit(rec: Any, max_batch: Any, order: Any) -> Any:
    """Insert requests in the given order where they fit best; the late ones fill room or go last.

    A request may join a row with room that starts early enough if the longer row makes no later row's member
    late (everything counted at size `max_batch`). The cheapest lengthening wins, a new row at the end costing
    a share ``1 / max_batch`` of its execution. Returns (sequence, batches).
    """
    n, b = rec.shape[0], max_batch
    member = np.empty(n * b, np.int64)
    start, dur, slack = np.zeros(n + 1), np.zeros(n + 1), np.empty(n + 1)
    tight = np.full(n + 1, ALWAYS)
    size = np.zeros(n + 1, np.int64)
    late = np.empty(n, np.int64)
    rows, lates = 0, 0
    for x in range(n):
        i = order[x]
        e, latest = rec[i, U] * b + rec[i, V], latest_start(rec, i, b)
        # slack[k]: how much later row k + 1 and all behind it may start
        slack[max(0, rows - 1)] = ALWAYS
        for k in range(rows - 2, -1, -1):
            slack[k] = min(slack[k + 1], tight[k + 1])
        chosen, least = -1, ALWAYS
        for k in range(rows):
            longer = max(0.0, e - dur[k])
            if size[k] < b and start[k] <= latest and longer <= slack[k] and longer < least:
                chosen, least = k, longer
        if start[rows] <= latest and e / b < least:
            chosen, least = rows, e
        if chosen < 0:
            late[lates] = i
            lates += 1
            continue
        longer = max(0.0, e - dur[chosen])
        if chosen == rows:
            rows += 1
            dur[chosen], tight[chosen] = 0.0, ALWAYS
        member[chosen * b + size[chosen]] = i
        size[chosen] += 1
        dur[chosen] += longer
        tight[chosen] = min(tight[chosen], latest - start[chosen])
        for k in range(chosen + 1, rows):
            start[k] += longer
            tight[k] -= longer
        start[rows] = start[rows - 1] + dur[rows - 1]
    key = np.empty(lates)
    for x in range(lates):
        key[x] = rec[late[x], U] * b + rec[late[x], V]
    for z in np.argsort(key, kind="mergesort"):
        i, e, chosen = late[z], key[z], -1
        for k in range(rows):
            if size[k] < b and e <= dur[k]:
                chosen = k
                break
        if chosen < 0:
            chosen = rows if rows == 0 or size[rows - 1] == b else rows - 1
            if chosen == rows:
                rows += 1
                dur[chosen] = 0.0
            dur[chosen] = max(dur[chosen], e)
        member[chosen * b + size[chosen]] = i
        size[chosen] += 1
    sequence = np.empty(n, np.int64)
    at = 0
    for k in range(rows):
        for s in range(size[k]):
            sequence[at] = member[k * b + s]
            at += 1
    return sequence, size[:rows].copy()
