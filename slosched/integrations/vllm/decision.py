"""A plan that has been checked and may be carried out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan

NOBODY: Ints = np.empty(0, dtype=np.int64)

FIRST = 16
"""Rows of an order that are kept as Python objects, too: one step seldom admits more, and a few objects are
gone through faster than arrays."""


@dataclass(frozen=True, slots=True)
class Offers:
    """Rows in the order in which they are to be admitted, and the serial numbers they had in that plan.

    Parameters
    ----------
    rows, serial
        Rows and their serial numbers, shape (n,).
    first
        The first `FIRST` of them as pairs of row and serial number.
    """

    rows: Ints
    serial: Ints
    first: list[tuple[int, int]]

    @classmethod
    def of(cls, rows: Ints, serial: Ints) -> Offers:
        """Offers of these rows; `serial` is that of every row of the table.

        Examples
        --------
        >>> Offers.of(np.array([2, 0]), np.array([7, 8, 9])).first
        [(2, 9), (0, 7)]
        """
        own = serial[rows]
        return cls(rows, own, list(zip(rows[:FIRST].tolist(), own[:FIRST].tolist(), strict=True)))


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
    offers
        Of a plan made beside the engine: `order` as the queue takes it.
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
    offers: Offers | None = None

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


def plain(rows: Ints) -> Ints:
    """The rows as compiled code takes them, whatever a policy made them of.

    Examples
    --------
    >>> plain(np.arange(6, dtype=np.int32)[::2]).flags.c_contiguous
    True
    """
    return np.require(rows, dtype=np.int64, requirements=["C", "W"])
