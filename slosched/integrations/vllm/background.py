"""A thread that plans on a copy of the engine's latest state."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from slosched.core.snapshot import Snapshot
from slosched.core.table import RequestTable
from slosched.integrations.vllm.decision import Decision

SWITCH_S = 2e-4
"""How long this thread may hold the interpreter that the engine's wants; Python's default is 5 ms."""

Refresh = Callable[[RequestTable], None]
"""Copies the state of the running requests into a table."""


_brisk = [0, 0.0]
_brisk_lock = threading.Lock()


@contextmanager
def brisk() -> Iterator[None]:
    """Let the interpreter change threads every `SWITCH_S` seconds, for as long as any thread is in here."""
    with _brisk_lock:
        if _brisk[0] == 0:
            _brisk[1] = sys.getswitchinterval()
            sys.setswitchinterval(min(SWITCH_S, _brisk[1]))
        _brisk[0] += 1
    try:
        yield
    finally:
        with _brisk_lock:
            _brisk[0] -= 1
            if _brisk[0] == 0:
                sys.setswitchinterval(_brisk[1])


class Background:
    """One thread, one plan at a time.

    The thread first copies the table, so that the engine may go on changing it and compiled policies read
    nothing that moves. A policy's own columns live in the copy from then on.

    Attributes
    ----------
    idle
        Whether the last plan is done.
    latest
        The last plan made, None after an error.
    error, seconds, own_s
        What the last plan raised, how long it took, and the processor time of that; 0 before the first.
    """

    def __init__(self, decide: Callable[[Snapshot], Decision]) -> None:
        self._decide = decide
        self._go = threading.Lock()  # held while there is nothing to do: cheaper to signal than an event
        self._go.acquire()
        self._snapshot: Snapshot | None = None
        self._refresh: Refresh | None = None
        self._table: RequestTable | None = None
        self._closed = False
        self.idle = True
        self.latest: Decision | None = None
        self.error: Exception | None = None
        self.seconds = self.own_s = 0.0
        self._thread = threading.Thread(target=self._run, name="slosched-plan", daemon=True)
        self._thread.start()

    def submit(self, snapshot: Snapshot, refresh: Refresh | None = None) -> None:
        """Begin a plan; only while idle. `refresh` brings the copied table up to date before that."""
        self._serial = snapshot.table.serial.copy()
        self._snapshot, self._refresh = snapshot, refresh
        self.idle = False
        self._go.release()

    def close(self) -> None:
        """End the thread after what it is doing."""
        self._closed = True
        if self._go.locked():
            self._go.release()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            if self._closed or self._snapshot is None:
                return
            begin, own = time.perf_counter(), time.thread_time()
            try:
                snapshot = self._snapshot
                with brisk():
                    if self._table is None:
                        self._table = RequestTable(snapshot.table.capacity)
                    self._table.copy_from(snapshot.table)
                    if self._refresh is not None:
                        self._refresh(self._table)
                    made = self._decide(replace(snapshot, table=self._table))
                newest = int(self._serial.max())
                self.latest = replace(made, serial=self._serial, newest=newest, step=snapshot.step)
                self.error = None
            except Exception as error:
                self.error, self.latest = error, None
            self.own_s = time.thread_time() - own
            self.seconds = max(time.perf_counter() - begin, 1e-9)
            self.idle = True
