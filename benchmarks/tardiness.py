"""Weighted tardiness on one machine: time until the best known value, on published and generated instances.

1. The 125 OR-Library instances of 40 jobs: the search runs until it reaches the published value.
2. Instances of 50 and 100 jobs from the library's published scheme: p uniform in 1..100, w in 1..10, due
   dates uniform in P(1 - TF ± RDD/2), P the sum of p, cut at 0, for TF and RDD in {.2, .4, .6, .8, 1}. Nobody
   has published values for these, so a long run with its own seed sets the mark, and short runs are timed
   until they reach it. Runs that go below it, so that the mark was not the optimum, are counted.

Run: SLOSCHED_DATA=../shared/data python benchmarks/tardiness.py [--quick]
"""

from __future__ import annotations

import argparse
import gzip
import json
from typing import Any

import numpy as np
from common import RESULTS, data_folder, environment, write_json
from rich.progress import track

from slosched.core.arrays import Floats
from slosched.solvers.static.tardiness import solve_tardiness

FACTORS = (0.2, 0.4, 0.6, 0.8, 1.0)
LONG_MS = {50: 500.0, 100: 1500.0}
SHORT_MS = {40: 1000.0, 50: 500.0, 100: 1500.0}
Jobs = tuple[Floats, Floats, Floats]


def published() -> list[tuple[Jobs, float]]:
    folder = data_folder()
    if folder is None:
        raise SystemExit("no data: set SLOSCHED_DATA to the folder of the public data")
    with gzip.open(folder / "combinatorial" / "orlib_wt40.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        ((np.array(r["p"], float), np.array(r["w"], float), np.array(r["d"], float)), float(r["twt_best"]))
        for r in rows
    ]


def generated(n: int, copies: int) -> list[Jobs]:
    rng = np.random.default_rng(n)
    out: list[Jobs] = []
    for spread in FACTORS:
        for tightness in FACTORS:
            for _ in range(copies):
                p, w = rng.integers(1, 101, n), rng.integers(1, 11, n)
                middle = float(p.sum()) * (1 - tightness)
                half = float(p.sum()) * spread / 2
                d = np.maximum(0, rng.integers(int(middle - half), int(middle + half) + 1, n))
                out.append((p.astype(float), w.astype(float), d.astype(float)))
    return out


def summary(times_ms: list[float], reached: int, runs: int) -> dict[str, Any]:
    times = np.array(times_ms)
    return {
        "runs": runs,
        "reached": reached,
        "time_to_reach_ms": {
            "mean": round(float(times.mean()), 4),
            "median": round(float(np.median(times)), 4),
            "p95": round(float(np.percentile(times, 95)), 4),
            "max": round(float(times.max()), 4),
        },
    }


def timed(cases: list[tuple[Jobs, float]], seeds: int, label: str) -> dict[str, Any]:
    """Run every case with every seed until its target; runs that miss count with their whole budget."""
    budget_ms = SHORT_MS[len(cases[0][0][0])]
    times, below, moves, seconds = [], 0, 0, 0.0
    solved = [0] * len(cases)
    for seed in track(range(seeds), description=label):
        for k, (jobs, target) in enumerate(cases):
            found = solve_tardiness(*jobs, budget_ms=budget_ms, seed=seed, target=target)
            times.append(found.seconds * 1e3)
            solved[k] += found.objective <= target
            below += found.objective < target
            moves, seconds = moves + found.moves, seconds + found.seconds
    result = summary(times, sum(solved), len(times))
    return result | {
        "instances": len(cases),
        "instances_reached_by_every_seed": sum(count == seeds for count in solved),
        "instances_reached_by_any_seed": sum(count > 0 for count in solved),
        "runs_below_the_mark": below,
        "budget_ms": budget_ms,
        "moves_per_s": round(moves / seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds, one generated instance per factor")
    parser.add_argument("--out", default=str(RESULTS / "tardiness.json"))
    options = parser.parse_args()
    seeds, copies = (2, 1) if options.quick else (10, 5)
    rng = np.random.default_rng(0)
    solve_tardiness(rng.integers(1, 9, 30), np.ones(30), rng.integers(0, 99, 30), moves=100_000)  # compile
    results: dict[str, Any] = {"orlib_wt40": timed(published(), seeds, "OR-Library, 40 jobs")}
    for n, long_ms in LONG_MS.items():
        queue = generated(n, copies)
        marks = [
            solve_tardiness(*jobs, budget_ms=long_ms, seed=1000).objective
            for jobs in track(queue, description=f"long runs, {n} jobs")
        ]
        cases = list(zip(queue, marks, strict=True))
        results[f"generated_{n}"] = timed(cases, min(seeds, 3), f"short runs, {n} jobs") | {
            "long_run_ms": long_ms
        }
    path = write_json(options.out, {"environment": environment(), "results": results})
    for name, row in results.items():
        print(name, json.dumps(row))
    print(path)


if __name__ == "__main__":
    main()
