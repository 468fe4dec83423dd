"""What every benchmark script shares: where data lies, what ran, and how results are written."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from slosched.core.engine import EngineLimits, preset
from slosched.lab.cells import provenance
from slosched.lab.digests import code_digest
from slosched.lab.parallel import cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def data_folder() -> Path | None:
    """Folder of the public data (SLOSCHED_DATA, or ../shared/data beside the repository); None if absent."""
    folder = Path(os.environ.get("SLOSCHED_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


def engine_limits(preset_name: str, mix: str) -> EngineLimits:
    """The engine of a mix: those with shared prefixes have the prefix cache, agents 64k of context."""
    limits = preset(preset_name).limits
    if mix in ("mooncake", "agentic"):
        limits = replace(limits, prefix_cache=True)
    # Contexts beyond 64k tokens leave room for three requests at a time.
    return replace(limits, max_model_len=65_536) if mix == "agentic" else limits


def cpu_model() -> str:
    """Processor name as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment(*packages: str) -> dict[str, object]:
    """Versions and machine that a result was measured with.

    Parameters
    ----------
    packages
        Distributions to list besides slosched, numpy, numba and scipy; absent ones are listed as None.
    """
    versions: dict[str, str | None] = {}
    for name in ("slosched", "numpy", "numba", "scipy", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": f"{sys.platform}-{platform.machine()}",
        "date_utc": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


MEASURED = {
    "ablation": ("slosched.policies.slosched", "slosched.lab.population"),
    "annealed_orders": ("slosched.policies.slosched", "slosched.lab.population"),
    "cold_start": ("slosched.predictors.blend", "slosched.predictors.history", "slosched.predictors.ranker"),
    "cold_start_effect": (
        "slosched.predictors.blend",
        "slosched.predictors.history",
        "slosched.predictors.ranker",
        "slosched.policies.slosched",
    ),
    "continuous": ("slosched.solvers.solve_continuous",),
    "exact": ("slosched.solvers.static.cpsat",),
    "fidelity": ("slosched.simulator.engine", "slosched.core.fitting"),
    "fleet": ("slosched.simulator.fleet", "slosched.policies.slosched"),
    "gpu": ("slosched.policies.slosched", "slosched.core.fitting"),
    "hindsight": ("slosched.lab.hindsight", "slosched.lab.bound"),
    "huang": ("slosched.solvers.static.annealing",),
    "knowable": ("slosched.lab.collect",),
    "live": ("slosched.integrations.vllm.adapter", "slosched.policies.slosched"),
    "load_beside_vllm": ("slosched.integrations.openai_client",),
    "million": ("slosched.simulator.engine",),
    "mutants": (
        "slosched.core.metrics",
        "slosched.integrations.vllm.guarded_policy",
        "slosched.lab.bound",
        "slosched.lab.figures",
        "slosched.lab.statistics",
        "slosched.policies.hopeless",
        "slosched.solvers.static.cpsat",
    ),
    "evidence_cells": ("slosched.policies.slosched", "slosched.lab.named_cells"),
    "evidence_fresh": ("slosched.policies.slosched", "slosched.lab.evidence"),
    "plan_times": ("slosched.policies.slosched",),
    "papers": ("slosched.simulator.engine",),
    "predictors": ("slosched.predictors.ranker", "slosched.simulator.engine", "slosched.policies.slosched"),
    "reliability": ("slosched.policies.slosched", "slosched.lab.population"),
    "probe": ("slosched.predictors.probe_training",),
    "tune_rivals": ("slosched.policies.slosched", "slosched.lab.population"),
    "roofline": ("slosched.solvers.static.annealing",),
    "rungs": ("slosched.predictors.encoder_ranker", "slosched.predictors.transformer_training"),
    "simulator_speed": ("slosched.simulator.engine",),
    "slo_scale": ("slosched.simulator.engine", "slosched.policies.slosched"),
    "soak": ("slosched.integrations.vllm.adapter", "slosched.policies.slosched"),
    "static": ("slosched.solvers.static.annealing",),
    "static_cpsat": ("slosched.solvers.static.cpsat",),
    "tardiness": ("slosched.solvers.static.tardiness",),
    "traces": ("slosched.policies.slosched", "slosched.workloads.mixes"),
    "vllm": ("slosched.integrations.vllm.adapter", "slosched.policies.slosched"),
    "worth": (
        "slosched.predictors.blend",
        "slosched.predictors.encoder_ranker",
        "slosched.predictors.probe_training",
        "slosched.policies.slosched",
    ),
}
"""Modules that a result measures, with all they import: if they change, the result is stale. The key is the
name of the result, or its first words: `vllm` holds for `vllm_chaos`."""


def measured_modules(name: str) -> tuple[str, ...] | None:
    """The modules that a result of this name measures; None where nothing is said."""
    words = name.split("_")
    keys = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((MEASURED[key] for key in keys if key in MEASURED), None)


def study_options(about: str | None, out: str, *, draws: int, seed: int) -> argparse.ArgumentParser:
    """Options that all scripts share which run scenarios of the population: draws, seed, jobs, out."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=draws, help=f"random scenarios ({draws})")
    parser.add_argument(
        "--seed", type=int, default=seed, help=f"first seed ({seed}): below 10000 to tune, then to report"
    )
    parser.add_argument("--jobs", type=int, default=cores(), help="processes; all cores if not given")
    parser.add_argument("--out", type=Path, default=RESULTS / out, help=f"file (benchmarks/results/{out})")
    return parser


def measured(name: str) -> dict[str, object] | None:
    """Digest of the code that a result of this name measures, and the commit; None where nothing is said."""
    modules = measured_modules(name)
    if modules is None:
        return None
    about = provenance()
    return {"code": code_digest(*modules), "commit": about["commit"], "dirty": about["dirty"]}


def write_json(path: str | Path, payload: object) -> Path:
    """Write JSON with sorted keys in one move, so that a reader never sees half a file; returns the path."""
    target = Path(path)
    about = measured(target.stem)
    if about is not None and isinstance(payload, dict):
        payload = payload | {"measured": about}
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(target.suffix + ".partial")
    partial.write_text(json.dumps(payload, indent=1, sort_keys=True, allow_nan=False) + "\n")
    partial.replace(target)
    return target
