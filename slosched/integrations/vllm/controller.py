"""Plans before each step of a vLLM scheduler and watches what comes of it."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

import numpy as np

from slosched.integrations.vllm.capability import OBSERVE_ONLY, Capability
from slosched.integrations.vllm.clock import Clock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.decision import Decision
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats, exporter
from slosched.integrations.vllm.planner import Planner
from slosched.integrations.vllm.preemption import Preemption
from slosched.integrations.vllm.queue import SloQueue
from slosched.integrations.vllm.state import Learned
from slosched.integrations.vllm.stepwatch import StepWatch
from slosched.limits import EngineLimits
from slosched.policies.base import Policy
from slosched.snapshot import Snapshot
from slosched.table import Ints

logger = logging.getLogger("vllm.slosched")

SYNC_STEPS = 8
"""Steps for which a policy that only sorts the queue sees the same running requests."""

SWEEP_STEPS = 2048
"""Steps between searches for rows whose request has left unseen."""

BY_SLO = ("slosched", "edf", "least-laxity")
"""Families of policies that order by arrival when nobody has an SLO: no plan is needed then."""


class Controller:
    """All that the adapter keeps for one scheduler.

    Parameters
    ----------
    scheduler
        The vLLM scheduler, just made and empty.
    policy
        The policy.
    capability
        What may be done.
    config, clock, learned
        Settings, time, and what is learned.
    """

    def __init__(
        self,
        scheduler: Any,
        policy: Policy,
        capability: Capability,
        config: Config,
        clock: Clock,
        learned: Learned,
    ) -> None:
        self.config, self.clock, self.learned, self.capability = config, clock, learned, capability
        self.stats = Stats()
        self.stats.level = capability.level
        self.ledger = Ledger(config, clock, learned, self.stats)
        self.queue = SloQueue(self.ledger)
        self.planner = Planner(policy, config.guards, self.stats, boxed=not clock.virtual)
        self.preemption = Preemption(
            capability, config.guards, self.ledger, self.stats, bounded=not clock.virtual
        )
        self.watch = StepWatch(learned, measure=not clock.virtual)
        self.limits = limits_of(scheduler)
        self.in_flight: deque[dict[str, int]] = deque()
        self._orders = capability.level != OBSERVE_ONLY
        self._native = policy.name == "fcfs"
        # Only vLLM itself preempts under FCFS, and releases that track stale output resume at once, safely.
        self._fences = not (self._native and capability.preempt_keyword)
        self._by_slo = policy.name.startswith(BY_SLO)
        self._preempts, self._paces = policy.preempts, getattr(policy, "paces", False)
        self._knobs: dict[str, Any] = {}
        self._step = 0
        self._starved_s = -1e18
        self._running_rows: Ints = np.empty(0, dtype=np.int64)
        self._synced = 0
        self._last_log_s = self._last_json_s = time.monotonic()
        self._export = None if clock.virtual else exporter(self.stats, config.metrics.port)

    # before a step ----------------------------------------------------------------------------------------

    def before(self, scheduler: Any) -> None:
        """Decide on the step about to be scheduled and prepare queue, running list and budget for it."""
        self._step += 1
        if not self._orders:
            return
        queue = self.queue
        if not len(queue) and not self._paces:
            return
        fenced = self._fenced() if queue.preempted and self._fences else []
        wanted = self._wants_plan(scheduler)
        if not wanted and not fenced and queue.native:
            queue.joined.clear()
            return
        try:
            decision = self._decide(scheduler) if wanted else None
            if decision is None:
                queue.clear_order()
                queue.block(fenced)
            else:
                self._apply(scheduler, decision, fenced)
            if len(queue):
                self._relieve_starving()
        except Exception as error:
            # Whatever happens, nobody is admitted whom a step in flight still computes.
            self.stats.failure("apply", error)
            queue.clear_order()
            queue.block(fenced)

    def after(self, scheduler: Any, output: Any) -> None:
        """Restore the knobs and note what was scheduled."""
        if self._knobs:
            for name, value in self._knobs.items():
                setattr(scheduler, name, value)
            self._knobs = {}
        tokens = output.num_scheduled_tokens
        if tokens:
            self.in_flight.append(tokens)
            self.watch.begin(tokens, scheduler, time.perf_counter())
        if self.queue.admitted:
            self.ledger.admitted(self.queue.admitted, self.clock.now_s(), self.watch.decode_s)
            self.queue.admitted.clear()
        self.planner.launch()

    def _wants_plan(self, scheduler: Any) -> bool:
        if self._native or self.planner.open or (self._by_slo and not self.ledger.with_slo):
            return False
        if self._paces and self.planner.background is not None and scheduler.running:
            return True
        if self._paces and any(r.num_computed_tokens < r.num_tokens - 1 for r in scheduler.running):
            return True
        if not len(self.queue):
            return False
        most = getattr(scheduler, "max_num_active_reqs", self.limits.max_num_seqs)
        return self._preempts or len(scheduler.running) < most

    def _decide(self, scheduler: Any) -> Decision | None:
        try:
            if self.planner.busy:
                return self.planner.latest(self._step - 1)
            snapshot = self._snapshot(scheduler)
            return self.planner.decide(snapshot, self.queue.joined, self.ledger.queued)
        except Exception as error:
            self.stats.failure("snapshot", error)
            return None
        finally:
            self.queue.joined.clear()

    def _snapshot(self, scheduler: Any) -> Snapshot:
        running = self._running(scheduler)
        pool = scheduler.kv_cache_manager.block_pool
        return Snapshot(
            now_s=self.clock.now_s(),
            table=self.ledger.table,
            waiting=self.queue.line.rows.copy(),
            running=running,
            limits=self.limits,
            step_time=self.learned.step_time.model,
            free_blocks=pool.get_num_free_blocks(),
            step=self._step - 1,
        )

    def _running(self, scheduler: Any) -> Ints:
        """Rows of the running requests, up to date; for a mere sort of the queue, of a few steps ago."""
        n = len(scheduler.running)
        lax = self.planner.by_key and not self.clock.virtual
        if not (lax and n == len(self._running_rows) and self._step - self._synced < SYNC_STEPS):
            self._running_rows = self.ledger.sync(scheduler.running)
            self._synced = self._step
        return self._running_rows

    def _fenced(self) -> list[int]:
        """Preempted requests that a step in flight still computes: admitting them now corrupts tokens."""
        return [
            row
            for request_id, row in self.queue.preempted.items()
            if any(request_id in tokens for tokens in self.in_flight)
        ]

    def _apply(self, scheduler: Any, decision: Decision, fenced: list[int]) -> None:
        queue, ledger = self.queue, self.ledger
        serial = ledger.table.serial if decision.serial is None else decision.serial
        if len(decision.preempt) and self.preemption.possible(scheduler):
            rows = decision.alive(decision.preempt, ledger.table.serial)
            # A request is never offered in the step that preempts it, whether or not a step is in flight.
            fenced += self.preemption.apply(scheduler, rows, self.clock.now_s(), self.watch.decode_s)
        if decision.running_order is not None:
            self._reorder(scheduler, decision.alive(decision.running_order, ledger.table.serial))
        if decision.prefill_tokens is not None:
            self._budget(scheduler, decision.prefill_tokens)
        if len(decision.order):
            self.stats.reorder.observe(float(queue.line.place(int(decision.order[0]))))
        queue.set_order(decision.order, serial[decision.order])
        hold = decision.alive(decision.hold, ledger.table.serial).tolist() if len(decision.hold) else []
        queue.block(fenced, hold)
        if hold and not queue and not scheduler.running and not self.in_flight:
            self.stats.failure("all-held")  # nobody would ever run again
            queue.block(fenced)
        else:
            self.stats.held += len(hold)

    def _reorder(self, scheduler: Any, order: Ints) -> None:
        """Put the running list in the planned order; requests the plan did not know stay at the end."""
        position = {row: i for i, row in enumerate(order.tolist())}
        rows = self.ledger.rows
        last = len(position)
        scheduler.running.sort(key=lambda r: position.get(rows.get(r.request_id, -1), last))

    def _budget(self, scheduler: Any, prefill_tokens: int) -> None:
        """Bound the prompt tokens of this step; decoding requests keep their token each."""
        t, rows = self.ledger.table, self.ledger.rows
        running = [rows.get(r.request_id, -1) for r in scheduler.running]
        whole_tokens = t.prompt_tokens[running] + t.generated_tokens[running]
        decoding = int((t.computed_tokens[running] + 1 >= whole_tokens).sum()) if running else 0
        per_request = 1 + int(getattr(scheduler, "num_spec_tokens", 0) or 0)
        whole = scheduler.max_num_scheduled_tokens
        budget = min(whole, prefill_tokens + decoding * per_request)
        if 0 < budget < whole:
            self._knobs["max_num_scheduled_tokens"] = whole
            scheduler.max_num_scheduled_tokens = budget

    def _relieve_starving(self) -> None:
        """Let the longest-waiting request go first if it has waited too long, whatever the policy says."""
        guards = self.config.guards
        row = int(self.queue.line.rows[0])
        now_s = self.clock.now_s()
        waited_s = now_s - self.ledger.table.arrival_s[row]
        due = waited_s > guards.max_wait_s and now_s - self._starved_s > guards.starvation_gap_s
        if due and self.queue.put_first(row):
            self._starved_s = now_s
            self.stats.starving += 1

    # after a step -----------------------------------------------------------------------------------------

    def updated(self, scheduler: Any, tokens: dict[str, int]) -> None:
        """A step's output has been taken in."""
        if tokens:
            while self.in_flight:
                if self.in_flight.popleft() is tokens:
                    break
            self.watch.end(tokens, time.perf_counter())
        now_s = self.clock.now_s()
        self.ledger.tokens_seen(now_s)
        if scheduler.finished_req_ids:
            self.departed(scheduler, sorted(scheduler.finished_req_ids))
        if self._step % SWEEP_STEPS == 0:
            self.departed(scheduler, [i for i in list(self.ledger.rows) if i not in scheduler.requests])
        if self._step % 16 == 0 and not self.clock.virtual:
            self._report(scheduler)

    def added(self, request: Any) -> None:
        """A request was handed to vLLM; follow it if it went around the queue."""
        if request.request_id not in self.ledger.rows:
            self.ledger.follow(request)

    def departed(self, scheduler: Any, request_ids: list[str]) -> None:
        """Requests have left the engine; a name that is in use again is passed over."""
        now_s = self.clock.now_s()
        for request_id in request_ids:
            row = self.ledger.rows.get(request_id)
            alive = scheduler.requests.get(request_id)
            if row is None or (alive is not None and not alive.is_finished()):
                continue
            if self.ledger.queued[row]:
                self.queue.remove_request(self.ledger.requests[row])
            self.ledger.finish(request_id, now_s)

    def _report(self, scheduler: Any) -> None:
        now, metrics, stats = time.monotonic(), self.config.metrics, self.stats
        if now - self._last_json_s >= metrics.json_every_s:
            self._last_json_s = now
            stats.running, stats.waiting = len(scheduler.running), len(scheduler.waiting)
            if metrics.json_file is not None:
                stats.write_json(metrics.json_file)
            if self._export is not None:
                self._export.publish()
        if now - self._last_log_s >= metrics.log_every_s:
            self._last_log_s = now
            logger.info("%s", stats.line())
            self.save()

    def save(self) -> None:
        """Write the state file, if one is named; failure is logged only."""
        if self.config.state_file is not None:
            try:
                self.learned.save(self.config.state_file)
            except OSError as error:
                self.stats.failure("state-file", error)

    def close(self) -> None:
        """Stop planning and keep what was learned."""
        self.planner.close()
        if not self.clock.virtual:
            self.save()


def limits_of(scheduler: Any) -> EngineLimits:
    """The scheduler's capacity in slosched's terms."""
    config = scheduler.scheduler_config
    return EngineLimits(
        max_num_seqs=max(1, int(scheduler.max_num_running_reqs)),
        max_num_batched_tokens=max(1, int(scheduler.max_num_scheduled_tokens)),
        # One block is vLLM's placeholder and never given out.
        kv_blocks=max(1, int(scheduler.cache_config.num_gpu_blocks or 0) - 1),
        block_tokens=max(1, int(getattr(scheduler, "block_size", 0) or scheduler.cache_config.block_size)),
        max_model_len=max(1, int(scheduler.max_model_len)),
        chunked_prefill=bool(getattr(config, "enable_chunked_prefill", True)),
        prefix_cache=bool(scheduler.cache_config.enable_prefix_caching),
        long_prefill_token_threshold=max(0, int(getattr(config, "long_prefill_token_threshold", 0) or 0)),
    )
