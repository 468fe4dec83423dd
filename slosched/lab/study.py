"""Policies by loads by seeds, in parallel processes; and the capacity of a policy.

A load is a multiple of what the engine can sustain with full batches, whatever the policy
(`slosched.lab.offered_load`). Rates in requests per second may be given instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from slosched.core.engine import DEFAULT_ENGINE, Engine
from slosched.core.errors import require
from slosched.core.metrics import Metrics, Spread
from slosched.core.outcome import Run
from slosched.core.workload import Workload
from slosched.lab.comparison import Comparison, Point
from slosched.lab.offered_load import offered_load
from slosched.lab.parallel import Interrupted, Progress, Workers

TARGET = 0.9
"""Attainment that defines capacity."""

TOLERANCE = 0.02
"""Relative width at which the bisection for a capacity stops."""

_Cell = tuple[str, float, int, bool]
"""Policy, rate, seed, and whether the whole run is kept."""
_Found = tuple[Metrics, Run | None, tuple[str, str]]
"""Figures of a run, the run itself where it is kept, name and source of the workload."""

LOWEST_RPS, HIGHEST_RPS = 2.0**-10, 2.0**12


class Source(Protocol):
    """Makes the workload of a rate and a seed; must be picklable.

    Equal seeds should give the same requests at any rate, only closer together: then differences between
    rates come from the rate.
    """

    def __call__(self, rate_rps: float, seed: int) -> Workload:
        """The workload at `rate_rps` requests per second."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every run of a study shares: where requests come from, and the engine.

    Parameters
    ----------
    source
        Makes workloads.
    engine
        The engine.
    """

    source: Source
    engine: Engine = DEFAULT_ENGINE

    def run(self, policy: str, rate_rps: float | None, seed: int) -> Run:
        """Simulate one policy at one rate."""
        from slosched.simulator import simulate

        workload = self.source(rate_rps, seed)  # type: ignore[arg-type]  # None: only a trace as it is
        return simulate(workload, policy, engine=self.engine, seed=seed, measure_plans=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A grid of runs.

    Parameters
    ----------
    bench
        Workloads and engine.
    policies
        Names, at least one.
    seeds
        Seeds, at least one.
    loads
        Multiples of what the engine sustains, see `slosched.lab.offered_load`; or give `rates_rps`.
    rates_rps
        Requests per second.
    jobs
        Processes; see `slosched.lab.parallel.cores`.
    """

    bench: Bench
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    loads: tuple[float, ...] = ()
    rates_rps: tuple[float, ...] = ()
    jobs: int = 1

    def __post_init__(self) -> None:
        from slosched.policies import PolicySpec

        require(len(self.policies) > 0, "policies", "one or more names", self.policies)
        for name in self.policies:
            PolicySpec.parse(name)
        require(len(self.seeds) > 0, "seeds", "one or more integers", self.seeds)
        require(bool(self.loads) != bool(self.rates_rps), "loads", "given, or rates_rps instead", self.loads)
        for name in ("loads", "rates_rps"):
            for value in getattr(self, name):
                require(0 < value < math.inf, name, "finite numbers above 0", value)
        for name in ("policies", "seeds", "loads", "rates_rps"):
            values = getattr(self, name)
            require(len(dict.fromkeys(values)) == len(values), name, "distinct", values)
        require(self.jobs >= 1, "jobs", "an integer of at least 1", self.jobs)

    def run(self, *, progress: Progress | None = None, about: Sequence[str] = ()) -> Comparison:
        """All runs; the same study gives the same comparison, whatever `jobs` is (wall times excepted).

        Parameters
        ----------
        progress
            Called after each run.
        about
            Sentences for the report.

        Raises
        ------
        StudyInterrupted
            At Ctrl-C once every run of the first seed is done; it holds the seeds that are complete.
        """
        unit = self._unit_rps() if self.loads else math.nan
        rates = self.rates_rps or tuple(load * unit for load in self.loads)
        cells = [
            (policy, rate, seed, rate == max(rates) and seed == self.seeds[0])
            for seed in self.seeds
            for rate in rates
            for policy in self.policies
        ]
        with Workers(self.bench, self.jobs) as workers:
            try:
                results = workers.map(_run_cell, cells, progress)
            except Interrupted as stop:
                each = len(rates) * len(self.policies)
                whole = [
                    s
                    for s in range(len(self.seeds))
                    if all(s * each + i in stop.results for i in range(each))
                ]
                if not whole:
                    raise
                places = [s * each + i for s in whole for i in range(each)]
                some = [cells[i] for i in places], [stop.results[i] for i in places]
                raise StudyInterrupted(_comparison(*some, unit, about), len(self.seeds)) from None
        return _comparison(cells, results, unit, about)

    def _unit_rps(self) -> float:
        """Requests per second of load 1, the mean over the seeds."""
        works = [self.bench.source(1.0, seed) for seed in self.seeds]
        # As many seconds as requests: one a second.
        loads = [offered_load(work, self.bench.engine, duration_s=float(len(work))) for work in works]
        return sum(1.0 / load for load in loads) / len(loads)


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C during a study; `comparison` holds the seeds that are complete, of `seeds` in all."""

    def __init__(self, comparison: Comparison, seeds: int) -> None:
        super().__init__("interrupted")
        self.comparison, self.seeds = comparison, seeds


def _comparison(
    cells: Sequence[_Cell], results: Sequence[_Found], unit_rps: float, about: Sequence[str]
) -> Comparison:
    """Runs as a comparison."""
    name, source = results[0][2]
    return Comparison(
        points=tuple(
            Point(policy=policy, load=rate / unit_rps, rate_rps=rate, seed=seed, metrics=metrics)
            for (policy, rate, seed, _), (metrics, _, _) in zip(cells, results, strict=True)
        ),
        workload=name,
        source=source,
        about=tuple(about),
        sustained_rps=unit_rps,
        details=tuple(run for _, run, _ in results if run is not None),
        detail_rate_rps=max(rate for _, rate, _, _ in cells),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Highest rate at which a policy meets the target.

    Parameters
    ----------
    policy
        Its name.
    target
        Attainment to be kept.
    rates_rps
        Result of the bisection for each seed; 0 where no rate will do.
    spread
        Their mean and interval.
    """

    policy: str
    target: float
    rates_rps: tuple[float, ...]
    spread: Spread


def capacity(
    bench: Bench,
    policy: str,
    *,
    seeds: Sequence[int],
    target: float = TARGET,
    jobs: int = 1,
    progress: Progress | None = None,
    workers: Workers[Bench] | None = None,
) -> Capacity:
    """Highest rate at which at least `target` of the requests meet their SLOs, by bisection for each seed.

    The rate is doubled or halved from one request per second until the target lies between two rates, then
    bisected to a relative width of `TOLERANCE`. Attainment is taken to fall with the rate.

    Parameters
    ----------
    bench
        Workloads and engine.
    policy
        Name of the policy.
    seeds
        Seeds, at least one; the interval is over them.
    target
        Attainment to keep, above 0, at most 1.
    jobs
        Processes.
    progress
        Called after each seed.
    workers
        Processes that are running already, instead of `jobs`.
    """
    require(0 < target <= 1, "target", "above 0 and at most 1", target)
    require(len(seeds) > 0, "seeds", "one or more integers", tuple(seeds))
    cells = [(policy, target, seed) for seed in seeds]
    if workers is not None:
        rates = workers.map(_capacity_of_seed, cells, progress)
    else:
        with Workers(bench, jobs) as own:
            rates = own.map(_capacity_of_seed, cells, progress)
    spread = Spread.of(rates, bounds=(0.0, math.inf))
    return Capacity(policy=policy, target=target, rates_rps=tuple(rates), spread=spread)


def _run_cell(bench: Bench, cell: _Cell) -> _Found:
    policy, rate, seed, keep = cell
    run = bench.run(policy, rate, seed)
    work = run.outcomes.workload
    return Metrics.of(run), run if keep else None, (work.name, work.source)


def _capacity_of_seed(bench: Bench, cell: tuple[str, float, int]) -> float:
    policy, target, seed = cell

    def meets(rate: float) -> bool:
        return Metrics.of(bench.run(policy, rate, seed)).attainment.value >= target

    low = high = 1.0
    if meets(low):
        while meets(high := 2 * low):
            low = high
            require(low < HIGHEST_RPS, "SLOs", f"such that {HIGHEST_RPS:.0f} requests/s are too many", low)
    else:
        while not meets(low := high / 2):
            high = low
            if high <= LOWEST_RPS:
                return 0.0
    while high > low * (1 + TOLERANCE):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low
