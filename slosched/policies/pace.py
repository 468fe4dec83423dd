"""Limits as policies see them that know only a first token and a pace; when tokens and answers are due."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.estimate import decode_step_s
from slosched.core.remaining import remaining_tokens
from slosched.core.snapshot import Snapshot

FIRST_SHARE = 0.5
"""Share of an end-to-end limit that its first token may take where nothing else says how to split it."""


def in_decode(snapshot: Snapshot, rows: Ints) -> NDArray[np.bool_]:
    """Which rows have answered and have but one token to compute for the next."""
    t = snapshot.table
    last = t.computed_tokens[rows] + 1 >= t.prompt_tokens[rows] + t.generated_tokens[rows]
    return np.asarray(last & (t.generated_tokens[rows] > 0))


def answer_tokens(snapshot: Snapshot, rows: Ints) -> Floats:
    """Expected length of the whole answer, given what is there of it."""
    t = snapshot.table
    left = remaining_tokens(t.atoms, rows, t.generated_tokens)
    return np.asarray(t.generated_tokens[rows] + left)


def first_and_pace_s(
    snapshot: Snapshot, rows: Ints, pace_s: float | None = None, *, whole_paces: bool = True
) -> tuple[Floats, Floats]:
    """TTFT and TPOT limits in seconds, end-to-end limits split into the two.

    An end-to-end limit E leaves the first token of an answer of n expected tokens max(E - n·P, E / 2), P its
    TPOT limit or else `pace_s`, and once the first token is there what it took. The rest of E, divided by n,
    limits the pace, unless that is below a decode step now: then E is lost, and slows nobody down.

    Parameters
    ----------
    snapshot, rows
        Whose limits.
    pace_s
        Pace of requests that have limits, but none on TPOT, above 0. Without it the split of E allows for
        twice a decode step now, and a TTFT limit alone implies no pace.
    whole_paces
        Whether what an end-to-end limit leaves for the answer limits the pace. A rule that obeys the tightest
        pace of all should not take it for one: a length forecast that is too long makes it arbitrarily tight.

    Returns
    -------
    tuple of Floats
        TTFT and TPOT limits, each shape (len(rows),), above 0; infinity where nothing was promised.

    Examples
    --------
    >>> from slosched import LengthForecast, Request, Slo
    >>> queue = [Request(request_id=str(i), prompt_tokens=9, forecast=LengthForecast.point(10), slo=slo)
    ...          for i, slo in enumerate((Slo(ttft_s=1.0, tpot_s=0.05), Slo(e2e_s=4.0), Slo()))]
    >>> first, pace = first_and_pace_s(Snapshot.of(queue), np.arange(3), pace_s=0.1)
    >>> first.tolist(), pace.tolist()
    ([1.0, 3.0, inf], [0.05, 0.1, inf])
    """
    t, step_s = snapshot.table, decode_step_s(snapshot)
    ttft, tpot, e2e = t.ttft_s[rows], t.tpot_s[rows], t.e2e_s[rows]
    whole = np.isfinite(e2e)
    if pace_s is not None:
        tpot = np.where(np.isinf(tpot) & (whole | np.isfinite(ttft)), pace_s, tpot)
    n, limit = answer_tokens(snapshot, rows), np.where(whole, e2e, 0.0)
    reserve = n * np.where(np.isfinite(tpot), tpot, 2 * step_s)
    split = np.maximum(limit - reserve, FIRST_SHARE * limit)
    there = t.generated_tokens[rows] > 0
    split = np.where(there, t.first_token_s[rows] - t.arrival_s[rows], split)
    first = np.where(whole, np.minimum(ttft, split), ttft)
    rest = (limit - np.where(whole, first, 0.0)) / n
    return first, np.where(whole & (rest >= step_s) & whole_paces, np.minimum(tpot, rest), tpot)


def next_due_s(snapshot: Snapshot, rows: Ints, first_s: Floats, pace_s: Floats) -> Floats:
    """When the next token of each row is due on the envelope: A + S + g·P; infinity without limits.

    Without S, the envelope begins at the real first token.
    """
    t = snapshot.table
    start = np.where(np.isfinite(first_s), t.arrival_s[rows] + first_s, t.first_token_s[rows])
    return _from(snapshot, rows, start, pace_s)


def paced_due_s(snapshot: Snapshot, rows: Ints, first_s: Floats, pace_s: Floats) -> Floats:
    """As `next_due_s`, with the pace counted from the real first token, as TPOT is measured."""
    t = snapshot.table
    there = t.generated_tokens[rows] > 0
    start = np.where(there, t.first_token_s[rows], t.arrival_s[rows] + first_s)
    return _from(snapshot, rows, start, pace_s)


def _from(snapshot: Snapshot, rows: Ints, start_s: Floats, pace_s: Floats) -> Floats:
    generated = snapshot.table.generated_tokens[rows]
    steps = np.where(generated > 0, np.maximum(1, generated) * pace_s, 0.0)
    return np.asarray(np.where(np.isnan(start_s), np.inf, start_s + steps))


def answer_due_s(snapshot: Snapshot, rows: Ints) -> Floats:
    """When the whole answer is due: A + E, or its last token by its pace; infinity without either limit."""
    t = snapshot.table
    arrival, ttft, tpot = t.arrival_s[rows], t.ttft_s[rows], t.tpot_s[rows]
    paced = np.isfinite(tpot)
    promised = np.where(np.isfinite(ttft), arrival + ttft, snapshot.now_s)
    start = np.where(t.generated_tokens[rows] > 0, t.first_token_s[rows], promised)
    last = start + (answer_tokens(snapshot, rows) - 1.0) * np.where(paced, tpot, 0.0)
    return np.asarray(np.minimum(arrival + t.e2e_s[rows], np.where(paced, last, np.inf)))
