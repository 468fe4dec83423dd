"""Queue orders of SGLang's scheduler."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy
from slosched.policies.departures import Departures

MOST_SORTED = 128
"""Waiting requests above which SGLang serves by arrival instead."""

LITTLE_CACHED_TOKENS = 32
"""A cached prefix up to this long counts as none: SGLang's threshold for looking at the queue itself."""


class Lpm(KeyPolicy):
    """Longest cached prefix first, SGLang's ``lpm``; by arrival above `most_sorted` waiting requests.

    Of several requests with hardly anything cached (32 tokens at most) that begin alike, all but the first
    go last: served one step later they find its prefix in the cache. SGLang compares whole prompts for that;
    here the first prompt block decides (`prefix_index`).

    Parameters
    ----------
    most_sorted
        At least 0; 128 in SGLang.
    """

    name: ClassVar[str] = "lpm"
    bounded: ClassVar[bool] = True

    def __init__(self, *, most_sorted: int = MOST_SORTED) -> None:
        require(most_sorted >= 0, "most_sorted", "at least 0", most_sorted)
        self.most_sorted = most_sorted

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Negated cached tokens; infinity for followers of an uncached prefix."""
        if len(snapshot.waiting) > self.most_sorted:
            return np.zeros(len(rows))
        t = snapshot.table
        cached, begin = t.cached_tokens[rows], t.prefix_index[rows]
        together = np.flatnonzero((cached <= LITTLE_CACHED_TOKENS) & (begin >= 0))
        _, first = np.unique(begin[together], return_index=True)
        key = -cached.astype(np.float64)
        key[np.delete(together, first)] = np.inf
        return key


class HrrnSglang(KeyPolicy):
    """Highest response ratio next as merged in SGLang: waited / u, both in prefill tokens.

    u are the prompt tokens of a request that are not cached, and it has waited for as many tokens as the
    engine has prefilled since it came: when the engine slows nobody ages faster. u = 0 goes first. By
    arrival above `most_sorted` waiting requests.

    Parameters
    ----------
    most_sorted
        At least 0; 128 in SGLang.
    """

    name: ClassVar[str] = "hrrn-sglang"
    bounded: ClassVar[bool] = True

    def __init__(self, *, most_sorted: int = MOST_SORTED) -> None:
        require(most_sorted >= 0, "most_sorted", "at least 0", most_sorted)
        self.most_sorted = most_sorted
        self._left = Departures()
        self._prefilled = 0.0

    def plan(self, snapshot: Snapshot) -> Plan:
        """Count what the engine has prefilled since the last plan, then sort."""
        t = snapshot.table
        seen = t.extra("hrrn.seen")
        start = t.extra("hrrn.start", fill=np.nan)
        rows = np.concatenate([snapshot.waiting, snapshot.running, self._left.since(snapshot)])
        # Every output token but the first took one token of computation; all else was prefill.
        prefill = t.served_tokens[rows] - np.maximum(0, t.generated_tokens[rows] - 1)
        self._prefilled += float(np.sum(prefill - seen[rows]))
        seen[rows] = prefill
        waiting = snapshot.waiting
        start[waiting] = np.where(np.isnan(start[waiting]), self._prefilled, start[waiting])
        return super().plan(snapshot)

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Negated response ratio."""
        if len(snapshot.waiting) > self.most_sorted:
            return np.zeros(len(rows))
        t = snapshot.table
        todo = t.prompt_tokens[rows] + t.generated_tokens[rows] - t.cached_tokens[rows]
        waited = self._prefilled - t.extra("hrrn.start", fill=np.nan)[rows]
        ratio = waited / np.maximum(1, todo)
        return np.where(todo <= 0, -np.inf, -ratio)
