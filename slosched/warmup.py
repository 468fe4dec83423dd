"""Compile all kernels into the on-disk cache, so that nothing compiles while requests wait."""

from __future__ import annotations

import time
from collections.abc import Callable


def warm_up(progress: Callable[[int, int], None] | None = None) -> float:
    """Compile every kernel, or load it from the cache of an earlier process; returns the seconds it took.

    Parameters
    ----------
    progress
        Called with (done, all) after each part.
    """
    from slosched.core.compiling import eased
    from slosched.planner.warmup import PLANNER_KERNELS
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
        with eased():
            part()
        if progress is not None:
            progress(done + 1, len(parts))
    return time.perf_counter() - begin
