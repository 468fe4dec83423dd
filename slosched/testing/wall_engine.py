"""vLLM's real scheduler in real time: only the model is missing, and a sleep stands for each of its steps.

What a virtual clock cannot show is seen here: plans that take time, threads beside the engine, a step-time
model that has to be learned. It needs little of a processor, so several may run side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from slosched.core.engine import Engine
from slosched.core.outcome import Run
from slosched.core.workload import Workload
from slosched.integrations.vllm.adapter import make_policy, rehearsal
from slosched.integrations.vllm.clock import WallClock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.state import Learned
from slosched.planner.warmup import PLANNER_KERNELS
from slosched.simulator.engine import refuse_oversize
from slosched.testing.virtual_clock import PS, VirtualEngine

Slowness = Callable[[float], float]
"""Factor on a step's length, by the seconds since the run began."""


def steady(now_s: float) -> float:
    """A machine of one's own."""
    return 1.0


class Shared:
    """A machine that others use, too: steps vary and sometimes stall, and for a while all of them are slower.

    Parameters
    ----------
    seed
        Seed of the noise.
    spread
        Standard deviation of the logarithm of a step's length.
    stall, stall_factor
        Share of the steps that last so many times longer.
    slow, every_s
        Every other `every_s` seconds, all steps are `slow` times longer.
    """

    def __init__(
        self, seed: int, *, spread: float = 0.2, stall: float = 0.02, stall_factor: float = 8.0,
        slow: float = 3.0, every_s: float = 10.0,
    ) -> None:  # fmt: skip
        self._rng = np.random.default_rng(seed)
        self._spread, self._stall, self._stall_factor = spread, stall, stall_factor
        self._slow, self._every_s = slow, every_s

    def __call__(self, now_s: float) -> float:
        """The factor now."""
        factor = float(self._rng.lognormal(0.0, self._spread))
        factor *= self._stall_factor if self._rng.random() < self._stall else 1.0
        return factor * (self._slow if int(now_s / self._every_s) % 2 else 1.0)


class SinceStart(WallClock):
    """Real time from 0 at the start; arrivals are stamped on it directly."""

    def __init__(self) -> None:
        self.begin_s = time.monotonic()

    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begin_s

    def arrival_s(self, arrival_time: float) -> float:
        """The stamp itself."""
        return arrival_time


class WallEngine(VirtualEngine):
    """A virtual engine whose clock is the real one; `serve_in_real_time` is the usual way in.

    Attributes
    ----------
    slowness
        How much longer the steps last than the step-time model says.
    """

    slowness: Slowness = staticmethod(steady)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock = SinceStart()

    def use_live_policy(self, config: Config) -> None:
        """Run the configured policy as a server does that has compiled its kernels."""
        self.use_policy(make_policy(config), config)
        controller = self.scheduler.slosched
        controller.planner.rehearse(rehearsal(controller.limits))
        PLANNER_KERNELS.load()

    def learned(self) -> Learned:
        """What a server knows of its engine at the start: a preset."""
        return Learned(Config().engine)

    def arrivals(self) -> None:
        """See what time it is, and queue everybody who has arrived."""
        self.now_ps = int(self.clock.now_s() / PS)
        super().arrivals()

    def schedule(self) -> Any:
        """As the engine's loop does; the step begins when it has been scheduled."""
        last = self.end_ps
        begin = max(self.now_ps, last)
        output = super().schedule()
        if output.num_scheduled_tokens:
            planned = self.end_ps - begin
            begin = max(int(self.clock.now_s() / PS), last)
            self.end_ps = self.flights[-1].end_ps = begin + int(planned * self.slowness(begin * PS))
        return output

    def move_to(self, ps: int) -> None:
        """Wait until then."""
        wait_s = ps * PS - self.clock.now_s()
        if wait_s > 0.0:
            time.sleep(wait_s)
        self.now_ps = int(self.clock.now_s() / PS)


def serve_in_real_time(
    workload: Workload,
    config: Config | None = None,
    *,
    engine: Engine,
    stock: str | None = None,
    slowness: Slowness = steady,
    depth: int = 1,
    asynchronous: bool = False,
) -> tuple[Run, Any]:
    """Serve a workload in real time through the scheduler of the installed vLLM.

    Parameters
    ----------
    workload
        Requests; each must fit the context and the KV cache.
    config
        slosched's settings, as a server would read them.
    engine
        The engine that is played; slosched is not told its step-time model.
    stock
        ``"fcfs"`` or ``"priority"``: vLLM alone, without slosched.
    slowness
        Factor on each step's length.
    depth, asynchronous
        As in `slosched.testing.virtual_clock.simulate_vllm`.

    Returns
    -------
    Run, Any
        What became of everybody, and the controller of slosched, None for stock.

    Raises
    ------
    MissingExtraError
        If vLLM is not installed.
    InputError
        If a request can never fit, or a token is wrong.
    """
    refuse_oversize(workload, engine.limits)
    clocked = WallEngine(workload, engine, depth=depth, asynchronous=asynchronous)
    clocked.slowness = slowness
    if stock is not None:
        clocked.use_stock(priority=stock == "priority")
    else:
        clocked.use_live_policy(config or Config())
    controller = getattr(clocked.scheduler, "slosched", None)
    clocked.clock.begin_s = time.monotonic()
    try:
        clocked.run()
    finally:
        if controller is not None:
            controller.close()
    return clocked.result(clocked.clock.now_s()), controller
