"""A plan that has been checked and may be carried out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.core.table import Ints
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
        Number of the step it was made for.
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
    capacity = snapshot.table.capacity
    standing = np.zeros(capacity, dtype=np.int8)
    standing[snapshot.waiting] = 1
    standing[snapshot.running] = 2
    for name, place in (("order", 1), ("hold", 1), ("preempt", 2), ("reject", 1), ("skip", 2)):
        _distinct(name, getattr(plan, name), standing, place)
    if plan.running_order is not None:
        _distinct("running_order", plan.running_order, standing, 2)
        if len(plan.running_order) != len(snapshot.running):
            raise InputError(
                f"running_order must be all {len(snapshot.running)} running rows, "
                f"got {len(plan.running_order)}."
            )
    tokens = plan.prefill_tokens
    if tokens is not None and not 0 <= int(tokens) < 2**31:
        raise InputError(f"prefill_tokens must be at least 0, got {tokens!r}.")
    return Decision(
        order=plan.order,
        hold=plan.hold,
        preempt=plan.preempt,
        running_order=plan.running_order,
        prefill_tokens=None if tokens is None else int(tokens),
        reject=plan.reject,
        skip=plan.skip,
    )


def _distinct(
    name: str, rows: object, standing: np.ndarray[tuple[int], np.dtype[np.int8]], place: int
) -> None:
    if not (isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype.kind == "i"):
        raise InputError(f"{name} must be a one-dimensional array of integers, got {type(rows).__name__}.")
    if len(rows) == 0:
        return
    if rows.min() < 0 or rows.max() >= len(standing) or (standing[rows] != place).any():
        raise InputError(f"{name} must be rows of its queue, got another row.")
    seen = np.zeros(len(standing), dtype=np.bool_)
    seen[rows] = True
    if int(seen.sum()) != len(rows):
        raise InputError(f"{name} must be distinct rows, got one twice.")
