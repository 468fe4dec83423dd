"""Work in a thread between the steps of an engine: the latest task, one at a time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

NICENESS = 10
"""How far the thread stands back behind the engine's where both want one core (Linux only)."""

Work = TypeVar("Work")


class Background(Generic[Work]):
    """One thread that does the latest task it was given; older ones not begun are dropped.

    Handing over takes a microsecond: the engine's thread never waits for this one.

    Parameters
    ----------
    work
        What to do with a task.
    name
        Name of the thread.
    niceness
        How far it stands back (Linux only), at least 0.

    Attributes
    ----------
    error
        What the last task raised, None if it ended well.
    closed
        Whether the thread is to end; long work may look at it.

    Examples
    --------
    >>> done = []
    >>> background = Background(done.append)
    >>> background.submit(7)
    >>> background.wait()
    >>> background.close()
    >>> done
    [7]
    """

    def __init__(
        self, work: Callable[[Work], None], *, name: str = "slosched-planner", niceness: int = NICENESS
    ) -> None:
        self._work, self._niceness = work, niceness
        self._task: Work | None = None
        self.error: Exception | None = None
        self.closed = False
        self._go = threading.Lock()  # held while there is nothing to do: cheaper to signal than an event
        self._go.acquire()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, task: Work) -> None:
        """Replace the task that waits."""
        self._idle.clear()
        self._task = task
        self._wake()

    def wait(self, timeout_s: float = 10.0) -> None:
        """Wait until the latest task is done."""
        self._idle.wait(timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """End the thread after the task at hand, and wait for that so long at most."""
        self.closed = True
        self._wake()
        self._thread.join(timeout=timeout_s)

    def _wake(self) -> None:
        with suppress(RuntimeError):  # it is awake already
            self._go.release()

    def _run(self) -> None:
        if self._niceness and sys.platform == "linux":  # where the priority of one thread can be set
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while True:
            self._go.acquire()
            if self.closed:
                return
            task, self._task = self._task, None
            if task is not None:
                try:
                    self._work(task)
                    self.error = None
                except Exception as error:  # the engine goes on without
                    self.error = error
            task = None  # its arrays are not kept until the next one comes
            if self._task is None:
                self._idle.set()
