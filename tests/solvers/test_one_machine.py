"""The compiled one-machine rules against brute force over subsets and orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.errors import InputError
from slosched.solvers.static.one_machine import (
    batch_list,
    lawler_moore,
    moore_hodgson,
    smith_backward,
)


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


def test_lawler_moore_refuses_what_it_cannot_hold() -> None:
    """Broken weights and tables beyond memory are refused, naming the alternative."""
    one = np.ones(3)
    with pytest.raises(InputError, match="moore-hodgson"):
        lawler_moore(one, one, one * 0.5)
    with pytest.raises(InputError, match="moore-hodgson"):
        lawler_moore(one, one, one * 1e9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    n=st.integers(1, 40),
    batch=st.integers(1, 9),
    phi=st.sampled_from([1.0, 1.5, 3.0]),
    patience=st.sampled_from([0.2, 1.0]),
)
def test_lists_of_batches_are_plans(seed: int, n: int, batch: int, phi: float, patience: float) -> None:
    """Each request is in one batch, which is no larger than its members may have while they are on time."""
    rng = np.random.default_rng(seed)
    run, cap = rng.uniform(0.1, 9.0, n), rng.integers(1, batch + 1, n)
    latest = rng.choice([-np.inf, -1.0, np.inf, *rng.uniform(0, run.sum() / batch, 3)], n)
    weight = rng.integers(0, 3, n).astype(np.float64)
    order, sizes = batch_list(run, latest, weight, cap, batch, phi=phi, patience=patience)
    assert sorted(order.tolist()) == list(range(n))
    assert sizes.sum() == n
    assert sizes.min() >= 1
    assert sizes.max() <= batch
    clock, at, kept = 0.0, 0, latest >= 0
    for size in sizes.tolist():
        members = order[at : at + size]
        at += size
        if not kept[members].all() or (latest[members] < clock).any():
            break  # from here on those given up, shortest first
        assert size <= cap[members].min()
        clock += run[members].max()
    assert (np.diff(run[order[at:]]) >= 0).all()


def test_lists_of_batches_put_like_lengths_together() -> None:
    """With loose limits long and short requests share no batch; what cannot be met goes last."""
    run = np.array([1.0, 8.0, 1.1, 8.1, 1.2, 8.2, 5.0])
    latest = np.array([90.0, 90, 90, 90, 90, 90, -1.0])
    order, sizes = batch_list(run, latest, np.ones(7), np.full(7, 3), 3, phi=1.0, patience=1.0)
    assert sizes.tolist() == [3, 3, 1]
    assert {frozenset(order[:3].tolist()), frozenset(order[3:6].tolist())} == {
        frozenset({0, 2, 4}),
        frozenset({1, 3, 5}),
    }
    assert order[6] == 6
