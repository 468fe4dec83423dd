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

    def key(self) -> Plain:
        """All that a run depends on besides its requests, its policy and its seed: plain values."""
        return {
            "engine": f"{self.engine.name} {data_digest((self.engine.limits, self.engine.step_time))}",
            "code": code_digest("slosched.simulator.engine", "slosched.core.metrics"),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBench(Bench):
    """Equal engines behind a router; `engine` is one of them.

    Parameters
    ----------
    engines
        How many, at least 1.
    router
        Name of the router.
    """

    engines: int = 1
    router: str = "slosched"

    def run(self, policy: str, rate_rps: float | None, seed: int) -> Run:
        """Simulate one policy on every engine at one rate of the whole traffic."""
        workload = self.source(rate_rps, seed)  # type: ignore[arg-type]  # None: only a trace as it is
        return simulate_fleet(
            workload, [self.engine] * self.engines, self.router, policy, seed=seed, measure=True
        )

    def key(self) -> Plain:
        """The same, with the fleet."""
        return Bench.key(self) | {
            "code": code_digest("slosched.simulator.fleet", "slosched.core.metrics"),
            "engines": self.engines,
            "router": self.router,
            "router_code": policy_digest(router(self.router)),
        }


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
