"""What a plan costs the engine's thread, by the number of waiting requests.

    python benchmarks/plan_times.py              # about a minute; on a quiet machine

Some 128 answers run, and 100, 1,000 or 10,000 requests wait, with limits on the first token and the pace. An
engine plans every 20 ms of its clock; kernels are compiled before. Two times are given. A plan as it usually
is; and one that hands the state over to the thread that compares rules (that thread does nothing here), as
some plans a second do. Writes ``benchmarks/results/plan_times.json``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import RESULTS, environment, write_json

from slosched import LengthForecast, Request, Slo, Snapshot
from slosched.core.engine import find_engine
from slosched.core.table import RequestTable
from slosched.planner.planner import Present
from slosched.policies.slosched import Slosched

RUNNING = 128
WAITING = (100, 1_000, 10_000)
STEP_S = 0.02
WARM_UP = 50
"""First plans, left out."""


class Nobody:
    """Takes over what a comparison needs, and compares nothing."""

    def submit(self, present: Present) -> None:
        """Look away."""


def state(waiting: int, rng: np.random.Generator) -> Snapshot:
    """An engine with answers that run and a queue."""
    table, made = RequestTable(waiting + RUNNING), []
    for place in range(waiting + RUNNING):
        made.append(
            table.add(
                Request(
                    request_id=str(place),
                    prompt_tokens=int(rng.integers(50, 3000)),
                    forecast=LengthForecast.quantiles({0.1: 50, 0.9: 500}),
                    slo=Slo(ttft_s=float(rng.uniform(0.5, 20)), tpot_s=0.05),
                    arrival_s=place / waiting * 5,
                )
            )
        )
    rows = np.array(made)
    running = rows[:RUNNING]
    table.computed_tokens[running], table.generated_tokens[running] = table.prompt_tokens[running], 5
    table.first_token_s[running] = 4.0
    empty = Snapshot.of([], engine=find_engine("h100-llama-3.1-8b"))
    return replace(empty, table=table, running=running, waiting=rows[RUNNING:], now_s=5.0, free_blocks=5000)


def plan_ms(waiting: int, plans: int, hands_over: bool) -> np.ndarray:
    """Milliseconds of each plan, shape (plans - WARM_UP,)."""
    snapshot, policy = state(waiting, np.random.default_rng(0)), Slosched()
    planner, took = policy.planner, []
    planner._background = Nobody()  # type: ignore[assignment]
    for step in range(plans):
        rows = snapshot.running
        snapshot.table.generated_tokens[rows] += 1
        snapshot.table.computed_tokens[rows] += 1
        planner._next_s = -np.inf if hands_over else snapshot.now_s + step * STEP_S + 100.0
        now = replace(snapshot, now_s=5.0 + step * STEP_S, step=step)
        begin = time.perf_counter()
        policy.plan(now)
        took.append(1e3 * (time.perf_counter() - begin))
    return np.array(took[WARM_UP:])


def main() -> None:
    """Time plans, print and write the quantiles."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plans", type=int, default=600, help="plans of each kind (600)")
    parser.add_argument("--out", type=Path, default=RESULTS / "plan_times.json", help="file")
    options = parser.parse_args()
    plan_ms(100, WARM_UP + 10, True)  # compiles
    rows = []
    for waiting in WAITING:
        for hands_over in (False, True):
            p50, p99 = np.quantile(plan_ms(waiting, options.plans, hands_over), [0.5, 0.99])
            kind = "hands over" if hands_over else "as usual"
            print(f"{waiting:6} waiting, {kind:10}: p50 {p50:.3f} ms, p99 {p99:.3f} ms", flush=True)
            rows.append({"waiting": waiting, "hands_over": hands_over, "p50_ms": p50, "p99_ms": p99})
    write_json(options.out, {"environment": environment(), "running": RUNNING, "rows": rows})


if __name__ == "__main__":
    main()
