"""What forecasts are worth to a policy, on random scenarios of the population.

    python benchmarks/worth.py [--draws 10] [--seed 10000] [--policy slosched] [--requests 400]

Needs the public data (SLOSCHED_DATA). The population has lengths, no prompts. So every class of a scenario
gets the prompts of one public set: the prompt whose answer has the rank, among those drawn, that the request
has in its class. A ranker's forecasts have its real errors in rank; lengths are carried over by quantiles. A
ranker of other prompts is used as it is, in tokens of its own world.

`--requests` shortens the window of each draw, and so the run. Known beforehand: each class's mean ("class
mean"), nothing ("history"), 250 or 2,500 answers of one's own or as many as the set has ("light" follows the
ranker alone, "blend" has it beside the history), a ranker of another set ("blend, foreign"), every length
("oracle"). Writes ``benchmarks/results/worth.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from cold_start import online
from common import data_folder, environment, study_options, write_json
from rungs import Set, read_sets

from slosched.core.arrays import Floats, Ints
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.metrics import Spread
from slosched.lab.figures import figures
from slosched.lab.population import draw
from slosched.lab.scenarios import Scenario
from slosched.policies.registry import policy_of
from slosched.predictors.answers import Answers
from slosched.predictors.base import Prompt
from slosched.predictors.ranker import Ranker, train_ranker
from slosched.simulator import simulate

SETS = ("codegen", "gsm8k", "roleplay", "cruxeval")
"""Sets in the order in which classes get them; a foreign ranker is of the set two places on: other texts, and
answers of another length."""

LABELS = (250, 2500)
ASKED_SHARE = 0.4
"""Share of a set's prompts that requests are drawn from; rankers are trained on others."""

FIXED = ("class mean", "light, 250", "light, 2500", "oracle")
ONLINE = ("history", "blend, foreign", "blend, 250", "blend, 2500")
MEAN = "class mean"


class World:
    """A set, split into prompts that are asked and prompts that rankers learn from."""

    def __init__(self, known: Set, seed: int) -> None:
        rng = np.random.default_rng((seed, 7))
        order = rng.permutation(len(known.texts))
        asked = order[: round(ASKED_SHARE * len(order))]
        texts = {known.texts[i] for i in asked.tolist()}
        rest = [i for i in order[len(asked) :].tolist() if known.texts[i] not in texts]
        self.texts = [known.texts[i] for i in asked.tolist()]
        self.lengths = known.lengths[asked]
        self.answers = known.answers(np.array(rest))
        self.seed = seed
        self._rankers: dict[int, Ranker] = {}

    def ranker(self, labels: int) -> Ranker:
        """A light ranker trained on so many answers, or all there are."""
        if labels not in self._rankers:
            rows = np.arange(min(labels, len(self.answers.prompts)))
            some: Answers = self.answers.select(rows)
            self._rankers[labels] = train_ranker(some, seed=self.seed)
        return self._rankers[labels]


def told(tokens: Ints, world: World, abroad: World, rng: np.random.Generator) -> dict[str, Floats]:
    """What each ranker says of the requests of a class, atoms by kind, shape (n, FORECAST_ATOMS)."""
    drawn = rng.integers(len(world.texts), size=len(tokens))
    prompt = np.empty(len(tokens), dtype=np.int64)
    # Ties of lengths are broken at random on both sides.
    prompt[np.lexsort((rng.random(len(tokens)), tokens))] = drawn[
        np.lexsort((rng.random(len(tokens)), world.lengths[drawn]))
    ]
    prompts = [Prompt(world.texts[i]) for i in prompt.tolist()]
    here, there = (np.log(np.sort(v).astype(np.float64)) for v in (world.lengths, tokens))
    places = np.linspace(0, 1, 200)
    source, target = np.quantile(here, places), np.quantile(there, places)
    source += 1e-9 * np.arange(len(source))  # ascending where lengths are equal
    found = {"foreign": abroad.ranker(max(LABELS)).forecast(prompts)}
    for labels in LABELS:
        said = np.log(world.ranker(labels).forecast(prompts))
        found[str(labels)] = np.maximum(1.0, np.exp(np.interp(said, source, target)))
    return found


def worth(
    scenario: Scenario, worlds: Mapping[str, World], policy: str, kinds: Sequence[str]
) -> dict[str, float]:
    """Weighted attainment of one scenario by kind of forecast."""
    real = scenario.traffic()
    work, engine, seed = real.workload, scenario.engine, scenario.seed
    n = len(work)
    rng = np.random.default_rng((seed, 8))
    said = {kind: np.ones((n, FORECAST_ATOMS)) for kind in ("foreign", *map(str, LABELS), MEAN, "oracle")}
    said["oracle"] = np.repeat(work.output_tokens[:, None].astype(np.float64), FORECAST_ATOMS, axis=1)
    for index in range(len(work.classes)):
        rows = np.flatnonzero(work.class_index == index)
        if not len(rows):
            continue
        world, abroad = (worlds[SETS[(index + k) % len(SETS)]] for k in (0, 2))
        said[MEAN][rows] = work.output_tokens[rows].mean()
        for kind, atoms in told(work.output_tokens[rows], world, abroad, rng).items():
            said[kind][rows] = atoms
    classes = [work.classes[i] for i in work.class_index.tolist()]
    found = {}
    for kind in kinds:
        chosen = policy_of(policy, seed=seed)
        what = kind.rpartition(", ")[2]
        given = replace(work, atoms=said[what] if kind in FIXED else np.full((n, FORECAST_ATOMS), 150.0))
        if kind in ONLINE:
            mine = None if kind == "history" else said[what]
            chosen = online(chosen, mine, "ranker", work.output_tokens, classes)
        run = simulate(given, chosen, engine=engine, seed=seed)
        found[kind] = float(figures(run, window_s=real.window_s, burst=scenario.burst)["weighted"])
    return found


def summary(draws: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean attainment of each kind, points over the class mean with their interval, share of the way to the
    oracle.
    """
    rows = list(draws.values())
    gap = np.mean([row["oracle"] - row[MEAN] for row in rows])
    found = {}
    for kind in rows[0]:
        over = Spread.of(100 * (row[kind] - row[MEAN]) for row in rows)
        found[kind] = {
            "attainment": round(100 * float(np.mean([row[kind] for row in rows])), 2),
            "points over class mean": round(over.mean, 2),
            "plus or minus": round(over.high - over.mean, 2),
            "worst draw": round(100 * min(row[kind] - row[MEAN] for row in rows), 2),
            "share of the oracle's gain": round(float(over.mean / (100 * gap)), 3) if gap > 0 else 0.0,
        }
    return found


def main() -> int:
    """Run the draws, one after another; each is written as it ends."""
    parser = study_options(__doc__, "worth.json", draws=10, seed=10_000)
    parser.add_argument("--policy", default="slosched")
    parser.add_argument("--requests", type=int, help="requests of each draw; as drawn if not given")
    parser.add_argument("--kinds", nargs="+", choices=(*FIXED, *ONLINE), default=(*FIXED, *ONLINE))
    options = parser.parse_args()
    if not {MEAN, "oracle"} <= set(options.kinds):
        parser.error(f"--kinds must name {MEAN!r} and 'oracle': the others are measured against them")
    folder = data_folder()
    if folder is None:
        print("The public data is absent: set SLOSCHED_DATA.", file=sys.stderr)
        return 1
    sets = read_sets(folder, [])
    worlds = {name: World(sets[name], options.seed) for name in SETS}
    draws: dict[str, dict[str, float]] = {}
    for seed in range(options.seed, options.seed + options.draws):
        scenario = draw(seed)
        if options.requests is not None:
            scenario = scenario.model_copy(update={"requests": options.requests})
        draws[str(seed)] = worth(scenario, worlds, options.policy, options.kinds)
        about: dict[str, Any] = {
            "environment": environment(), "policy": options.policy,
            "requests": options.requests,
        }  # fmt: skip
        write_json(options.out, about | {"draws": draws, "summary": summary(draws)})
        print(seed, {k: round(100 * v, 1) for k, v in draws[str(seed)].items()}, file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
