"""CP-SAT with fixed durations: bounds of continuous batching against every order of admission."""

from __future__ import annotations

import math
import time
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.core.result import Status
from slosched.solvers.cpsat_continuous import _Queue, _solve, solve_continuous_fixed

pytest.importorskip("ortools")


def best_by_permutation(q: dict[str, Any]) -> float:
    """Most weight over all orders, each request started as early as slots and tokens allow or left out."""
    n, best = len(q["durations_s"]), 0.0
    for order in permutations(range(n)):
        held = list(zip(q["running_s"], q["running_kv_tokens"], strict=True))
        now, value = 0.0, 0.0
        for i in order:
            moments = sorted({now} | {end for end, _ in held if end > now})
            for t in moments:
                active = [kv for end, kv in held if end > t]
                if len(active) < q["slots"] and sum(active) + q["kv_tokens"][i] <= q["kv_capacity"]:
                    if t <= q["latest_start_s"][i]:
                        now, value = t, value + q["weight"][i]
                        held.append((t + q["durations_s"][i], q["kv_tokens"][i]))
                    break
        best = max(best, value)
    return best


def queue(seed: int, n: int = 6) -> dict[str, Any]:
    """A small queue with a running request, some hopeless requests and one that never fits."""
    rng = np.random.default_rng(seed)
    return {
        "durations_s": rng.choice([1.0, 2.0, 2.5, 4.0], n),
        "latest_start_s": rng.uniform(-1, 6, n),
        "weight": rng.choice([1.0, 2.0, 0.5], n),
        "kv_tokens": rng.choice([2, 4, 6, 99], n, p=[0.3, 0.3, 0.3, 0.1]),
        "slots": 2,
        "kv_capacity": 10,
        "running_s": [1.5],
        "running_kv_tokens": [5],
    }


@pytest.mark.parametrize("seed", range(8))
def test_optimum_equals_the_best_order(seed: int) -> None:
    """On six requests CP-SAT proves the weight of the best order of admission."""
    q = queue(seed)
    result = solve_continuous_fixed(**q, budget_s=10)
    assert result.status is Status.OPTIMAL
    assert result.weight == pytest.approx(best_by_permutation(q), abs=1e-4)
    assert result.bound == pytest.approx(result.weight, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_schedule_respects_slots_tokens_and_limits(seed: int) -> None:
    """Starts are in time, and at no moment are more slots or tokens held than there are."""
    rng = np.random.default_rng(seed)
    n = 25
    run, latest = rng.lognormal(1, 0.7, n), rng.uniform(0, 12, n)
    kv = rng.integers(50, 500, n)
    result = solve_continuous_fixed(run, latest, np.ones(n), kv, 4, 1000, budget_s=1, resolution_s=1e-2)
    assert result.weight <= result.bound
    placed = np.flatnonzero(np.isfinite(result.start_s))
    assert result.weight == len(placed)
    for i in placed.tolist():
        assert result.start_s[i] <= latest[i]
        now = result.start_s[i]
        active = [j for j in placed if result.start_s[j] <= now < result.start_s[j] + run[j]]
        assert len(active) <= 4
        assert kv[active].sum() <= 1000


def test_two_that_fit_to_the_instant() -> None:
    """Two jobs of 1.5 s and the second due at 3 s: a unit of one second must not lose one."""
    result = solve_continuous_fixed([1.5, 1.5], [0.0, 1.5], [1.0, 1.0], [1, 1], 1, 1, resolution_s=1.0)
    assert (result.weight, result.bound) == (2.0, 2.0)
    columns = [np.array(c) for c in ([1.5, 1.5], [0.0, 1.5], [1.0, 1.0], [1, 1])]
    tight = _Queue(columns[0], columns[1], columns[2], columns[3], 1, 1, np.empty(0), np.empty(0, np.int64))
    whole = tight.rounded(1.0)
    assert (whole.duration_s.tolist(), whole.latest_s.tolist()) == ([1.0, 1.0], [0.0, 2.0])
    proved, ceiling, found = _solve(tight, np.full(2, math.inf), 1.0, time.perf_counter() + 300, 2, 0)
    assert proved
    assert ceiling == 2.0
    assert found is not None


@pytest.mark.parametrize("unit_s", [1e-4, 0.3, 1.0])
def test_bound_of_one_solve(unit_s: float) -> None:
    """The bound of one solve is at least the best of all orders; at a fine unit it is that."""
    for seed in range(6):
        q = queue(seed)
        best = best_by_permutation(q)
        running = np.array(q["running_s"]), np.array(q["running_kv_tokens"])
        whole = _Queue(
            q["durations_s"], q["latest_start_s"], q["weight"], q["kv_tokens"], q["slots"], q["kv_capacity"],
            running[0], running[1],
        )  # fmt: skip
        nothing = np.full(len(q["weight"]), math.inf)
        proved, ceiling, _ = _solve(whole, nothing, unit_s, time.perf_counter() + 300, 2, 0)
        assert proved
        assert ceiling >= best - 1e-9
        if unit_s < 1e-3:
            assert ceiling == pytest.approx(best, abs=1e-4)


def test_trivial_queues() -> None:
    """An empty queue, one without limits and one where nothing can start are settled without a search."""
    nothing = solve_continuous_fixed([], [], [], [], 1, 1)
    assert (nothing.status, nothing.weight, nothing.bound) == (Status.OPTIMAL, 0.0, 0.0)
    easy = solve_continuous_fixed([1.0] * 5, [math.inf] * 5, [1.0] * 5, [1] * 5, 1, 1)
    assert (easy.status, easy.weight) == (Status.OPTIMAL, 5.0)
    late = solve_continuous_fixed([1.0], [-0.1], [1.0], [1], 1, 1)
    assert (late.status, late.weight, late.start_s.tolist()) == (Status.OPTIMAL, 0.0, [math.inf])


def test_no_time_gives_a_true_bound() -> None:
    """With a budget of 0 the greedy schedule is returned and the bound is not below the optimum."""
    for seed in range(4):
        hurried, settled = (solve_continuous_fixed(**queue(seed), budget_s=b) for b in (0.0, 10.0))
        assert hurried.weight <= settled.weight + 1e-9
        assert hurried.bound >= settled.weight - 1e-9


def test_bad_input_is_named() -> None:
    """Columns off their domain, an overfull engine and bad settings are refused by name."""
    good = queue(1)
    for name, value in (
        ("durations_s", [math.nan] * 6),
        ("latest_start_s", [math.nan] * 6),
        ("weight", [-1.0] * 6),
        ("kv_tokens", [0.5] * 6),
        ("slots", 0),
        ("kv_capacity", 0),
        ("running_kv_tokens", [11]),
        ("running_s", [1.0, 2.0, 3.0]),
    ):
        with pytest.raises(InputError, match="running" if name.startswith("running") else name):
            solve_continuous_fixed(**{**good, name: value})
    for name in ("budget_s", "resolution_s", "workers", "seed"):
        with pytest.raises(InputError, match=name):
            solve_continuous_fixed(**good, **{name: -1})
