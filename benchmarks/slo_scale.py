"""How tight should limits be? Every limit of a mix times a factor, at one load, under a few policies.

python benchmarks/slo_scale.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common import RESULTS, data_folder, environment, write_json

from slosched.core.metrics import Metrics
from slosched.core.presets import preset
from slosched.lab.parallel import Workers, cores
from slosched.policies import policy
from slosched.simulator import simulate
from slosched.workloads.mixes import mix

ENGINE = preset("h100-llama-3.1-8b")
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
POLICIES = ("fcfs", "edf+d", "qoserve", "slosched")
RATES_RPS = {"azure": 16.0, "sharegpt-batch": 30.0}
"""Well above what first come, first served can take under the limits as they are."""

Cell = tuple[str, float, str, int, int]


def measure(_: None, cell: Cell) -> float:
    """Attainment by weight of one run."""
    name, factor, chosen, seed, requests = cell
    work = mix(
        name, rate_per_s=RATES_RPS[name], requests=requests, seed=seed, data_dir=data_folder(),
        model=ENGINE.step_time, limits=ENGINE.limits, forecast="predictor-5",
    )  # fmt: skip
    scaled = replace(
        work, ttft_s=work.ttft_s * factor, tpot_s=work.tpot_s * factor, e2e_s=work.e2e_s * factor
    )
    run = simulate(scaled, policy(chosen, seed=seed), engine=ENGINE, seed=seed)
    return Metrics.of(run).weighted.value


def rows_of(cells: Sequence[Cell], values: Sequence[float]) -> list[dict[str, Any]]:
    """Mean and range over seeds."""
    found: dict[tuple[str, float, str], list[float]] = {}
    for (name, factor, chosen, _, _), value in zip(cells, values, strict=True):
        found.setdefault((name, factor, chosen), []).append(value)
    return [
        {"mix": m, "factor": f, "policy": p, "attainment": round(statistics.fmean(v), 4),
         "low": round(min(v), 4), "high": round(max(v), 4)}
        for (m, f, p), v in found.items()
    ]  # fmt: skip


def main() -> None:
    """Run all and write the means over seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=cores())
    options = parser.parse_args()
    cells: list[Cell] = [
        (name, factor, chosen, seed, options.requests)
        for name in RATES_RPS
        for factor in FACTORS
        for chosen in POLICIES
        for seed in range(options.seeds)
    ]
    with Workers(None, options.jobs) as workers:
        values = workers.map(measure, cells)
    rows = rows_of(cells, values)
    payload = {"environment": environment(), "seeds": options.seeds, "requests": options.requests}
    write_json(RESULTS / "slo_scale.json", payload | {"rates_rps": RATES_RPS, "rows": rows})
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
