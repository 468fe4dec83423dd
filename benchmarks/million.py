"""One million requests of the Azure conversation trace, resampled, under FCFS: time and peak memory.

Run: SLOSCHED_DATA=../shared/data python benchmarks/million.py
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
from common import RESULTS, data_folder, environment, write_json

from slosched.core.engine import preset
from slosched.simulator import simulate
from slosched.workloads import read, resample

REQUESTS = 1_000_000
PRESET = "h100-llama-3.1-8b"


def peak_gb() -> float:
    """Peak resident memory of this process so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    folder = data_folder()
    if folder is None:
        raise SystemExit("needs the public data: set SLOSCHED_DATA")
    began = time.perf_counter()
    trace = read(folder / "traces" / "azure2023_conv.csv.gz")
    engine = preset(PRESET)
    warm = trace.rows(np.arange(100))
    simulate(warm, "fcfs", engine=engine)  # compile
    before_gb = peak_gb()
    work = resample(trace, REQUESTS, seed=1)
    built_s = time.perf_counter() - began
    run = simulate(work, "fcfs", engine=engine)
    outcomes = run.outcomes
    span_s = float(outcomes.finish_s.max())
    tokens = int(work.output_tokens.sum())
    payload = {
        "what": "Azure conversation trace resampled in blocks of 60 s, FCFS, one process",
        "preset": PRESET,
        "requests": len(work),
        "finished": int(outcomes.finished.sum()),
        "output_tokens": tokens,
        "simulated_s": round(span_s, 1),
        "steps": run.log.steps,
        "wall_s": round(run.log.wall_s, 2),
        "build_s": round(built_s, 2),
        "output_tokens_per_s": round(tokens / run.log.wall_s),
        "real_time_x": round(span_s / run.log.wall_s),
        "peak_memory_gb": round(peak_gb(), 3),
        "peak_memory_before_gb": round(before_gb, 3),
        "mean_ttft_ms": round(1e3 * float(outcomes.ttft_s.mean()), 3),
        "mean_tpot_ms": round(1e3 * float(outcomes.tpot_s.mean()), 3),
        "environment": environment(),
    }
    write_json(RESULTS / "million.json", payload)
    print(payload)


if __name__ == "__main__":
    main()
