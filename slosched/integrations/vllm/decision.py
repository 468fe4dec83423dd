"""A plan that has been checked and may be carried out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan

NOBODY: Ints = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A plan that has been checked.

    Parameters
    ----------
    order, hold, preempt, running_order, prefill_tokens, reject, skip
        As in `slosched.planner.plan.Plan`.
    serial, newest
        Of a plan made beside the engine: the serial numbers its rows had, and the highest that it knew.
    step
        Number of the last step scheduled before it was made.
    same_order
        Whether `running_order` is the order in which they ran.
    """

    order: Ints
    hold: Ints = field(default_factory=lambda: NOBODY)
    preempt: Ints = field(default_factory=lambda: NOBODY)
    running_order: Ints | None = None
    prefill_tokens: int | None = None
    reject: Ints = field(default_factory=lambda: NOBODY)
    skip: Ints = field(default_factory=lambda: NOBODY)
    serial: Ints | None = None
    newest: int = -1
    step: int = 0
    same_order: bool = False

    @property
    def bounded(self) -> bool:
        """Whether it was made beside the engine and says how much prompt its step holds: who enters then is
        part of it, so that it can be carried out only once.
        """
        return self.serial is not None and self.prefill_tokens is not None

    def alive(self, rows: Ints, serial: Ints) -> Ints:
        """Those of the rows that still belong to the request they belonged to."""
        return rows if self.serial is None else rows[self.serial[rows] == serial[rows]]


def checked(plan: Plan, snapshot: Snapshot) -> Decision:
    """The plan as a decision.

    Raises
    ------
    InputError
        If a row is not where the plan says or is listed twice, or a number is out of its domain.
    """
    plan.check(snapshot)
    tokens = plan.prefill_tokens
    return Decision(
        order=plan.order,
        hold=plan.hold,
        preempt=plan.preempt,
        running_order=plan.running_order,
        prefill_tokens=None if tokens is None else int(tokens),
        reject=plan.reject,
        skip=plan.skip,
        step=snapshot.step,
        same_order=plan.running_order is not None and np.array_equal(plan.running_order, snapshot.running),
    )
