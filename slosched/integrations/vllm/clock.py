"""What time it is for the scheduler, and how long its steps take, which teaches the step-time model."""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.drift import OnlineStepTime
from slosched.core.fitting import evaluate, fit
from slosched.core.steplog import StepLogWriter
from slosched.integrations.vllm.state import Learned

MAX_LAG_S = 60.0
"""Longest believed time between arrival at the front end and here; more means the hosts' clocks differ."""

EVERY_FIRST = 256
"""Every step is looked at until so many have been."""

LOOK_SHARE, LOOK_REQUEST_S, SPARSEST = 0.001, 5e-7, 16
"""Later, looking takes at most this share of a decoding step, at so many seconds a request; but one step in
`SPARSEST` is always looked at. Slow engines thus look at every step: a model that follows a machine's speed
only within a minute makes plans for the speed of a minute ago."""

REMEMBERED = 256
"""Steps looked at that a fit uses."""

FIT_EVERY = 64
FIT_FIRST = (24, 40)
"""Steps looked at between fits, and the places of two early ones: a slow engine must not wait for long."""

KINDS_EACH = 8
"""Steps with prefill, and with decoding, without which nothing is fitted: the missing term would become 0."""

BETTER = 0.8
"""Share of the present model's error below which a fit is taken up."""


class WallClock:
    """Monotonic seconds, with arrivals carried over from the front end's wall clock.

    vLLM stamps ``Request.arrival_time`` with the front end's ``time.time()`` before tokenisation. The age
    it implies is believed within 0 and `MAX_LAG_S`.

    Examples
    --------
    >>> clock = WallClock()
    >>> clock.arrival_s(time.time() + 3600.0) <= clock.now_s()  # a front end whose clock is ahead
    True
    """

    virtual = False

    def now_s(self) -> float:
        """Seconds on this clock."""
        return time.monotonic()

    def arrival_s(self, arrival_time: float) -> float:
        """The instant on this clock at which a request stamped `arrival_time` arrived."""
        age = time.time() - arrival_time
        return time.monotonic() - min(max(age, 0.0), MAX_LAG_S)


class VirtualClock:
    """A clock that only its owner moves; arrivals are stamped on it directly."""

    virtual = True

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        """Seconds on this clock."""
        return self.time_s

    def arrival_s(self, arrival_time: float) -> float:
        """The stamp itself."""
        return arrival_time


Clock = WallClock | VirtualClock


class StepWatch:
    """Pairs the beginning and end of steps, first in, first out.

    With several steps in flight a step's time is what lies between the end of the one before and its own
    end. The work of a step is counted for the steps looked at only, since counting costs as much as planning.

    Attributes
    ----------
    model
        The step-time model as it has been learned.
    decode_s
        Expected seconds of a step that decodes at the present batch size.

    Parameters
    ----------
    learned
        Whose step-time model is taught.
    measure
        Whether steps are timed; not under a virtual clock.
    log
        File that gets a row for each step looked at, for ``slosched fit``.
    """

    def __init__(self, learned: Learned, *, measure: bool, log: Path | None = None) -> None:
        self._learned, self._measure = learned, measure
        self._log = StepLogWriter(log) if measure and log is not None else None
        self._begun: dict[int, tuple[float, tuple[float, float, float, float]]] = {}
        self._count, self._next = 0, 1
        self._last_end = 0.0
        self._looks = 0
        self._rows: deque[tuple[float, float, float, float, float]] = deque(maxlen=REMEMBERED)
        self.model = learned.step_time.model
        self.decode_s = self.model.base_s
        if measure:
            import scipy.optimize  # noqa: F401 -- now, rather than at the first fit while serving

    def begin(self, tokens: dict[str, int], scheduler: Any, now: float) -> None:
        """A step was scheduled."""
        if not self._measure:
            return
        self._count += 1
        if self._count >= self._next:
            self._begun[id(tokens)] = now, work(tokens, scheduler.requests)
            later = len(tokens) * LOOK_REQUEST_S / (LOOK_SHARE * self.decode_s)
            self._next += 1 if self._count < EVERY_FIRST else min(SPARSEST, max(1, math.ceil(later)))

    def end(self, tokens: dict[str, int], now: float) -> None:
        """A step's output has come."""
        begun = self._begun.pop(id(tokens), None)
        last, self._last_end = self._last_end, now
        if begun is None:
            return
        prefill, attention, sequences, kv = begun[1]
        seconds = now - max(begun[0], last)
        self._learned.step_time.observe(prefill, attention, sequences, kv, seconds)
        if seconds > 0.0:
            self._rows.append((prefill, attention, sequences, kv, seconds))
            if self._log is not None:
                self._log.add(prefill, attention, sequences, kv, seconds)
            self._looks += 1
            if self._looks in FIT_FIRST or self._looks % FIT_EVERY == 0:
                self._fit()
        model = self.model = self._learned.step_time.model
        if sequences > 0:
            self.decode_s = model.base_s + model.sequence_s * sequences + model.kv_token_s * kv

    def close(self) -> None:
        """Write what is left of the step log."""
        if self._log is not None:
            self._log.close()

    def _fit(self) -> None:
        """Fit all terms to the steps remembered, and take that up if it predicts them clearly better.

        The correction step by step changes a term in proportion to its share, so a term that a preset has
        far too small, such as prefill on a slow machine, would take thousands of steps to grow.
        """
        rows = np.array(self._rows)
        if min((rows[:, 0] > 1.0).sum(), (rows[:, 2] > 0.0).sum()) < KINDS_EACH:
            return
        fitted, _ = fit(*rows.T, knee=0)
        now = evaluate(self._learned.step_time.model, rows[:, :4], rows[:, 4])
        then = evaluate(fitted, rows[:, :4], rows[:, 4])
        if then.mape < BETTER * now.mape and fitted.base_s > 0.0:
            self._learned.step_time = OnlineStepTime(fitted)


def work(tokens: dict[str, int], requests: dict[str, Any]) -> tuple[float, float, float, float]:
    """Prefill tokens, attention work, decoding requests and context read of a step just scheduled.

    The definitions are those of `slosched.core.steptime.StepTimeModel`.
    """
    prefill = attention = sequences = kv = 0.0
    for request_id, n in tokens.items():
        request = requests.get(request_id)
        if request is None:
            continue
        before = request.num_computed_tokens - n
        if n == 1 and before >= request.num_prompt_tokens and before + 1 >= request.num_tokens:
            sequences += 1.0
            kv += before
        else:
            prefill += n
            attention += n * (before + n / 2.0)
    return prefill, attention, sequences, kv
