"""What becomes of requests that will miss a limit whatever is done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.estimate import decode_step_s, late_first, prefill_s, remaining_s
from slosched.core.snapshot import Snapshot

HOPELESS = ("keep", "demote", "reject")
"""Ways to treat them: as if they had been promised longer, behind all others, not at all."""


def best_chance(snapshot: Snapshot, rows: Ints) -> Floats:
    """Chance to keep all limits in an engine that drops everything else now.

    Parameters
    ----------
    snapshot, rows
        Requests that have no token yet.

    Returns
    -------
    Floats
        Shape (len(rows),): share of the forecast's atoms with which limits could be kept, prompt and answer
        computed alone and at once; 0 or 1 without an end-to-end limit. No order of service gives more.

    Examples
    --------
    >>> from slosched import LengthForecast, Request, Slo
    >>> lengths = LengthForecast.quantiles({0.1: 10, 0.9: 1000})
    >>> queue = [Request(request_id=str(i), prompt_tokens=100, forecast=lengths, slo=slo)
    ...          for i, slo in enumerate((Slo(), Slo(ttft_s=1e-4), Slo(e2e_s=0.8)))]
    >>> best_chance(Snapshot.of(queue), np.arange(3)).tolist()
    [1.0, 0.0, 0.5]
    """
    t, model = snapshot.table, snapshot.step_time
    waited_s = snapshot.now_s - t.arrival_s[rows]
    first_s = waited_s + prefill_s(snapshot, rows)
    token_s = model.base_s + model.sequence_s + model.kv_token_s * t.prompt_tokens[rows]
    last_s = first_s[:, None] + (t.atoms[rows] - 1.0) * token_s[:, None]
    chance = (last_s <= t.e2e_s[rows, None]).mean(axis=1)
    paced = (token_s <= t.tpot_s[rows]) | (t.atoms[rows, -1] <= 1.0)
    return np.asarray(np.where((first_s <= t.ttft_s[rows]) & paced, chance, 0.0))


def refused(snapshot: Snapshot, rows: Ints, least_chance: float) -> Ints:
    """Those of `rows` whose `best_chance` is below `least_chance`; none without limits or with a token."""
    t = snapshot.table
    promised = np.isfinite(t.ttft_s[rows]) | np.isfinite(t.tpot_s[rows]) | np.isfinite(t.e2e_s[rows])
    rows = rows[promised & (t.generated_tokens[rows] == 0)]
    return np.asarray(rows[best_chance(snapshot, rows) < least_chance])


def patient(snapshot: Snapshot) -> Snapshot:
    """The snapshot as if a TTFT or end-to-end limit that cannot be kept were doubled until it can.

    So a late request keeps its claim instead of going behind all others; each doubling makes it less urgent.
    """
    t = snapshot.table
    rows = np.concatenate([snapshot.waiting, snapshot.running])
    waited_s = snapshot.now_s - t.arrival_s[rows]
    ttft_s, e2e_s = t.ttft_s.copy(), t.e2e_s.copy()
    # Without a first token: what it takes. With one the limit is kept or lost, and orders nobody.
    first_s = np.where(t.generated_tokens[rows] > 0, 0.0, waited_s + prefill_s(snapshot, rows))
    ttft_s[rows] = np.where(late_first(snapshot, rows), np.inf, _doubled(t.ttft_s[rows], first_s))
    whole_s = waited_s + remaining_s(snapshot, rows, decode_step_s(snapshot))
    e2e_s[rows] = _doubled(t.e2e_s[rows], whole_s)
    return replace(snapshot, table=t.with_columns(ttft_s=ttft_s, e2e_s=e2e_s))


def _doubled(limit_s: Floats, need_s: Floats) -> Floats:
    """Limits times the least power of two, 1 or more, that reaches what is needed."""
    times = np.ceil(np.log2(np.maximum(1.0, need_s / limit_s)))
    return np.asarray(limit_s * np.exp2(times))
