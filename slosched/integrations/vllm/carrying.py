"""Carries out a decision: prepares queue, running list and budget for the step about to be scheduled, and
undoes what holds for that step only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from slosched.core.arrays import Ints
from slosched.integrations.vllm.asking import Prefilling
from slosched.integrations.vllm.clock import Clock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.decision import NOBODY, Decision, Offers
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.memory_bypass import Bypass
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.preemption import Preemption
from slosched.integrations.vllm.queue import SloQueue, adapter_of
from slosched.integrations.vllm.refusal import Refusals
from slosched.integrations.vllm.running_rows import RunningRows


class PassedOver:
    """Running requests that get no token in one step; they keep their memory and their place.

    vLLM asks how many tokens each running request has to compute: those it has, plus placeholders for
    tokens still on their way, less those computed. It goes on to the next one where the answer is none.
    For the step the placeholders are set so that it is none. The request stays in ``scheduler.running``,
    where vLLM counts it for slots, adapters and every other limit.

    Where memory runs short, vLLM takes it from the end of the running list. So these requests stand at its
    beginning meanwhile, and lose nothing to a step that they take no part in.

    Parameters
    ----------
    scheduler
        vLLM's scheduler.
    places
        Places in the running list of those to pass over, ascending.
    """

    def __init__(self, scheduler: Any, places: list[int]) -> None:
        running = scheduler.running
        self.count = len(places)
        self._before, others = running.copy(), running.copy()
        passed = [running[place] for place in places]
        for place in reversed(places):
            del others[place]
        self._placeholders: list[tuple[Any, int, int]] = []
        for request in passed:
            known, own = request.num_tokens_with_spec, request.num_output_placeholders
            disguise = request.num_computed_tokens - known
            request.num_output_placeholders = disguise
            self._placeholders.append((request, own, disguise))
        self._during = [*passed, *others]
        running[:] = self._during

    def put_back(self, scheduler: Any) -> None:
        """Give back placeholders and places; whom vLLM has preempted in the meantime stays as he is."""
        if not self._placeholders:
            return
        for request, own, disguise in self._placeholders:
            if request.status.name == "RUNNING" and request.num_output_placeholders == disguise:
                request.num_output_placeholders = own
        self._placeholders = []
        running, before = scheduler.running, self._before
        if running[: len(before)] == self._during:  # nobody has left
            running[: len(before)] = before
            return
        here = {request.request_id: request for request in running}
        old = [request for request in before if here.pop(request.request_id, None) is not None]
        running[:] = [*old, *here.values()]


def can_pass_over(scheduler: Any) -> bool:
    """Whether requests of this scheduler may be passed over.

    An encoder-cache connector is asked for every running request and would fetch for those passed over. A
    model with Mamba states aligned to blocks has its chunks cut by a rule that expects tokens to cut.
    """
    aligned = getattr(scheduler, "need_mamba_block_aligned_split", False)
    return getattr(scheduler, "ec_connector", None) is None and not aligned


class Step:
    """One call of the scheduler's ``schedule``: what was changed for it, so that all of it can be undone.

    Parameters
    ----------
    number
        Steps of this engine up to and including this one.

    Attributes
    ----------
    fenced
        Rows that must not be admitted, since a step in flight still computes them.
    passed
        Who was passed over; None if nobody was.
    """

    __slots__ = ("_lowered", "fenced", "number", "passed")

    def __init__(self, number: int, fenced: list[int]) -> None:
        self.number, self.fenced = number, fenced
        self.passed: PassedOver | None = None
        self._lowered: dict[str, int] | None = None

    def lower(self, scheduler: Any, name: str, value: int) -> None:
        """Lower a limit of the scheduler's until `undo`; a limit that is lower already stays."""
        whole = getattr(scheduler, name, None)
        if whole is None or value >= whole:
            return
        if self._lowered is None:
            self._lowered = {}
        self._lowered.setdefault(name, whole)
        setattr(scheduler, name, value)

    def undo(self, scheduler: Any) -> None:
        """Put back whatever was changed for this step; calling it again changes nothing."""
        if self.passed is not None:
            self.passed.put_back(scheduler)
        if self._lowered is not None:
            for name, value in self._lowered.items():
                setattr(scheduler, name, value)
            self._lowered = None


class Carrying:
    """Turns decisions into changes of one scheduler; what holds for a step only is kept in its `Step`."""

    def __init__(
        self,
        queue: SloQueue,
        ledger: Ledger,
        preemption: Preemption,
        refusals: Refusals,
        prefilling: Prefilling,
        running: RunningRows,
        config: Config,
        clock: Clock,
        stats: Stats,
    ) -> None:
        self._queue, self._ledger, self._preemption = queue, ledger, preemption
        self._refusals, self._prefilling, self._running = refusals, prefilling, running
        self._config, self._clock, self._stats = config, clock, stats
        self._bypass = Bypass(ledger)
        self._last: Decision | None = None
        self._offers = Offers.of(NOBODY, NOBODY)
        self._placed: int | None = None  # first row of an order just taken up
        self._starved_s = -1e18
        self._reordered = -1  # number of the last step before which the running list got another order

    def carry_out(
        self, scheduler: Any, step: Step, decision: Decision, *, decode_s: float, busy: bool, whole: bool
    ) -> None:
        """Prepare the step as decided.

        Parameters
        ----------
        scheduler, step, decision
            vLLM's scheduler, the step, and what was decided.
        decode_s
            Seconds of a decoding step, to leave alone who will end soon.
        busy
            Whether steps are in flight.
        whole
            Whether nobody may be passed over: nothing ran in the last step because of who was.
        """
        queue, now = self._queue, self._ledger.table.serial
        used = decision is self._last and not whole
        if len(decision.reject) and self._config.allow_reject:
            self._refusals.refuse(scheduler, decision.alive(decision.reject, now))
        if len(decision.preempt) and self._preemption.possible(scheduler):
            rows = decision.alive(decision.preempt, now)
            # A request is never offered in the step that preempts it, whether or not a step is in flight.
            step.fenced += self._preemption.apply(scheduler, rows, self._clock.now_s(), decode_s)
        if decision.running_order is not None:
            self._reorder(scheduler, step, decision, used=used)
        if len(decision.skip) and not whole and not used:
            self._pass_over(scheduler, step, decision.alive(decision.skip, now))
        if decision.prefill_tokens is not None:
            self._limit_prefill(scheduler, step, decision.prefill_tokens)
        if decision is not self._last:
            self._last, self._offers = decision, decision.offers or Offers.of(decision.order, now)
            self._placed = self._offers.first[0][0] if self._offers.first else None
        queue.set_order(self._offers)
        held = self._hold(step, decision, used=used and len(scheduler.running) > 0)
        if held and not queue and not scheduler.running and not busy:
            self._stats.failure("all-held")  # nobody would ever run again
            queue.block(step.fenced)
        else:
            self._stats.held += held
        self.let_pass(scheduler, busy=busy)
        self._limit_adapters(scheduler)

    def _hold(self, step: Step, decision: Decision, *, used: bool) -> int:
        """Offer nobody who must not enter; returns how many the decision holds back.

        A decision made beside the engine that says who enters its step knows nothing of who has come since.
        Carried out before, it has let in whom it meant to let in: until the next one comes, nobody enters.
        """
        hold = decision.hold
        if decision.bounded:
            if used:
                self._queue.block_all(step.fenced)
                return len(self._queue)
            # A row of `hold` that has changed hands is a newcomer's, who is held as well.
            newcomers = self._ledger.since(decision.newest)
            hold = np.concatenate([hold, newcomers]) if newcomers else hold
        elif len(hold):
            hold = decision.alive(hold, self._ledger.table.serial)
        self._queue.block(step.fenced, hold)
        return len(hold)

    def note(self) -> None:
        """Count how many the first of a new order passes; called beside the device."""
        row, self._placed = self._placed, None
        if row is not None:
            self._stats.reorder.observe(float(self._queue.line.place(row)))

    def native(self, step: Step) -> None:
        """Let requests come out in the engine's own order, but for whom a step in flight still computes."""
        self._queue.clear_order()
        self._queue.block(step.fenced)

    def let_pass(self, scheduler: Any, *, busy: bool) -> None:
        """Let others pass a head of the queue that does not fit in memory, each for a limited time."""
        limit_s = self._config.guards.bypass_unfit_s
        if limit_s > 0 and (scheduler.running or busy):
            self._stats.bypassed += self._bypass.apply(
                scheduler, self._queue, now_s=self._clock.now_s(), limit_s=limit_s
            )

    def relieve_starving(self) -> None:
        """Let the longest-waiting request go first if it has waited too long, whatever the policy says.

        One that was preempted has waited since then, not since it came.
        """
        guards, line = self._config.guards, self._queue.line
        if not line:
            return
        now_s = self._clock.now_s()
        if now_s - line.oldest_s <= guards.max_wait_s or now_s - self._starved_s <= guards.starvation_gap_s:
            return
        since_s = self._ledger.since_s[line.rows]
        longest = int(np.argmin(since_s))
        if now_s - since_s[longest] > guards.max_wait_s and self._queue.put_first(int(line.rows[longest])):
            self._starved_s = now_s
            self._stats.starving += 1

    def _reorder(self, scheduler: Any, step: Step, decision: Decision, *, used: bool) -> None:
        """Put the running list in the planned order; requests the plan did not know stay at the end."""
        if decision.same_order and not used and self._reordered <= decision.step:
            return  # as it was when the plan was made, and nobody has changed it since
        assert decision.running_order is not None
        order = decision.alive(decision.running_order, self._ledger.table.serial)
        places = self._running.wanted(scheduler.running, order)
        if places is not None:
            self._reordered = step.number
            self._running.rearrange(scheduler.running, places)

    def _pass_over(self, scheduler: Any, step: Step, rows: Ints) -> None:
        """Give these running requests no token in this step, if anybody else could get one."""
        places = self._running.places(scheduler.running, rows)
        if not places or not can_pass_over(scheduler) or self._adapters_come_uncounted(scheduler):
            return
        if len(places) == len(scheduler.running) and not len(self._queue):
            return
        step.passed = PassedOver(scheduler, places)
        self._stats.skipped += len(places)

    def _adapters_come_uncounted(self, scheduler: Any) -> bool:
        """Whether vLLM may admit adapters from another queue than slosched's, where `_limit_adapters` counts.

        Requests whose KV was loaded, and in older releases those skipped, come from queues of vLLM's own.
        """
        if getattr(scheduler, "lora_config", None) is None:
            return False
        return any(
            len(getattr(scheduler, name, ())) > 0 for name in ("kv_holding_waiting", "skipped_waiting")
        )

    def _limit_adapters(self, scheduler: Any) -> None:
        """Have the queue count the adapters of all running requests, as vLLM does since 0.33.

        Older releases count those of the requests that get tokens in this step, so that beside requests
        passed over one too many could be admitted: the next step, with everybody in it, would end the engine.
        """
        lora = getattr(scheduler, "lora_config", None)
        if lora is not None:
            present = {adapter_of(request) for request in scheduler.running} - {0}
            self._queue.limit_adapters(present, int(lora.max_loras))

    def _limit_prefill(self, scheduler: Any, step: Step, prefill_tokens: int) -> None:
        """Bound the prompt tokens of this step; decoding requests keep their token each."""
        taking_part = scheduler.running
        begun = self._prefilling.rows()
        if step.passed is not None:
            taking_part = taking_part[step.passed.count :]
            if begun:
                here = {request.request_id: True for request in taking_part}
                names = self._ledger.table.request_ids
                begun = {row: True for row in begun if names[row] in here}
        decoding = max(0, len(taking_part) - len(begun))
        per_request = 1 + int(getattr(scheduler, "num_spec_tokens", 0) or 0)
        budget = prefill_tokens + decoding * per_request
        if budget > 0:
            step.lower(scheduler, "max_num_scheduled_tokens", budget)
