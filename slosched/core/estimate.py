"""What is estimated from a snapshot: service times, deadlines, and who is past hope."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.remaining import remaining_tokens
from slosched.core.snapshot import Snapshot


def decode_step_s(snapshot: Snapshot) -> float:
    """Seconds of a decode step with the requests running now (at least one)."""
    running = snapshot.running
    kv = int(snapshot.table.computed_tokens[running].sum())
    return float(snapshot.step_time.predict(sequences=max(1, len(running)), kv_tokens=kv))


def prefill_s(snapshot: Snapshot, rows: Ints) -> Floats:
    """Seconds to compute what is missing of the prompts (and of answers to be recomputed), each alone.

    Waiting requests have nothing computed; what the prefix cache is known to hold is left out.
    """
    t = snapshot.table
    have = np.maximum(t.computed_tokens[rows], t.cached_tokens[rows]).astype(np.float64)
    todo = np.maximum(1.0, t.prompt_tokens[rows] + t.generated_tokens[rows] - have)
    steps = np.ceil(todo / snapshot.limits.max_num_batched_tokens)
    model = snapshot.step_time
    linear = model.prefill_token_s * todo + model.attention_work_s * todo * (have + todo / 2)
    knee = model.knee_token_s * np.maximum(0.0, todo - steps * model.knee_tokens)
    return np.asarray(steps * model.base_s + linear + knee)


def remaining_s(snapshot: Snapshot, rows: Ints, step_s: float, tokens: Floats | None = None) -> Floats:
    """Expected seconds to the end of the answer once running, at `step_s` per output token.

    `tokens` are the expected tokens to come, if the caller knows them already.
    """
    t = snapshot.table
    if tokens is None:
        tokens = remaining_tokens(t.atoms, rows, t.generated_tokens)
    return np.asarray(prefill_s(snapshot, rows) + (tokens - 1.0) * step_s)


def deadline_s(snapshot: Snapshot, rows: Ints) -> Floats:
    """Clock time by which the next thing is due; infinity for best effort.

    The first token is due at arrival + TTFT limit; output token j of a request with a TPOT limit at
    arrival + TTFT limit + j·TPOT limit; the whole answer at arrival + e2e limit; the earliest counts.
    """
    t = snapshot.table
    arrival, generated = t.arrival_s[rows], t.generated_tokens[rows]
    open_ = generated == 0
    first = np.where(open_, arrival + t.ttft_s[rows], np.inf)
    tpot = t.tpot_s[rows]
    start = np.where(np.isfinite(t.ttft_s[rows]), arrival + t.ttft_s[rows], t.first_token_s[rows])
    paced = ~open_ & np.isfinite(tpot)
    token = np.where(paced, start + generated * np.where(paced, tpot, 0.0), np.inf)
    return np.asarray(np.minimum(np.minimum(first, token), arrival + t.e2e_s[rows]))


def latest_start_s(snapshot: Snapshot, rows: Ints, step_s: float, tokens: Floats | None = None) -> Floats:
    """Latest clock time at which service may begin if the limits are to be kept; infinity for best effort.

    `tokens` as in `remaining_s`.
    """
    t = snapshot.table
    arrival = t.arrival_s[rows]
    first = np.where(t.generated_tokens[rows] == 0, arrival + t.ttft_s[rows], np.inf)
    e2e = arrival + t.e2e_s[rows]
    return np.asarray(
        np.minimum(first - prefill_s(snapshot, rows), e2e - remaining_s(snapshot, rows, step_s, tokens))
    )


def late_first(snapshot: Snapshot, rows: Ints) -> NDArray[np.bool_]:
    """Which requests have their first token, and had it too late."""
    t = snapshot.table
    waited_s = t.first_token_s[rows] - t.arrival_s[rows]
    return np.asarray((t.generated_tokens[rows] > 0) & (waited_s > t.ttft_s[rows]))


def hopeless(
    snapshot: Snapshot, rows: Ints, step_s: float, tokens: Floats | None = None
) -> NDArray[np.bool_]:
    """Which requests would miss a limit even if served at once: the one rule for "hopeless".

    `tokens` as in `remaining_s`.
    """
    past = latest_start_s(snapshot, rows, step_s, tokens) < snapshot.now_s
    return np.asarray(past | late_first(snapshot, rows))
