"""Weighted tardiness on one machine: local search against brute force and published instances."""

from __future__ import annotations

import gzip
import json
import math
import os
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.core.result import Status
from slosched.solvers.static.tardiness import apparent_tardiness_cost, solve_tardiness, weighted_tardiness


def instances(name: str) -> list[dict[str, Any]]:
    """Rows of a file of public combinatorial instances, or skip."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("SLOSCHED_DATA") or root.parent / "shared" / "data")
    path = folder / "combinatorial" / name
    if not path.exists():
        pytest.skip(f"{name} is absent: set SLOSCHED_DATA to the data folder")
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("seed", range(8))
def test_small_problems_are_solved(seed: int) -> None:
    """On seven jobs with ties the search ends at the least tardiness over all permutations."""
    rng = np.random.default_rng(seed)
    p, w = rng.choice([1, 2, 2, 5, 8], 7), rng.integers(0, 5, 7)
    d = rng.integers(0, int(p.sum()), 7)
    best = min(weighted_tardiness(order, p, w, d) for order in permutations(range(7)))
    found = solve_tardiness(p, w, d, moves=30_000)
    assert found.objective == best
    assert weighted_tardiness(found.sequence, p, w, d) == best
    assert sorted(found.sequence.tolist()) == list(range(7))
    assert (found.status, found.bound) == ((Status.OPTIMAL, 0.0) if best == 0 else (Status.FEASIBLE, None))


def test_published_values_are_reached_and_never_beaten() -> None:
    """Every tenth OR-Library instance of 40 jobs is solved to its published value and not below."""
    for row in instances("orlib_wt40.jsonl.gz")[::10]:
        found = solve_tardiness(row["p"], row["w"], row["d"], moves=100_000_000, target=row["twt_best"])
        assert found.objective == row["twt_best"], row["id"]


def test_published_late_weights_are_reproduced(oracles: ModuleType) -> None:
    """Lawler-Moore's weight of late jobs equals the stored exact value on every OR-Library instance."""
    for row in instances("orlib_wt40.jsonl.gz"):
        kept = oracles.lawler_moore(row["p"], row["d"], row["w"])[1]
        assert sum(row["w"]) - kept == row["wU_opt"], row["id"]


def test_same_seed_same_result_and_never_worse_than_start() -> None:
    """A budget in moves fixes the result; more moves never make it worse, and zero gives the greedy order."""
    rng = np.random.default_rng(5)
    p, w = rng.integers(1, 100, 60).astype(float), rng.integers(1, 10, 60).astype(float)
    d = rng.integers(0, int(p.sum() * 0.6), 60).astype(float)
    start = weighted_tardiness(apparent_tardiness_cost(p, w, d), p, w, d)
    values = [solve_tardiness(p, w, d, moves=moves, seed=1).objective for moves in (0, 1000, 50_000, 500_000)]
    assert values[0] == start
    assert values == sorted(values, reverse=True)
    assert values[-1] < start
    one, two = (solve_tardiness(p, w, d, moves=20_000, seed=9) for _ in range(2))
    assert one.sequence.tolist() == two.sequence.tolist()
    assert one.moves == two.moves


def test_time_budget_is_kept() -> None:
    """A budget of 20 ms on 200 jobs ends within a few times that on a loaded machine."""
    rng = np.random.default_rng(6)
    p, w = rng.integers(1, 100, 200), rng.integers(1, 10, 200)
    d = rng.integers(0, int(p.sum() * 0.5), 200)
    solve_tardiness(p, w, d, moves=1)
    assert solve_tardiness(p, w, d, budget_ms=20).seconds < 1.0
    assert solve_tardiness(p, w, d, budget_ms=0).moves == 0


def test_trivial_problems() -> None:
    """No job, one job, and jobs that cannot be late are answered at once and proved."""
    assert solve_tardiness([], [], []).status is Status.OPTIMAL
    assert solve_tardiness([3], [2], [1]).objective == 4.0
    easy = solve_tardiness([1, 2, 3], [1, 1, 1], [9, 9, 9])
    assert (easy.status, easy.objective, easy.moves) == (Status.OPTIMAL, 0.0, 0)
    assert solve_tardiness([0, 0], [1, 1], [0, 0]).objective == 0.0


def test_bad_input_is_named() -> None:
    """NaN, negative or misshapen columns and negative budgets are refused by name."""
    with pytest.raises(InputError, match="p must be finite"):
        solve_tardiness([math.nan], [1], [1])
    with pytest.raises(InputError, match="w must be finite"):
        solve_tardiness([1], [-1], [1])
    with pytest.raises(InputError, match="d must be of shape"):
        solve_tardiness([1], [1], [1, 2])
    with pytest.raises(InputError, match="d must be finite"):
        solve_tardiness([1], [1], [math.inf])
    with pytest.raises(InputError, match="budget_ms"):
        solve_tardiness([1], [1], [1], budget_ms=-1)
    with pytest.raises(InputError, match="moves"):
        solve_tardiness([1], [1], [1], moves=-1)
