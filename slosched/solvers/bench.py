"""Benchmark of the solvers of static batches: ``python -m slosched.solvers.bench``.

Every measure is a function from `Effort` to a plain dict; `run` collects them. Budgets are CPU time of the
thread by default (``clock="cpu"``): the move budget is calibrated on each instance, so that a loaded machine
does not judge the solver. Ratios are taken within one run.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from slosched.core.errors import InputError, require
from slosched.core.result import Score, Status
from slosched.solvers.instances import read
from slosched.solvers.solve import EXACT, SOLVERS, solve, warm
from slosched.solvers.static import constructive
from slosched.solvers.static import kernels as static
from slosched.solvers.static.annealing import (
    Schedule,
    anneal_static,
    budget_of,
    case_of,
    huang_annealing,
    seed_words,
    sigma_s,
)
from slosched.solvers.static.delta import anneal
from slosched.solvers.static.generated import generate
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.problem import StaticProblem
from slosched.solvers.static.reference import Batched, evaluate_fast, full_batches, score_lists

Tick = Callable[[], None]
LOADS = (0.4, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much to measure.

    Parameters
    ----------
    instances
        Instances per cell (size, or size and batch).
    long_moves
        Moves of the long annealings that, with all that is found on the way, make the best known.
    cpsat_s
        Seconds CP-SAT gets per instance.
    cpsat_instances, cpsat_workers
        How many instances it gets, and how many threads.
    clock
        "cpu": budgets are CPU time of the thread, through a calibrated number of moves; "wall": wall time.
    seed
        Seed of the first instance, at least 0; the annealing's schedules were tuned on seeds below 60.
    """

    instances: int = 30
    long_moves: int = 3_000_000
    cpsat_s: float = 60.0
    cpsat_instances: int = 30
    cpsat_workers: int = 2
    clock: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.instances >= 1, "instances", "an integer of at least 1", self.instances)
        require(self.cpsat_workers >= 1, "cpsat_workers", "an integer of at least 1", self.cpsat_workers)
        require(self.clock in ("cpu", "wall"), "clock", "cpu or wall", self.clock)
        require(self.seed >= 0, "seed", "an integer of at least 0", self.seed)

    @property
    def seeds(self) -> range:
        """Seeds of the instances of a cell."""
        return range(self.seed, self.seed + self.instances)


QUICK = Effort(instances=2, long_moves=20_000, cpsat_s=0.5, cpsat_instances=1)
"""For tests and a first look: seconds, not minutes."""


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, mean and the middle 80 % of some numbers."""
    array = np.asarray(values, dtype=np.float64)
    low, median, high = np.quantile(array, [0.1, 0.5, 0.9])
    return {"median": float(median), "mean": float(array.mean()), "p10": float(low), "p90": float(high)}


def anneal_within(
    problem: StaticProblem,
    budget_ms: float,
    *,
    objective: Objective = Objective.LEX,
    seed: int = 0,
    clock: str = "cpu",
) -> Batched:
    """The plan of `solve` with a budget, the budget being wall time or CPU time of this thread."""
    if clock == "wall":
        result = solve(problem, objective=objective, budget_ms=budget_ms, seed=seed)
        return result.sequence, result.batches
    begin = time.thread_time()
    start = constructive.portfolio(problem, objective, budget_ms=budget_ms)
    left_s = budget_ms / 1e3 - (time.thread_time() - begin)
    probe = 20_000
    begin = time.thread_time()
    anneal_static(problem, start, objective, moves=probe, seed=seed)
    rate = probe / (time.thread_time() - begin)
    return anneal_static(problem, start, objective, moves=max(0, int(rate * left_s)), seed=seed)[0]


def _score(problem: StaticProblem, plan: Batched) -> Score:
    return evaluate_fast(problem, *plan).score


def _cpu_rate(call: Callable[[], int]) -> float:
    begin = time.thread_time()
    made = call()
    return made / (time.thread_time() - begin)


def throughput(effort: Effort, tick: Tick) -> dict[str, Any]:
    """Moves per second of delta annealing, of full evaluation compiled, and of plain Python."""
    cells = []
    for n, b in ((10, 4), (50, 8), (200, 8), (1000, 1), (1000, 8), (1000, 32)):
        rates: dict[str, list[float]] = {"delta": [], "full": [], "python": []}
        for seed in effort.seeds:
            problem = generate(n, b, load=0.6, seed=seed)
            for name, rate in _rates(problem, seed).items():
                rates[name].append(rate)
            tick()
        delta, full, python = (np.array(rates[name]) for name in ("delta", "full", "python"))
        cells.append(
            {
                "n": n,
                "b": b,
                "delta_per_s": _spread(rates["delta"]),
                "full_per_s": _spread(rates["full"]),
                "python_per_s": _spread(rates["python"]),
                "delta_over_full": _spread((delta / full).tolist()),
                "delta_over_python": _spread((delta / python).tolist()),
            }
        )
    return {"cells": cells}


def _rates(problem: StaticProblem, seed: int) -> dict[str, float]:
    n, b = problem.n, problem.max_batch
    case = case_of(problem, static.LEX)
    cooling = Schedule.of(n, Objective.LEX).seconds(sigma_s(case.rec, b), float(problem.weight.mean()))
    order = np.argsort(problem.exec_s(b), kind="stable")
    batches = full_batches(n, b)

    def delta() -> int:
        budget = budget_of(100_000, None, 0)
        found = anneal(case, order, batches, budget, cooling, static.THRESHOLDS, seed_words(seed), False)
        return int(found[4])

    def full() -> int:
        budget = budget_of(max(2000, 2_000_000 // n // 10), None, 0)
        found = static.anneal_full(
            case, np.empty((0, 3)), order, batches, budget, cooling, static.THRESHOLDS, seed_words(seed), True
        )
        return int(found[5])

    lists = case.rec.tolist(), case.elapsed_total_s, order.tolist(), batches.tolist()

    def python() -> int:
        repeats = max(2, 10_000 // n)
        for _ in range(repeats):
            score_lists(*lists)
        return repeats

    return {"delta": _cpu_rate(delta), "full": _cpu_rate(full), "python": _cpu_rate(python)}


def optimality(effort: Effort, tick: Tick) -> dict[str, Any]:
    """How often 5 ms of annealing reach the proved optimum at n <= 12."""
    cells = []
    for b in (1, 2, 4, 8):
        hits: dict[str, list[bool]] = {"weight": [], "lex": [], "g": []}
        for seed in effort.seeds:
            problem = generate(
                (8, 10, 12)[seed % 3], b, load=LOADS[seed % 2], seed=seed, weighted=seed % 4 > 1
            )
            for goal in (Objective.LEX, Objective.G):
                exact = solve(problem, solver="labelling", objective=goal)
                if exact.status is not Status.OPTIMAL:
                    continue
                score = _score(problem, anneal_within(problem, 5.0, objective=goal, clock=effort.clock))
                if goal is Objective.G:
                    hits["g"].append(not exact.score.better_g(score))
                else:
                    hits["lex"].append(not exact.score.better(score))
                    hits["weight"].append(score.weight >= exact.score.weight - 1e-9)
            tick()
        shares = {name: float(np.mean(values)) for name, values in hits.items()}
        cells.append({"b": b, "instances": effort.instances, **shares})
    overall = {name: float(np.mean([cell[name] for cell in cells])) for name in ("weight", "lex", "g")}
    return {"cells": cells, "overall": overall}


def best_known(effort: Effort, tick: Tick) -> dict[str, Any]:
    """Weight attained over the best known, by size, load and budget."""
    cells = []
    for n in (50, 200, 1000):
        by_budget: dict[str, list[float]] = {}
        by_load: dict[str, list[float]] = {}
        for seed in effort.seeds:
            b, load = (1, 4, 16)[seed % 3], LOADS[seed // 3 % 2]
            problem = generate(n, b, load=load, seed=seed, weighted=seed % 2 == 1)
            found = {
                name: solve(problem, solver=name).score.weight
                for name in ("fcfs", "edf+d", "sjf", "portfolio")
            }
            for budget in (0.3, 1.0, 5.0, 50.0):
                plan = anneal_within(problem, budget, clock=effort.clock)
                found[f"anneal {budget:g} ms"] = _score(problem, plan).weight
            best = max(found.values())
            begun = constructive.portfolio(problem)
            usual = Schedule.of(n, Objective.LEX, effort.long_moves)
            slow = Schedule(hot=5 * usual.hot, cold=usual.cold)
            for schedule in (usual, slow):  # many cycles, and one
                plan, _ = anneal_static(problem, begun, moves=effort.long_moves, seed=99, schedule=schedule)
                best = max(best, _score(problem, plan).weight)
            for name, weight in found.items():
                by_budget.setdefault(name, []).append(weight / best)
            by_load.setdefault(f"{load:g}", []).append(found["anneal 5 ms"] / best)
            tick()
        cells.append(
            {
                "n": n,
                "over_best": {name: _spread(values) for name, values in by_budget.items()},
                "anneal_5ms_by_load": {name: _spread(values) for name, values in by_load.items()},
            }
        )
    return {"cells": cells}


def published(effort: Effort, tick: Tick) -> dict[str, Any]:
    """Weight attained by 1 ms of annealing over the published annealing at its own 6,300 moves, n = 200."""
    ratios, scaled, times = [], [], []
    for seed in effort.seeds:
        b, load = (1, 4, 16)[seed % 3], LOADS[seed // 3 % 2]
        problem = generate(200, b, load=load, seed=seed)
        ours = _score(problem, anneal_within(problem, 1.0, clock=effort.clock)).weight
        begin = time.thread_time()
        plan, _ = huang_annealing(problem, seed=seed)
        times.append((time.thread_time() - begin) * 1e3)
        ratios.append(ours / max(1e-9, _score(problem, plan).weight))
        plan, _ = huang_annealing(problem, seed=seed, scaled=True)
        scaled.append(ours / max(1e-9, _score(problem, plan).weight))
        tick()
    return {"over_literal": _spread(ratios), "over_scaled": _spread(scaled), "literal_ms": _spread(times)}


def against_cpsat(effort: Effort, tick: Tick) -> dict[str, Any]:
    """Weight attained by 50 ms of annealing against CP-SAT, n = 20 to 60."""
    from slosched.solvers.static import cpsat

    rows: list[dict[str, Any]] = []
    for seed in range(effort.seed, effort.seed + effort.cpsat_instances):
        n, b = (20, 30, 40, 60)[seed % 4], (4, 8)[seed // 4 % 2]
        problem = generate(n, b, load=LOADS[seed % 2], seed=seed)
        plan = anneal_within(problem, 50.0, clock=effort.clock)
        ours = _score(problem, plan).weight
        begun = constructive.portfolio(problem)  # CP-SAT must not be handed our answer
        exact = cpsat.solve_static(problem, "attainment", effort.cpsat_s, begun, workers=effort.cpsat_workers)
        found = {"anneal": ours, "cpsat": exact.score.weight, "bound": exact.bound}
        rows.append({"n": n, "b": b, "seed": seed, **found})
        tick()
    lower = [row["cpsat"] - row["anneal"] for row in rows]
    return {
        "cpsat_s": effort.cpsat_s,
        "cpsat_workers": effort.cpsat_workers,
        "rows": rows,
        "at_least_equal": float(np.mean([gap <= 1e-9 for gap in lower])),
        "worst_deficit": float(max(lower)),
    }


MEASURES: dict[str, tuple[Callable[[Effort, Tick], dict[str, Any]], Callable[[Effort], int]]] = {
    "throughput": (throughput, lambda effort: 6 * effort.instances),
    "optimality": (optimality, lambda effort: 4 * effort.instances),
    "best_known": (best_known, lambda effort: 3 * effort.instances),
    "published": (published, lambda effort: effort.instances),
    "cpsat": (against_cpsat, lambda effort: effort.cpsat_instances),
}
"""Measures by name, each with the number of ticks its progress bar needs."""


def on_file(path: str | Path, solvers: Sequence[str], budget_ms: float, tick: Tick) -> dict[str, Any]:
    """Solvers on the static instances of a file, for every objective stored with them."""
    rows: list[dict[str, Any]] = []
    for instance in read(path):
        if instance.kind != "static":
            continue
        for objective, best in instance.best.items() or [("lex", None)]:
            for name in solvers:
                try:
                    result = solve(instance.problem(), solver=name, objective=objective, budget_ms=budget_ms)
                except InputError as error:
                    rows.append(
                        {
                            "instance": instance.name,
                            "objective": objective,
                            "solver": name,
                            "error": str(error),
                        }
                    )
                    continue
                rows.append(
                    {
                        "instance": instance.name,
                        "objective": objective,
                        "solver": name,
                        "status": result.status.value,
                        "value": result.objective,
                        "latency_s": result.score.latency_s,
                        "best": best.value if best else None,
                        "ms": result.seconds * 1e3,
                    }
                )
        tick()
    return {"file": str(path), "budget_ms": budget_ms, "rows": rows}


def run(
    measures: Sequence[str] = tuple(MEASURES),
    *,
    effort: Effort | None = None,
    instances: str | Path | None = None,
    solvers: Sequence[str] = ("sjf", "portfolio", "anneal", "huang-literal"),
    budget_ms: float = 5.0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run measures and return what they found as JSON-ready data.

    Parameters
    ----------
    measures
        Names in `MEASURES`; with `instances` they are left out.
    effort
        How much; `Effort()` by default, `QUICK` for a look.
    instances
        A file of instances to run `solvers` on instead, with `budget_ms` each.
    solvers, budget_ms
        See above.
    console
        Where the progress bar goes; none without it.

    Raises
    ------
    InputError
        On an unknown measure or solver.
    """
    effort = effort or Effort()
    for name in measures:
        require(name in MEASURES, "measure", f"one of {', '.join(MEASURES)}", name)
    for name in solvers:
        require(name in SOLVERS or name in EXACT, "solver", f"one of {', '.join((*SOLVERS, *EXACT))}", name)
    warm()  # loading a kernel must not count as annealing
    out: dict[str, Any] = {
        "machine": {"python": platform.python_version(), "processor": platform.machine()},
        "effort": asdict(effort),
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None, transient=True) as progress:
        if instances is not None:
            task = progress.add_task("instances", total=len(read(instances)))
            out["instances"] = on_file(instances, solvers, budget_ms, lambda: progress.advance(task))
            return out
        for name in measures:
            measure, ticks = MEASURES[name]
            task = progress.add_task(name, total=ticks(effort))
            out[name] = measure(effort, lambda task=task: progress.advance(task))  # type: ignore[misc]
    return out


def tables(found: dict[str, Any]) -> list[Table]:
    """The findings of `run` as tables for the terminal."""
    out = []
    if "throughput" in found:
        table = Table(
            "n", "b", "delta/s", "full/s", "python/s", "delta/full", "delta/python", title="throughput"
        )
        for cell in found["throughput"]["cells"]:
            rates = [f"{cell[key]['median']:,.0f}" for key in ("delta_per_s", "full_per_s", "python_per_s")]
            ratios = [f"{cell[key]['median']:.1f}" for key in ("delta_over_full", "delta_over_python")]
            table.add_row(str(cell["n"]), str(cell["b"]), *rates, *ratios)
        out.append(table)
    if "optimality" in found:
        table = Table("b", "weight", "lex", "G", title="optimal after 5 ms, n <= 12")
        for cell in [*found["optimality"]["cells"], {"b": "all", **found["optimality"]["overall"]}]:
            table.add_row(str(cell["b"]), *(f"{cell[name]:.3f}" for name in ("weight", "lex", "g")))
        out.append(table)
    if "best_known" in found:
        names = list(found["best_known"]["cells"][0]["over_best"])
        table = Table("n", *names, title="weight over best known, mean (median)")
        for cell in found["best_known"]["cells"]:
            values = [cell["over_best"][name] for name in names]
            table.add_row(str(cell["n"]), *(f"{v['mean']:.3f} ({v['median']:.3f})" for v in values))
        out.append(table)
    if "published" in found:
        table = Table(
            "against", "median", "p10", "p90", title="1 ms of annealing over the published one, n = 200"
        )
        for name in ("over_literal", "over_scaled", "literal_ms"):
            spread = found["published"][name]
            table.add_row(name, *(f"{spread[key]:.3f}" for key in ("median", "p10", "p90")))
        out.append(table)
    if "cpsat" in found:
        table = Table(
            "n",
            "b",
            "anneal",
            "cpsat",
            "bound",
            title=f"50 ms against CP-SAT {found['cpsat']['cpsat_s']:g} s",
        )
        for row in found["cpsat"]["rows"]:
            table.add_row(*(str(row[name]) for name in ("n", "b", "anneal", "cpsat", "bound")))
        out.append(table)
    if "instances" in found:
        table = Table("instance", "objective", "solver", "value", "best", "ms", title="instances")
        for row in found["instances"]["rows"]:
            value = row.get("error") or f"{row['value']:.6g}"
            best, took = row.get("best"), row.get("ms")
            table.add_row(
                row["instance"], row["objective"], row["solver"], value,
                "" if best is None else f"{best:.6g}", "" if took is None else f"{took:.2f}",
            )  # fmt: skip
        out.append(table)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="slosched bench solver", description="Benchmark the solvers.")
    parser.add_argument("--measure", action="append", choices=list(MEASURES), help="a measure (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few instances: seconds instead of minutes")
    parser.add_argument("--count", type=int, help="instances per cell (default 30)")
    parser.add_argument("--long-moves", type=int, help="moves of the annealings that set the best known")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first instance (default 0)")
    parser.add_argument("--cpsat-s", type=float, help="seconds for CP-SAT per instance (default 60)")
    parser.add_argument("--cpsat-count", type=int, help="instances for CP-SAT (default 30)")
    parser.add_argument("--cpsat-workers", type=int, default=2, help="threads of CP-SAT (default 2)")
    parser.add_argument(
        "--clock", choices=["cpu", "wall"], default="cpu", help="what budgets are measured in"
    )
    parser.add_argument("--instances", help="run solvers on a file of instances instead")
    parser.add_argument("--solver", action="append", help="solver for --instances (repeatable)")
    parser.add_argument("--budget-ms", type=float, default=5.0, help="budget for --instances (default 5)")
    parser.add_argument("--json", help="write the findings to this file")
    parser.add_argument("--plots", help="write plots into this folder")
    given = parser.parse_args(argv)
    base = QUICK if given.quick else Effort()
    console = Console()
    try:
        found = run(
            given.measure or tuple(MEASURES),
            effort=Effort(
                instances=base.instances if given.count is None else given.count,
                long_moves=base.long_moves if given.long_moves is None else given.long_moves,
                cpsat_s=base.cpsat_s if given.cpsat_s is None else given.cpsat_s,
                cpsat_instances=base.cpsat_instances if given.cpsat_count is None else given.cpsat_count,
                cpsat_workers=given.cpsat_workers,
                clock=given.clock,
                seed=given.seed,
            ),
            instances=given.instances,
            solvers=given.solver or ("sjf", "portfolio", "anneal", "huang-literal"),
            budget_ms=given.budget_ms,
            console=console,
        )
    except InputError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    for table in tables(found):
        console.print(table)
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.plots:
        from slosched.solvers.bench_plots import plot

        for path in plot(found, given.plots):
            console.print(f"wrote {path}", markup=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
