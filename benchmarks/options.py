"""What the options of the policy slosched are worth, and what they cost.

Refusal, fairness between tenants, deadlines of programs; and a trial of planned preemption.

Overloaded mixes; load 1 is the rate at which first come, first served meets 90 % of the SLOs, as `slosched
evidence` found it. Every option runs on the same requests as the policy without it; differences are paired by
seed.

    python benchmarks/options.py --jobs 2          # about five minutes on two free cores
    python benchmarks/options.py --only fairness   # one study; the others' rows stay
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import quality
from common import RESULTS, data_folder, engine_limits, environment, write_json
from rich.progress import Progress

from slosched.core.engine import Engine
from slosched.core.outcome import Outcomes, Run
from slosched.core.snapshot import Snapshot
from slosched.lab.parallel import Workers, cores
from slosched.planner.plan import Plan
from slosched.policies import PolicySpec
from slosched.policies.ranked import giving_way
from slosched.policies.slosched import Slosched
from slosched.report.metrics import Metrics, Spread
from slosched.simulator import simulate
from slosched.timing.estimate import decode_step_s, remaining_s
from slosched.timing.estimate import hopeless as past_hope
from slosched.timing.presets import preset
from slosched.workloads import Workload
from slosched.workloads.mix import merge
from slosched.workloads.mixes import mix

PRESET = "h100-llama-3.1-8b"
ENGINE = preset(PRESET)
FORECAST = "predictor-5"
LOADS = (1.3, 1.6)
MIXES = ("azure", "agentic")
FIRST_SEED = 40
OURS = "slosched"
TRIAL = "slosched, lost answers give way"
ALONE = "quiet tenant alone"
OWN = "slosched, limits by call"
TOLD = "slosched, time left by call"

QUIET_LOAD, FLOOD_LOAD = 0.2, 1.2
"""Of the two tenants of an azure mix: one would be served well alone, the other floods the engine."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study: what is asked, and who decides."""

    study: str
    mix: str
    rate_rps: float
    load: float
    requests: int
    seed: int
    policy: str


def base(cell: Cell, *, load: float | None = None, requests: int | None = None, seed: int = 0) -> Workload:
    """The mix of a cell, perhaps at another load."""
    return mix(
        cell.mix,
        rate_per_s=cell.rate_rps * (cell.load if load is None else load),
        requests=requests or cell.requests,
        seed=cell.seed + seed,
        data_dir=data_folder(),
        model=ENGINE.step_time,
        limits=engine_limits(PRESET, cell.mix),
        forecast=FORECAST,
    )


def run(cell: Cell, work: Workload) -> Run:
    """Simulate the contender of a cell."""
    return simulate(
        work,
        PolicySpec.parse(cell.policy).make(cell.seed),
        engine=Engine(limits=engine_limits(PRESET, cell.mix), step_time=ENGINE.step_time),
        seed=cell.seed,
    )


class GivesWay(Slosched):
    """A trial, not an option: running answers that are lost anyway give way to a head without room."""

    preempts: bool = True

    def plan(self, snapshot: Snapshot) -> Plan:
        """Preempt, of those that will miss a limit, the ones with most to go, until the head fits."""
        plan = super().plan(snapshot)
        if len(plan.order) == 0:
            return plan
        step_s = decode_step_s(snapshot)
        running = snapshot.running
        lost = running[past_hope(snapshot, running, step_s)]
        if past_hope(snapshot, plan.order[:1], step_s).any() or len(lost) == 0:
            return plan
        key = remaining_s(snapshot, lost, step_s)
        victims = giving_way(snapshot, plan.order[:1], np.full(1, -1.0), lost, key)
        return replace(plan, preempt=victims, skip=plan.skip[~np.isin(plan.skip, victims)])


def preemption(cell: Cell) -> dict[str, float]:
    """Attainment with and without planned preemption, whose cost the simulator charges."""
    work = base(cell)
    limits = engine_limits(PRESET, cell.mix)
    policy = GivesWay(seed=cell.seed) if cell.policy == TRIAL else Slosched(seed=cell.seed)
    m = Metrics.of(
        simulate(work, policy, engine=Engine(limits=limits, step_time=ENGINE.step_time), seed=cell.seed)
    )
    return {
        "attainment": m.weighted.value,
        "preemptions": float(m.preemptions),
        "recomputed_tokens": float(m.recomputed_tokens),
        "e2e_p99_s": m.e2e_s.p99,
    }


def hopeless(cell: Cell) -> dict[str, float]:
    """Attainment, tails of those served, and how many were refused."""
    m = Metrics.of(run(cell, base(cell)))
    return {
        "attainment": m.weighted.value,
        "rejected_share": m.rejected / m.requests,
        "ttft_p99_s": m.ttft_s.p99,
        "e2e_p99_s": m.e2e_s.p99,
        "max_wait_s": m.max_wait_s,
        "span_s": m.span_s,
    }


def tenants(cell: Cell) -> dict[str, float]:
    """Attainment by tenant and of all; the quiet one alone in the engine for comparison."""
    share = QUIET_LOAD / cell.load
    few = round(cell.requests * share)
    quiet = replace(base(cell, load=QUIET_LOAD, requests=few), tenants=("quiet",))
    if cell.policy == ALONE:
        alone = run(replace(cell, policy=OURS), quiet).outcomes
        return {"quiet": weighted(alone, np.ones(few, dtype=np.bool_)), "flooding": 1.0, "all": 1.0}
    loud = base(cell, load=FLOOD_LOAD, requests=cell.requests - few, seed=500)
    out = run(cell, merge([quiet, replace(loud, tenants=("flooding",))])).outcomes
    owner = out.workload.tenant_index
    names = out.workload.tenants
    shares = {name: weighted(out, owner == i) for i, name in enumerate(names)}
    return {"quiet": shares["quiet"], "flooding": shares["flooding"], "all": weighted(out, owner >= 0)}


def programs(cell: Cell) -> dict[str, float]:
    """Share of agents' programs whose calls have all ended by the program's deadline.

    A program is due when the last of its calls is due by its own limit. `OWN` plans by the calls' own limits,
    `TOLD` by the time each call has to the program's deadline; with the option every call states the limit of
    the whole program, from its first call on. TTFT limits are for nobody.
    """
    work = base(cell)
    work = replace(work, ttft_s=np.full(len(work), np.inf))
    program, first_s, due_s = calls_of(work)
    name, e2e_s = cell.policy, due_s - first_s
    if cell.policy in (OWN, TOLD):
        name, e2e_s = OURS, work.e2e_s if cell.policy == OWN else due_s - work.arrival_s
    out = run(replace(cell, policy=name), replace(work, e2e_s=e2e_s)).outcomes
    late = np.zeros(int(program.max()) + 1, dtype=np.bool_)
    np.logical_or.at(late, program, ~(out.finish_s <= due_s))
    return {
        "programs": 1.0 - float(late.mean()),
        "calls": float(replace(out, workload=work).met.mean()),
        "e2e_mean_s": float(np.nanmean(out.e2e_s)),
        "programs_per_run": float(len(late)),
    }


def calls_of(work: Workload) -> tuple[Any, Any, Any]:
    """Program of each call, its program's first arrival, and when its program is due; shape (n,) each."""
    assert work.prefix is not None
    begin = work.prefix.ids[work.prefix.offsets[:-1]]
    _, program = np.unique(begin, return_inverse=True)
    first_s, due_s = np.full(int(program.max()) + 1, np.inf), np.zeros(int(program.max()) + 1)
    np.minimum.at(first_s, program, work.arrival_s)
    np.maximum.at(due_s, program, work.arrival_s + work.e2e_s)
    return program, first_s[program], due_s[program]


def weighted(out: Outcomes, mask: Any) -> float:
    """Weighted attainment of some requests."""
    weight = out.workload.weight[mask]
    return float(weight[out.met[mask]].sum() / weight.sum())


STUDIES: dict[str, tuple[Callable[[Cell], dict[str, float]], tuple[str, ...], str]] = {
    "hopeless": (
        hopeless,
        (OURS, "slosched:hopeless=keep", "slosched:hopeless=reject", "fcfs"),
        "attainment",
    ),
    "fairness": (
        tenants,
        (OURS, "slosched:fairness=1", "slosched:fairness=4", "fcfs", ALONE),
        "quiet",
    ),
    "preemption": (preemption, (OURS, TRIAL), "attainment"),
    "programs": (programs, (OWN, TOLD, "slosched:programs=true"), "programs"),
}
"""What is measured, for whom (the first is the reference), and the figure whose gain decides."""


def measure(_: None, cell: Cell) -> dict[str, float]:
    """Figures of one run."""
    return STUDIES[cell.study][0](cell)


def cells(seeds: int, only: Sequence[str]) -> list[Cell]:
    """All runs."""
    rates: dict[str, float] = json.loads((RESULTS / "evidence.json").read_text())["capacity_rps"]
    some = range(FIRST_SEED, FIRST_SEED + seeds)
    grid = {
        "hopeless": [(name, load, 250) for name in MIXES for load in LOADS],
        "fairness": [("azure", QUIET_LOAD + FLOOD_LOAD, 560)],
        "preemption": [("agentic", load, 200) for load in LOADS],
        "programs": [("agentic", load, 200) for load in (1.0, *LOADS)],
    }
    return [
        Cell(study, name, rates[name], load, requests, seed, who)
        for study, places in grid.items()
        if study in only
        for name, load, requests in places
        for seed in some
        for who in STUDIES[study][1]
    ]


def table(done: Sequence[tuple[Cell, dict[str, float]]]) -> list[dict[str, Any]]:
    """One row a study, mix, load and contender: mean figures, and the paired gain in the one that decides."""
    rows: list[dict[str, Any]] = []
    for study, (_, contenders, figure) in STUDIES.items():
        places = dict.fromkeys((c.mix, c.load) for c, _ in done if c.study == study)
        for name, load in places:
            here = [(c, f) for c, f in done if (c.study, c.mix, c.load) == (study, name, load)]
            reference = {c.seed: f for c, f in here if c.policy == contenders[0]}
            for who in contenders:
                runs = {c.seed: f for c, f in here if c.policy == who}
                gain = Spread.of(f[figure] - reference[seed][figure] for seed, f in runs.items())
                means = {key: statistics.fmean(f[key] for f in runs.values()) for key in reference[min(runs)]}
                rows.append(
                    {
                        "study": study, "mix": name, "load": round(load, 2), "policy": who,
                        **{key: round(value, 4) for key, value in means.items()},
                        "seeds": len(runs),
                        "gain": round(gain.mean, 4),
                        "gain_interval": [round(gain.low, 4), round(gain.high, 4)],
                    }
                )  # fmt: skip
    return rows


def main() -> None:
    """Run everything and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="*", choices=[*STUDIES], default=[*STUDIES])
    parser.add_argument("--out", type=Path, default=RESULTS / "options.json")
    options = parser.parse_args()
    asked = cells(options.seeds, options.only)
    with Workers(None, options.jobs) as workers, Progress() as bar:
        show: Callable[[int, int], None] = partial(quality.advance, bar, bar.add_task("", total=len(asked)))
        found = workers.map(measure, asked, show)
    rows = table(list(zip(asked, found, strict=True)))
    known = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = [row for row in known if row["study"] not in options.only] + rows
    payload = {
        "environment": environment(), "data": "public traces" if data_folder() else "generators",
        "engine": ENGINE.name, "forecast": FORECAST, "rows": rows,
    }  # fmt: skip
    write_json(options.out, payload)
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
