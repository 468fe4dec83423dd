"""What the proxy adds: time to the first byte with and without it, and how many streams it holds open.

A server that answers at once stands for the engines. The client sends requests open loop, first straight to
the server, then through `slosched router` before two of them; then it opens many streams together. Server,
router and client are processes of their own. On a machine that others keep busy only the router's processor
time per request says much; it holds the looks at the engines, too.

    python benchmarks/fleet_proxy.py --rate 200 --seconds 20 --streams 1000
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web
from common import RESULTS, environment, write_json
from fleet_live import router

from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.lab.cells import provenance

PROMPT = "word " * 400
WARM_UP = 50


async def complete(request: web.Request) -> web.StreamResponse:
    """Three tokens, the first at once, the others after as long as the body asks."""
    body = await request.json()
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    for i in range(3):
        await answer.write(b'data: {"t": %d}\n\n' % i)
        await asyncio.sleep(float(body.get("pause_s", 0.0)))
    await answer.write(b"data: [DONE]\n\n")
    return answer


async def page(request: web.Request) -> web.Response:
    """A metrics page."""
    return web.Response(text="vllm:num_requests_waiting 0.0\nvllm:num_requests_running 1.0\n")


def serve(port: int) -> None:
    """The server that answers at once."""
    app = web.Application()
    app.router.add_get("/metrics", page)
    app.router.add_get("/health", page)
    app.router.add_post("/v1/completions", complete)
    web.run_app(app, host="127.0.0.1", port=port, print=None, backlog=4096)


async def first_bytes(url: str, rate: float, seconds: float) -> list[float]:
    """Seconds from each request's due time to its first byte, open loop."""
    found: list[float] = []
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as client:

        async def one(due: float) -> None:
            body = {"model": "m", "prompt": PROMPT, "stream": True, "vllm_xargs": {"slo_ttft_ms": 500}}
            async with client.post(f"{url}/v1/completions", json=body) as answer:
                await answer.content.readany()
                found.append(time.perf_counter() - due)
                await answer.read()

        for _ in range(WARM_UP):
            await one(time.perf_counter())
        found.clear()
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for i in range(int(rate * seconds)):
                due = begin + i / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(due))
    return found


async def open_together(url: str, streams: int) -> Counter[str]:
    """What becomes of so many streams that are open together: ``whole``, or how else they end."""
    ends: Counter[str] = Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as client:

        async def one() -> None:
            body = {"prompt": "x", "stream": True, "pause_s": 4.0}
            try:
                async with client.post(f"{url}/v1/completions", json=body) as answer:
                    whole = (await answer.read()).endswith(b"data: [DONE]\n\n")
                    ends["whole" if whole else f"status {answer.status}"] += 1
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                ends[type(error).__name__] += 1

        await asyncio.gather(*(one() for _ in range(streams)))
    return ends


def processor_s(url: str) -> float:
    """Processor seconds that the router has used, by its own metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("slosched_router_process_cpu_s"))


def quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{q}_ms": round(1000 * float(np.quantile(values, q / 100)), 3) for q in (50, 90, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    ports = (18_431, 18_432)
    servers = [subprocess.Popen([sys.executable, __file__, "--serve", str(port)]) for port in ports]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        with tempfile.TemporaryDirectory() as name:
            profile = Path(name) / "engine.json"
            # An engine that can do all that is asked here: what is measured is the proxy.
            limits = EngineLimits(max_num_seqs=4096, max_num_batched_tokens=65_536, kv_blocks=1_000_000)
            model = StepTimeModel(base_s=1e-4, prefill_token_s=1e-7)
            Engine(name="at once", limits=limits, step_time=model).save(profile)
            rows: dict[str, Any] = {}
            with router(urls, "slosched", profile, 1, Path(name)) as url:
                time.sleep(2.0)
                begun_s = processor_s(url)
                for label, target in (("direct", urls[0]), ("router", url)):
                    rows[label] = quantiles(asyncio.run(first_bytes(target, options.rate, options.seconds)))
                    print(label, rows[label], flush=True)
                requests = options.rate * options.seconds + WARM_UP
                busy_s = processor_s(url) - begun_s
                print(f"processor: {1000 * busy_s / requests:.2f} ms a request", flush=True)
                ends = asyncio.run(open_together(url, options.streams))
                print(f"{options.streams} streams, open together: {dict(ends)}")
    finally:
        for server in servers:
            server.terminate()
            server.wait()
    added = {q: round(rows["router"][q] - rows["direct"][q], 3) for q in rows["router"]}
    print("added", added)
    write_json(
        RESULTS / "fleet_proxy.json",
        {"rate_rps": options.rate, "seconds": options.seconds, "first_byte": rows, "added": added,
         "processor_ms_per_request": round(1000 * busy_s / requests, 3),
         "streams": {"open": options.streams, "ends": dict(ends)}, "provenance": provenance(),
         "environment": environment("aiohttp", "uvicorn")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
