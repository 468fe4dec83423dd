"""Policies on real traces, replayed: a second table beside the study, which needs no data.

The folder is assembled by the commands in docs/traces.md. A folder that lacks a file is an error.

    SLOSCHED_DATA=data python benchmarks/traces.py      # minutes of processor; goes on where it stopped

Writes ``benchmarks/results/traces.json``; `python benchmarks/readme.py` puts it into docs/traces.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, engine_limits, environment, write_json
from rich.progress import Progress, TaskID

from slosched.core.engine import preset
from slosched.core.metrics import Spread
from slosched.lab.bench import Bench
from slosched.lab.comparison import Comparison
from slosched.lab.population import FIRST_REPORTING_SEED
from slosched.lab.store import Store
from slosched.lab.study import Study
from slosched.workloads.sources import DATA_VARIABLE, Generated, data_folder

MIXES = ("azure", "mooncake")
"""Those whose every file has a publisher: see docs/traces.md."""
POLICIES = ("slosched", "paced-wspt", "edf+d@512", "fcfs")
LOADS = (0.8, 1.2, 1.6)
SEEDS, SECONDS = 3, 60.0
ENGINE = "h100-llama-3.1-8b"


def rows_of(mix: str, found: Comparison) -> list[dict[str, Any]]:
    """Attainment by weight over the seeds, and what ours has more than each, paired by seed."""
    rows = []
    for rate in found.rates_rps:
        ours = [m.weighted.value for m in found.at(POLICIES[0], rate)]
        for policy in POLICIES:
            own = [m.weighted.value for m in found.at(policy, rate)]
            spread = Spread.of(own, bounds=(0.0, 1.0))
            gain = Spread.of((a - b for a, b in zip(ours, own, strict=True)), bounds=(-1.0, 1.0))
            rows.append({
                "mix": mix, "load": round(rate / found.sustained_rps, 6), "policy": policy,
                "mean": spread.mean, "low": spread.low, "high": spread.high,
                "gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high,
                "requests": found.at(policy, rate)[0].requests,
            })  # fmt: skip
    return rows


def _show(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def main() -> None:
    """Run what the store does not have, and write the table."""
    folder = data_folder()
    if folder is None:
        raise SystemExit(f"{DATA_VARIABLE} must name the folder that docs/traces.md assembles, got none.")
    store, rows, about = Store(Path("out/traces/runs.jsonl")), [], {}
    seeds = tuple(range(FIRST_REPORTING_SEED, FIRST_REPORTING_SEED + SEEDS))
    with Progress() as bar:
        for mix in MIXES:
            task = bar.add_task(mix)
            engine = replace(preset(ENGINE), limits=engine_limits(ENGINE, mix))
            source = Generated(kind=mix, duration_s=SECONDS, engine=engine, data=folder)
            study = Study(
                bench=Bench(source=source, engine=engine), policies=POLICIES, seeds=seeds, loads=LOADS
            )
            found = study.run(store, progress=partial(_show, bar, task))
            rows += rows_of(mix, found)
            about[mix] = {name: list(values) for name, values in found.provenance.items()}
    for row in rows:
        print(f"{row['mix']:10} {row['load']:4.1f} {row['policy']:12} {100 * row['mean']:6.1f}")
    content = {"environment": environment(), "engine": ENGINE, "seconds": SECONDS, "seeds": list(seeds)}
    write_json(RESULTS / "traces.json", content | {"rows": rows, "provenance": about})


if __name__ == "__main__":
    main()
