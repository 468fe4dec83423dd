"""Every rival with its own best parameters, ours included, by the same budget.

Each policy gets the same budget (its defaults and up to five other settings of its main parameters), tried on
the same seeds, which no other study uses, on each mix at two overloads. A mix's best setting by mean weighted
attainment is then measured beside the defaults on other seeds again: what is reported is not what was chosen
on. Policies without parameters run as they are. Rates are multiples of the capacity that `quality.py` has
found, with as many requests as there. Results are written after every mix.

    python benchmarks/tune_rivals.py --jobs 2                       # about 20 minutes
    python benchmarks/tune_rivals.py --mix azure --policy qoserve   # one mix, one rival beside the references
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, data_folder, environment, write_json
from quality import ENGINE, FORECAST, advance, limits_of, workload_of
from quality import Cell as Traffic
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from slosched.core.engine import Engine
from slosched.lab.parallel import Workers, cores
from slosched.planner.planner import PlannerParams
from slosched.policies import policy
from slosched.policies.base import Policy
from slosched.report.metrics import Metrics
from slosched.simulator import simulate
from slosched.workloads.mixes import MIXES

LOADS = (1.1, 1.4)
TUNING_SEEDS = (2000, 2001)
CHECK_SEEDS = tuple(range(3000, 3006))
SETTINGS = 6
"""Most settings tried for a policy."""
REFERENCES = ("edf+d", "sjf+d", "wspt", "hrrn-sglang")
OURS = "slosched"

Setting = Mapping[str, Any]

GRID: dict[str, tuple[Setting, ...]] = {
    "qoserve": (
        {},
        {"alpha_s_per_token": 0.002},
        {"from_first": True},
        {"from_first": True, "alpha_s_per_token": 0.002},
        {"from_first": True, "alpha_s_per_token": 0.0005},
        {"from_first": True, "pace_s": 0.1},
    ),
    "scorpio": (
        {},
        {"factor": 1.0},
        {"admission": False},
        {"admission": False, "credits": False},
        {"reject": False},
        {"factor": 1.0, "least_credit": 0.5},
    ),
    "proserve": (
        {},
        {"urgency": 0.5},
        {"urgency": 2.0},
        {"decode_weight": 4.0},
        {"prefill_weight": 4.0},
        {"urgency": 4.0},
    ),
    "jitserve": (
        {},
        {"batch": 8},
        {"batch": 32},
        {"factor": 0.9},
        {"quantile": 0.7},
        {"batch": 8, "drop_s": 20.0},
    ),
    "jitserve-code": (
        {},
        {"penalty": 0.0},
        {"penalty": 4.0},
        {"penalty": 16.0},
        {"refresh_steps": 5},
        {"penalty": 4.0, "refresh_steps": 5},
    ),
    "cascade": tuple({} if g == 1.2 else {"gamma": g} for g in (1.2, 1.01, 1.1, 1.5, 2.0, 3.0)),
    "fairbatching": (
        {},
        {"from_first": True},
        {"from_first": True, "share": 0.9},
        {"from_first": True, "share": 0.7},
        {"from_first": True, "share": 0.5},
        {"share": 0.5},
    ),
    "slidingserve": (
        {},
        {"from_first": True},
        {"from_first": True, "urgency_s": 1.0},
        {"from_first": True, "urgency_s": 0.01},
        {"from_first": True, "least_tokens": 32},
        {"from_first": True, "least_tokens": 256},
    ),
    "slos-serve": (
        {},
        {"margin": 0.8},
        {"margin": 1.2},
        {"margin": 1.5},
        {"most": 256},
        {"units": 40},
    ),
    "slai": (
        {},
        {"shortest": True},
        {"offset_steps": 2.0},
        {"offset_steps": 20.0, "tight_offset_steps": 40.0},
        {"shortest": True, "offset_steps": 20.0, "tight_offset_steps": 40.0},
        {"shortest": True, "offset_steps": 2.0},
    ),
    "uniboost": tuple(
        {} if g is None else {"gamma": g, "adaptive": False} for g in (None, 0.1, 0.5, 1.0, 10.0, 100.0)
    ),
    "uniboost-sglang": tuple(
        {} if g is None else {"gamma": g, "adaptive": False} for g in (None, 1.0, 3.0, 10.0, 30.0, 100.0)
    ),
    "tie": (
        {},
        {"decay": 0.5},
        {"decay": 0.99},
        {"decay_s": 5.0},
        {"decay_s": 120.0},
        {"decay": 0.5, "decay_s": 5.0},
    ),
    "mlfq": (
        {},
        {"quantum_s": 0.1},
        {"quantum_s": 0.3},
        {"promote_s": 5.0},
        {"growth": 4.0},
        {"quantum_s": 0.1, "promote_s": 5.0},
    ),
    "las": tuple({} if q == 400 else {"quantum_tokens": q} for q in (400, 50, 100, 200, 800, 1600)),
    "plas": tuple({} if q == 400 else {"quantum_tokens": q} for q in (400, 100, 1600)),
    "past-future": tuple({} if n == 2048 else {"start_tokens": float(n)} for n in (2048, 128, 512)),
    "aibrix-slo": ({}, {"reject": False}),
    OURS: (
        {},
        {"moves": 64},
        {"replan_steps": 2},
        {"aim": (0.1, 0.25, 0.1, 1e-3, 0.1)},
        {"aim": (0.25, 0.5, 0.2, 1e-3, 0.3)},
        {"aim": (0.5, 1.0, 0.3, 1e-3, 0.1)},
    ),
}
"""Settings by policy, defaults first; of our own, those of its planner. At most `SETTINGS`."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: a policy with a setting on the traffic of a mix, rate and seed."""

    traffic: Traffic
    name: str
    place: int

    @property
    def setting(self) -> Setting:
        """The parameters."""
        return GRID[self.name][self.place] if self.name in GRID else {}


def policy_of(trial: Trial) -> Policy:
    """A fresh policy object."""
    if trial.name == OURS:
        return policy(OURS, seed=trial.traffic.seed, params=PlannerParams(**trial.setting))
    return policy(trial.name, seed=trial.traffic.seed, **trial.setting)


def measure(_: None, trial: Trial) -> float:
    """Weighted attainment of a run."""
    traffic = trial.traffic
    run = simulate(
        workload_of(traffic),
        policy_of(trial),
        engine=Engine(limits=limits_of(traffic), step_time=ENGINE.step_time),
    )
    return Metrics.of(run).weighted.value


def trials(
    mix: str, capacity: float, requests: int, seeds: Sequence[int], chosen: Mapping[str, Sequence[int]]
) -> list[Trial]:
    """Runs of the chosen settings, by policy."""
    return [
        Trial(Traffic(mix, capacity * load, seed, name, requests), name, place)
        for name, places in chosen.items()
        for place in places
        for load in LOADS
        for seed in seeds
    ]


def by_load(done: Mapping[Trial, float], capacity: float, name: str, place: int) -> dict[str, list[float]]:
    """Attainment of a setting for each load, one number a seed."""
    return {
        str(load): [
            round(value, 4)
            for t, value in done.items()
            if t.name == name and t.place == place and t.traffic.rate == capacity * load
        ]
        for load in LOADS
    }


def score(rows: Mapping[str, Sequence[float]]) -> float:
    """Mean over loads and seeds."""
    return statistics.fmean(value for values in rows.values() for value in values)


def capacities() -> dict[str, tuple[float, int]]:
    """Rate at which first come, first served meets 90 %, and requests of a run, as in `quality.py`."""
    found: dict[str, tuple[float, int]] = {}
    for file in ("quality.json", "quality_prefix_cache.json"):
        made = json.loads((RESULTS / file).read_text())
        found.update({mix: (rate, made["requests"]) for mix, rate in made["fcfs_capacity_rps"].items()})
    return found


def study(
    mix: str, capacity: float, names: Sequence[str], requests: int, workers: Workers[None], bar: Progress
) -> dict[str, Any]:
    """Tune and check all policies on one mix."""
    settings = {name: tuple(range(len(GRID.get(name, ({},))))) for name in names}

    def run(what: str, seeds: Sequence[int], chosen: Mapping[str, Sequence[int]]) -> dict[Trial, float]:
        cells = trials(mix, capacity, requests, seeds, chosen)
        show = partial(advance, bar, bar.add_task(f"{mix}, {what}", total=len(cells)))
        return dict(zip(cells, workers.map(measure, cells, show), strict=True))

    tuning = run("tuning", TUNING_SEEDS, settings)
    tuned = {n: {p: by_load(tuning, capacity, n, p) for p in places} for n, places in settings.items()}
    best = {n: max(by_place, key=lambda p: score(by_place[p])) for n, by_place in tuned.items()}
    check = run("check", CHECK_SEEDS, {n: sorted({0, p}) for n, p in best.items()})
    return {
        name: {
            "setting": dict(Trial(Traffic(mix, 0.0, 0, name, 0), name, best[name]).setting),
            "tuning": [
                {"setting": dict(GRID[name][p]) if name in GRID else {}, "attainment": tuned[name][p]}
                for p in settings[name]
            ],
            "default": by_load(check, capacity, name, 0),
            "tuned": by_load(check, capacity, name, best[name]),
        }
        for name in names
    }


def beats(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where a rival is ahead of ours, each as tuned and by default, in the mean over the seeds."""
    out = []
    for mix, by_name in results.items():
        for name, entry in by_name.items():
            for form in ("default", "tuned"):
                for load, theirs in entry[form].items():
                    ours = by_name[OURS][form][load]
                    if statistics.fmean(theirs) > statistics.fmean(ours):
                        out.append(
                            {
                                "mix": mix,
                                "load": load,
                                "policy": name,
                                "form": form,
                                "setting": entry["setting"] if form == "tuned" else {},
                                "theirs": round(statistics.fmean(theirs), 4),
                                "ours": round(statistics.fmean(ours), 4),
                                "seeds_ahead": sum(a > b for a, b in zip(theirs, ours, strict=True)),
                            }
                        )
    return out


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: weighted attainment, default / tuned, by policy, mix and load."""
    columns = [(mix, str(load)) for mix in results for load in LOADS]
    lines = ["| policy | " + " | ".join(f"{mix} {load}x" for mix, load in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    names = next(iter(results.values()))
    for name in sorted(
        names, key=lambda n: -statistics.fmean(score(r[n]["tuned"]) for r in results.values())
    ):
        cells = []
        for mix, load in columns:
            forms = [100 * statistics.fmean(results[mix][name][f][load]) for f in ("default", "tuned")]
            cells.append(" / ".join(f"{value:.1f}" for value in forms))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run mix by mix, saving after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--requests", type=int, help="of a run; as many as in quality.py by default")
    parser.add_argument("--mix", action="append", choices=list(MIXES), help="one of the mixes; several; all")
    parser.add_argument(
        "--policy", action="append", choices=list(GRID), help="beside ours and the references; all"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "rivals_tuned.json")
    options = parser.parse_args()
    names = list(dict.fromkeys([OURS, *REFERENCES, *(options.policy or GRID)]))
    found, results = capacities(), {}
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Workers(None, options.jobs) as workers, bar:
        for mix in options.mix or MIXES:
            rate, requests = found[mix]
            results[mix] = study(mix, rate, names, options.requests or requests, workers, bar)
            write_json(
                options.out,
                {
                    "environment": environment(),
                    "data": "public traces" if data_folder() else "generators",
                    "engine": ENGINE.name,
                    "forecast": FORECAST,
                    "requests": {m: options.requests or found[m][1] for m in results},
                    "tuning_seeds": TUNING_SEEDS,
                    "check_seeds": CHECK_SEEDS,
                    "fcfs_capacity_rps": {m: rate for m, (rate, _) in found.items()},
                    "ahead_of_ours": beats(results),
                    "mixes": results,
                },
            )
            print(f"{mix}: saved to {options.out}", file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
