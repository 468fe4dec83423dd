"""Cascade (arXiv 2608.06557): least latency budget first."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.estimate import decode_step_s, prefill_s, remaining_s
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.orders import blocked
from slosched.policies.pace import answer_due_s, in_decode


class Cascade(Policy):
    """Least budget first; memory and slots are taken from the largest budget.

    A request's budget is its limit less the time used and less γ·½(L̂ + L_max), with L̂ and L_max its
    remaining service time by the expected and by the largest length of its forecast, γ above 1. Limits on
    the whole answer count so (end-to-end, or the last token by its TPOT limit); of a TTFT limit, γ times the
    prefill is taken off. The least counts; without limits it is infinite, so that best effort goes last and
    gives way first. When the head of the queue does not fit, the running request with the largest budget is
    preempted, if its budget is larger and allows for computing its context again; one a step.

    Known second-hand only. The authors restore or spill caches as well, where the transfer fits the budget;
    this engine recomputes.

    Parameters
    ----------
    gamma
        γ, above 1.
    """

    name: ClassVar[str] = "cascade"
    bounded: ClassVar[bool] = True
    preempts: bool = True

    def __init__(self, *, gamma: float = 1.2) -> None:
        require(1 < gamma < np.inf, "gamma", "above 1", gamma)
        self.gamma = gamma

    def plan(self, snapshot: Snapshot) -> Plan:
        """Sort by budget; perhaps preempt one."""
        waiting, running = snapshot.waiting, snapshot.running
        mine, theirs = self.budget_s(snapshot, waiting), self.budget_s(snapshot, running)
        by_budget = np.argsort(mine, kind="stable")
        order = waiting[by_budget]
        victim = running[:0]
        if len(order) and len(running) and blocked(snapshot, int(order[0])):
            largest = int(np.argmax(theirs))
            again = snapshot.step_time.prefill_token_s * snapshot.table.computed_tokens[running[largest]]
            if theirs[largest] - again > max(0.0, float(mine[by_budget[0]])):
                victim = running[largest : largest + 1]
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order,
            preempt=victim,
            running_order=running[np.lexsort((theirs, ~in_decode(snapshot, running)))],
        )

    def budget_s(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Budgets in seconds."""
        t, step_s = snapshot.table, decode_step_s(snapshot)
        expected, prefill = remaining_s(snapshot, rows, step_s), prefill_s(snapshot, rows)
        longest = prefill + np.maximum(0.0, t.atoms[rows, -1] - t.generated_tokens[rows] - 1.0) * step_s
        service = (expected + np.maximum(expected, longest)) / 2
        whole = answer_due_s(snapshot, rows) - snapshot.now_s - self.gamma * service
        first = t.arrival_s[rows] + t.ttft_s[rows] - snapshot.now_s - self.gamma * prefill
        return np.asarray(np.where(t.generated_tokens[rows] == 0, np.minimum(first, whole), whole))
