"""What a move of the static annealing costs at b = 8, n = 50 to 1000, against what the core can do.

Times, as medians over repeats of one process: a proposed move over a whole schedule, a scan of all slots
(16 bytes a slot, margin and weight), a plain sum of the same bytes, a dependent read of a random record (64
bytes of 64 kB), a draw of random bits, and a full evaluation.
Run: ``python benchmarks/roofline.py [OUT.json]``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import environment, write_json
from numba import njit

from slosched.solvers.static import delta
from slosched.solvers.static import kernels as static
from slosched.solvers.static.annealing import Schedule, budget_of, case_of, records, seed_words, sigma_s
from slosched.solvers.static.delta import anneal
from slosched.solvers.static.generated import generate
from slosched.solvers.static.objective import Objective
from slosched.solvers.static.reference import full_batches

N, B, MOVES, LOOPS, REPEATS = 1000, 8, 100_000, 20_000, 15


@njit(nogil=True)
def scans(margin: Any, weight: Any, loops: int) -> float:
    """Weight lost by moving all slots, again and again."""
    total = 0.0
    for k in range(loops):
        total += delta._shift_gain(margin, weight, 0, len(margin), 1e-3 * (k & 1023) + 1e-6)
    return total


@njit(nogil=True, fastmath={"reassoc", "nsz", "contract", "arcp"})
def sums(margin: Any, weight: Any, loops: int) -> float:
    """The same bytes read for a plain sum: what loads alone cost."""
    total = 0.0
    for k in range(loops):
        margin[k & 511] = 1e-3 * k  # else the sum is taken once
        part = 0.0
        for j in range(len(margin)):
            part += margin[j] + weight[j]
        total += part
    return total


@njit(nogil=True)
def chases(table: Any, loops: int) -> float:
    """Random records, each draw depending on the one before."""
    total, i = 0.0, 0
    for _ in range(loops):
        total += table[i, 0]
        i = (i * 5 + 1 + int(table[i, 7])) & 1023
    return total


@njit(nogil=True)
def draws(state: Any, loops: int) -> Any:
    """Random bits."""
    bits = np.uint64(0)
    for _ in range(loops):
        bits ^= static.next_bits(state)
    return bits


@njit(nogil=True)
def evaluations(table: Any, order: Any, batches: Any, loops: int) -> float:
    """Full evaluations."""
    total, none = 0.0, np.empty((0, 3))
    for _ in range(loops):
        total += static.evaluate_plan(table, none, 0.0, order, batches, len(batches))[1]
    return total


def ns_each(call: Callable[[], object], times: int) -> float:
    """Median nanoseconds of CPU time for one of `times` things done by a call."""
    call()
    taken = []
    for _ in range(REPEATS):
        begin = time.thread_time_ns()
        call()
        taken.append((time.thread_time_ns() - begin) / times)
    return statistics.median(taken)


def annealing(n: int) -> dict[str, float]:
    """Nanoseconds of a proposed move over a whole schedule, and the share of moves accepted."""
    problem = generate(n, B, load=0.6, seed=1)
    case, batches, budget = case_of(problem, static.LEX), full_batches(n, B), budget_of(MOVES, None, 0)
    order = np.argsort(problem.exec_s(B), kind="stable")
    cooling = Schedule.of(n, Objective.LEX).seconds(sigma_s(case.rec, B), float(problem.weight.mean()))
    found: list[Any] = [None]

    def run() -> None:
        found[0] = anneal(case, order, batches, budget, cooling, static.THRESHOLDS, seed_words(0), False)

    move_ns = ns_each(run, MOVES)
    return {f"move_{n}_ns": move_ns, f"accepted_{n}": found[0][5] / found[0][4]}


def measure() -> dict[str, float]:
    """All times in nanoseconds, and the share of moves accepted."""
    problem = generate(N, B, load=0.6, seed=1)
    table, batches = records(problem), full_batches(N, B)
    order = np.argsort(problem.exec_s(B), kind="stable")
    rng = np.random.default_rng(0)
    margin, weight = rng.normal(0, 1, N), np.ones(N)
    chase = np.zeros((1024, 8))
    state = seed_words(1)
    out = {
        **annealing(50),
        **annealing(200),
        **annealing(N),
        "scan_ns": ns_each(lambda: scans(margin, weight, LOOPS), LOOPS),
        "sum_ns": ns_each(lambda: sums(margin.copy(), weight, LOOPS), LOOPS),
        "record_ns": ns_each(lambda: chases(chase, LOOPS), LOOPS),
        "draw_ns": ns_each(lambda: draws(state, LOOPS), LOOPS),
        "full_ns": ns_each(lambda: evaluations(table, order, batches, LOOPS // 20), LOOPS // 20),
    }
    out["scan_bytes_per_ns"] = 16 * N / out["scan_ns"]
    out["full_over_move"] = out["full_ns"] / out[f"move_{N}_ns"]
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?")
    given = parser.parse_args(argv)
    found = measure()
    for name, value in found.items():
        print(f"{name:20} {value:.3g}")
    if given.out is not None:
        write_json(given.out, {"n": N, "b": B, "environment": environment(), **found})


if __name__ == "__main__":
    main()
