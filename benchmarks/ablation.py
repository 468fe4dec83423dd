"""What each part of the policy slosched is worth: misses without it, over misses with it.

Overloaded mixes of `quality.py` at the rates measured there, same requests for all variants, other seeds than
there. A ratio above 1 says that the part pays.

    python benchmarks/ablation.py --seeds 6 --jobs 2        # about ten minutes on two free cores
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import quality
from common import RESULTS, data_folder, environment, write_json
from quality import ENGINE, FORECAST, Cell, limits_of, workload_of
from rich.progress import Progress

from slosched.core.engine import Engine
from slosched.core.table import Floats, Ints
from slosched.lab.parallel import Workers, cores
from slosched.planner import planner as planning
from slosched.planner.pacing import next_step
from slosched.planner.planner import PlannerParams
from slosched.policies.slosched import Slosched
from slosched.report.metrics import Metrics
from slosched.simulator import simulate

LOADS = (1.1, 1.5)
FIRST_SEED = 10
FULL = "slosched"


def _no_bound(*_: object) -> float:
    """A safe step time that never binds."""
    return float("inf")


def _nobody(
    jobs: Floats, running: int, order: Ints, engine: Floats, step_s: float, _hurry: bool
) -> tuple[float, Ints]:
    """What a step holds if no answer sits it out."""
    return next_step(jobs, running, order, engine, step_s, False)


@dataclass(frozen=True, slots=True)
class Variant:
    """The policy with a part changed: parameters, and what is replaced in `slosched.planner.planner`."""

    what: str
    params: PlannerParams = field(default_factory=PlannerParams)
    replaced: tuple[tuple[str, Any], ...] = ()


VARIANTS = {
    FULL: Variant("everything"),
    "no interruption": Variant("a prompt that has begun goes on first", PlannerParams(interrupt=False)),
    "no pacing": Variant("no prefill limit", PlannerParams(pace=False)),
    "no safe limit": Variant(
        "a prefill limit only where the model gains by it", replaced=(("safe_step_s", _no_bound),)
    ),
    "nobody sits out": Variant("every answer is in every step", replaced=(("next_step", _nobody),)),
    "safe limit only": Variant(
        "the largest safe limit, whatever is lost by it", replaced=(("PACING_GAIN", 1e9),)
    ),
    "no price of age": Variant("whoever waits longest has no say", PlannerParams(age_price=0.0)),
    "no search": Variant("simple orders and insertion only", PlannerParams(moves=0)),
    "four times the search": Variant(
        "64 moves a plan, all orders every 4 plans", PlannerParams(moves=64, replan_steps=4)
    ),
    "no simple orders": Variant("insertion and search only", PlannerParams(replan_steps=10**9)),
    "no future": Variant("prompts yet to come take no time", replaced=(("MOST_FUTURE", 0.0),)),
    "hard limits": Variant(
        "a limit is kept or not, no margins", PlannerParams(aim=(1e-6, 0.0, 1e-6, 1e-3, 0.1))
    ),
}
"""Variants by name."""


def measure(_: None, cell: Cell) -> float:
    """Share of the weight that misses its limits."""
    variant = VARIANTS[cell.name]
    policy = Slosched(variant.params, seed=cell.seed)
    with ExitStack() as changed:
        for name, value in variant.replaced:
            changed.enter_context(patch.object(planning, name, value))
        run = simulate(
            workload_of(cell), policy, engine=Engine(limits=limits_of(cell), step_time=ENGINE.step_time)
        )
    return 1.0 - Metrics.of(run).weighted.value


def capacities() -> dict[str, tuple[float, int]]:
    """Rate at load 1 and requests a run, by mix, as `quality.py` stored them."""
    known: dict[str, tuple[float, int]] = {}
    for file in ("quality.json", "quality_prefix_cache.json"):
        stored = json.loads((RESULTS / file).read_text())
        known.update({mix: (rate, stored["requests"]) for mix, rate in stored["fcfs_capacity_rps"].items()})
    return known


def table(cells: list[Cell], missed: list[float], rates: dict[str, tuple[float, int]]) -> dict[str, Any]:
    """Per variant: mean misses by mix, and their ratio to the full policy's with a 95 % interval."""
    by_name: dict[str, dict[tuple[str, float, int], float]] = {}
    for cell, miss in zip(cells, missed, strict=True):
        by_name.setdefault(cell.name, {})[cell.mix, cell.rate, cell.seed] = miss
    full = by_name[FULL]
    seeds = sorted({seed for _, _, seed in full})
    out: dict[str, Any] = {}
    for name, runs in by_name.items():
        mixes = {
            mix: round(statistics.fmean(m for (of, _, _), m in runs.items() if of == mix), 4) for mix in rates
        }
        sums = np.array(
            [[sum(m for key, m in of.items() if key[2] == seed) for seed in seeds] for of in (runs, full)]
        )
        drawn = np.random.default_rng(0).integers(len(seeds), size=(2000, len(seeds)))
        ratios = sums[0][drawn].sum(axis=1) / sums[1][drawn].sum(axis=1)
        out[name] = {
            "what": VARIANTS[name].what,
            "missed": mixes,
            "misses_over_full": round(float(sums[0].sum() / sums[1].sum()), 3),
            "interval": [round(float(q), 3) for q in np.quantile(ratios, (0.025, 0.975))],
        }
    return out


def main() -> None:
    """Run all variants and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--requests", type=int, help="requests a run, instead of those of `quality.py`")
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation.json")
    options = parser.parse_args()
    rates = capacities()
    cells = [
        Cell(mix, rate * load, seed, name, options.requests or requests)
        for mix, (rate, requests) in rates.items()
        for load in LOADS
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)
        for name in VARIANTS
    ]
    with Workers(None, options.jobs) as workers, Progress() as bar:
        show: Callable[[int, int], None] = partial(quality.advance, bar, bar.add_task("", total=len(cells)))
        missed = workers.map(measure, cells, show)
    variants = table(cells, missed, rates)
    payload = {
        "environment": environment(),
        "data": "public traces" if data_folder() else "generators",
        "engine": ENGINE.name,
        "forecast": FORECAST,
        "loads": LOADS,
        "seeds": options.seeds,
        "requests": options.requests or max(requests for _, requests in rates.values()),
        "variants": variants,
    }
    write_json(options.out, payload)
    for name, row in variants.items():
        print(f"{name:22s} {row['misses_over_full']:6.3f}  {row['interval']}  {row['missed']}")


if __name__ == "__main__":
    main()
