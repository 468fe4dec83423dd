"""Capacity planning with the policy in the loop: how many engines keep a traffic's SLOs."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from slosched.core.errors import require
from slosched.lab.bench import Bench, FleetBench, metrics_of, runs_of
from slosched.lab.cells import run_cells
from slosched.lab.lockstep import Rounds, in_lockstep
from slosched.lab.parallel import Progress, Workers
from slosched.lab.store import Store

TARGET = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one policy needs on one kind of engine.

    Parameters
    ----------
    engine, policy
        Engine and policy.
    instances
        Fewest engines that keep the target; None if `most` are not enough.
    gpus
        Instances times the GPUs of one.
    attainment
        By weight, mean over seeds, with that many (or with the most tried).
    """

    engine: str
    policy: str
    instances: int | None
    gpus: int | None
    attainment: float


def gpus_of(engine: str) -> int:
    """GPUs of one engine, from its name.

    Examples
    --------
    >>> gpus_of("h100x4-llama-3.1-70b"), gpus_of("h100-qwen2-7b")
    (4, 1)
    """
    found = re.match(r"[a-z0-9]*?x(\d+)-", engine)
    return int(found[1]) if found else 1


def instances_needed(
    benches: dict[str, Bench],
    policies: Sequence[str],
    *,
    rate_rps: float,
    seeds: Sequence[int],
    target: float = TARGET,
    most: int = 64,
    router: str = "slosched",
    store: Store | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Need]:
    """Fewest engines for each kind of engine and policy, by doubling and bisection.

    A router sends requests to the engines; each runs the policy on its own queue. More engines are taken to
    never do worse.

    Parameters
    ----------
    benches
        Engines with their traffic by name (limits that are multiples of the unloaded latency depend on it).
    policies
        Names.
    rate_rps
        Requests per second of the whole traffic.
    seeds
        At least one; attainment is the mean over them.
    target
        Attainment by weight to keep, above 0, at most 1.
    most
        Most engines to try, at least 1.
    router
        Name of the router.
    store
        Results so far; gets the new ones. By default they are kept in memory only.
    jobs, progress
        Processes; called after each run with (done, asked for so far).
    """
    require(0 < rate_rps < np.inf, "rate", "a finite number of requests per second above 0", rate_rps)
    require(0 < target <= 1, "target", "above 0 and at most 1", target)
    require(most >= 1, "most", "at least 1", most)
    require(len(seeds) > 0, "seeds", "one or more integers", tuple(seeds))
    pairs = [(name, policy) for name in benches for policy in policies]
    kept = Store() if store is None else store
    rounds = Rounds(progress)
    with Workers(None, jobs) as pool:

        def attained(asked: list[tuple[int, int]]) -> list[float]:
            """Attainment of these (place of a pair, engines), mean over the seeds."""
            cells = []
            for place, engines in asked:
                name, policy = pairs[place]
                bench = benches[name]
                fleet = FleetBench(source=bench.source, engine=bench.engine, engines=engines, router=router)
                cells += [cell for seed in seeds for cell in runs_of(fleet, [policy], [rate_rps], seed)]
            records = run_cells(cells, kept, pool=pool, progress=rounds)
            rounds.end()
            shares = [metrics_of(record).weighted.value for record in records]
            # Where nothing weighs anything, nothing is missed.
            values = np.nan_to_num(np.array(shares), nan=1.0).reshape(len(asked), len(seeds))
            return [float(value) for value in values.mean(axis=1)]

        searches = [_need(name, policy, target, most) for name, policy in pairs]
        return in_lockstep(searches, attained)


def _need(engine: str, policy: str, target: float, most: int) -> Generator[int, float, Need]:
    """Asks what numbers of engines attain, and returns the fewest that attain the target."""
    high = 1
    while (reached := (yield high)) < target and high < most:
        high = min(2 * high, most)
    if reached < target:
        return Need(engine=engine, policy=policy, instances=None, gpus=None, attainment=reached)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        share = yield middle
        if share >= target:
            high, reached = middle, share
        else:
            low = middle
    return Need(engine=engine, policy=policy, instances=high, gpus=high * gpus_of(engine), attainment=reached)
