"""How much of the gap to the bound is the bound's looseness: what a schedule made in hindsight reaches.

Knowing all arrivals and lengths, the requests to drop, when each other one is due and the token budget of a
step are searched for, each trial a run of the simulator in order of due dates. What the best trial reaches
can be reached, so the optimum lies between it and the bound of `slosched.lab.bound`. A local search of a
thousand trials is no optimum: it, too, is only a bound, from below.

    python benchmarks/hindsight.py --jobs 2        # about a minute on two free cores
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import quality
from common import RESULTS, data_folder, engine_limits, environment, write_json
from rich.progress import Progress

from slosched.core.engine import Engine
from slosched.lab.bound import attainment_bound
from slosched.lab.parallel import Workers, cores
from slosched.policies.base import KeyPolicy
from slosched.simulator import simulate
from slosched.timing.presets import preset
from slosched.workloads import Workload
from slosched.workloads.mixes import mix

PRESET = "h100-llama-3.1-8b"
ENGINE = preset(PRESET)
MIX = "azure"
LOADS = (1.0, 1.3, 1.6)
SEED = 1
BUDGETS = (512, 768, 1024, 1280, 1536, 2048)
DECODE_S = 0.03
"""Seconds per output token behind the first due dates of requests with an end-to-end limit only."""
NEAR_S = 2.0
"""A request is exchanged for one that came within so many seconds of it."""


class Due(KeyPolicy):
    """Requests in the order of given due dates, by row."""

    name: ClassVar[str] = "due"
    static: ClassVar[bool] = True

    def __init__(self, due_s: Any) -> None:
        self.due_s = due_s

    def key(self, snapshot: Any, rows: Any) -> Any:
        """The due dates."""
        return self.due_s[rows]


@dataclass(frozen=True, slots=True)
class Trial:
    """A schedule: who is served at all, when each is due, and tokens a step."""

    keep: Any
    due_s: Any
    budget: int

    def value(self, work: Workload) -> float:
        """Share of the weight that keeps its limits."""
        rows = np.flatnonzero(self.keep)
        limits = replace(engine_limits(PRESET, MIX), max_num_batched_tokens=self.budget)
        run = simulate(
            work.rows(self.keep),
            Due(self.due_s[rows]),
            engine=Engine(limits=limits, step_time=ENGINE.step_time),
        )
        return float(work.weight[rows][run.outcomes.met].sum() / work.weight.sum())

    def changed(self, work: Workload, rng: np.random.Generator) -> Trial:
        """Serve one more, exchange one for another, move a due date, or change the budget."""
        kind, out, served = rng.random(), np.flatnonzero(~self.keep), np.flatnonzero(self.keep)
        if kind < 0.85 and len(out):
            keep, more = self.keep.copy(), rng.choice(out)
            keep[more] = True
            near = served[np.abs(work.arrival_s[served] - work.arrival_s[more]) < NEAR_S]
            if kind >= 0.5 and len(near):
                keep[rng.choice(near)] = False
            return replace(self, keep=keep)
        if kind < 0.95:
            due_s = self.due_s.copy()
            due_s[rng.choice(served)] += rng.normal()
            return replace(self, due_s=due_s)
        return replace(self, budget=int(rng.choice(BUDGETS)))


def measure(trials: int, cell: tuple[float, int, float]) -> dict[str, Any]:
    """Ours with real forecasts and with true lengths, hindsight, and the bound, on one run."""
    load, requests, rate = cell
    limits = engine_limits(PRESET, MIX)
    works = [
        mix(
            MIX, rate_per_s=rate * load, requests=requests, seed=SEED, data_dir=data_folder(),
            model=ENGINE.step_time, limits=limits, forecast=forecast,
        )
        for forecast in ("predictor-5", "oracle")
    ]  # fmt: skip
    ours = []
    for work in works:
        out = simulate(work, "slosched", engine=Engine(limits=limits, step_time=ENGINE.step_time)).outcomes
        ours.append(float(work.weight[out.met].sum() / work.weight.sum()))
    met = out.met
    whole_s = work.arrival_s + work.e2e_s - (work.output_tokens - 1) * DECODE_S
    due_s = np.minimum(work.arrival_s + work.ttft_s, whole_s)
    tried = [Trial(met, due_s, budget) for budget in BUDGETS]
    values = [trial.value(work) for trial in tried]
    best, value = tried[int(np.argmax(values))], max(values)
    rng = np.random.default_rng(SEED)
    for _ in range(trials):
        other = best.changed(work, rng)
        found = other.value(work)
        if found >= value:
            best, value = other, found
    bound = attainment_bound(work, Engine(limits=limits, step_time=ENGINE.step_time))
    reached = max(value, *ours)
    return {
        "load": load, "ours": round(ours[0], 4), "ours_oracle": round(ours[1], 4),
        "hindsight": round(reached, 4), "bound": round(bound, 4),
        "gap": round(bound - ours[0], 4), "gap_that_is_real_at_least": round(reached - ours[0], 4),
        "looseness_at_most": round(bound - reached, 4),
    }  # fmt: skip


def main() -> None:
    """Search, and print one line a load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=250)
    parser.add_argument("--out", type=Path, default=RESULTS / "hindsight.json")
    options = parser.parse_args()
    rate = json.loads((RESULTS / "evidence.json").read_text())["capacity_rps"][MIX]
    cells = [(load, options.requests, rate) for load in LOADS]
    with Workers(options.trials, options.jobs) as workers, Progress() as bar:
        show: Callable[[int, int], None] = partial(quality.advance, bar, bar.add_task("", total=len(cells)))
        rows = workers.map(measure, cells, show)
    write_json(
        options.out,
        {
            "environment": environment(), "data": "public traces" if data_folder() else "generators",
            "engine": ENGINE.name, "mix": MIX, "seed": SEED, "requests": options.requests,
            "trials": options.trials, "rows": rows,
        },
    )  # fmt: skip
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
