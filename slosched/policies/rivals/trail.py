"""SPRPT with limited preemption, of Shahout et al. 2024 (arXiv 2410.01035, section 3)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import require
from slosched.core.estimate import decode_step_s
from slosched.core.remaining import remaining_tokens
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.orders import blocked


class Trail(Policy):
    """Shortest predicted remaining length first; a running request may be preempted only while young.

    With age a (tokens produced) and initial prediction r, a request is preemptible while a < C·r and then
    never again. The rank follows the forecast in the table, which a probe may refine as tokens come; r stays
    what it was when the request was first seen. As in the authors' released scheduler, preemption happens
    only when nobody can be admitted, one victim a step, the largest remaining length, if the head of the
    queue is shorter by `margin_tokens`.
    A preempted request past its cut-off goes to the head of the queue (the released code sends it to the
    tail, a sign error by its own description).

    With `memory`, what a preemption does to memory counts too. A victim must make room enough for the head of
    the queue, and what it would have to compute again, in decode steps, is taken off its remaining length.
    And where the engine itself is short of memory it takes that of young requests, the longest remaining
    first, and of those past their cut-off last; by itself it takes that of the last to come.

    Parameters
    ----------
    preemptible_share
        C in [0, 1]: 0 is non-preemptive shortest job first, 1 is SPRPT; 0.8 in the paper.
    margin_tokens
        At least 0.
    memory
        Whether preemptions account for memory; the paper has its limit C alone for that.
    """

    name: ClassVar[str] = "trail"
    bounded: ClassVar[bool] = True
    preempts: bool = True

    def __init__(
        self, *, preemptible_share: float = 0.8, margin_tokens: float = 0.0, memory: bool = False
    ) -> None:
        ok = 0 <= preemptible_share <= 1
        require(ok, "preemptible_share", "a number from 0 to 1", preemptible_share)
        require(margin_tokens >= 0, "margin_tokens", "at least 0", margin_tokens)
        self.preemptible_share, self.margin_tokens = preemptible_share, margin_tokens
        self.memory = memory

    def plan(self, snapshot: Snapshot) -> Plan:
        """Sort by predicted remaining length; perhaps preempt one young request."""
        t, waiting = snapshot.table, snapshot.waiting
        left = remaining_tokens(t.atoms, waiting, t.generated_tokens)
        kept = t.generated_tokens[waiting] >= self._cutoff(snapshot, waiting)
        left = np.where(kept & (t.preemptions[waiting] > 0), -1.0, left)
        by_left = np.argsort(left, kind="stable")
        order = waiting[by_left]
        preempt = self._victim(snapshot, int(order[0]), float(left[by_left[0]])) if len(order) else order
        keep = self._keep_order(snapshot) if self.memory else None
        return Plan(snapshot=snapshot, policy=self.name, order=order, preempt=preempt, running_order=keep)

    def _keep_order(self, snapshot: Snapshot) -> Ints:
        """Running requests, those first whose memory is to be taken last."""
        t, running = snapshot.table, snapshot.running
        young = t.generated_tokens[running] < self._cutoff(snapshot, running)
        left = remaining_tokens(t.atoms, running, t.generated_tokens)
        return running[np.lexsort((left, young))]

    def _cutoff(self, snapshot: Snapshot, rows: Ints) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        first = snapshot.table.extra("trail_first_tokens", np.nan)
        new = rows[np.isnan(first[rows])]
        first[new] = snapshot.table.atoms[new].mean(axis=1)
        return np.asarray(self.preemptible_share * first[rows])

    def _victim(self, snapshot: Snapshot, head: int, mine: float) -> Ints:
        t, running = snapshot.table, snapshot.running
        young = running[t.generated_tokens[running] < self._cutoff(snapshot, running)]
        if len(young) == 0 or not blocked(snapshot, head):
            return young[:0]
        left = remaining_tokens(t.atoms, young, t.generated_tokens)
        if self.memory:
            need = snapshot.needed_blocks(np.array([head]))[0]
            makes_room = need <= snapshot.free_blocks + snapshot.held_blocks(young)
            again = snapshot.step_time.prefill_token_s * t.computed_tokens[young] / decode_step_s(snapshot)
            left = np.where(makes_room, left - again, -np.inf)
        worst = int(np.argmax(left))
        return young[worst : worst + 1] if mine + self.margin_tokens < left[worst] else young[:0]
