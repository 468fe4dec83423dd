"""Plans before each step of a vLLM scheduler and watches what comes of it."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import numpy as np

from slosched.core.snapshot import Snapshot
from slosched.integrations.vllm.asking import Asking, Prefilling
from slosched.integrations.vllm.background import Refresh
from slosched.integrations.vllm.capability import OBSERVE_ONLY, Capability
from slosched.integrations.vllm.carrying import Carrying, Step
from slosched.integrations.vllm.clock import Clock, StepWatch
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.decision import NOBODY, Decision
from slosched.integrations.vllm.guarded_policy import GuardedPolicy
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.preemption import Preemption
from slosched.integrations.vllm.prefix_hits import PrefixPeek
from slosched.integrations.vllm.queue import Handover, SloQueue
from slosched.integrations.vllm.refusal import Refusals
from slosched.integrations.vllm.reporting import Reporting
from slosched.integrations.vllm.running_rows import RunningRows
from slosched.integrations.vllm.snapshots import Snapshots, limits_of
from slosched.integrations.vllm.state import Learned
from slosched.integrations.vllm.waits import Outlook
from slosched.policies.base import Policy

SWEEP_STEPS = 2048
"""Steps between searches for rows whose request has left unseen."""

CLOCK_S = 1e-6
"""Far above the rounding of clock times, far below any limit."""


class Controller:
    """All that the adapter keeps for one scheduler: the parts, and the order in which they are called.

    What holds for one step only is in its `Step`. `before` prepares a step, `after` notes what vLLM
    scheduled, `updated` what came of it.

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
    beside
        Whether `beside_device` is called while the device computes a step, so that plans of a background
        thread are asked for then, and not while the device waits.
    stats
        Where to count; anew by default.
    """

    def __init__(
        self,
        scheduler: Any,
        policy: Policy,
        capability: Capability,
        config: Config,
        clock: Clock,
        learned: Learned,
        *,
        beside: bool = False,
        stats: Stats | None = None,
    ) -> None:
        self.config, self.clock, self.learned, self.capability = config, clock, learned, capability
        self.beside, self._unplanned, self._scheduled_s = beside, False, 0.0
        self.stats = stats or Stats()
        self.stats.level = capability.level
        self.limits = limits_of(scheduler)
        self.ledger = Ledger(config, clock, learned, self.stats)
        self.ledger.forecaster.reads(scheduler)
        self.ledger.thinking.reads(self.ledger.forecaster.tokenizer)
        self.queue = SloQueue(self.ledger)
        self.planner = GuardedPolicy(
            policy, config.guards, self.stats, boxed=not clock.virtual, apart=not policy.bounded
        )
        self.watch = StepWatch(learned, measure=not clock.virtual, log=config.step_log)
        self.planner.step_s = self.watch.decode_s
        self.peek = PrefixPeek(scheduler, self.ledger, self.stats)
        self.in_flight: deque[dict[str, int]] = deque()
        native = policy.by_arrival
        by_slo = policy.by_slo
        # Only vLLM itself preempts under FCFS, and releases that track stale output resume at once, safely.
        safe = capability.preempt_keyword
        self._fences = not (native and safe)
        self._orders = capability.level != OBSERVE_ONLY
        self._native, self._by_slo = native, by_slo
        self._keys = self._orders and self.planner.steady and not native
        self.handover = Handover(self.queue, self.ledger, patient=by_slo and safe)
        self.prefilling = Prefilling(self.ledger)
        self.asking = Asking(
            policy, self.planner, self.queue, self.ledger, self.prefilling, self.limits, by_slo=by_slo
        )
        running = RunningRows(self.ledger)
        self.snapshots = Snapshots(
            self.queue, self.ledger, self.watch, self.limits, clock, running,
            lax=self.planner.by_key and not clock.virtual,
        )  # fmt: skip
        self.refusals = Refusals(self.ledger)
        preemption = Preemption(capability, config.guards, self.ledger, self.stats, bounded=not clock.virtual)
        self.carrying = Carrying(
            self.queue, self.ledger, preemption, self.refusals, self.prefilling, running, config, clock,
            self.stats,
        )  # fmt: skip
        self._number = 0
        self._fresh: tuple[dict[str, int], list[Any] | None, float, float] | None = None
        """Of a step just scheduled, what need not be noted before the device has it."""
        self._step: Step | None = None
        self._decision: Decision | None = None
        self._newcomers = -1
        self._calm_until_s = -math.inf
        """Nobody in a queue ordered by keys starves before that."""
        self._admitted: list[tuple[list[int], float]] = []
        self.retries = False
        """Whether the last step ran nothing only because of who was passed over: the next comes at once."""
        self.ledger.outlook = self.outlook
        self.reporting: Reporting | None = None

    def outlook(self) -> Outlook:
        """What a newcomer has to expect now."""
        stock = self.handover.stock
        waiting = len(self.queue if stock is None else stock)
        return self.ledger.waits.outlook(waiting, self.watch.model, self.watch.decode_s)

    # before a step ----------------------------------------------------------------------------------------

    def arriving(self, scheduler: Any, request: Any) -> None:
        """A request is about to be handed to vLLM."""
        self.handover.arriving(scheduler, request)

    def added(self, request: Any) -> None:
        """A request was handed to vLLM; follow it if it went around the queue."""
        if request.request_id not in self.ledger.rows:
            self.ledger.follow(request)
        if self._keys and self.queue.joined:
            self._key_joined()

    def before(self, scheduler: Any) -> None:
        """Decide on the step about to be scheduled and prepare queue, running list and budget for it."""
        if self._fresh is not None:
            self.settle(scheduler)
        self._number += 1
        if self.handover.stock is not None or not self._orders:
            return
        queue = self.queue
        if (not queue.line and not self.asking.always) or (self._keys and self._nothing_new()):
            return
        fenced = self._fenced() if queue.preempted and self._fences else []
        step: Step | None = None
        try:
            if self._keys:
                self._by_key(scheduler, fenced)
                return
            step = Step(self._number, fenced)
            if self._unplanned:
                self._plan_beside(scheduler)
            wanted = not self._native and self.asking.wanted(scheduler)
            if not wanted and not step.fenced and queue.native:
                queue.joined.clear()
                return
            decision = self._decide(scheduler, step) if wanted else None
            if decision is None:
                self.carrying.native(step)
            else:
                self._step = step
                self.carrying.carry_out(
                    scheduler, step, decision, decode_s=self.watch.decode_s, busy=bool(self.in_flight),
                    whole=self.retries,
                )  # fmt: skip
            self.carrying.relieve_starving()
        except Exception as error:
            # Whatever happens, nobody is admitted whom a step in flight still computes.
            self.stats.failure("apply", error)
            self.carrying.native(step or Step(self._number, fenced))

    def _fenced(self) -> list[int]:
        """Preempted requests that a step in flight still computes: admitting them now corrupts tokens."""
        if not self.in_flight:
            return []
        preempted = self.queue.preempted
        computed: set[str] = set()
        for tokens in self.in_flight:
            computed |= preempted.keys() & tokens.keys()
        return [row for request_id, row in preempted.items() if request_id in computed] if computed else []

    def _nothing_new(self) -> bool:
        """Whether a queue ordered by keys stands as the last step left it, and nobody starves yet."""
        calm = self.queue.calm and self.queue.keyed == self._keyed()
        return calm and self.clock.now_s() < self._calm_until_s

    def _keyed(self) -> bool:
        return not self.planner.open and (not self._by_slo or self.ledger.with_slo > 0)

    def _by_key(self, scheduler: Any, fenced: list[int]) -> None:
        """Order by keys given at arrival: nothing is planned, newcomers only fall into place."""
        queue = self.queue
        if queue.joined:
            self._key_joined()
        queue.keyed = self._keyed()
        queue.block(fenced)
        guards = self.config.guards
        if guards.bypass_unfit_s > 0:  # who stands in the way is found anew at every step
            self.carrying.let_pass(scheduler, busy=bool(self.in_flight))
            self.carrying.relieve_starving()
            return
        self._calm_until_s = queue.line.oldest_s + guards.max_wait_s - CLOCK_S if queue.line else math.inf
        if self.clock.now_s() >= self._calm_until_s:
            self.carrying.relieve_starving()

    def _key_joined(self) -> None:
        queue = self.queue
        rows, queue.joined = queue.joined, []
        self._calm_until_s = -math.inf
        if not self.planner.open:
            waiting = np.array(rows, dtype=np.int64)
            queue.set_keys(rows, self.planner.keys(self.snapshots.of(waiting, NOBODY, 0, self._number)))

    def _decide(self, scheduler: Any, step: Step) -> Decision | None:
        if self.planner.background is not None:
            self._decision = self.planner.latest(step.number - 1)
            return self._decision
        try:
            if self.retries and self._newcomers == self.ledger.newcomers:
                return self._decision  # the same step, tried again
            snapshot, _ = self._look(scheduler, step.number, copied=False)
            self._newcomers = self.ledger.newcomers
            self._decision = self.planner.decide(snapshot, self.queue.joined, self.ledger.queued)
            return self._decision
        except Exception as error:
            self.stats.failure("snapshot", error)
            return None
        finally:
            self.queue.joined.clear()

    def _look(self, scheduler: Any, number: int, *, copied: bool) -> tuple[Snapshot, Refresh]:
        """The state before the step of this number."""
        self._note_admitted()
        self.peek.look(self.queue.joined, self.queue.line.rows)
        self.planner.step_s = self.watch.decode_s
        return self.snapshots.take(
            scheduler, number, copied=copied, now_s=self._scheduled_s if copied else None
        )

    def beside_device(self, scheduler: Any) -> None:
        """The device has begun to compute the step."""
        if self._fresh is not None:
            self.settle(scheduler)
        if self._unplanned:
            self._plan_beside(scheduler)

    def _plan_beside(self, scheduler: Any) -> None:
        """While the device computes this step, plan the next one."""
        self._unplanned = False
        if self._fresh is not None:
            self.settle(scheduler)
        if self.retries or not self.planner.free or not self.asking.ahead(scheduler, self._number):
            return
        try:
            self.planner.launch(*self._look(scheduler, self._number + 1, copied=True))
        except Exception as error:
            self.stats.failure("snapshot", error)
        finally:
            self.queue.joined.clear()

    # after ``schedule`` -----------------------------------------------------------------------------------

    def restore(self, scheduler: Any) -> None:
        """Undo what holds for one step only; also after an error of vLLM's own."""
        step, self._step = self._step, None
        if step is not None:
            step.undo(scheduler)

    def after(self, scheduler: Any, output: Any) -> None:
        """Note what was scheduled."""
        step = self._step
        if step is not None:
            self.restore(scheduler)
        tokens = output.num_scheduled_tokens
        if tokens:
            self.in_flight.append(tokens)
        stock = self.handover.stock is not None
        new = output.scheduled_new_reqs if stock else None
        self._fresh = tokens, new, time.perf_counter(), self.clock.now_s()
        if stock:
            return
        # Nothing ran although somebody was passed over: this was no step, and the next passes over nobody.
        passed = step is not None and step.passed is not None
        self.retries = passed and not tokens
        self._number -= self.retries
        if self.planner.background is not None:
            self._unplanned, self._scheduled_s = True, self._fresh[3]
            if not self.beside or not tokens:
                self._plan_beside(scheduler)

    def settle(self, scheduler: Any) -> None:
        """Note of the step just scheduled what nothing in it depended on; vLLM's requests stand as then."""
        if self._fresh is None:
            return
        (tokens, new, begun_s, now_s), self._fresh = self._fresh, None
        try:
            if tokens:
                self.watch.begin(tokens, scheduler, begun_s)
            self.carrying.note()
            if new is not None:
                found = [self.ledger.rows.get(r.req_id) for r in new]
                rows = [row for row in found if row is not None]
            else:
                rows, self.queue.admitted = self.queue.admitted, []
                if rows and not self._keys:
                    self.prefilling.begun(rows)
            if rows:
                self.ledger.note_hits(rows, tokens)
                self._admitted.append((rows, now_s))
        except Exception as error:
            self.stats.failure("hook settle", error)

    # after a step -----------------------------------------------------------------------------------------

    def updated(self, scheduler: Any, tokens: dict[str, int]) -> None:
        """A step's output has been taken in."""
        if self._unplanned:
            self._plan_beside(scheduler)
        if tokens:
            while self.in_flight:
                if self.in_flight.popleft() is tokens:
                    break
            self.watch.end(tokens, time.perf_counter())
        now_s = self.clock.now_s()
        if self._admitted:
            self._note_admitted()
        self.ledger.tokens_seen(now_s)
        self.ledger.thinking.look(now_s)
        if scheduler.finished_req_ids:
            self.departed(scheduler, sorted(scheduler.finished_req_ids))
        if self._number % SWEEP_STEPS == 0:
            self.departed(scheduler, [i for i in list(self.ledger.rows) if i not in scheduler.requests])
            self.ledger.tenants.forget(now_s)

    def answers(self, outputs: Any) -> None:
        """Add an output for each refused request, so that no client waits for ever."""
        self.refusals.answer(outputs)

    def departed(self, scheduler: Any, request_ids: list[str]) -> None:
        """Requests have left the engine; a name that is in use again is left alone."""
        if self._fresh is not None:
            self.settle(scheduler)
        now_s = self.clock.now_s()
        for request_id in request_ids:
            row = self.ledger.rows.get(request_id)
            alive = scheduler.requests.get(request_id)
            if row is None or (alive is not None and not alive.is_finished()):
                continue
            if self.ledger.queued[row]:
                self.queue.remove_request(self.ledger.requests[row])
            self.ledger.finish(request_id, now_s, refused=request_id in self.refusals)

    def _note_admitted(self) -> None:
        for rows, now_s in self._admitted:
            self.ledger.admitted(rows, now_s, self.watch.decode_s)
        self._admitted.clear()

    # publishing -------------------------------------------------------------------------------------------

    def publish(self, scheduler: Any, rank: int) -> None:
        """Begin to publish metrics, state and outlook from a thread of their own, and to log."""
        self.reporting = Reporting(self, scheduler, rank)
        self.reporting.start()

    def close(self) -> None:
        """Stop planning, publish for the last time and keep what was learned."""
        self.planner.close()
        self.watch.close()
        if self.reporting is not None:
            self.reporting.close()
