"""Answers with no limit left give way to requests that can still keep theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.estimate import prefill_s
from slosched.core.remaining import remaining_tokens
from slosched.core.snapshot import Snapshot


class Way(NamedTuple):
    """Who gives way in a step.

    Parameters
    ----------
    seen
        The snapshot without them, their slots and memory free.
    preempt
        Running rows that stop now.
    aside
        Waiting rows that stopped before, and wait on.
    """

    seen: Snapshot
    preempt: Ints
    aside: Ints


RESCUED = "give_way.rescued"
"""Column of the table: 1 for a request that starved, and that stops no more."""


def give_way(snapshot: Snapshot) -> Way:
    """Find room for waiting requests that can keep their limits, at the cost of answers that have none left.

    A request with a limit on its first token only is kept, or lost, once that token is out: the rest of its
    answer has no limit, and may stop and go on later, computed again. As many such answers stop as it takes
    to let in the prompts of one step, the longest to come first (most expected tokens left). They come back
    when nobody waits who can still keep a limit, or when they starve.
    """
    t, limits = snapshot.table, snapshot.limits
    free = _no_limit_left(snapshot, snapshot.waiting)
    aside, others = snapshot.waiting[free], snapshot.waiting[~free]
    wants = others[_can_keep(snapshot, others)]
    nobody = snapshot.running[:0]
    if len(wants) == 0:
        return Way(snapshot, nobody, nobody)
    block = limits.block_tokens
    need = t.prompt_tokens[wants] - t.cached_tokens[wants]
    need = np.sort(need[need <= limits.max_num_batched_tokens])
    need = need[np.cumsum(need) <= limits.max_num_batched_tokens]
    slots = len(need) - (limits.max_num_seqs - len(snapshot.running))
    blocks = int(np.ceil(need / block).sum()) - snapshot.free_blocks
    preempt = nobody
    if slots > 0 or blocks > 0:
        can = snapshot.running[_no_limit_left(snapshot, snapshot.running)]
        can = can[t.extra(RESCUED)[can] == 0.0]
        left = remaining_tokens(t.atoms, can, t.generated_tokens)
        can = can[np.lexsort((t.serial[can], -left))]
        held = np.cumsum(np.ceil(t.computed_tokens[can] / block).astype(np.int64))
        count = max(slots, int(np.searchsorted(held, blocks)) + 1 if blocks > 0 else 0)
        preempt = can[:count]
    gained = int(np.ceil(t.computed_tokens[preempt] / block).sum())
    seen = replace(
        snapshot,
        waiting=others,
        running=snapshot.running[~np.isin(snapshot.running, preempt)],
        free_blocks=snapshot.free_blocks + gained,
    )
    return Way(seen, preempt, aside)


def _no_limit_left(snapshot: Snapshot, rows: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether a first token is out, and nothing that is still to come has a limit."""
    t = snapshot.table
    late = snapshot.now_s - t.arrival_s[rows] > t.e2e_s[rows]
    return np.asarray(
        (t.generated_tokens[rows] > 0) & np.isinf(t.tpot_s[rows]) & (np.isinf(t.e2e_s[rows]) | late)
    )


def _can_keep(snapshot: Snapshot, rows: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether a request has a limit, and its first token would come in time if it were served at once."""
    t = snapshot.table
    limited = np.isfinite(np.minimum(np.minimum(t.ttft_s[rows], t.e2e_s[rows]), t.tpot_s[rows]))
    first_s = snapshot.now_s - t.arrival_s[rows] + prefill_s(snapshot, rows)
    return np.asarray(limited & (first_s <= np.minimum(t.ttft_s[rows], t.e2e_s[rows])))
