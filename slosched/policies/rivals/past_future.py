"""Past-Future admission of LightLLM (ASPLOS 2025): nobody enters whom memory could not keep."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.departures import Departures


class PastFuture(Policy):
    """First come, first served, held while the memory that running requests will come to need is not there.

    With used tokens and tokens still to come of all running requests and the candidate, sorted by what is to
    come, descending, the peak is the largest sum over the first k of used tokens plus k times what is to come
    of the k-th. The candidate enters if the peak is below the capacity, else it and all behind it are held.
    An answer is expected to be as long as the answers so far (an exponential average), or 1.1 times its
    present length if that is more. While nothing runs the first in line always enters.

    Parameters
    ----------
    start_tokens
        Average before the first answer, at least 1; 2048 in LightLLM.
    least_tokens
        Shorter answers count as this, at least 1; 64 in LightLLM.

    Notes
    -----
    The average's factor is 0.5 at first and shrinks by 0.8 with each answer, to 0.04, as in LightLLM.
    """

    name: ClassVar[str] = "past-future"
    bounded: ClassVar[bool] = True

    def __init__(self, *, start_tokens: float = 2048.0, least_tokens: int = 64) -> None:
        require(1 <= start_tokens < np.inf, "start_tokens", "a finite number of at least 1", start_tokens)
        require(least_tokens >= 1, "least_tokens", "at least 1", least_tokens)
        self.average_tokens, self.least_tokens = start_tokens, least_tokens
        self._factor = 0.5
        self._left = Departures()

    def plan(self, snapshot: Snapshot) -> Plan:
        """Hold whoever does not fit for good, and all behind."""
        t, waiting, running = snapshot.table, snapshot.waiting, snapshot.running
        for tokens in t.generated_tokens[self._left.since(snapshot)].tolist():
            self.average_tokens += self._factor * (max(self.least_tokens, tokens) - self.average_tokens)
            self._factor = max(0.04, 0.8 * self._factor)
        rows = np.concatenate([running, waiting[: max(0, snapshot.free_seqs)]])
        used = (t.prompt_tokens[rows] + t.generated_tokens[rows]).astype(np.float64)
        more = self._to_come(snapshot, rows)
        fit = len(running)
        while fit < len(rows) and self._fits(snapshot, used[: fit + 1], more[: fit + 1]):
            fit += 1
        admitted = max(fit - len(running), 1 if len(running) == 0 else 0)
        return Plan(snapshot=snapshot, policy=self.name, order=waiting, hold=waiting[admitted:])

    def _to_come(self, snapshot: Snapshot, rows: Ints) -> Floats:
        t = snapshot.table
        generated = t.generated_tokens[rows]
        room = snapshot.limits.max_model_len - t.prompt_tokens[rows]
        whole = np.minimum(room, np.maximum(np.floor(1.1 * generated), self.average_tokens))
        return np.asarray(np.maximum(0.0, whole - generated - 1))

    def _fits(self, snapshot: Snapshot, used: Floats, more: Floats) -> bool:
        by_more = np.argsort(-more, kind="stable")
        peak = np.cumsum(used[by_more]) + more[by_more] * np.arange(1, len(used) + 1)
        return bool(peak.max() < snapshot.limits.kv_tokens)
