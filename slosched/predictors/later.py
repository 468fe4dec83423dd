"""A predictor too slow to be waited for, on a thread of its own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator

from slosched.core.errors import require
from slosched.core.table import Floats
from slosched.predictors.base import Predictor, Prompt

BATCH = 8
"""Prompts forecast in one go: more are hardly cheaper each, and the first of them would wait for the last."""

MOST_WAITING = 512
"""Prompts that wait at most; beyond it the oldest is dropped, which is the likeliest to have been served."""

NICENESS = 10
"""Added to the thread's own where the system has it: the engine's threads go first."""

Word = tuple[str, Floats | Exception]
"""Name of a request, and its atoms, shape (FORECAST_ATOMS,), or why there are none."""


class Later:
    """Forecasts asked for now and taken up when they are there.

    Parameters
    ----------
    predictor
        Asked on the thread only.
    batch
        Prompts in one go, at least 1.

    Examples
    --------
    >>> import time, numpy as np
    >>> class Slow:
    ...     def forecast(self, prompts):
    ...         return np.array([np.full(8, float(len(p.text))) for p in prompts])
    >>> later = Later(Slow())
    >>> later.ask("a", Prompt("Hello"))
    >>> while not (words := list(later.words())):
    ...     time.sleep(0.001)
    >>> words[0][0], float(words[0][1][0])
    ('a', 5.0)
    >>> later.close()
    """

    def __init__(self, predictor: Predictor, batch: int = BATCH) -> None:
        require(batch >= 1, "batch", "at least 1", batch)
        self._predictor, self._batch = predictor, batch
        self._waiting: OrderedDict[str, Prompt] = OrderedDict()
        self._said: deque[Word] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="slosched-forecast", daemon=True)
        self._thread.start()

    def ask(self, request_id: str, prompt: Prompt) -> None:
        """Ask for a forecast; returns at once."""
        with self._change:
            self._waiting[request_id] = prompt
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popitem(last=False)
            self._change.notify()

    def forget(self, request_id: str) -> None:
        """The forecast of this request is no longer needed."""
        with self._change:
            self._waiting.pop(request_id, None)

    def words(self) -> Iterator[Word]:
        """What has been said since the last call, oldest first."""
        while self._said:
            yield self._said.popleft()

    def close(self) -> None:
        """End the thread after what it is doing."""
        with self._change:
            self._closed = True
            self._change.notify()

    def _run(self) -> None:
        # Linux gives each thread its own niceness.
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            with self._change:
                while not self._waiting and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
                taken = [
                    self._waiting.popitem(last=False) for _ in range(min(self._batch, len(self._waiting)))
                ]
            try:
                rows = self._predictor.forecast([prompt for _, prompt in taken])
                self._said.extend((name, row) for (name, _), row in zip(taken, rows, strict=True))
            except Exception as error:
                self._said.extend((name, error) for name, _ in taken)
