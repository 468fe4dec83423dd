"""The interface of every policy, and the form most of them take: sort the queue by a key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine
from slosched.core.kept import KeptTable
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan


class Policy(ABC):
    """Decides on one snapshot at a time; deterministic given its history of snapshots.

    A policy object serves one engine for one run. What it must remember about a request it keeps in
    `table.extra` columns. With ``policy.plan(Snapshot.of(waiting, running, ...))`` at every step, requests
    are known by their names.

    An engine asks for a plan only where one could matter: before a step at which somebody could be admitted,
    and at further steps as the attributes below say. They also say what an engine must be able to carry
    out. A policy that counts steps or time reads them from the snapshot, since steps may go by unasked.

    Attributes
    ----------
    name
        Name on the command line and in reports.
    static
        Whether the order of two waiting requests never changes after arrival and nothing else is decided:
        engines may then sort by `key` once per request instead of asking for a plan at each step.
    steady
        Whether at least the keys of waiting requests are fixed while they wait, new ones only after a
        preemption: a live engine then keys each request when it joins the queue.
    preempts
        Whether plans may preempt running requests: an engine then asks for a plan even when nobody could be
        admitted.
    paces
        Whether plans may limit prefill: an engine then asks whenever somebody waits, and at every step in
        which a running request is in prefill.
    rejects
        Whether plans may refuse waiting requests: an engine then asks whenever somebody waits.
    skips
        Whether plans may pass over running requests, or order them by the state of this step: an engine then
        asks at every step.
    by_arrival
        Whether the order is that of arrival and nothing else is decided: an engine's own queue then serves.
    by_slo
        Whether nothing but the order of arrival follows while no request has an SLO: a live engine then keeps
        its own queue until one comes.
    bounded
        Whether every plan ends, within a time bounded by the number of requests: a live engine then plans on
        its own thread where that is quick. Otherwise it plans on a thread beside its own, and goes on if a
        plan never comes. Not inherited, since a subclass may hold code of its own.
    budget_tokens
        Token budget of a step that the engine is to have under this policy; None for its own.
    victim_worst
        Whose memory is taken when the KV cache runs short: the running request with the largest key (as
        vLLM's priority policy does), or else the last in running order (as its FCFS policy does).
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Let every `plan` know requests by name where each snapshot has a table of its own."""
        super().__init_subclass__(**keywords)
        cls.bounded = cls.__dict__.get("bounded", False)
        if "plan" in cls.__dict__:
            type.__setattr__(cls, "plan", _knowing(cls.__dict__["plan"]))

    name: ClassVar[str]
    static: ClassVar[bool] = False
    steady: ClassVar[bool] = False
    preempts: bool = False
    paces: ClassVar[bool] = False
    rejects: bool = False
    skips: ClassVar[bool] = False
    victim_worst: ClassVar[bool] = False
    by_arrival: ClassVar[bool] = False
    by_slo: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    budget_tokens: int | None = None

    def engine_for(self, engine: Engine) -> Engine:
        """The engine that the policy asks for: with its token budget, if it names one."""
        return engine.with_limits(max_num_batched_tokens=self.budget_tokens)

    @abstractmethod
    def plan(self, snapshot: Snapshot) -> Plan:
        """Decide what happens in the step about to be scheduled."""


def _knowing(plan: Callable[[Any, Snapshot], Plan]) -> Callable[[Any, Snapshot], Plan]:
    """A `plan` that sees a queue of `Snapshot.of` on one table for as long as the policy lives.

    Without this a kept policy would take a request of this step for one of the last that had its row.
    """

    @wraps(plan)
    def known(self: Any, snapshot: Snapshot) -> Plan:
        """Plan on the policy's own table, on which a request keeps its row, where a snapshot has its own."""
        if not snapshot.table.detached:
            return plan(self, snapshot)
        kept: KeptTable = self.__dict__.setdefault("_kept", KeptTable())
        seen, back = kept.adopt(snapshot)
        made = plan(self, seen)
        made.check()
        return made.on(snapshot, back)

    return known


class KeyPolicy(Policy):
    """Orders the waiting queue by a key, smaller first; ties by (arrival, serial)."""

    @abstractmethod
    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Sort keys of the given rows, shape (len(rows),), never NaN."""

    def plan(self, snapshot: Snapshot) -> Plan:
        """Sort the waiting queue."""
        key = self.key(snapshot, snapshot.waiting)
        order = snapshot.waiting[np.argsort(key, kind="stable")]
        return Plan(snapshot=snapshot, policy=self.name, order=order)
