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
BASE, PREFILL_TOKEN, ATTENTION, SEQUENCE, KV_TOKEN, KNEE_TOKEN, FULL_STEP, ENGINE_WIDTH = range(8)

# Columns of a line, one place a request at one engine, least work per weight first.
(
    KEY,  # work per weight
    WORK,  # seconds it adds to steps
    READ,  # seconds of these for its prompt
    START_BY,  # clock time until which it can wait and keep its limits, if served alone from then on
    PACE,  # its limit on seconds per output token
    WORTH,  # its weight
    BEGUN,  # 1 once its first token has come
    LINE_WIDTH,
) = range(8)  # fmt: skip

OUTLIVED_GROWTH = 0.25
"""Share of its present length that an answer goes on which has outlived its forecast, as in the planner."""

LEAST_WEIGHT = 1e-9
"""Requests of no weight have this one: they go last, and the least work first among them."""


def engine_columns(engine: Engine) -> list[float]:
    """One engine as a row of `judge`'s engines."""
    s = engine.step_time
    full_s = s.base_s + engine.limits.max_num_batched_tokens * (s.prefill_token_s + s.knee_token_s)
    return [
        s.base_s, s.prefill_token_s, s.attention_work_s, s.sequence_s, s.kv_token_s, s.knee_token_s, full_s
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
    start_by = min(first_by, job[E2E_DUE] - engine[BASE] - read_s - left * alone_s)
    out[WORTH] = max(LEAST_WEIGHT, job[WEIGHT])
    out[WORK], out[READ] = read_s + left * token_s, read_s
    out[KEY] = out[WORK] / out[WORTH]
    out[START_BY] = -np.inf if alone_s > job[TPOT] and left > 1.0 else start_by
    out[PACE], out[BEGUN] = job[TPOT], 1.0 if begun else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def line_up(jobs: Floats, rows: Ints, begun: Ints, engine: Floats) -> Floats:
    """The line of one engine, shape (len(rows), LINE_WIDTH); of equals the first sent stands first."""
    unsorted = np.empty((len(rows), LINE_WIDTH))
    for x in range(len(rows)):
        place(jobs[rows[x]], begun[x] != 0, engine, unsorted[x])
    return unsorted[np.argsort(unsorted[:, KEY], kind="mergesort")]


@njit(nogil=True, cache=True, error_model="numpy")
def missed(start_by: float, wait_s: float, now_s: float) -> float:
    """Chance that a wait with this mean is longer than a request can bear.

    Waits are taken as exponential: what queues in heavy traffic tend to (Kingman 1962).
    """
    if start_by <= now_s:
        return 1.0
    return float(np.exp(-(start_by - now_s) / wait_s)) if wait_s > 0.0 else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def judge(line: Floats, new: Floats, engine: Floats, now_s: float) -> tuple[float, float, float, bool]:
    """What becomes of an engine that takes a newcomer.

    An engine serves the least work per weight first, lost requests last. It does so in the share of its time
    that the constant part of steps leaves, at the pace of the tightest answer that is not lost.

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
    before_pace, seconds = engine[FULL_STEP], new[WORK]
    for x in range(len(line)):
        seconds += line[x, WORK]
        if line[x, START_BY] > now_s:
            before_pace = min(before_pace, line[x, PACE])
    lost = new[START_BY] <= now_s
    pace = before_pace if lost else min(before_pace, new[PACE])
    before_free, free = 1.0 - engine[BASE] / before_pace, 1.0 - engine[BASE] / pace
    same = free == before_free
    ahead_s, prompts_s, added_s = 0.0, 0.0, 0.0
    gain, increase, late, passed = 0.0, new[WORTH] * new[WORK], lost, False
    for x in range(len(line) + 1):
        if not passed and (x == len(line) or line[x, KEY] > new[KEY]):
            passed = True
            gain += new[WORTH] * (1.0 - missed(new[START_BY], ahead_s / free, now_s))
            late = new[START_BY] < now_s + prompts_s
            added_s = 0.0 if lost else new[WORK]
        if x == len(line):
            break
        start_by, alive = line[x, START_BY], line[x, START_BY] > now_s
        if passed and (alive or line[x, BEGUN] != 0.0):
            increase += new[WORK] * line[x, WORTH]
        elif alive or line[x, BEGUN] != 0.0:
            increase += new[WORTH] * line[x, WORK]
        if not alive:
            continue
        if line[x, BEGUN] == 0.0 and start_by < np.inf and not (same and added_s == 0.0):
            after = missed(start_by, (ahead_s + added_s) / free, now_s)
            gain -= line[x, WORTH] * (after - missed(start_by, ahead_s / before_free, now_s))
        ahead_s += line[x, WORK]
        prompts_s += line[x, READ]
    return gain, increase, seconds, late
