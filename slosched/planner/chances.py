"""Chances of requests to keep their limits, corrected by what became of such words before.

When rules are compared, the leader's rollouts say of every request whether it keeps its limits: the share of
futures in which it does is its raw chance. Raw chances are too sure, since a rollout knows its future. So the
first word on each request, one while it waits and one when it runs, is kept until the request ends. What
became of those with about the same word corrects the words to come (binning and isotonic regression: Zadrozny
and Elkan, KDD 2002), apart for those that wait and those that run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.snapshot import Snapshot
from slosched.core.table import RequestTable

WAITS, RUNS = 0, 1
"""Kinds of words: on a request that waits, and on one that runs."""

EDGES = np.concatenate([[1e-9], np.arange(1, 10) / 10, [1.0 - 1e-9]])
"""Between bins of raw chances; those who say never, or always, have bins of their own."""

PRIOR = 30.0
"""Words of each bin that were true before any was heard. Outcomes come late and in crowds, so a few say
little: on 24 tuning draws the words on those that wait are off by .092 with 3, .064 with 10, .048 with 30."""

MOST = 400.0
"""Outcomes of a bin from which on the older ones count half: traffic changes."""


class Reliability(NamedTuple):
    """What words were worth: one entry for each tenth of the corrected chance.

    Parameters
    ----------
    requests
        How many, shape (10,).
    said, met
        Their mean corrected chance, and the share that kept all limits, 0 to 1, shape (10,); NaN for none.
    """

    requests: Floats
    said: Floats
    met: Floats

    @property
    def gap(self) -> float:
        """Mean distance of what was said from what came, 0 to 1; NaN where nothing was said."""
        some = self.requests > 0
        if not some.any():
            return float("nan")
        return float(np.average(np.abs(self.said - self.met)[some], weights=self.requests[some]))


class Chances:
    """Keeps words and outcomes, and corrects."""

    def __init__(self) -> None:
        self._serial: Ints = np.empty(0, dtype=np.int64)  # by table row: whose words these are
        self._raw: Floats = np.empty((2, 0))  # by kind and table row, NaN before the first word
        self._said: Floats = np.empty((2, 0))  # the same, corrected
        self._seen = np.zeros((2, len(EDGES) + 1, 3))  # by kind and bin: outcomes, sum of words, kept
        self._told = np.zeros((2, 10, 3))  # the same by corrected chance, nothing forgotten
        self._ladders: dict[int, tuple[Floats, Floats]] = {}  # by kind: raw chances and corrected ones

    def say(self, table: RequestTable, rows: Ints, serials: Ints, running: int, raw: Floats) -> None:
        """Take down raw chances.

        Parameters
        ----------
        table
            The requests' table.
        rows, serials
            Rows, the first `running` of which run, and who was there when the chances were worked out.
        running
            How many run.
        raw
            Their chances, 0 to 1, shape (len(rows),).
        """
        self._grow(table.capacity)
        for kind, part in ((RUNS, slice(0, running)), (WAITS, slice(running, None))):
            mine, who, word = rows[part], serials[part], raw[part]
            same = (mine < table.capacity) & (table.serial[np.minimum(mine, table.capacity - 1)] == who)
            mine, who, word = mine[same], who[same], word[same]
            other = self._serial[mine] != who
            self._serial[mine[other]] = who[other]
            self._raw[:, mine[other]] = np.nan
            first = np.isnan(self._raw[kind, mine])
            self._raw[kind, mine[first]] = word[first]
            self._said[kind, mine[first]] = self.corrected(kind, word[first])

    def corrected(self, kind: int, raw: Floats) -> Floats:
        """Raw chances as they should be said, 0 to 1."""
        if kind not in self._ladders:
            from scipy.optimize import isotonic_regression

            count, words, kept = self._seen[kind].T
            middle = np.where(count > 0, words / np.maximum(1.0, count), _MIDDLES)
            rate = isotonic_regression((kept + PRIOR * middle) / (count + PRIOR), weights=count + 1.0).x
            self._ladders[kind] = middle, rate
        return np.asarray(np.interp(raw, *self._ladders[kind]))

    def learn(self, snapshot: Snapshot, rows: Ints, ended_s: float) -> None:
        """What became of requests that have left the engine, and ended at `ended_s`."""
        t = snapshot.table
        self._grow(t.capacity)
        limits = np.stack([t.ttft_s[rows], t.tpot_s[rows], t.e2e_s[rows]])
        rows = rows[np.isfinite(limits).any(axis=0)]
        first_s, arrival_s = t.first_token_s[rows], t.arrival_s[rows]
        tokens = np.maximum(1, t.generated_tokens[rows] - 1)
        kept = (first_s - arrival_s <= t.ttft_s[rows]) & (ended_s - arrival_s <= t.e2e_s[rows])
        kept &= (ended_s - first_s) / tokens <= t.tpot_s[rows] * (1 + 1e-9)
        for kind in (WAITS, RUNS):
            known = ~np.isnan(self._raw[kind, rows]) & ~np.isnan(first_s)
            raw, said, met = self._raw[kind, rows[known]], self._said[kind, rows[known]], kept[known]
            seen = self._seen[kind]
            _add(seen, np.searchsorted(EDGES, raw, side="right"), raw, met)
            seen[seen[:, 0] > MOST] *= 0.5
            _add(self._told[kind], np.minimum((said * 10).astype(np.int64), 9), said, met)
        self._raw[:, rows] = np.nan
        self._ladders.clear()

    def reliability(self, kind: int) -> Reliability:
        """The reliability diagram of all words so far."""
        count, said, met = self._told[kind].T
        with np.errstate(invalid="ignore"):
            return Reliability(count.copy(), said / count, met / count)

    def _grow(self, rows: int) -> None:
        more = rows - len(self._serial)
        if more > 0:
            self._serial = np.concatenate([self._serial, np.full(more, -1)])
            self._raw = np.concatenate([self._raw, np.full((2, more), np.nan)], axis=1)
            self._said = np.concatenate([self._said, np.full((2, more), np.nan)], axis=1)


_MIDDLES = np.concatenate([[0.0], (EDGES[1:] + EDGES[:-1]) / 2, [1.0]])


def _add(bins: Floats, place: Ints, word: Floats, met: Floats) -> None:
    np.add.at(bins, place, np.stack([np.ones(len(word)), word, met], axis=1))
