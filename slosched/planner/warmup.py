"""The planner's kernels: compiled in a thread, so that no request waits for a compiler."""

from __future__ import annotations

import threading

import numpy as np


class PlannerKernels:
    """The kernels behind the policy `slosched`: ready, or being made ready by a thread.

    Attributes
    ----------
    ready
        Whether a plan would find them compiled.
    """

    def __init__(self) -> None:
        self.ready = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """See to it in a thread that they become ready; returns at once."""
        if self._thread is None and not self.ready:
            self._thread = threading.Thread(target=self.load, name="slosched-warmup", daemon=True)
            self._thread.start()

    def load(self) -> None:
        """Compile them or load them from the cache; returns when they are ready."""
        with self._lock:
            if not self.ready:
                _plan_twice()
                self.ready = True


def _plan_twice() -> None:
    """One plan that compares all orders and one with a newcomer, beside an answer and a begun prompt."""
    from dataclasses import replace

    from slosched.core.forecast import LengthForecast
    from slosched.core.request import Request, Slo
    from slosched.core.snapshot import Snapshot
    from slosched.planner.planner import Planner

    forecast = LengthForecast.point(9)
    queue = [Request(request_id=str(i), prompt_tokens=20, forecast=forecast) for i in range(4)]
    paced = Slo(tpot_s=0.1)
    runs = [
        Request(request_id=f"r{n}", prompt_tokens=20, generated_tokens=n, forecast=forecast, slo=paced)
        for n in (0, 1)
    ]
    snapshot, planner = Snapshot.of(queue, runs), Planner()
    planner.plan(replace(snapshot, waiting=snapshot.waiting[:3]))
    planner.plan(replace(snapshot, waiting=np.arange(4)))


PLANNER_KERNELS = PlannerKernels()
"""The one set of kernels of this process."""
