"""A thread that plans on a copy of the engine's latest state."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from slosched.core.arrays import Ints
from slosched.core.snapshot import Snapshot
from slosched.core.table import RequestTable
from slosched.integrations.vllm.decision import Decision, Offers
from slosched.planner.thread import Background

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


class PlansAhead:
    """Plans made by a thread, one at a time.

    The thread first copies the table, so that the engine may go on changing it and compiled policies read
    nothing that moves. A policy's own columns live in the copy from then on.

    Attributes
    ----------
    idle
        Whether the last plan is done.
    latest
        The last plan made, None after an error.
    since_s
        When the last plan was asked for, by `time.perf_counter`.
    error, seconds, own_s
        What the last plan raised, how long it took, and the processor time of that; 0 before the first.
    """

    def __init__(self, decide: Callable[[Snapshot], Decision]) -> None:
        self._decide = decide
        self._table: RequestTable | None = None
        self.idle, self.since_s = True, 0.0
        self.latest: Decision | None = None
        self.error: Exception | None = None
        self.seconds = self.own_s = 0.0
        self._background: Background[tuple[Snapshot, RequestTable, Refresh | None, Ints]] = Background(
            self._make, name="slosched-plan", niceness=0
        )

    def submit(self, snapshot: Snapshot, refresh: Refresh | None = None) -> None:
        """Begin a plan; only while idle. `refresh` brings the copied table up to date before that."""
        self.idle, self.since_s = False, time.perf_counter()
        # Its columns of now: one that grows gets others, one by one, while these are copied.
        table = copy.copy(snapshot.table)
        self._background.submit((snapshot, table, refresh, table.serial.copy()))

    def wait(self, timeout_s: float) -> bool:
        """Wait until the last plan is done; False if it is not by then."""
        self._background.wait(timeout_s)
        return self.idle

    def close(self) -> None:
        """End the thread after what it is doing."""
        self._background.close(timeout_s=0.0)

    def _make(self, asked: tuple[Snapshot, RequestTable, Refresh | None, Ints]) -> None:
        snapshot, table, refresh, serial = asked
        begin, own = time.perf_counter(), time.thread_time()
        try:
            with brisk():
                if self._table is None:
                    self._table = RequestTable(table.capacity)
                self._table.copy_from(table)
                if refresh is not None:
                    refresh(self._table)
                made = self._decide(replace(snapshot, table=self._table))
            newest = int(serial.max())
            offers = Offers.of(made.order, serial)
            self.latest = replace(made, serial=serial, newest=newest, offers=offers)
            self.error = None
        except Exception as error:
            self.latest, self.error = None, error
        self.own_s = time.thread_time() - own
        self.seconds = max(time.perf_counter() - begin, 1e-9)
        self.idle = True
