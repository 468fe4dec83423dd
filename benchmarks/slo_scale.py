"""How tight should limits be? Every limit of a named cell times a factor, under a few policies.

    python benchmarks/slo_scale.py          # a minute or two of processor

Writes ``benchmarks/results/slo_scale.json``; `python benchmarks/readme.py` puts it into
docs/choosing-slos.md.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from common import RESULTS, environment, write_json

from slosched.lab.cells import Cell, Contender, run_cells
from slosched.lab.named_cells import named
from slosched.lab.parallel import cores
from slosched.lab.scenarios import Scenario, Traffic
from slosched.lab.store import Store

CELL = "chat-and-summaries"
"""Chat with TTFT and TPOT limits beside summaries with e2e limits, at load 1."""
FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
POLICIES = ("slosched", "paced-wspt", "edf+d@512", "fcfs")
FIRST_SEED = 10_000


def scaled(scenario: Scenario, factor: float) -> Scenario:
    """The same scenario with every limit times a factor."""

    def loosened(traffic: Traffic) -> Traffic:
        limits = {f"{kind}_x": getattr(traffic, f"{kind}_x") for kind in ("ttft", "tpot", "e2e")}
        new = {key: (x[0] * factor, x[1] * factor) for key, x in limits.items() if x is not None}
        return traffic.model_copy(update=new)

    return scenario.model_copy(update={"classes": tuple(loosened(traffic) for traffic in scenario.classes)})


def main() -> None:
    """Run all and write the means over seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--store", type=Path, default=Path("out/slo_scale/runs.jsonl"))
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    base = [named(CELL, seed).model_copy(update={"requests": options.requests}) for seed in seeds]
    places = [(factor, policy) for factor in FACTORS for policy in POLICIES]
    cells = [
        Cell(scenario=scaled(scenario, factor), contender=Contender.parse(policy))
        for factor, policy in places
        for scenario in base
    ]
    records = run_cells(cells, Store(options.store), jobs=options.jobs)
    values = [float(record.result["weighted"]) for record in records]
    rows: list[dict[str, Any]] = []
    for i, (factor, policy) in enumerate(places):
        some = values[i * len(base) : (i + 1) * len(base)]
        rows.append(
            {"factor": factor, "policy": policy, "attainment": round(statistics.fmean(some), 4),
             "low": round(min(some), 4), "high": round(max(some), 4)}
        )  # fmt: skip
        print(rows[-1])
    about = {"environment": environment(), "cell": CELL, "seeds": list(seeds), "requests": options.requests}
    write_json(RESULTS / "slo_scale.json", about | {"rows": rows})


if __name__ == "__main__":
    main()
