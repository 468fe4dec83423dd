"""Lets others pass a request at the head of the queue that does not fit in memory."""

from __future__ import annotations

from typing import Any

from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.queue import SloQueue

MOST = 4
"""Requests passed in one step."""

REMEMBERED = 1024


class Bypass:
    """vLLM stops admitting at the first request whose prompt does not fit in the free blocks.

    Such a request is held for the step, so that smaller ones behind it are tried. Each is passed for so many
    seconds from when it was first found not to fit; after that it blocks the queue until it fits, as in
    vLLM, so that nobody is passed for ever.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._since: dict[int, float] = {}

    def apply(self, scheduler: Any, queue: SloQueue, *, now_s: float, limit_s: float) -> int:
        """Hold the heads of the queue that do not fit; returns how many."""
        free = free_blocks(scheduler)
        passed = 0
        while passed < MOST and queue:
            request = queue.peek_request()
            row = self._ledger.rows[request.request_id]
            if self.blocks_needed(scheduler, row, request) <= free:
                break
            serial = int(self._ledger.table.serial[row])
            if now_s - self._since.setdefault(serial, now_s) > limit_s:
                break
            passed += 1
            queue.hold(row)
        while len(self._since) > REMEMBERED:
            del self._since[next(iter(self._since))]
        return passed

    def blocks_needed(self, scheduler: Any, row: int, request: Any) -> int:
        """Blocks that vLLM must find before it admits the request; at least so many, if not more."""
        tokens = request.num_tokens - int(self._ledger.table.cached_tokens[row])
        if not getattr(scheduler, "scheduler_reserve_full_isl", False):
            tokens = min(tokens, scheduler.max_num_scheduled_tokens)
        return -(-int(tokens) // int(scheduler.block_size))


def free_blocks(scheduler: Any) -> int:
    """Blocks that may be given to newcomers: a watermark is kept free for those who run."""
    manager = scheduler.kv_cache_manager
    kept = int(getattr(manager, "watermark_blocks", 0)) if scheduler.running else 0
    return max(0, int(manager.block_pool.get_num_free_blocks()) - kept)
