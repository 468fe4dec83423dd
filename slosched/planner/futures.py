"""What may arrive next: the recent past, played again.

No model of arrivals is fitted. A future is a stretch of the recent past with its own gaps, classes, lengths
and limits, moved to begin now. The latest stretch is drawn first, then stretches from anywhere in the window:
both what goes on and what comes and goes are seen. The same futures serve all rules that are compared
(common random numbers).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slosched.core.forecast import FORECAST_ATOMS, OUTLIVED_GROWTH
from slosched.core.snapshot import Snapshot
from slosched.core.table import Floats, Ints
from slosched.planner import rollout as r

WINDOW_S = 300.0
"""Seconds of the past that are remembered: a few times the longest horizon, so that spikes recur."""

MOST_REMEMBERED = 4096
"""Arrivals that are remembered at most, the latest."""

SHORTEST_S = 1.0
"""Seconds of watching before arrivals are believed to go on as they came."""


class Futures:
    """Remembers arrivals, and draws what may come.

    Parameters
    ----------
    seed
        Seed of the draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng([seed, 0x5105C])
        self._jobs: Floats = np.empty((0, r.COLUMNS))
        self.atoms: Floats = np.empty((0, FORECAST_ATOMS))
        self.labels: Ints = np.empty(0, dtype=np.int64)
        self._serials: Ints = self.labels  # by table row: who was seen there, -1 for nobody
        self._begin_s = np.nan

    def watch(self, snapshot: Snapshot) -> None:
        """Remember who has arrived since the last call."""
        t = snapshot.table
        if np.isnan(self._begin_s) or snapshot.now_s < self._begin_s:
            self._begin_s = snapshot.now_s
        rows = np.concatenate([snapshot.waiting, snapshot.running])
        more = t.capacity - len(self._serials)
        if more > 0:
            self._serials = np.concatenate([self._serials, np.full(more, -1)])
        rows = rows[t.serial[rows] != self._serials[rows]]
        if len(rows) == 0:
            return
        rows = rows[np.lexsort((t.serial[rows], t.arrival_s[rows]))]
        self._serials[rows] = t.serial[rows]
        self._begin_s = min(self._begin_s, float(t.arrival_s[rows[0]]))
        jobs = gather(snapshot, rows, 0, np.ones(len(rows)))
        # As they came: nothing computed, nothing answered.
        jobs[:, r.TODO] = np.maximum(1, t.prompt_tokens[rows] - t.cached_tokens[rows])
        jobs[:, r.HAVE] = t.prompt_tokens[rows] - jobs[:, r.TODO]
        jobs[:, r.GENERATED], jobs[:, r.FIRST] = 0.0, np.nan
        atoms = t.atoms[rows]
        jobs[:, r.LEFT] = np.maximum(1.0, atoms.mean(axis=1))
        self.labels = np.concatenate([self.labels, t.class_index[rows]])[-MOST_REMEMBERED:]
        self._jobs = np.concatenate([self._jobs, jobs])[-MOST_REMEMBERED:]
        self.atoms = np.concatenate([self.atoms, atoms])[-MOST_REMEMBERED:]
        keep = np.searchsorted(self._jobs[:, r.ARRIVAL], snapshot.now_s - WINDOW_S)
        if keep > len(self._jobs) // 2:
            self._jobs, self.atoms, self.labels = self._jobs[keep:], self.atoms[keep:], self.labels[keep:]

    @property
    def remembered(self) -> Floats:
        """Jobs of the window as they came, by arrival."""
        return self._jobs

    def draw(self, now_s: float, horizon_s: float, latest: bool) -> tuple[Floats, Ints]:
        """Jobs that may arrive within `horizon_s`, by ascending RELEASE, and where they are remembered.

        Parameters
        ----------
        now_s
            The present.
        horizon_s
            Seconds to look ahead, above 0.
        latest
            Whether the latest stretch is played again, or one from anywhere in the window.

        Returns
        -------
        tuple
            Jobs, with LEFT and TRUTH as forecast, and their places in `labels` and `atoms`.
        """
        begin = max(self._begin_s, now_s - WINDOW_S)
        known_s = now_s - begin
        if len(self._jobs) == 0 or not known_s >= SHORTEST_S:
            return np.empty((0, r.COLUMNS)), np.empty(0, dtype=np.int64)
        spare_s = known_s - horizon_s
        start = now_s - min(horizon_s, known_s)
        if spare_s > 0 and not latest:
            start = begin + float(self._rng.uniform()) * spare_s
        length = min(horizon_s, known_s)
        arrival = self._jobs[:, r.ARRIVAL]
        picked: list[Ints] = []
        shifts: list[NDArray[np.float64]] = []
        low, high = np.searchsorted(arrival, [start, start + length])
        at, offset = np.arange(low, high), now_s - start
        for turn in range(int(np.ceil(horizon_s / length))):  # a past shorter than the horizon is repeated
            picked.append(at)
            shifts.append(np.full(len(at), offset + turn * length))
        rows, shift = np.concatenate(picked), np.concatenate(shifts)
        jobs = self._jobs[rows].copy()
        for column in (r.RELEASE, r.ARRIVAL, r.FIRST_DUE, r.E2E_DUE):
            jobs[:, column] += shift
        jobs = jobs[jobs[:, r.RELEASE] < now_s + horizon_s]
        rows = rows[: len(jobs)]
        return jobs, rows


def gather(snapshot: Snapshot, rows: Ints, running: int, scale: Floats) -> Floats:
    """Jobs of table rows, the first `running` of which run; see `slosched.planner.rollout.gather`."""
    jobs = np.empty((len(rows), r.COLUMNS))
    r.gather(r.columns_of(snapshot.table), rows, running, scale, OUTLIVED_GROWTH, jobs)
    return jobs


def engine_of(snapshot: Snapshot, together: float) -> Floats:
    """Constants of `slosched.planner.rollout` for an engine in which `together` requests usually run."""
    model, limits, t = snapshot.step_time, snapshot.limits, snapshot.table
    engine = np.zeros(r.ENGINE_SIZE)
    engine[r.BASE], engine[r.SEQUENCE], engine[r.KV_TOKEN] = model.base_s, model.sequence_s, model.kv_token_s
    engine[r.PREFILL_TOKEN], engine[r.ATTENTION] = model.prefill_token_s, model.attention_work_s
    engine[r.KNEE_TOKENS], engine[r.KNEE_TOKEN] = model.knee_tokens, model.knee_token_s
    engine[r.BUDGET], engine[r.SLOTS] = limits.max_num_batched_tokens, limits.max_num_seqs
    engine[r.FREE] = snapshot.free_blocks * limits.block_tokens
    engine[r.NOW] = snapshot.now_s
    held = float(t.computed_tokens[snapshot.running].sum())
    count = len(snapshot.running)
    engine[r.STEP] = model.base_s + model.sequence_s * max(1, count) + model.kv_token_s * held
    context = held / count if count else 0.0
    engine[r.SHARE] = model.base_s / max(1.0, together) + model.sequence_s + model.kv_token_s * context
    return engine
