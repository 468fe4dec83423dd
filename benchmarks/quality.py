"""Scheduling quality: every policy on five trace mixes, six loads and several seeds.

A load is a multiple of the rate at which first come, first served still meets 90 % of the SLOs, by weight
(mean over three seeds that are not used afterwards). Policies see forecasts with the errors of a real
predictor; `slosched` also runs with oracle lengths, and without pacing prefill, so that what its order alone
gains can be seen. Traces come from the folder that SLOSCHED_DATA names, else from generators fitted to them.

    python benchmarks/quality.py --jobs 2          # about half an hour on two free cores
    python benchmarks/quality.py --quick           # two mixes, two loads, two seeds
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, data_folder, environment, write_json
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from slosched.core.engine import Engine
from slosched.core.limits import EngineLimits
from slosched.core.outcome import Run
from slosched.lab.parallel import Workers, cores
from slosched.planner.planner import PlannerParams
from slosched.policies import POLICIES, policy
from slosched.policies.base import Policy
from slosched.policies.slosched import Slosched
from slosched.report.metrics import Metrics
from slosched.simulator import simulate
from slosched.timing.presets import preset
from slosched.workloads import Workload
from slosched.workloads.mixes import MIXES, mix

ENGINE = preset("h100-llama-3.1-8b")
FORECAST = "predictor-5"
LOADS = (0.3, 0.6, 0.9, 1.1, 1.3, 1.5)
OVERLOAD, IDLE = 1.1, 0.3
CAPACITY_SEEDS = (1000, 1001, 1002)
TARGET = 0.9
NO_PACING, ORACLE = "slosched, no pacing", "slosched, oracle lengths"
OURS = ("slosched", NO_PACING, ORACLE)
SMALL_BUDGETS = {
    f"{name}, {budget} tokens a step": (name, budget) for name in ("edf+d", "sjf+d") for budget in (512, 1024)
}
"""Baselines on an engine whose operator has cut the token budget by hand: pacing without a policy."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: policy (or variant of ours) on one mix, rate and seed."""

    mix: str
    rate: float
    seed: int
    name: str
    requests: int


def limits_of(cell: Cell) -> EngineLimits:
    """The engine's limits; the two mixes with shared prefixes run with the prefix cache."""
    limits = ENGINE.limits
    if cell.name in SMALL_BUDGETS:
        limits = replace(limits, max_num_batched_tokens=SMALL_BUDGETS[cell.name][1])
    if cell.mix == "mooncake":
        return replace(limits, prefix_cache=True)
    if cell.mix == "agentic":  # contexts beyond 64k tokens leave room for three requests at a time
        return replace(limits, prefix_cache=True, max_model_len=65_536)
    return limits


def workload_of(cell: Cell) -> Workload:
    """The requests of a cell."""
    return mix(
        cell.mix,
        rate_per_s=cell.rate,
        requests=cell.requests,
        seed=cell.seed,
        data_dir=data_folder(),
        model=ENGINE.step_time,
        limits=limits_of(cell),
        forecast="oracle" if cell.name == ORACLE else FORECAST,
    )


def policy_of(cell: Cell) -> Policy:
    """A fresh policy object."""
    if cell.name == NO_PACING:
        return Slosched(PlannerParams(pace=False), seed=cell.seed)
    name = "slosched" if cell.name == ORACLE else SMALL_BUDGETS.get(cell.name, (cell.name, 0))[0]
    return policy(name, seed=cell.seed)


def run(cell: Cell) -> Run:
    """Simulate a cell."""
    return simulate(
        workload_of(cell),
        policy_of(cell),
        engine=Engine(limits=limits_of(cell), step_time=ENGINE.step_time),
        measure_plans=True,
    )


def measure(_: None, cell: Cell) -> dict[str, Any]:
    """The figures of one run."""
    m = Metrics.of(run(cell))
    figures = {
        "attainment": m.weighted.value,
        "unweighted": m.attainment.value,
        "goodput_rps": m.goodput_rps,
        "ttft_mean_s": m.ttft_s.mean,
        "tpot_mean_s": m.tpot_s.mean,
        "e2e_mean_s": m.e2e_s.mean,
        "ttft_p99_s": m.ttft_s.p99,
        "e2e_p99_s": m.e2e_s.p99,
        "best_effort_e2e_p99_s": m.best_effort_p99_e2e_s,
        "max_wait_s": m.max_wait_s,
        "preemptions": m.preemptions,
        "waiting_mean": m.queue.mean,
        "plan_p50_us": m.plan_p50_us,
    }
    rounded = {k: round(float(v), 6) if math.isfinite(v) else None for k, v in figures.items()}
    return {"mix": cell.mix, "rate": cell.rate, "seed": cell.seed, "policy": cell.name, **rounded}


def capacity(_: None, task: tuple[str, int, int]) -> float:
    """Rate at which first come, first served meets the target on one mix and seed, by bisection."""
    name, seed, requests = task
    low, high = 0.02, 100.0
    while high / low > 1.02:
        rate = (low * high) ** 0.5
        attained = Metrics.of(run(Cell(name, rate, seed, "fcfs", requests))).weighted.value
        low, high = (rate, high) if attained >= TARGET else (low, rate)
    return low


def summarise(rows: list[dict[str, Any]], capacities: dict[str, float]) -> list[dict[str, Any]]:
    """Per mix and load: attainment of every policy, and violations against the best baseline."""
    out: list[dict[str, Any]] = []
    keys = dict.fromkeys((str(r["mix"]), r["rate"]) for r in rows)
    for name, rate in keys:
        here = [r for r in rows if r["mix"] == name and r["rate"] == rate]
        by_policy: dict[str, list[float]] = {}
        for r in here:
            by_policy.setdefault(str(r["policy"]), []).append(r["attainment"])
        means = {p: statistics.fmean(v) for p, v in by_policy.items()}
        best = max((p for p in means if p not in OURS and p not in SMALL_BUDGETS), key=lambda p: means[p])
        tuned = max((p for p in means if p not in OURS), key=lambda p: means[p])
        ours, theirs = np.array(by_policy["slosched"]), np.array(by_policy[best])
        missed, their_missed = 1 - ours.mean(), 1 - theirs.mean()
        out.append(
            {
                "mix": name,
                "load": round(rate / capacities[name], 3),
                "rate_rps": rate,
                "attainment": {
                    p: [round(m, 4), round(float(np.std(by_policy[p])), 4)] for p, m in means.items()
                },
                "best_baseline": best,
                "advantage": round(float((ours - theirs).mean()), 4),
                "advantage_interval": bootstrap(ours - theirs),
                "violation_ratio": ratio(missed, their_missed),
                "best_with_any_budget": tuned,
                "violation_ratio_any_budget": ratio(missed, 1 - means[tuned]),
                "gap_to_oracle_lengths": round(means[ORACLE] - means["slosched"], 4),
                "waiting_mean_fcfs": mean_of(here, "fcfs", "waiting_mean"),
                "latency_over_fcfs": {
                    k: ratio(mean_of(here, "slosched", k), mean_of(here, "fcfs", k))
                    for k in ("ttft_mean_s", "tpot_mean_s", "e2e_mean_s")
                },
                "best_effort_e2e_p99_s": {
                    p: mean_of(here, p, "best_effort_e2e_p99_s") for p in ("slosched", best, "fcfs")
                },
                "max_wait_s": {p: mean_of(here, p, "max_wait_s") for p in ("slosched", best, "fcfs")},
                "e2e_p99_s": {p: mean_of(here, p, "e2e_p99_s") for p in ("slosched", best, "fcfs")},
                "plan_p50_us": mean_of(here, "slosched", "plan_p50_us"),
            }
        )
    return out


def mean_of(rows: list[dict[str, Any]], name: str, figure: str) -> float | None:
    """Mean of a figure over the seeds of one policy."""
    values = [r[figure] for r in rows if r["policy"] == name and r[figure] is not None]
    return round(statistics.fmean(values), 5) if values else None


def ratio(a: float | None, b: float | None) -> float | None:
    """Quotient, where both are known."""
    return round(a / b, 4) if a is not None and b else None


def bootstrap(differences: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    """95 % interval of the mean of paired differences, by resampling seeds."""
    rng = np.random.default_rng(0)
    means = rng.choice(differences, size=(2000, len(differences))).mean(axis=1)
    return [round(float(q), 4) for q in np.quantile(means, (0.025, 0.975))]


def headline(summary: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures the issue of quality turns on."""
    busy = [s for s in summary if s["load"] >= OVERLOAD]
    worse = [
        {"mix": s["mix"], "load": s["load"], "interval": s["advantage_interval"]}
        for s in summary
        if s["advantage_interval"][1] < 0
    ]
    out: dict[str, Any] = {"cells": len(summary), "cells_significantly_worse_than_best_baseline": worse}
    for key in ("violation_ratio", "violation_ratio_any_budget"):
        ratios = [s[key] for s in busy if s[key] is not None]
        out[f"{key}_overload_geometric_mean"] = round(
            math.exp(statistics.fmean(math.log(max(r, 1e-3)) for r in ratios)), 4
        )
        out[f"{key}_overload_worst"] = max(ratios)
    idle = [s["latency_over_fcfs"] for s in summary if s["load"] <= IDLE]
    out["worst_latency_over_fcfs_when_idle"] = {
        k: max(s[k] for s in idle) for k in ("ttft_mean_s", "tpot_mean_s", "e2e_mean_s")
    }
    return out


def cells_of(
    name: str, rate_at_capacity: float, loads: Sequence[float], options: argparse.Namespace
) -> list[Cell]:
    """All runs on one mix."""
    seeds, requests = options.seeds, options.requests
    names = [*(options.policy or POLICIES), *SMALL_BUDGETS, NO_PACING, ORACLE]
    return [
        Cell(name, rate_at_capacity * load, seed, policy_name, requests)
        for load in loads
        for seed in range(seeds)
        for policy_name in names
    ]


def save(
    out: Path, options: argparse.Namespace, rows: list[dict[str, Any]], capacities: dict[str, float]
) -> None:
    """Write the summary as JSON and the runs beside it as CSV."""
    summary = summarise(rows, capacities)
    payload = {
        "environment": environment(),
        "data": "public traces" if data_folder() else "generators",
        "engine": ENGINE.name,
        "forecast": FORECAST,
        "seeds": options.seeds,
        "requests": options.requests,
        "fcfs_capacity_rps": {m: round(r, 3) for m, r in capacities.items()},
        "headline": headline(summary),
        "summary": summary,
    }
    write_json(out, payload)
    with out.with_name(out.stem + "_runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def advance(bar: Progress, line: TaskID, done: int, _: int) -> None:
    """Move one line of the progress bar."""
    bar.update(line, completed=done)


def main() -> None:
    """Run the study mix by mix, saving after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument(
        "--mix", action="append", choices=list(MIXES), help="one of the mixes; several; all by default"
    )
    parser.add_argument(
        "--policy", action="append", choices=list(POLICIES), help="with fcfs and slosched; default all"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.json")
    options = parser.parse_args()
    loads: Sequence[float] = LOADS
    if options.quick:
        options.mix, options.seeds, options.requests, loads = ["azure", "bursty"], 2, 300, (0.3, 1.3)
    rows: list[dict[str, Any]] = []
    capacities: dict[str, float] = {}
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Workers(None, options.jobs) as workers, bar:
        for name in options.mix or MIXES:
            found = workers.map(capacity, [(name, seed, options.requests) for seed in CAPACITY_SEEDS])
            capacities[name] = statistics.fmean(found)
            cells = cells_of(name, capacities[name], loads, options)
            show = partial(advance, bar, bar.add_task(name, total=len(cells)))
            rows += workers.map(measure, cells, show)
            save(options.out, options, rows, capacities)
            print(f"{name}: {len(cells)} runs, saved to {options.out}", file=sys.stderr, flush=True)
    for key, value in json.loads(options.out.read_text())["headline"].items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
