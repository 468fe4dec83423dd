"""Continuous batching: the event model against the truth, the planner's time, and rolling use.

Run: python benchmarks/continuous.py [--quick] [--only SECTION ...] [--out FILE]

Sections: agreement (evaluator against the token-by-token reference), speed (nanoseconds per
request-evaluation), simulator (predicted against simulated latencies), steps (time of a plan at 1,000 and
10,000 waiting), wakeup (delay of the engine's thread beside the background search), cold (first plans of a
cold process), rolling (violations against the simple policies). Sections not run keep their last figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json

from slosched.core.engine import Engine
from slosched.core.limits import EngineLimits
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.table import Floats
from slosched.planner import model as c
from slosched.planner import reference
from slosched.planner.plan import Plan
from slosched.planner.planner import PlannerParams
from slosched.planner.prediction import Prediction, predict
from slosched.planner.thread import BackgroundSearch, Task
from slosched.policies.base import Policy
from slosched.policies.slosched import Slosched
from slosched.simulator import simulate
from slosched.simulator.engine import table_of
from slosched.timing.presets import preset
from slosched.workloads import Workload, generate
from slosched.workloads.noise import with_forecast

PRESET = "h100-llama-3.1-8b"
SIMPLE = ("fcfs", "edf", "edf+d", "least-laxity", "least-laxity+d", "sjf", "sjf+d", "hrrn", "hrrn+d")
AIM = np.array(c.DEFAULT_AIM)


def quantiles(values: Floats, scale: float = 1.0) -> dict[str, float]:
    """Median, 90th and 99th percentile and maximum."""
    p50, p90, p99 = (float(q) * scale for q in np.percentile(values, [50, 90, 99]))
    return {"p50": p50, "p90": p90, "p99": p99, "max": float(np.max(values)) * scale}


# ---------------------------------------------------------------- evaluator


def agreement(quick: bool) -> dict[str, Any]:
    """Random queues through the evaluator and the reference."""
    cases, worst, differ, served = 1000 if quick else 10_000, 0.0, 0, 0
    for seed in range(cases):
        jobs, running, order, engine, aim, cap = reference.random_case(np.random.default_rng((9, seed)))
        scratch = c.scratch_for(jobs)
        value = c.evaluate(jobs, running, order, len(order), engine, aim, cap, scratch)
        truth = reference.evaluate(jobs, running, order.tolist(), engine, aim.tolist(), cap)
        worst = max(worst, abs(value - truth.value) / max(1.0, abs(truth.value)))
        hard = aim.copy()
        hard[[c.SOFT_S, c.SOFT_LEAD, c.SOFT_TPOT]] = 1e-9, 0.0, 1e-9
        for i, finish_s in truth.finish_s.items():
            served += 1
            worst = max(
                worst, abs(scratch.finish_s[i] / finish_s - 1), abs(scratch.first_s[i] / truth.first_s[i] - 1)
            )
            mine = c.score(jobs, i, scratch.first_s[i], scratch.finish_s[i], engine[c.NOW], hard)
            differ += (
                abs(
                    mine - reference.chance(jobs[i], truth.first_s[i], finish_s, engine[c.NOW], hard.tolist())
                )
                > 1e-6
            )
    return {"cases": cases, "requests": served, "attainment_differs": differ, "largest_relative_error": worst}


def crowded(n: int, slots: int) -> Snapshot:
    """An H100 engine with all slots busy but one and n requests waiting."""
    work = generate("mixed", rate_per_s=20.0, duration_s=(n + slots) / 14 + 60, seed=1)
    work = work.rows(np.arange(n + slots))
    table = table_of(work)
    busy = slice(0, slots)
    table.generated_tokens[busy] = 6
    table.computed_tokens[busy] = table.prompt_tokens[busy] + 5
    table.first_token_s[busy] = work.arrival_s[busy] + 1
    engine = preset(PRESET)
    return Snapshot(
        now_s=float(work.arrival_s[-1]), table=table, waiting=np.arange(slots, n + slots),
        running=np.arange(slots - 1), engine=engine.with_limits(max_num_seqs=slots), free_blocks=20_000,
    )  # fmt: skip


def speed(quick: bool) -> list[dict[str, Any]]:
    """Nanoseconds of CPU time per request, running and waiting, in the evaluations of a search."""
    rows = []
    for slots in (8, 32, 128, 256):
        for n in (50, 256, 1000):
            s = crowded(n, slots)
            jobs, engine = c.jobs_of(s), c.engine_of(s)
            running, scratch = len(s.running), c.scratch_for(jobs)
            order, rng = np.arange(running, running + n), np.array([7], dtype=np.uint64)
            moves = max(4, 2000 // (n + slots))
            taken = []
            for _ in range(20 if quick else 100):
                begin = time.thread_time_ns()
                c.search(jobs, running, order, n, n, engine, AIM, np.inf, moves, rng, scratch)
                taken.append((time.thread_time_ns() - begin) / ((moves + 1) * (n + running)))
            rows.append(
                {"slots": slots, "n": n, "ns_min": min(taken[1:]), "ns_median": float(np.median(taken[1:]))}
            )
    return rows


# ---------------------------------------------------------------- model against simulator


class Capture(Policy):
    """First come, first served with a prefill limit; keeps the model's prediction at one moment."""

    name = "capture"
    paces = True

    def __init__(self, at_s: float, prefill_tokens: int | None) -> None:
        self.at_s, self.prefill_tokens = at_s, prefill_tokens
        self.found: Prediction | None = None
        self.waiting = self.running = 0
        self.now_s = 0.0

    def plan(self, snapshot: Snapshot) -> Plan:
        """The engine's own order."""
        if self.found is None and snapshot.now_s >= self.at_s:
            self.found = predict(snapshot, snapshot.waiting, self.prefill_tokens)
            self.now_s = snapshot.now_s
            self.waiting, self.running = len(snapshot.waiting), len(snapshot.running)
        return Plan(
            snapshot=snapshot, policy=self.name, order=snapshot.waiting, prefill_tokens=self.prefill_tokens
        )


def against_simulator(quick: bool) -> list[dict[str, Any]]:
    """Errors of predicted latencies on queues from overload, lengths known, no more arrivals.

    Relative to the latency, and, for "ahead", the mean error in seconds over the mean time still ahead.
    """
    engine = preset(PRESET)
    settings: dict[str, tuple[dict[str, Any], int | None]] = {
        "256 slots": ({}, None),
        "256 slots, 512 prompt tokens a step": ({}, 512),
        "256 slots, 128 prompt tokens a step": ({}, 128),
        "KV cache for 40,000 tokens": ({"kv_blocks": 2500}, None),
        "8 slots": ({"max_num_seqs": 8}, None),
        "budget of 512 tokens": ({"max_num_batched_tokens": 512}, None),
    }
    rows = []
    for name, (changes, cap) in settings.items():
        limits = replace(engine.limits, **changes)
        for seed in range(1 if quick else 5):
            work = generate("mixed", rate_per_s=60.0, duration_s=20.0, seed=seed)
            keep = work.prompt_tokens + work.output_tokens <= limits.kv_tokens
            work = with_forecast(work.rows(keep), "oracle")
            capture = Capture(float(work.arrival_s[-1]), cap)
            out = simulate(work, capture, engine=Engine(limits=limits, step_time=engine.step_time)).outcomes
            found = capture.found
            assert found is not None
            waits = np.arange(len(found.rows)) >= capture.running
            everybody = np.ones(len(waits), dtype=bool)
            row: dict[str, Any] = {
                "engine": name, "waiting": capture.waiting, "running": capture.running,
                "preemptions": int(out.preemptions.sum()),
            }  # fmt: skip
            passed = capture.now_s - work.arrival_s[found.rows]
            for latency, expected, real, of in (
                ("ttft", found.ttft_s, out.ttft_s, waits),
                ("tpot", found.tpot_s, out.tpot_s, work.output_tokens[found.rows] > 1),
                ("e2e", found.e2e_s, out.e2e_s, everybody),
            ):
                a, b = expected[of], real[found.rows][of]
                row[latency] = float(np.abs(a / b - 1).mean())
                row[f"{latency}_bias"] = float((a / b - 1).mean())
                if latency != "tpot":
                    row[f"{latency}_ahead"] = float(np.abs(a - b).mean() / (b - passed[of]).mean())
            rows.append(row)
    means: list[dict[str, Any]] = []
    for name in settings:
        of_name = [row for row in rows if row["engine"] == name]
        mean = {key: float(np.mean([row[key] for row in of_name])) for key in of_name[0] if key != "engine"}
        means.append({"engine": name, "queues": len(of_name), **mean})
    return means


# ---------------------------------------------------------------- time of a plan


class Enough(Exception):
    """All plans wanted are timed."""


class Timed(Policy):
    """Times the plans of a policy after the first `skip` and stops the run after `plans` of them."""

    name = "timed"
    paces = True

    def __init__(self, inner: Policy, skip: int, plans: int) -> None:
        self.inner, self.skip, self.plans = inner, skip, plans
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.waiting: list[int] = []
        self.seen = 0

    def plan(self, snapshot: Snapshot) -> Plan:
        """The inner policy's plan."""
        wall, cpu = time.perf_counter(), time.thread_time()
        made = self.inner.plan(snapshot)
        cpu_s, wall_s = time.thread_time() - cpu, time.perf_counter() - wall
        self.seen += 1
        if self.seen > self.skip:
            self.cpu.append(cpu_s)
            self.wall.append(wall_s)
            self.waiting.append(len(snapshot.waiting))
        if len(self.cpu) == self.plans:
            raise Enough
        return made


def waiting_crowd(n: int) -> Workload:
    """So many requests at once, then as many a second as an H100 can about serve."""
    work = generate("mixed", rate_per_s=40.0, duration_s=(n + 3000) / 38, seed=0)
    return work.rows(np.arange(len(work)), arrival_s=np.maximum(0.0, np.arange(len(work)) - n) / 40.0)


def steps(quick: bool) -> list[dict[str, Any]]:
    """CPU and wall time of plans; the live mode stops searching after 0.3 ms of the thread's CPU time."""
    rows = []
    for n in (1000, 10_000):
        work = waiting_crowd(n)
        modes: dict[str, Callable[[], Slosched]] = {
            "0.3 ms budget": lambda: Slosched(clock=time.thread_time, budget_s=3e-4),
            "by moves": Slosched,
        }
        for mode, policy in modes.items():
            timed = Timed(policy(), 100, 300 if quick else 2000)
            with suppress(Enough):
                simulate(work, timed)
            rows.append(
                {
                    "waiting": n,
                    "mode": mode,
                    "mean_waiting": float(np.mean(timed.waiting)),
                    "plans": len(timed.cpu),
                    "cpu_ms": quantiles(np.array(timed.cpu), 1e3),
                    "wall_ms": quantiles(np.array(timed.wall), 1e3),
                }
            )
    return rows


def wakeup(quick: bool) -> dict[str, Any]:
    """How late the engine's thread wakes from a sleep of 2 ms, with the search idle and at work, in turns."""
    s = crowded(256, 64)
    jobs, engine, running = c.jobs_of(s), c.engine_of(s), len(s.running)
    search = BackgroundSearch(window=32, aim=AIM, moves=10**9)
    late: dict[str, list[float]] = {"idle": [], "searching": []}
    version = 0
    for turn in range(6 if quick else 40):
        mode = "searching" if turn % 2 else "idle"
        for step in range(100):
            if mode == "searching" and step % 5 == 0:  # a new task every 10 ms, as from an engine
                version += 1
                order = np.arange(running, running + 256)
                search.submit(Task(version=version, jobs=jobs, running=running, order=order, engine=engine))
            begin = time.perf_counter()
            time.sleep(0.002)
            late[mode].append(time.perf_counter() - begin - 0.002)
            search.take(version)
        search.submit(Task(version=-1, jobs=jobs[:0], running=0, order=np.empty(0, np.int64), engine=engine))
        search.wait(0.05)
    search.close()
    idle, busy = (quantiles(np.array(late[mode]), 1e3) for mode in ("idle", "searching"))
    return {"late_ms_idle": idle, "late_ms_searching": busy, "p99_ratio": busy["p99"] / idle["p99"],
            "p50_ratio": busy["p50"] / idle["p50"], "sleeps": len(late["idle"])}  # fmt: skip


COLD = """
import time
begin = time.perf_counter()
from slosched import LengthForecast, Request, Slo, Snapshot
from slosched.policies.slosched import Slosched
from slosched.warmup import PLANNER_KERNELS
imported = time.perf_counter()
queue = [Request(request_id=str(i), prompt_tokens=100 + i, forecast=LengthForecast.lognormal(50, 0.3),
                 slo=Slo(e2e_s=5.0)) for i in range(200)]
snapshot, live = Snapshot.of(queue), {live}
policy = Slosched(background=live)
start = time.perf_counter()
policy.plan(snapshot)
first, worst, plans = time.perf_counter() - start, 0.0, 1
while live and not PLANNER_KERNELS.ready:
    start = time.perf_counter()
    policy.plan(snapshot)
    worst, plans = max(worst, time.perf_counter() - start), plans + 1
    time.sleep(0.005)
policy.close()
worst = max(first, worst)
print({{"import_s": imported - begin, "first_plan_s": first, "worst_plan_s": worst, "plans": plans}})
"""


def cold(quick: bool) -> dict[str, Any]:
    """Import and first plan of a fresh process: kernels cached, and live without any cache."""

    def run(live: bool, cache: str | None) -> dict[str, float]:
        env = dict(os.environ) | ({"NUMBA_CACHE_DIR": cache} if cache else {})
        done = subprocess.run([sys.executable, "-c", COLD.format(live=live)], env=env, capture_output=True,
                              text=True, check=True)  # fmt: skip
        found: dict[str, float] = json.loads(done.stdout.replace("'", '"'))
        return found

    repeats = 2 if quick else 5
    run(False, None)  # fill the cache
    cached = [run(False, None) for _ in range(repeats)]
    compiling = []
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            compiling.append(run(True, folder))
    total = sorted(r["import_s"] + r["first_plan_s"] for r in cached)
    return {
        "cached_import_to_first_plan_s": {
            "min": total[0],
            "median": float(np.median(total)),
            "max": total[-1],
        },
        "cached_first_plan_s": float(np.median([r["first_plan_s"] for r in cached])),
        "compiling_first_plan_s": max(r["first_plan_s"] for r in compiling),
        "compiling_worst_plan_s": max(r["worst_plan_s"] for r in compiling),
        "compiling_plans": [r["plans"] for r in compiling],
    }


# ---------------------------------------------------------------- rolling use


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolling:
    """Set-up of the rolling comparison: 32 slots, step time linear in requests and context."""

    requests: int = 2000
    slots: int = 32
    sigma: float = 0.3
    block: int = 100

    @property
    def step_time(self) -> StepTimeModel:
        """Seconds of a step."""
        return StepTimeModel(base_s=16e-3, prefill_token_s=0.06e-3, sequence_s=0.25e-3, kv_token_s=0.9e-6)

    def workload(self, load: float, seed: int, weighted: bool) -> tuple[Workload, EngineLimits]:
        """Requests in blocks of high and low rate, and the engine's limits."""
        rng, n, m = np.random.default_rng((41, seed)), self.requests, self.slots
        prompt = np.clip(rng.lognormal(4.8, 1.1, n), 4, 2048).round().astype(np.int64)
        output = np.clip(rng.lognormal(5.0, 0.9, n), 4, 1024).round().astype(np.int64)
        context = m * float((prompt + output / 2).mean())
        tau_s = float(self.step_time.predict(sequences=m, kv_tokens=context))
        own_s = prompt * self.step_time.prefill_token_s + output * tau_s / m
        factor = np.where(np.arange(n) // self.block % 2 == 0, 1.4, 0.6)
        arrival_s = np.cumsum(rng.exponential(float(own_s.mean()) / load, n) / factor)
        end = rng.random(n) < 0.5
        patience, first = rng.choice([3.0, 10.0, 30.0], n), rng.choice([1.0, 5.0, 20.0], n)
        work = Workload.plain(arrival_s, prompt, output, name=f"rolling-{load:g}-{seed}")
        work = replace(
            work,
            e2e_s=np.where(end, 1.3 * output * tau_s + patience, np.inf),
            ttft_s=np.where(end, np.inf, first),
            tpot_s=np.where(end, np.inf, 3 * tau_s),
            weight=rng.choice([1.0, 2.0, 4.0, 8.0], n, p=[0.4, 0.3, 0.2, 0.1]) if weighted else np.ones(n),
        )
        blocks = int(1.3 * m * float((prompt + output).mean())) // 16
        limits = EngineLimits(max_num_seqs=m, max_num_batched_tokens=2048, kv_blocks=max(blocks, 250))
        return with_forecast(work, f"lognormal:{self.sigma:g}", seed=seed), limits


OURS: dict[str, Callable[[], Policy]] = {
    "slosched": Slosched,
    "slosched without starvation bound": lambda: Slosched(starvation_s=1e9),
}
"""Simple policies let hopeless requests wait for ever; the default of ours does not."""


def rolling(quick: bool) -> list[dict[str, Any]]:
    """Violated weight of every simple policy and of ours, by load."""
    setup = Rolling(requests=400) if quick else Rolling()
    rows: list[dict[str, Any]] = []
    for weighted in (False, True):
        for load in (0.95, 1.2):
            violated: dict[str, list[float]] = {}
            for seed in range(1 if quick else 3):
                work, limits = setup.workload(load, seed, weighted)
                for name in (*SIMPLE, *OURS):
                    policy = OURS[name]() if name in OURS else name
                    out = simulate(
                        work, policy, engine=Engine(limits=limits, step_time=setup.step_time)
                    ).outcomes
                    share = float(work.weight[~out.met].sum() / work.weight.sum())
                    violated.setdefault(name, []).append(share)
            mean = {name: float(np.mean(values)) for name, values in violated.items()}
            best = min(SIMPLE, key=lambda name: mean[name])
            row: dict[str, Any] = {"load": load, "weighted": weighted, "requests": setup.requests}
            row |= {"violations": mean, "by_seed": violated, "best_simple": best}
            for name in OURS:
                row[f"{name}: ratio"] = mean[name] / mean[best] if mean[best] > 0 else None
            rows.append(row)
            print(json.dumps({key: value for key, value in row.items() if key != "by_seed"}), flush=True)
    return rows


SECTIONS: dict[str, Callable[[bool], Any]] = {
    "agreement": agreement,
    "speed": speed,
    "simulator": against_simulator,
    "steps": steps,
    "wakeup": wakeup,
    "cold": cold,
    "rolling": rolling,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it works")
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=RESULTS / "continuous.json")
    arguments = parser.parse_args()
    payload: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    payload["planner"] = {name: getattr(PlannerParams(), name) for name in PlannerParams.__slots__}
    for name in arguments.only:
        begin = time.perf_counter()
        figures = SECTIONS[name](arguments.quick)
        payload[name] = {"figures": figures, "quick": arguments.quick, "environment": environment(),
                         "wall_s": round(time.perf_counter() - begin, 1)}  # fmt: skip
        write_json(arguments.out, payload)
        print(name, json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
