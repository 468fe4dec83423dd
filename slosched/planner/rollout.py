"""A rule rolled forward, step by step, on one possible future of the engine.

A *rule* (`Rule`) decides everything about a step from the state of the engine: who goes next, how many prompt
tokens the step holds, who is held back, who is parked. `rollout` plays the engine under a rule, from now
until a horizon, against requests that wait or run now and requests that are expected to arrive. It adds up
the weight of those that keep their limits. So a rule is judged as a policy, by what becomes of everybody,
with later arrivals overtaking and with its own pacing at work.

One engine step of the model:

1. Requests that have arrived by now join the queue.
2. The pace: the tightest time per token with which a running answer still keeps its limits. Answers that
   cannot keep them at all do not count. The step is to take `SAFE` of it.
3. The step's room: the most prompt tokens with which the step takes that long, at least
   `LEAST_TOKENS`, at most the rule's cap.
4. The queue in the order of the rule's key fills the room; a newcomer needs a slot and memory, and none may
   enter whose decoding alone would break the tightest pace. A prompt that has begun competes by its key, too.
5. Every answer gets a token; prompts that are complete get their first.

Steps without prompts are jumped over in closed form. All kernels that share a constant stand in this file,
since numba's cache looks only at a function's own file.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slosched.core.jit import INNER, OUTER, ZERO, njit
from slosched.core.table import RequestTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SAFE = 0.9
"""Share of the tightest pace that a step may take; the rest is for errors of the step-time model."""

LEAST_TOKENS = 16.0
"""Prompt tokens that a step may always hold: one KV block, so that no prompt stands still."""

PARKED = 1e15
"""Added to the sort key of a parked request: more than any due time."""

ADJOURNED = 0.5
"""Least share of the luck of others that a request has which waits at the horizon and can still be met."""

FAR_S = 1e9
"""Seconds left of who has no limit on waiting: more than any work."""

GROWTH = 0.25
"""`slosched.core.forecast.OUTLIVED_GROWTH`, here for the compiler's cache: an answer that has outlived its
forecast is believed to go on for this share of its present length."""

TO_THE_KNEE = 0.0
"""As a rule's cap: no more prompt tokens than up to the knee, beyond which a step costs more for each."""

AS_NOW = np.inf
"""As a rule's slow: answers take what a decode step of the engine takes now."""

LATENCY = 0.01
"""What waiting for the first token costs, as a share of the weight for a wait as long as the limit allows: it
decides between rules that keep the same limits."""

# Places are numbers without a sign: an index below 0 counts from the end, and to ask for that at each of 500
# places takes a fifteenth of the time of compiling.
#
# Entries of `engine`: seconds, tokens and requests of the step-time model and the limits; free KV tokens; the
# present; seconds of a decode step as it is now and of its share that one more answer takes.
(
    BASE, SEQUENCE, KV_TOKEN, PREFILL_TOKEN, ATTENTION, KNEE_TOKENS, KNEE_TOKEN, BUDGET, SLOTS, FREE,
    NOW, STEP, SHARE, ENGINE_SIZE,
) = map(np.uint64, range(14))  # fmt: skip

TIMES = (BASE, SEQUENCE, KV_TOKEN, PREFILL_TOKEN, ATTENTION, KNEE_TOKEN, STEP, SHARE)
"""Entries of `engine` in seconds."""

# Entries of `Work.counts`: waiting, parked, begun prompts, those with tokens in this step; answers that have
# ended, and those of them that kept their limits.
WAITING, ASIDE, OPEN, CHOSEN, ENDED, KEPT, COUNTS = map(np.uint64, range(7))

# Entries of a rule.
URGENCY, PRICE, SLOW, WHOLE, CAUTION, ANSWER, CAP, SPREAD, RULE_SIZE = map(np.uint64, range(9))

# Columns of `jobs`, one row a request: running ones first, then waiting ones, then those yet to come.
(
    RELEASE,  # clock time from which it can be served
    TODO,  # prompt tokens still to be computed, 0 in decode
    HAVE,  # context tokens in the cache before that
    LEFT,  # output tokens to come as believed, at least 1
    TRUTH,  # output tokens to come in this future, at least 1
    GENERATED,  # output tokens so far
    FIRST,  # clock time of the first token; NaN before
    ARRIVAL,  # clock time of arrival
    FIRST_DUE,  # clock time by which the first token is due; infinity for no limit
    E2E_DUE,  # clock time by which the whole answer is due; infinity for no limit
    TPOT,  # limit on seconds per output token; infinity for no limit
    WEIGHT,  # what keeping its limits is worth
    DRIFT,  # by how much LEFT changes with each token: -1 if the forecast is certain, more if it is wide
    COLUMNS,
) = map(np.uint64, range(14))  # fmt: skip


class Rule(NamedTuple):
    """How a step is decided.

    Parameters
    ----------
    urgency
        What due time the sort key counts: 0 for none, 1 for when the first token must come for all limits to
        be kept, 2 for when the next limit runs out, be it the first token's or the whole answer's.
    price
        Seconds that a second of engine work per unit of weight counts in the sort key, at least 0. Urgency 1
        and price 0 is earliest due first; urgency 0 is most weight per work first.
    slow
        A request is parked as lost once its answer would end too late if it took so many times what it takes
        alone, at least 0, or at the pace of now (`AS_NOW`).
    whole
        Whether end-to-end limits pace running answers, as TPOT limits do.
    caution
        A request is parked as lost once its prompt, computed at this many times its cost alone, would be too
        late, at least 1.
    answer
        What a second of decoding counts as work, 0 or 1; a second of prompt counts 1.
    cap
        Prompt tokens that a step holds at most, at least 1; infinity for none, `TO_THE_KNEE` for those
        that are cheap.
    spread
        Whether an answer that is ahead of its pace spends that evenly on all tokens to come, or at once.
    """

    urgency: float
    price: float
    slow: float
    whole: float
    caution: float
    answer: float
    cap: float
    spread: float


class Work(NamedTuple):
    """Work space of `rollout`; overwritten by each call."""

    jobs: Floats  # (n, COLUMNS)
    key: Floats  # (n,)
    heap: Ints  # waiting jobs by (key, job)
    parked: Ints  # parked jobs by (key, job)
    begun: Ints  # prompts that have begun, in no order
    decoding: Ints  # jobs that decode
    chosen: Ints  # jobs that get prompt tokens in this step
    tokens: Floats  # how many
    seen: Floats  # decode step up to which a job is brought up to date
    met: Floats  # 1 kept, 0 missed, between for a guess at the horizon
    counts: Ints  # see `WAITING`


def work_for(n: int) -> Work:
    """Work space for `n` jobs."""
    heap, parked, begun, decoding, chosen = (np.empty(n, dtype=np.int64) for _ in range(5))
    return Work(
        np.empty((n, COLUMNS)), np.empty(n), heap, parked, begun, decoding, chosen, np.empty(n),
        np.empty(n), np.empty(n), np.zeros(COUNTS, dtype=np.int64),
    )  # fmt: skip


@njit(**INNER)
def room_tokens(
    engine: Floats, decoding: float, context: float, token_s: float, step_s: float, cap: float
) -> float:
    """Prompt tokens of `token_s` seconds each with which a step beside these answers takes `step_s`."""
    if cap == TO_THE_KNEE:
        cap = max(LEAST_TOKENS, engine[KNEE_TOKENS] - decoding) if engine[KNEE_TOKENS] > 0.0 else np.inf
    most = min(engine[BUDGET] - decoding, cap)
    if step_s == np.inf:
        return float(max(1.0, most))
    alone_s = engine[BASE] + engine[SEQUENCE] * decoding + engine[KV_TOKEN] * context
    left_s = step_s - alone_s - engine[KNEE_TOKEN] * max(0.0, decoding - engine[KNEE_TOKENS])
    below = max(0.0, engine[KNEE_TOKENS] - decoding)
    room = left_s / token_s
    if room > below:
        room = max(below, (left_s + engine[KNEE_TOKEN] * below) / (token_s + engine[KNEE_TOKEN]))
    return float(max(1.0, min(most, max(LEAST_TOKENS, np.floor(room)))))


@njit(**INNER)
def pace_s(jobs: Floats, j: int, now_s: float, whole: float, spread: float) -> float:
    """Seconds per token that a running answer may take from now on; infinity if no limit binds."""
    own = np.inf
    if jobs[j, FIRST] > jobs[j, FIRST_DUE] or now_s > jobs[j, E2E_DUE]:
        return np.inf
    left = max(1.0, jobs[j, LEFT])
    if jobs[j, TPOT] < np.inf:
        saved = jobs[j, TPOT] * (jobs[j, GENERATED] - 1.0) - (now_s - jobs[j, FIRST])
        own = jobs[j, TPOT] + (saved / left if spread > 0.0 or saved < 0.0 else saved)
    if whole > 0.0 and jobs[j, E2E_DUE] < np.inf:
        own = min(own, (jobs[j, E2E_DUE] - now_s) / left)
    return float(own)


@njit(**INNER)
def token_cost_s(engine: Floats, jobs: Floats, j: int) -> float:
    """Seconds for each prompt token of a job, beyond the knee."""
    return float(engine[PREFILL_TOKEN] + engine[ATTENTION] * (jobs[j, HAVE] + 0.5 * jobs[j, TODO]))


@njit(**INNER)
def work_s(engine: Floats, jobs: Floats, j: int, answer: float) -> float:
    """Engine seconds that a job takes: its prompt, and its share of the steps in which it decodes."""
    prompt = jobs[j, TODO] * (token_cost_s(engine, jobs, j) + engine[KNEE_TOKEN])
    return float(prompt + answer * jobs[j, LEFT] * engine[SHARE])


@njit(**INNER)
def due_s(engine: Floats, jobs: Floats, j: int) -> float:
    """Clock time by which the first token is due if all limits are to be kept; infinity for best effort."""
    due = jobs[j, FIRST_DUE] if jobs[j, GENERATED] == 0.0 else np.inf
    if jobs[j, E2E_DUE] < np.inf:
        pace = min(engine[STEP], jobs[j, TPOT])
        due = min(due, jobs[j, E2E_DUE] - jobs[j, LEFT] * pace)
    if due == np.inf and jobs[j, TPOT] < np.inf:
        return float(jobs[j, ARRIVAL] + 1e4)  # no limit on waiting: behind all that have one, by arrival
    return float(due)


@njit(**INNER)
def _next_due_s(jobs: Floats, j: int) -> float:
    """Clock time at which the next thing is due, however long it takes; infinity for no limit on waiting."""
    if jobs[j, GENERATED] > 0.0:
        return float(jobs[j, E2E_DUE])
    return float(min(jobs[j, FIRST_DUE], jobs[j, E2E_DUE]))


@njit(**INNER)
def lost(engine: Floats, jobs: Floats, j: int, now_s: float, caution: float, slow: float) -> bool:
    """Whether a job without a running answer will miss a limit whatever is done."""
    if jobs[j, GENERATED] > 0.0 and jobs[j, FIRST] > jobs[j, FIRST_DUE]:
        return True
    cost = token_cost_s(engine, jobs, j) + engine[KNEE_TOKEN]
    first = now_s + engine[BASE] + caution * jobs[j, TODO] * cost
    if jobs[j, GENERATED] == 0.0 and first > jobs[j, FIRST_DUE]:
        return True
    alone = engine[BASE] + engine[SEQUENCE] + engine[KV_TOKEN] * (jobs[j, HAVE] + jobs[j, TODO])
    pace = max(alone, engine[STEP]) if slow == AS_NOW else slow * alone
    if first + (jobs[j, LEFT] - 1.0) * pace > jobs[j, E2E_DUE]:
        return True
    return bool(alone > jobs[j, TPOT] and jobs[j, LEFT] > 1.5)


@njit(**INNER)
def rule_key(engine: Floats, jobs: Floats, j: int, rule: Floats) -> float:
    """Sort key of a job, smaller first."""
    key = 0.0
    if rule[URGENCY] > 0.0:
        due = due_s(engine, jobs, j) if rule[URGENCY] < 2.0 else _next_due_s(jobs, j)
        key = due if due < np.inf else 1e9 + jobs[j, ARRIVAL]
    if rule[PRICE] > 0.0:
        key += rule[PRICE] * work_s(engine, jobs, j, rule[ANSWER]) / max(1e-9, jobs[j, WEIGHT])
    return float(key)


@njit(**INNER)
def _push(heap: Ints, size: int, key: Floats, job: int) -> None:
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        other = heap[parent]
        if key[other] < key[job] or (key[other] == key[job] and other < job):
            break
        heap[i] = other
        i = parent
    heap[i] = job


@njit(**INNER)
def _pop(heap: Ints, size: int, key: Floats) -> None:
    size -= 1
    job = heap[size]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        a = heap[child]
        if child + 1 < size:
            b = heap[child + 1]
            if key[b] < key[a] or (key[b] == key[a] and b < a):
                child, a = child + 1, b
        if key[job] < key[a] or (key[job] == key[a] and job < a):
            break
        heap[i] = a
        i = child
    heap[i] = job


@njit(**INNER)
def _slack(jobs: Floats, j: int, now: float) -> float:
    """Seconds that the rest of an answer, as long as it is in this future, may take."""
    slack = jobs[j, E2E_DUE] - now
    if jobs[j, TPOT] < np.inf:
        whole = max(1.0, jobs[j, GENERATED] + jobs[j, TRUTH] - 1.0)
        slack = min(slack, jobs[j, TPOT] * whole - (now - jobs[j, FIRST]))
    return float(slack)


@njit(**INNER)
def _kept(jobs: Floats, j: int, finish_s: float) -> bool:
    """Whether a job that ends now kept all its limits; GENERATED is its whole answer."""
    if jobs[j, FIRST] > jobs[j, FIRST_DUE] or finish_s > jobs[j, E2E_DUE]:
        return False
    if jobs[j, TPOT] < np.inf:
        return bool(
            finish_s - jobs[j, FIRST] <= jobs[j, TPOT] * max(1.0, jobs[j, GENERATED] - 1.0) * (1 + 1e-9)
        )
    return True


@njit(**INNER)
def _begun(W: Work, engine: Floats, now: float, open_: int) -> tuple[int, int, bool]:
    """The begun prompt to go on with, -1 if there is none; its place; whether it is lost."""
    job, place, aloof = -1, -1, False
    for x in range(open_):
        j = W.begun[x]
        gone = lost(engine, W.jobs, j, now, 1.0, 0.0)
        if job < 0 or (gone, W.key[j], j) < (aloof, W.key[job], job):
            job, place, aloof = j, x, gone
    return job, place, aloof


@njit(**INNER)
def _park(W: Work, engine: Floats, rule: Floats, now: float, waiting: int, aside: int) -> tuple[int, int]:
    """Put lost requests at the head of the queue aside; how many wait then, and how many are parked."""
    while waiting > 0:
        head = W.heap[0]
        if not lost(engine, W.jobs, head, now, rule[CAUTION], rule[SLOW]):
            break
        _pop(W.heap, waiting, W.key)
        waiting -= 1
        _push(W.parked, aside, W.key, head)
        aside += 1
    return waiting, aside


@njit(**INNER)
def _enters(
    jobs: Floats, head: int, engine: Floats, alone: float, tight: float, decoding: int, running: int,
    joined: int, free: float,
) -> bool:  # fmt: skip
    """Whether a newcomer finds a slot and memory, and its decoding leaves the tightest pace alone."""
    if running >= engine[SLOTS]:
        return False
    need = jobs[head, HAVE] + jobs[head, TODO]
    if need > free and running > 0:
        return False
    if decoding == 0:
        return True
    more = alone + engine[SEQUENCE] * (joined + 1.0)
    more += engine[KV_TOKEN] * need
    return bool(more <= SAFE * min(tight, max(jobs[head, TPOT], alone / SAFE)))


@njit(**INNER)
def _in_time(
    jobs: Floats, job: int, take: float, engine: Floats, begin: float, beside: float, soonest: float,
    due: float,
) -> float:  # fmt: skip
    """Prompt tokens of a job that joins others in a step; 0 if a first token would be late.

    First tokens come as the step ends, which begins at `begin` if it holds what is chosen already; `beside`
    is what it holds.
    """
    cost = engine[PREFILL_TOKEN] + engine[ATTENTION] * (jobs[job, HAVE] + 0.5 * take)
    over = max(0.0, beside + take - engine[KNEE_TOKENS])
    late = begin + take * cost + engine[KNEE_TOKEN] * over - soonest
    if late > 0.0:
        return float(take - np.ceil(late / (cost + engine[KNEE_TOKEN])))
    if take == jobs[job, TODO] and late + soonest > due:
        return 0.0
    return take


@njit(**INNER)
def _fill(
    W: Work, engine: Floats, rule: Floats, now: float, tight: float, answers: int, context: float, free: float
) -> tuple[float, float, int, float]:  # fmt: skip
    """Fill one step with prompts in the order of the rule's key.

    Parameters
    ----------
    W
        Queues and jobs, brought up to date; `W.counts` holds the queues' lengths. Afterwards the first
        ``W.counts[CHOSEN]`` entries of `W.chosen` and `W.tokens` tell who gets how many tokens, and prompts
        that end in this step stand behind the first `answers` entries of `W.decoding`.
    engine, rule, now
        As in `rollout`.
    tight
        The tightest pace of an answer, seconds per token.
    answers, context
        Running requests that decode, and their tokens of context.
    free
        KV tokens free.

    Returns
    -------
    tuple
        Prompt tokens of the step, their seconds, prompts that end in it, KV tokens free after it.
    """
    jobs, key, counts = W.jobs, W.key, W.counts
    heap, parked, begun, decoding = W.heap, W.parked, W.begun, W.decoding
    waiting, aside, open_ = counts[WAITING], counts[ASIDE], counts[OPEN]
    room, filled, seconds = -1.0, 0.0, 0.0
    joined, chosen = ZERO, 0
    alone = engine[BASE] + engine[SEQUENCE] * answers + engine[KV_TOKEN] * context
    soonest = np.inf  # when the first tokens of this step are due
    while True:
        job, place, aloof = _begun(W, engine, now, open_)
        waiting, aside = _park(W, engine, rule, now, waiting, aside)
        fresh, idle, head = False, False, -1
        if waiting > 0:
            head = heap[0]
        elif aside > 0 and open_ == 0 and filled == 0.0:
            head, idle = parked[0], True
        first = head >= 0 and (job < 0 or (aloof and not idle) or (key[head], head) < (key[job], job))
        if first and _enters(
            jobs, head, engine, alone, tight, answers + joined, answers + open_ + joined, joined, free
        ):
            job, fresh = head, True
        if job < 0:
            break
        if room < 0.0:
            cost = token_cost_s(engine, jobs, job)
            room = room_tokens(engine, answers, context, cost, SAFE * tight, rule[CAP])
        take = min(room - filled, jobs[job, TODO])
        due = jobs[job, FIRST_DUE] if jobs[job, GENERATED] == 0.0 and not idle else np.inf
        if chosen > 0 and min(soonest, due) < np.inf:
            take = _in_time(jobs, job, take, engine, now + alone + seconds, answers + filled, soonest, due)
        if take < 1.0:
            break
        if fresh:
            if idle:
                _pop(parked, aside, key)
                aside -= 1
            else:
                _pop(heap, waiting, key)
                waiting -= 1
            free -= jobs[job, HAVE] + jobs[job, TODO]
            begun[open_] = job
            place = open_
            open_ += 1
        filled += take
        seconds += take * (engine[PREFILL_TOKEN] + engine[ATTENTION] * (jobs[job, HAVE] + 0.5 * take))
        jobs[job, TODO] -= take
        jobs[job, HAVE] += take
        W.chosen[chosen], W.tokens[chosen] = job, take
        chosen += 1
        if jobs[job, TODO] > 0.0:
            break
        if now + alone + seconds <= due:
            soonest = min(soonest, due)
        open_ -= 1
        begun[place] = begun[open_]
        decoding[answers + joined] = job
        joined += 1
    counts[WAITING], counts[ASIDE], counts[OPEN], counts[CHOSEN] = waiting, aside, open_, chosen
    return filled, seconds, joined, free


@njit(**INNER)
def _tightest(W: Work, alone: float, now: float, answers: int, rule: Floats) -> float:
    """The tightest pace that a running answer can still keep beside no prompt at all."""
    tight = np.inf
    for x in range(answers):
        own = pace_s(W.jobs, W.decoding[x], now, rule[WHOLE], rule[SPREAD])
        if SAFE * own >= alone:
            tight = min(tight, own)
    return float(tight)


@njit(**INNER)
def _advance(jobs: Floats, j: int, tokens: float) -> None:
    """Give an answer so many tokens; what is believed of the rest changes as it will for the engine."""
    jobs[j, GENERATED] += tokens
    jobs[j, TRUTH] -= tokens
    left = jobs[j, LEFT] + jobs[j, DRIFT] * tokens
    if left < 1.0:
        left = 1.0
        if jobs[j, TRUTH] > 1.0:  # it has outlived its forecast
            left, jobs[j, DRIFT] = max(1.0, GROWTH * jobs[j, GENERATED]), GROWTH
    jobs[j, LEFT] = left
    jobs[j, HAVE] += tokens


@njit(**INNER)
def _begin(
    W: Work, start: Floats, running: int, present: int, engine: Floats, rule: Floats
) -> tuple[int, float]:
    """Copy the jobs and put them into their queues; how many decode, and their tokens of context."""
    jobs, key = W.jobs, W.key
    B, K, waiting, open_ = ZERO, 0.0, ZERO, ZERO
    for j in range(len(start)):
        for c in range(COLUMNS):
            jobs[j, c] = start[j, c]
        W.met[j] = 0.0
        key[j] = rule_key(engine, jobs, j, rule)
    for j in range(running):
        if jobs[j, TODO] == 0.0:
            W.decoding[B] = j
            W.seen[j] = 0.0
            B += 1
            K += jobs[j, HAVE]
        else:
            W.begun[open_] = j
            open_ += 1
    for j in range(running, present):
        _push(W.heap, waiting, key, j)
        waiting += 1
    for c in range(COUNTS):
        W.counts[c] = 0
    W.counts[WAITING], W.counts[OPEN] = waiting, open_
    return B, K


@njit(**INNER)
def _catch_up(
    W: Work, engine: Floats, rule: Floats, now: float, clock: float, prompts: bool, B: int, K: float,
    free: float,
) -> tuple[int, float, float, float, float]:  # fmt: skip
    """Bring the answers up to date: who has ended, how soon the next one does, the tightest pace.

    Returns
    -------
    tuple
        Answers that go on, their tokens of context, KV tokens free, the tightest pace, and the decode step at
        which to do this again: the next one beside prompts, else the next end.
    """
    jobs, decoding, met, seen = W.jobs, W.decoding, W.met, W.seen
    alone = engine[BASE] + engine[SEQUENCE] * B + engine[KV_TOKEN] * K
    tight, first_end, y = np.inf, np.inf, ZERO
    for x in range(B):
        j = decoding[x]
        _advance(jobs, j, clock - seen[j])
        seen[j] = clock
        if jobs[j, TRUTH] <= 0.0:
            W.counts[ENDED] += 1
            if _kept(jobs, j, now):
                met[j] = 1.0
                W.counts[KEPT] += 1
            K -= jobs[j, HAVE]
            free += jobs[j, HAVE]
            continue
        decoding[y] = j
        y += 1
        first_end = min(first_end, jobs[j, TRUTH])
        own = pace_s(jobs, j, now, rule[WHOLE], rule[SPREAD])
        if SAFE * own >= alone:
            tight = min(tight, own)
    return y, K, free, tight, clock + (1.0 if prompts else first_end)


@njit(**INNER)
def _guess(W: Work, engine: Floats, now: float, clock: float, step_s: float, answers: int) -> None:
    """Guess at those that have not ended: an answer goes on at the pace of the second half, `step_s` a token,
    and a begun prompt has the luck of those that ended.
    """
    jobs, met, counts = W.jobs, W.met, W.counts
    luck = (1.0 + counts[KEPT]) / (2.0 + counts[ENDED])
    for x in range(answers):
        j = W.decoding[x]
        _advance(jobs, j, clock - W.seen[j])
        limited = jobs[j, TPOT] < np.inf or jobs[j, E2E_DUE] < np.inf
        ok = jobs[j, FIRST] <= jobs[j, FIRST_DUE] and now <= jobs[j, E2E_DUE]
        if ok and limited:
            met[j] = min(1.0, max(0.0, 1.0 + 2.0 * (_slack(jobs, j, now) / (jobs[j, TRUTH] * step_s) - 1.0)))
        else:
            met[j] = 1.0 if ok else 0.0
    ahead = 0.0
    for x in range(counts[OPEN]):
        j = W.begun[x]
        met[j] = 0.0 if lost(engine, jobs, j, now, 1.0, 0.0) else luck
        ahead += work_s(engine, jobs, j, 1.0)
    _guess_line(W, engine, now, luck, ahead)
    for x in range(counts[ASIDE]):
        met[W.parked[x]] = 0.0


@njit(**INNER)
def _guess_line(W: Work, engine: Floats, now: float, luck: float, ahead: float) -> None:
    """Guess at those that wait at the horizon, with `ahead` seconds of work before them.

    Taken by due time, each has a share of the luck: the time it has left, over that and the work up to its
    own, but at least `ADJOURNED`. So a rule that puts off who has much time is not taken for one that fails
    them.
    """
    jobs, key, line, size = W.jobs, W.key, W.chosen, ZERO
    for x in range(W.counts[WAITING]):
        j = W.heap[x]
        W.met[j] = 0.0
        if not lost(engine, jobs, j, now, 1.0, 0.0):
            key[j] = due_s(engine, jobs, j)
            _push(line, size, key, j)
            size += 1
    while size > 0:
        j = line[0]
        _pop(line, size, key)
        size -= 1
        ahead += work_s(engine, jobs, j, 1.0)
        left_s = min(FAR_S, max(0.0, key[j] - now))
        W.met[j] = luck * max(ADJOURNED, left_s / max(1e-9, left_s + ahead))


@njit(**INNER)
def _worth(W: Work, start: Floats, now: float) -> float:
    """Sum of weight times `W.met`, less a little for waiting."""
    jobs, met = W.jobs, W.met
    total = 0.0
    for j in range(len(start)):
        total += jobs[j, WEIGHT] * met[j]
        due = min(jobs[j, FIRST_DUE], jobs[j, E2E_DUE])
        if start[j, GENERATED] == 0.0 and due < np.inf:
            first = now if math.isnan(jobs[j, FIRST]) else jobs[j, FIRST]
            wait = (first - jobs[j, ARRIVAL]) / max(1e-9, due - jobs[j, ARRIVAL])
            total -= LATENCY * jobs[j, WEIGHT] * min(1.0, wait)
    return float(total)


@njit(**OUTER)
def rollout(
    start: Floats, running: int, present: int, engine: Floats, rule: Floats, until_s: float, W: Work
) -> float:
    """Weight that keeps its limits under a rule, from now until `until_s`.

    Parameters
    ----------
    start
        Jobs, shape (n, COLUMNS): `running` running ones, waiting ones up to `present`, then later arrivals by
        ascending RELEASE. Not changed.
    engine, rule
        See the lists at the top of this file.
    until_s
        Horizon, clock time. Whoever has not ended by then is guessed at: answers by their pace, requests in
        the queue by the share kept of those that ended and by the time they have left, parked ones as missed.
    W
        Work space for at least n jobs; afterwards `W.met` tells for each job whether it kept its limits, and
        `W.jobs` when its first token came.

    Returns
    -------
    float
        Sum of weight times `W.met`.
    """
    jobs, key, heap, decoding, counts = W.jobs, W.key, W.heap, W.decoding, W.counts
    n = len(start)
    now, free = engine[NOW], engine[FREE]
    B, K = _begin(W, start, running, present, engine, rule)
    waiting, aside, open_, later = counts[WAITING], counts[ASIDE], counts[OPEN], present
    half_s, late_steps = 0.5 * (now + until_s), 0.0
    # Decode steps so far; the next at which an answer ends or paces are looked at again; the tightest pace.
    clock, look, tight = 0.0, 0.0, np.inf
    while now < until_s:
        while later < n and jobs[later, RELEASE] <= now:
            _push(heap, waiting, key, later)
            waiting += 1
            later += 1
        prompts = open_ > 0 or waiting > 0 or aside > 0
        if B == 0 and not prompts:
            if later >= n:
                break
            now = jobs[later, RELEASE]
            continue
        if clock >= look:
            B, K, free, tight, look = _catch_up(W, engine, rule, now, clock, prompts, B, K, free)
            while free < 0.0 and B > 1:
                # Memory is short: the newest answer is preempted and computed again.
                B -= 1
                j = decoding[B]
                K -= jobs[j, HAVE]
                free += jobs[j, HAVE]
                jobs[j, TODO], jobs[j, HAVE] = jobs[j, HAVE], 0.0
                _push(heap, waiting, key, j)
                waiting += 1
            if B == 0 and not prompts:
                continue
        alone = engine[BASE] + engine[SEQUENCE] * B + engine[KV_TOKEN] * K
        if not prompts:
            # Nothing but decoding: jump to the next departure, arrival or the horizon.
            alone += engine[KNEE_TOKEN] * max(0.0, B - engine[KNEE_TOKENS])
            stop = min(until_s, jobs[later, RELEASE] if later < n else np.inf)
            steps = max(1.0, min(look - clock, np.ceil((stop - now) / alone)))
            now += steps * alone + 0.5 * engine[KV_TOKEN] * B * steps * (steps - 1.0)
            late_steps += steps if now > half_s else 0.0
            clock += steps
            K += B * steps
            free -= B * steps
            if later < n:
                look = min(look, clock)  # a prompt may come: look at the paces then
            continue
        # The step, as the rule decides it.
        counts[WAITING], counts[ASIDE], counts[OPEN] = waiting, aside, open_
        filled, seconds, joined, free = _fill(W, engine, rule, now, tight, B, K, free)
        waiting, aside, open_ = counts[WAITING], counts[ASIDE], counts[OPEN]
        if B == 0 and filled == 0.0:
            # Nobody can enter and nobody runs: on to the next arrival.
            if later >= n:
                break
            now = max(now, jobs[later, RELEASE])
            continue
        step = alone + seconds + engine[KNEE_TOKEN] * max(0.0, B + filled - engine[KNEE_TOKENS])
        now += step
        clock += 1.0
        late_steps += 1.0 if now > half_s else 0.0
        K += B
        free -= B
        for x in range(B, B + joined):
            j = decoding[x]
            _advance(jobs, j, 1.0)
            jobs[j, HAVE] -= 1.0  # the token made is computed in the next step
            W.seen[j] = clock
            if math.isnan(jobs[j, FIRST]):
                jobs[j, FIRST] = now
            K += jobs[j, HAVE]
        B += joined
        if joined > 0:
            look = clock
    counts[WAITING], counts[ASIDE], counts[OPEN] = waiting, aside, open_
    _guess(W, engine, now, clock, max(engine[BASE], (now - half_s) / max(1.0, late_steps)), B)
    worth: float = _worth(W, start, now)
    return worth


@njit(**OUTER)
def decide(start: Floats, running: int, engine: Floats, rule: Floats, W: Work) -> tuple[int, float]:
    """The next step under a rule: `W.chosen`, `W.tokens`; all keys; `W.met` is 1 for parked ones.

    Parameters
    ----------
    start, running, engine, rule, W
        As in `rollout`, without later arrivals.

    Returns
    -------
    tuple
        How many prompts get tokens, and the tokens in all.
    """
    now = engine[NOW]
    B, K = _begin(W, start, running, len(start), engine, rule)
    for j in range(running, len(start)):
        W.met[j] = 1.0 if lost(engine, W.jobs, j, now, rule[CAUTION], rule[SLOW]) else 0.0
    alone = engine[BASE] + engine[SEQUENCE] * B + engine[KV_TOKEN] * K
    tight = _tightest(W, alone, now, B, rule)
    filled, _, _, _ = _fill(W, engine, rule, now, tight, B, K, engine[FREE])
    return W.counts[CHOSEN], filled


@njit(nogil=True, cache=True, error_model="numpy")
def ranks(jobs: Floats, engine: Floats, rule: Floats) -> Floats:
    """Sort keys of waiting jobs, those of parked ones behind all others, shape (len(jobs),)."""
    out = np.empty(len(jobs))
    for j in range(len(jobs)):
        out[j] = rule_key(engine, jobs, j, rule)
        if lost(engine, jobs, j, engine[NOW], rule[CAUTION], rule[SLOW]):
            out[j] += PARKED
    return out


class Columns(NamedTuple):
    """The columns of a `slosched.core.table.RequestTable` that jobs are made of."""

    prompt: Ints
    generated: Ints
    computed: Ints
    cached: Ints
    atoms: Floats
    arrival: Floats
    ttft: Floats
    tpot: Floats
    e2e: Floats
    first: Floats
    weight: Floats


def columns_of(table: RequestTable) -> Columns:
    """The columns of a table, as kernels take them."""
    return Columns(
        table.prompt_tokens, table.generated_tokens, table.computed_tokens, table.cached_tokens, table.atoms,
        table.arrival_s, table.ttft_s, table.tpot_s, table.e2e_s, table.first_token_s, table.weight,
    )  # fmt: skip


@njit(**INNER)
def _drift(atoms: Floats, factor: float, generated: float, left: float) -> float:
    """Change of the mean tokens to come, per token, from here to where `left` more are out."""
    later, alive = 0.0, 0
    for x in range(len(atoms) - 1, -1, -1):
        ahead = atoms[x] * factor - generated - left
        if ahead <= 1e-9 * left:
            break
        later += ahead
        alive += 1
    return float((later / alive - left) / left) if alive > 0 else -1.0


@njit(**OUTER)
def gather(table: Columns, rows: Ints, running: int, scale: Floats, growth: float, jobs: Floats) -> None:
    """Jobs of some table rows, the first `running` of which run; TRUTH is left as believed.

    Parameters
    ----------
    table
        Columns of the table.
    rows, running
        Table rows, and how many of them run.
    scale
        Factor on the forecast of each row, shape (len(rows),).
    growth
        Share of its present length that an answer which has outlived its forecast is believed to go on.
    jobs
        Where to write them, shape (len(rows), COLUMNS).
    """
    prompt, generated, computed, cached, atoms, arrival, ttft, tpot, e2e, first, weight = table
    width = atoms.shape[1]
    for i in range(len(rows)):
        row = rows[i]
        have = computed[row] if i < running else max(computed[row], cached[row])
        todo = prompt[row] + generated[row] - have
        started = first[row]
        if generated[row] > 0 and math.isnan(started):
            started = arrival[row]  # nobody told us: as good as can be
        if i < running and generated[row] > 0 and todo <= 1:
            todo = 0  # it decodes
        elif todo <= 0:
            todo, have = 1, max(0, have - 1)  # the last prompt token is always computed
        factor = scale[i]
        total, alive = 0.0, 0
        for x in range(width - 1, -1, -1):
            ahead = atoms[row, x] * factor - generated[row]
            if ahead <= 0.0:
                break
            total += ahead
            alive += 1
        left = total / alive if alive > 0 else generated[row] * growth
        jobs[i, DRIFT] = growth if alive == 0 else _drift(atoms[row], factor, generated[row], left)
        jobs[i, RELEASE] = arrival[row]
        jobs[i, TODO], jobs[i, HAVE] = todo, have
        jobs[i, LEFT] = jobs[i, TRUTH] = max(1.0, left)
        jobs[i, GENERATED], jobs[i, FIRST], jobs[i, ARRIVAL] = generated[row], started, arrival[row]
        jobs[i, FIRST_DUE], jobs[i, E2E_DUE] = arrival[row] + ttft[row], arrival[row] + e2e[row]
        jobs[i, TPOT], jobs[i, WEIGHT] = tpot[row], weight[row]
