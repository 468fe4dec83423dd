"""How long a step may take before answers come too slowly, and what it may hold."""

from __future__ import annotations

import numpy as np

from slosched.core.jit import njit
from slosched.core.table import Floats, Ints
from slosched.planner import model as c

SAFE_SHARE = 0.9
"""Share of its pace that a running request is to use: the rest is for errors of the step-time model."""

PATIENCE = 2.0
"""Steps ahead of its pace that an answer must be to sit one out."""


@njit(nogil=True, cache=True, error_model="numpy")
def safe_step_s(jobs: Floats, running: int, engine: Floats) -> float:
    """Longest next step with which nobody's TPOT limit is in danger.

    A running request may take, per token to come, its limit plus an equal part of what it has saved so far
    (or less, if it is behind): its pace. The next step is to take at most `SAFE_SHARE` of the slowest pace
    needed. Requests whose TPOT limit cannot be kept even without any prompt do not count, nor do those that
    have missed another limit.

    Parameters
    ----------
    jobs, running, engine
        As in `slosched.planner.model.evaluate`.

    Returns
    -------
    float
        Seconds; infinity if nobody who runs has a TPOT limit to keep.
    """
    decoding, context = 0.0, 0.0
    for i in range(running):
        if jobs[i, c.TODO] == 0.0:
            decoding += 1.0
            context += jobs[i, c.HAVE]
    alone_s = engine[c.BASE] + engine[c.SEQUENCE] * decoding + engine[c.KV_TOKEN] * context
    pace_s = np.inf
    for i in range(running):
        own_s = jobs[i, c.TPOT]
        late = jobs[i, c.FIRST] > jobs[i, c.FIRST_DUE] or engine[c.NOW] > jobs[i, c.E2E_DUE]
        if own_s == np.inf or late:
            continue
        if jobs[i, c.TODO] == 0.0:
            used_s = engine[c.NOW] - jobs[i, c.FIRST]
            own_s += (own_s * (jobs[i, c.GENERATED] - 1.0) - used_s) / jobs[i, c.LEFT]
            if SAFE_SHARE * own_s < alone_s:
                continue
        pace_s = min(pace_s, own_s)
    return float(SAFE_SHARE * pace_s)


def next_step(
    jobs: Floats, running: int, order: Ints, engine: Floats, step_s: float, hurry: bool
) -> tuple[float, Ints]:
    """What a step of `step_s` holds: prompt tokens, and who of the running requests sits it out.

    In a hurry, where a step is too short for all the prompt tokens it could hold, answers that are ahead of
    their pace leave it to prompts: those whose next token, at `SAFE_SHARE` of their TPOT limit, is not due
    before `PATIENCE` such steps, unless their end-to-end limit would suffer if all their tokens came that
    slowly.

    Parameters
    ----------
    jobs, running, order, engine
        As in `slosched.planner.model.evaluate`.
    step_s
        Seconds the step may take, above 0.
    hurry
        Whether answers may sit it out.

    Returns
    -------
    tuple
        Tokens, at least 1, infinity for what the token budget leaves; running jobs, ascending.
    """
    decoding, context, prompt = _load(jobs, running)
    if prompt < 0 and len(order) > 0:
        prompt = int(order[0])
    idle = np.empty(0, dtype=np.int64)
    if prompt < 0 or step_s == np.inf:
        return np.inf, idle
    pairs = jobs[prompt, c.HAVE] + 0.5 * jobs[prompt, c.TODO]
    token_s = engine[c.PREFILL_TOKEN] + engine[c.ATTENTION] * pairs

    def room() -> float:
        alone_s = engine[c.BASE] + engine[c.SEQUENCE] * decoding + engine[c.KV_TOKEN] * context
        return float(c.prompt_room(engine, alone_s, decoding, token_s, step_s))

    tokens = room()
    if hurry and tokens < engine[c.BUDGET] - decoding:
        idle = _ahead(jobs, running, engine, step_s)
        decoding -= len(idle)
        context -= float(jobs[idle, c.HAVE].sum())
        tokens = room()
    return (np.inf if tokens >= engine[c.BUDGET] - decoding else max(1.0, np.floor(tokens))), idle


@njit(nogil=True, cache=True)
def _load(jobs: Floats, running: int) -> tuple[float, float, int]:
    """Running requests that decode, their context, and the first one still in prefill, or -1."""
    decoding, context, prompt = 0.0, 0.0, -1
    for i in range(running):
        if jobs[i, c.TODO] == 0.0:
            decoding += 1.0
            context += jobs[i, c.HAVE]
        elif prompt < 0:
            prompt = i
    return decoding, context, prompt


@njit(nogil=True, cache=True)
def _ahead(jobs: Floats, running: int, engine: Floats, step_s: float) -> Ints:
    """Running jobs that can sit out a step of this length, see `next_step`."""
    idle, count = np.empty(running, np.int64), 0
    later_s, last = PATIENCE * step_s, jobs.shape[1] - 1
    for i in range(running):
        pace_s = SAFE_SHARE * jobs[i, c.TPOT]
        if jobs[i, c.TODO] > 0.0 or pace_s == np.inf:
            continue
        due_s = jobs[i, c.FIRST] + pace_s * jobs[i, c.GENERATED]
        slow_s = engine[c.NOW] + later_s * jobs[i, last]
        if due_s >= engine[c.NOW] + later_s and slow_s <= jobs[i, c.E2E_DUE]:
            idle[count] = i
            count += 1
    return idle[:count]
