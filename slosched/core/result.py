"""What a solver hands back: a plan, how good it is, and how good any plan could be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints

WEIGHT_TOLERANCE = 1e-9
LATENCY_TOLERANCE = 1e-9
"""Weights are compared absolutely, latencies relatively."""


class Status(Enum):
    """How much is known about a result."""

    OPTIMAL = "optimal"
    """Proved best for the objective (the lexicographic one: in both parts)."""
    FEASIBLE = "feasible"
    """A valid plan without a proof."""
    INFEASIBLE = "infeasible"
    """Proved that there is no plan."""
    LIMIT = "limit"
    """A limit of time or memory was hit before the question was settled; a plan may still be given."""


@dataclass(frozen=True, slots=True)
class Score:
    """Weight attained and total latency of a plan.

    Parameters
    ----------
    weight
        Sum of the weights of requests that meet all their limits.
    latency_s
        Sum of end-to-end latencies of ALL requests in seconds, the time already waited included.

    Examples
    --------
    >>> Score(3.0, 50.0).better(Score(3.0, 60.0)), Score(3.0, 50.0).better(Score(4.0, 90.0))
    (True, False)
    >>> Score(3.0, 50.0).better_g(Score(4.0, 90.0))
    True
    """

    weight: float
    latency_s: float

    def better(self, other: Score) -> bool:
        """Lexicographic: more weight, or the same and less latency."""
        if abs(self.weight - other.weight) > WEIGHT_TOLERANCE:
            return self.weight > other.weight
        return other.latency_s - self.latency_s > LATENCY_TOLERANCE * max(1.0, abs(other.latency_s))

    def better_g(self, other: Score) -> bool:
        """Huang's objective: more weight per second of total latency."""
        mine, theirs = self.weight * other.latency_s, other.weight * self.latency_s
        return mine - theirs > LATENCY_TOLERANCE * max(abs(mine), abs(theirs))

    @property
    def g(self) -> float:
        """Huang's G in 1/s: weight over total latency; 0 if nothing takes time."""
        return self.weight / self.latency_s if self.latency_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """What the model expects of each request under the plan, indexed by request, shape (n,)."""

    start_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    met: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """A plan with its value.

    Parameters
    ----------
    status
        What is known about it.
    score
        Weight attained and total latency.
    objective
        Value of the objective that was asked for; its leading part for the lexicographic one (the weight).
        Larger is better unless the objective is a tardiness.
    bound
        Proved limit on `objective` over all plans, None if unknown (never 0 for "unknown").
    sequence
        Requests in order of start, shape (n,), a permutation.
    batches
        Sizes of consecutive batches along `sequence`, summing to n; all 1 or empty where there are none.
    moves
        Plans looked at.
    seconds
        Wall time used.
    solver
        Name of the solver.
    prediction
        Expected latencies per request, or None.
    """

    status: Status
    score: Score
    objective: float
    sequence: Ints
    batches: Ints
    bound: float | None = None
    moves: int = 0
    seconds: float = 0.0
    solver: str = ""
    prediction: Expected | None = field(default=None, repr=False)

    @property
    def gap(self) -> float | None:
        """Relative distance of the objective to its bound, None where no bound is known."""
        if self.status is Status.OPTIMAL:
            return 0.0
        if self.bound is None or not math.isfinite(self.bound):
            return None
        distance = abs(self.bound - self.objective)
        return 0.0 if distance == 0 else distance / max(abs(self.bound), 1e-12)
