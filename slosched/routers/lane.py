"""A compact model of several engines, each a lane of requests in order of their deadlines.

A lane is a fluid: prompts are computed one after the other in the share of every step that decoding leaves,
and answers grow at the pace of the steps. Slots and memory fall free at the mean rate at which answers end.
It is coarser than the planner's model, and costs nanoseconds a request: a router asks it about every engine
at every decision, with statistics too old for anything finer.

All functions call each other, hence one file: numba's cache key covers only the file a function is in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine
from slosched.core.jit import njit

# Columns of `Lanes.jobs`.
PROMPT, TODO, LENGTH, SPREAD, KEY, FIRST_DUE, TPOT, E2E_DUE, WEIGHT, FIRST, GENERATED = range(11)
WIDTH = 11

# Columns of `Lanes.engines`.
BASE, PREFILL_TOKEN, ATTENTION, SEQUENCE, KV_TOKEN, KNEE_TOKENS, KNEE_TOKEN, SLOTS, BUDGET, KV_TOKENS = range(
    10
)
ENGINE_WIDTH = 10

SOFT_S, SOFT_LEAD, SOFT_TPOT = 0.25, 1.0, 0.1
"""Half-width of the error of a predicted time: seconds, and a share of how far ahead it is; share of a pace.
Twice the planner's share, since what the router knows is old and those to come are unknown: with .5 misses
rise by a tenth over four cells (tuning seeds), with 2 by as much."""

SURE_LEAD = 0.25
"""In place of `SOFT_LEAD` where a request is to be refused: nobody is for a prediction that may be wrong."""

LEAST_CHANCE = 0.02
"""Who has less is past hope, and served only in time that nobody else can use."""

LEAST_SHARE = 0.05
"""Least share of a step that prompts get: an engine full of decodes still admits."""


class Lanes(NamedTuple):
    """Requests by row, and rows by engine."""

    jobs: Floats  # (rows, WIDTH)
    engines: Floats  # (engines, ENGINE_WIDTH)
    waiting: Ints  # (engines, places): rows by (KEY, row)
    waits: Ints  # (engines,): how many
    running: Ints  # (engines, places)
    runs: Ints  # (engines,)


def engine_columns(engine: Engine) -> list[float]:
    """One engine's row of `Lanes.engines`."""
    s, limits = engine.step_time, engine.limits
    return [
        s.base_s, s.prefill_token_s, s.attention_work_s, s.sequence_s, s.kv_token_s, float(s.knee_tokens),
        s.knee_token_s, float(limits.max_num_seqs), float(limits.max_num_batched_tokens),
        float(limits.kv_tokens),
    ]  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _soft(margin: float, width: float) -> float:
    """Probability that a margin holds under a uniform error of half-width `width`."""
    return min(1.0, max(0.0, 0.5 + 0.5 * margin / width))


@njit(nogil=True, cache=True, error_model="numpy")
def _prompt_s(jobs: Floats, row: int, engine: Floats, todo: float) -> float:
    """Seconds of engine time to compute `todo` tokens of a prompt in full steps, decodes aside."""
    context = jobs[row, PROMPT] - 0.5 * todo
    return float(todo * (engine[PREFILL_TOKEN] + engine[KNEE_TOKEN] + engine[ATTENTION] * context))


@njit(nogil=True, cache=True, error_model="numpy")
def _left(jobs: Floats, row: int) -> float:
    """Expected tokens still to come."""
    done = jobs[row, GENERATED]
    return float(max(1.0, jobs[row, LENGTH] - done, 0.25 * done))


@njit(nogil=True, cache=True, error_model="numpy")
def _chance(
    jobs: Floats, row: int, first_s: float, tokens_s: float, tokens: float, now_s: float, lead: float
) -> float:
    """Chance to keep all limits, if the first token comes at `first_s` and `tokens` more take `tokens_s`."""
    chance = 1.0
    old = jobs[row, FIRST] == jobs[row, FIRST]
    start_s = first_s
    if old:
        first_s = jobs[row, FIRST]
    if jobs[row, FIRST_DUE] < np.inf:
        margin = jobs[row, FIRST_DUE] - first_s
        if old:
            chance = 1.0 if margin >= 0.0 else 0.0
        else:
            chance = _soft(margin, SOFT_S + lead * max(0.0, first_s - now_s))
        if chance == 0.0:
            return 0.0
    finish_s = start_s + tokens_s
    tpot = jobs[row, TPOT]
    if tpot < np.inf:
        # The engine keeps the pace of those it has begun as long as it can: no doubt within the limit.
        all_tokens = max(1.0, jobs[row, GENERATED] + tokens - 1.0)
        over = (finish_s - first_s) / (tpot * all_tokens) - 1.0
        chance *= min(1.0, max(0.0, 1.0 - over / SOFT_TPOT))
    if jobs[row, E2E_DUE] < np.inf and chance > 0.0:
        spread_s = jobs[row, SPREAD] * tokens_s / max(1.0, tokens)
        width = SOFT_S + lead * max(0.0, finish_s - now_s) + spread_s
        chance *= _soft(jobs[row, E2E_DUE] - finish_s, width)
    return chance


@njit(nogil=True, cache=True, error_model="numpy")
def _answer_s(tokens: float, start_s: float, clear_s: float, busy_s: float, free_s: float) -> float:
    """Seconds for `tokens` from `start_s`: steps of `busy_s` until the prompts are done, of `free_s` then."""
    busy = max(0.0, clear_s - start_s) / busy_s
    if tokens <= busy:
        return tokens * busy_s
    return busy * busy_s + (tokens - busy) * free_s


@njit(nogil=True, cache=True, error_model="numpy")
def _value(lanes: Lanes, e: int, extra: int, todo: float, now_s: float, pace_s: float) -> tuple[float, float]:
    """As `value`, with steps of `pace_s` while prompts wait."""
    jobs, engine = lanes.jobs, lanes.engines[e]
    runs, waits = lanes.runs[e], lanes.waits[e]
    context, left = 0.0, 0.0
    for i in range(runs):
        row = lanes.running[e, i]
        context += jobs[row, PROMPT] + jobs[row, GENERATED]
        left += _left(jobs, row)
    step_s = engine[BASE] + engine[SEQUENCE] * runs + engine[KV_TOKEN] * context
    share = max(LEAST_SHARE, 1.0 - step_s / pace_s)
    # First pass: what all prompts take, and what the batch will be.
    prompts_s, length, count = 0.0, left, float(runs)
    for i in range(waits + 1):
        row = extra if i == waits else lanes.waiting[e, i]
        if row < 0:
            continue
        if jobs[row, KEY] < now_s:  # past its deadline: it gives way to all others
            continue
        prompts_s += _prompt_s(jobs, row, engine, todo if row == extra else jobs[row, TODO])
        length += jobs[row, LENGTH]
        count += 1.0
    clear_s = now_s + prompts_s / share
    mean_left = length / max(1.0, count)
    together = min(engine[SLOTS], count)
    mean_context = context / max(1, runs) if runs > 0 else 0.0
    free_s = (
        engine[BASE] + engine[SEQUENCE] * together + engine[KV_TOKEN] * max(context, together * mean_context)
    )
    residence_s = mean_left * 0.5 * (pace_s + free_s)
    value, own_chance = 0.0, 0.0
    for i in range(runs):
        row = lanes.running[e, i]
        tokens = _left(jobs, row)
        tokens_s = _answer_s(tokens, now_s, clear_s, pace_s, free_s)
        value += jobs[row, WEIGHT] * _chance(jobs, row, now_s, tokens_s, tokens, now_s, SOFT_LEAD)
    # Second pass: who gets its first token when.
    t_s, slots, memory = now_s, engine[SLOTS] - runs, engine[KV_TOKENS] - context
    placed = extra < 0
    i = 0
    while i < waits or not placed:
        if not placed and (
            i == waits
            or jobs[extra, KEY] < jobs[lanes.waiting[e, i], KEY]
            or (jobs[extra, KEY] == jobs[lanes.waiting[e, i], KEY] and extra < lanes.waiting[e, i])
        ):
            row, placed = extra, True
        else:
            row = lanes.waiting[e, i]
            i += 1
        own = todo if row == extra else jobs[row, TODO]
        ready_s = t_s
        if slots < 1.0:
            ready_s = max(ready_s, now_s + (1.0 - slots) * residence_s / engine[SLOTS])
        need = jobs[row, PROMPT]
        if memory < need:
            ready_s = max(ready_s, now_s + (need - memory) * residence_s / engine[KV_TOKENS])
        first_s = ready_s + _prompt_s(jobs, row, engine, own) / share + step_s
        tokens_s = _answer_s(jobs[row, LENGTH] - 1.0, first_s, clear_s, pace_s, free_s)
        chance = _chance(jobs, row, first_s, tokens_s, jobs[row, LENGTH], now_s, SOFT_LEAD)
        if row == extra:
            own_chance = _chance(jobs, row, first_s, tokens_s, jobs[row, LENGTH], now_s, SURE_LEAD)
        if chance < LEAST_CHANCE:
            continue
        value += jobs[row, WEIGHT] * chance
        t_s = first_s - step_s
        slots -= 1.0
        memory -= need
    return value, own_chance


@njit(nogil=True, cache=True, error_model="numpy")
def value(lanes: Lanes, e: int, extra: int, todo: float, now_s: float) -> tuple[float, float]:
    """Expected met weight of all requests of an engine.

    Parameters
    ----------
    lanes, e
        The engine.
    extra
        Row of a request to be there too, -1 for none; it has `todo` prompt tokens to compute there.
    now_s
        The present.

    Returns
    -------
    tuple
        Sum of weight times chance, with the better of two paces: steps full of prompt tokens, or as short
        as the tightest TPOT limit asks. And the chance of `extra`, 0 without one.
    """
    jobs, engine = lanes.jobs, lanes.engines[e]
    tight = np.inf
    context = 0.0
    for i in range(lanes.runs[e]):
        row = lanes.running[e, i]
        tight = min(tight, jobs[row, TPOT])
        context += jobs[row, PROMPT] + jobs[row, GENERATED]
    for i in range(lanes.waits[e]):
        tight = min(tight, jobs[lanes.waiting[e, i], TPOT])
    if extra >= 0:
        tight = min(tight, jobs[extra, TPOT])
    runs = float(lanes.runs[e])
    alone_s = engine[BASE] + engine[SEQUENCE] * runs + engine[KV_TOKEN] * context
    room = max(1.0, engine[BUDGET] - runs)
    full_s = (
        alone_s
        + room * engine[PREFILL_TOKEN]
        + engine[KNEE_TOKEN] * max(0.0, room + runs - engine[KNEE_TOKENS])
    )
    best: tuple[float, float] = _value(lanes, e, extra, todo, now_s, full_s)
    paced_s = max(0.95 * tight, alone_s * 1.05)
    if paced_s < full_s:
        paced: tuple[float, float] = _value(lanes, e, extra, todo, now_s, paced_s)
        if paced[0] > best[0]:
            best = paced
    return best


LEAST_BATCH = 8.0
"""Requests that share the constant part of a step at least: an idle engine is about to fill."""


@njit(nogil=True, cache=True, error_model="numpy")
def _work_s(lanes: Lanes, e: int, row: int, todo: float) -> float:
    """Seconds of an engine that a request takes: its prompt, and its share of every step of its answer."""
    jobs, engine = lanes.jobs, lanes.engines[e]
    batch = max(LEAST_BATCH, float(lanes.runs[e]))
    context = jobs[row, PROMPT] + 0.5 * jobs[row, LENGTH]
    token_s = engine[BASE] / batch + engine[SEQUENCE] + engine[KV_TOKEN] * context
    return float(_prompt_s(jobs, row, engine, todo) + _left(jobs, row) * token_s)


@njit(nogil=True, cache=True, error_model="numpy")
def load_s(lanes: Lanes, e: int) -> float:
    """Seconds of an engine that all requests there still take."""
    total = 0.0
    for i in range(lanes.waits[e]):
        total += _work_s(lanes, e, lanes.waiting[e, i], lanes.jobs[lanes.waiting[e, i], TODO])
    for i in range(lanes.runs[e]):
        total += _work_s(lanes, e, lanes.running[e, i], 0.0)
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def gains(lanes: Lanes, row: int, todo: Floats, open_: Ints, now_s: float) -> Floats:
    """What a newcomer would do to each open engine.

    Returns
    -------
    ndarray
        Shape (3, len(open_)): gained weight; the engine's load in seconds then; the newcomer's chance.
    """
    out = np.empty((3, len(open_)))
    for i in range(len(open_)):
        e = open_[i]
        with_it, chance = value(lanes, e, row, todo[e], now_s)
        out[0, i] = with_it - value(lanes, e, -1, 0.0, now_s)[0]
        out[1, i] = load_s(lanes, e) + _work_s(lanes, e, row, todo[e])
        out[2, i] = chance
    return out
