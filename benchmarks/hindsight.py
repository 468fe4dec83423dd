"""How much of the gap to the bound is real: the best policy, hindsight and the bound, draw by draw.

Knowing all arrivals and lengths, a schedule is searched for, each trial a run of the simulator
(`slosched.lab.hindsight`). The optimum lies between what it reaches and the bound (`slosched.lab.bound`). A
bound of 100 % says nothing and is not shown.

    python benchmarks/hindsight.py --draws 10 --jobs 2
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import environment, study_options, write_json
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from slosched.core.outcome import Outcomes
from slosched.lab.bound import attainment_bound
from slosched.lab.cells import Cell, Contender, provenance, run_cells
from slosched.lab.digests import code_digest
from slosched.lab.evidence import REFUSING, SERVING
from slosched.lab.hindsight import hindsight
from slosched.lab.population import FIRST_REPORTING_SEED, draw
from slosched.lab.store import Plain, Record, Store
from slosched.simulator import simulate

OURS = ("slosched", "slosched:hopeless=reject")
POLICIES = (*SERVING, *REFUSING)
SHOWN = 0.9995
"""A bound from here on rounds to 100 % and says nothing."""


def weighted(out: Outcomes) -> float:
    """Share of the weight that kept its limits."""
    return float(out.workload.weight[out.met].sum() / out.workload.weight.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """One draw under all policies, in hindsight, and its bound; a cell of a study."""

    draw: int
    trials: int

    @property
    def whole(self) -> bool:
        """Figures only."""
        return False

    def key(self) -> Plain:
        """All that the result depends on."""
        found = Cell(scenario=draw(self.draw), contender=Contender.parse(POLICIES[0])).key()
        codes = {text: Contender.parse(text).key()["policy_code"] for text in POLICIES}
        searched = code_digest("slosched.lab.hindsight", "slosched.lab.bound")
        return found | {"contender": f"hindsight, {self.trials} trials", "policy_code": [codes, searched]}

    def record(self) -> Record:
        """Run it."""
        scenario = draw(self.draw)
        work = scenario.workload()
        reached = {}
        for text in POLICIES:
            contender = Contender.parse(text)
            engine = contender.engine(scenario.engine)
            run = simulate(work, contender.make(self.draw), engine=engine, seed=self.draw)
            reached[text] = weighted(run.outcomes)
        best = max(reached, key=lambda text: reached[text])
        found = hindsight(work, scenario.engine, trials=self.trials, seed=self.draw)
        bound = attainment_bound(work, scenario.engine)
        row = {
            "draw": self.draw, "load": scenario.load, "requests": len(work),
            "ours": round(max(reached[text] for text in OURS), 4),
            "best": best, "best_reached": round(reached[best], 4),
            "hindsight": round(max(found.value, reached[best]), 4),
            "bound": round(bound, 4) if bound < SHOWN else None,
        }  # fmt: skip
        return Record(key=self.key(), result=row, provenance=dict(provenance()))


def main() -> None:
    """Search, and print one line a draw."""
    parser = study_options(__doc__, "hindsight.json", draws=10, seed=FIRST_REPORTING_SEED)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--store", type=Path, default=Path("out/hindsight/runs.jsonl"))
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.draws)
    cells = [Searched(draw=seed, trials=options.trials) for seed in seeds]
    with Progress() as bar:
        task = bar.add_task("draws", total=len(seeds))

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        records = run_cells(cells, Store(options.store), jobs=options.jobs, progress=show)
    rows = [record.result for record in records]
    write_json(options.out, {"environment": environment(), "trials": options.trials, "rows": rows})
    table = Table("draw", "load", "best policy", "reaches", "hindsight", "bound", title="Share of weight, %")
    for row in rows:
        bound = "" if row["bound"] is None else f"{100 * row['bound']:.1f}"
        table.add_row(
            str(row["draw"]), f"{row['load']:.2f}", row["best"], f"{100 * row['best_reached']:.1f}",
            f"{100 * row['hindsight']:.1f}", bound,
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
