"""Preempts running requests where the policy asks for it and it is safe."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.remaining import remaining_tokens
from slosched.integrations.vllm.capability import FULL, Capability
from slosched.integrations.vllm.config import GuardsConfig
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats


class Preemption:
    """Bounded, safe preemption between steps.

    Bounds: so many a step, so many per request, a minimum run time, and a margin: a request that is expected
    to end soon is left alone. A virtual clock has its own policies under test and turns the bounds off.
    """

    def __init__(
        self, capability: Capability, guards: GuardsConfig, ledger: Ledger, stats: Stats, *, bounded: bool
    ) -> None:
        self._capability, self._guards, self._ledger, self._stats = capability, guards, ledger, stats
        self._bounded = bounded

    def possible(self, scheduler: Any) -> bool:
        """Whether anyone may be preempted now: not while the engine is paused, nobody could drain them."""
        if self._capability.level != FULL or not self._guards.preempt:
            return False
        state = getattr(scheduler, "pause_state", getattr(scheduler, "_pause_state", None))
        return state is None or getattr(state, "name", "") == "UNPAUSED"

    def apply(self, scheduler: Any, rows: Ints, now_s: float, decode_s: float) -> list[int]:
        """Preempt those of the rows that may be; returns the rows preempted."""
        done: list[int] = []
        most = self._guards.max_preemptions_per_step if self._bounded else len(rows)
        for row in rows.tolist():
            if len(done) >= most:
                break
            request = self._ledger.requests[row]
            if request is None or (self._bounded and not self._worthwhile(row, now_s, decode_s)):
                continue
            if preempt(scheduler, request, drop_keyword=self._capability.preempt_keyword):
                done.append(row)
        self._stats.preempted += len(done)
        return done

    def _worthwhile(self, row: int, now_s: float, decode_s: float) -> bool:
        table, guards = self._ledger.table, self._guards
        if table.preemptions[row] >= guards.max_preemptions_per_request:
            return False
        ran_s = now_s - self._ledger.admitted_s[row]
        if not math.isnan(ran_s) and ran_s * 1000.0 < guards.min_run_ms:
            return False
        table.generated_tokens[row] = self._ledger.requests[row].num_output_tokens
        left = remaining_tokens(table.atoms, np.array([row]), table.generated_tokens)
        left_s = decode_s * float(left[0])
        return left_s * 1000.0 > guards.preempt_margin_ms


def preempt(scheduler: Any, request: Any, *, drop_keyword: bool) -> bool:
    """Take one running request out of the running list, its KV freed; False if that is not safe now."""
    can_free = getattr(scheduler, "_request_blocks_can_be_freed", None)
    if request.status.name != "RUNNING" or (can_free is not None and not can_free(request)):
        return False
    try:
        scheduler.running.remove(request)
    except ValueError:
        return False
    if drop_keyword:
        drop = getattr(scheduler, "requires_kv_delivery", False)
        scheduler._preempt_request(request, time.monotonic(), drop_stale_output=drop)
    else:
        scheduler._preempt_request(request, time.monotonic())
    # Without this a runner that keeps states would take a resume in the same step for a continuation.
    known = getattr(scheduler, "prev_step_scheduled_req_ids", None)
    if known is not None:
        known.discard(request.request_id)
    return True
