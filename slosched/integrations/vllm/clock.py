"""What time it is for the scheduler."""

from __future__ import annotations

import time

MAX_LAG_S = 60.0
"""Longest believed time between arrival at the front end and here; more means the hosts' clocks differ."""


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
