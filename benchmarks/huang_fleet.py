"""Huang's headline with 2 and 4 instances: assignment and order, literal, scaled, ours, and the bound.

The problems are those of ``huang_headline.py`` (40 requests at once, half code with 30 s end to end, half
chat with 10 s and 50 ms a token, known lengths), served by several instances in static batches. Literal is
the published search: shortest first by memory, then temperatures 500 to 20, over assignment and order.
Scaled has temperatures in units of the objective. Ours is the same moves for met requests first. The bound is
that of ``huang_headline.most_met`` with as many machines as all instances have slots.

    python benchmarks/huang_fleet.py --seeds 10
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from common import RESULTS, data_folder, environment, write_json
from huang_headline import ENGINES, most_met, problem

from slosched.lab.cells import provenance
from slosched.routers import huang
from slosched.solvers.static.problem import StaticProblem

INSTANCES = (2, 4)
BATCHES = (1, 2, 4)
RULES = {
    "in turn, by arrival": None,
    "shortest first, by memory": None,
    "huang literal": (huang.LITERAL_T, huang.COOLING, False),
    "huang scaled": (huang.SCALED_T, huang.SCALED_COOLING, False),
    "ours, met first": (huang.SCALED_T, huang.SCALED_COOLING, True),
}
"""First temperature, cooling, and whether met requests come first; None for a rule without search."""


def jobs_of(given: StaticProblem, instances: int, batch: int) -> huang.Jobs:
    """The same requests on equal instances; a request takes as long as in a full batch."""
    per_member, beside = given.decode_terms
    decode = per_member * batch + beside
    prefill = given.exec_s(batch) - decode
    return huang.Jobs(
        prefill_s=np.tile(prefill, (instances, 1)),
        decode_s=np.tile(decode, (instances, 1)),
        ttft_s=given.ttft_s.copy(), e2e_s=given.e2e_s.copy(), tpot_s=given.tpot_s.copy(),
        tokens=given.output_tokens.astype(np.float64), waited_s=np.zeros(len(prefill)),
        busy_s=np.zeros(instances), batch=batch,
    )  # fmt: skip


def trial(code: str, batch: int, cost: Any, instances: int, seed: int) -> dict[str, Any]:
    """Met requests and mean latency of every rule, and the bound."""
    given = problem(code, batch, cost, seed)
    jobs = jobs_of(given, instances, batch)
    n = jobs.prefill_s.shape[1]
    row: dict[str, Any] = {}
    for name, search in RULES.items():
        line, count = np.zeros((instances, n + 1), dtype=np.int64), np.zeros(instances, dtype=np.int64)
        if name == "in turn, by arrival":
            for i in range(n):
                line[i % instances, count[i % instances]] = i
                count[i % instances] += 1
        else:
            need = (given.prompt_tokens + given.output_tokens).astype(np.float64)
            line, count = huang.shortest_first(jobs, np.full(instances, need.sum() / instances), need)
        begin = time.perf_counter()
        if search is not None:
            first_t, cooling, met_first = search
            draws = np.random.default_rng(seed).random((huang.LEVELS * huang.MOVES, 6))
            start = float(huang.evaluate(jobs, line, count, met_first))
            scale = 1.0 if name == "huang literal" else max(1e-9, start)
            huang.anneal(jobs, line, count, draws, first_t * scale, cooling, met_first)
        seconds = time.perf_counter() - begin
        met, latency = outcome(jobs, line, count)
        row[name] = {"met": met, "latency_s": latency, "search_ms": 1000 * seconds}
    row["bound"] = {"met": float(min(n, most_met(given, batch * instances)))}
    return row


def outcome(jobs: huang.Jobs, line: Any, count: Any) -> tuple[float, float]:
    """Met requests and mean latency, from the two objectives."""
    n = int(count.sum())
    ratio = float(huang.evaluate(jobs, line, count, False))
    met = float(np.ceil(float(huang.evaluate(jobs, line, count, True)) - 1e-12))
    return met, (met / ratio / n if ratio > 0 else float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--code", default="long code", choices=["code", "long code"])
    options = parser.parse_args()
    if data_folder() is None:
        raise SystemExit("the public traces are needed: set SLOSCHED_DATA")
    table: dict[str, Any] = {}
    for engine, cost in ENGINES.items():
        for instances in INSTANCES:
            for batch in BATCHES:
                trials = [
                    trial(options.code, batch, cost, instances, 10_000 + seed)
                    for seed in range(options.seeds)
                ]
                cell = f"{engine}, {instances} instances, batch {batch}"
                table[cell] = {
                    name: {
                        key: round(float(np.mean([t[name][key] for t in trials])), 3)
                        for key in trials[0][name]
                    }
                    for name in trials[0]
                }
                met = {name: row["met"] for name, row in table[cell].items()}
                print(cell, met, flush=True)
    write_json(
        RESULTS / "huang_fleet.json",
        {"seeds": options.seeds, "code": options.code, "cells": table, "provenance": provenance(),
         "environment": environment()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
