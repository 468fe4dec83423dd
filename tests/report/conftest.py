"""Runs made by hand, so that every figure has a closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.metrics import Metrics
from slosched.core.outcome import Outcomes, Run, RunLog
from slosched.core.workload import Workload
from slosched.lab.comparison import Comparison, Point


def golden_workload() -> Workload:
    """Six requests in three classes: chat (TTFT + TPOT), code (e2e), batch (best effort)."""
    inf = np.inf
    arrival = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    plain = Workload.plain(arrival, np.full(6, 100), np.array([11, 11, 21, 1, 11, 11]), name="golden")
    return replace(
        plain,
        ttft_s=np.array([1.0, 1.0, inf, inf, inf, inf]),
        tpot_s=np.array([0.1, 0.1, inf, inf, inf, inf]),
        e2e_s=np.array([inf, inf, 3.0, 3.0, inf, inf]),
        weight=np.array([2.0, 2.0, 1.0, 1.0, 1.0, 1.0]),
        class_index=np.array([0, 0, 1, 1, 2, 2]),
        classes=("chat", "code", "batch"),
    )


def golden_run(policy: str = "fcfs", seed: int = 0) -> Run:
    """Requests 0, 2 and 4 keep their limits, 1 misses TPOT, 3 misses e2e, 5 never finishes."""
    nan = np.nan
    outcomes = Outcomes(
        workload=golden_workload(),
        arrival_s=golden_workload().arrival_s,
        admitted_s=np.array([0.0, 1.5, 2.0, 6.0, 4.0, nan]),
        first_token_s=np.array([0.5, 2.0, 2.5, 7.0, 5.0, nan]),
        finish_s=np.array([1.0, 6.0, 4.5, 7.0, 10.0, nan]),
        preemptions=np.array([0, 1, 0, 0, 2, 0]),
        recomputed_tokens=np.array([0, 50, 0, 0, 70, 0]),
        cached_tokens=np.zeros(6, dtype=np.int64),
    )
    log = RunLog(
        steps=40,
        plans=3,
        plan_s=np.array([1e-5, 2e-5, 3e-5]),
        depth_time_s=np.array([0.0, 2.0, 6.0, 10.0]),
        depth_waiting=np.array([0, 3, 1, 0]),
        depth_running=np.array([1, 2, 2, 0]),
        busy_s=8.0,
        wall_s=0.1,
    )
    return Run(policy=policy, engine="simulator", outcomes=outcomes, log=log, seed=seed)


@pytest.fixture
def run() -> Run:
    """The golden run."""
    return golden_run()


def slot_run(policy: str, rate_rps: float, seed: int, count: int = 120, slots: int = 8) -> Run:
    """A toy engine of independent slots: enough to make queues, misses and pictures."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate_rps, count))
    output = rng.integers(10, 400, count)
    kind = rng.integers(0, 3, count)
    service = 0.02 * output
    inf = np.inf
    plain = Workload.plain(arrival, rng.integers(50, 900, count), output, name="toy", source="a toy")
    work = replace(
        plain,
        ttft_s=np.where(kind == 0, 2.0, inf),
        tpot_s=np.where(kind == 0, 0.05, inf),
        e2e_s=np.where(kind == 1, 10.0, np.where(kind == 2, 60.0, inf)),
        class_index=kind,
        classes=("chat", "code", "batch"),
    )
    key = {"fcfs": arrival, "slosched": 0.02 * output + kind, "edf": arrival + kind}.get(
        policy, np.random.default_rng([seed, *policy.encode()]).random(count) * arrival
    )
    free, admitted, now = [0.0] * slots, np.zeros(count), 0.0
    waiting: list[int] = []
    depth: list[tuple[float, int]] = []
    todo = list(range(count))
    while todo or waiting:
        now = max(now, min(free))
        if not waiting and todo:
            now = max(now, float(arrival[todo[0]]))
        while todo and arrival[todo[0]] <= now:
            waiting.append(todo.pop(0))
        chosen = min(waiting, key=lambda row: (key[row], row))
        waiting.remove(chosen)
        admitted[chosen] = now
        free[free.index(min(free))] = now + service[chosen]
        depth.append((now, len(waiting)))
    outcomes = Outcomes(
        workload=work,
        arrival_s=work.arrival_s,
        admitted_s=admitted,
        first_token_s=admitted + 0.1,
        finish_s=admitted + 0.1 + service,
        preemptions=np.zeros(count, dtype=np.int64),
        recomputed_tokens=np.zeros(count, dtype=np.int64),
        cached_tokens=np.zeros(count, dtype=np.int64),
    )
    times, lengths = zip(*depth, strict=True)
    log = RunLog(
        steps=count,
        plans=count,
        plan_s=np.full(count, 1e-5),
        depth_time_s=np.array(times),
        depth_waiting=np.array(lengths),
        depth_running=np.full(count, slots),
        busy_s=float(times[-1]),
        wall_s=0.1,
    )
    return Run(policy=policy, engine="toy", outcomes=outcomes, log=log, seed=seed)


TOY_POLICIES = ("fcfs", "slosched", "edf", "sjf", "srpt", "hrrn", "ltr", "huang")


def toy_comparison(policies: tuple[str, ...] = TOY_POLICIES) -> Comparison:
    """All toy policies at four loads of which the lowest has no queue, three seeds."""
    rates, capacity = (0.1, 1.4, 2.0, 2.8), 2.0
    points = tuple(
        Point(policy=p, load=r / capacity, rate_rps=r, seed=s, metrics=Metrics.of(slot_run(p, r, s)))
        for r in rates
        for s in range(3)
        for p in policies
    )
    return Comparison(
        points=points,
        workload="toy",
        source="made for a test",
        about=("A toy & nothing more.",),
        sustained_rps=capacity,
        details=tuple(slot_run(p, 2.8, 0) for p in policies),
        detail_rate_rps=2.8,
    )


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """The toy comparison."""
    return toy_comparison()
