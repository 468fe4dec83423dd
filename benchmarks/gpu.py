"""What only a GPU can tell: step times, the probe, the ranker and the planner beside a busy engine.

In at most ten minutes on one GPU, with torch and slosched alone (vLLM only where it is installed):

- ``steps``: steps of the decoders behind our presets, as CUDA graphs, their coefficients and the presets';
- ``probe``: the probe on a layer's hidden states, against a layer and a step;
- ``ranker``: the transformer ranker on texts, on the GPU and on the processor;
- ``planner``: an engine loop that keeps the GPU busy, alone and with our planner beside it;
- ``vllm``: identity, cost of a step, and attainment of stock at its best and of ours.

The rest of the table says what the card can do at best. Each part is written as soon as it is done, the steps
of each model too. On a machine without a GPU ``--tiny`` goes through all of it with models that mean nothing.

Run: python benchmarks/gpu.py [--parts steps probe ...] [--tiny] [--out benchmarks/results/gpu.json]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, environment, write_json

PARTS = {
    "ceilings": "steps",
    "steps": "steps",
    "probe": "predictors",
    "ranker": "predictors",
    "planner": "planner",
    "vllm": "engine",
}
"""Module of benchmarks/gpu_parts that has the function of that name."""


def card() -> dict[str, Any]:
    """Name and state of the GPU, and what torch was built for."""
    import torch

    if not torch.cuda.is_available():
        return {"name": None, "torch": torch.__version__}
    about = torch.cuda.get_device_properties(0)
    fields = "driver_version,power.limit,clocks.max.sm,clocks.max.mem,memory.total"
    asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        said = ""
    values = dict(zip(fields.split(","), said.split(", "), strict=False))
    return {
        "name": about.name, "multiprocessors": about.multi_processor_count,
        "memory_gib": round(about.total_memory / 2**30, 1), "torch": torch.__version__,
        "cuda": torch.version.cuda, **values,
    }  # fmt: skip


def provenance() -> dict[str, str | None]:
    """Commit, as SLOSCHED_COMMIT or git tell it, and digests of the package and of these scripts."""
    commit = os.environ.get("SLOSCHED_COMMIT")
    if commit is None:
        asked = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    scripts = [*Path(__file__).parent.glob("gpu*.py"), *Path(__file__).parent.glob("gpu_parts/*.py")]
    files = {"package": (ROOT / "slosched").rglob("*.py"), "scripts": scripts}
    digests = {}
    for name, paths in files.items():
        digest = hashlib.sha256()
        for path in sorted(paths):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
        digests[f"{name}_sha256"] = digest.hexdigest()[:16]
    return {"commit": commit, **digests}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts, each in turn, and write after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="models that mean nothing, on the processor")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    given = parser.parse_args(argv)
    try:
        import torch
    except ImportError:
        raise SystemExit("needs torch: pip install torch") from None
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU: --tiny goes through the script without one")
    from gpu_parts.settings import Settings, say

    settings = Settings(tiny=given.tiny)
    found: dict[str, Any] = {
        "card": card(), "tiny": given.tiny, "provenance": provenance(),
        "environment": environment("torch", "triton", "transformers", "vllm"),
    }  # fmt: skip
    for name in given.parts:
        begin, found[name] = time.perf_counter(), {}
        try:
            result = getattr(import_module(f"gpu_parts.{PARTS[name]}"), name)(settings)
            for some in [result] if isinstance(result, dict) else result:
                write_json(given.out, found | {name: found[name] | some})
                found[name] |= some
        except Exception as error:  # the other parts can still tell something
            found[name]["error"] = f"{type(error).__name__}: {error}"[:1000]
            say(f"{name}: {found[name]['error']}")
        found[name]["wall_s"] = round(time.perf_counter() - begin, 1)
        say(f"{name}: {found[name]['wall_s']} s")
        write_json(given.out, found)
    failed = [name for name in given.parts if "error" in found[name]]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
