"""A vLLM CPU server for the duration of a block, on cores of its own, and what the live scripts ask of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLAIN: dict[str, Any] = {
    "classes": {"chat": {}, "assist": {}, "batch": {}},
    "default_class": "batch",
    "tenants": {"default": {"max_weight": 10}},  # the load says what each request is worth
}
"""slosched's settings where a contender has none of its own: everything by default."""

SLOSCHED = ("--scheduler-cls", "slosched.integrations.vllm.Scheduler")
SERVERS: dict[str, list[str]] = {
    "vllm fcfs": [],
    "vllm priority": ["--scheduling-policy", "priority"],
    "slosched": list(SLOSCHED),
}
BUDGET = ("--max-num-batched-tokens", "256")
START_S = 600
"""A server that has not started by then never will."""


def engine_cores() -> list[int]:
    """Cores of the model: all but the last, which the load generator has to itself."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[:-1] or cores


def pin_client() -> list[int]:
    """Put this process on the core that the model leaves free; returns it."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-1:])
    return cores[-1:]


@contextmanager
def server(
    model: Path, name: str, folder: Path, max_num_seqs: int, *, settings: dict[str, Any] | None = None,
    arguments: Sequence[str] | None = None, cores: Sequence[int] | None = None,
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
    cores
        The model's threads are bound to these; by default to none in particular.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "slosched.yaml"
    metrics = {"json_file": str(folder / "metrics.json"), "json_every_s": 0.5}
    config.write_text(json.dumps({"metrics": metrics, **(settings or PLAIN)}))
    if arguments is None:
        arguments = ["--load-format", "dummy", *SERVERS[name]]
    if "--max-num-batched-tokens" not in arguments:
        arguments = [*arguments, *BUDGET]
    variables = dict(
        os.environ, HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", SLOSCHED_CONFIG=str(config),
        VLLM_LOGGING_LEVEL="WARNING",
        # The model leaves one core to everybody else, as a GPU would.
        OMP_NUM_THREADS=str(len(cores) if cores else 1),
        VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, cores)) if cores else "nobind",
    )  # fmt: skip
    log = folder / f"{name.replace(' ', '-')}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
             "--enforce-eager", "--port", str(port), "--max-num-seqs", str(max_num_seqs),
             "--gpu-memory-utilization", "0.2", "--disable-uvicorn-access-log", *arguments],
            env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=_all_cores,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, process, log)
        yield url, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _all_cores() -> None:
    """A server does not inherit the client's core."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(2 * START_S):
        if process.poll() is not None:
            raise SystemExit(f"the server ended while starting:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"the server did not start within {START_S} s")
