"""Answers with no limit to keep give way to requests that can still keep theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Ints
from slosched.core.estimate import prefill_s
from slosched.core.remaining import remaining_tokens
from slosched.core.snapshot import Snapshot

Bools = NDArray[np.bool_]


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

FEW = 256
"""Waiting requests that are looked at first, those with the smallest prompts: the answer is the same as from
all, sooner."""


def give_way(snapshot: Snapshot, least_chance: float) -> Way:
    """Find room for waiting requests that can keep their limits, at the cost of answers with none to keep.

    A request with a limit on its first token only is kept, or lost, once that token is out; another one that
    will miss a limit whatever is done has none to keep either. The rest of such an answer may stop and go on
    later, computed again. As many stop as it takes to let in the prompts of one step, the longest to come
    first (most expected tokens left). They come back when nobody waits who can still keep a limit, or when
    they starve.

    Parameters
    ----------
    snapshot
        The engine's state.
    least_chance
        Chance to keep all limits below which they count as lost, at least 0.
    """
    t, limits = snapshot.table, snapshot.limits
    nobody = snapshot.running[:0]
    free = _nothing_to_keep(snapshot, snapshot.waiting, least_chance)
    can = snapshot.running[_nothing_to_keep(snapshot, snapshot.running, least_chance)]
    if len(can) == 0 and not free.any():
        return Way(snapshot, nobody, nobody)
    aside, others = snapshot.waiting[free], snapshot.waiting[~free]
    need, somebody = _wanted(snapshot, others)
    if not somebody:
        return Way(snapshot, nobody, nobody)
    block = limits.block_tokens
    slots = len(need) - (limits.max_num_seqs - len(snapshot.running))
    blocks = int(np.ceil(need / block).sum()) - snapshot.free_blocks
    preempt = nobody
    if slots > 0 or blocks > 0:
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


def _wanted(snapshot: Snapshot, rows: Ints) -> tuple[Ints, bool]:
    """Prompt tokens of those that a step could let in, fewest first; and whether anybody can keep a limit."""
    t, budget = snapshot.table, snapshot.limits.max_num_batched_tokens
    need = t.prompt_tokens[rows] - t.cached_tokens[rows]
    if len(rows) > FEW:  # the smallest prompts fill a step, as a rule
        few = np.argpartition(need, FEW)[:FEW]
        kept = np.sort(need[few][_can_keep(snapshot, rows[few])])
        if kept.sum() > budget:
            return kept[np.cumsum(kept) <= budget], True
    kept = np.sort(need[_can_keep(snapshot, rows)])
    return kept[np.cumsum(kept) <= budget], len(kept) > 0


def _nothing_to_keep(snapshot: Snapshot, rows: Ints, least_chance: float) -> Bools:
    """Whether a first token is out, and no limit depends on when the rest comes.

    Either none is left, or one is lost: the first token came too late, or with fewer than `least_chance` of
    the forecast's lengths the rest would come in time if it were served alone from now on.
    """
    t, model = snapshot.table, snapshot.step_time
    out = t.generated_tokens[rows] > 0
    rows = rows[out]
    if len(rows) == 0:
        return out
    made, first_s = t.generated_tokens[rows, None], t.first_token_s[rows, None]
    free = np.isinf(t.tpot_s[rows]) & np.isinf(t.e2e_s[rows])
    late = t.first_token_s[rows] - t.arrival_s[rows] > t.ttft_s[rows]
    token_s = model.base_s + model.sequence_s + model.kv_token_s * t.computed_tokens[rows]
    left = np.maximum(1.0, t.atoms[rows] - made)  # (rows, atoms)
    end_s = snapshot.now_s + left * token_s[:, None]
    misses = end_s - t.arrival_s[rows, None] > t.e2e_s[rows, None]
    misses |= end_s - first_s > t.tpot_s[rows, None] * np.maximum(1.0, made + left - 1.0)
    out[out] = free | late | (1.0 - misses.mean(axis=1) < least_chance)
    return out


def _can_keep(snapshot: Snapshot, rows: Ints) -> Bools:
    """Whether a request has a limit, and its first token would come in time if it were served at once."""
    t = snapshot.table
    limited = np.isfinite(np.minimum(np.minimum(t.ttft_s[rows], t.e2e_s[rows]), t.tpot_s[rows]))
    first_s = snapshot.now_s - t.arrival_s[rows] + prefill_s(snapshot, rows)
    return np.asarray(limited & (first_s <= np.minimum(t.ttft_s[rows], t.e2e_s[rows])))
