"""How far the order that slosched chose at a step is from the best one, on its own objective, proven.

At five random plans of every run with enough of a queue, the problem that the planner has just worked on is
kept: jobs, engine, prefill limit and its order. Then all orders are tried in which some places are permuted
and the rest stays: the first eight places; eight random ones among the first 64; and the whole queue, thinned
to eight requests at random and planned from the start with the same search effort. The best is the proven
optimum of that neighbourhood, in the last case of the problem. For whole queues beyond eight requests no
bound on this objective is known; there the best order that 20,000 further moves find stands for it, without
proof.

    python benchmarks/step_gaps.py --jobs 2        # about two minutes on two free cores
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import quality
from common import RESULTS, data_folder, engine_limits, environment, write_json
from numba import njit
from rich.progress import Progress

from slosched.core.engine import Engine
from slosched.lab.parallel import Workers, cores
from slosched.planner import model as c
from slosched.planner.planner import PlannerParams
from slosched.policies.slosched import Slosched
from slosched.simulator import simulate
from slosched.timing.presets import preset
from slosched.workloads.mixes import MIXES, mix

PRESET = "h100-llama-3.1-8b"
ENGINE = preset(PRESET)
FORECAST = "predictor-5"
LOADS = (1.3, 1.6)
FIRST_SEED = 60
SAMPLES = 5
EXACT = 8
"""Places permuted, at most: 40,320 orders."""
HEAD = 64
LONG_SEARCH = 20_000
KINDS = ("head", "places", "thinned", "search")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to sample plans from."""

    mix: str
    load: float
    rate_rps: float
    requests: int
    seed: int


class Sampled(Slosched):
    """The policy, keeping a random sample of the problems its planner has solved."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.kept: list[dict[str, Any]] = []
        self._seen, self._draw = 0, np.random.default_rng(seed)

    def plan(self, snapshot: Any) -> Any:
        """Plan, and perhaps keep the problem."""
        last: dict[str, Any] = {}

        def spy(*args: Any) -> float:
            value: float = _search(*args)
            last.update(_SEARCH.bind(*args).arguments)
            return value

        with patch.object(c, "search", spy):
            plan = super().plan(snapshot)
        if last and last["count"] >= EXACT:
            self._seen += 1
            place = len(self.kept) if self._seen <= SAMPLES else int(self._draw.integers(self._seen))
            if place < SAMPLES:
                copied = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in last.items()}
                self.kept[place : place + 1] = [copied]
        return plan


_search = c.search
_SEARCH = inspect.signature(c.search.py_func)
_EVALUATE = inspect.signature(c.evaluate.py_func)


def value(problem: dict[str, Any], order: Any) -> float:
    """What an order is worth to the planner."""
    changed = problem | {"order": order, "count": len(order), "scratch": c.scratch_for(problem["jobs"])}
    found: float = c.evaluate(*(changed[name] for name in _EVALUATE.parameters))
    return found


def best_of_places(problem: dict[str, Any], order: Any, places: Any) -> float:
    """Largest value over all permutations of some places of an order."""
    work = order.copy()
    changed = problem | {"order": work, "count": len(work), "scratch": c.scratch_for(problem["jobs"])}
    found: float = _best(work, places, tuple(changed[name] for name in _EVALUATE.parameters))
    return found


@njit(nogil=True)
def _best(work: Any, places: Any, arguments: Any) -> float:
    """Try all permutations of `places` of `work`, which is among the arguments of `evaluate` (Heap, 1963)."""
    n = len(places)
    turn = np.zeros(n, np.int64)
    best: float = c.evaluate(*arguments)
    i = 1
    while i < n:
        if turn[i] < i:
            a, b = places[0 if i % 2 == 0 else turn[i]], places[i]
            work[a], work[b] = work[b], work[a]
            best = max(best, c.evaluate(*arguments))
            turn[i] += 1
            i = 1
        else:
            turn[i] = 0
            i += 1
    return best


def searched(problem: dict[str, Any], order: Any, moves: int, seed: int) -> Any:
    """A copy of an order after further search."""
    better = order.copy()
    changed = problem | {
        "order": better, "count": len(better), "moves": moves, "scratch": c.scratch_for(problem["jobs"]),
        "rng": np.array([2 * seed + 1], dtype=np.uint64),
    }  # fmt: skip
    c.search(*(changed[name] for name in _SEARCH.parameters))
    return better


def thinned(problem: dict[str, Any], rng: np.random.Generator) -> float:
    """Gap with only eight requests waiting: insertion and search, as at a step, against all orders."""
    order = np.sort(rng.choice(problem["order"][: problem["count"]], EXACT, replace=False))
    ours = order.copy()
    changed = problem | {"order": ours, "scratch": c.scratch_for(problem["jobs"])}
    names = list(inspect.signature(c.insert.py_func).parameters)
    for count in range(1, EXACT):
        c.insert(*((changed | {"count": count})[name] for name in names))
    ours = searched(problem, ours, PlannerParams().moves, 1)
    return gap(value(problem, ours), best_of_places(problem, order, np.arange(EXACT)))


def gap(ours: float, best: float) -> float:
    """Share of the best value that is missing."""
    return max(0.0, best - ours) / max(abs(best), 1e-9)


def measure(_: None, cell: Cell) -> list[dict[str, Any]]:
    """Gaps at the sampled plans of one run."""
    limits = engine_limits(PRESET, cell.mix)
    work = mix(
        cell.mix, rate_per_s=cell.rate_rps * cell.load, requests=cell.requests, seed=cell.seed,
        data_dir=data_folder(), model=ENGINE.step_time, limits=limits, forecast=FORECAST,
    )  # fmt: skip
    policy = Sampled(cell.seed)
    simulate(work, policy, engine=Engine(limits=limits, step_time=ENGINE.step_time))
    found = []
    for number, problem in enumerate(policy.kept):
        rng = np.random.default_rng((cell.seed, number))
        order = problem["order"][: problem["count"]]
        ours = value(problem, order)
        some = np.sort(rng.choice(min(HEAD, len(order)), EXACT, replace=False))
        found.append(
            {
                "mix": cell.mix, "load": cell.load, "seed": cell.seed, "waiting": len(order), "value": ours,
                "head": gap(ours, best_of_places(problem, order, np.arange(EXACT))),
                "places": gap(ours, best_of_places(problem, order, some)),
                "thinned": thinned(problem, rng),
                "search": gap(ours, value(problem, searched(problem, order, LONG_SEARCH, number))),
            }
        )  # fmt: skip
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, 90th percentile and largest of each gap, and what the 90th is in met requests of weight 1."""
    out: dict[str, Any] = {"plans": len(rows), "waiting": float(np.median([r["waiting"] for r in rows]))}
    for kind in KINDS:
        gaps = np.array([row[kind] for row in rows])
        p50, p90 = np.percentile(gaps, (50, 90))
        out[kind] = {
            "p50": round(float(p50), 5), "p90": round(float(p90), 5), "max": round(float(gaps.max()), 5),
            "p90_lost_requests": round(
                float(np.percentile([row[kind] * abs(row["value"]) for row in rows], 90)), 4
            ),
        }  # fmt: skip
    return out


def main() -> None:
    """Sample, solve, print one line a mix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=250)
    parser.add_argument("--out", type=Path, default=RESULTS / "step_gaps.json")
    options = parser.parse_args()
    rates: dict[str, float] = json.loads((RESULTS / "evidence.json").read_text())["capacity_rps"]
    cells = [
        Cell(name, load, rates[name], options.requests, seed)
        for name in MIXES
        if name in rates
        for load in LOADS
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)
    ]
    with Workers(None, options.jobs) as workers, Progress() as bar:
        show: Callable[[int, int], None] = partial(quality.advance, bar, bar.add_task("", total=len(cells)))
        rows = [row for found in workers.map(measure, cells, show) for row in found]
    by_mix = {
        name: summary([r for r in rows if r["mix"] == name]) for name in dict.fromkeys(r["mix"] for r in rows)
    }
    payload = {
        "environment": environment(), "data": "public traces" if data_folder() else "generators",
        "engine": ENGINE.name, "forecast": FORECAST, "loads": LOADS, "seeds": options.seeds,
        "exact_places": EXACT, "long_search_moves": LONG_SEARCH, "all": summary(rows), "by_mix": by_mix,
    }  # fmt: skip
    write_json(options.out, payload)
    for name, line in {"all": payload["all"], **by_mix}.items():
        print(name, json.dumps(line))


if __name__ == "__main__":
    main()
