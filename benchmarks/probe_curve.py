"""How much better a probe would be with more answers to learn from.

    python benchmarks/probe_curve.py --states FOLDER/states --layer 15 [--sizes 96 192 384] [--seed 10000]

`--states` is a folder of ``slosched collect MODEL --chat --layer 15 …``. The prompts are cut into four parts.
Each is forecast by a ranker and a probe that learned from so many answers to the others. Mean absolute errors
in tokens by position, over all prompts; beside them those of the quantiles of all lengths learned from
("history"). Writes ``benchmarks/results/probe_curve.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from probe import errors

from slosched.predictors.states import States, load_states

PARTS = 4
KINDS = ("history", "ranker", "prior", "prior, first belief only")


def curve(states: States, folder: Path, sizes: list[int], seed: int) -> dict[str, dict[str, Any]]:
    """Errors by number of answers learned from, kind of forecast and position."""
    order = np.random.default_rng(seed).permutation(len(states.names))
    found: dict[str, dict[str, Any]] = {}
    for size in sizes:
        total: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        alive: dict[str, int] = defaultdict(int)
        for part in range(PARTS):
            test, rest = order[part::PARTS], np.delete(order, np.s_[part::PARTS])
            known, asked = states.select(np.sort(rest[:size])), states.select(np.sort(test))
            with tempfile.TemporaryDirectory() as work:
                got = errors(known, asked, folder, 1, ["prior"], Path(work) / "probe")
            for position, count in got["requests"].items():
                alive[position] += count
                for kind in KINDS:
                    total[kind][position] += count * got[kind][position]["mae"]
        by_kind = {k: {p: round(s / alive[p], 2) for p, s in v.items()} for k, v in total.items()}
        ratio = {
            k: round(float(np.mean([by_kind[k][p] / by_kind["history"][p] for p in alive])), 3) for k in KINDS
        }
        found[str(size)] = by_kind | {"over history": ratio, "answers": dict(alive)}
        print(size, ratio, file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--states", type=Path, required=True, help="folder of slosched collect")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 192, 384])
    parser.add_argument("--seed", type=int, default=10_000, help="of the parts")
    parser.add_argument("--out", type=Path, default=RESULTS / "probe_curve.json")
    options = parser.parse_args()
    folder = options.states / f"layer-{options.layer}"
    states = load_states(folder if folder.is_dir() else options.states)
    most = len(states.names) - -(-len(states.names) // PARTS)
    if not all(20 <= size <= most for size in options.sizes):
        parser.error(f"--sizes must be from 20 to {most}")
    result = curve(states, options.states, options.sizes, options.seed)
    about = {"environment": environment("torch"), "seed": options.seed, "layer": options.layer}
    write_json(options.out, about | {"by_answers": result, "model": states.model})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
