"""Policies that sort the queue by one number, and their forms that demote hopeless requests ("+d").

Definitions and sources: t now, A arrival, S, P, E the TTFT, TPOT and end-to-end limits.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.estimate import (
    deadline_s,
    decode_step_s,
    hopeless,
    latest_start_s,
    prefill_s,
    remaining_s,
)
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy


class Fcfs(KeyPolicy):
    """First come, first served: vLLM's default order."""

    name: ClassVar[str] = "fcfs"
    bounded: ClassVar[bool] = True
    by_arrival: ClassVar[bool] = True
    static: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """All equal: ties go by arrival."""
        return np.zeros(len(rows))


class Priority(KeyPolicy):
    """vLLM's ``--scheduling-policy priority``: by (priority, A), lower first.

    Memory is taken from the running request with the largest (priority, A); running requests are not
    preempted for waiting ones.
    """

    name: ClassVar[str] = "priority"
    bounded: ClassVar[bool] = True
    static: ClassVar[bool] = True
    victim_worst: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """The request's priority."""
        return snapshot.table.priority[rows].astype(np.float64)


class Edf(KeyPolicy):
    """Earliest deadline first: A + S, else the next token's deadline, else A + E; best effort last."""

    name: ClassVar[str] = "edf"
    bounded: ClassVar[bool] = True
    by_slo: ClassVar[bool] = True
    steady: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Deadline of what is due next."""
        return deadline_s(snapshot, rows)


class LeastLaxity(KeyPolicy):
    """Least laxity (slack) first: latest start - t; best effort last. Known as LSTF, as in MindIE."""

    name: ClassVar[str] = "least-laxity"
    bounded: ClassVar[bool] = True
    by_slo: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Slack in seconds."""
        return latest_start_s(snapshot, rows, decode_step_s(snapshot)) - snapshot.now_s


class Sjf(KeyPolicy):
    """Shortest job first on the service time predicted at arrival, each request alone on the engine."""

    name: ClassVar[str] = "sjf"
    bounded: ClassVar[bool] = True
    static: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Predicted service time; of the whole request, whatever it already has."""
        t = snapshot.table
        prompt = t.prompt_tokens[rows].astype(np.float64)
        model = snapshot.step_time
        prefill = model.predict(prompt, prompt * prompt / 2)
        step = float(model.predict(sequences=1, kv_tokens=1000))
        return np.asarray(prefill + (t.atoms[rows].mean(axis=1) - 1.0) * step)


class Hrrn(KeyPolicy):
    """Highest response ratio next: descending 1 + waited / predicted service (classic form)."""

    name: ClassVar[str] = "hrrn"
    bounded: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Negated response ratio."""
        service = remaining_s(snapshot, rows, decode_step_s(snapshot))
        return np.asarray(-(snapshot.now_s - snapshot.table.arrival_s[rows]) / service)


class Srpt(KeyPolicy):
    """Shortest remaining processing time, preemptive, on predicted remaining service.

    When nobody can be admitted, the running request with the longest remaining time is preempted for the
    waiting one with the shortest, if that is shorter by more than what preemption costs, namely computing
    the victim's context again. At most one a step.
    """

    name: ClassVar[str] = "srpt"
    bounded: ClassVar[bool] = True
    preempts: bool = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Predicted remaining service time."""
        return remaining_s(snapshot, rows, decode_step_s(snapshot))

    def plan(self, snapshot: Snapshot) -> Plan:
        """Sort; perhaps preempt one."""
        order = super().plan(snapshot).order
        preempt = self.victim(snapshot, int(order[0])) if len(order) else order[:0]
        return Plan(snapshot=snapshot, policy=self.name, order=order, preempt=preempt)

    def victim(self, snapshot: Snapshot, head: int) -> Ints:
        """The running row to preempt for the waiting row `head`, or none."""
        none = np.empty(0, dtype=np.int64)
        if len(snapshot.running) == 0 or not blocked(snapshot, head):
            return none
        left = self.key(snapshot, snapshot.running)
        worst = int(np.argmax(left))
        row = snapshot.running[worst : worst + 1]
        again = float(snapshot.step_time.prefill_token_s * snapshot.table.computed_tokens[row[0]])
        mine = float(self.key(snapshot, np.array([head]))[0])
        return row.copy() if mine + again < left[worst] else none


def blocked(snapshot: Snapshot, row: int) -> bool:
    """Whether a waiting row cannot be admitted for want of a slot or of memory."""
    return len(snapshot.admissible(np.array([row]))) == 0


class _Demoting(Policy):
    """Hopeless requests behind all others, shortest prefill first among themselves; else as the base."""

    base: ClassVar[type[KeyPolicy]]

    def __init__(self) -> None:
        self._base = self.base()

    def plan(self, snapshot: Snapshot) -> Plan:
        """Order by (hopeless, the base's key)."""
        rows = snapshot.waiting
        lost = hopeless(snapshot, rows, decode_step_s(snapshot))
        key = np.where(lost, prefill_s(snapshot, rows), self._base.key(snapshot, rows))
        order = rows[np.lexsort((key, lost))]
        return Plan(snapshot=snapshot, policy=self.name, order=order)


class EdfDemote(_Demoting):
    """Earliest deadline first with hopeless requests demoted."""

    name: ClassVar[str] = "edf+d"
    bounded: ClassVar[bool] = True
    by_slo: ClassVar[bool] = True
    base: ClassVar[type[KeyPolicy]] = Edf


class LeastLaxityDemote(_Demoting):
    """Least laxity first with hopeless requests demoted."""

    name: ClassVar[str] = "least-laxity+d"
    bounded: ClassVar[bool] = True
    by_slo: ClassVar[bool] = True
    base: ClassVar[type[KeyPolicy]] = LeastLaxity


class SjfDemote(_Demoting):
    """Shortest job first with hopeless requests demoted."""

    name: ClassVar[str] = "sjf+d"
    bounded: ClassVar[bool] = True
    base: ClassVar[type[KeyPolicy]] = Sjf


class HrrnDemote(_Demoting):
    """Highest response ratio next with hopeless requests demoted."""

    name: ClassVar[str] = "hrrn+d"
    bounded: ClassVar[bool] = True
    base: ClassVar[type[KeyPolicy]] = Hrrn
