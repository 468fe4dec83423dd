"""Several engines as lines of work, and what one more request does to the chances in each.

All functions call each other, hence one file: numba's cache key covers only the file a function is in.
"""

from __future__ import annotations

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine
from slosched.core.jit import njit

# Columns of jobs, one row a request: tokens, except for limits in seconds and the weight.
PROMPT, TODO, LENGTH, GENERATED, FIRST_DUE, TPOT, E2E_DUE, WEIGHT, WIDTH = range(9)

# Columns of an engine: seconds of the step-time model, and of a step full of prompt tokens.
(
    BASE, PREFILL_TOKEN, ATTENTION, SEQUENCE, KV_TOKEN, KNEE_TOKEN, FULL_STEP, SLOTS, MEMORY, ENGINE_WIDTH,
) = range(10)  # fmt: skip

# Columns of a line, one place a request at one engine, least work per weight first.
(
    KEY,  # work per weight
    WORK,  # seconds it adds to steps
    READ,  # seconds of these for its prompt
    FIRST_BY,  # clock time until which it can wait for its first token's limit, if served alone from then on
    START_BY,  # and for all of its limits
    PACE,  # its limit on seconds per output token
    WORTH,  # its weight
    BEGUN,  # 1 once its first token has come
    TOKEN,  # seconds that a token of its answer adds to a step
    LEFT,  # tokens of its answer to come
    HELD,  # tokens of the KV cache that it takes
    END_BY,  # clock time until which it can wait for its limit on the whole answer
    LINE_WIDTH,
) = range(13)  # fmt: skip

OUTLIVED_GROWTH = 0.25
"""Share of its present length that an answer goes on which has outlived its forecast, as in the planner."""

LEAST_FREE = 0.05
"""Least share of an engine's time that is taken to be left beside the constant part of its steps: even where
answers are tight prompts get in, since a step may always hold a few tokens."""

SAFE = 0.9
"""Share of the tightest pace that a step may take, as in the planner."""

SPREAD = 1.0
"""Coefficient of variation of the KV tokens that a request takes, as of exponential lengths."""

NEVER = 40.0
"""Mean waits that no wait lasts: the chance, 4e-18, is below what a sum of chances can tell."""

LEAST_WEIGHT = 1e-9
"""Requests of no weight have this one: they go last, and the least work first among them."""


def engine_columns(engine: Engine) -> list[float]:
    """One engine as a row of `judge`'s engines."""
    s = engine.step_time
    full_s = s.base_s + engine.limits.max_num_batched_tokens * (s.prefill_token_s + s.knee_token_s)
    return [
        s.base_s, s.prefill_token_s, s.attention_work_s, s.sequence_s, s.kv_token_s, s.knee_token_s, full_s,
        engine.limits.max_num_seqs, engine.limits.kv_tokens,
    ]  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def place(job: Floats, begun: bool, engine: Floats, out: Floats) -> None:
    """Fill in a request's columns of a line, shape (LINE_WIDTH,).

    Work is what it still adds to steps: its prompt in full steps, and each token of its answer. The constant
    part of a step is left out: it is there whoever runs.
    """
    todo, done = 0.0 if begun else job[TODO], job[GENERATED]
    left = max(1.0, job[LENGTH] - done, OUTLIVED_GROWTH * done)
    full_token_s = engine[PREFILL_TOKEN] + engine[KNEE_TOKEN]
    read_s = todo * (full_token_s + engine[ATTENTION] * (job[PROMPT] - 0.5 * todo))
    token_s = engine[SEQUENCE] + engine[KV_TOKEN] * (job[PROMPT] + done + 0.5 * left)
    alone_s = engine[BASE] + engine[SEQUENCE] + engine[KV_TOKEN] * job[PROMPT]
    first_by = np.inf if begun else job[FIRST_DUE] - engine[BASE] - read_s
    end_by = job[E2E_DUE] - engine[BASE] - read_s - left * alone_s
    start_by = min(first_by, end_by)
    out[WORTH] = max(LEAST_WEIGHT, job[WEIGHT])
    out[WORK], out[READ] = read_s + left * token_s, read_s
    out[KEY] = out[WORK] / out[WORTH]
    out[START_BY] = -np.inf if alone_s > job[TPOT] and left > 1.0 else start_by
    out[FIRST_BY] = first_by
    out[PACE], out[BEGUN] = job[TPOT], 1.0 if begun else 0.0
    out[END_BY] = end_by
    out[TOKEN], out[LEFT], out[HELD] = token_s, left, job[PROMPT] + done + 0.5 * left


@njit(nogil=True, cache=True, error_model="numpy")
def line_up(jobs: Floats, rows: Ints, begun: Ints, engine: Floats) -> Floats:
    """The line of one engine, shape (len(rows), LINE_WIDTH); of equals the first sent stands first."""
    unsorted = np.empty((len(rows), LINE_WIDTH))
    for x in range(len(rows)):
        place(jobs[rows[x]], begun[x] != 0, engine, unsorted[x])
    return unsorted[np.argsort(unsorted[:, KEY], kind="mergesort")]


@njit(nogil=True, cache=True, error_model="numpy")
def _waits(bear_s: float, wait_s: float) -> float:
    """How often a mean wait goes into what a request can bear."""
    if bear_s <= 0.0:
        return 0.0
    return bear_s / wait_s if wait_s > 0.0 else np.inf


@njit(nogil=True, cache=True, error_model="numpy")
def missed(
    job: Floats, first_wait_s: float, end_wait_s: float, share: float, others_s: float, now_s: float
) -> float:  # fmt: skip
    """Chance that a request misses a limit behind these mean waits, of the limit more likely to be missed.

    Its own prompt is read in a `share` of the time, and its answer's steps hold `others_s` of decoding of
    others: that much less it can bear. Waits are taken as exponential: what queues in heavy traffic tend to
    (Kingman 1962).
    """
    more_s = job[READ] * (1.0 / share - 1.0)
    first = _waits(job[FIRST_BY] - now_s, first_wait_s + more_s)
    waits = min(first, _waits(job[END_BY] - job[LEFT] * others_s - now_s, end_wait_s))
    return float(np.exp(-waits)) if waits < NEVER else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def state(line: Floats, engine: Floats, now_s: float) -> tuple[float, float, float, float, float]:
    """What an engine is like: its pace in seconds per step, a decode step, a stay, and what is taken.

    Returns
    -------
    tuple
        Seconds that a step may take for the tightest answer that can keep its pace beside those that run;
        seconds of a step that decodes what runs; seconds until a running answer ends; running requests;
        their KV tokens.
    """
    pace, step_s, slots, memory, left = engine[FULL_STEP], engine[BASE], 0.0, 0.0, 0.0
    for x in range(len(line)):
        if line[x, BEGUN] != 0.0:
            step_s += line[x, TOKEN]
            slots += 1.0
            memory += line[x, HELD]
            left += line[x, LEFT]
    for x in range(len(line)):
        if line[x, START_BY] > now_s and SAFE * line[x, PACE] >= step_s:
            pace = min(pace, SAFE * line[x, PACE])
    return pace, step_s, left / max(1.0, slots) * step_s, slots, memory


@njit(nogil=True, cache=True, error_model="numpy")
def room(job: Floats, engine: Floats, pace_s: float) -> float:
    """Seconds of decoding that a step holds at a pace, and at the request's own."""
    step_s = min(pace_s, SAFE * job[PACE])
    return float(max(step_s - engine[BASE], LEAST_FREE * step_s))


@njit(nogil=True, cache=True, error_model="numpy")
def full(
    slots: float, memory: float, decode_s: float, room_s: float, stay_s: float, engine: Floats
) -> float:  # fmt: skip
    """Mean seconds until the last of so many requests enters: a slot, memory, and decoding within the pace.

    What they will hold is not known, so memory may be short before it should be. It is taken as uniform
    about its mean, `width` to either side: close to a normal distribution here, and cheap.
    """
    share = memory / engine[MEMORY]
    short, width = share - 1.0, SPREAD * np.sqrt(3.0 / slots) * share
    if abs(short) < width:
        short = (short + width) ** 2 / (4.0 * width)
    return float(stay_s * max(0.0, max(slots / engine[SLOTS] - 1.0, decode_s / room_s - 1.0), short))


@njit(nogil=True, cache=True, error_model="numpy")
def judge(line: Floats, new: Floats, engine: Floats, now_s: float) -> tuple[float, float, float, bool]:
    """What becomes of an engine that takes a newcomer.

    An engine serves the least work per weight first, lost requests last. A first token waits for the step at
    hand, for room (`full`), and for the prompts before it and its own, which are read in the share of time
    that decode steps leave at the pace of the tightest answer that can keep its own. A whole answer waits
    for room and for the work of those that wait before it, in the share that the constant part of steps
    leaves; those that run slow its steps down. The limit that is the less likely to be kept counts.

    Parameters
    ----------
    line
        Who is there, shape (places, LINE_WIDTH).
    new
        The newcomer's columns there, shape (LINE_WIDTH,).
    engine
        The engine's columns, shape (ENGINE_WIDTH,).
    now_s
        The present.

    Returns
    -------
    tuple
        Weight expected to keep its limits with the newcomer less that without; increase of the weighted sum
        of completion times, in weight times seconds (MinIncrease: Megow, Uetz and Vredeveld, Mathematics of
        Operations Research 31, 2006), where waiting requests that are lost do not count, but begun ones do,
        since they run; seconds of work there, all lost ones and the newcomer included; whether the newcomer
        is late even if nothing but the prompts before it takes time.
    """
    pace_before, step_s, stay_s, slots, memory = state(line, engine, now_s)
    lost = new[START_BY] <= now_s
    own = min(pace_before, SAFE * new[PACE])
    pace = pace_before if lost or own < step_s else own
    free_before = max(LEAST_FREE, 1.0 - engine[BASE] / pace_before)
    free = max(LEAST_FREE, 1.0 - engine[BASE] / pace)
    read_before, read = max(LEAST_FREE, 1.0 - step_s / pace_before), max(LEAST_FREE, 1.0 - step_s / pace)
    others_s = decode_s = step_s - engine[BASE]
    ahead_s, prompts_s, seconds = 0.0, 0.0, new[WORK]
    gain, increase, late, passed, added = 0.0, new[WORTH] * new[WORK], lost, False, 0.0
    for x in range(len(line) + 1):
        if not passed and (x == len(line) or line[x, KEY] > new[KEY]):
            passed = True
            late = new[START_BY] < now_s + prompts_s
            if not lost:
                taken_s, room_s = decode_s + new[TOKEN], room(new, engine, pace)
                full_s = full(slots + 1.0, memory + new[HELD], taken_s, room_s, stay_s, engine)
                first_s = step_s + full_s + prompts_s / read
                miss = missed(new, first_s, full_s + ahead_s / free, read, others_s, now_s)
                gain += new[WORTH] * (1.0 - miss)
                added = 1.0
        if x == len(line):
            break
        here = line[x]
        seconds += here[WORK]
        alive = here[START_BY] > now_s
        if alive or here[BEGUN] != 0.0:
            increase += new[WORK] * here[WORTH] if passed else new[WORTH] * here[WORK]
        if not alive:
            continue
        if here[BEGUN] == 0.0 and here[START_BY] < np.inf and (added != 0.0 or free != free_before):
            taken_s, room_s = decode_s + here[TOKEN], room(here, engine, pace_before)
            full_s = full(slots + 1.0, memory + here[HELD], taken_s, room_s, stay_s, engine)
            first_s = step_s + full_s + prompts_s / read_before
            end_s = full_s + ahead_s / free_before
            before = missed(here, first_s, end_s, read_before, others_s, now_s)
            held, room_s = memory + here[HELD] + added * new[HELD], room(here, engine, pace)
            taken_s += added * new[TOKEN]
            full_s = full(slots + 1.0 + added, held, taken_s, room_s, stay_s, engine)
            first_s = step_s + full_s + (prompts_s + added * new[READ]) / read
            end_s = full_s + (ahead_s + added * new[WORK]) / free
            after = missed(here, first_s, end_s, read, others_s, now_s)
            gain -= here[WORTH] * (after - before)
        if here[BEGUN] == 0.0:
            ahead_s += here[WORK]
            prompts_s += here[READ]
            slots += 1.0
            memory += here[HELD]
            decode_s += here[TOKEN]
    return gain, increase, seconds, late
