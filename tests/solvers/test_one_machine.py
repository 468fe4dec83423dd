"""The compiled one-machine rules against brute force over subsets and orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.errors import InputError
from slosched.solvers.one_machine import best_insertion, lawler_moore, moore_hodgson, smith_backward


def jobs(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Processing times, due dates and whole weights."""
    rng = np.random.default_rng(seed)
    p = rng.integers(1, 20, n).astype(np.float64)
    return (
        p,
        rng.integers(1, int(p.sum()) + 2, n).astype(np.float64),
        rng.integers(0, 5, n).astype(np.float64),
    )


def feasible(rows: list[int], p: np.ndarray, d: np.ndarray) -> bool:
    """Whether all rows are on time in order of due date."""
    rows = sorted(rows, key=lambda i: d[i])
    return bool(np.all(np.cumsum(p[rows]) <= d[rows]))


def most(p: np.ndarray, d: np.ndarray, w: np.ndarray) -> float:
    """Most weight of a feasible set, over all subsets."""
    n = len(p)
    sets = ([i for i in range(n) if mask >> i & 1] for mask in range(1 << n))
    return max(float(w[rows].sum()) for rows in sets if feasible(rows, p, d))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), n=st.integers(1, 9))
def test_kept_sets_are_feasible_and_of_most_weight(seed: int, n: int) -> None:
    """Moore-Hodgson keeps the most requests, Lawler-Moore the most weight, and all kept are on time."""
    p, d, w = jobs(seed, n)
    kept = moore_hodgson(p, d)
    assert feasible(np.flatnonzero(kept).tolist(), p, d)
    assert kept.sum() == most(p, d, np.ones(n))
    weighted = lawler_moore(p, d, w)
    assert feasible(np.flatnonzero(weighted).tolist(), p, d)
    assert w[weighted].sum() == most(p, d, w)
    heuristic = moore_hodgson(p, d, w)
    assert feasible(np.flatnonzero(heuristic).tolist(), p, d)
    assert w[heuristic].sum() <= w[weighted].sum()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), n=st.integers(1, 7))
def test_smith_backward_has_least_completion_time(seed: int, n: int) -> None:
    """Among orders of a kept set with nobody late, Smith's backward rule has the least sum of completions."""
    p, d, _ = jobs(seed, n)
    kept = np.flatnonzero(moore_hodgson(p, d))
    by_due = kept[np.argsort(d[kept], kind="stable")]
    order = smith_backward(p, d, by_due)
    assert sorted(order.tolist()) == kept.tolist()
    least = np.inf
    for rows in itertools.permutations(kept.tolist()):
        ends = np.cumsum(p[list(rows)])
        if np.all(ends <= d[list(rows)]):
            least = min(least, float(ends.sum()))
    assert np.all(np.cumsum(p[order]) <= d[order])
    assert np.cumsum(p[order]).sum() == (least if len(kept) else 0.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), n=st.integers(0, 12))
def test_best_insertion_tries_every_position(seed: int, n: int) -> None:
    """The position chosen for a newcomer has the most weight, then the least total start time, of all."""
    p, d, w = jobs(seed, n + 1)
    latest = d - p
    values = []
    for position in range(n + 1):
        rows = np.insert(np.arange(n), position, n)
        start = np.cumsum(p[rows]) - p[rows]
        values.append((float(w[rows][start <= latest[rows]].sum()), -float(start.sum())))
    chosen = best_insertion(p[:n], latest[:n], w[:n], p[n], latest[n], w[n])
    assert values[chosen] == max(values)


def test_lawler_moore_refuses_what_it_cannot_hold() -> None:
    """Broken weights and tables beyond memory are refused, naming the alternative."""
    one = np.ones(3)
    with pytest.raises(InputError, match="moore-hodgson"):
        lawler_moore(one, one, one * 0.5)
    with pytest.raises(InputError, match="moore-hodgson"):
        lawler_moore(one, one, one * 1e9)
