"""Train the ranker that ships with the package, and measure it on what it has not seen.

    python benchmarks/build_prior.py [--answers FILE] [--check]

Needs the public data (SLOSCHED_DATA). Trains on GPTeacher (MIT; lengths by GPT-4) and on the prompts of GSM8K
and CRUXEval (MIT; geometric mean of the lengths of 44 and 51 models, by ZeroEval, Apache-2.0). Writes
``slosched/predictors/prior``: weights of hashed n-grams and counts, no text. The card holds Kendall's tau on
each set by a ranker trained on the other three; `--answers` adds answers of another model to measure on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder
from predictors import mean_log, read_sets

from slosched.predictors.answers import Answers, read_answers
from slosched.predictors.prior import FOLDER
from slosched.predictors.ranker import tau, train_ranker

RAREST = 6
"""Prompts that must hold an n-gram: what few hold tells nothing elsewhere and makes the file large."""

SOURCES = {
    "codegen": "GPTeacher code generation, MIT, answers by GPT-4",
    "roleplay": "GPTeacher roleplay, MIT, answers by GPT-4",
    "gsm8k": "GSM8K, MIT; lengths of 44 models by ZeroEval, Apache-2.0",
    "cruxeval": "CRUXEval, MIT; lengths of 51 models by ZeroEval, Apache-2.0",
}


def single(answers: Answers) -> Answers:
    """One answer a prompt: the geometric mean over its models."""
    return Answers.single(
        [p.text for p in answers.prompts], np.maximum(1, np.exp(mean_log(answers)).round().astype(np.int64))
    )


def joined(parts: list[Answers]) -> Answers:
    """Several sets as one."""
    texts = [p.text for part in parts for p in part.prompts]
    return Answers.single(texts, np.concatenate([part.output_tokens for part in parts]))


def main() -> int:
    """Measure, train, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--answers", type=Path, help="answers of another model, to measure on")
    parser.add_argument("--check", action="store_true", help="measure only, write nothing")
    options = parser.parse_args()
    folder = data_folder()
    if folder is None:
        print("The public data is absent: set SLOSCHED_DATA.", file=sys.stderr)
        return 1
    sets = {name: single(answers) for name, answers in read_sets(folder)[0].items()}
    card: dict[str, Any] = {
        "trained_on": {n: f"{len(s.prompts)} prompts: {SOURCES[n]}" for n, s in sets.items()}
    }
    card["tau_on_a_set_left_out"] = {
        name: round(
            tau(
                train_ranker(joined([s for n, s in sets.items() if n != name]), rarest=RAREST).score(
                    [p.text for p in part.prompts]
                ),
                part.output_tokens,
            ),
            3,
        )
        for name, part in sets.items()
    }
    made = train_ranker(joined(list(sets.values())), rarest=RAREST)
    if options.answers is not None:
        other = read_answers(options.answers)
        scores = made.score([p.text for p in other.prompts])
        card["tau_on_answers_of_another_model"] = round(tau(scores[other.prompt], other.output_tokens), 3)
    made.report.update(card)
    print(made.report)
    if not options.check:
        made.save(FOLDER)
        size = sum(path.stat().st_size for path in FOLDER.iterdir())
        print(f"{FOLDER}: {size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
