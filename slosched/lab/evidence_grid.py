"""Runs the grid of a study, keeping every result as it comes, so that a study can stop and go on."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slosched import __version__
from slosched.core.engine import Engine
from slosched.core.errors import require
from slosched.core.outcome import Run
from slosched.lab.bound import attainment_bound
from slosched.lab.evidence_config import REFERENCE, EvidenceConfig, engine_limits
from slosched.lab.parallel import Progress, Workers
from slosched.lab.study import TARGET, TOLERANCE
from slosched.report.metrics import Metrics
from slosched.simulator import simulate
from slosched.timing.presets import preset
from slosched.workloads import Workload
from slosched.workloads.mixes import mix

BOUND, CAPACITY = "(bound)", "(capacity)"
"""In place of a policy: the bound on attainment, and the search for the load 1."""

CAPACITY_SEEDS = (1000, 1001, 1002)
"""Not used afterwards."""

ORACLE = "oracle"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """One run; `policy` as written in the configuration, `load` in multiples of the reference's capacity."""

    version: str
    preset: str
    mix: str
    requests: int
    load: float
    rate_rps: float
    seed: int
    forecast: str
    policy: str


class Store:
    """Results by cell in a file of JSON lines that is only ever appended to.

    Each line carries a digest of itself. Lines that do not parse or do not match theirs are named in
    `complaints` and count as not run; a cell that stands twice counts once.

    Parameters
    ----------
    path
        The file; made if absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complaints: list[str] = []
        self._found: dict[Cell, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # A crash can leave half a line at the end: what follows must start on a line of its own.
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                content = json.loads(line)
                if content["digest"] != _digest(content["cell"], content["result"]):
                    raise ValueError("digest")
                self._found.setdefault(Cell(**content["cell"]), content["result"])
            except (ValueError, KeyError, TypeError):
                self.complaints.append(f"{path}, row {number}: not a whole result; it is run again.")
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._found

    def __getitem__(self, cell: Cell) -> dict[str, Any]:
        return self._found[cell]

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keep a result, in the file before anywhere else."""
        plain = asdict(cell)
        line = json.dumps(
            {"cell": plain, "result": result, "digest": _digest(plain, result)}, allow_nan=False
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._found[cell] = result


def _digest(cell: dict[str, Any], result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([cell, result], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A finished study.

    Parameters
    ----------
    config
        What was asked for.
    cells
        Every run and bound, in order.
    results
        Results of those, same order: metrics as `Metrics.to_dict` gives them; of a bound its value and
        ``queued``.
    capacity_rps
        Load 1 of each mix.
    """

    config: EvidenceConfig
    cells: tuple[Cell, ...]
    results: tuple[dict[str, Any], ...]
    capacity_rps: dict[str, float]

    def metrics(self, mix: str, forecast: str) -> Iterator[tuple[Cell, Metrics]]:
        """Runs of one mix under one forecast."""
        for cell, result in zip(self.cells, self.results, strict=True):
            if (cell.mix, cell.forecast) == (mix, forecast) and cell.policy != BOUND:
                yield cell, Metrics.from_dict(result)

    def bounds(self, mix: str) -> Iterator[tuple[Cell, float]]:
        """Bounds of one mix."""
        for cell, result in zip(self.cells, self.results, strict=True):
            if cell.mix == mix and cell.policy == BOUND:
                yield cell, result["bound"]


def run_grid(
    config: EvidenceConfig,
    store: Store,
    *,
    jobs: int = 1,
    data: str | None = None,
    progress: Progress | None = None,
    workers: Callable[[str | None, int], Workers[str | None]] = Workers,
) -> Grid:
    """Run what the store does not have yet.

    Parameters
    ----------
    config
        The study.
    store
        Results so far; every new one is added to it at once.
    jobs
        Processes.
    data
        Folder of public traces; None for generators.
    progress
        Called after each run with (done, all).
    workers
        What makes the processes; `slosched.lab.parallel.RayWorkers` spreads them over machines.
    """
    with workers(data, jobs) as pool:
        searches = [_capacity_cell(config, m, seed) for m in config.mixes for seed in CAPACITY_SEEDS]
        count = len(searches) + len(list(_cells(config, dict.fromkeys(config.mixes, 1.0))))
        done = _fill(pool, store, searches, progress, 0, count)
        capacity = {
            m: statistics.fmean(store[c]["rate_rps"] for c in searches if c.mix == m) for m in config.mixes
        }
        for name, rate in capacity.items():
            require(
                rate > 0, f"SLOs of mix {name}", f"such that {REFERENCE} can meet 90 % at some rate", rate
            )
        cells = list(_cells(config, capacity))
        _fill(pool, store, cells, progress, done, count)
    return Grid(
        config=config,
        cells=tuple(cells),
        results=tuple(store[cell] for cell in cells),
        capacity_rps=capacity,
    )


def _capacity_cell(config: EvidenceConfig, name: str, seed: int) -> Cell:
    return Cell(
        version=__version__, preset=config.preset, mix=name, requests=config.requests, load=1.0, rate_rps=0.0,
        seed=seed, forecast=ORACLE, policy=CAPACITY,
    )  # fmt: skip


def _cells(config: EvidenceConfig, capacity: dict[str, float]) -> Iterator[Cell]:
    for name in config.mixes:
        for load in config.loads:
            for seed in range(config.first_seed, config.first_seed + config.seeds):
                # Six digits are enough for a rate, and keep keys equal from run to run.
                rate_rps = float(f"{load * capacity[name]:.6g}")
                bound = Cell(
                    version=__version__, preset=config.preset, mix=name, requests=config.requests, load=load,
                    rate_rps=rate_rps, seed=seed, forecast=ORACLE, policy=BOUND,
                )  # fmt: skip
                yield bound
                for forecast in config.forecasts:
                    for policy in config.policies:
                        yield replace(bound, forecast=forecast, policy=policy)


def _fill(
    pool: Workers[str | None],
    store: Store,
    cells: Sequence[Cell],
    progress: Progress | None,
    before: int,
    count: int,
) -> int:
    """Run the missing cells; returns how many are done now."""
    missing = [cell for cell in cells if cell not in store]
    done = before + len(cells) - len(missing)
    if progress is not None:
        progress(done, count)
    for index, result in pool.each(_measure, missing):
        store.add(missing[index], result)
        done += 1
        if progress is not None:
            progress(done, count)
    return done


def _measure(data: str | None, cell: Cell) -> dict[str, Any]:
    if cell.policy == CAPACITY:
        return {"rate_rps": _capacity(data, cell)}
    if cell.policy == BOUND:
        work = _workload(data, cell)
        return {"bound": attainment_bound(work, _engine(cell))}
    result: dict[str, Any] = json.loads(json.dumps(Metrics.of(_run(data, cell)).to_dict()))
    return result


def _workload(data: str | None, cell: Cell) -> Workload:
    engine = preset(cell.preset)
    return mix(
        cell.mix, rate_per_s=cell.rate_rps, requests=cell.requests, seed=cell.seed, data_dir=data,
        model=engine.step_time, limits=engine_limits(cell.preset, cell.mix),
        forecast=cell.forecast,
    )  # fmt: skip


def _engine(cell: Cell) -> Engine:
    """The engine of a cell."""
    return replace(preset(cell.preset), limits=engine_limits(cell.preset, cell.mix))


def _run(data: str | None, cell: Cell) -> Run:
    return simulate(
        _workload(data, cell), cell.policy, engine=_engine(cell),
        seed=cell.seed, measure_plans=True,
    )  # fmt: skip


def _capacity(data: str | None, cell: Cell) -> float:
    """Highest rate at which the reference meets the target, by bisection; 0 if none does."""
    low, high = 2.0**-8, 2.0**10

    def meets(rate_rps: float) -> bool:
        trial = replace(cell, rate_rps=rate_rps, policy=REFERENCE)
        return Metrics.of(_run(data, trial)).weighted.value >= TARGET

    if not meets(low):
        return 0.0
    while high > low * (1 + TOLERANCE):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low
