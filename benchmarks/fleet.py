"""Routers over random fleets: attainment, regret, capacity, decision times, and the simulator's speed.

    python benchmarks/fleet.py quality --seeds 24        # random fleets of reporting seeds; resumes
    python benchmarks/fleet.py capacity                  # against random assignment with FCFS engines
    python benchmarks/fleet.py speed                     # decisions of 16 engines x 1,000; simulator

Every router gets the same requests on the same engines, each with the same policy. Fleets are drawn by
`slosched.lab.fleet.draw_fleet`: 2 to 16 engines, load 1.0 to 1.8, one slow, one failing, old statistics.
Seeds from 10,000 on are for reporting and were never tuned on.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json

from slosched.core.engine import DEFAULT_ENGINE
from slosched.core.metrics import Spread
from slosched.core.outcome import Run
from slosched.lab.cells import provenance
from slosched.lab.fleet import FleetBench, FleetScenario, draw_fleet
from slosched.lab.population import draw
from slosched.lab.study import capacity
from slosched.routers import router
from slosched.simulator import simulate, simulate_fleet
from slosched.testing.routers import random_fleet
from slosched.workloads.sources import Generated

OURS = "slosched"
RIVALS = (
    "random", "round-robin", "power-of-two", "least-requests", "least-tokens", "prefix-affinity", "lmetric",
    "polyserve", "llm-d-headroom:most=true", "dynamo", "huang",
)  # fmt: skip
FIRST_REPORTING_SEED = 10_000


def weighted(run: Run) -> float:
    """Attainment by weight in points."""
    weight = run.outcomes.workload.weight
    return 100.0 * float(weight[run.outcomes.met].sum() / max(1e-12, weight.sum()))


def quality(options: argparse.Namespace) -> None:
    """Every router on every fleet; what is there already is not run again."""
    path = RESULTS / options.out
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    same = known.get("policy") == options.policy
    same = same and known.get("provenance", {}).get("commit") == provenance()["commit"]
    cells: dict[str, Any] = known.get("cells", {}) if same else {}  # never beside results of other code
    for seed in range(options.first, options.first + options.seeds):
        drawn = draw_fleet(seed)
        if drawn.engines > options.most_engines:
            continue
        cell = cells.setdefault(
            str(seed),
            {
                "engines": drawn.engines, "kind": drawn.kind,
                "load": drawn.load, "attainment": {},
            },
        )  # fmt: skip
        missing = [name for name in options.routers if name not in cell["attainment"]]
        if not missing:
            continue
        work = drawn.workload()
        cell["requests"] = len(work)
        if options.bound and "bound" not in cell:
            cell["bound"] = round(100 * drawn.bound(work), 3)
        for name in missing:
            begin = time.perf_counter()
            run = drawn.run(work, name, options.policy)
            cell["attainment"][name] = round(weighted(run), 3)
            cell.setdefault("wall_s", {})[name] = round(time.perf_counter() - begin, 1)
        print(seed, {k: v for k, v in cell.items() if k != "wall_s"}, flush=True)
        write_json(
            path,
            {"policy": options.policy, "cells": cells, "summary": summary(cells),
             "provenance": provenance(), "environment": environment()},
        )  # fmt: skip
    print(json.dumps(summary(cells), indent=1))


def summary(cells: dict[str, Any]) -> dict[str, Any]:
    """Means with intervals over fleets, misses over those of the best single rival, regret per cell."""
    whole = [cell for cell in cells.values() if OURS in cell["attainment"]]
    names = [n for n in (*RIVALS, OURS) if whole and all(n in cell["attainment"] for cell in whole)]
    if OURS not in names or len(names) < 2:
        return {}
    table = {name: np.array([cell["attainment"][name] for cell in whole]) for name in names}
    rivals = [name for name in names if name != OURS]
    best = max(rivals, key=lambda name: float(table[name].mean()))
    misses = {name: 100.0 - table[name] for name in names}
    regret = np.max([table[name] for name in rivals], axis=0) - table[OURS]
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(whole), (2000, len(whole)))
    ratios = misses[OURS][draws].mean(axis=1) / np.maximum(1e-9, misses[best][draws].mean(axis=1))
    by_kind = {
        kind: {name: round(float(np.mean(table[name][rows])), 2) for name in names}
        for kind in sorted({cell["kind"] for cell in whole})
        if len(rows := [i for i, cell in enumerate(whole) if cell["kind"] == kind])
    }

    def spread(values: Any) -> list[float]:
        found = Spread.of(list(values), bounds=(-100.0, 100.0))
        return [round(found.mean, 3), round(found.low, 3), round(found.high, 3)]

    return {
        "fleets": len(whole),
        "attainment": {name: spread(table[name]) for name in names},
        "best_single_rival": best,
        "misses_over_best_single_rival": [
            round(float(misses[OURS].mean() / misses[best].mean()), 3),
            *(round(float(q), 3) for q in np.quantile(ratios, (0.025, 0.975))),
        ],
        "gain_over_best_single_rival": spread(table[OURS] - table[best]),
        "regret_to_best_of_cell": {"mean": spread(regret), "worst": round(float(regret.max()), 3)},
        "by_kind": by_kind,
        "mean_bound": round(float(np.mean([c["bound"] for c in whole])), 2)
        if all("bound" in c for c in whole)
        else None,
    }


def capacities(options: argparse.Namespace) -> None:
    """Highest rate at which 90 % meet their SLOs: what most run, and ours."""
    rows: dict[str, Any] = {}
    for kind in options.workloads:
        source = Generated(kind=kind, duration_s=options.duration, engine=DEFAULT_ENGINE)
        for name, policy in (("random", "fcfs"), ("power-of-two", "fcfs"), (OURS, "slosched")):
            bench = FleetBench(source=source, engine=DEFAULT_ENGINE, engines=options.engines, router=name)
            seeds = range(FIRST_REPORTING_SEED, FIRST_REPORTING_SEED + options.seeds)
            found = capacity(bench, policy, seeds=seeds)
            rows[f"{kind}: {name} + {policy}"] = {
                "rates_rps": [round(rate, 3) for rate in found.rates_rps],
                "mean_rps": round(found.spread.mean, 3),
                "interval": [round(found.spread.low, 3), round(found.spread.high, 3)],
            }
            print(kind, name, policy, rows[f"{kind}: {name} + {policy}"], flush=True)
    write_json(
        RESULTS / "fleet_capacity.json",
        {"engines": options.engines, "capacity": rows, "provenance": provenance(),
         "environment": environment()},
    )  # fmt: skip


def speed(options: argparse.Namespace) -> None:
    """Decision times on a large fleet, and the simulator beside as many single engines."""
    fleet = random_fleet(0, engines=16, requests=16_000)
    decisions: dict[str, Any] = {}
    for name in (OURS, "lmetric", "least-tokens", "power-of-two"):
        made = router(name)
        made.route(fleet)
        times = []
        for _ in range(options.decisions):
            begin = time.perf_counter()
            made.route(fleet)
            times.append(1000 * (time.perf_counter() - begin))
        decisions[name] = {
            q: round(float(np.quantile(times, p)), 4) for q, p in (("p50_ms", 0.5), ("p99_ms", 0.99))
        }
        print(name, decisions[name], flush=True)
    base = FleetScenario.of(draw(4), 4, load=1.0)
    work = base.workload()
    rows: dict[str, Any] = {}
    for policy in ("fcfs", "edf", "slosched"):
        simulate_fleet(work, base.fleet, "round-robin", policy)
        begin = time.perf_counter()
        simulate_fleet(work, base.fleet, "round-robin", policy)
        together = time.perf_counter() - begin
        begin = time.perf_counter()
        for i in range(4):
            simulate(work.rows(np.arange(i, len(work), 4)), policy, engine=base.engine)
        rows[policy] = {
            "fleet_s": round(together, 3),
            "four_engines_s": round(time.perf_counter() - begin, 3),
        }
        print(policy, rows[policy], flush=True)
    write_json(
        RESULTS / "fleet_speed.json",
        {"decisions_16_engines_1000_each": decisions, "simulator_4_engines": rows,
         "provenance": provenance(), "environment": environment()},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("quality")
    one.add_argument("--seeds", type=int, default=24)
    one.add_argument("--first", type=int, default=FIRST_REPORTING_SEED)
    one.add_argument("--policy", default="slosched")
    one.add_argument("--routers", nargs="+", default=[*RIVALS, OURS])
    one.add_argument("--most-engines", type=int, default=16)
    one.add_argument("--bound", action="store_true", help="the upper bound of each cell, too")
    one.add_argument("--out", default="fleet.json")
    one.set_defaults(run=quality)
    two = parts.add_parser("capacity")
    two.add_argument("--engines", type=int, default=4)
    two.add_argument("--seeds", type=int, default=3)
    two.add_argument("--duration", type=float, default=60.0)
    two.add_argument("--workloads", nargs="+", default=["mixed", "chat"])
    two.set_defaults(run=capacities)
    three = parts.add_parser("speed")
    three.add_argument("--decisions", type=int, default=1000)
    three.set_defaults(run=speed)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
