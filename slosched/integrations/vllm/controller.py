"""Plans before each step of a vLLM scheduler and watches what comes of it."""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial
from typing import Any

import numpy as np

from slosched.core.engine import Engine
from slosched.integrations.vllm.background import Refresh
from slosched.integrations.vllm.memory_bypass import Bypass
from slosched.integrations.vllm.capability import OBSERVE_ONLY, Capability
from slosched.integrations.vllm.clock import Clock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.decision import NOBODY, Decision
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats, exporter
from slosched.integrations.vllm.prefix_hits import PrefixPeek
from slosched.integrations.vllm.planner import Planner
from slosched.integrations.vllm.preemption import Preemption
from slosched.integrations.vllm.queue import SloQueue
from slosched.integrations.vllm.refusal import add_refusals, refused_status
from slosched.integrations.vllm.state import Learned
from slosched.integrations.vllm.step_timer import StepWatch
from slosched.core.limits import EngineLimits
from slosched.policies.base import Policy
from slosched.core.snapshot import Snapshot
from slosched.core.table import Ints

logger = logging.getLogger("vllm.slosched")

SYNC_STEPS = 8
"""Steps for which a policy that only sorts the queue sees the same running requests."""

SWEEP_STEPS = 2048
"""Steps between searches for rows whose request has left unseen."""

SLOTS = ("max_num_running_reqs", "max_num_active_reqs")
"""Limits of running requests, by release; a request passed over keeps its slot."""

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
        self.ledger.forecaster.reads(scheduler)
        self.queue = SloQueue(self.ledger)
        self.planner = Planner(policy, config.guards, self.stats, boxed=not clock.virtual)
        self.preemption = Preemption(
            capability, config.guards, self.ledger, self.stats, bounded=not clock.virtual
        )
        self.watch = StepWatch(learned, measure=not clock.virtual, log=config.step_log)
        self.limits = limits_of(scheduler)
        self.in_flight: deque[dict[str, int]] = deque()
        self._orders = capability.level != OBSERVE_ONLY
        self._native = policy.by_arrival
        # Only vLLM itself preempts under FCFS, and releases that track stale output resume at once, safely.
        self._resumes_safely = capability.preempt_keyword
        self._fences = not (self._native and self._resumes_safely)
        self._by_slo = policy.by_slo
        self._paces, self._skips = policy.paces, policy.skips
        self._asks_always = policy.paces or policy.skips
        self._asks_when_full = policy.preempts or policy.rejects or self._asks_always
        self._keys = self._orders and self.planner.steady and not self._native
        self._stock: Any = None  # vLLM's own queue, while requests wait there
        self.peek = PrefixPeek(scheduler, self.ledger, self.stats)
        self.bypass = Bypass(self.ledger)
        self._knobs: dict[str, Any] = {}
        self._step = 0
        self._starved_s = -1e18
        self._running: list[Any] = []
        self._running_rows: Ints = NOBODY
        self._synced = -SYNC_STEPS
        self._prefilling: dict[int, bool] = {}
        self._admitted: list[tuple[list[int], float]] = []
        self._applied: Decision | None = None
        self._newcomers = 0
        self._order_serial: Ints = NOBODY
        self._skipped: list[Any] = []
        self._passed_over = self._whole = False
        self._refused: dict[int, list[str]] = {}
        self._refusing: dict[str, bool] = {}
        self._last_log_s = self._last_json_s = time.monotonic()
        self._export = None if clock.virtual else exporter(self.stats, config.metrics.port)

    # whose queue ------------------------------------------------------------------------------------------

    def take_place(self, scheduler: Any) -> None:
        """Let requests wait in slosched's queue: at once, or from the first one with an SLO on.

        Until then a policy that goes by SLOs would change nothing, and vLLM keeps its own queue; if it is the
        first-come-first-served one, and this vLLM resumes preempted requests safely by itself.
        """
        stock = scheduler.waiting
        if self._by_slo and self._resumes_safely and isinstance(stock, deque) and len(stock) == 0:
            self._stock = stock
        else:
            scheduler.waiting = self.queue

    def arriving(self, scheduler: Any, request: Any) -> None:
        """A request is about to be handed to vLLM."""
        if self._stock is None:
            return
        if request.request_id not in self.ledger.rows:
            self.ledger.row(request)
        if self.ledger.with_slo or getattr(request, "resumable", False):
            self.queue.prepend_requests(list(reversed(self._stock)))
            scheduler.waiting = self.queue
            self._stock.clear()
            self._stock = None

    # before a step ----------------------------------------------------------------------------------------

    def before(self, scheduler: Any) -> None:
        """Decide on the step about to be scheduled and prepare queue, running list and budget for it."""
        self._step += 1
        if self._stock is not None or not self._orders:
            return
        queue = self.queue
        if not queue.line and not self._asks_always:
            return
        fenced = self._fenced() if queue.preempted and self._fences else []
        try:
            if self._keys:
                self._by_key(scheduler, fenced)
                return
            wanted = self._wants_plan(scheduler)
            if not wanted and not fenced and queue.native:
                queue.joined.clear()
                return
            decision = self._decide(scheduler) if wanted else None
            if decision is None:
                queue.clear_order()
                queue.block(fenced)
            else:
                self._apply(scheduler, decision, fenced)
            self._relieve_starving()
        except Exception as error:
            # Whatever happens, nobody is admitted whom a step in flight still computes.
            self.stats.failure("apply", error)
            queue.clear_order()
            queue.block(fenced)

    def restore(self, scheduler: Any) -> None:
        """Undo what holds for one step only; also after an error of vLLM's own."""
        if self._skipped:
            self._put_back(scheduler)
        for name, value in self._knobs.items():
            setattr(scheduler, name, value)
        self._knobs.clear()

    def after(self, scheduler: Any, output: Any) -> None:
        """Note what was scheduled."""
        if self._knobs or self._skipped:
            self.restore(scheduler)
        tokens = output.num_scheduled_tokens
        if tokens:
            self.in_flight.append(tokens)
            self.watch.begin(tokens, scheduler, time.perf_counter())
        if self._stock is not None:
            if output.scheduled_new_reqs:
                rows = [self.ledger.rows.get(r.req_id) for r in output.scheduled_new_reqs]
                self._admitted.append(([row for row in rows if row is not None], self.clock.now_s()))
            return
        if self._passed_over or self._whole:
            # Nothing ran: this was no step, and the next try passes over nobody.
            self._whole = self._passed_over and not tokens
            self._step -= self._whole
            self._passed_over = False
        queue = self.queue
        if queue.admitted:
            self._admitted.append((queue.admitted, self.clock.now_s()))
            if not self._keys:
                self._prefilling.update(dict.fromkeys(queue.admitted, True))
            queue.admitted = []
        if self.planner.background is not None:
            self.planner.launch()

    def _wants_plan(self, scheduler: Any) -> bool:
        if (self._by_slo and not self.ledger.with_slo) or self._native or self.planner.open:
            return False
        if self._asks_always and scheduler.running:
            if self._skips or self.planner.background is not None:
                return True
            if self._paces and self._in_prefill():
                return True
        if not self.queue.line:
            return False
        return self._asks_when_full or self._somebody_fits(scheduler)

    def _somebody_fits(self, scheduler: Any) -> bool:
        """Whether some order of the waiting requests could admit one: a place, token budget and memory."""
        running = scheduler.running
        if len(running) >= getattr(scheduler, "max_num_active_reqs", self.limits.max_num_seqs):
            return False
        line, table, block = self.queue.line, self.ledger.table, self.limits.block_tokens
        free_tokens = scheduler.kv_cache_manager.block_pool.get_num_free_blocks() * block
        budget = self.limits.max_num_batched_tokens
        # Older releases ask only for the memory of a prompt's first chunk.
        whole = getattr(scheduler, "scheduler_reserve_full_isl", False)
        if whole or budget > free_tokens:
            first = line.rows[0]
            if table.prompt_tokens[first] + table.generated_tokens[first] > free_tokens:
                rows = line.rows
                need = table.prompt_tokens[rows] + table.generated_tokens[rows] - table.cached_tokens[rows]
                if need.min() > free_tokens:
                    return False
        if self.limits.long_prefill_token_threshold or not self._in_prefill():
            return True
        demand: int = sum(r.num_tokens - r.num_computed_tokens for r in running)
        return demand < budget

    def _in_prefill(self) -> int:
        """How many running requests have prompt, or what was lost to preemption, still to be computed."""
        requests, queued = self.ledger.requests, self.ledger.queued
        for row in list(self._prefilling):
            r = requests[row]
            if r is None or queued[row] or r.num_computed_tokens >= r.num_tokens - 1:
                del self._prefilling[row]
        return len(self._prefilling)

    def _by_key(self, scheduler: Any, fenced: list[int]) -> None:
        """Order by keys given at arrival: nothing is planned, newcomers only fall into place."""
        queue = self.queue
        if queue.joined:
            self._key_joined()
        queue.keyed = not self.planner.open and (not self._by_slo or self.ledger.with_slo > 0)
        queue.block(fenced)
        self._bypass(scheduler, fenced)
        self._relieve_starving()

    def _key_joined(self) -> None:
        queue = self.queue
        rows, queue.joined = queue.joined, []
        if not self.planner.open:
            snapshot = self._instant(np.array(rows, dtype=np.int64), NOBODY, 0)
            queue.set_keys(rows, self.planner.keys(snapshot))

    def _decide(self, scheduler: Any) -> Decision | None:
        try:
            if self.planner.busy:
                return self.planner.latest(self._step - 1)
            if self._whole and self._newcomers == self.ledger.newcomers:
                return self._applied  # the same step, tried again
            self._note_admitted()
            self.peek.look(self.queue.joined, self.queue.line.rows)
            return self.planner.decide(*self._snapshot(scheduler), self.queue.joined, self.ledger.queued)
        except Exception as error:
            self.stats.failure("snapshot", error)
            return None
        finally:
            self.queue.joined.clear()

    def _snapshot(self, scheduler: Any) -> tuple[Snapshot, Refresh]:
        """The present state, and what brings a copy of the table up to date with the running requests."""
        running = scheduler.running
        # A mere sort of the queue may see the running requests of a few steps ago.
        lax = self.planner.by_key and not self.clock.virtual and len(running) == len(self._running)
        old = not lax or self._step - self._synced >= SYNC_STEPS
        if old and running != self._running:
            self._running = list(running)
            self._running_rows = self.ledger.rows_of(running)
        refresh = partial(self.ledger.sync, self._running, self._running_rows)
        if old and self.planner.background is None:
            refresh(self.ledger.table)
            self._synced = self._step
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return self._instant(self.queue.line.rows.copy(), self._running_rows, free), refresh

    def _instant(self, waiting: Ints, running: Ints, free_blocks: int) -> Snapshot:
        return Snapshot(
            now_s=self.clock.now_s(),
            table=self.ledger.table,
            waiting=waiting,
            running=running,
            engine=Engine(limits=self.limits, step_time=self.learned.step_time.model),
            free_blocks=free_blocks,
            step=self._step - 1,
        )

    def _fenced(self) -> list[int]:
        """Preempted requests that a step in flight still computes: admitting them now corrupts tokens."""
        return [
            row
            for request_id, row in self.queue.preempted.items()
            if any(request_id in tokens for tokens in self.in_flight)
        ]

    def _apply(self, scheduler: Any, decision: Decision, fenced: list[int]) -> None:
        queue, ledger = self.queue, self.ledger
        now = ledger.table.serial
        if len(decision.reject) and self.config.allow_reject:
            self._refuse(scheduler, decision.alive(decision.reject, now))
        if len(decision.preempt) and self.preemption.possible(scheduler):
            rows = decision.alive(decision.preempt, now)
            # A request is never offered in the step that preempts it, whether or not a step is in flight.
            fenced += self.preemption.apply(scheduler, rows, self.clock.now_s(), self.watch.decode_s)
        if decision.running_order is not None:
            self._reorder(scheduler, decision.alive(decision.running_order, now))
        if len(decision.skip):
            self._pass_over(scheduler, decision.alive(decision.skip, now))
        if decision.prefill_tokens is not None:
            self._budget(scheduler, decision.prefill_tokens)
        if decision is not self._applied:
            serial = now if decision.serial is None else decision.serial
            self._applied, self._order_serial = decision, serial[decision.order]
            self._newcomers = ledger.newcomers
            if len(decision.order):
                self.stats.reorder.observe(float(queue.line.place(int(decision.order[0]))))
        queue.set_order(decision.order, self._order_serial)
        hold = decision.alive(decision.hold, now).tolist() if len(decision.hold) else []
        queue.block(fenced, hold)
        if hold and not queue and not scheduler.running and not self.in_flight:
            self.stats.failure("all-held")  # nobody would ever run again
            queue.block(fenced)
        else:
            self.stats.held += len(hold)
        self._bypass(scheduler, fenced, hold)

    def _reorder(self, scheduler: Any, order: Ints) -> None:
        """Put the running list in the planned order; requests the plan did not know stay at the end."""
        position = {row: i for i, row in enumerate(order.tolist())}
        rows = self.ledger.rows
        last = len(position)
        scheduler.running.sort(key=lambda r: position.get(rows.get(r.request_id, -1), last))

    def _budget(self, scheduler: Any, prefill_tokens: int) -> None:
        """Bound the prompt tokens of this step; decoding requests keep their token each."""
        begun = self._in_prefill()
        if self._skipped:
            here = {self.ledger.rows.get(r.request_id): 1 for r in scheduler.running}
            begun = sum(row in here for row in self._prefilling)
        decoding = max(0, len(scheduler.running) - begun)
        per_request = 1 + int(getattr(scheduler, "num_spec_tokens", 0) or 0)
        budget = prefill_tokens + decoding * per_request
        if budget > 0:
            self._lower(scheduler, "max_num_scheduled_tokens", budget)

    def _lower(self, scheduler: Any, name: str, value: int) -> None:
        """Lower a limit of the scheduler's for this step."""
        whole = getattr(scheduler, name, None)
        if whole is not None and value < whole:
            self._knobs.setdefault(name, whole)
            setattr(scheduler, name, value)

    def _pass_over(self, scheduler: Any, rows: Ints) -> None:
        """Take running requests out of this step: they keep their KV and their slot and get no token.

        To vLLM it looks as if they had found the budget used up. `restore` puts them back in their places.
        """
        if self._whole:
            return
        ids = {self.ledger.table.request_ids[row]: 1 for row in rows.tolist()}
        everybody = list(scheduler.running)
        left = [r for r in everybody if r.request_id not in ids]
        known = [name for name in SLOTS if hasattr(scheduler, name)]
        if len(left) == len(everybody) or not known or not (left or len(self.queue)):
            return
        self._skipped = everybody
        scheduler.running = left
        out = len(everybody) - len(left)
        for name in known:
            self._lower(scheduler, name, max(0, getattr(scheduler, name) - out))
        self._passed_over = True
        self.stats.skipped += out

    def _put_back(self, scheduler: Any) -> None:
        """Undo `_pass_over`: those who were taken out return, whom vLLM preempted stays away."""
        before, self._skipped = self._skipped, []
        here = {r.request_id: 1 for r in scheduler.running}
        was = {r.request_id: 1 for r in before}
        scheduler.running = [r for r in before if r.request_id in here or r.status.name == "RUNNING"] + [
            r for r in scheduler.running if r.request_id not in was
        ]

    def _refuse(self, scheduler: Any, rows: Ints) -> None:
        """End waiting requests unanswered; their clients are told by the next output (`answers`)."""
        status = refused_status()
        ids = []
        for row in rows.tolist():
            request = self.ledger.requests[row]
            waits = self.ledger.queued[row] and request.status.name in ("WAITING", "PREEMPTED")
            if waits and not getattr(request, "resumable", False):
                ids.append(request.request_id)
                self._refused.setdefault(getattr(request, "client_index", 0), []).append(request.request_id)
        if ids:
            self._refusing = dict.fromkeys(ids, True)
            scheduler.finish_requests(ids, status)
            self._refusing = {}

    @property
    def retries(self) -> bool:
        """Whether the last step ran nothing only because of who was passed over: the next comes at once."""
        return self._whole

    def answers(self, outputs: Any) -> None:
        """Add an output for each refused request, so that no client waits for ever."""
        refused, self._refused = self._refused, {}
        for client, ids in refused.items():
            add_refusals(outputs, client, ids)

    def _bypass(self, scheduler: Any, fenced: list[int], held: list[int] | None = None) -> None:
        """Let others pass a head of the queue that does not fit in memory, each for a limited time."""
        limit_s = self.config.guards.bypass_unfit_s
        if limit_s > 0 and (scheduler.running or self.in_flight):
            self.stats.bypassed += self.bypass.apply(
                scheduler, self.queue, fenced, held or [], now_s=self.clock.now_s(), limit_s=limit_s
            )

    def _relieve_starving(self) -> None:
        """Let the longest-waiting request go first if it has waited too long, whatever the policy says."""
        guards, line = self.config.guards, self.queue.line
        now_s = self.clock.now_s()
        if not line or now_s - line.oldest_s <= guards.max_wait_s:
            return
        if now_s - self._starved_s > guards.starvation_gap_s and self.queue.put_first(int(line.rows[0])):
            self._starved_s = now_s
            self.stats.starving += 1

    def _note_admitted(self) -> None:
        for rows, now_s in self._admitted:
            self.ledger.admitted(rows, now_s, self.watch.decode_s)
        self._admitted.clear()

    # after a step -----------------------------------------------------------------------------------------

    def updated(self, scheduler: Any, tokens: dict[str, int]) -> None:
        """A step's output has been taken in."""
        if tokens:
            while self.in_flight:
                if self.in_flight.popleft() is tokens:
                    break
            self.watch.end(tokens, time.perf_counter())
        now_s = self.clock.now_s()
        if self._admitted:
            self._note_admitted()
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
        if self._keys and self.queue.joined:
            self._key_joined()

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
            self.ledger.finish(request_id, now_s, refused=request_id in self._refusing)

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
        self.watch.close()
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
