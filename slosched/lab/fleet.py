"""Scenarios of a fleet: several engines behind a router."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from slosched.core.engine import Engine
from slosched.core.errors import require
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.lab.bound import attainment_bound, possible_alone
from slosched.lab.configfile import parse_config
from slosched.lab.population import LAST_SEED, draw
from slosched.lab.scenarios import Realised, Scenario
from slosched.policies.base import Policy
from slosched.simulator.fleet import Change, FleetRun, simulate_fleet

SIZES = (2, 4, 8, 16)
"""Engines of a drawn fleet."""

KINDS = ("equal", "one slow", "one fails", "old statistics")
KIND_SHARES = (0.55, 0.15, 0.15, 0.15)
"""What a drawn fleet is like, and how often."""

SLOW = 2.0
"""Factor of every step time of a slow engine."""

FRESH_S, OLD_S = 0.1, 1.0
"""Seconds from one statement of an engine to the next: vLLM's own for data parallel, and a slow scraper's."""

LOADS = (1.0, 1.8)
"""Offered work of a drawn fleet over what its engines sustain, log-uniform."""

REQUESTS = 300
"""Requests per engine of a drawn fleet."""


class FleetScenario(Scenario):
    """A scenario whose traffic several engines serve behind a router.

    Parameters
    ----------
    engines
        How many engines, at least 1. The other keys describe one of them and the traffic of the whole fleet;
        `load` is over what the fleet can sustain, where a slow engine counts as what it can, and one that
        fails counts in full.
    kind
        "equal"; "one slow": the first takes `SLOW` times as long for every step; "one fails": the first
        fails half way; "old statistics": the router sees them every `OLD_S` seconds.
    """

    engines: int = Field(ge=1, le=1000)
    kind: str = "equal"

    @model_validator(mode="after")
    def _known(self) -> Self:
        require(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}", self.kind)
        return self

    @classmethod
    def of(
        cls, one: Scenario, engines: int, *, load: float, kind: str = "equal", requests: int = REQUESTS
    ) -> Self:
        """The traffic of a one-engine scenario for a fleet: so much load, so many requests per engine."""
        fields = one.model_dump() | {"load": load, "requests": requests * engines, "burst": False}
        return cls(**fields, engines=engines, kind=kind)

    @property
    def fleet(self) -> list[Engine]:
        """The engines."""
        fleet = [self.engine] * self.engines
        if self.kind == "one slow":
            fleet[0] = slower(self.engine, SLOW)
        return fleet

    def traffic(self) -> Realised:
        """The requests of the whole fleet together with the window in which they come."""
        worth = self.engines - (1 - 1 / SLOW) if self.kind == "one slow" else self.engines
        own = {name: getattr(self, name) for name in Scenario.model_fields}
        return Scenario(**own | {"load": self.load * worth}).traffic()

    def run(
        self,
        workload: Workload,
        router: str,
        policy: str | Callable[[], Policy],
        *,
        knobs: Callable[[Engine], Engine] | None = None,
        measure: bool = False,
    ) -> FleetRun:
        """Simulate a router and a policy on this fleet.

        Parameters
        ----------
        workload
            The scenario's.
        router, policy, measure
            As in `slosched.simulator.simulate_fleet`.
        knobs
            What an operator has changed about every engine.
        """
        half_s = float(workload.arrival_s[-1]) / 2
        changes = [Change(at_s=half_s, engine=0, kind="fail")] if self.kind == "one fails" else []
        fleet = self.fleet if knobs is None else [knobs(engine) for engine in self.fleet]
        return simulate_fleet(
            workload, fleet, router, policy, seed=self.seed, changes=changes, measure=measure,
            statistics_s=OLD_S if self.kind == "old statistics" else FRESH_S,
        )  # fmt: skip

    def bound(self, workload: Workload) -> float:
        """Attainment by weight that no router and no policy can beat, all of the future known.

        Requests that could not keep their limits on an idle engine are lost; for the others the fleet is
        taken as one engine (`united`). A slow or failing engine counts as whole.
        """
        total = float(workload.weight.sum())
        if total <= 0:
            return 1.0
        part = workload.rows(possible_alone(workload, self.engine))
        share = float(part.weight.sum()) / total
        return share * attainment_bound(part, united(self.engine, self.engines))


def load_scenario(path: str | Path) -> Scenario:
    """Read a scenario from a file: of a fleet where it has the key ``engines``, else of one engine."""
    try:
        fleet = "engines" in parse_config(Path(path))
    except OSError:
        fleet = False  # said below
    return (FleetScenario if fleet else Scenario).load_file(path)


def slower(engine: Engine, factor: float) -> Engine:
    """The same engine whose steps take `factor` times as long."""
    s = engine.step_time
    fields = ("base_s", "prefill_token_s", "attention_work_s", "sequence_s", "kv_token_s", "knee_token_s")
    slow = replace(s, **{name: factor * getattr(s, name) for name in fields})
    return replace(engine, name=f"{engine.name} {factor:g}x slower", step_time=slow)


def united(engine: Engine, count: int) -> Engine:
    """One engine that can do whatever `count` of this kind can do apart, and more.

    In a time T, engine i does n_i steps: n_i·base + work_i <= T. As many steps as the busiest does, each with
    base / count and the work of all divided by `count`, take at most T, since the mean of n_i is at least the
    largest over `count`.
    """
    s, limits = engine.step_time, engine.limits
    return replace(
        engine,
        name=f"{count} united {engine.name}",
        step_time=StepTimeModel(
            base_s=s.base_s / count,
            prefill_token_s=s.prefill_token_s / count,
            attention_work_s=s.attention_work_s / count,
            sequence_s=s.sequence_s / count,
            kv_token_s=s.kv_token_s / count,
            knee_tokens=s.knee_tokens * count,
            knee_token_s=s.knee_token_s / count,
        ),
        limits=replace(
            limits,
            max_num_seqs=limits.max_num_seqs * count,
            max_num_batched_tokens=limits.max_num_batched_tokens * count,
            kv_blocks=limits.kv_blocks * count,
        ),
    )


def draw_fleet(seed: int, sizes: Sequence[int] = SIZES) -> FleetScenario:
    """A random fleet: the traffic of `slosched.lab.population.draw`, 2 to 16 engines, load 1.0 to 1.8.

    Parameters
    ----------
    seed
        From 0 to 19,999; below 10,000 for tuning, the others for reporting.
    sizes
        How many engines it may have, each as likely.

    Examples
    --------
    >>> draw_fleet(3).engines in SIZES
    True
    >>> draw_fleet(3, [5]).engines
    5
    """
    require(0 <= seed <= LAST_SEED, "seed", f"an integer from 0 to {LAST_SEED}", seed)
    require(len(sizes) > 0 and min(sizes) >= 1, "engines", "integers of at least 1", list(sizes))
    rng = np.random.default_rng((seed, 2025))
    engines = int(rng.choice(sizes))
    load = float(np.exp(rng.uniform(*np.log(LOADS))))
    kind = str(rng.choice(KINDS, p=KIND_SHARES))
    return FleetScenario.of(draw(seed), engines, load=round(load, 3), kind=kind)
