"""Before which steps a plan could change anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from slosched.core.engine import EngineLimits
from slosched.integrations.vllm.guarded_policy import GuardedPolicy
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.queue import SloQueue
from slosched.policies.base import Policy

REFRESHED_STEPS = 8
"""Steps after which an order of a queue that has not changed is asked for again, since it may depend on time:
half of those after which it would be too old."""


class Prefilling:
    """Which running requests have prompt, or what was lost to preemption, still to be computed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rows: dict[int, bool] = {}

    def begun(self, rows: Iterable[int]) -> None:
        """These rows were admitted."""
        self._rows.update(dict.fromkeys(rows, True))

    def count(self) -> int:
        """How many there are now."""
        return len(self.rows())

    def rows(self) -> dict[int, bool]:
        """Their rows; those left out whose KV a connector is loading, for they have left the queue only."""
        requests, queued = self._ledger.requests, self._ledger.queued
        running: dict[int, bool] = {}
        for row in list(self._rows):
            r = requests[row]
            loading = r is not None and r.status.name == "WAITING_FOR_REMOTE_KVS"
            if loading:
                continue
            if r is None or queued[row] or r.num_computed_tokens >= r.num_tokens - 1:
                del self._rows[row]
            else:
                running[row] = True
        return running


class Asking:
    """Says whether the policy is to be asked before a step.

    A policy says by its attributes when a plan of its could matter (`slosched.policies.base.Policy`). Beyond
    that nobody is asked where no order of the waiting requests could admit anyone.
    """

    def __init__(
        self,
        policy: Policy,
        planner: GuardedPolicy,
        queue: SloQueue,
        ledger: Ledger,
        prefilling: Prefilling,
        limits: EngineLimits,
        *,
        by_slo: bool,
    ) -> None:
        self._planner, self._queue, self._ledger = planner, queue, ledger
        self._prefilling, self._limits, self._by_slo = prefilling, limits, by_slo
        self._paces, self._skips = policy.paces, policy.skips
        self.always = policy.paces or policy.skips
        self._when_full = policy.preempts or policy.rejects or self.always
        self._seen, self._planned = (0, 0), 0

    def ahead(self, scheduler: Any, step: int) -> bool:
        """Whether a plan made beside a step could matter at the next: a place may get free by then.

        Without `always` and the like, only the queue's order is asked for. A plan then stands until somebody
        joins or leaves the queue, or it is `REFRESHED_STEPS` old.
        """
        if self._when_full:
            return self.wanted(scheduler)
        if not self._queue.line or (self._by_slo and not self._ledger.with_slo) or self._planner.open:
            return False
        seen = len(self._queue.line), self._ledger.newcomers
        if seen == self._seen and step - self._planned < REFRESHED_STEPS:
            return False
        self._seen, self._planned = seen, step
        return True

    def wanted(self, scheduler: Any) -> bool:
        """Whether a plan for the coming step could matter."""
        if (self._by_slo and not self._ledger.with_slo) or self._planner.open:
            return False
        if self.always and scheduler.running:
            if self._skips or self._planner.background is not None:
                return True
            if self._paces and self._prefilling.count():
                return True
        if not self._queue.line:
            return False
        return self._when_full or self._somebody_fits(scheduler)

    def _somebody_fits(self, scheduler: Any) -> bool:
        """Whether some order of the waiting requests could admit one: a place, token budget and memory."""
        running = scheduler.running
        if len(running) >= getattr(scheduler, "max_num_active_reqs", self._limits.max_num_seqs):
            return False
        line, table, block = self._queue.line, self._ledger.table, self._limits.block_tokens
        free_tokens = scheduler.kv_cache_manager.block_pool.get_num_free_blocks() * block
        budget = self._limits.max_num_batched_tokens
        # Older releases ask only for the memory of a prompt's first chunk.
        whole = getattr(scheduler, "scheduler_reserve_full_isl", False)
        if whole or budget > free_tokens:
            first = line.rows[0]
            whole_tokens = table.prompt_tokens[first] + table.generated_tokens[first]
            if whole_tokens > free_tokens and table.missing_tokens(line.rows).min() > free_tokens:
                return False
        if self._limits.long_prefill_token_threshold or not self._prefilling.count():
            return True
        demand: int = sum(r.num_tokens - r.num_computed_tokens for r in running)
        return demand < budget
