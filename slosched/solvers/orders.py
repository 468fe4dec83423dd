"""Simple orders of a queue, built from estimates that are made once."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError
from slosched.core.estimate import (
    deadline_s,
    decode_step_s,
    hopeless,
    latest_start_s,
    prefill_s,
    remaining_s,
)
from slosched.core.snapshot import Snapshot
from slosched.solvers.static.one_machine import moore_hodgson

PHIS = (0.85, 1.0)
"""Scales of the fluid surrogate's processing times that Moore-Hodgson is tried with."""

CONSTRUCTIVE = ("edf+d", "least-laxity+d", "sjf+d", "density+d", *(f"moore-hodgson {phi:g}" for phi in PHIS))
"""The orders worth comparing, all with hopeless requests last."""

PLAIN = ("fcfs", "edf", "least-laxity", "sjf")
"""Orders that do not tell who is hopeless."""


class QueueOrders:
    """Orders of some waiting rows by name.

    EDF, least laxity (latest start), SJF and work per weight; "+d" demotes hopeless requests, shortest first.
    Moore-Hodgson works on the fluid surrogate (one machine that serves everybody in an equal share of its
    time), its kept set in order of due date.

    Parameters
    ----------
    snapshot
        The engine.
    rows
        Waiting rows, shape (n,); ties go to the first.
    """

    def __init__(self, snapshot: Snapshot, rows: Ints) -> None:
        t = snapshot.table
        step_s = decode_step_s(snapshot)
        prefill = prefill_s(snapshot, rows)
        self.arrival = t.arrival_s[rows]
        self.service = remaining_s(snapshot, rows, step_s)
        self.start = latest_start_s(snapshot, rows, step_s)
        self.lost = hopeless(snapshot, rows, step_s)
        self._snapshot, self._rows = snapshot, rows
        self.weight = np.maximum(t.weight[rows], 1e-9)
        together = max(1, min(snapshot.limits.max_num_seqs, len(snapshot.running) + 1))
        self.fluid = prefill + (self.service - prefill) / together

    @cached_property
    def deadline(self) -> Floats:
        """Clock time by which the next thing is due, shape (n,)."""
        due: Floats = deadline_s(self._snapshot, self._rows)
        return due

    @cached_property
    def _due(self) -> Floats:
        """Due dates of the fluid surrogate, from now."""
        ahead = np.where(np.isfinite(self.start), self.start - self._snapshot.now_s, 1e9)
        return np.asarray(ahead + self.fluid)

    def _key(self, base: str) -> Floats:
        """Sort key of an order by its name without "+d"."""
        if base == "edf":
            return self.deadline
        if base == "density":
            return np.asarray(self.fluid / self.weight)
        keys: dict[str, Floats] = {"fcfs": self.arrival, "least-laxity": self.start, "sjf": self.service}
        return keys[base]

    def first(self, name: str, count: int) -> Ints:
        """The first `count` of an order (or all), as indices into the rows.

        Raises
        ------
        InputError
            If there is no order of that name.
        """
        if name.startswith("moore-hodgson"):
            phi = float(name.removeprefix("moore-hodgson") or 1.0)
            kept = moore_hodgson(phi * self.fluid, self._due, self.weight)
            return _smallest(~kept, np.where(kept, self._due, self.fluid), count)
        if name not in (*PLAIN, *CONSTRUCTIVE):
            known = ", ".join((*PLAIN, *CONSTRUCTIVE))
            raise InputError(f"order must be one of {known}, got {name!r}.")
        base = name.removesuffix("+d")
        key = self._key(base)
        if base == name:
            return _smallest(np.zeros(len(key), dtype=np.bool_), key, count)
        of_lost = key if base in ("sjf", "density") else self.fluid
        return _smallest(self.lost, np.where(self.lost, of_lost, key), count)


def _smallest(last: NDArray[np.bool_], key: Floats, count: int) -> Ints:
    """Indices of the `count` smallest by (last, key, index), in that order."""
    if count >= len(key):
        return np.lexsort((key, last))
    # Only the head is sorted: find its largest key, then take what is below it and the first of its equals.
    front = np.flatnonzero(~last)
    if len(front) < count:
        behind = np.flatnonzero(last)
        rest = behind[_head(key[behind], count - len(front))]
        return np.concatenate([front[np.argsort(key[front], kind="stable")], rest])
    return front[_head(key[front], count)]


def _head(key: Floats, count: int) -> Ints:
    """Indices of the `count` smallest by (key, index), in that order; `count` is from 1 to the length."""
    bound = np.partition(key, count - 1)[count - 1]
    chosen = np.flatnonzero(key <= bound)
    excess = len(chosen) - count
    if excess > 0:
        equal = np.flatnonzero(key[chosen] == bound)
        chosen = np.delete(chosen, equal[len(equal) - excess :])
    return chosen[np.argsort(key[chosen], kind="stable")]
