"""A bench: where requests come from and the engine that serves them; and its runs, as cells of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from slosched.core.engine import DEFAULT_ENGINE, Engine
from slosched.core.metrics import Metrics
from slosched.core.outcome import Run
from slosched.core.workload import Workload
from slosched.lab.cells import policy_code, provenance
from slosched.lab.digests import code_digest, data_digest, policy_digest
from slosched.lab.offered_load import offered_load
from slosched.lab.store import Plain, Record
from slosched.routers import router
from slosched.simulator import simulate, simulate_fleet

WALL = ("plan_p50_us", "plan_p99_us", "wall_s")
"""Figures in wall time: they differ from run to run, and stand with the provenance of a result."""


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
        workload = self.source(rate_rps, seed)  # type: ignore[arg-type]  # None: only a trace as it is
        return simulate(workload, policy, engine=self.engine, seed=seed, measure_plans=True)

    def sustained_rps(self, work: Workload) -> float:
        """Requests per second like these that can be sustained: load 1."""
        return _sustained_rps(work, self.engine)

    def key(self) -> Plain:
        """All that a run depends on besides its requests, its policy and its seed: plain values."""
        return {
            "engine": _named(self.engine),
            "code": code_digest("slosched.simulator.engine", "slosched.core.metrics"),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBench(Bench):
    """Engines behind a router; `engine` is the first.

    Parameters
    ----------
    engines
        How many, at least 1.
    router
        Name of the router.
    others
        Further kinds of engine: the kinds take turns. Without any all are equal.
    """

    engines: int = 1
    router: str = "slosched"
    others: tuple[Engine, ...] = ()

    @property
    def fleet(self) -> list[Engine]:
        """All engines."""
        kinds = (self.engine, *self.others)
        return [kinds[i % len(kinds)] for i in range(self.engines)]

    def sustained_rps(self, work: Workload) -> float:
        """Requests per second like these that all engines together can sustain: load 1."""
        return sum(_sustained_rps(work, engine) for engine in self.fleet)

    def run(self, policy: str, rate_rps: float | None, seed: int) -> Run:
        """Simulate one policy on every engine at one rate of the whole traffic."""
        workload = self.source(rate_rps, seed)  # type: ignore[arg-type]  # None: only a trace as it is
        return simulate_fleet(workload, self.fleet, self.router, policy, seed=seed, measure=True)

    def key(self) -> Plain:
        """The same, with the fleet."""
        mixed = {"others": [_named(engine) for engine in self.others]} if self.others else {}
        return (
            Bench.key(self)
            | mixed
            | {
                "code": code_digest("slosched.simulator.fleet", "slosched.core.metrics"),
                "engines": self.engines,
                "router": self.router,
                "router_code": policy_digest(router(self.router)),
            }
        )


def _named(engine: Engine) -> str:
    return f"{engine.name} {data_digest((engine.limits, engine.step_time))}"


def _sustained_rps(work: Workload, engine: Engine) -> float:
    # As many seconds as requests: one a second.
    return 1.0 / offered_load(work, engine, duration_s=float(len(work)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRun:
    """One policy at one rate and seed on a bench; see `slosched.lab.cells.Runnable`.

    Parameters
    ----------
    bench, policy, rate_rps, seed
        What to run.
    data
        Name, source and digest of the requests.
    whole
        Whether the whole run is wanted beside its figures.
    """

    bench: Bench
    policy: str
    rate_rps: float
    seed: int
    data: tuple[str, str, str]
    whole: bool = False

    def key(self) -> Plain:
        """All that the result depends on."""
        name, source, digest = self.data
        return self.bench.key() | {
            "contender": self.policy,
            "policy_code": policy_code(self.policy),
            "rate_rps": self.rate_rps,
            "seed": self.seed,
            "workload": name,
            "data": f"{source} ({digest})",
        }

    def record(self) -> Record:
        """Run it, and keep its figures."""
        run = self.bench.run(self.policy, self.rate_rps, self.seed)
        plain = Metrics.of(run).to_dict()
        wall = {name: plain.pop(name) for name in WALL}
        about = dict(provenance()) | wall
        return Record(key=self.key(), result=plain, provenance=about, run=run if self.whole else None)


def runs_of(bench: Bench, policies: Sequence[str], rates_rps: Sequence[float], seed: int) -> list[BenchRun]:
    """Cells of a seed, rate by rate; the requests of each rate are made once, to know them."""
    found = []
    for rate in rates_rps:
        work = bench.source(rate, seed)
        data = (work.name, work.source, data_digest(work))
        found += [BenchRun(bench=bench, policy=p, rate_rps=rate, seed=seed, data=data) for p in policies]
    return found


def metrics_of(record: Record) -> Metrics:
    """The figures of a record of a `BenchRun`."""
    return Metrics.from_dict(record.result | {name: record.provenance[name] for name in WALL})
