"""What a router expects of an engine from what it knows: rivals that predict stand on this."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slosched.routers.base import FleetSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a request would see at each engine, shape (engines,), in seconds.

    Parameters
    ----------
    ttft_s
        From its arrival to its first token.
    tpot_s
        Per output token after it.
    prompt_tokens
        Its own prompt tokens that the cache does not hold.
    queued_tokens
        Prompt tokens before it.
    """

    ttft_s: np.ndarray[tuple[int], np.dtype[np.float64]]
    tpot_s: np.ndarray[tuple[int], np.dtype[np.float64]]
    prompt_tokens: np.ndarray[tuple[int], np.dtype[np.float64]]
    queued_tokens: np.ndarray[tuple[int], np.dtype[np.float64]]


def expected(row: int, fleet: FleetSnapshot) -> Expected:
    """First come, first served behind everything that is there, in steps filled with prompt tokens."""
    t, n = fleet.table, len(fleet.engines)
    own = t.prompt_tokens[row] - fleet.hits(row).astype(np.float64)
    ttft, tpot, queued = np.zeros(n), np.zeros(n), np.zeros(n)
    for i, view in enumerate(fleet.engines):
        limits, model = view.engine.limits, view.engine.step_time
        waits = np.isnan(t.first_token_s[view.rows])
        queued[i] = float((t.prompt_tokens - t.cached_tokens)[view.rows[waits]].sum())
        decoding = view.rows[~waits]
        kv = float((t.prompt_tokens + t.generated_tokens)[decoding].sum())
        alone = float(model.predict(sequences=len(decoding), kv_tokens=kv))
        chunk = max(1.0, limits.max_num_batched_tokens - len(decoding))
        steps = np.ceil((queued[i] + own[i]) / chunk)
        full = model.prefill_token_s + model.knee_token_s
        behind = max(0.0, len(view.rows) + 1 - limits.max_num_seqs)  # a slot falls free every so often
        answer = float(np.mean(t.atoms[view.rows])) if len(view.rows) else 0.0
        wait = behind * answer * alone / limits.max_num_seqs
        ttft[i] = fleet.now_s - t.arrival_s[row] + steps * alone + full * (queued[i] + own[i]) + wait
        together = min(limits.max_num_seqs, len(view.rows) + 1)
        tpot[i] = float(model.predict(sequences=together, kv_tokens=kv + float(t.prompt_tokens[row])))
    return Expected(ttft_s=ttft, tpot_s=tpot, prompt_tokens=own, queued_tokens=queued)
