"""A predictor too slow to be waited for, on a thread of its own."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator

from slosched.core.arrays import Floats
from slosched.core.errors import require
from slosched.planner.thread import Background
from slosched.predictors.base import Predictor, Prompt

BATCH = 8
"""Prompts forecast in one go: more are hardly cheaper each, and the first of them would wait for the last."""

MOST_WAITING = 512
"""Prompts that wait at most; beyond it the oldest is dropped, which is the likeliest to have been served."""

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
        self._change = threading.Lock()
        self._background = Background(self._forecast, name="slosched-forecast")

    def ask(self, request_id: str, prompt: Prompt) -> None:
        """Ask for a forecast; returns at once."""
        with self._change:
            self._waiting[request_id] = prompt
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popitem(last=False)
        self._background.submit(request_id)

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
        self._background.close(timeout_s=0.0)

    def _forecast(self, _: str) -> None:
        """Forecast all who wait, some at a time."""
        while not self._background.closed:
            with self._change:
                count = min(self._batch, len(self._waiting))
                taken = [self._waiting.popitem(last=False) for _ in range(count)]
            if not taken:
                return
            try:
                rows = self._predictor.forecast([prompt for _, prompt in taken])
                self._said.extend((name, row) for (name, _), row in zip(taken, rows, strict=True))
            except Exception as error:
                self._said.extend((name, error) for name, _ in taken)
