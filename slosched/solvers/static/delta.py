"""Annealing of static batches by delta evaluation.

State: rows (batches) of `b` padded slots in order of start, slot ``k·b + s``. Each slot knows its member, its
margin (latest start minus start; hugely negative when empty or when the batch is too large for the member's
TPOT limit), weight and execution time. Moving the start of a slot range by D loses the weight of slots with
0 <= margin < D, or wins that of slots with D <= margin < 0: one pass over the range, and nothing else of it
has to be looked at. A Metropolis threshold is drawn before a move is evaluated, which is the same law and
lets most moves be rejected before the pass.

Every move is a function: it prices itself, stops as soon as it is refused, and else is made. State is handed
over in named tuples of arrays.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.jit import BORROWED, ZERO, njit
from slosched.solvers.static.kernels import (
    FLAGS,
    NEVER,
    WEIGHT,
    Budget,
    Case,
    Cooling,
    G,
    U,
    V,
    below,
    better,
    latest_start,
    next_bits,
    now_ns,
)

OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": FLAGS, "error_model": "numpy"}

LENT: dict[str, Any] = OPTIONS | BORROWED

INLINED: dict[str, Any] = LENT | {"forceinline": True}
"""Of what every proposal runs through: LLVM inlines it, which saves 35 ns of handing arrays over."""

REFRESH_STAGES = 16
"""Sums that are kept by adding differences are computed anew after this many stages."""

DISTANCES = 256
"""Length of the table of distances that moves draw from, log-uniform up to the number of rows."""

NONE, ONE = np.int64(-1), np.int64(1)
"""As `slosched.core.jit.ZERO`: numbers that do not make numba compile a kernel once more."""

AT_BEST, BEST_ROWS = 0, 1
"""Places in `Best.state`: whether the plan as it stands is the best one; how many rows the kept one has."""

SWAP, RELOCATE, OPEN, ROTATE, SPLIT, MERGE = 0, 64, 88, 98, 112, 120
"""Kinds of moves: seven random bits from one number up to the next mean that kind."""


class Rows(NamedTuple):
    """The plan as it stands: by slot, shape (n·b,); by row, shape (n + 1,); by request, shape (n,)."""

    member: Ints
    margin: Floats
    weight: Floats
    run: Floats
    start: Floats
    dur: Floats
    size: Ints
    before: Ints
    """Requests in rows before this one."""
    loc: Ints
    """Slot of a request."""
    group: Ints
    group_run: Floats


class Best(NamedTuple):
    """The best plan so far; not yet copied while it is the one that stands."""

    member: Ints
    size: Ints
    state: Ints


class Now(NamedTuple):
    """Number of rows, weight attained and latency of the plan as it stands."""

    rows: int
    attained: float
    latency: float


class Tables(NamedTuple):
    """What the loop looks up: thresholds, distances for the number of rows; room for the clock."""

    thresholds: Floats
    distance: Ints
    clock: Ints


class Move(NamedTuple):
    """A proposal: request `i` in `slot` of row `p`, and row `q`; what it may cost."""

    i: int
    slot: int
    p: int
    q: int
    step: int
    forward: bool
    aimed: bool
    bits: int
    limit: float
    """Energy that it may add."""
    lam: float
    """Seconds of latency that a unit of weight is worth."""
    room: float
    """Weight that is not attained: no shift can win more."""


class Made(NamedTuple):
    """Whether a move was made, what it changed, and the number of rows after it."""

    taken: bool
    change: float
    gain: float
    rows: int


@njit(**LENT)
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


@njit(**LENT)
def _shift(margin: Any, start: Any, b: Any, lo: Any, hi: Any, shift: Any) -> None:
    """Start rows lo..hi-1 later by `shift`."""
    if shift != 0.0:
        m = margin[lo * b : hi * b]
        for j in range(m.shape[0]):
            m[j] -= shift
        s = start[lo:hi]
        for k in range(s.shape[0]):
            s[k] += shift


@njit(**LENT)
def _refresh(case: Any, rows: Any, lo: Any, hi: Any) -> None:
    """Recompute all that is known of rows lo..hi-1 from their members and the start of row lo."""
    rec, b = case.rec, case.max_batch
    member, size, start = rows.member, rows.size, rows.start
    for k in range(lo, hi):
        s, batch, base, longest = start[k], size[k], k * b, 0.0
        for j in range(base, base + batch):
            i = member[j]
            e = rec[i, U] * batch + rec[i, V]
            longest = max(longest, e)
            rows.run[j] = e
            rows.margin[j] = latest_start(rec, i, batch) - s
            rows.weight[j] = rec[i, WEIGHT]
            rows.loc[i] = j
        for j in range(base + batch, base + b):
            rows.run[j], rows.margin[j], rows.weight[j] = 0.0, NEVER, 0.0
        rows.dur[k] = longest
        start[k + 1] = s + longest
        rows.before[k + 1] = rows.before[k] + batch


@njit(**LENT)
def _measured(case: Any, rows: Any, count: Any) -> Any:
    """The plan of `count` rows, its weight and latency summed from what is known of each slot."""
    attained, latency = 0.0, 0.0
    for j in range(count * case.max_batch):
        latency += rows.run[j]
        if rows.margin[j] >= 0.0:
            attained += rows.weight[j]
    for k in range(count):
        latency += rows.start[k] * rows.size[k]
    return Now(count, attained, latency + case.elapsed_total_s)


@njit(**LENT)
def _row(margin: Any, weight: Any, run: Any, base: Any, batch: Any) -> Any:
    """(sum of execution times, attained weight) of one row as it stands."""
    total, attained = 0.0, 0.0
    for j in range(base, base + batch):
        total += run[j]
        if margin[j] >= 0.0:
            attained += weight[j]
    return total, attained


@njit(**LENT)
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
        if latest_start(rec, i, batch) >= start:
            attained += rec[i, WEIGHT]
    return longest, total, attained


@njit(**LENT)
def _longest(run: Any, base: Any, batch: Any, skip: Any, least: Any) -> Any:
    """Longest execution in a row without the slot `skip`, at least `least`."""
    longest = least
    for x in range(base, base + batch):
        if x != skip and run[x] > longest:
            longest = run[x]
    return longest


@njit(**LENT)
def _insert_row(member: Any, size: Any, b: Any, at: Any, count: Any) -> None:
    """Make room for one row before row `at`."""
    for j in range(count * b - 1, at * b - 1, -1):
        member[j + b] = member[j]
    for k in range(count - 1, at - 1, -1):
        size[k + 1] = size[k]


@njit(**LENT)
def _delete_row(member: Any, size: Any, b: Any, at: Any, count: Any) -> None:
    """Close the gap of row `at`."""
    for j in range(at * b, (count - 1) * b):
        member[j] = member[j + b]
    for k in range(at, count - 1):
        size[k] = size[k + 1]


@njit(**LENT)
def _keep(case: Any, rows: Any, best: Any, count: Any) -> None:
    """Copy the plan as it stands to the best one."""
    best.state[AT_BEST], best.state[BEST_ROWS] = 0, count
    for j in range(count * case.max_batch):
        best.member[j] = rows.member[j]
    for k in range(count):
        best.size[k] = rows.size[k]


@njit(**LENT)
def _leave(case: Any, rows: Any, best: Any, now: Any, change: Any, gain: Any) -> None:
    """Before a move is made: keep the plan if it is the best one and the move makes it no better."""
    attained, latency = now.attained, now.latency
    if best.state[AT_BEST] and not better(case.mode, attained + gain, latency + change, attained, latency):
        _keep(case, rows, best, now.rows)


@njit(**INLINED)
def _refused(move: Any, change: Any, gain: Any) -> Any:
    """Whether a move that changes latency and weight by so much goes beyond its limit."""
    return change - move.lam * gain > move.limit


@njit(**INLINED)
def _counterpart(case: Any, rows: Any, move: Any, seed: Any) -> Any:
    """Slot of row `move.q` to swap with; a late request takes the place of the latest or longest of four."""
    b, q = case.max_batch, move.q
    bits = move.bits
    slot = q * b + below(bits, rows.size[q])
    if move.aimed and b > 1:
        bits = next_bits(seed)
        for _ in range(3):
            other = q * b + below(bits, rows.size[q])
            bits <<= np.uint64(16)
            other_late, late = rows.margin[other] < 0.0, rows.margin[slot] < 0.0
            if (other_late and not late) or (other_late == late and rows.run[other] > rows.run[slot]):
                slot = other
    return slot


@njit(**INLINED)
def _swap(case: Any, rows: Any, best: Any, now: Any, move: Any, seed: Any) -> Any:
    """Swap request i with a member j of row q."""
    rec, b = case.rec, case.max_batch
    n = rec.shape[0]
    margin, weight, run, start, dur = rows.margin, rows.weight, rows.run, rows.start, rows.dur
    p, q, slot_i, slot_j = move.p, move.q, move.slot, _counterpart(case, rows, move, seed)
    if q < p:
        p, q = q, p
        slot_i, slot_j = slot_j, slot_i
    i, j = rows.member[slot_i], rows.member[slot_j]
    batch_p, batch_q = rows.size[p], rows.size[q]
    run_j = rec[j, U] * batch_p + rec[j, V]
    run_i = rec[i, U] * batch_q + rec[i, V]
    dur_p, dur_q = dur[p], dur[q]
    if run_j >= dur_p:
        dur_p = run_j
    elif run[slot_i] >= dur_p:
        dur_p = _longest(run, p * b, batch_p, slot_i, run_j)
    if run_i >= dur_q:
        dur_q = run_i
    elif run[slot_j] >= dur_q:
        dur_q = _longest(run, q * b, batch_q, slot_j, run_i)
    shift1 = dur_p - dur[p]
    shift2 = shift1 + (dur_q - dur[q])
    if b == 1:
        shift2 = 0.0
    change = (
        (run_j - run[slot_i])
        + (run_i - run[slot_j])
        + shift1 * (rows.before[q + 1] - rows.before[p + 1])
        + shift2 * (n - rows.before[q + 1])
    )
    margin_j = latest_start(rec, j, batch_p) - start[p]
    margin_i = latest_start(rec, i, batch_q) - start[q] - shift1
    gain = 0.0
    if margin_j >= 0.0:
        gain += weight[slot_j]
    if margin_i >= 0.0:
        gain += weight[slot_i]
    if margin[slot_i] >= 0.0:
        gain -= weight[slot_i]
    if margin[slot_j] >= 0.0:
        gain -= weight[slot_j]
    hope = move.room if shift1 < 0.0 or shift2 < 0.0 else 0.0
    if _refused(move, change, gain + hope):
        return Made(False, 0.0, 0.0, now.rows)
    gain += _shift_gain(margin, weight, (p + 1) * b, (q + 1) * b, shift1)
    gain -= _shift_gain(margin, weight, slot_j, slot_j + 1, shift1)
    hope = move.room if shift2 < 0.0 else 0.0
    if _refused(move, change, gain + hope):
        return Made(False, 0.0, 0.0, now.rows)
    gain += _shift_gain(margin, weight, (q + 1) * b, now.rows * b, shift2)
    if _refused(move, change, gain):
        return Made(False, 0.0, 0.0, now.rows)
    _leave(case, rows, best, now, change, gain)
    _shift(margin, start, b, p + 1, q + 1, shift1)
    _shift(margin, start, b, q + 1, now.rows, shift2)
    start[now.rows] += shift2
    dur[p], dur[q] = dur_p, dur_q
    rows.member[slot_i], rows.member[slot_j] = j, i
    rows.loc[i], rows.loc[j] = slot_j, slot_i
    weight[slot_i], weight[slot_j] = rec[j, WEIGHT], rec[i, WEIGHT]
    run[slot_i], run[slot_j] = run_j, run_i
    margin[slot_i], margin[slot_j] = margin_j, margin_i
    return Made(True, change, gain, now.rows)


@njit(**INLINED)
def _relocate(case: Any, rows: Any, best: Any, now: Any, move: Any) -> Any:
    """Move request i to row q, which has room."""
    rec, b, i, slot, p, q = case.rec, case.max_batch, move.i, move.slot, move.p, move.q
    n = rec.shape[0]
    member, margin, weight, run = rows.member, rows.margin, rows.weight, rows.run
    start, dur, size, before = rows.start, rows.dur, rows.size, rows.before
    low, high = min(p, q), max(p, q)
    batch_p, batch_q = size[p], size[q]
    total_p, attained_p = _row(margin, weight, run, p * b, batch_p)
    total_q, attained_q = _row(margin, weight, run, q * b, batch_q)
    out_p, in_q = batch_p - 1, batch_q + 1
    end_p, end_q = p * b + batch_p, q * b + batch_q
    if p < q:
        dur_low, total_low, attained_low = _group(rec, member, p * b, end_p, slot, NONE, out_p, start[p])
        shift1 = dur_low - dur[p]
        dur_high, total_high, attained_high = _group(
            rec, member, q * b, end_q, NONE, i, in_q, start[q] + shift1
        )
        size_low, size_high = out_p, in_q
    else:
        dur_low, total_low, attained_low = _group(rec, member, q * b, end_q, NONE, i, in_q, start[q])
        shift1 = dur_low - dur[q]
        dur_high, total_high, attained_high = _group(
            rec, member, p * b, end_p, slot, NONE, out_p, start[p] + shift1
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
    hope = move.room if shift1 < 0.0 or shift2 < 0.0 else 0.0
    if _refused(move, change, gain + hope):
        return Made(False, 0.0, 0.0, now.rows)
    gain += _shift_gain(margin, weight, (low + 1) * b, high * b, shift1)
    hope = move.room if shift2 < 0.0 else 0.0
    if _refused(move, change, gain + hope):
        return Made(False, 0.0, 0.0, now.rows)
    gain += _shift_gain(margin, weight, (high + 1) * b, now.rows * b, shift2)
    if _refused(move, change, gain):
        return Made(False, 0.0, 0.0, now.rows)
    _leave(case, rows, best, now, change, gain)
    member[end_q] = i
    member[slot] = member[end_p - 1]
    size[p], size[q] = out_p, in_q
    if out_p == 0:
        _delete_row(member, size, b, p, now.rows)
        _refresh(case, rows, low, now.rows - 1)
        return Made(True, change, gain, now.rows - 1)
    _shift(margin, start, b, low + 1, high + 1, shift1)
    _shift(margin, start, b, high + 1, now.rows, shift2)
    start[now.rows] += shift2
    for k in range(low + 1, high + 1):
        before[k] += -1 if p < q else 1
    _refresh(case, rows, low, low + 1)
    _refresh(case, rows, high, high + 1)
    return Made(True, change, gain, now.rows)


@njit(**INLINED)
def _open(case: Any, rows: Any, best: Any, now: Any, move: Any) -> Any:
    """Request i leaves its row and becomes a row of its own."""
    rec, b, i, slot, p = case.rec, case.max_batch, move.i, move.slot, move.p
    n = rec.shape[0]
    member, margin, weight = rows.member, rows.margin, rows.weight
    start, size, before = rows.start, rows.size, rows.before
    batch_p = size[p]
    q = min(p + move.step, now.rows) if move.forward else max(p - move.step + 1, 0)
    run_i = rec[i, U] + rec[i, V]
    total_p, attained_p = _row(margin, weight, rows.run, p * b, batch_p)
    first = q <= p
    start_p = start[p] + run_i if first else start[p]
    dur_p, total_new, attained_new = _group(
        rec, member, p * b, p * b + batch_p, slot, NONE, batch_p - 1, start_p
    )
    shift_p = dur_p - rows.dur[p]
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
    if latest_start(rec, i, ONE) >= start_i:
        gain += rec[i, WEIGHT]
    hope = move.room if shift1 < 0.0 or shift2 < 0.0 else 0.0
    if _refused(move, change, gain + hope):
        return Made(False, 0.0, 0.0, now.rows)
    gain += _shift_gain(margin, weight, from1 * b, to1 * b, shift1)
    gain += _shift_gain(margin, weight, from2 * b, now.rows * b, shift2)
    if _refused(move, change, gain):
        return Made(False, 0.0, 0.0, now.rows)
    _leave(case, rows, best, now, change, gain)
    member[slot] = member[p * b + batch_p - 1]
    size[p] = batch_p - 1
    _insert_row(member, size, b, q, now.rows)
    member[q * b] = i
    size[q] = 1
    _refresh(case, rows, min(p, q), now.rows + 1)
    return Made(True, change, gain, now.rows + 1)


@njit(**INLINED)
def _rotate(case: Any, rows: Any, best: Any, now: Any, move: Any) -> Any:
    """Row p goes to position q, which is another."""
    b, p, q = case.max_batch, move.p, move.q
    member, margin, weight, start = rows.member, rows.margin, rows.weight, rows.start
    size, group = rows.size, rows.group
    batch_p = size[p]
    if p < q:
        shift1, shift2 = start[q + 1] - start[p + 1], -rows.dur[p]
        low, high = p + 1, q + 1
    else:
        shift1, shift2 = start[q] - start[p], rows.dur[p]
        low, high = q, p
    change = shift1 * batch_p + shift2 * (rows.before[high] - rows.before[low])
    gain = _shift_gain(margin, weight, p * b, p * b + batch_p, shift1)
    hope = move.room if shift2 < 0.0 else 0.0
    if _refused(move, change, gain + hope):
        return Made(False, 0.0, 0.0, now.rows)
    gain += _shift_gain(margin, weight, low * b, high * b, shift2)
    if _refused(move, change, gain):
        return Made(False, 0.0, 0.0, now.rows)
    _leave(case, rows, best, now, change, gain)
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
    _refresh(case, rows, min(p, q), max(p, q) + 1)
    return Made(True, change, gain, now.rows)


@njit(**LENT)
def _arranged(rows: Any, base: Any, batch: Any, shuffled: Any, seed: Any) -> None:
    """Lay the members of a row in the scratch group: shuffled, or shortest first."""
    group, group_run = rows.group, rows.group_run
    for s in range(batch):
        group[s] = rows.member[base + s]
        group_run[s] = rows.run[base + s]
    if shuffled:
        for s in range(batch - 1, 0, -1):
            x = below(next_bits(seed), s + 1)
            group[s], group[x] = group[x], group[s]
    else:
        for s in range(1, batch):
            x, g, e = s, group[s], group_run[s]
            while x > 0 and group_run[x - 1] > e:
                group[x], group_run[x] = group[x - 1], group_run[x - 1]
                x -= 1
            group[x], group_run[x] = g, e


@njit(**INLINED)
def _split(case: Any, rows: Any, best: Any, now: Any, move: Any, seed: Any) -> Any:
    """Split row p into two."""
    rec, b, p = case.rec, case.max_batch, move.p
    n = rec.shape[0]
    member, start, size, group = rows.member, rows.start, rows.size, rows.group
    base, batch_p = p * b, size[p]
    _arranged(rows, base, batch_p, move.bits & np.uint64(512) != np.uint64(0), seed)
    cut = 1 + below(move.bits, batch_p - 1)
    total_p, attained_p = _row(rows.margin, rows.weight, rows.run, base, batch_p)
    dur_low, total_low, attained_low = _group(rec, group, ZERO, cut, NONE, NONE, cut, start[p])
    dur_high, total_high, attained_high = _group(
        rec, group, cut, batch_p, NONE, NONE, batch_p - cut, start[p] + dur_low
    )
    shift2 = dur_low + dur_high - rows.dur[p]
    change = (
        (total_low + total_high - total_p)
        + dur_low * (batch_p - cut)
        + shift2 * (n - rows.before[p + 1])
    )  # fmt: skip
    gain = attained_low + attained_high - attained_p
    hope = move.room if shift2 < 0.0 else 0.0
    if _refused(move, change, gain + hope):
        return Made(False, 0.0, 0.0, now.rows)
    gain += _shift_gain(rows.margin, rows.weight, (p + 1) * b, now.rows * b, shift2)
    if _refused(move, change, gain):
        return Made(False, 0.0, 0.0, now.rows)
    _leave(case, rows, best, now, change, gain)
    _insert_row(member, size, b, p, now.rows)
    for s in range(cut):
        member[base + s] = group[s]
    for s in range(cut, batch_p):
        member[base + b + s - cut] = group[s]
    size[p], size[p + 1] = cut, batch_p - cut
    _refresh(case, rows, p, now.rows + 1)
    return Made(True, change, gain, now.rows + 1)


@njit(**INLINED)
def _merge(case: Any, rows: Any, best: Any, now: Any, move: Any) -> Any:
    """Merge row p with the next one."""
    rec, b, p = case.rec, case.max_batch, move.p
    n = rec.shape[0]
    member, start, size, group = rows.member, rows.start, rows.size, rows.group
    base, batch_p, batch_q = p * b, size[p], size[p + 1]
    union = batch_p + batch_q
    for s in range(batch_p):
        group[s] = member[base + s]
    for s in range(batch_q):
        group[batch_p + s] = member[base + b + s]
    total_p, attained_p = _row(rows.margin, rows.weight, rows.run, base, batch_p)
    total_q, attained_q = _row(rows.margin, rows.weight, rows.run, base + b, batch_q)
    dur_p, total_new, attained_new = _group(rec, group, ZERO, union, NONE, NONE, union, start[p])
    shift2 = dur_p - rows.dur[p] - rows.dur[p + 1]
    change = (
        (total_new - total_p - total_q)
        + (start[p] - start[p + 1]) * batch_q
        + shift2 * (n - rows.before[p + 2])
    )  # fmt: skip
    gain = attained_new - attained_p - attained_q
    hope = move.room if shift2 < 0.0 else 0.0
    if _refused(move, change, gain + hope):
        return Made(False, 0.0, 0.0, now.rows)
    gain += _shift_gain(rows.margin, rows.weight, (p + 2) * b, now.rows * b, shift2)
    if _refused(move, change, gain):
        return Made(False, 0.0, 0.0, now.rows)
    _leave(case, rows, best, now, change, gain)
    for s in range(union):
        member[base + s] = group[s]
    size[p] = union
    _delete_row(member, size, b, p + 1, now.rows)
    _refresh(case, rows, p, now.rows - 1)
    return Made(True, change, gain, now.rows - 1)


@njit(**INLINED)
def _proposal(
    case: Any, rows: Any, now: Any, distance: Any, limit: Any, lam: Any, room: Any, i: Any, seed: Any
) -> Any:
    """A request, late ones preferred if the caller drew one, and a row for it."""
    bits = next_bits(seed)
    slot = rows.loc[i]
    p = slot // case.max_batch
    step = distance[np.int64(bits & np.uint64(DISTANCES - 1))]
    forward = bits & np.uint64(256) != np.uint64(0)
    latest = rows.margin[slot] + rows.start[p]
    aimed = False
    if rows.margin[slot] < 0.0 <= latest and bits & np.uint64(3 << 9):
        # a late request aims at the last rows in which it would not be
        q, above = 0, p
        while above - q > 1:
            middle = (q + above) >> 1
            if rows.start[middle] <= latest:
                q = middle
            else:
                above = middle
        q = max(0, q - step + 1)
        aimed = True
    else:
        q = p + step if forward else p - step
        if q < 0:
            q = -q
        if q >= now.rows:
            q = 2 * (now.rows - 1) - q
        if q < 0:
            q = 0
    return Move(i, slot, p, q, step, forward, aimed, bits, limit, lam, room)


@njit(**INLINED)
def _possible(kind: Any, b: Any, size: Any, count: Any, move: Any) -> Any:
    """The kind of move, or the nearest one that can be made here; -1 if it would change nothing."""
    p, q = move.p, move.q
    if b == 1:
        kind = SWAP if kind < RELOCATE else ROTATE
    elif count == 1:
        kind = OPEN if kind < RELOCATE else SPLIT
    elif RELOCATE <= kind < OPEN:
        if size[q] == b or q == p:
            kind = SWAP
    elif OPEN <= kind < ROTATE or SPLIT <= kind < MERGE:
        if size[p] == 1:
            kind = ROTATE
    elif kind >= MERGE and (p + 1 >= count or size[p] + size[p + 1] > b):
        kind = ROTATE
    if q == p and (kind < OPEN or ROTATE <= kind < SPLIT):
        return -1
    return kind


@njit(**INLINED)
def _tried(kind: Any, case: Any, rows: Any, best: Any, now: Any, move: Any, seed: Any) -> Any:
    """Make the move if its limit allows."""
    if kind < RELOCATE:
        return _swap(case, rows, best, now, move, seed)
    if kind < OPEN:
        return _relocate(case, rows, best, now, move)
    if kind < ROTATE:
        return _open(case, rows, best, now, move)
    if kind < SPLIT:
        return _rotate(case, rows, best, now, move)
    if kind < MERGE:
        return _split(case, rows, best, now, move, seed)
    return _merge(case, rows, best, now, move)


@njit(**OPTIONS)
def _laid_out(n: Any, b: Any) -> Any:
    """Empty rows for n requests in batches of at most b."""
    slots = n * b
    return Rows(
        np.empty(slots, np.int64), np.empty(slots), np.empty(slots), np.empty(slots),
        np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64),
        np.empty(n, np.int64), np.empty(b + 1, np.int64), np.empty(b + 1),
    )  # fmt: skip


@njit(**LENT)
def _errors(case: Any, rows: Any, now: Any, afresh: Any) -> Any:
    """(error of the weight, relative error of latency and starts) against a full evaluation in `afresh`."""
    count = now.rows
    for j in range(count * case.max_batch):
        afresh.member[j] = rows.member[j]
    for k in range(count):
        afresh.size[k] = rows.size[k]
    afresh.start[0] = 0.0
    _refresh(case, afresh, ZERO, count)
    full = _measured(case, afresh, count)
    weight_error = abs(full.attained - now.attained)
    latency_error = abs(full.latency - now.latency) / now.latency
    for k in range(count):
        latency_error = max(latency_error, abs(afresh.start[k] - rows.start[k]) / (1.0 + rows.start[k]))
        latency_error = max(latency_error, abs(afresh.dur[k] - rows.dur[k]))
        if afresh.before[k] != rows.before[k]:
            weight_error = math.inf
    for x in range(case.rec.shape[0]):
        slot = rows.loc[x]
        margin = rows.margin[slot]
        if afresh.loc[x] != slot or abs(afresh.margin[slot] - margin) > 1e-6 * (1.0 + abs(margin)):
            weight_error = math.inf
    return weight_error, latency_error


@njit(**OPTIONS)
def _sequence(case: Any, best: Any) -> Any:
    """The best plan as (sequence, batches)."""
    sequence = np.empty(case.rec.shape[0], np.int64)
    count = best.state[BEST_ROWS]
    at = 0
    for k in range(count):
        for s in range(best.size[k]):
            sequence[at] = best.member[k * case.max_batch + s]
            at += 1
    return sequence, best.size[:count].copy()


@njit(**LENT)
def _cool(cooling: Any, stage: Any, count: Any, last_count: Any, distance: Any) -> Any:
    """Temperature of a stage; fills the table of distances if the number of rows has changed."""
    if count != last_count:
        log_rows = math.log(max(1.0, float(count)))
        for x in range(DISTANCES):
            distance[x] = max(1, int(math.exp((x + 0.5) / DISTANCES * log_rows)))
    cooled = (stage % cooling.stages) / max(1, cooling.stages - 1)
    return cooling.hot * (cooling.cold / cooling.hot) ** cooled


@njit(**LENT)
def _search(
    case: Any, rows: Any, afresh: Any, best: Any, budget: Any, cooling: Any, tables: Any, seed: Any,
    check: Any,
) -> Any:  # fmt: skip
    """The loop of `anneal` over stages and proposals, from the plan in `rows`; leaves the best in `best`."""
    n, b = case.rec.shape[0], case.max_batch
    moves, stages = budget.moves, cooling.stages * cooling.cycles
    now = _measured(case, rows, best.state[BEST_ROWS])
    best_weight, best_latency, lam = now.attained, now.latency, cooling.lam
    proposals, evaluated, accepted, last_rows = 0, 0, 0, -1
    weight_error, latency_error = 0.0, 0.0
    stopped = False
    total_weight = 0.0
    for i in range(n):
        total_weight += case.rec[i, WEIGHT]
    for stage in range(stages):
        if stopped:
            break
        if case.mode == G and best_weight > 0.0:
            lam = best_latency / best_weight
        if stage % REFRESH_STAGES == REFRESH_STAGES - 1:
            _refresh(case, rows, ZERO, now.rows)
            now = _measured(case, rows, now.rows)
        temperature = _cool(cooling, stage, now.rows, last_rows, tables.distance)
        last_rows = now.rows
        last_proposal = moves * (stage + 1) // stages
        stage_ns = budget.length_ns if moves >= 0 else budget.length_ns * (stage + 1) // stages
        while moves < 0 or proposals < last_proposal:
            timed = budget.length_ns >= 0 and proposals & 15 == 0
            if timed and now_ns(tables.clock) - budget.begin_ns >= stage_ns:
                stopped = moves >= 0
                break
            proposals += 1
            bits = next_bits(seed)
            limit = temperature * tables.thresholds[np.int64((bits >> np.uint64(7)) & np.uint64(4095))]
            i = below(bits, n)
            if bits & np.uint64(1 << 19):
                for _ in range(2):
                    if rows.margin[rows.loc[i]] >= 0.0:
                        i = below(next_bits(seed), n)
            room = total_weight - now.attained
            move = _proposal(case, rows, now, tables.distance, limit, lam, room, i, seed)
            kind = _possible(np.int64(bits & np.uint64(127)), b, rows.size, now.rows, move)
            if kind < 0:
                continue
            evaluated += 1
            made = _tried(kind, case, rows, best, now, move, seed)
            if not made.taken:
                continue
            accepted += 1
            now = Now(made.rows, now.attained + made.gain, now.latency + made.change)
            if better(case.mode, now.attained, now.latency, best_weight, best_latency):
                best_weight, best_latency, best.state[AT_BEST] = now.attained, now.latency, 1
            if check:
                errors = _errors(case, rows, now, afresh)
                weight_error = max(weight_error, errors[0])
                latency_error = max(latency_error, errors[1])
    if best.state[AT_BEST]:
        _keep(case, rows, best, now.rows)
    return best_weight, best_latency, evaluated, accepted, weight_error, latency_error


@njit(**OPTIONS)
def anneal(
    case: Case, sequence: Ints, batches: Ints, budget: Budget, cooling: Cooling, thresholds: Floats,
    seed: Any, check: bool,
) -> Any:  # fmt: skip
    """Anneal a plan by delta evaluation.

    Parameters
    ----------
    case
        The requests and how plans are compared; `LEX` or `G`. Not changed.
    sequence, batches
        Plan to start from; not changed.
    budget
        Proposals to make, or how long.
    cooling
        Temperatures.
    thresholds
        Grid of -ln u, length 4096.
    seed
        Two 64-bit words, not both 0; used up.
    check
        Whether to compare every move that is made with a full evaluation (slow).

    Returns
    -------
    tuple
        Best sequence, its batches, its weight and latency, evaluated moves, moves made, largest error of
        weight and of latency seen under `check`.
    """
    n, b = case.rec.shape[0], case.max_batch
    rows, afresh = _laid_out(n, b), _laid_out(n if check else 1, b if check else 1)
    best = Best(np.empty(n * b, np.int64), np.zeros(n + 1, np.int64), np.zeros(2, np.int64))
    tables = Tables(thresholds, np.empty(DISTANCES, np.int64), np.zeros(2, np.int64))
    count = batches.shape[0]
    at = 0
    for k in range(count):
        rows.size[k] = batches[k]
        for s in range(batches[k]):
            rows.member[k * b + s] = sequence[at]
            at += 1
    _refresh(case, rows, ZERO, count)
    _keep(case, rows, best, count)
    weight, latency, evaluated, accepted, weight_error, latency_error = _search(
        case, rows, afresh, best, budget, cooling, tables, seed, check
    )
    found = _sequence(case, best)
    return found[0], found[1], weight, latency, evaluated, accepted, weight_error, latency_error
