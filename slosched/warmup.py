"""Compile all kernels into the on-disk cache, so that nothing compiles while requests wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np


def warm_up(progress: Callable[[int, int], None] | None = None) -> float:
    """Compile every kernel, or load it from the cache of an earlier process; returns the seconds it took.

    Parameters
    ----------
    progress
        Called with (done, all) after each part.
    """
    from slosched.policies import POLICIES
    from slosched.simulator import simulate
    from slosched.solvers.solve import warm
    from slosched.workloads import generate

    begin = time.perf_counter()
    parts: list[Callable[[], object]] = [PLANNER_KERNELS.load]
    crowd = generate("mixed", rate_per_s=60.0, duration_s=6.0)
    parts += [lambda name=name: simulate(crowd, name) for name in POLICIES]  # type: ignore[misc]
    parts.append(warm)
    for done, part in enumerate(parts):
        part()
        if progress is not None:
            progress(done + 1, len(parts))
    return time.perf_counter() - begin


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

    from slosched.forecast import LengthForecast
    from slosched.request import Request
    from slosched.slo import Slo
    from slosched.snapshot import Snapshot
    from slosched.solvers.planner import Planner

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
