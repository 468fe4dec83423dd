"""How much of a waiting prompt the prefix cache holds, looked up without leaving a trace."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from typing import Any

from slosched.core.arrays import Ints
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats

PROBES = 24
"""Blocks looked up in one step, about a microsecond each."""


class PrefixPeek:
    """Fills `RequestTable.cached_tokens` of waiting requests.

    Newcomers are looked up first, then everybody waiting in turn, `PROBES` blocks a step in all. The cache
    evicts the end of a prefix before its beginning, so the length of a hit is found by bisection, and one
    that is known is confirmed by two looks. ``get_computed_blocks`` makes events and, in some releases,
    counts in vLLM's statistics; the block pool's look-up counts nothing and moves nothing in the order of
    eviction.

    Attributes
    ----------
    on
        Whether this engine's cache can be looked at: one kind of blocks, hashed at their own size.
    """

    def __init__(self, scheduler: Any, ledger: Ledger, stats: Stats) -> None:
        self._ledger, self._stats = ledger, stats
        self.on = supported(scheduler)
        if self.on:
            self._block = int(scheduler.block_size)
            self._pool = scheduler.kv_cache_manager.block_pool
        self._new: deque[tuple[int, int]] = deque()
        self._turn = 0
        self._left = 0

    def look(self, joined: Sequence[int], waiting: Ints) -> None:
        """Look up newcomers and as many of the waiting rows as there are looks left."""
        if not self.on:
            return
        table, queued = self._ledger.table, self._ledger.queued
        self._new.extend((row, int(table.serial[row])) for row in joined)
        self._left = PROBES
        try:
            while self._new and self._left > 0:
                row, serial = self._new.popleft()
                if queued[row] and table.serial[row] == serial:
                    table.cached_tokens[row] = self._tokens(row)
            for _ in range(len(waiting)):
                if self._left <= 0:
                    break
                self._turn = (self._turn + 1) % len(waiting)
                row = int(waiting[self._turn])
                table.cached_tokens[row] = self._tokens(row)
        except Exception as error:
            self.on = False
            self._stats.failure("prefix-peek", error)

    def _tokens(self, row: int) -> int:
        """Tokens of the longest cached beginning; the last token is always computed anew."""
        request = self._ledger.requests[row]
        hashes = request.block_hashes
        most = min(len(hashes), (request.num_tokens - 1) // self._block)
        low, high = 0, most
        known = min(most, int(self._ledger.table.cached_tokens[row]) // self._block)
        if known and self._cached(hashes[known - 1]):
            low = known
        elif known:
            high = known - 1
        if low < high and not self._cached(hashes[low]):
            high = low
        while low < high:  # the first `low` blocks are cached, and no more than `high`
            middle = (low + high + 1) // 2
            if self._cached(hashes[middle - 1]):
                low = middle
            else:
                high = middle - 1
        return low * self._block

    def _cached(self, block_hash: Any) -> bool:
        self._left -= 1
        return self._pool.get_cached_block(block_hash, [0]) is not None


def supported(scheduler: Any) -> bool:
    """Whether the hits of waiting requests can be looked up in this scheduler's prefix cache."""
    manager = getattr(scheduler, "kv_cache_manager", None)
    pool = getattr(manager, "block_pool", None)
    look = getattr(pool, "get_cached_block", None)
    groups = list(getattr(getattr(scheduler, "kv_cache_config", None), "kv_cache_groups", ()))
    if not getattr(manager, "enable_caching", False) or look is None or len(groups) != 1:
        return False
    block = getattr(scheduler, "block_size", None)
    same_size = getattr(groups[0].kv_cache_spec, "block_size", block) == block
    same_hash = getattr(pool, "hash_block_size", block) == block
    return same_size and same_hash and len(inspect.signature(look).parameters) == 2
