"""Several engines as lanes of work, and what one more request adds to the waiting in each.

An engine that serves the least work per weight first makes a newcomer wait for everything with less work per
weight, and makes everything with more wait for the newcomer. Both together are the increase of the weighted
sum of completion times (MinIncrease: Megow, Uetz and Vredeveld, Mathematics of Operations Research 31, 2006).

All functions call each other, hence one file: numba's cache key covers only the file a function is in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine
from slosched.core.jit import njit

# Columns of `Lanes.jobs`: tokens, except for limits in seconds and the weight.
PROMPT, TODO, LENGTH, GENERATED, FIRST_DUE, TPOT, E2E_DUE, WEIGHT, WIDTH = range(9)

# Columns of `Lanes.engines`: seconds of the step-time model.
BASE, PREFILL_TOKEN, ATTENTION, SEQUENCE, KV_TOKEN, KNEE_TOKEN, ENGINE_WIDTH = range(7)

OUTLIVED_GROWTH = 0.25
"""Share of its present length that an answer goes on which has outlived its forecast, as in the planner."""


class Lanes(NamedTuple):
    """Requests by row, and rows by engine."""

    jobs: Floats  # (rows, WIDTH)
    engines: Floats  # (engines, ENGINE_WIDTH)
    waiting: Ints  # (engines, places): rows without a token, in any order
    waits: Ints  # (engines,): how many
    running: Ints  # (engines, places): rows with a token, in any order
    runs: Ints  # (engines,)


def engine_columns(engine: Engine) -> list[float]:
    """One engine's row of `Lanes.engines`."""
    s = engine.step_time
    return [
        s.base_s, s.prefill_token_s, s.attention_work_s, s.sequence_s, s.kv_token_s, s.knee_token_s
    ]  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def prompt_s(jobs: Floats, row: int, engine: Floats, todo: float) -> float:
    """Seconds of an engine to compute the last `todo` tokens of a prompt in full steps."""
    context = jobs[row, PROMPT] - 0.5 * todo
    return float(todo * (engine[PREFILL_TOKEN] + engine[KNEE_TOKEN] + engine[ATTENTION] * context))


@njit(nogil=True, cache=True, error_model="numpy")
def work_s(jobs: Floats, row: int, engine: Floats, todo: float) -> float:
    """Seconds that a request still adds to an engine's steps: its prompt, and each token of its answer.

    The constant part of a step is left out: it is there whoever runs.
    """
    done = jobs[row, GENERATED]
    left = max(1.0, jobs[row, LENGTH] - done, OUTLIVED_GROWTH * done)
    context = jobs[row, PROMPT] + done + 0.5 * left
    token_s = engine[SEQUENCE] + engine[KV_TOKEN] * context
    return float(prompt_s(jobs, row, engine, todo) + left * token_s)


@njit(nogil=True, cache=True, error_model="numpy")
def late(jobs: Floats, row: int, engine: Floats, todo: float, start_s: float) -> bool:
    """Whether a request without a token misses a limit, served alone from `start_s` on."""
    first_s = start_s + engine[BASE] + prompt_s(jobs, row, engine, todo)
    token_s = engine[BASE] + engine[SEQUENCE] + engine[KV_TOKEN] * jobs[row, PROMPT]
    if first_s > jobs[row, FIRST_DUE] or first_s + (jobs[row, LENGTH] - 1.0) * token_s > jobs[row, E2E_DUE]:
        return True
    return bool(token_s > jobs[row, TPOT] and jobs[row, LENGTH] > 1.0)


@njit(nogil=True, cache=True, error_model="numpy")
def increases(lanes: Lanes, extra: int, todo: Floats, open_: Ints, now_s: float) -> Floats:
    """What a newcomer adds to the waiting at each open engine.

    Parameters
    ----------
    lanes
        The engines; `extra` is at none of them.
    extra, todo
        Row of the newcomer, and its prompt tokens to compute at each engine, shape (engines,).
    open_
        Engines in question.
    now_s
        The present.

    Returns
    -------
    ndarray
        Shape (2, len(open_)). First the increase: weight times seconds, the newcomer's own and those of
        everybody behind it. Requests whose limits are lost stand behind all others and harm nobody. Second
        whether the newcomer is late there, 0 or 1, behind the prompts before it.
    """
    jobs = lanes.jobs
    out = np.empty((2, len(open_)))
    for i in range(len(open_)):
        e = open_[i]
        engine = lanes.engines[e]
        own_s, weight = work_s(jobs, extra, engine, todo[e]), max(1e-9, jobs[extra, WEIGHT])
        ahead_s, behind, prompts_s = 0.0, 0.0, 0.0
        for x in range(lanes.runs[e]):
            row = lanes.running[e, x]
            its_s, its_weight = work_s(jobs, row, engine, 0.0), max(1e-9, jobs[row, WEIGHT])
            if its_s * weight <= own_s * its_weight:
                ahead_s += its_s
            else:
                behind += its_weight
        for x in range(lanes.waits[e]):
            row = lanes.waiting[e, x]
            if late(jobs, row, engine, jobs[row, TODO], now_s):
                continue
            its_s, its_weight = work_s(jobs, row, engine, jobs[row, TODO]), max(1e-9, jobs[row, WEIGHT])
            if its_s * weight <= own_s * its_weight:
                ahead_s += its_s
                prompts_s += prompt_s(jobs, row, engine, jobs[row, TODO])
            else:
                behind += its_weight
        out[0, i] = weight * (ahead_s + own_s) + own_s * behind
        out[1, i] = late(jobs, extra, engine, todo[e], now_s + prompts_s)
    return out
