"""What each part of the policy is worth: one part, or several together, taken out, on the same scenarios.

    python benchmarks/ablation.py --draws 20             # some ten minutes on two cores
    python benchmarks/ablation.py --draws 2 --only "no search" --only "no errors"

Differences are paired: the policy less the variant, in points of attainment by weight, with a bootstrap
interval over draws. Tuning seeds, since this is where parts are chosen. Writes
``benchmarks/results/ablation.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import SupportsIndex

import numpy as np
from common import environment, study_options, write_json

from slosched.core.arrays import Floats, Ints
from slosched.core.outcome import Outcomes
from slosched.core.snapshot import Snapshot
from slosched.lab.parallel import Workers
from slosched.lab.population import draw
from slosched.lab.scenarios import limits_of
from slosched.lab.statistics import Interval
from slosched.planner import futures, planner, rules
from slosched.planner import rollout as r
from slosched.planner.beliefs import Beliefs
from slosched.planner.planner import PlannerParams
from slosched.policies.slosched import Slosched
from slosched.simulator import simulate

Change = Callable[[Slosched], None]


class Trusting(Beliefs):
    """Takes every forecast as it is, and learns nothing."""

    def watch(self, snapshot: Snapshot) -> Ints:
        """Look away."""
        return snapshot.running[:0]

    def factors(self, label: Ints, said: Floats, e2e_s: Floats) -> Floats:
        """No corrections."""
        return np.ones(len(label))


class NoArrivals(futures.Futures):
    """Foresees nobody."""

    def draw(self, now_s: float, horizon_s: float, latest: bool) -> tuple[Floats, Ints]:
        """None."""
        return np.empty((0, r.COLUMNS)), np.empty(0, dtype=np.int64)


class Believing:
    """The step-time model is right."""

    def watch(self, snapshot: Snapshot) -> float:
        """No correction."""
        return 1.0


def only(entry: SupportsIndex, value: float) -> Change:
    """No rule but those with this value."""

    def change(policy: Slosched) -> None:
        leader, found = policy.planner.leader, rules.family()
        policy.planner.leader = rules.Leader(0, found[found[:, entry] == value])
        assert leader.now == 0

    return change


def no_search(policy: Slosched) -> None:
    """The first rule leads for ever."""
    policy.planner.params = PlannerParams(comparisons=0.0)


def no_preemption(policy: Slosched) -> None:
    """No running answer stops for another request."""
    policy.gives_way = False


def attribute(name: str, made: Callable[[], object]) -> Change:
    """Another part of the planner."""
    return lambda policy: setattr(policy.planner, name, made())


@contextmanager
def constant(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """A constant of a module that no compiled kernel reads, changed for a while."""
    old = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, old)


CHANGES: dict[str, tuple[list[Change], list[tuple[ModuleType, str, object]]]] = {
    "whole": ([], []),
    "no search": ([no_search], []),
    "no walk": ([], [(rules, "VISITS", 0)]),
    "no errors": ([], [(rules, "ERRORS", 0.0)]),
    "no corrected forecasts": ([attribute("_beliefs", Trusting)], []),
    "no arrivals foreseen": ([attribute("_futures", NoArrivals)], []),
    "no correction of step times": ([attribute("_clock", Believing)], []),
    "horizon of 30 s at most": ([], [(planner, "HORIZON_S", (5.0, 30.0))]),
    "one future": ([lambda policy: setattr(policy.planner, "params", PlannerParams(futures=1))], []),
    "four futures": ([lambda policy: setattr(policy.planner, "params", PlannerParams(futures=4))], []),
    "no caps": ([only(r.CAP, np.inf)], []),
    "answers lost at half their time": ([only(r.SLOW, 0.5)], []),
    "answers lost at twice their time": ([only(r.SLOW, 2.0)], []),
    "caution 2": ([only(r.CAUTION, 2.0)], []),
    "e2e limits always pace": ([only(r.WHOLE, 1.0)], []),
    "saved time at once": ([only(r.SPREAD, 0.0)], []),
    "decoding always counts": ([only(r.ANSWER, 1.0)], []),
    "least work per weight": ([only(r.PRICE, 1.0), only(r.URGENCY, 0.0)], []),
    "no preemption": ([no_preemption], []),
    "no search, no preemption": ([no_search, no_preemption], []),
    "no search, no corrected forecasts": ([no_search, attribute("_beliefs", Trusting)], []),
    "no errors, no walk": ([], [(rules, "ERRORS", 0.0), (rules, "VISITS", 0)]),
}
"""What is taken out: changes of a policy, and constants."""


def attained(_: None, job: tuple[int, str]) -> float:
    """Attainment by weight, in percent, of one draw under a variant."""
    seed, name = job
    scenario, policy = draw(seed), Slosched()
    changes, constants = CHANGES[name]
    for change in changes:
        change(policy)
    with ExitStack() as stack:
        for place in constants:
            stack.enter_context(constant(*place))
        done = simulate(scenario.workload(), policy, engine=scenario.engine).outcomes
    return kept_weight(done)


def kept_weight(done: Outcomes) -> float:
    """Attainment by weight, in percent, of those that have limits."""
    work = done.workload
    promised = limits_of(work)
    kept = (
        (done.ttft_s <= work.ttft_s) & (done.tpot_s <= work.tpot_s * (1 + 1e-9)) & (done.e2e_s <= work.e2e_s)
    )
    return float(100 * work.weight[promised][kept[promised]].sum() / work.weight[promised].sum())


def main() -> None:
    """Run all variants on all draws, print and write the paired differences."""
    parser = study_options(__doc__, "ablation.json", draws=20, seed=0)
    parser.add_argument("--only", action="append", choices=list(CHANGES), help="variants; several")
    options = parser.parse_args()
    names = ["whole", *(name for name in options.only or CHANGES if name != "whole")]
    seeds = range(options.seed, options.seed + options.draws)
    jobs = [(seed, name) for seed in seeds for name in names]
    with Workers(None, options.jobs) as workers:
        values = np.array(workers.map(attained, jobs)).reshape(len(seeds), len(names))
    rows = []
    for place, name in enumerate(names):
        worth = Interval.of(values[:, 0] - values[:, place])
        misses = float((100 - values[:, place]).mean() / max(1e-9, (100 - values[:, 0]).mean()))
        rows.append({
            "variant": name, "attainment": float(values[:, place].mean()), "worth": worth.mean,
            "low": worth.low, "high": worth.high, "misses_over_whole": misses,
            "draws": values[:, place].tolist(),
        })  # fmt: skip
        about = f"worth {worth.mean:+6.2f} ({worth.low:+.2f} to {worth.high:+.2f})"
        print(f"{name:34} {values[:, place].mean():6.2f}  {about}")
    write_json(options.out, {"environment": environment(), "seeds": list(seeds), "rows": rows})


if __name__ == "__main__":
    main()
