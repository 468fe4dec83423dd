"""Write the overload instances that come with the package: five mixes, five sizes, both kinds.

Every second one is taken from the public traces where their folder is present, the others from the built-in
generators; `source` in the file says which. Run: ``python benchmarks/build_instances.py OUT.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import data_folder

from slosched.lab.overload import overload
from slosched.solvers.instances import Instance, write
from slosched.solvers.library import check, with_best_known

ENGINES = ("h100-llama-3.1-8b", "rtx4090-llama-3.1-8b")
QUEUES = ("azure", "sharegpt-batch", "mooncake", "agentic", "bursty")
"""Mixes the instances are taken from, in an order that their seeds depend on."""
STATIC = {8: 2, 12: 2, 20: 4, 50: 8, 200: 16}
"""Largest batch by size."""
CONTINUOUS = (8, 20, 50, 200)
LARGE, SMALL = ("agentic", "mooncake"), ("sharegpt-batch",)
"""Mixes whose prompts nearly fill the KV cache of the second engine, and those too easy for the first."""


def instances(data: Path | None) -> Iterator[Instance]:
    """The grid without stored plans; weights, engine and data alternate."""
    for m, name in enumerate(QUEUES):
        for k, (n, max_batch) in enumerate(STATIC.items()):
            traces = data if (m + k) % 2 else None
            engine = ENGINES[1 if name in SMALL or (n <= 20 and name not in LARGE) else 0]
            yield overload(
                name,
                n,
                seed=10 * m + k,
                weighted=k % 2 == 1,
                max_batch=max_batch,
                engine=engine,
                data_dir=traces,
            )
        for k, n in enumerate(CONTINUOUS):
            traces = data if (m + k) % 2 else None
            engine = ENGINES[1 if name in SMALL or (k // 2 % 2 and name not in LARGE) else 0]
            yield overload(
                name,
                n,
                kind="continuous",
                seed=10 * m + k,
                weighted=k % 2 == 1,
                engine=engine,
                data_dir=traces,
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Build, check, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--moves", type=int, default=5_000_000)
    parser.add_argument("--exact-s", type=float, default=8.0)
    given = parser.parse_args(argv)
    found = []
    for bare in instances(data_folder()):
        found.append(with_best_known(bare, moves=given.moves, exact_s=given.exact_s))
        best = {goal: (b.value, b.bound, b.optimal) for goal, b in found[-1].best.items()}
        print(found[-1].name, best, flush=True)
        faults = check(found[-1:])
        if faults:
            raise SystemExit("\n".join(faults))
    write(given.out, found)


if __name__ == "__main__":
    main()
