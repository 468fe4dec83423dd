"""How much longer steps take than the step-time model says.

The model of an engine may be another GPU's, or a guess. While answers run the engine is never idle, so the
time from one plan to the next is the time of a step; what it held is read from the table. A model that is
wrong by much is corrected as a whole, by one factor. A small error is left alone.
"""

from __future__ import annotations

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.snapshot import Snapshot

FADE = 0.05
"""Weight of one step in the average: some twenty steps count."""

LEAST_ERROR = 0.35
"""Logarithm of the factor below which nothing is corrected: noise, and what the model leaves out."""

WORST_ERROR = float(np.log(16.0))
"""Largest logarithm of the factor, up or down."""

MOST_APART = 0.5
"""Distance from the average, in logarithms, beyond which a step counts no more: some steps are odd."""


class Clock:
    """Watches how long steps take."""

    def __init__(self) -> None:
        self._step, self._now_s, self._error = -2, 0.0, 0.0
        self._rows: Ints = np.empty(0, dtype=np.int64)  # that ran at the last call
        self._serials: Ints = self._rows  # by table row: who ran there, -1 for nobody
        self._computed: Ints = self._rows  # by table row: tokens computed

    def watch(self, snapshot: Snapshot) -> float:
        """Learn from the step since the last call; returns the factor on the model's times."""
        t, running = snapshot.table, snapshot.running
        elapsed_s, follows = snapshot.now_s - self._now_s, snapshot.step == self._step + 1
        more = t.capacity - len(self._serials)
        if more > 0:
            self._serials = np.concatenate([self._serials, np.full(more, -1)])
            self._computed = np.concatenate([self._computed, np.zeros(more, dtype=np.int64)])
        if follows and elapsed_s > 0 and len(self._rows) and len(running):
            ran = self._serials[running] == t.serial[running]
            start = np.where(ran, self._computed[running], t.cached_tokens[running])
            done = t.computed_tokens[running] - start
            decodes = (done == 1) & (start >= t.prompt_tokens[running])
            prompt = np.where(decodes, 0, np.maximum(0, done)).astype(np.float64)
            said_s = snapshot.step_time.predict(
                prefill_tokens=float(prompt.sum()),
                attention_work=float((prompt * (start + prompt / 2)).sum()),
                sequences=int(decodes.sum()),
                kv_tokens=float(start[decodes].sum()),
            )
            if decodes.any() and float(said_s) > 0:
                self._learn(float(np.log(elapsed_s / float(said_s))))
        self._step, self._now_s = snapshot.step, snapshot.now_s
        self._serials[self._rows] = -1
        self._rows = running.copy()
        self._serials[running], self._computed[running] = t.serial[running], t.computed_tokens[running]
        return float(np.exp(self._error)) if abs(self._error) > LEAST_ERROR else 1.0

    def _learn(self, error: float) -> None:
        apart = float(np.clip(error, -WORST_ERROR, WORST_ERROR)) - self._error
        self._error += FADE * float(np.clip(apart, -MOST_APART, MOST_APART))
