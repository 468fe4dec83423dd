"""What it would be worth to anneal the order of single requests, on top of the rules.

    python benchmarks/annealed_orders.py --draws 20          # some ten minutes of a core

After each comparison of rules the order of those that wait is annealed against sampled futures: one request
is put just before or after another in the leader's order, and the leader is rolled forward on the same
futures with that order. A better order is kept, and one that is worse by d with chance exp(-d / T); T falls
linearly from `HOTTEST` mean weights to 0. The best order found holds until the next comparison, and the next
search starts with it.

The kernels of `slosched.planner.rollout` know no such order. So this script compiles a copy of them in which
a job has one more column, `OFFSET`, that is added to its key. Tuning seeds. Writes
``benchmarks/results/annealed_orders.json``.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ablation import kept_weight
from common import environment, study_options, write_json

from slosched.core.arrays import Floats, Ints
from slosched.core.snapshot import Snapshot
from slosched.lab.population import draw
from slosched.lab.scenarios import Scenario
from slosched.lab.statistics import Interval
from slosched.planner import futures, planner, rollout
from slosched.policies.slosched import Slosched
from slosched.simulator import simulate

SEARCHES = ((0, 4), (40, 4), (200, 8))
"""Moves and futures of a search; the first is the policy as it is."""

HOTTEST = 0.3
"""First temperature, in mean weights of those that wait."""

AMONG = 48
"""First requests of the order that moves are made among."""

OFFSETS = "annealed_orders.offset"
"""Column of the table: what is added to the key of a request."""

CHANGES = (
    (
        "    COLUMNS,\n) = map(np.uint64, range(14))",
        "    OFFSET,\n    COLUMNS,\n) = map(np.uint64, range(15))",
    ),
    (
        "key[j] = rule_key(engine, jobs, j, rule)\n    for j in range(running)",
        "key[j] = rule_key(engine, jobs, j, rule) + jobs[j, OFFSET]\n    for j in range(running)",
    ),
    ("jobs[i, TPOT], jobs[i, WEIGHT] =", "jobs[i, OFFSET] = 0.0\n        jobs[i, TPOT], jobs[i, WEIGHT] ="),
)
"""What differs in the copy of the kernels."""


def kernels(folder: Path) -> ModuleType:
    """The copy of `slosched.planner.rollout` with the column `OFFSET`."""
    assert rollout.__file__ is not None
    source = Path(rollout.__file__).read_text(encoding="utf-8")
    for old, new in CHANGES:
        assert source.count(old) == 1, f"the kernels have changed: {old!r}"
        source = source.replace(old, new)
    path = folder / "rollout_with_offsets.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class AnnealedOrders(planner.Planner):
    """The planner, with a search of the order after each comparison of rules.

    Parameters
    ----------
    moves, tries
        Moves of a search, and the futures that each is judged on.
    r
        The kernels with offsets.
    """

    def __init__(self, moves: int, tries: int, r: Any) -> None:
        super().__init__()
        self.moves, self.tries, self.r = moves, tries, r
        self.gains: list[float] = []

    def plan(self, snapshot: Snapshot) -> planner.Planned:
        """The step, in the order found last."""
        self._table = snapshot.table
        return super().plan(snapshot)

    def _compare(self, present: planner.Present) -> None:
        super()._compare(present)
        if self.moves and len(present.rows) - present.running > 1:
            self._anneal(present)

    def _anneal(self, present: planner.Present) -> None:
        """Search the order of those that wait, and keep the best offsets of their keys."""
        r, rng, n, running = self.r, self._rng, len(present.rows), present.running
        rule, until_s = self.leader.rule, present.now_s + present.horizon_s
        starts = [planner._future(present, turn % 2 == 0, rng) for turn in range(self.tries)]
        works = [r.work_for(len(start)) for start in starts]
        key = r.ranks(present.jobs[running:], present.engine, rule)
        able = key < r.PARKED / 2

        def value(offsets: Floats) -> float:
            total = 0.0
            for start, work in zip(starts, works, strict=True):
                start[running:n, r.OFFSET] = offsets
                total += r.rollout(start, running, n, present.engine, rule, until_s, work)
            return total / len(starts)

        weight = float(present.jobs[running:, r.WEIGHT].mean())
        last, none = present.jobs[running:, r.OFFSET].copy(), np.zeros(n - running)
        plain = value(none)
        now, at = max((value(last), 1), (plain, 0))
        offsets = last if at else none
        best, found = now, offsets
        for move in range(self.moves):
            order = np.argsort(key + offsets, kind="stable")
            order = order[able[order]][:AMONG]
            if len(order) < 2:
                break
            one, other = rng.choice(order, 2, replace=False)
            behind = key[one] + offsets[one] < key[other] + offsets[other]
            tried = offsets.copy()
            tried[one] = key[other] + offsets[other] + (1e-6 if behind else -1e-6) - key[one]
            worth = value(tried)
            temperature = max(1e-9, HOTTEST * weight * (1.0 - move / self.moves))
            if worth >= now or rng.random() < np.exp((worth - now) / temperature):
                now, offsets = worth, tried
                if now > best:
                    best, found = now, offsets
        self.gains.append((best - plain) / weight)
        self._table.extra(OFFSETS)[present.rows[running:]] = found


def gather(snapshot: Snapshot, rows: Ints, running: int, scale: Floats) -> Floats:
    """Jobs of table rows, with the offsets found for them."""
    jobs = futures.gather(snapshot, rows, running, scale)
    jobs[running:, -1] = snapshot.table.extra(OFFSETS)[rows[running:]]
    return jobs


def attained(scenario: Scenario, moves: int, tries: int, r: ModuleType) -> tuple[float, float]:
    """Attainment by weight in percent, and requests that a search gained in its own futures."""
    policy = Slosched()
    policy.planner = AnnealedOrders(moves, tries, r)
    done = simulate(scenario.workload(), policy, engine=scenario.engine)
    gains = policy.planner.gains
    return kept_weight(done.outcomes), float(np.mean(gains)) if gains else 0.0


def main() -> None:
    """Run the draws with and without the search, print and write the paired differences."""
    parser = study_options(__doc__, "annealed_orders.json", draws=20, seed=0)
    parser.add_argument("--least-load", type=float, default=1.1, help="draws of less load are left out")
    options = parser.parse_args()
    seeds: list[int] = []
    seed = options.seed
    while len(seeds) < options.draws:
        if draw(seed).load >= options.least_load:
            seeds.append(seed)
        seed += 1
    with tempfile.TemporaryDirectory() as folder:
        r = kernels(Path(folder))
        for module, name, value in ((planner, "r", r), (futures, "r", r), (planner, "gather", gather)):
            setattr(module, name, value)
        rows: list[list[tuple[float, float]]] = []
        for seed in seeds:
            rows.append([attained(draw(seed), *search, r) for search in SEARCHES])
            print(seed, *(f"{kept:6.1f} ({gain:.2f})" for kept, gain in rows[-1]), flush=True)
    found = np.array(rows)  # (draws, searches, 2)
    out = []
    for place, (moves, tries) in enumerate(SEARCHES):
        gain = Interval.of(found[:, place, 0] - found[:, 0, 0])
        print(
            f"{moves:4} moves, {tries} futures: {found[:, place, 0].mean():.2f}, gain {gain.mean:+.2f} "
            f"({gain.low:+.2f} to {gain.high:+.2f}); in the model {found[:, place, 1].mean():.2f} requests"
        )
        out.append({
            "moves": moves, "futures": tries, "attainment": float(found[:, place, 0].mean()),
            "gain": gain.mean, "low": gain.low, "high": gain.high,
            "requests_gained_in_the_model": float(found[:, place, 1].mean()),
            "draws": found[:, place, 0].tolist(),
        })  # fmt: skip
    write_json(options.out, {"environment": environment(), "seeds": seeds, "rows": out})


if __name__ == "__main__":
    main()
