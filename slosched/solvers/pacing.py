"""How many prompt tokens a step may hold before answers come too slowly."""

from __future__ import annotations

import numpy as np
from numba import njit

from slosched.solvers import continuous as c
from slosched.table import Floats, Ints

SAFE_SHARE = 0.9
"""Share of its pace that a running request is to use: the rest is for errors of the step-time model."""


@njit(nogil=True, cache=True, error_model="numpy")
def safe_room(jobs: Floats, running: int, order: Ints, engine: Floats) -> float:
    """Most prompt tokens in the next step with which nobody's TPOT limit is in danger.

    A running request may take, per token to come, its limit plus an equal part of what it has saved so far
    (or less, if it is behind): its pace. The next step is to take at most `SAFE_SHARE` of the slowest pace
    needed. Requests whose limit cannot be kept even without any prompt do not count.

    Parameters
    ----------
    jobs, running, engine
        As in `slosched.solvers.continuous.evaluate`.
    order
        Job indices of the waiting requests, the next one first: whose prompt the step would hold.

    Returns
    -------
    float
        Tokens, at least 0; infinity if nobody who runs has a TPOT limit.
    """
    decoding, context, prompt = 0.0, 0.0, -1
    for i in range(running):
        if jobs[i, c.TODO] == 0.0:
            decoding += 1.0
            context += jobs[i, c.HAVE]
        elif prompt < 0:
            prompt = i
    if prompt < 0:
        if len(order) == 0:
            return np.inf
        prompt = order[0]
    alone_s = engine[c.BASE] + engine[c.SEQUENCE] * decoding + engine[c.KV_TOKEN] * context
    pace_s = np.inf
    for i in range(running):
        own_s = jobs[i, c.TPOT]
        if own_s == np.inf:
            continue
        if jobs[i, c.TODO] == 0.0:
            used_s = engine[c.NOW] - jobs[i, c.FIRST]
            own_s += (own_s * (jobs[i, c.GENERATED] - 1.0) - used_s) / jobs[i, c.LEFT]
            if SAFE_SHARE * own_s < alone_s:
                continue
        pace_s = min(pace_s, own_s)
    if pace_s == np.inf:
        return np.inf
    left_s = SAFE_SHARE * pace_s - alone_s
    token_s = engine[c.PREFILL_TOKEN] + engine[c.ATTENTION] * (
        jobs[prompt, c.HAVE] + 0.5 * jobs[prompt, c.TODO]
    )
    below_knee = max(0.0, engine[c.KNEE_TOKENS] - decoding)
    room = left_s / token_s
    if room > below_knee:
        room = (left_s + engine[c.KNEE_TOKEN] * below_knee) / (token_s + engine[c.KNEE_TOKEN])
        room = max(room, below_knee)
    return float(max(0.0, room))
