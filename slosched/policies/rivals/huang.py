"""The annealing scheduler of Huang et al. 2025 (arXiv 2504.14966), made rolling."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.solvers.solve import solve
from slosched.solvers.static.problem import StaticProblem


class Huang(Policy):
    """The published search, literally: static batches, G = met / total latency, its moves and temperatures.

    The paper orders a set of requests that are all there. Here the requests that wait at a plan are such a
    set: they are ordered once and keep that order; requests that arrive later follow in order of arrival
    until the set is used up or `replan_s` have passed, whichever comes first. Batch limits are not enforced
    on an engine that refills slots as they fall free.

    Parameters
    ----------
    max_batch
        Batch size of the paper's model, at least 1; 4 is the largest it reports.
    replan_s
        Seconds of engine time from one search to the next, above 0.
    most
        Most requests in one search, at least 1, the oldest first: a search evaluates 6,300 plans.
    seed
        Seed of the search.
    """

    name: ClassVar[str] = "huang"
    bounded: ClassVar[bool] = True

    def __init__(self, *, max_batch: int = 4, replan_s: float = 1.0, most: int = 128, seed: int = 0) -> None:
        require(max_batch >= 1, "max_batch", "at least 1", max_batch)
        require(replan_s > 0, "replan_s", "above 0", replan_s)
        require(most >= 1, "most", "at least 1", most)
        self.max_batch, self.replan_s, self.most, self.seed = max_batch, replan_s, most, seed
        self._next_s = -np.inf

    def plan(self, snapshot: Snapshot) -> Plan:
        """Keep the last search's order, or search again."""
        rank = snapshot.table.extra("huang.rank", fill=np.inf)
        waiting = snapshot.waiting
        if snapshot.now_s >= self._next_s or not np.isfinite(rank[waiting]).any():
            chosen = waiting[: self.most]
            rank[waiting] = np.inf
            rank[self._search(snapshot, chosen)] = np.arange(len(chosen))
            self._next_s = snapshot.now_s + self.replan_s
        order = waiting[np.argsort(rank[waiting], kind="stable")]
        return Plan(snapshot=snapshot, policy=self.name, order=order)

    def _search(self, snapshot: Snapshot, rows: Ints) -> Ints:
        if len(rows) < 2:
            return rows
        problem = StaticProblem.of(replace(snapshot, waiting=rows), max_batch=self.max_batch)
        result = solve(problem, solver="huang-literal", objective="g", seed=self.seed)
        return rows[result.sequence]
