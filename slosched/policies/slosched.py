"""Our policy: the rule that keeps most requests within their limits on sampled futures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from slosched.core.errors import require
from slosched.core.estimate import decode_step_s, prefill_s, remaining_s
from slosched.core.snapshot import Snapshot
from slosched.core.table import Ints
from slosched.planner.plan import Plan
from slosched.planner.planner import Planner, PlannerParams
from slosched.planner.rollout import LEAST_TOKENS
from slosched.planner.warmup import PLANNER_KERNELS
from slosched.policies.base import Policy
from slosched.policies.fallback import edf_demoted
from slosched.policies.give_way import RESCUED, Way, give_way
from slosched.policies.hopeless import HOPELESS, patient, refused
from slosched.policies.programs import ProgramDeadlines
from slosched.policies.promises import ClassPromises
from slosched.policies.tenants import TenantShares


class Slosched(Policy):
    """Serves by the rule that keeps most weight within its limits on sampled futures.

    A rule decides a whole step: whose prompt goes next, how many prompt tokens the step holds so that answers
    keep their pace, who is parked because its limits are lost
    (`slosched.planner.rollout`). Many rules compete. Now and then they are rolled forward from the engine's
    present state against what may arrive, and the one that does best leads (`slosched.planner.planner`).

    Parked requests are served when nobody who can still be met waits, or when they starve.

    Parameters
    ----------
    params
        How much the planner looks ahead.
    starvation_s
        A request that has waited this long is starved, above 0: the oldest starved one goes first, whatever
        the search says, as often as `rescue_share` allows.
    rescue_share
        Share of the engine for starved requests, above 0, at most 1: after one that takes the engine p
        seconds, its prompt and an equal share of the decoding, the next one's turn comes p / rescue_share
        seconds later. A request waits at most `starvation_s`, plus that for each starved one before it, plus
        the time until it fits.
    hopeless
        What becomes of requests that will miss a limit whatever is done: "keep" them in line as if they had
        been promised twice as long, "demote" them behind all that can be met, or "reject" those whose chance
        to keep all limits, served alone and at once, is below `least_chance`. Best-effort requests and those
        that have a token are never refused; a prompt that has begun is preempted first.
    least_chance
        Above 0, at most 1; an answer with less gives way, too.
    fairness, tenant_shares, fairness_s
        Strength, shares and time constant of fairness between tenants, see `TenantShares`; 0 for none.
    promised
        Shares of classes that are to keep all their limits, whatever it costs the others, see
        `ClassPromises`; by class name, above 0 and below 1.
    preempt
        Whether answers with no limit to keep give way to requests that can still keep theirs, see `give_way`:
        they are preempted, and go on later.
    programs
        Whether the calls of one program (`program_index`) share one deadline, see `ProgramDeadlines`.
    seed
        Seed of the sampled futures.
    background
        For live engines: compare rules in a thread beside the engine, and never wait for the compiler. Until
        the kernels are ready, which another thread sees to, plans are by EDF with hopeless requests last.
        Plans then depend on timing.
    """

    name: ClassVar[str] = "slosched"
    bounded: ClassVar[bool] = True
    paces: ClassVar[bool] = True
    by_slo: ClassVar[bool] = True

    def __init__(
        self,
        params: PlannerParams | None = None,
        *,
        starvation_s: float = 120.0,
        rescue_share: float = 0.02,
        hopeless: str = "demote",
        least_chance: float = 0.05,
        fairness: float = 0.0,
        tenant_shares: Mapping[str, float] | None = None,
        fairness_s: float = 60.0,
        promised: Mapping[str, float] | None = None,
        preempt: bool = True,
        programs: bool = False,
        seed: int = 0,
        background: bool = False,
    ) -> None:
        require(starvation_s > 0, "starvation_s", "a number of seconds above 0", starvation_s)
        require(0 < rescue_share <= 1, "rescue_share", "a number above 0, at most 1", rescue_share)
        require(hopeless in HOPELESS, "hopeless", f"one of {', '.join(HOPELESS)}", hopeless)
        require(0 < least_chance <= 1, "least_chance", "a number above 0, at most 1", least_chance)
        require(isinstance(preempt, bool), "preempt", "true or false", preempt)
        require(isinstance(programs, bool), "programs", "true or false", programs)
        self.starvation_s, self.rescue_share = starvation_s, rescue_share
        self.rejects = hopeless == "reject"
        self.gives_way, self.preempts = preempt, preempt or self.rejects
        self.least_chance = least_chance
        # What the planner is shown instead of the snapshot, one change after the other.
        self._views: list[Callable[[Snapshot], Snapshot]] = []
        shares = TenantShares(fairness, tenant_shares, fairness_s)
        if programs:
            self._views.append(ProgramDeadlines())
        if fairness > 0:
            self._views.append(shares)
        if promised:
            self._views.append(ClassPromises(promised))
        if hopeless == "keep":
            self._views.append(patient)
        self.planner = Planner(params, seed=seed, background=background)
        self._waits = not background
        self._rescued = -1  # serial of the starved request that goes first until it is admitted
        self._rescue_s = 0.0  # what it takes
        self._next_rescue_s = -np.inf

    def plan(self, snapshot: Snapshot) -> Plan:
        """Order the queue and choose the prefill limit."""
        if not self._waits and not PLANNER_KERNELS.ready:
            PLANNER_KERNELS.start()
            return Plan(snapshot=snapshot, policy=self.name, order=edf_demoted(snapshot))
        seen = snapshot
        for view in self._views:
            seen = view(seen)
        reject = preempt = snapshot.waiting[:0]
        if self.rejects:
            reject = refused(seen, seen.waiting, self.least_chance)
            preempt = refused(seen, seen.running, self.least_chance)  # it waits then, to be refused next
        if len(reject):
            seen = replace(seen, waiting=seen.waiting[~np.isin(seen.waiting, reject)])
        way = give_way(seen, self.least_chance) if self.gives_way else Way(seen, preempt[:0], preempt[:0])
        planned = self.planner.plan(way.seen)
        order = self._rescue(seen, np.concatenate([planned.order, way.aside]), way.aside)
        planned = planned._replace(
            hold=np.concatenate([planned.hold, way.aside]),
            running_order=np.concatenate([planned.running_order, way.preempt]),
        )
        preempt = np.concatenate([preempt, way.preempt[~np.isin(way.preempt, preempt)]])
        tokens = planned.prefill_tokens
        if tokens is not None and self._rescued >= 0:
            tokens = max(tokens, int(LEAST_TOKENS))
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order,
            hold=planned.hold[planned.hold != order[0]] if self._rescued >= 0 else planned.hold,
            prefill_tokens=tokens,
            running_order=planned.running_order,
            skip=planned.skip[~np.isin(planned.skip, preempt)],
            preempt=preempt,
            reject=reject,
            certificate=self.planner.certificate,
        )

    def close(self) -> None:
        """End the background thread, if there is one."""
        self.planner.close()

    def _rescue(self, snapshot: Snapshot, order: Ints, aside: Ints) -> Ints:
        """Put the oldest starved request first, if it is its turn; who stopped for others comes later."""
        table = snapshot.table
        oldest = snapshot.waiting[:1]
        if len(aside):
            others = snapshot.waiting[~np.isin(snapshot.waiting, aside)]
            starved = len(others) > 0 and snapshot.now_s - table.arrival_s[others[0]] > self.starvation_s
            oldest = (others if starved else aside)[:1]
        serial = int(table.serial[oldest[0]]) if len(oldest) else -1
        if self._rescued >= 0 and serial != self._rescued:  # admitted, or gone
            self._next_rescue_s = snapshot.now_s + self._rescue_s / self.rescue_share
            self._rescued = -1
        if len(oldest) == 0 or snapshot.now_s < self._next_rescue_s:
            return order
        if snapshot.now_s - table.arrival_s[oldest[0]] <= self.starvation_s:
            return order
        prompt_s = float(prefill_s(snapshot, oldest)[0])
        decode_s = float(remaining_s(snapshot, oldest, decode_step_s(snapshot))[0]) - prompt_s
        table.extra(RESCUED)[oldest] = 1.0
        together = max(1, min(snapshot.limits.max_num_seqs, len(snapshot.running)))
        self._rescued, self._rescue_s = serial, prompt_s + decode_s / together
        return np.concatenate([oldest, order[order != oldest[0]]])
