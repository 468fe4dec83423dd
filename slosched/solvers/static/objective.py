"""What a plan of static batches is judged by."""

from __future__ import annotations

import dataclasses
from enum import Enum

from slosched.core.errors import InputError
from slosched.core.result import LATENCY_TOLERANCE, Score
from slosched.solvers.static.problem import StaticProblem


class Objective(Enum):
    """The objectives of static batches.

    Examples
    --------
    >>> Objective.named("g") is Objective.G
    True
    >>> Objective.named("speed")
    Traceback (most recent call last):
    slosched.core.errors.InputError: objective must be one of lex, g, goodput, tardiness, got 'speed'.
    """

    LEX = "lex"
    """Most weight attained, then least total latency; its value is the weight."""
    G = "g"
    """Huang's ratio: weight attained over total latency, in 1/s."""
    GOODPUT = "goodput"
    """Weighted output tokens of requests that meet their limits, then least total latency."""
    TARDINESS = "tardiness"
    """Least sum of weight times seconds by which a request misses its limits (see `tardiness_s`)."""

    @classmethod
    def named(cls, name: str | Objective) -> Objective:
        """The objective of that name."""
        if isinstance(name, Objective):
            return name
        for objective in cls:
            if objective.value == name:
                return objective
        known = ", ".join(objective.value for objective in cls)
        hint = "; soft needs a ContinuousProblem" if name == "soft" else ""
        raise InputError(f"objective must be one of {known}, got {name!r}{hint}.")

    @property
    def minimised(self) -> bool:
        """Whether smaller is better."""
        return self is Objective.TARDINESS

    def reweighted(self, problem: StaticProblem) -> StaticProblem:
        """The problem whose attained weight is what this objective counts first."""
        if self is not Objective.GOODPUT:
            return problem
        return dataclasses.replace(problem, weight=problem.weight * problem.output_tokens)

    def better(self, score: Score, value: float, other: Score, other_value: float) -> bool:
        """Whether a plan beats another, both given as (score, `value` of this objective).

        For goodput the scores must be those of the reweighted problem.
        """
        if self is Objective.G:
            return score.better_g(other)
        if self is Objective.TARDINESS:
            return other_value - value > LATENCY_TOLERANCE * max(1.0, abs(other_value))
        return score.better(other)
