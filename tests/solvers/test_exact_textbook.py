"""Textbook oracles of one machine against brute force over all permutations."""

from __future__ import annotations

import math
from itertools import permutations
from types import ModuleType

import numpy as np
import pytest

from slosched.core.arrays import Floats
from slosched.core.errors import InputError


def jobs(seed: int, n: int = 6) -> tuple[Floats, Floats, Floats]:
    """Processing times with ties, due dates of which some cannot be met, and whole weights with zeros."""
    rng = np.random.default_rng(seed)
    p = rng.choice([0.5, 1.0, 1.0, 2.5, 4.0], n)
    d = rng.uniform(0.2, 0.8 * float(p.sum()), n)
    d[rng.random(n) < 0.2] = math.inf
    return p, d, rng.integers(0, 6, n).astype(float)


def ends(order: list[int], p: Floats) -> Floats:
    """Completion time of each job under the order."""
    done = np.empty(len(p))
    done[order] = np.cumsum(p[order])
    return done


def on_time(order: list[int], p: Floats, d: Floats, w: Floats) -> float:
    """Weight finished by its due date."""
    return float(w[ends(order, p) <= d + 1e-12].sum())


@pytest.mark.parametrize("seed", range(12))
def test_counts_and_weights_on_time_are_best(oracles: ModuleType, seed: int) -> None:
    """Moore-Hodgson's count and Lawler-Moore's weight equal the best over all permutations."""
    p, d, w = jobs(seed)
    every = [list(order) for order in permutations(range(len(p)))]
    ones = np.ones(len(p))
    order, count = oracles.moore_hodgson(p, d)
    assert count == max(on_time(o, p, d, ones) for o in every) == on_time(order.tolist(), p, d, ones)
    order, weight = oracles.lawler_moore(p, d, w)
    assert weight == max(on_time(o, p, d, w) for o in every) == on_time(order.tolist(), p, d, w)


@pytest.mark.parametrize("seed", range(12))
def test_sums_of_completions_are_least(oracles: ModuleType, seed: int) -> None:
    """Shortest-first and Smith-backward have the least sum of completions, the latter within due dates."""
    p, d, _ = jobs(seed, 5)
    d = d + 0.6 * float(p.sum())
    every = [list(order) for order in permutations(range(len(p)))]
    least = min(ends(o, p).sum() for o in every)
    assert ends(oracles.spt(p).tolist(), p).sum() == pytest.approx(least)
    meeting = [ends(o, p).sum() for o in every if np.all(ends(o, p) <= d + 1e-12)]
    order = oracles.smith_backward(p, d)
    assert (order is None) == (not meeting)
    if order is not None:
        assert np.all(ends(order.tolist(), p) <= d + 1e-9)
        assert ends(order.tolist(), p).sum() == pytest.approx(min(meeting))


@pytest.mark.parametrize("seed", range(12))
def test_subset_programme_is_lexicographically_best(oracles: ModuleType, seed: int) -> None:
    """The programme over subsets finds the best (weight, sum of completions) of all permutations."""
    p, d, w = jobs(seed)
    latest = d - p

    def value(order: list[int]) -> tuple[float, float]:
        done = ends(order, p)
        return float(w[done - p <= latest + 1e-12].sum()), -float(done.sum())

    best = max(value(list(order)) for order in permutations(range(len(p))))
    order, weight, completions = oracles.single_machine_subsets(p, latest, w)
    assert (weight, completions) == pytest.approx((best[0], -best[1]))
    assert value(order.tolist()) == pytest.approx(best)


def test_moore_hodgson_and_lawler_moore_agree_on_larger_queues(oracles: ModuleType) -> None:
    """With equal weights the two classical algorithms count the same jobs on time, 60 at once."""
    for seed in range(10):
        p, d, _ = jobs(seed, 60)
        assert oracles.moore_hodgson(p, d)[1] == oracles.lawler_moore(p, d, np.ones(60))[1]


def test_no_jobs(oracles: ModuleType) -> None:
    """Every oracle accepts the empty problem."""
    assert oracles.spt([]).size == 0
    assert oracles.moore_hodgson([], [])[1] == 0
    assert oracles.lawler_moore([], [], [])[1] == 0
    order = oracles.smith_backward([], [])
    assert order is not None
    assert order.size == 0
    assert oracles.single_machine_subsets([], [], [])[1:] == (0.0, 0.0)


def test_bad_input_is_named(oracles: ModuleType) -> None:
    """NaN, negative and misshapen columns, fractional weights and too many jobs are refused by name."""
    with pytest.raises(InputError, match="processing must be finite"):
        oracles.spt([1.0, math.nan])
    with pytest.raises(InputError, match="processing must be finite"):
        oracles.spt([-1.0])
    with pytest.raises(InputError, match="due must be of shape"):
        oracles.moore_hodgson([1.0], [1.0, 2.0])
    with pytest.raises(InputError, match="due must be numbers"):
        oracles.smith_backward([1.0], [math.nan])
    with pytest.raises(InputError, match="weight must be whole"):
        oracles.lawler_moore([1.0], [1.0], [0.5])
    with pytest.raises(InputError, match=r"at most 20 .* labelling"):
        oracles.single_machine_subsets([1.0] * 21, [1.0] * 21, [1.0] * 21)
