"""Search in a thread between the steps of an engine, its results swapped in by version."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass

import numpy as np

from slosched.core.errors import require
from slosched.core.table import Floats, Ints
from slosched.planner import model as c

NICENESS = 10
"""How far the thread stands back behind the engine's where both want one core (Linux only)."""

CHUNK = 16
"""Moves between two looks at whether the task is still wanted; the kernel runs without the GIL."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """An order to improve; the arrays belong to the task and are not written to by anybody else.

    Parameters
    ----------
    version
        Number by which the result is asked for.
    jobs, running, order, engine
        As in `slosched.planner.model.search`, `order` being all that is evaluated.
    """

    version: int
    jobs: Floats
    running: int
    order: Ints
    engine: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Improved:
    """What became of a task so far: its version, a permutation of its order, the value and the moves made."""

    version: int
    order: Ints
    value: float
    moves: int


class BackgroundSearch:
    """One thread that improves the latest task it was given, until it is given another.

    Handing over and taking are single assignments: the engine's thread never waits for this one. A result is
    only given out under the version it was made for, so that an order can never be applied to a queue that
    has changed meanwhile.

    Parameters
    ----------
    window, aim
        As in `slosched.planner.model.search`.
    moves
        Most moves for one task, at least 1; then the thread sleeps.
    seed
        Seed of the search.

    Examples
    --------
    >>> from slosched import LengthForecast, Request, Snapshot
    >>> forecast = LengthForecast.point(9)
    >>> queue = [Request(request_id=name, prompt_tokens=100, forecast=forecast) for name in "abc"]
    >>> snapshot = Snapshot.of(queue)
    >>> search = BackgroundSearch(window=8, aim=np.array(c.DEFAULT_AIM), moves=64)
    >>> search.submit(Task(version=7, jobs=c.jobs_of(snapshot), running=0, order=np.arange(3),
    ...                    engine=c.engine_of(snapshot)))
    >>> search.wait()
    >>> sorted(search.take(7).order.tolist()), search.take(6)
    ([0, 1, 2], None)
    >>> search.close()
    """

    def __init__(self, *, window: int, aim: Floats, moves: int = 4096, seed: int = 0) -> None:
        require(moves >= 1, "moves", "an integer of at least 1", moves)
        self._window, self._aim, self._moves = window, aim, moves
        self._rng = np.array([2 * seed + 88_172_645_463_325_253], dtype=np.uint64)
        self._task: Task | None = None
        self._found: Improved | None = None
        self._go, self._idle, self._closed = threading.Event(), threading.Event(), False
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="slosched-search", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Replace the task."""
        self._idle.clear()
        self._task = task
        self._go.set()

    def take(self, version: int) -> Improved | None:
        """The newest result for a task of that version; None if there is none."""
        found = self._found
        return found if found is not None and found.version == version else None

    def wait(self, timeout_s: float = 10.0) -> None:
        """Wait until the latest task has had all its moves."""
        self._idle.wait(timeout_s)

    def close(self) -> None:
        """End the thread; it needs at most one chunk of moves."""
        self._closed = True
        self._go.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        if sys.platform == "linux":  # where the priority of one thread can be set
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._closed:
            self._go.wait()
            self._go.clear()
            task = self._task
            if task is not None:
                self._improve(task)
            if task is self._task:
                self._idle.set()

    def _improve(self, task: Task) -> None:
        order, scratch, made = task.order.copy(), c.scratch_for(task.jobs), 0
        while made < self._moves and task is self._task and not self._closed:
            value = c.search(
                task.jobs, task.running, order, len(order), self._window, task.engine, self._aim,
                np.inf, CHUNK, self._rng, scratch,
            )  # fmt: skip
            made += CHUNK
            self._found = Improved(version=task.version, order=order.copy(), value=value, moves=made)
