"""Our simulator beside NVIDIA's DynoSim (the Dynamo mocker), one core each, the same requests.

Both replay generated chat (lengths and arrivals as in the Azure conversation trace) under FCFS with the same
engine limits and no prefix cache, in turn, several times; the best run of each counts, since other work on
the machine only ever slows a run. DynoSim's step times are fixed in its wheel; ours are fitted to them by
probing, so both take about as many steps. DynoSim is timed by its own clock (without reading the trace), ours
by ours (with setting up, without compiling). Our `slosched` policy replays the first tenth for comparison.

DynoSim is installed from the package index into a virtual environment under out/, which needs 300 MB; where
that fails our figures stand alone and the reason is written beside them.

Run: python benchmarks/simulator_speed.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slosched.core.engine import DEFAULT_ENGINE, Engine

if TYPE_CHECKING:
    from slosched.core.outcome import Run
    from slosched.core.steptime import StepTimeModel

PACKAGE = "ai-dynamo-runtime==1.6.1"
TRACE_BLOCK_TOKENS = 512
REPEATS = 5
DIFFERENCES = (
    "Loads, lengths, arrivals and limits are the same; step times agree where no queue forms (see "
    "mean_tpot_ms). DynoSim has its own rules of admission and preemption: where memory binds it needs far "
    "more simulated time for the same requests, so there real_time_x flatters it and tokens per second us."
)


# --- in DynoSim's environment: only the standard library and dynamo ----------------------------------------


def dynosim(trace: str, options: dict[str, int], repeats: int) -> list[dict[str, float]]:
    """Replay a trace in Mooncake's format; the summary of each run."""
    from dynamo._core import run_mocker_trace_replay

    engine = {"backend": "vllm", "enable_prefix_caching": False, "enable_chunked_prefill": True, **options}
    return [
        run_mocker_trace_replay(
            [trace], extra_engine_args={"engine": engine}, trace_block_size=TRACE_BLOCK_TOKENS
        ).summary
        for _ in range(repeats)
    ]


def write_trace(path: str, requests: list[tuple[float, int, int]]) -> None:
    """Arrival [s], prompt and output tokens, in Mooncake's format with no shared block."""
    block = 0
    with open(path, "w") as stream:
        for arrival, prompt, output in requests:
            blocks = -(-prompt // TRACE_BLOCK_TOKENS)
            row = {
                "timestamp": 1e3 * arrival,
                "input_length": prompt,
                "output_length": output,
                "hash_ids": list(range(block, block + blocks)),
            }
            block += blocks
            stream.write(json.dumps(row) + "\n")


def serve(job: str) -> None:
    """Run the job in the file: a list of (requests, engine options, repeats); print the summaries."""
    one_core()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for requests, options, repeats in json.loads(Path(job).read_text()):
            trace = str(Path(folder) / "trace.jsonl")
            write_trace(trace, requests)
            keep = ("wall_time_ms", "duration_ms", "total_output_tokens", "completed_requests",
                    "mean_ttft_ms", "mean_tpot_ms", "mean_e2e_latency_ms", "median_itl_ms")  # fmt: skip
            summaries = dynosim(trace, options, repeats)
            results.append([{key: summary[key] for key in keep} for summary in summaries])
    print(json.dumps(results))


def one_core() -> None:
    """Keep this process on one core, where the system allows it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


# --- in our environment ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A load and a memory size, and how many prompt tokens a step with prefill has there."""

    name: str
    rate_per_s: float
    duration_s: float
    kv_blocks: int
    chunk_tokens: int
    max_num_seqs: int = 256


CASES = (
    Case("8 req/s", 8.0, 1000.0, 27_000, 1155),
    Case("overload", 40.0, 200.0, 27_000, 1800),
    Case("KV-bound", 20.0, 400.0, 2_000, 1155),
)


class DynoSim:
    """The wheel in its own virtual environment; `reason` says why it is absent, or is empty."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        self.reason = ""
        if not self._works():
            venv.create(folder, with_pip=True, clear=True)
            command = [str(self.python), "-m", "pip", "install", "--quiet", PACKAGE]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or not self._works():
                lines = [x for x in done.stderr.splitlines() if x.startswith("ERROR")] or [
                    "it does not import"
                ]
                self.reason = f"{PACKAGE} cannot be installed here: {lines[-1]}"

    def _works(self) -> bool:
        if not self.python.exists():
            return False
        command = [str(self.python), "-c", "import dynamo._core"]
        return subprocess.run(command, capture_output=True).returncode == 0

    def run(
        self, job: list[tuple[list[tuple[float, int, int]], dict[str, int], int]]
    ) -> list[list[dict[str, float]]]:
        """Summaries of the runs of each part of a job."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "job.json"
            path.write_text(json.dumps(job))
            command = [str(self.python), __file__, "--serve", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        result: list[list[dict[str, float]]] = json.loads(done.stdout)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", metavar="FILE", help="(internal) replay the job in FILE with DynoSim")
    parser.add_argument("--venv", type=Path, default=Path("out/dynosim"), help="DynoSim's environment")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    else:
        compare(DynoSim(arguments.venv))


def compare(rival: DynoSim) -> None:
    from common import RESULTS, environment, write_json

    one_core()
    cases = {}
    for case in CASES:
        step_time = fitted_to(rival, case.chunk_tokens) if not rival.reason else None
        cases[case.name] = row = measure(case, rival, step_time)
        print(case.name, json.dumps(row, indent=1))
    payload = {
        "what": "simulated output tokens, and simulated seconds (real_time_x), per second of wall time",
        "differences": DIFFERENCES,
        "rival": PACKAGE if not rival.reason else f"skipped: {rival.reason}",
        "repeats": REPEATS,
        "environment": environment(),
        "cases": cases,
    }
    write_json(RESULTS / "simulator_speed.json", payload)


def fitted_to(rival: DynoSim, chunk_tokens: int) -> StepTimeModel:
    """A linear model of DynoSim's steps, from single requests (prefill) and equal batches (decode).

    DynoSim gives a step with prefill a second fixed cost; ours spreads it over its prompt tokens.
    """
    from slosched.core.steptime import StepTimeModel

    options = {
        "num_gpu_blocks": 27_000,
        "block_size": 16,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
    }
    probes = [[(0.0, tokens, 2)] for tokens in (256, 2048)] + [
        [(0.0, tokens, 20)] for tokens in (128, 16_384)
    ]
    few, many, short, long = [runs[0] for runs in rival.run([(probe, options, 1) for probe in probes])]
    slope = (many["mean_ttft_ms"] - few["mean_ttft_ms"]) / (2048 - 256)
    fixed = few["mean_ttft_ms"] - 256 * slope
    kv = (long["mean_tpot_ms"] - short["mean_tpot_ms"]) / (16_384 - 128)
    return StepTimeModel(
        base_s=(short["mean_tpot_ms"] - 138 * kv) / 1e3,
        prefill_token_s=(slope + fixed / chunk_tokens) / 1e3,
        kv_token_s=kv / 1e3,
    )


def measure(case: Case, rival: DynoSim, step_time: StepTimeModel | None) -> dict[str, object]:
    """Both simulators in turn on one case."""
    import numpy as np

    from slosched.core.engine import EngineLimits
    from slosched.simulator import simulate
    from slosched.workloads import generate

    work = generate("chat", rate_per_s=case.rate_per_s, duration_s=case.duration_s, seed=1)
    limits = EngineLimits(max_num_seqs=case.max_num_seqs, kv_blocks=case.kv_blocks)
    engine = Engine(limits=limits, step_time=step_time or DEFAULT_ENGINE.step_time)
    requests = list(
        zip(work.arrival_s.tolist(), work.prompt_tokens.tolist(), work.output_tokens.tolist(), strict=True)
    )
    options = {
        "num_gpu_blocks": limits.kv_blocks, "block_size": limits.block_tokens,
        "max_num_seqs": limits.max_num_seqs, "max_num_batched_tokens": limits.max_num_batched_tokens,
    }  # fmt: skip
    tokens = int(work.output_tokens.sum())
    part = work.rows(np.arange(len(work) // 10))
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    simulate(part, "fcfs", engine=engine)  # compile
    for _ in range(REPEATS):
        if not rival.reason:
            theirs += rival.run([(requests, options, 1)])[0]
        ours.append(replayed(simulate(work, "fcfs", engine=engine)))
    simulate(part.rows(np.arange(50)), "slosched", engine=engine)  # compile
    searched = replayed(simulate(part, "slosched", engine=engine))
    result: dict[str, object] = {
        "requests": len(work),
        "output_tokens": tokens,
        "kv_blocks": limits.kv_blocks,
        "ours_fcfs": figures(tokens, ours),
        "ours_slosched_first_tenth": figures(int(part.output_tokens.sum()), [searched]),
    }
    if theirs:
        as_ours = [
            {"wall_s": run["wall_time_ms"] / 1e3, "simulated_s": run["duration_ms"] / 1e3,
             "mean_ttft_ms": run["mean_ttft_ms"], "mean_tpot_ms": run["mean_tpot_ms"]}
            for run in theirs
        ]  # fmt: skip
        result["dynosim_fcfs"] = figures(tokens, as_ours)
        best = (min(run["wall_s"] for run in runs) for runs in (as_ours, ours))
        result["ours_fcfs_times_faster"] = round(next(best) / next(best), 2)
    return result


def replayed(run: Run) -> dict[str, float]:
    """What a run of ours took and came to."""
    return {
        "wall_s": run.log.wall_s,
        "simulated_s": float(run.outcomes.finish_s.max()),
        "mean_ttft_ms": 1e3 * float(run.outcomes.ttft_s.mean()),
        "mean_tpot_ms": 1e3 * float(run.outcomes.tpot_s.mean()),
        "steps": run.log.steps,
        "preemptions": int(run.outcomes.preemptions.sum()),
    }


def figures(tokens: int, runs: list[dict[str, float]]) -> dict[str, float]:
    """Speed of the best run, and the spread of the others."""
    best = min(runs, key=lambda run: run["wall_s"])
    walls = sorted(run["wall_s"] for run in runs)
    return {
        "output_tokens_per_s": round(tokens / best["wall_s"]),
        "real_time_x": round(best["simulated_s"] / best["wall_s"], 1),
        "median_wall_s": round(walls[len(walls) // 2], 4),
        **{key: round(value, 4) for key, value in best.items()},
    }


if __name__ == "__main__":
    main()
