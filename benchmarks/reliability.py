"""Do chances come true? The reliability diagram of the policy's words on waiting and on running requests.

    python benchmarks/reliability.py --draws 30          # some three minutes on two cores

When rules are compared, the leader's futures say of each request whether it keeps its limits. The first word
on it while it waits, and the first while it runs, are compared with what became of it, over a population of
random scenarios. Writes ``benchmarks/results/reliability.json``.
"""

from __future__ import annotations

import numpy as np
from common import environment, study_options, write_json

from slosched.core.arrays import Floats
from slosched.lab.parallel import Workers
from slosched.lab.population import draw
from slosched.lab.statistics import Interval
from slosched.planner.chances import RUNS, WAITS
from slosched.policies.slosched import Slosched
from slosched.simulator import simulate


def told(_: None, seed: int) -> Floats:
    """Words and outcomes of one draw, shape (2, 10, 3): by kind and tenth, requests, sum of words, kept."""
    scenario, policy = draw(seed), Slosched()
    simulate(scenario.workload(), policy, engine=scenario.engine)
    out = np.zeros((2, 10, 3))
    for kind in (WAITS, RUNS):
        found = policy.planner.chances.reliability(kind)
        out[kind] = np.stack(
            [found.requests, found.requests * found.said, found.requests * found.met], axis=1
        )
    return np.nan_to_num(out)


def gap_of(bins: Floats) -> float:
    """Mean distance of what was said from what came, weighted by requests."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(1.0, bins[:, 0].sum()))


def main() -> None:
    """Run the draws, print and write the diagram."""
    parser = study_options(__doc__, "reliability.json", draws=30, seed=10_000)
    options = parser.parse_args()
    seeds = list(range(options.seed, options.seed + options.draws))
    with Workers(None, options.jobs) as workers:
        bins = np.array(workers.map(told, seeds))
    kinds = {}
    for kind, name in ((WAITS, "waiting"), (RUNS, "running")):
        own = Interval.of(np.array([gap_of(b[kind]) for b in bins if b[kind].sum() > 0]))
        count, said, met = bins[:, kind].sum(axis=0).T
        some = count > 0
        kinds[name] = {
            "gap": gap_of(bins[:, kind].sum(axis=0)), "gap_of_a_draw": own.mean, "low": own.low,
            "high": own.high, "requests": count.tolist(),
            "said": [float(a / b) if b else None for a, b in zip(said, count, strict=True)],
            "met": [float(a / b) if b else None for a, b in zip(met, count, strict=True)],
        }  # fmt: skip
        each = f"{own.mean:.3f} ({own.low:.3f} to {own.high:.3f})"
        print(f"{name}: gap {gap_of(bins[:, kind].sum(axis=0)):.3f}; of a draw {each}")
        for n, a, b in zip(count[some], said[some], met[some], strict=True):
            print(f"  {int(n):7d} requests  said {a / n:.2f}  kept {b / n:.2f}")
    write_json(options.out, {"environment": environment(), "seeds": seeds, "kinds": kinds})


if __name__ == "__main__":
    main()
