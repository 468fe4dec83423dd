"""Weighted shortest processing time, Smith's rule."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.estimate import decode_step_s, remaining_s
from slosched.core.snapshot import Snapshot
from slosched.policies.base import KeyPolicy


class Wspt(KeyPolicy):
    """Weighted shortest processing time: descending weight / predicted remaining service; weight 0 last.

    W. E. Smith, "Various optimizers for single-stage production", 1956. Waiting requests only.
    """

    name: ClassVar[str] = "wspt"
    bounded: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Predicted remaining service over weight."""
        weight = snapshot.table.weight[rows]
        service = remaining_s(snapshot, rows, decode_step_s(snapshot))
        return np.asarray(np.divide(service, weight, out=np.full(len(rows), np.inf), where=weight > 0))
