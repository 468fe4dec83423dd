"""Work in a thread between the steps of an engine: the latest task, one at a time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

NICENESS = 10
"""How far the thread stands back behind the engine's where both want one core (Linux only)."""

Task = TypeVar("Task")


class Background(Generic[Task]):
    """One thread that does the latest task it was given; older ones not begun are dropped.

    Handing over is a single assignment: the engine's thread never waits for this one.

    Parameters
    ----------
    work
        What to do with a task.

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

    def __init__(self, work: Callable[[Task], None]) -> None:
        self._work = work
        self._task: Task | None = None
        self.error: Exception | None = None
        self._go, self._idle, self._closed = threading.Event(), threading.Event(), False
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="slosched-planner", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Replace the task that waits."""
        self._idle.clear()
        self._task = task
        self._go.set()

    def wait(self, timeout_s: float = 10.0) -> None:
        """Wait until the latest task is done."""
        self._idle.wait(timeout_s)

    def close(self) -> None:
        """End the thread after the task at hand."""
        self._closed = True
        self._go.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        if sys.platform == "linux":  # where the priority of one thread can be set
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._closed:
            self._go.wait()
            self._go.clear()
            task, self._task = self._task, None
            if task is not None and not self._closed:
                try:
                    self._work(task)
                except Exception as error:  # the engine goes on with the rule that leads
                    self.error = error
            task = None  # its arrays are not kept until the next one comes
            if self._task is None:
                self._idle.set()
