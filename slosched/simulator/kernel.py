"""One engine step, and runs of steps, compiled.

The step follows the V1 scheduler of vLLM 0.32, or of 0.33 where the limits say so (``Scheduler.schedule`` and
``update_from_output``, synchronous, no speculation), decision by decision: running requests first, in list
order, each allocated its KV blocks or preempting; then waiting requests while slots, token budget and memory
last, head of line. Block identities are followed only with the prefix cache on, since only then does it
matter which block is evicted.

Time is an int64 count of picoseconds and step times are integer arithmetic, so a run of identical decode
steps in closed form equals its steps one by one, to the bit.

All functions call each other, hence one file: numba's cache key covers only the file a function is in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.jit import INNER, OUTER, ZERO, njit

# Scalars of the engine, indices into `state`.
(
    NOW,
    RUNNING,
    WAITING,
    NEXT,  # of the inbox's entries, the first that has not joined the queue
    KNOWN,  # entries of the inbox so far
    HORIZON,  # no step begins at or after this time: what arrives from then on is not known yet
    FREE,
    STEPS,
    BUSY,
    FINISHED,
    SCHEDULED,
    LOGGED,
    SAMPLES,
    STRIDE,
    TICK,
    IDLE,
    SENT,  # turns sent since the engine was last asked for them
    EXECUTED,  # steps that computed something
    LAST_PROMPT,  # the last of them that computed a prompt
    PROMPT,  # whether this step does
    PAUSE,  # whether prompts pause in this step, for the answers' sake
    CROWDED,  # whether the last step without such a pause left somebody waiting
) = range(22)
STATE_SIZE = 22

FOREVER = np.iinfo(np.int64).max
"""Horizon of an engine all of whose arrivals are known."""

# Capacity, indices into `limits`.
(
    MAX_SEQS,
    BUDGET,
    BLOCK,
    CHUNKED,
    CACHE,
    LONG_PREFILL,
    VICTIM_WORST,
    STATIC,
    ASK_ALWAYS,
    ASK_PREFILL,
    ASK_EACH,
    RECORD,
    GOES_ON,  # whether a request that preempted itself lets those behind it be served
    INTERVAL,  # steps from a prompt to the next
) = range(14)
LIMITS_SIZE = 14

# Why `advance` returned.
DONE, NEED_PLAN, PAUSED, STUCK, LOG_FULL, BAD_PLAN, REACHED, TURNS = range(8)

MAX_IDLE_STEPS = 20_000
"""Steps in a row that schedule nothing while requests wait: beyond this the policy holds them for ever."""

REJECTED = -2
"""Finish time of a request that was refused."""

REFRESHED = 8
"""Waiting requests whose prefix-cache hits are looked up again before each step, for policies to see."""


class Requests(NamedTuple):
    """Columns by row."""

    arrival_ps: Ints  # -1 for a turn that has not been sent
    arrival_s: Floats
    next_turn: Ints  # row sent after this one's answer, -1 for none
    think_ps: Ints  # pause between the answer before and this turn
    prompt: Ints
    output: Ints
    computed: Ints
    cached: Ints
    partial: Ints  # 1 where the last step computed a part of the prompt that was not its end
    generated: Ints
    served: Ints
    preemptions: Ints
    peak: Ints  # most tokens ever computed: what is computed below it again is recomputation
    recomputed: Ints
    hit: Ints  # prefix-cache tokens at first admission, -1 before
    blocks: Ints  # KV blocks held
    admitted_ps: Ints
    first_ps: Ints
    finish_ps: Ints
    think: Ints  # output tokens before the first answer token
    answer_ps: Ints  # first answer token, -1 before
    answer_s: Floats
    first_token_s: Floats
    key: Floats  # static sort key, or priority when the victim is the worst


class Queues(NamedTuple):
    """Who will come, who waits and who runs, and scratch space of a step."""

    inbox: Ints  # rows in order of their arrival at this engine
    inbox_ps: Ints  # when each arrives, ascending
    running: Ints
    turns: Ints  # rows of the turns sent and not yet taken
    waiting: Ints  # dynamic: rows by (arrival, row); static: a binary heap of rows by (key, arrival, row)
    line: Ints  # candidates of this step in order of admission
    mark: Ints  # row -> stamp of the step in which it stands in line
    rows: Ints  # scheduled in this step
    tokens: Ints
    sample_ps: Ints
    sample_waiting: Ints
    sample_running: Ints
    log_step: Ints
    log_row: Ints
    log_tokens: Ints


class Decided(NamedTuple):
    """A plan, empty and -1 where it leaves the choice; see `slosched.planner.plan.Plan`."""

    order: Ints
    hold: Ints
    preempt: Ints
    running_order: Ints
    prefill_tokens: int
    reject: Ints
    skip: Ints


class Pool(NamedTuple):
    """KV blocks by identity, used with the prefix cache only; a doubly linked list holds the free ones."""

    after: Ints  # block -> next free block; index 0 is the list's sentinel
    before: Ints
    users: Ints  # block -> requests holding it
    key: Ints  # block -> content key, -1 for none
    key_next: Ints  # block -> next block of the same content, 0 for none
    key_head: Ints  # content key -> first block of that content, 0 for none
    held: Ints  # (slot, place) -> block; two-dimensional
    slot: Ints  # row -> slot, -1 when not running
    free_slots: Ints  # stack of free slots; the last entry counts them
    full: Ints  # row -> leading blocks entered in the cache
    shared: Ints  # row -> leading blocks whose content other prompts may share
    shared_at: Ints  # row -> place of its first id in `ids`
    ids: Ints  # dense ids of prompt blocks
    ratio: Ints  # one entry: engine blocks per prompt block
    unique_at: Ints  # row -> first key of its own contents


@njit(**INNER)
def _earlier(R: Requests, a: int, b: int) -> bool:
    return bool(R.arrival_ps[a] < R.arrival_ps[b] or (R.arrival_ps[a] == R.arrival_ps[b] and a < b))


@njit(**INNER)
def _less(R: Requests, a: int, b: int) -> bool:
    return bool(R.key[a] < R.key[b] or (R.key[a] == R.key[b] and _earlier(R, a, b)))


@njit(**INNER)
def _heap_push(R: Requests, heap: Ints, size: int, row: int) -> None:
    i = size
    while i > 0:
        parent = (i - 1) // 2
        if not _less(R, row, heap[parent]):
            break
        heap[i] = heap[parent]
        i = parent
    heap[i] = row


@njit(**INNER)
def _heap_pop(R: Requests, heap: Ints, size: int) -> None:
    """Remove the head of a heap of `size` rows."""
    row = heap[size - 1]
    size -= 1
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and _less(R, heap[child + 1], heap[child]):
            child += 1
        if not _less(R, heap[child], row):
            break
        heap[i] = heap[child]
        i = child
    heap[i] = row


@njit(**INNER)
def _enqueue(R: Requests, Q: Queues, state: Ints, limits: Ints, row: int) -> None:
    """Put a row into the waiting queue."""
    n = state[WAITING]
    if limits[STATIC]:
        _heap_push(R, Q.waiting, n, row)
    else:
        i = n
        while i > 0 and _earlier(R, row, Q.waiting[i - 1]):
            Q.waiting[i] = Q.waiting[i - 1]
            i -= 1
        Q.waiting[i] = row
    state[WAITING] = n + 1


# --- KV blocks by identity ---------------------------------------------------------------------------------


@njit(**INNER)
def _unlink(P: Pool, block: int) -> None:
    P.after[P.before[block]] = P.after[block]
    P.before[P.after[block]] = P.before[block]


@njit(**INNER)
def _link_before(P: Pool, block: int, place: int) -> None:
    previous = P.before[place]
    P.after[previous] = block
    P.before[block] = previous
    P.after[block] = place
    P.before[place] = block


@njit(**INNER)
def _content(R: Requests, P: Pool, row: int, place: int) -> int:
    """Content key of the full block at `place` of a request."""
    if place < P.shared[row]:
        ratio = P.ratio[0]
        return int(P.ids[P.shared_at[row] + place // ratio] * ratio + place % ratio)
    return int(P.unique_at[row] + place - P.shared[row])


@njit(**INNER)
def _forget(P: Pool, block: int) -> None:
    """Take an evicted block out of the content index."""
    key = P.key[block]
    if key < 0:
        return
    if P.key_head[key] == block:
        P.key_head[key] = P.key_next[block]
    else:
        other = P.key_head[key]
        while P.key_next[other] != block:
            other = P.key_next[other]
        P.key_next[other] = P.key_next[block]
    P.key[block] = -1
    P.key_next[block] = 0


@njit(**INNER)
def _remember(P: Pool, block: int, key: int) -> None:
    """Enter a full block in the content index, behind earlier blocks of the same content."""
    P.key[block] = key
    P.key_next[block] = 0
    other = P.key_head[key]
    if other == 0:
        P.key_head[key] = block
        return
    while P.key_next[other] != 0:
        other = P.key_next[other]
    P.key_next[other] = block


@njit(**INNER)
def _hits(R: Requests, P: Pool, limits: Ints, row: int) -> tuple[int, int]:
    """Leading blocks of a waiting request that are in the cache, and how many of those nobody holds.

    The last token is always computed anew, so a hit covers at most its predecessors.
    """
    most = (R.prompt[row] + R.generated[row] - 1) // limits[BLOCK]
    hit = 0
    unheld = 0
    while hit < most:
        block = P.key_head[_content(R, P, row, hit)]
        if block == 0:
            break
        if P.users[block] == 0:
            unheld += 1
        hit += 1
    return hit, unheld


@njit(**INNER)
def _take_hits(R: Requests, P: Pool, state: Ints, row: int, hit: int) -> None:
    """Give a request about to run a slot and its cached blocks."""
    count = P.free_slots[-1] - 1
    P.free_slots[-1] = count
    slot = P.free_slots[count]
    P.slot[row] = slot
    for place in range(hit):
        block = P.key_head[_content(R, P, row, place)]
        if P.users[block] == 0:
            _unlink(P, block)
            state[FREE] -= 1
        P.users[block] += 1
        P.held[slot, place] = block
    R.blocks[row] = hit
    P.full[row] = hit


@njit(**INNER)
def _allocate(R: Requests, P: Pool, state: Ints, limits: Ints, row: int, upto: int) -> None:
    """Give a running request blocks for its first `upto` tokens; there are enough."""
    need = (upto + limits[BLOCK] - 1) // limits[BLOCK]
    if limits[CACHE]:
        slot = P.slot[row]
        for place in range(R.blocks[row], need):
            block = P.after[0]
            _unlink(P, block)
            _forget(P, block)
            P.users[block] = 1
            P.held[slot, place] = block
            state[FREE] -= 1
        full = min(upto, R.prompt[row] + R.generated[row]) // limits[BLOCK]
        for place in range(P.full[row], full):
            _remember(P, P.held[slot, place], _content(R, P, row, place))
        P.full[row] = max(P.full[row], full)
    else:
        state[FREE] -= max(0, need - R.blocks[row])
    R.blocks[row] = max(R.blocks[row], need)


@njit(**INNER)
def _free(R: Requests, P: Pool, state: Ints, limits: Ints, row: int) -> None:
    """Return all blocks of a request, the last first; those without content are reused first."""
    if limits[CACHE]:
        slot = P.slot[row]
        front = P.after[0]
        for place in range(R.blocks[row] - 1, -1, -1):
            block = P.held[slot, place]
            P.users[block] -= 1
            if P.users[block] == 0:
                state[FREE] += 1
                if P.key[block] < 0:
                    _link_before(P, block, front)
                else:
                    _link_before(P, block, ZERO)
                    if front == 0:
                        front = block
        P.slot[row] = -1
        P.free_slots[P.free_slots[-1]] = slot
        P.free_slots[-1] += 1
        P.full[row] = 0
    else:
        state[FREE] += R.blocks[row]
    R.blocks[row] = 0


# --- one step ----------------------------------------------------------------------------------------------


@njit(**INNER)
def _preempt(R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints, row: int) -> None:
    """Drop a request's KV and queue it again; the caller has taken it out of `running`."""
    _free(R, P, state, limits, row)
    R.computed[row] = 0
    R.preemptions[row] += 1
    _enqueue(R, Q, state, limits, row)


@njit(**INNER)
def _remove_running(Q: Queues, state: Ints, place: int) -> None:
    n = state[RUNNING]
    for i in range(place, n - 1):
        Q.running[i] = Q.running[i + 1]
    state[RUNNING] = n - 1


@njit(**INNER)
def _victim(R: Requests, Q: Queues, state: Ints, limits: Ints, skip: int) -> int:
    """Place in `running` of the request that gives up its memory; who is passed over keeps it.

    The last one, or the one with the largest (priority, arrival), the first of equals.
    """
    victim = -1
    for i in range(state[RUNNING]):
        b = Q.running[i]
        if skip > 0 and Q.mark[b] == skip:
            continue
        a = Q.running[victim]
        worse = R.key[a] < R.key[b] or (R.key[a] == R.key[b] and R.arrival_ps[a] < R.arrival_ps[b])
        if victim < 0 or worse or not limits[VICTIM_WORST]:
            victim = i
    return victim


@njit(**INNER)
def _schedule_running(
    R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints, budget: int, long_prefill: int, skip: int
) -> tuple[int, bool]:
    """Schedule running requests not marked `skip`; returns the budget left and whether one was preempted."""
    block = limits[BLOCK]
    preempted = False
    i = 0
    while i < state[RUNNING] and budget > 0:
        row = Q.running[i]
        if skip > 0 and Q.mark[row] == skip:
            i += 1
            continue
        if state[PAUSE] and R.partial[row]:
            i += 1
            continue
        new = R.prompt[row] + R.generated[row] - R.computed[row]
        if 0 < long_prefill < new:
            new = long_prefill
        new = min(new, budget)
        upto = R.computed[row] + new
        fits = True
        # Mostly the new tokens fit in the blocks it has: a product decides that, not a slow division.
        grows = upto > R.blocks[row] * block
        while grows and (upto + block - 1) // block - R.blocks[row] > state[FREE]:
            place = _victim(R, Q, state, limits, skip)
            victim = Q.running[place]
            _remove_running(Q, state, place)
            if place < i:
                i -= 1
                # A victim scheduled earlier in this step gives its tokens back.
                for k in range(state[SCHEDULED]):
                    if Q.rows[k] == victim:
                        budget += Q.tokens[k]
                        for m in range(k, state[SCHEDULED] - 1):
                            Q.rows[m] = Q.rows[m + 1]
                            Q.tokens[m] = Q.tokens[m + 1]
                        state[SCHEDULED] -= 1
                        break
            _preempt(R, Q, P, state, limits, victim)
            preempted = True
            if victim == row:
                fits = False
                break
        if not fits:
            if limits[VICTIM_WORST] and limits[GOES_ON]:
                continue
            break
        if grows or limits[CACHE]:
            _allocate(R, P, state, limits, row, upto)
        Q.rows[state[SCHEDULED]] = row
        Q.tokens[state[SCHEDULED]] = new
        state[SCHEDULED] += 1
        state[PROMPT] |= R.partial[row]
        budget -= new
        i += 1
    return budget, preempted


@njit(**INNER)
def _schedule_waiting(
    R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints, budget: int, long_prefill: int, line: int
) -> None:
    """Admit waiting requests head of line: from the heap, or from the first `line` entries of `Q.line`."""
    block = limits[BLOCK]
    at = 0
    while budget > 0 and state[RUNNING] < limits[MAX_SEQS]:
        if limits[STATIC]:
            if state[WAITING] == 0:
                break
            row = Q.waiting[0]
        else:
            if at == line:
                break
            row = Q.line[at]
        hit, unheld = ZERO, ZERO
        if limits[CACHE]:
            hit, unheld = _hits(R, P, limits, row)
            R.cached[row] = hit * block
        tokens = R.prompt[row] + R.generated[row]
        new = tokens - hit * block
        if state[PAUSE] and new > 1:
            break
        if 0 < long_prefill < new:
            new = long_prefill
        if not limits[CHUNKED] and new > budget:
            break
        new = min(new, budget)
        # The whole prompt must fit, though only this chunk is allocated.
        if (tokens + block - 1) // block - hit + unheld > state[FREE]:
            break
        if limits[CACHE]:
            _take_hits(R, P, state, row, hit)
        if limits[STATIC]:
            _heap_pop(R, Q.waiting, state[WAITING])
            state[WAITING] -= 1
        at += 1
        Q.running[state[RUNNING]] = row
        state[RUNNING] += 1
        R.computed[row] = hit * block
        state[PROMPT] |= tokens - hit * block > 1
        _allocate(R, P, state, limits, row, hit * block + new)
        if R.admitted_ps[row] < 0:
            R.admitted_ps[row] = state[NOW]
            R.hit[row] = hit * block
        Q.rows[state[SCHEDULED]] = row
        Q.tokens[state[SCHEDULED]] = new
        state[SCHEDULED] += 1
        budget -= new
    if not limits[STATIC] and at > 0:  # take the admitted, Q.line[:at], out of the waiting rows
        stamp = -state[STEPS] - 2
        for i in range(at):
            Q.mark[Q.line[i]] = stamp
        kept = 0
        for i in range(state[WAITING]):
            row = Q.waiting[i]
            if Q.mark[row] != stamp:
                Q.waiting[kept] = row
                kept += 1
        state[WAITING] = kept


@njit(**INNER)
def _duration_ps(R: Requests, Q: Queues, state: Ints, coef: Ints) -> int:
    """Duration of the scheduled step: see `StepTimeModel.coefficients_ps`."""
    prefill, decodes, kv, work2 = 0, 0, 0, 0
    for k in range(state[SCHEDULED]):
        row, new = Q.rows[k], Q.tokens[k]
        before = R.computed[row]
        if new == 1 and R.generated[row] > 0 and before + 1 == R.prompt[row] + R.generated[row]:
            decodes += 1
            kv += before
        else:
            prefill += new
            work2 += new * (2 * before + new)
    return int(
        coef[0]
        + coef[1] * prefill
        + coef[2] * decodes
        + coef[3] * kv
        + coef[5] * max(0, prefill + decodes - coef[4])
        + coef[6] * work2 // 2000
    )


@njit(**INNER)
def _answered(R: Requests, Q: Queues, state: Ints, row: int) -> None:
    """The answer of a row ends now: its client thinks, then sends the next turn."""
    turn = R.next_turn[row]
    if turn >= 0:
        R.arrival_ps[turn] = state[NOW] + R.think_ps[turn]
        R.arrival_s[turn] = R.arrival_ps[turn] * 1e-12
        Q.turns[state[SENT]] = turn
        state[SENT] += 1


@njit(**INNER)
def _finish_step(R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints) -> None:
    """Give the scheduled requests their tokens at the time now reached; free those that are done."""
    now = state[NOW]
    done = False
    for k in range(state[SCHEDULED]):
        row, new = Q.rows[k], Q.tokens[k]
        before = R.computed[row]
        after = before + new
        R.computed[row] = after
        R.served[row] += new
        if before < R.peak[row]:
            R.recomputed[row] += min(after, R.peak[row]) - before
        if after > R.peak[row]:
            R.peak[row] = after
        R.partial[row] = after < R.prompt[row] + R.generated[row]
        if not R.partial[row]:
            R.generated[row] += 1
            if R.generated[row] == 1:
                R.first_ps[row] = now
                R.first_token_s[row] = now * 1e-12
            if R.generated[row] == R.think[row] + 1:
                R.answer_ps[row] = now
                R.answer_s[row] = now * 1e-12
            if R.generated[row] == R.output[row]:
                R.finish_ps[row] = now
                _free(R, P, state, limits, row)
                _answered(R, Q, state, row)
                state[FINISHED] += 1
                done = True
    if done:
        kept = 0
        for i in range(state[RUNNING]):
            row = Q.running[i]
            if R.finish_ps[row] < 0:
                Q.running[kept] = row
                kept += 1
        state[RUNNING] = kept


@njit(**INNER)
def _sample(Q: Queues, state: Ints) -> None:
    """Record the queue's depth after admission, every STRIDE-th time; thin out when the buffer is full."""
    state[TICK] += 1
    if state[TICK] % state[STRIDE] != 0:
        return
    n = state[SAMPLES]
    if n == len(Q.sample_ps):
        for i in range(n // 2):
            Q.sample_ps[i] = Q.sample_ps[2 * i]
            Q.sample_waiting[i] = Q.sample_waiting[2 * i]
            Q.sample_running[i] = Q.sample_running[2 * i]
        n //= 2
        state[STRIDE] *= 2
    Q.sample_ps[n] = state[NOW]
    Q.sample_waiting[n] = state[WAITING]
    Q.sample_running[n] = state[RUNNING]
    state[SAMPLES] = n + 1


@njit(**INNER)
def _prompts_pause(R: Requests, Q: Queues, state: Ints, limits: Ints) -> bool:
    """Whether only answers are computed now: a prompt was a short while ago, and no queue has built up."""
    since = state[EXECUTED] + 1 - state[LAST_PROMPT]
    if since >= limits[INTERVAL] or state[CROWDED]:
        return False
    for i in range(state[RUNNING]):  # noqa: SIM110
        if not R.partial[Q.running[i]]:
            return True
    return False


@njit(**INNER)
def _share_out(
    R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints, budget: int, line: int, skip: int
) -> None:
    """Give a step's budget to running requests not marked `skip`, then to waiting ones if memory lasted."""
    several = state[RUNNING] + state[WAITING] > 1
    long_prefill = limits[LONG_PREFILL] if several else 0
    state[PAUSE] = _prompts_pause(R, Q, state, limits)
    left, preempted = _schedule_running(R, Q, P, state, limits, budget, long_prefill, skip)
    if not preempted:
        _schedule_waiting(R, Q, P, state, limits, left, long_prefill, line)
        if not state[PAUSE]:
            state[CROWDED] = state[WAITING] > 0


@njit(**INNER)
def _step(
    R: Requests,
    Q: Queues,
    P: Pool,
    state: Ints,
    limits: Ints,
    coef: Ints,
    budget: int,
    line: int,
    skip: int,
    skipless: int,
) -> None:
    """Schedule one step and carry it out; running rows with the mark `skip` above 0 are passed over.

    If that leaves nothing to run, the step is scheduled again with nobody passed over and the budget
    `skipless`.
    """
    state[SCHEDULED] = state[PROMPT] = 0
    _share_out(R, Q, P, state, limits, budget, line, skip)
    if skip > 0 and state[SCHEDULED] == 0:  # never an empty step while somebody runs
        _share_out(R, Q, P, state, limits, skipless, line, 0)
    state[EXECUTED] += state[SCHEDULED] > 0
    if state[PROMPT]:
        state[LAST_PROMPT] = state[EXECUTED]
    _sample(Q, state)
    if limits[RECORD]:
        for k in range(state[SCHEDULED]):
            at = state[LOGGED]
            Q.log_step[at], Q.log_row[at], Q.log_tokens[at] = state[STEPS], Q.rows[k], Q.tokens[k]
            state[LOGGED] += 1
    if state[SCHEDULED] == 0:
        state[IDLE] += 1
        duration = coef[0]
    else:
        state[IDLE] = 0
        duration = _duration_ps(R, Q, state, coef)
        state[BUSY] += duration
    state[NOW] += duration
    state[STEPS] += 1
    _finish_step(R, Q, P, state, limits)


@njit(**INNER)
def _run_ps(coef: Ints, steps: int, sequences: int, kv: int) -> int:
    """Duration of a run of decode steps; the context grows by one token a sequence and step."""
    constant = coef[0] + coef[2] * sequences + coef[5] * max(0, sequences - coef[4])
    return int(steps * constant + coef[3] * (steps * kv + sequences * (steps * (steps - 1) // 2)))


@njit(**INNER)
def _decode_run(R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints, coef: Ints, stop_ps: int) -> bool:
    """Carry out, in one go, all steps until somebody finishes or ends thinking, memory runs short or
    `stop_ps` is passed.

    Valid only while nobody can be admitted. Returns False, having done nothing, where the next step is not
    a plain decode step of all running requests.
    """
    n = state[RUNNING]
    if n == 0 or n > limits[BUDGET] or limits[RECORD] or limits[INTERVAL] > 1:
        return False
    kv = 0
    steps = 1 << 40
    for i in range(n):
        row = Q.running[i]
        # The last token of a prompt, left over alone by the chunks before it, is no decode.
        if R.generated[row] == 0 or R.computed[row] + 1 != R.prompt[row] + R.generated[row]:
            return False
        kv += R.computed[row]
        steps = min(steps, int(R.output[row] - R.generated[row]))
        if R.generated[row] <= R.think[row]:
            steps = min(steps, int(R.think[row] + 1 - R.generated[row]))
    while n * (steps // limits[BLOCK] + 1) > state[FREE]:
        steps //= 2
        if steps == 0:
            return False
    if stop_ps >= 0:
        # The run may last until the first step boundary at or after stop_ps.
        low, high = 1, steps
        while low < high:
            middle = (low + high) // 2
            if state[NOW] + _run_ps(coef, middle, n, kv) >= stop_ps:
                high = middle
            else:
                low = middle + 1
        steps = low
    duration = _run_ps(coef, steps, n, kv)
    _sample(Q, state)
    state[NOW] += duration
    state[BUSY] += duration
    state[STEPS] += steps
    done = False
    for i in range(n):
        row = Q.running[i]
        R.generated[row] += steps - 1  # blocks fill with tokens known by then
        _allocate(R, P, state, limits, row, R.computed[row] + steps)
        R.generated[row] += 1
        R.computed[row] += steps
        R.served[row] += steps
        R.peak[row] = max(R.peak[row], R.computed[row])
        if R.generated[row] == R.think[row] + 1:
            R.answer_ps[row] = state[NOW]
            R.answer_s[row] = state[NOW] * 1e-12
        if R.generated[row] == R.output[row]:
            R.finish_ps[row] = state[NOW]
            done = True
    if done:
        kept = 0
        for i in range(n):
            row = Q.running[i]
            if R.finish_ps[row] < 0:
                Q.running[kept] = row
                kept += 1
            else:
                _free(R, P, state, limits, row)
                _answered(R, Q, state, row)
                state[FINISHED] += 1
        state[RUNNING] = kept
    return True


# --- who may be admitted -----------------------------------------------------------------------------------


@njit(**INNER)
def _nobody_fits(R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints) -> bool:
    """Whether no order of the waiting requests would admit anybody now."""
    if state[WAITING] == 0 or state[RUNNING] >= limits[MAX_SEQS]:
        return True
    block = limits[BLOCK]
    if limits[STATIC]:
        row = Q.waiting[0]
        need = (R.prompt[row] + R.generated[row] + block - 1) // block
        if need <= state[FREE]:
            return False
        if limits[CACHE]:
            hit, unheld = _hits(R, P, limits, row)
            return bool(need - hit + unheld > state[FREE])
        return True
    demand = 0
    for i in range(state[RUNNING]):
        row = Q.running[i]
        demand += R.prompt[row] + R.generated[row] - R.computed[row]
    if demand >= limits[BUDGET] and not limits[LONG_PREFILL]:
        return True
    for i in range(state[WAITING]):
        row = Q.waiting[i]
        need = (R.prompt[row] + R.generated[row] + block - 1) // block
        if need <= state[FREE]:
            return False
        if limits[CACHE]:
            hit, unheld = _hits(R, P, limits, row)
            if need - hit + unheld <= state[FREE]:
                return False
    return True


@njit(**INNER)
def _in_prefill(R: Requests, Q: Queues, state: Ints) -> bool:
    """Whether a running request has more than the next token to compute."""
    for i in range(state[RUNNING]):
        row = Q.running[i]
        if R.computed[row] + 1 < R.prompt[row] + R.generated[row]:
            return True
    return False


@njit(**INNER)
def _arrivals(R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints) -> None:
    """Queue everybody who has arrived by now."""
    while state[NEXT] < state[KNOWN] and Q.inbox_ps[state[NEXT]] <= state[NOW]:
        row = Q.inbox[state[NEXT]]
        _enqueue(R, Q, state, limits, row)
        if limits[CACHE]:
            R.cached[row] = _hits(R, P, limits, row)[0] * limits[BLOCK]
        state[NEXT] += 1


@njit(**INNER)
def _refresh_hits(R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints) -> None:
    """Look up again what the prefix cache holds of a few waiting requests, in turn."""
    n = state[WAITING]
    for i in range(min(n, REFRESHED)):
        row = Q.waiting[(state[STEPS] * REFRESHED + i) % n]
        R.cached[row] = _hits(R, P, limits, row)[0] * limits[BLOCK]


@njit(**INNER)
def _next_change_ps(Q: Queues, state: Ints, limits: Ints) -> int:
    """When a run of steps that only decode must end at the latest; -1 for never.

    A newcomer changes nothing while the slots are full, nor behind a static head that does not fit unless it
    may overtake; then the run ends at its arrival.
    """
    full = state[RUNNING] >= limits[MAX_SEQS] and not limits[ASK_ALWAYS]
    stop_ps = -1 if full or state[NEXT] == state[KNOWN] else Q.inbox_ps[state[NEXT]]
    if state[HORIZON] != FOREVER:
        stop_ps = state[HORIZON] if stop_ps < 0 else min(stop_ps, state[HORIZON])
    return int(stop_ps)


@njit(**OUTER)
def advance(R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints, coef: Ints, max_steps: int) -> int:
    """Run the engine until it is done, needs a plan, has reached its horizon, or has done `max_steps` steps.

    It also stops when an answer has ended that another turn follows, with the turn in `Q.turns`.

    A run of steps in closed form counts as one. An engine with nothing left to do is done; it goes on when
    its inbox grows.
    """
    for _ in range(max_steps):
        if state[SENT] > 0:
            return TURNS
        if state[NOW] >= state[HORIZON]:
            return REACHED
        if limits[RECORD] and state[LOGGED] + limits[MAX_SEQS] > len(Q.log_row):
            return LOG_FULL
        _arrivals(R, Q, P, state, limits)
        if state[RUNNING] == 0 and state[WAITING] == 0:
            if state[NEXT] == state[KNOWN]:
                return DONE
            if Q.inbox_ps[state[NEXT]] >= state[HORIZON]:
                return REACHED
            state[NOW] = Q.inbox_ps[state[NEXT]]
            continue
        blocked = _nobody_fits(R, Q, P, state, limits)
        if not limits[STATIC] and state[WAITING] > 0 and (limits[ASK_ALWAYS] or not blocked):
            if limits[CACHE]:  # only here, so that runs of steps in closed form change nothing
                _refresh_hits(R, Q, P, state, limits)
            return NEED_PLAN
        if limits[ASK_EACH] or (limits[ASK_PREFILL] and _in_prefill(R, Q, state)):
            return NEED_PLAN
        if blocked and _decode_run(R, Q, P, state, limits, coef, _next_change_ps(Q, state, limits)):
            continue
        _step(R, Q, P, state, limits, coef, limits[BUDGET], ZERO, ZERO, ZERO)
        if state[IDLE] > MAX_IDLE_STEPS:
            return STUCK
    return PAUSED


@njit(**OUTER)
def withdraw(R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints, row: int) -> bool:
    """Take a request out that waits, or is on its way, and has computed nothing; False where it has begun."""
    for i in range(state[NEXT], state[KNOWN]):
        if Q.inbox[i] == row:
            for j in range(i + 1, state[KNOWN]):
                Q.inbox[j - 1], Q.inbox_ps[j - 1] = Q.inbox[j], Q.inbox_ps[j]
            state[KNOWN] -= 1
            return True
    if R.served[row] > 0:
        return False
    place = 0
    while place < state[WAITING] and Q.waiting[place] != row:
        place += 1
    if place == state[WAITING]:
        return False
    if limits[STATIC]:
        n, kept = state[WAITING], ZERO
        for i in range(n):  # the heap built again, in place: an entry moves only to where one was read
            other = Q.waiting[i]
            if other != row:
                _heap_push(R, Q.waiting, kept, other)
                kept += 1
    else:
        for i in range(place + 1, state[WAITING]):
            Q.waiting[i - 1] = Q.waiting[i]
    state[WAITING] -= 1
    return True


@njit(**INNER)
def _are_rows(R: Requests, rows: Ints) -> bool:
    """Whether all numbers are rows of the workload: compiled code does not check bounds."""
    for row in rows:  # noqa: SIM110
        if row < 0 or row >= len(R.prompt):
            return False
    return True


@njit(**INNER)
def _reject(R: Requests, Q: Queues, state: Ints, refused: int) -> None:
    """Take the waiting rows with the mark `refused` out for good."""
    kept = 0
    for i in range(state[WAITING]):
        row = Q.waiting[i]
        if Q.mark[row] == refused:
            R.finish_ps[row] = REJECTED
            state[FINISHED] += 1
        else:
            Q.waiting[kept] = row
            kept += 1
    state[WAITING] = kept


@njit(**INNER)
def _reorder(Q: Queues, state: Ints, running_order: Ints, mark: int) -> bool:
    """Put the running rows in a new order; False unless it is all of them, each once."""
    n = state[RUNNING]
    if len(running_order) != n:
        return False
    for i in range(n):
        Q.mark[Q.running[i]] = mark
    for i in range(n):
        if Q.mark[running_order[i]] != mark:
            return False
        Q.mark[running_order[i]] = 0
    for i in range(n):
        Q.running[i] = running_order[i]
    return True


@njit(**INNER)
def _mark_skipped(Q: Queues, state: Ints, skip: Ints, mark: int, skipped: int) -> bool:
    """Mark the running rows that get no tokens; False unless they run, each once."""
    for i in range(state[RUNNING]):
        Q.mark[Q.running[i]] = mark
    for i in range(len(skip)):
        if Q.mark[skip[i]] != mark:
            return False
        Q.mark[skip[i]] = skipped
    for i in range(state[RUNNING]):
        if Q.mark[Q.running[i]] == mark:
            Q.mark[Q.running[i]] = 0
    return True


@njit(**INNER)
def _mark_waiting(
    Q: Queues, state: Ints, decided: Decided, mark: int, taken: int, refused: int
) -> bool:  # fmt: skip
    """Mark the waiting rows as open, held (taken) or refused; False if a row does not wait or comes twice."""
    for i in range(state[WAITING]):
        Q.mark[Q.waiting[i]] = mark
    for row in decided.reject:
        if Q.mark[row] != mark:
            return False
        Q.mark[row] = refused
    for row in decided.hold:
        if Q.mark[row] == mark:
            Q.mark[row] = taken
        elif Q.mark[row] != refused:
            return False
    return True


@njit(**INNER)
def _preempt_all(R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints, rows: Ints) -> bool:
    """Preempt running rows; False if one does not run."""
    for row in rows:
        place = ZERO
        while place < state[RUNNING] and Q.running[place] != row:
            place += 1
        if place == state[RUNNING]:
            return False
        _remove_running(Q, state, place)
        _preempt(R, Q, P, state, limits, row)
    return True


@njit(**INNER)
def _line_up(Q: Queues, state: Ints, order: Ints, mark: int, taken: int, refused: int) -> int:
    """Write who may be admitted to `Q.line`, those of `order` first; returns how many, -1 for a wrong row."""
    line = 0
    for row in order:
        if Q.mark[row] == mark:
            Q.mark[row] = taken
            Q.line[line] = row
            line += 1
        elif Q.mark[row] != taken and Q.mark[row] != refused:
            return -1
    for i in range(state[WAITING]):
        row = Q.waiting[i]
        if Q.mark[row] == mark:
            Q.line[line] = row
            line += 1
    return line


@njit(**INNER)
def _decoding(R: Requests, Q: Queues, state: Ints, skipped: int) -> tuple[int, int]:
    """How many running rows decode, and how many of them are passed over."""
    decodes, passed = 0, 0
    for i in range(state[RUNNING]):
        row = Q.running[i]
        if R.computed[row] + 1 == R.prompt[row] + R.generated[row]:
            decodes += 1
            passed += Q.mark[row] == skipped
    return decodes, passed


@njit(**OUTER)
def apply_plan(
    R: Requests, Q: Queues, P: Pool, state: Ints, limits: Ints, coef: Ints, decided: Decided
) -> int:  # fmt: skip
    """Carry out one step as planned."""
    open_ = 4 * state[STEPS] + 2
    taken, refused, skipped = open_ + 1, open_ + 2, open_ + 3
    if not (
        _are_rows(R, decided.order) and _are_rows(R, decided.hold) and _are_rows(R, decided.running_order)
        and _are_rows(R, decided.reject) and _are_rows(R, decided.skip)
    ):  # fmt: skip
        return BAD_PLAN
    if len(decided.running_order) > 0 and not _reorder(Q, state, decided.running_order, open_):
        return BAD_PLAN
    if len(decided.skip) > 0 and not _mark_skipped(Q, state, decided.skip, open_, skipped):
        return BAD_PLAN
    if not _mark_waiting(Q, state, decided, open_, taken, refused):
        return BAD_PLAN
    if len(decided.reject) > 0:
        _reject(R, Q, state, refused)
    # A row preempted now is not marked open: the step that preempts it must not admit it again.
    if not _preempt_all(R, Q, P, state, limits, decided.preempt):
        return BAD_PLAN
    line = _line_up(Q, state, decided.order, open_, taken, refused)
    if line < 0:
        return BAD_PLAN
    budget = skipless = limits[BUDGET]
    if decided.prefill_tokens >= 0:
        decodes, passed = _decoding(R, Q, state, skipped)
        budget = min(budget, decodes - passed + decided.prefill_tokens)
        skipless = min(skipless, decodes + decided.prefill_tokens)
    if state[RUNNING] == 0 and state[WAITING] == 0:  # all were refused
        return PAUSED
    _step(R, Q, P, state, limits, coef, budget, line, skipped if len(decided.skip) > 0 else 0, skipless)
    return STUCK if state[IDLE] > MAX_IDLE_STEPS else PAUSED
