"""Policies by loads by seeds, in parallel processes; and the capacity of a policy.

Both are cells of the one study engine (`slosched.lab.cells.run_cells`), so results can be kept and resumed.

A load is a multiple of what the engine can sustain with full batches, whatever the policy
(`slosched.lab.offered_load`). Rates in requests per second may be given instead.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from slosched.core.errors import require
from slosched.core.metrics import Spread
from slosched.lab.bench import Bench, BenchRun, metrics_of, runs_of
from slosched.lab.cells import provenance_of, run_cells
from slosched.lab.comparison import Comparison, Point
from slosched.lab.lockstep import Rounds, in_lockstep
from slosched.lab.parallel import Progress, Workers
from slosched.lab.store import Record, Store

TARGET = 0.9
"""Attainment that defines capacity."""

TOLERANCE = 0.02
"""Relative width at which the bisection for a capacity stops."""

LOWEST_RPS, HIGHEST_RPS = 2.0**-10, 2.0**12


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
        Multiples of what the bench sustains, see `slosched.lab.offered_load`; or give `rates_rps`.
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

    def run(
        self, store: Store | None = None, *, progress: Progress | None = None, about: Sequence[str] = ()
    ) -> Comparison:
        """All runs; the same study gives the same comparison, whatever `jobs` is (wall times excepted).

        Parameters
        ----------
        store
            Results so far; gets the new ones. By default they are kept in memory only.
        progress
            Called after each run.
        about
            Sentences for the report.

        Raises
        ------
        StudyInterrupted
            At Ctrl-C once every run of the first seed is done; it holds the seeds that are complete.
        """
        kept = Store() if store is None else store
        unit = self._unit_rps() if self.loads else math.nan
        rates = self.rates_rps or tuple(load * unit for load in self.loads)
        cells = [
            replace(cell, whole=cell.rate_rps == max(rates) and cell.seed == self.seeds[0])
            for seed in self.seeds
            for cell in runs_of(self.bench, self.policies, rates, seed)
        ]
        try:
            records = run_cells(cells, kept, jobs=self.jobs, progress=progress)
        except KeyboardInterrupt:
            missing = {cell.seed for cell in cells if cell.key() not in kept}
            done = [cell for cell in cells if cell.seed not in missing]
            if not done:
                raise
            some = _comparison(done, [kept[cell.key()] for cell in done], unit, about)
            raise StudyInterrupted(some, len(self.seeds)) from None
        return _comparison(cells, records, unit, about)

    def _unit_rps(self) -> float:
        """Requests per second of load 1, the mean over the seeds."""
        works = [self.bench.source(1.0, seed) for seed in self.seeds]
        return sum(self.bench.sustained_rps(work) for work in works) / len(works)


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C during a study; `comparison` holds the seeds that are complete, of `seeds` in all."""

    def __init__(self, comparison: Comparison, seeds: int) -> None:
        super().__init__("interrupted")
        self.comparison, self.seeds = comparison, seeds


def _comparison(
    cells: Sequence[BenchRun], records: Sequence[Record], unit_rps: float, about: Sequence[str]
) -> Comparison:
    """Runs as a comparison."""
    name, source, _ = cells[0].data
    return Comparison(
        points=tuple(
            Point(
                policy=cell.policy,
                load=cell.rate_rps / unit_rps,
                rate_rps=cell.rate_rps,
                seed=cell.seed,
                metrics=metrics_of(record),
            )
            for cell, record in zip(cells, records, strict=True)
        ),
        workload=name,
        source=source,
        about=tuple(about),
        sustained_rps=unit_rps,
        details=tuple(record.run for record in records if record.run is not None),
        detail_rate_rps=max(cell.rate_rps for cell in cells),
        provenance=provenance_of(records),
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
    store: Store | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
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
    store
        Results so far; gets the new ones. By default they are kept in memory only.
    jobs
        Processes.
    progress
        Called after each run with (done, asked for so far).
    """
    require(0 < target <= 1, "target", "above 0 and at most 1", target)
    require(len(seeds) > 0, "seeds", "one or more integers", tuple(seeds))
    kept = Store() if store is None else store
    rounds = Rounds(progress)
    with Workers(None, jobs) as pool:

        def meets(asked: list[tuple[int, float]]) -> list[bool]:
            """Whether the policy reaches the target at these (place of a seed, rate)."""
            cells = [cell for place, rate in asked for cell in runs_of(bench, [policy], [rate], seeds[place])]
            records = run_cells(cells, kept, pool=pool, progress=rounds)
            rounds.end()
            return [metrics_of(record).attainment.value >= target for record in records]

        rates = in_lockstep([_highest_rate() for _ in seeds], meets)
    spread = Spread.of(rates, bounds=(0.0, math.inf))
    return Capacity(policy=policy, target=target, rates_rps=tuple(rates), spread=spread)


def _highest_rate() -> Generator[float, bool, float]:
    """Asks whether rates will do, and returns the highest that does, 0 if none."""
    low = high = 1.0
    if (yield low):
        while (yield (high := 2 * low)):
            low = high
            require(low < HIGHEST_RPS, "SLOs", f"such that {HIGHEST_RPS:.0f} requests/s are too many", low)
    else:
        while not (yield (low := high / 2)):
            high = low
            if high <= LOWEST_RPS:
                return 0.0
    while high > low * (1 + TOLERANCE):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (yield middle) else (low, middle)
    return low
