"""Continuous batching as an event-driven model: what an order of the queue does to everybody's latency.

The model. All running requests advance together on a virtual token clock V: in one unit of V each decoding
request gets one token, and that unit lasts

    base + sequence·B + kv_token·K       (B decoding requests, K tokens of context)

seconds. Waiting requests enter in the given order, head of line, as soon as a slot is free and their context
fits the KV cache. One request at a time is in prefill: it computes room = token budget - B prompt tokens per
unit of V, each for prefill_token + attention_work·(have + todo/2) seconds on top, while the others decode:
chunked prefill. Its first token comes half a unit after its prefill ends (on average: a token comes at the
end of a step, a prefill ends anywhere in it), and it leaves `left` - 1 units after that. The clock is
continuous, so several prompts share a step and long ones take several, as in the engine; only the step in
which the last prompt ends that can enter for now is not filled up with others.

When no known request is in prefill, those yet to come are expected to take the share `FUTURE` of the time.

Left out: preemption when the KV cache runs short, and steps that are not filled.

`slosched.planner.reference` is the same model in plain Python, token by token; it defines the
truth for `evaluate`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.forecast import OUTLIVED_GROWTH
from slosched.core.jit import njit
from slosched.core.snapshot import Snapshot
from slosched.planner.rollout import Columns, columns_of

# Entries of `engine`: seconds, tokens and requests as in the model above; the present time; the expected
# share of time that prompts of future requests take; seconds that a step with a prompt may take, infinity for
# no limit.
(
    BASE, SEQUENCE, KV_TOKEN, PREFILL_TOKEN, ATTENTION, KNEE_TOKENS, KNEE_TOKEN, BUDGET, SLOTS, KV_TOKENS,
    NOW, FUTURE, STEP, ENGINE_SIZE,
) = range(14)  # fmt: skip

LEAST_SHARE = 0.0625
"""Share of the token budget that a step may hold of a prompt, however long it takes."""

# Entries of `aim`, see `DEFAULT_AIM`.
SOFT_S, SOFT_LEAD, SOFT_TPOT, LATENCY, BACKLOG = range(5)

DEFAULT_AIM = (0.25, 0.5, 0.2, 1e-3, 0.1)
"""The soft margin's half-width in seconds, its growth per second of lead, its half-width relative to a TPOT
limit; what a second of anybody's latency costs in units of one met request; and what a second until the last
known prompt is computed costs, times the share of time that future prompts take, since they wait for it."""

# Columns of `jobs`, one row a request: the running ones first, in running order, then the waiting ones. One
# array, because numba hands every array of a structure to every call: a dozen arrays cost more than the work.
(
    TODO,  # prompt tokens still to be computed
    HAVE,  # context tokens in the cache before that
    LEFT,  # expected output tokens to come, at least 1
    FIRST_DUE,  # clock time by which the first token is due; infinity for no limit
    E2E_DUE,  # clock time by which the whole answer is due; infinity for no limit
    TPOT,  # limit on seconds per output token; infinity for no limit
    FIRST,  # clock time at which its first token came; NaN before
    GENERATED,  # output tokens so far
    ARRIVAL,  # clock time of arrival
    WEIGHT,  # what keeping its limits is worth
    ALIVE,  # column of the first atom still possible
    ATOMS,  # from here: equally likely numbers of output tokens to come
) = range(12)


class Scratch(NamedTuple):
    """Work space and answers of `evaluate`, one entry a job; overwritten by each call."""

    first_s: Floats  # predicted (or real) time of the first token
    finish_s: Floats
    ends: Floats  # heap of V at which jobs leave
    leaver: Ints  # the jobs of that heap


def scratch_for(jobs: Floats) -> Scratch:
    """Work space for `evaluate` on these jobs."""
    n = len(jobs)
    return Scratch(np.empty(n), np.empty(n), np.empty(n), np.empty(n, dtype=np.int64))


def engine_of(snapshot: Snapshot) -> Floats:
    """The model's constants for the engine of a snapshot, shape (ENGINE_SIZE,), expecting no newcomers."""
    model, limits = snapshot.step_time, snapshot.limits
    engine = np.zeros(ENGINE_SIZE)
    engine[BASE], engine[SEQUENCE], engine[KV_TOKEN] = model.base_s, model.sequence_s, model.kv_token_s
    engine[PREFILL_TOKEN], engine[ATTENTION] = model.prefill_token_s, model.attention_work_s
    engine[KNEE_TOKENS], engine[KNEE_TOKEN] = model.knee_tokens, model.knee_token_s
    engine[BUDGET], engine[SLOTS] = limits.max_num_batched_tokens, limits.max_num_seqs
    # What runs plus what is free: requests that share a prefix together hold less than their contexts.
    held = int(snapshot.table.computed_tokens[snapshot.running].sum())
    engine[KV_TOKENS] = held + snapshot.free_blocks * limits.block_tokens
    engine[NOW], engine[STEP] = snapshot.now_s, np.inf
    return engine


@njit(nogil=True, cache=True, error_model="numpy")
def prompt_room(engine: Floats, alone_s: float, decoding: float, token_s: float, step_s: float) -> float:
    """Prompt tokens, at `token_s` each, with which a step of `alone_s` without them takes `step_s`.

    At least `LEAST_SHARE` of the token budget, at most all of it; what is beyond the knee costs more.
    """
    left_s = step_s - alone_s - engine[KNEE_TOKEN] * max(0.0, decoding - engine[KNEE_TOKENS])
    below_knee = max(0.0, engine[KNEE_TOKENS] - decoding)
    room = left_s / token_s
    if room > below_knee:
        room = max(below_knee, (left_s + engine[KNEE_TOKEN] * below_knee) / (token_s + engine[KNEE_TOKEN]))
    return float(min(engine[BUDGET], max(LEAST_SHARE * engine[BUDGET], room)))


def jobs_of(snapshot: Snapshot, waiting: Ints | None = None) -> Floats:
    """The jobs of a snapshot, optionally with only some of its waiting rows, in that order.

    Returns
    -------
    ndarray
        Shape (running + waiting, ATOMS + atoms), columns as listed at the top of this module.
    """
    rows = np.concatenate([snapshot.running, snapshot.waiting if waiting is None else waiting])
    jobs: Floats = _gather(columns_of(snapshot.table), rows, len(snapshot.running))
    return jobs


@njit(nogil=True, cache=True)
def _gather(table: Columns, rows: Ints, running: int) -> Floats:
    prompt, generated, computed, cached, atoms = table[:5]
    arrival, ttft, tpot, e2e, first, weight = table[5:]
    n, width = len(rows), atoms.shape[1]
    jobs = np.empty((n, ATOMS + width))
    for i in range(n):
        row = rows[i]
        have = computed[row] if i < running else max(computed[row], cached[row])
        todo = prompt[row] + generated[row] - have
        started_s = first[row]
        if generated[row] > 0 and np.isnan(started_s):
            started_s = arrival[row]  # nobody told us: as good as can be
        if i < running and generated[row] > 0 and todo <= 1:
            todo = 0  # it decodes
        elif todo <= 0 and (i >= running or np.isnan(started_s)):
            todo, have = 1, have - 1  # the last prompt token is always computed: it makes the first output
        jobs[i, TODO], jobs[i, HAVE] = todo, have
        total, alive = 0.0, width
        for k in range(width - 1, -1, -1):
            ahead = atoms[row, k] - generated[row]
            if ahead <= 0.0:
                break
            jobs[i, ATOMS + k] = ahead
            total += ahead
            alive = k
        if alive == width:  # it has outlived its forecast
            alive = width - 1
            total = max(1.0, generated[row] * OUTLIVED_GROWTH)
            jobs[i, ATOMS + alive] = total
        jobs[i, ALIVE] = ATOMS + alive
        jobs[i, LEFT] = max(1.0, total / (width - alive))
        jobs[i, FIRST_DUE], jobs[i, E2E_DUE] = arrival[row] + ttft[row], arrival[row] + e2e[row]
        jobs[i, TPOT], jobs[i, FIRST], jobs[i, GENERATED] = tpot[row], started_s, generated[row]
        jobs[i, ARRIVAL], jobs[i, WEIGHT] = arrival[row], weight[row]
    return jobs


@njit(nogil=True, cache=True, error_model="numpy")
def _soft(margin: float, width: float) -> float:
    """Probability that a margin holds under a uniform error of half-width `width`."""
    if margin >= width:
        return 1.0
    if margin <= -width:
        return 0.0
    return 0.5 + 0.5 * margin / width


@njit(nogil=True, cache=True, error_model="numpy")
def score(jobs: Floats, i: int, first_s: float, finish_s: float, now_s: float, aim: Floats) -> float:
    """Chance that job `i` keeps its limits.

    Parameters
    ----------
    jobs, i
        The job.
    first_s, finish_s
        Predicted times of its first token and, at its expected length, of its last.
    now_s, aim
        The present, and the soft margins (see `DEFAULT_AIM`).

    Returns
    -------
    float
        Product of the soft margins of its limits, the end-to-end one averaged over its forecast's atoms.
    """
    chance: float = 1.0
    old = jobs[i, GENERATED] > 0.0
    if jobs[i, FIRST_DUE] < np.inf:
        margin = jobs[i, FIRST_DUE] - first_s
        if old:
            chance = 1.0 if margin >= 0.0 else 0.0
        else:
            chance = _soft(margin, aim[SOFT_S] + aim[SOFT_LEAD] * max(0.0, first_s - now_s))
        if chance == 0.0:
            return 0.0
    tpot = jobs[i, TPOT]
    if tpot < np.inf:
        tokens = max(1.0, jobs[i, GENERATED] + jobs[i, LEFT] - 1.0)
        chance *= _soft(tpot * tokens - (finish_s - first_s), aim[SOFT_TPOT] * tpot * tokens)
        if chance == 0.0:
            return 0.0
    if jobs[i, E2E_DUE] == np.inf:
        return chance
    width = aim[SOFT_S] + aim[SOFT_LEAD] * max(0.0, finish_s - now_s)
    start_s = max(first_s, now_s)
    room_s = jobs[i, E2E_DUE] - start_s
    first, last = int(jobs[i, ALIVE]), jobs.shape[1] - 1
    done = 0.0 if old else 1.0
    pace = (finish_s - start_s) / max(1.0, jobs[i, LEFT] - done)
    if room_s - width >= (jobs[i, last] - done) * pace:
        return float(chance)
    if room_s + width <= (jobs[i, first] - done) * pace:
        return 0.0
    total = 0.0
    half = 0.5 / width
    for k in range(first, last + 1):
        total += min(1.0, max(0.0, 0.5 + half * (room_s - (jobs[i, k] - done) * pace)))
    return float(chance * total / (last + 1 - first))


@njit(nogil=True, cache=True, error_model="numpy")
def at_risk(jobs: Floats, order: Ints, engine: Floats, aim: Floats, scratch: Scratch) -> float:
    """Weight that the jobs of `order` are expected to lose, but for those that could not be saved any more.

    `scratch` is as `evaluate` left it; other parameters as there.
    """
    lost = 0.0
    for i in order:
        alone_s = engine[NOW] + jobs[i, TODO] * (engine[PREFILL_TOKEN] + engine[KNEE_TOKEN])
        if alone_s <= jobs[i, FIRST_DUE] and alone_s + jobs[i, LEFT] * engine[BASE] <= jobs[i, E2E_DUE]:
            chance = score(jobs, i, scratch.first_s[i], scratch.finish_s[i], engine[NOW], aim)
            lost += jobs[i, WEIGHT] * (1.0 - chance)
    return lost


@njit(nogil=True, cache=True)
def _push(ends: Floats, leaver: Ints, size: int, end: float, job: int) -> None:
    """Add a job to a heap of `size` by (end, job)."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        other = ends[parent]
        if other < end or (other == end and leaver[parent] < job):
            break
        ends[i] = other
        leaver[i] = leaver[parent]
        i = parent
    ends[i] = end
    leaver[i] = job


@njit(nogil=True, cache=True)
def _pop(ends: Floats, leaver: Ints, size: int) -> None:
    """Remove the head of a heap of `size`."""
    size -= 1
    end, job = ends[size], leaver[size]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            ends[right] < ends[child] or (ends[right] == ends[child] and leaver[right] < leaver[child])
        ):
            child = right
        if end < ends[child] or (end == ends[child] and job < leaver[child]):
            break
        ends[i] = ends[child]
        leaver[i] = leaver[child]
        i = child
    ends[i] = end
    leaver[i] = job


@njit(nogil=True, cache=True, error_model="numpy")
def _next_prefill(jobs: Floats, running: int, place: int) -> int:
    """The first running request from `place` on that is still in prefill; `running` if there is none."""
    while place < running and jobs[place, TODO] == 0.0:
        place += 1
    return place


@njit(nogil=True, cache=True, error_model="numpy")
def evaluate(
    jobs: Floats, running: int, order: Ints, count: int, engine: Floats, aim: Floats, prefill_tokens: float,
    scratch: Scratch,
) -> float:  # fmt: skip
    """Value of serving the waiting jobs ``order[:count]`` in this order after the running ones.

    Parameters
    ----------
    jobs, running
        Jobs and how many of them run.
    order, count
        Job indices of waiting requests, each at most once.
    engine, aim
        See `engine_of` and `DEFAULT_AIM`.
    prefill_tokens
        Most prompt tokens per step, infinity for what the token budget leaves.
    scratch
        Work space; afterwards first_s and finish_s of all jobs served.

    Returns
    -------
    float
        Sum over jobs of weight times chance to keep all limits, less ``aim[LATENCY]`` per second of latency
        and ``aim[BACKLOG]`` times ``engine[FUTURE]`` per second until the last known prompt is computed.
    """
    first_s, finish_s, ends, leaver = scratch
    base_s, sequence_s, kv_token_s = engine[BASE], engine[SEQUENCE], engine[KV_TOKEN]
    now_s, slots = engine[NOW], int(engine[SLOTS])
    stretch = 1.0 / (1.0 - engine[FUTURE])
    t, clock = now_s, 0.0
    B, K = 0.0, 0.0  # decoding requests and their context
    size, at, place = 0, 0, 0
    entering, todo, token_s = -1, 0.0, 0.0  # who is in prefill, prompt tokens left, seconds for each
    clear_s = now_s  # when the last known prompt is computed
    value = 0.0
    for i in range(running):
        if jobs[i, TODO] == 0.0:
            _push(ends, leaver, size, jobs[i, LEFT], i)
            size += 1
            first_s[i] = jobs[i, FIRST]
            B += 1.0
            K += jobs[i, HAVE]
    place = _next_prefill(jobs, running, place)
    while True:
        if entering < 0:
            # Who enters now: running requests still in prefill, then the queue's head.
            if place < running:
                entering = place
                place = _next_prefill(jobs, running, place + 1)
            elif at < count and size < slots:
                head = order[at]
                if size == 0 or K + jobs[head, HAVE] + jobs[head, TODO] <= engine[KV_TOKENS]:
                    entering = head
                    at += 1
            if entering >= 0:
                todo = jobs[entering, TODO]
                token_s = engine[PREFILL_TOKEN] + engine[ATTENTION] * (jobs[entering, HAVE] + 0.5 * todo)
            elif size == 0:
                total: float = value - aim[BACKLOG] * engine[FUTURE] * (clear_s - now_s)
                return total
        # On to the end of that prefill or to the next departure, whichever comes first.
        room = min(engine[BUDGET] - B, prefill_tokens)
        if entering >= 0 and engine[STEP] < np.inf:
            now_alone_s = base_s + sequence_s * B + kv_token_s * K
            room = min(room, prompt_room(engine, now_alone_s, B, token_s, engine[STEP]))
        room = max(1.0, room)
        steps = ends[0] - clock if size > 0 else np.inf
        departs = entering < 0 or todo > room * steps
        if not departs:
            steps = todo / room
        alone_s = base_s + sequence_s * B + kv_token_s * (K + 0.5 * B * steps)
        if entering >= 0:
            step_s = alone_s + room * token_s + engine[KNEE_TOKEN] * max(0.0, room + B - engine[KNEE_TOKENS])
            todo -= steps * room
        else:
            # Prompts of requests yet to come take their share of every step, up to a full one.
            step_s = min(alone_s * stretch, alone_s + room * engine[PREFILL_TOKEN])
        t += steps * step_s
        clock += steps
        K += B * steps
        if departs:
            job = leaver[0]
            _pop(ends, leaver, size)
            size -= 1
            B -= 1.0
            grown = jobs[job, LEFT] if jobs[job, TODO] == 0.0 else jobs[job, LEFT] - 0.5
            K = max(0.0, K - (jobs[job, HAVE] + jobs[job, TODO] + grown))
            finish_s[job] = max(t, first_s[job])
            value += jobs[job, WEIGHT] * score(jobs, job, first_s[job], finish_s[job], now_s, aim)
            value -= aim[LATENCY] * (finish_s[job] - jobs[job, ARRIVAL])
        else:
            if place >= running and (at >= count or size + 1 >= slots):  # no other prompt follows at once
                filled = min(room, jobs[entering, TODO])
                above = max(0.0, filled + B - engine[KNEE_TOKENS])
                step_s = alone_s + filled * token_s + engine[KNEE_TOKEN] * above
            first_s[entering] = (
                t + 0.5 * step_s if jobs[entering, GENERATED] == 0.0 else jobs[entering, FIRST]
            )
            _push(ends, leaver, size, clock + jobs[entering, LEFT] - 0.5, entering)
            size += 1
            B += 1.0
            K += jobs[entering, HAVE] + jobs[entering, TODO]
            entering = -1
            clear_s = t


@njit(nogil=True, cache=True)
def _random(state: NDArray[np.uint64]) -> int:
    """Next 62 random bits of xorshift64*; `state` has one non-zero entry."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return int((x * np.uint64(2685821657736338717)) >> np.uint64(2))


@njit(nogil=True, cache=True)
def _move(order: Ints, i: int, j: int) -> None:
    """Take the entry at `i` and put it at `j`."""
    job = order[i]
    if i < j:
        for k in range(i, j):
            order[k] = order[k + 1]
    else:
        for k in range(i, j, -1):
            order[k] = order[k - 1]
    order[j] = job


@njit(nogil=True, cache=True)
def search(
    jobs: Floats, running: int, order: Ints, count: int, window: int, engine: Floats, aim: Floats,
    prefill_tokens: float, moves: int, rng: NDArray[np.uint64], scratch: Scratch,
) -> float:  # fmt: skip
    """Improve ``order[:count]`` in place by swaps and insertions, `moves` evaluations; returns its value.

    Positions are drawn from the first `window`, partners at log-uniform distance up to the end. A move is
    kept unless it lowers the value: the objective is already softened, so temperature adds little. Other
    parameters as in `evaluate`; `rng` is one non-zero 64-bit number and moves on.
    """
    value: float = evaluate(jobs, running, order, count, engine, aim, prefill_tokens, scratch)
    if count < 2:
        return value
    window = min(window, count)
    span = math.log(count)
    for _ in range(moves):
        bits = _random(rng)
        i = (bits >> 30) % window
        distance = max(1, int(math.exp(((bits >> 8) & 0xFFFF) / 65536.0 * span)))
        j = i - distance if bits & 1 and i >= distance else min(count - 1, i + distance)
        if i == j:
            continue
        swaps = bits & 6 == 0
        if swaps:
            order[i], order[j] = order[j], order[i]
        else:
            _move(order, i, j)
        candidate = evaluate(jobs, running, order, count, engine, aim, prefill_tokens, scratch)
        if candidate >= value:
            value = candidate
        elif swaps:
            order[i], order[j] = order[j], order[i]
        else:
            _move(order, j, i)
    return value


@njit(nogil=True, cache=True)
def insert(
    jobs: Floats, running: int, order: Ints, count: int, engine: Floats, aim: Floats, prefill_tokens: float,
    scratch: Scratch,
) -> float:  # fmt: skip
    """Move the job at ``order[count]`` to its best place among the first `count`; returns the value.

    Tried are the end, the middle, a quarter, an eighth, ... and the head. Parameters as in `evaluate`.
    """
    best: float = evaluate(jobs, running, order, count + 1, engine, aim, prefill_tokens, scratch)
    best_place = count
    at, place = count, count // 2
    while at > 0:
        _move(order, at, place)
        at = place
        value = evaluate(jobs, running, order, count + 1, engine, aim, prefill_tokens, scratch)
        if value >= best:
            best, best_place = value, at
        place //= 2
    _move(order, at, best_place)
    return best
