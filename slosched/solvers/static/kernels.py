"""Numba kernels for static batches: full evaluation, annealing by delta evaluation, the published annealing.

All kernels of the static formulation live in this one file, since numba's disk cache does not see edits of
imported files, and all share one set of compile options, since its key does not contain them. A kernel copies
what it changes and owns its random numbers, so it runs without the GIL and gives the same plan for the same
seed and move budget.

State of the annealing: rows (batches) of `b` padded slots in order of start, slot ``k·b + s``. Each slot
knows its member, its margin (latest start minus start; hugely negative when empty or when the batch is too
large for the member's TPOT limit), weight and execution time. Moving the start of a slot range by D loses the
weight of slots with 0 <= margin < D, or wins that of slots with D <= margin < 0: one pass over the range, and
nothing else of it has to be looked at. A Metropolis threshold is drawn before a move is evaluated, which is
the same law and lets most moves be rejected before the pass.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from slosched.core.jit import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FLAGS = {"reassoc", "nsz", "contract", "arcp"}
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

if numba.config.DISABLE_JIT:

    def _now_ns(scratch: Ints) -> int:
        """Monotonic clock in nanoseconds."""
        return time.monotonic_ns()

    def _next(state: Any) -> Any:
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

    @njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
    def _now_ns(scratch: Any) -> Any:
        """Monotonic clock in nanoseconds; `scratch` is an int64 array of length 2."""
        _clock_gettime(_CLOCK_MONOTONIC, scratch.ctypes)
        return scratch[0] * 1_000_000_000 + scratch[1]

    @njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
    def _next(state: Any) -> Any:
        """xoroshiro128+ (Blackman and Vigna): 64 random bits, the low ones last in quality."""
        s0, s1 = state[0], state[1]
        out = s0 + s1
        s1 ^= s0
        state[0] = ((s0 << np.uint64(24)) | (s0 >> np.uint64(40))) ^ s1 ^ (s1 << np.uint64(16))
        state[1] = (s1 << np.uint64(37)) | (s1 >> np.uint64(27))
        return out


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _below(bits: Any, n: Any) -> Any:
    """An integer in [0, n) from the upper 32 of 64 random bits."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _latest(rec: Any, i: Any, batch: Any) -> Any:
    """Latest start of request i in a batch of that size."""
    if batch > rec[i, BMAX]:
        return NEVER
    first = rec[i, C] - rec[i, A] * batch
    second = rec[i, C2] - rec[i, A2] * batch
    return first if first < second else second


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _shift_gain(margin: Any, weight: Any, lo: Any, hi: Any, shift: Any) -> Any:
    """Weight gained when slots lo..hi-1 start later by `shift` (negative: earlier)."""
    m, w = margin[lo:hi], weight[lo:hi]
    total = 0.0
    if shift > 0.0:
        for j in range(m.shape[0]):
            total -= w[j] if (m[j] >= 0.0) & (m[j] < shift) else 0.0
    elif shift < 0.0:
        for j in range(m.shape[0]):
            total += w[j] if (m[j] < 0.0) & (m[j] >= shift) else 0.0
    return total


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _shift(margin: Any, start: Any, b: Any, lo: Any, hi: Any, shift: Any) -> None:
    """Start rows lo..hi-1 later by `shift`."""
    if shift != 0.0:
        m = margin[lo * b : hi * b]
        for j in range(m.shape[0]):
            m[j] -= shift
        s = start[lo:hi]
        for k in range(s.shape[0]):
            s[k] += shift


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _refresh(
    rec: Any, b: Any, member: Any, margin: Any, weight: Any, run: Any, start: Any, dur: Any, size: Any,
    before: Any, loc: Any, lo: Any, hi: Any,
) -> None:  # fmt: skip
    """Recompute all that is known of rows lo..hi-1 from their members and the start of row lo."""
    for k in range(lo, hi):
        s, batch, base, longest = start[k], size[k], k * b, 0.0
        for j in range(base, base + batch):
            i = member[j]
            e = rec[i, U] * batch + rec[i, V]
            longest = max(longest, e)
            run[j] = e
            margin[j] = _latest(rec, i, batch) - s
            weight[j] = rec[i, WEIGHT]
            loc[i] = j
        for j in range(base + batch, base + b):
            run[j], margin[j], weight[j] = 0.0, NEVER, 0.0
        dur[k] = longest
        start[k + 1] = s + longest
        before[k + 1] = before[k] + batch


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _totals(b: Any, margin: Any, weight: Any, run: Any, start: Any, size: Any, rows: Any) -> Any:
    """(weight, latency without the time already waited) summed over the rows."""
    attained, latency = 0.0, 0.0
    for j in range(rows * b):
        latency += run[j]
        if margin[j] >= 0.0:
            attained += weight[j]
    for k in range(rows):
        latency += start[k] * size[k]
    return attained, latency


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _row(margin: Any, weight: Any, run: Any, base: Any, batch: Any) -> Any:
    """(sum of execution times, attained weight) of one row as it stands."""
    total, attained = 0.0, 0.0
    for j in range(base, base + batch):
        total += run[j]
        if margin[j] >= 0.0:
            attained += weight[j]
    return total, attained


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _group(rec: Any, group: Any, lo: Any, hi: Any, skip: Any, extra: Any, batch: Any, start: Any) -> Any:
    """(duration, sum of execution times, attained weight) of a batch that is not there.

    Its members are group[lo:hi] without position `skip` (-1: none) and with request `extra` (-1: none).
    """
    longest, total, attained = 0.0, 0.0, 0.0
    for j in range(lo, hi + 1):
        if j == skip:
            continue
        i = extra if j == hi else group[j]
        if i < 0:
            continue
        e = rec[i, U] * batch + rec[i, V]
        longest = max(longest, e)
        total += e
        if _latest(rec, i, batch) >= start:
            attained += rec[i, WEIGHT]
    return longest, total, attained


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _insert_row(member: Any, size: Any, b: Any, at: Any, rows: Any) -> None:
    """Make room for one row before row `at`."""
    for j in range(rows * b - 1, at * b - 1, -1):
        member[j + b] = member[j]
    for k in range(rows - 1, at - 1, -1):
        size[k + 1] = size[k]


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _delete_row(member: Any, size: Any, b: Any, at: Any, rows: Any) -> None:
    """Close the gap of row `at`."""
    for j in range(at * b, (rows - 1) * b):
        member[j] = member[j + b]
    for k in range(at, rows - 1):
        size[k] = size[k + 1]


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _better(mode: Any, weight: Any, latency: Any, other_weight: Any, other_latency: Any) -> Any:
    """Whether (weight, latency) beats the other by the true comparison."""
    if mode == G:
        mine, theirs = weight * other_latency, other_weight * latency
        return mine - theirs > LATENCY_SLACK * abs(theirs)
    if abs(weight - other_weight) > WEIGHT_SLACK:
        return weight > other_weight
    return other_latency - latency > LATENCY_SLACK * other_latency


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def anneal(
    rec: Any, elapsed_total: Any, max_batch: Any, sequence: Any, batches: Any, thresholds: Any, mode: Any,
    moves: Any, begin_ns: Any, budget_ns: Any, seed: Any, lam: Any, hot: Any, cold: Any, stages: Any,
    cycles: Any, check: Any,
) -> Any:  # fmt: skip
    """Anneal a plan by delta evaluation.

    Parameters
    ----------
    rec
        Records (u, v, c, a, c2, a2, weight, bmax), shape (n, 8); not changed.
    elapsed_total
        Constant part of the latency in seconds.
    max_batch
        Largest batch.
    sequence, batches
        Plan to start from; not changed.
    thresholds
        Grid of -ln u, length 4096.
    mode
        `LEX` or `G`.
    moves
        Proposals to make; -1 to go by time alone, the stages then being equal shares of `budget_ns`.
    begin_ns, budget_ns
        Monotonic time at which the budget began and its length; -1 for no limit of time.
    seed
        Two 64-bit words, not both 0; used up.
    lam
        Seconds of latency that one unit of weight is worth (in mode G: until the first weight is attained).
    hot, cold
        First and last temperature in seconds.
    stages, cycles
        Temperatures per cycle, and cycles, each from hot to cold.
    check
        Whether to compare every accepted move with a full evaluation (slow).

    Returns
    -------
    tuple
        Best sequence, its batches, its weight and latency, evaluated moves, accepted moves, largest error of
        weight and of latency seen under `check`.
    """
    n = rec.shape[0]
    b = max_batch
    slots = n * b
    member = np.empty(slots, np.int64)
    best_member = np.empty(slots, np.int64)
    margin, weight, run = np.empty(slots), np.empty(slots), np.empty(slots)
    start, dur = np.zeros(n + 1), np.zeros(n + 1)
    size, best_size = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    before, loc = np.zeros(n + 1, np.int64), np.empty(n, np.int64)
    check_start, check_before = np.zeros(n + 1), np.zeros(n + 1, np.int64)
    check_margin, check_run = np.empty(slots if check else 1), np.empty(slots if check else 1)
    check_weight, check_dur = np.empty(slots if check else 1), np.zeros(n + 1)
    check_loc = np.empty(n, np.int64)
    group = np.empty(b + 1, np.int64)
    group_run = np.empty(b + 1)
    distance = np.empty(256, np.int64)
    scratch = np.zeros(2, np.int64)

    rows = batches.shape[0]
    at = 0
    for k in range(rows):
        size[k] = batches[k]
        for s in range(batches[k]):
            member[k * b + s] = sequence[at]
            at += 1
    _refresh(rec, b, member, margin, weight, run, start, dur, size, before, loc, 0, rows)
    attained, latency = _totals(b, margin, weight, run, start, size, rows)
    latency += elapsed_total
    total_weight = 0.0
    for i in range(n):
        total_weight += rec[i, WEIGHT]

    best_weight, best_latency, best_rows = attained, latency, rows
    best_member[: rows * b] = member[: rows * b]
    best_size[:rows] = size[:rows]
    at_best = False
    proposals, evaluated, accepted = 0, 0, 0
    weight_error, latency_error = 0.0, 0.0
    distance_rows = -1
    stopped = False
    all_stages = stages * cycles

    for stage in range(all_stages):
        if stopped:
            break
        temperature = hot * (cold / hot) ** ((stage % stages) / max(1, stages - 1))
        if mode == G and best_weight > 0.0:
            lam = best_latency / best_weight
        if stage % 16 == 15:  # incremental sums drift
            _refresh(rec, b, member, margin, weight, run, start, dur, size, before, loc, 0, rows)
            attained, latency = _totals(b, margin, weight, run, start, size, rows)
            latency += elapsed_total
        if distance_rows != rows:
            distance_rows = rows
            log_rows = math.log(max(1.0, float(rows)))
            for x in range(256):
                distance[x] = max(1, int(math.exp((x + 0.5) / 256 * log_rows)))
        last_proposal = moves * (stage + 1) // all_stages
        stage_ns = budget_ns if moves >= 0 else budget_ns * (stage + 1) // all_stages

        while moves < 0 or proposals < last_proposal:
            if budget_ns >= 0 and proposals & 15 == 0 and _now_ns(scratch) - begin_ns >= stage_ns:
                stopped = moves >= 0
                break
            proposals += 1
            bits = _next(seed)
            kind = int(bits & np.uint64(127))
            limit = temperature * thresholds[np.int64((bits >> np.uint64(7)) & np.uint64(4095))]
            i = _below(bits, n)
            if bits & np.uint64(1 << 19):
                for _ in range(2):
                    if margin[loc[i]] >= 0.0:
                        i = _below(_next(seed), n)
            bits = _next(seed)
            slot_i = loc[i]
            p = slot_i // b
            step = distance[np.int64(bits & np.uint64(255))]
            forward = bits & np.uint64(256) != np.uint64(0)
            latest = margin[slot_i] + start[p]
            aimed = False
            if margin[slot_i] < 0.0 <= latest and bits & np.uint64(3 << 9):
                # a late request aims at the last rows in which it would not be
                q, above = 0, p
                while above - q > 1:
                    middle = (q + above) >> 1
                    if start[middle] <= latest:
                        q = middle
                    else:
                        above = middle
                q = max(0, q - step + 1)
                aimed = True
            else:
                q = p + step if forward else p - step
                if q < 0:
                    q = -q
                if q >= rows:
                    q = 2 * (rows - 1) - q
                if q < 0:
                    q = 0
            batch_p, batch_q = size[p], size[q]

            # A move that cannot be made here becomes the nearest one that can.
            if b == 1:
                kind = 0 if kind < 64 else 98
            elif rows == 1:
                kind = 88 if kind < 64 else 112
            elif 64 <= kind < 88:
                if batch_q == b or q == p:
                    kind = 0
            elif 88 <= kind < 98 or 112 <= kind < 120:
                if batch_p == 1:
                    kind = 98
            elif kind >= 120 and (p + 1 >= rows or batch_p + size[p + 1] > b):
                kind = 98

            if kind < 112 and q == p and (kind < 88 or kind >= 98):
                continue
            evaluated += 1
            room = total_weight - attained  # no shift can win more

            if kind < 64:  # swap i with a member j of row q
                slot_j = q * b + _below(bits, batch_q)
                if aimed and b > 1:  # give way: someone late already, else the longest of four
                    bits = _next(seed)
                    for _ in range(3):
                        other = q * b + _below(bits, batch_q)
                        bits <<= np.uint64(16)
                        other_late, late = margin[other] < 0.0, margin[slot_j] < 0.0
                        if (other_late and not late) or (other_late == late and run[other] > run[slot_j]):
                            slot_j = other
                if q < p:
                    p, q = q, p
                    slot_i, slot_j = slot_j, slot_i
                    i = member[slot_i]
                    batch_p, batch_q = batch_q, batch_p
                j = member[slot_j]
                run_j = rec[j, U] * batch_p + rec[j, V]
                run_i = rec[i, U] * batch_q + rec[i, V]
                dur_p, dur_q = dur[p], dur[q]
                if run_j >= dur_p:
                    dur_p = run_j
                elif run[slot_i] >= dur_p:
                    dur_p = run_j
                    for x in range(p * b, p * b + batch_p):
                        if x != slot_i and run[x] > dur_p:
                            dur_p = run[x]
                if run_i >= dur_q:
                    dur_q = run_i
                elif run[slot_j] >= dur_q:
                    dur_q = run_i
                    for x in range(q * b, q * b + batch_q):
                        if x != slot_j and run[x] > dur_q:
                            dur_q = run[x]
                shift1 = dur_p - dur[p]
                shift2 = shift1 + (dur_q - dur[q])
                if b == 1:
                    shift2 = 0.0
                change = (
                    (run_j - run[slot_i])
                    + (run_i - run[slot_j])
                    + shift1 * (before[q + 1] - before[p + 1])
                    + shift2 * (n - before[q + 1])
                )
                margin_j = _latest(rec, j, batch_p) - start[p]
                margin_i = _latest(rec, i, batch_q) - start[q] - shift1
                gain = 0.0
                if margin_j >= 0.0:
                    gain += weight[slot_j]
                if margin_i >= 0.0:
                    gain += weight[slot_i]
                if margin[slot_i] >= 0.0:
                    gain -= weight[slot_i]
                if margin[slot_j] >= 0.0:
                    gain -= weight[slot_j]
                hope = room if shift1 < 0.0 or shift2 < 0.0 else 0.0
                if change - lam * (gain + hope) > limit:
                    continue
                gain += _shift_gain(margin, weight, (p + 1) * b, (q + 1) * b, shift1)
                gain -= _shift_gain(margin, weight, slot_j, slot_j + 1, shift1)
                hope = room if shift2 < 0.0 else 0.0
                if change - lam * (gain + hope) > limit:
                    continue
                gain += _shift_gain(margin, weight, (q + 1) * b, rows * b, shift2)
                if change - lam * gain > limit:
                    continue
                if at_best and not _better(mode, attained + gain, latency + change, attained, latency):
                    at_best, best_rows = False, rows
                    best_member[: rows * b] = member[: rows * b]
                    best_size[:rows] = size[:rows]
                _shift(margin, start, b, p + 1, q + 1, shift1)
                _shift(margin, start, b, q + 1, rows, shift2)
                start[rows] += shift2
                dur[p], dur[q] = dur_p, dur_q
                member[slot_i], member[slot_j] = j, i
                loc[i], loc[j] = slot_j, slot_i
                weight[slot_i], weight[slot_j] = rec[j, WEIGHT], rec[i, WEIGHT]
                run[slot_i], run[slot_j] = run_j, run_i
                margin[slot_i], margin[slot_j] = margin_j, margin_i

            elif kind < 88:  # relocate i to row q
                low, high = min(p, q), max(p, q)
                total_p, attained_p = _row(margin, weight, run, p * b, batch_p)
                total_q, attained_q = _row(margin, weight, run, q * b, batch_q)
                out_p, in_q = batch_p - 1, batch_q + 1
                if p < q:
                    dur_low, total_low, attained_low = _group(
                        rec, member, p * b, p * b + batch_p, slot_i, -1, out_p, start[p]
                    )
                    shift1 = dur_low - dur[p]
                    dur_high, total_high, attained_high = _group(
                        rec, member, q * b, q * b + batch_q, -1, i, in_q, start[q] + shift1
                    )
                    size_low, size_high = out_p, in_q
                else:
                    dur_low, total_low, attained_low = _group(
                        rec, member, q * b, q * b + batch_q, -1, i, in_q, start[q]
                    )
                    shift1 = dur_low - dur[q]
                    dur_high, total_high, attained_high = _group(
                        rec, member, p * b, p * b + batch_p, slot_i, -1, out_p, start[p] + shift1
                    )
                    size_low, size_high = in_q, out_p
                shift2 = shift1 + (dur_high - dur[high])
                change = (
                    (total_low + total_high - total_p - total_q)
                    + start[low] * (size_low - size[low])
                    + (start[high] + shift1) * size_high
                    - start[high] * size[high]
                    + shift1 * (before[high] - before[low + 1])
                    + shift2 * (n - before[high + 1])
                )
                gain = attained_low + attained_high - attained_p - attained_q
                hope = room if shift1 < 0.0 or shift2 < 0.0 else 0.0
                if change - lam * (gain + hope) > limit:
                    continue
                gain += _shift_gain(margin, weight, (low + 1) * b, high * b, shift1)
                hope = room if shift2 < 0.0 else 0.0
                if change - lam * (gain + hope) > limit:
                    continue
                gain += _shift_gain(margin, weight, (high + 1) * b, rows * b, shift2)
                if change - lam * gain > limit:
                    continue
                if at_best and not _better(mode, attained + gain, latency + change, attained, latency):
                    at_best, best_rows = False, rows
                    best_member[: rows * b] = member[: rows * b]
                    best_size[:rows] = size[:rows]
                member[q * b + batch_q] = i
                member[slot_i] = member[p * b + batch_p - 1]
                size[p], size[q] = out_p, in_q
                if out_p == 0:
                    _delete_row(member, size, b, p, rows)
                    rows -= 1
                    _refresh(rec, b, member, margin, weight, run, start, dur, size, before, loc, low, rows)
                else:
                    _shift(margin, start, b, low + 1, high + 1, shift1)
                    _shift(margin, start, b, high + 1, rows, shift2)
                    start[rows] += shift2
                    for k in range(low + 1, high + 1):
                        before[k] += -1 if p < q else 1
                    _refresh(rec, b, member, margin, weight, run, start, dur, size, before, loc, low, low + 1)
                    _refresh(
                        rec, b, member, margin, weight, run, start, dur, size, before, loc, high, high + 1
                    )

            elif kind < 98:  # open: i becomes a row of its own before row q
                q = min(p + step, rows) if forward else max(p - step + 1, 0)
                run_i = rec[i, U] + rec[i, V]
                total_p, attained_p = _row(margin, weight, run, p * b, batch_p)
                first = q <= p
                start_p = start[p] + run_i if first else start[p]
                dur_p, total_new, attained_new = _group(
                    rec, member, p * b, p * b + batch_p, slot_i, -1, batch_p - 1, start_p
                )
                shift_p = dur_p - dur[p]
                start_i = start[q] if first else start[q] + shift_p
                shift1 = run_i if first else shift_p
                shift2 = run_i + shift_p
                from1, to1 = (q, p) if first else (p + 1, q)
                from2 = p + 1 if first else q
                change = (
                    (total_new + start_p * (batch_p - 1) - total_p - start[p] * batch_p)
                    + (start_i + run_i)
                    + shift1 * (before[to1] - before[from1])
                    + shift2 * (n - before[from2])
                )
                gain = attained_new - attained_p
                if _latest(rec, i, 1) >= start_i:
                    gain += rec[i, WEIGHT]
                hope = room if shift1 < 0.0 or shift2 < 0.0 else 0.0
                if change - lam * (gain + hope) > limit:
                    continue
                gain += _shift_gain(margin, weight, from1 * b, to1 * b, shift1)
                gain += _shift_gain(margin, weight, from2 * b, rows * b, shift2)
                if change - lam * gain > limit:
                    continue
                if at_best and not _better(mode, attained + gain, latency + change, attained, latency):
                    at_best, best_rows = False, rows
                    best_member[: rows * b] = member[: rows * b]
                    best_size[:rows] = size[:rows]
                member[slot_i] = member[p * b + batch_p - 1]
                size[p] = batch_p - 1
                _insert_row(member, size, b, q, rows)
                member[q * b] = i
                size[q] = 1
                rows += 1
                _refresh(rec, b, member, margin, weight, run, start, dur, size, before, loc, min(p, q), rows)

            elif kind < 112:  # rotate row p to position q
                if q == p:
                    evaluated -= 1
                    continue
                if p < q:
                    shift1, shift2 = start[q + 1] - start[p + 1], -dur[p]
                    low, high = p + 1, q + 1
                else:
                    shift1, shift2 = start[q] - start[p], dur[p]
                    low, high = q, p
                change = shift1 * batch_p + shift2 * (before[high] - before[low])
                gain = _shift_gain(margin, weight, p * b, p * b + batch_p, shift1)
                hope = room if shift2 < 0.0 else 0.0
                if change - lam * (gain + hope) > limit:
                    continue
                gain += _shift_gain(margin, weight, low * b, high * b, shift2)
                if change - lam * gain > limit:
                    continue
                if at_best and not _better(mode, attained + gain, latency + change, attained, latency):
                    at_best, best_rows = False, rows
                    best_member[: rows * b] = member[: rows * b]
                    best_size[:rows] = size[:rows]
                for s in range(batch_p):
                    group[s] = member[p * b + s]
                if p < q:
                    for x in range(p * b, q * b):
                        member[x] = member[x + b]
                    for k in range(p, q):
                        size[k] = size[k + 1]
                else:
                    for x in range((p + 1) * b - 1, (q + 1) * b - 1, -1):
                        member[x] = member[x - b]
                    for k in range(p, q, -1):
                        size[k] = size[k - 1]
                for s in range(batch_p):
                    member[q * b + s] = group[s]
                size[q] = batch_p
                low, high = min(p, q), max(p, q)
                _refresh(rec, b, member, margin, weight, run, start, dur, size, before, loc, low, high + 1)

            elif kind < 120:  # split row p into two
                base = p * b
                for s in range(batch_p):
                    group[s] = member[base + s]
                    group_run[s] = run[base + s]
                if bits & np.uint64(512):
                    for s in range(batch_p - 1, 0, -1):
                        x = _below(_next(seed), s + 1)
                        group[s], group[x] = group[x], group[s]
                else:
                    for s in range(1, batch_p):
                        x, g, e = s, group[s], group_run[s]
                        while x > 0 and group_run[x - 1] > e:
                            group[x], group_run[x] = group[x - 1], group_run[x - 1]
                            x -= 1
                        group[x], group_run[x] = g, e
                cut = 1 + _below(bits, batch_p - 1)
                total_p, attained_p = _row(margin, weight, run, base, batch_p)
                dur_low, total_low, attained_low = _group(rec, group, 0, cut, -1, -1, cut, start[p])
                start_high = start[p] + dur_low
                dur_high, total_high, attained_high = _group(
                    rec, group, cut, batch_p, -1, -1, batch_p - cut, start_high
                )
                shift2 = dur_low + dur_high - dur[p]
                change = (
                    (total_low + total_high - total_p)
                    + dur_low * (batch_p - cut)
                    + shift2 * (n - before[p + 1])
                )
                gain = attained_low + attained_high - attained_p
                hope = room if shift2 < 0.0 else 0.0
                if change - lam * (gain + hope) > limit:
                    continue
                gain += _shift_gain(margin, weight, (p + 1) * b, rows * b, shift2)
                if change - lam * gain > limit:
                    continue
                if at_best and not _better(mode, attained + gain, latency + change, attained, latency):
                    at_best, best_rows = False, rows
                    best_member[: rows * b] = member[: rows * b]
                    best_size[:rows] = size[:rows]
                _insert_row(member, size, b, p, rows)
                rows += 1
                for s in range(cut):
                    member[base + s] = group[s]
                for s in range(cut, batch_p):
                    member[base + b + s - cut] = group[s]
                size[p], size[p + 1] = cut, batch_p - cut
                _refresh(rec, b, member, margin, weight, run, start, dur, size, before, loc, p, rows)

            else:  # merge row p with the next one
                base, batch_q = p * b, size[p + 1]
                union = batch_p + batch_q
                for s in range(batch_p):
                    group[s] = member[base + s]
                for s in range(batch_q):
                    group[batch_p + s] = member[base + b + s]
                total_p, attained_p = _row(margin, weight, run, base, batch_p)
                total_q, attained_q = _row(margin, weight, run, base + b, batch_q)
                dur_p, total_new, attained_new = _group(rec, group, 0, union, -1, -1, union, start[p])
                shift2 = dur_p - dur[p] - dur[p + 1]
                change = (
                    (total_new - total_p - total_q)
                    + (start[p] - start[p + 1]) * batch_q
                    + shift2 * (n - before[p + 2])
                )
                gain = attained_new - attained_p - attained_q
                hope = room if shift2 < 0.0 else 0.0
                if change - lam * (gain + hope) > limit:
                    continue
                gain += _shift_gain(margin, weight, (p + 2) * b, rows * b, shift2)
                if change - lam * gain > limit:
                    continue
                if at_best and not _better(mode, attained + gain, latency + change, attained, latency):
                    at_best, best_rows = False, rows
                    best_member[: rows * b] = member[: rows * b]
                    best_size[:rows] = size[:rows]
                for s in range(union):
                    member[base + s] = group[s]
                size[p] = union
                _delete_row(member, size, b, p + 1, rows)
                rows -= 1
                _refresh(rec, b, member, margin, weight, run, start, dur, size, before, loc, p, rows)

            accepted += 1
            attained += gain
            latency += change
            if _better(mode, attained, latency, best_weight, best_latency):
                best_weight, best_latency, at_best = attained, latency, True
            if check:
                check_start[0] = 0.0
                _refresh(
                    rec, b, member, check_margin, check_weight, check_run, check_start, check_dur, size,
                    check_before, check_loc, 0, rows,
                )  # fmt: skip
                full, full_latency = _totals(
                    b, check_margin, check_weight, check_run, check_start, size, rows
                )
                weight_error = max(weight_error, abs(full - attained))
                latency_error = max(latency_error, abs(full_latency + elapsed_total - latency) / latency)
                for k in range(rows):
                    latency_error = max(latency_error, abs(check_start[k] - start[k]) / (1.0 + start[k]))
                    latency_error = max(latency_error, abs(check_dur[k] - dur[k]))
                    if check_before[k] != before[k]:
                        weight_error = math.inf
                for x in range(n):
                    slot = loc[x]
                    if check_loc[x] != slot or abs(check_margin[slot] - margin[slot]) > 1e-6 * (
                        1.0 + abs(margin[slot])
                    ):
                        weight_error = math.inf

    if at_best:
        best_rows = rows
        best_member[: rows * b] = member[: rows * b]
        best_size[:rows] = size[:rows]
    best_sequence = np.empty(n, np.int64)
    at = 0
    for k in range(best_rows):
        for s in range(best_size[k]):
            best_sequence[at] = best_member[k * b + s]
            at += 1
    return (
        best_sequence, best_size[:best_rows].copy(), best_weight, best_latency, evaluated, accepted,
        weight_error, latency_error,
    )  # fmt: skip


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
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


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _cost(mode: Any, lam: Any, attained: Any, latency: Any, tardiness: Any) -> Any:
    """Energy of a fully evaluated plan in seconds; the published G as its negative, in 1/s."""
    if mode == TARDINESS:
        return tardiness
    return latency - lam * attained


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def anneal_full(
    rec: Any, tpot: Any, elapsed_total: Any, max_batch: Any, sequence: Any, batches: Any, thresholds: Any,
    mode: Any, moves: Any, begin_ns: Any, budget_ns: Any, seed: Any, lam: Any, hot: Any, cold: Any,
    swaps_only: Any,
) -> Any:  # fmt: skip
    """Anneal a plan by full evaluation of every move: the yardstick of `anneal`, and the tardiness search.

    Parameters as in `anneal`, with 64 stages. `mode` may be `TARDINESS`; `swaps_only` leaves the batch sizes
    as they are.

    Returns
    -------
    tuple
        Best sequence, its batches, its weight, latency and tardiness, and the moves made.
    """
    n, rows = rec.shape[0], batches.shape[0]
    now_sequence, now_size = sequence.copy(), np.zeros(n + 1, np.int64)
    now_size[:rows] = batches
    new_sequence, new_size = now_sequence.copy(), now_size.copy()
    best_sequence, best_size, best_rows = now_sequence.copy(), now_size.copy(), rows
    attained, latency, tardiness = evaluate_plan(rec, tpot, elapsed_total, now_sequence, now_size, rows)
    best = (attained, latency, tardiness)
    scratch = np.zeros(2, np.int64)
    made = 0
    for stage in range(64):
        temperature = hot * (cold / hot) ** (stage / 63.0)
        if mode == G and best[0] > 0.0:
            lam = best[1] / best[0]
        energy = _cost(mode, lam, attained, latency, tardiness)
        last_move = moves * (stage + 1) // 64
        stage_ns = budget_ns if moves >= 0 else budget_ns * (stage + 1) // 64
        while moves < 0 or made < last_move:
            if budget_ns >= 0 and made & 3 == 0 and _now_ns(scratch) - begin_ns >= stage_ns:
                break
            made += 1
            bits = _next(seed)
            kind = np.int64(bits & np.uint64(7))
            limit = temperature * thresholds[np.int64((bits >> np.uint64(7)) & np.uint64(4095))]
            x, y = _below(bits, n), _below(_next(seed), n)
            new_rows = rows
            if swaps_only or kind < 4:
                new_sequence[x], new_sequence[y] = new_sequence[y], new_sequence[x]
            elif kind < 6:
                moving, step = new_sequence[x], 1 if y > x else -1
                for z in range(x, y, step):
                    new_sequence[z] = new_sequence[z + step]
                new_sequence[y] = moving
            else:
                new_rows = _resize(new_size, rows, max_batch, y, _next(seed))
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
                    improved = _better(mode, attained, latency, best[0], best[1])
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


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
def _resize(size: Any, rows: Any, max_batch: Any, position: Any, bits: Any) -> Any:
    """Move, open or close the border near a position of the sequence; returns the new number of batches."""
    k, at = 0, size[0]
    while at <= position:
        k += 1
        at += size[k]
    kind = np.int64(bits & np.uint64(3))
    if kind == 0 and size[k] > 1:  # split
        cut = 1 + _below(bits, size[k] - 1)
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


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
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
        As in `anneal`.
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
            bits = _next(seed)
            kind = _below(bits, 3)
            x, y = _below(_next(seed), n), _below(_next(seed), n)
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
            chance = np.float64(_next(seed) >> np.uint64(11)) * 2.0**-53
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


@njit(nogil=True, cache=True, fastmath=_FLAGS, error_model="numpy")
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
        e, latest = rec[i, U] * b + rec[i, V], _latest(rec, i, b)
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
