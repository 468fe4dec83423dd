"""Tail-inflated expectation (arXiv 2604.00499): short and surely so first."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.policies.base import KeyPolicy


class Tie(KeyPolicy):
    """Ascending (E[X] + beta·CVaR.9[X]) · decay^(waited / 30 s), X the forecast output length.

    beta = 0.1 · waiting / batch slots, from 0.1 to 0.5. CVaR.9 is the mean of the worst tenth: of eight
    equally likely lengths, the longest. The paper fits a log-t distribution (nu = 3.5) of which the lengths
    are given here by the forecast. Waiting requests only.

    Parameters
    ----------
    decay, decay_s
        A wait of `decay_s` (above 0) multiplies the score by `decay` (above 0, at most 1); 0.9 and 30 s.
    """

    name: ClassVar[str] = "tie"
    bounded: ClassVar[bool] = True

    def __init__(self, *, decay: float = 0.9, decay_s: float = 30.0) -> None:
        require(0 < decay <= 1, "decay", "a number above 0, at most 1", decay)
        require(decay_s > 0, "decay_s", "a number of seconds above 0", decay_s)
        self.decay, self.decay_s = decay, decay_s

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Inflated and aged expectation in tokens."""
        t = snapshot.table
        beta = np.clip(0.1 * len(snapshot.waiting) / snapshot.limits.max_num_seqs, 0.1, 0.5)
        score = t.atoms[rows].mean(axis=1) + beta * t.atoms[rows, -1]
        return np.asarray(score * self.decay ** ((snapshot.now_s - t.arrival_s[rows]) / self.decay_s))
