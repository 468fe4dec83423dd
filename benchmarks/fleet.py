"""Routers over random fleets: attainment, regret, capacity, decision times, and the simulator's speed.

    python benchmarks/fleet.py quality --draws 24        # random fleets of reporting seeds; resumes
    python benchmarks/fleet.py capacity                  # against random assignment with FCFS engines
    python benchmarks/fleet.py hindsight --draws 8       # what a schedule made in hindsight reaches
    python benchmarks/fleet.py speed                     # decisions of 16 engines x 1,000; simulator

Every router gets the same requests on the same engines, each with the same policy. Fleets are drawn by
`slosched.lab.fleet.draw_fleet`: 2 to 16 engines, load 1.0 to 1.8, one slow, one failing, old statistics.
Seeds from 10,000 on are for reporting and were never tuned on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
from common import RESULTS, ROOT, environment, write_json

from slosched.core.arrays import Floats
from slosched.core.engine import DEFAULT_ENGINE
from slosched.integrations.dispatch import warm_up
from slosched.lab.bench import FleetBench
from slosched.lab.cells import provenance
from slosched.lab.evidence import BEHIND_ROUTERS, EvidenceConfig, run_evidence
from slosched.lab.fleet import SIZES, FleetScenario, draw_fleet
from slosched.lab.hindsight import hindsight
from slosched.lab.population import draw
from slosched.lab.store import Store
from slosched.lab.study import capacity
from slosched.report.evidence_site import results
from slosched.routers import router
from slosched.simulator import simulate, simulate_fleet
from slosched.testing.routers import random_fleet
from slosched.workloads.sources import Generated

OURS, RIVALS = "slosched", ("lmetric", "least-tokens", "power-of-two")
FIRST_REPORTING_SEED = 10_000


def quality(options: argparse.Namespace) -> None:
    """Our policy behind every router on random fleets; what is there already is not run again."""
    config = EvidenceConfig(
        policies=tuple(options.contenders), engines=tuple(options.engines), draws=options.draws,
        first_seed=options.first,
    )  # fmt: skip
    store = Store(ROOT / "out" / "fleet" / "runs.jsonl")
    study = run_evidence(config, store, jobs=options.jobs, progress=said)
    summary = study.summary()
    table = {label: 100.0 * np.array(study.column(label, "weighted")) for label in study.labels}
    fleets = [s for s in study.scenarios if isinstance(s, FleetScenario)]
    bounds = [100 * fleet.bound(fleet.workload()) for fleet in fleets if options.bound]
    found = {
        "misses": misses(table),
        "by_kind": means_by(table, [fleet.kind for fleet in fleets]),
        "by_engines": means_by(table, [str(fleet.engines) for fleet in fleets]),
        "bound": round(float(np.mean(bounds)), 2) if bounds else None,
    }
    print(json.dumps(found, indent=1))
    write_json(RESULTS / options.out, found | results(study, summary))


def said(done: int, whole: int) -> None:
    """Progress on the standard error, for logs."""
    print(f"{done} of {whole} runs", file=sys.stderr, flush=True)


def misses(table: dict[str, Floats]) -> dict[str, Any]:
    """Our misses over those of the best single router, with a paired bootstrap over fleets."""
    rivals = [label for label in table if label.startswith(f"{OURS}, router=")]
    best = max(rivals, key=lambda label: float(table[label].mean()))
    ours, theirs = 100 - table[OURS], 100 - table[best]
    draws = np.random.default_rng(0).integers(0, len(ours), (2000, len(ours)))
    ratios = ours[draws].mean(axis=1) / np.maximum(1e-9, theirs[draws].mean(axis=1))
    regret = np.max([table[label] for label in rivals], axis=0) - table[OURS]
    return {
        "best_single_rival": best,
        "ours_over_best": round(float(ours.mean() / theirs.mean()), 3),
        "interval": [round(float(q), 3) for q in np.quantile(ratios, (0.025, 0.975))],
        "regret_mean": round(float(regret.mean()), 2),
        "regret_worst": round(float(regret.max()), 2),
    }


def means_by(table: dict[str, Floats], groups: list[str]) -> dict[str, dict[str, float]]:
    """Mean attainment in points by group of fleets."""
    found = {}
    for group in sorted(set(groups)):
        rows = [i for i, other in enumerate(groups) if other == group]
        found[f"{group} ({len(rows)})"] = {
            label: round(float(values[rows].mean()), 2) for label, values in table.items()
        }
    return found


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


def in_hindsight(options: argparse.Namespace) -> None:
    """Ours and a rival router beside the best schedule that a search finds, all of the future known."""
    rows = []
    for seed in range(options.first, options.first + options.draws):
        fleet = draw_fleet(seed, options.engines)
        if fleet.kind == "one fails":  # a search in hindsight knows no failures
            continue
        fleet = fleet.model_copy(update={"requests": options.requests * fleet.engines})
        work = fleet.workload()
        row: dict[str, Any] = {"draw": seed, "kind": fleet.kind, "engines": fleet.engines, "load": fleet.load}
        for name in (OURS, options.rival):
            out = fleet.run(work, name, OURS).outcomes
            row[name] = round(float(work.weight[out.met].sum() / work.weight.sum()), 4)
        found = hindsight(work, fleet.fleet, trials=options.trials, seed=seed)
        row["hindsight"] = round(max(found.value, row[OURS], row[options.rival]), 4)
        row["bound"] = round(fleet.bound(work), 4)
        rows.append(row)
        print(row, flush=True)
    shares = {key: np.array([row[key] for row in rows]) for key in (OURS, options.rival, "hindsight")}
    summary = {f"{key}_mean": round(float(values.mean()), 4) for key, values in shares.items()}
    over = (1 - shares["hindsight"]).mean() / max(1e-9, (1 - shares[options.rival]).mean())
    summary["hindsight_misses_over_rival"] = round(float(over), 3)
    print(summary)
    write_json(
        RESULTS / "fleet_hindsight.json",
        {"rows": rows, "summary": summary, "trials": options.trials, "provenance": provenance(),
         "environment": environment()},
    )  # fmt: skip


def speed(options: argparse.Namespace) -> None:
    """Decision times on a large fleet, and the simulator beside as many single engines."""
    decisions = {name: decided(name, options.decisions) for name in (OURS, *RIVALS)}
    write_json(
        RESULTS / "fleet_speed.json",
        {"decisions_16_engines_1000_each": decisions,
         "simulator_4_engines": simulator_speed() if options.simulator else None,
         "provenance": provenance(), "environment": environment()},
    )  # fmt: skip


def decided(name: str, count: int) -> dict[str, float]:
    """Processor time of decisions of one router, 200 a second; before each one queue has changed.

    Compiled code is loaded before the first, as servers do.
    """
    fleet, made, times = random_fleet(0, engines=16, requests=16_000), router(name), []
    warm_up(name, DEFAULT_ENGINE)
    made.live()
    for i in range(count + 1):
        begun = time.thread_time()
        made.route(fleet)
        times.append(1000 * (time.thread_time() - begun))
        engines = list(fleet.engines)
        engines[i % 16] = replace(engines[i % 16], rows=engines[i % 16].rows.copy())
        fleet = replace(fleet, engines=tuple(engines), now_s=fleet.now_s + 0.005)
    made.close()
    found = {f"p{100 * q:g}_ms": round(float(np.quantile(times[1:], q)), 4) for q in (0.5, 0.99, 1.0)}
    print(name, found, flush=True)
    return found


def simulator_speed() -> dict[str, Any]:
    """Seconds of four engines behind round robin, and of the same four apart."""
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
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("quality")
    one.add_argument("--draws", type=int, default=24)
    one.add_argument("--first", type=int, default=FIRST_REPORTING_SEED)
    one.add_argument("--engines", type=int, nargs="+", default=list(SIZES))
    one.add_argument("--contenders", nargs="+", default=list(BEHIND_ROUTERS))
    one.add_argument("--jobs", type=int, default=1)
    one.add_argument("--bound", action="store_true", help="the upper bound of each fleet, too")
    one.add_argument("--out", default="fleet.json")
    one.set_defaults(run=quality)
    two = parts.add_parser("capacity")
    two.add_argument("--engines", type=int, default=4)
    two.add_argument("--seeds", type=int, default=3)
    two.add_argument("--duration", type=float, default=60.0)
    two.add_argument("--workloads", nargs="+", default=["mixed", "chat"])
    two.set_defaults(run=capacities)
    four = parts.add_parser("hindsight")
    four.add_argument("--draws", type=int, default=8)
    four.add_argument("--first", type=int, default=FIRST_REPORTING_SEED)
    four.add_argument("--engines", type=int, nargs="+", default=[2])
    four.add_argument("--requests", type=int, default=300, help="per engine")
    four.add_argument("--rival", default="lmetric")
    four.add_argument("--trials", type=int, default=8)
    four.set_defaults(run=in_hindsight)
    three = parts.add_parser("speed")
    three.add_argument("--decisions", type=int, default=1000)
    three.add_argument("--simulator", action="store_true", help="how fast fleets are simulated, too")
    three.set_defaults(run=speed)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
