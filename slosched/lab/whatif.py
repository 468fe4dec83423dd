"""Capacity planning with the policy in the loop: how many engines keep a traffic's SLOs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slosched.core.errors import require
from slosched.lab.parallel import Progress, Workers
from slosched.lab.study import Bench
from slosched.simulator import simulate_fleet

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
    jobs, progress
        Processes; called with (done, all) kinds of engine and policy.
    """
    require(0 < rate_rps < np.inf, "rate", "a finite number of requests per second above 0", rate_rps)
    require(0 < target <= 1, "target", "above 0 and at most 1", target)
    require(most >= 1, "most", "at least 1", most)
    require(len(seeds) > 0, "seeds", "one or more integers", tuple(seeds))
    cells = [(name, policy) for name in benches for policy in policies]
    with Workers((benches, rate_rps, tuple(seeds), target, most, router), jobs) as workers:
        return workers.map(_need, cells, progress)


_Shared = tuple[dict[str, Bench], float, tuple[int, ...], float, int, str]


def _need(shared: _Shared, cell: tuple[str, str]) -> Need:
    benches, rate_rps, seeds, target, most, router = shared
    name, policy = cell
    seen: dict[int, float] = {}

    def attained(instances: int) -> float:
        if instances not in seen:
            seen[instances] = float(
                np.mean([_attainment(benches[name], policy, rate_rps, s, instances, router) for s in seeds])
            )
        return seen[instances]

    high = 1
    while attained(high) < target and high < most:
        high = min(2 * high, most)
    if attained(high) < target:
        return Need(engine=name, policy=policy, instances=None, gpus=None, attainment=attained(high))
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if attained(middle) >= target else (middle, high)
    return Need(
        engine=name, policy=policy, instances=high, gpus=high * gpus_of(name), attainment=attained(high)
    )


def _attainment(bench: Bench, policy: str, rate_rps: float, seed: int, instances: int, router: str) -> float:
    work = bench.source(rate_rps, seed)
    run = simulate_fleet(work, [bench.engine] * instances, router, policy, seed=seed)
    total = float(work.weight.sum())
    return float(work.weight[run.outcomes.met].sum()) / total if total > 0 else 1.0
