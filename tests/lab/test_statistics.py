"""The study's arithmetic, by hand: best rivals, losses, regret, intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.errors import InputError
from slosched.lab.statistics import CLOSE, Interval, best_rival, league, ratios


def test_best_rival_is_the_highest_in_each_draw() -> None:
    best, whose = best_rival({"a": np.array([0.2, 0.9, 0.5]), "b": np.array([0.6, 0.1, 0.5])})
    assert best.tolist() == [0.6, 0.9, 0.5]
    assert whose == ["b", "a", "a"]


def test_standing_by_hand() -> None:
    draws = ["one", "two", "three", "four"]
    attained = {
        "ours": [0.50, 0.80, 0.90, 0.71],
        "x": [0.70, 0.70, 0.10, 0.70],
        "y": [0.60, 0.75, 0.95, 0.20],
    }
    found = league(attained, draws, ours="ours")
    us = found.of("ours")
    # Less the best rival: -0.20, +0.05, -0.05, +0.01.
    assert us.advantage.mean == pytest.approx(-0.19 / 4)
    assert (us.ahead, us.level, us.behind) == (0.25, 0.25, 0.5)
    assert us.regret_mean == pytest.approx(0.25 / 4)
    assert us.regret_worst == pytest.approx(0.20)
    assert us.regret_p90 == pytest.approx(np.quantile([0.2, 0, 0.05, 0], 0.9))
    assert (us.worst_draw, us.worst_rival) == ("one", "x")
    assert found.duels["x"].mean == pytest.approx((0.5 + 0.8 + 0.9 + 0.71 - 2.2) / 4)
    assert [s.policy for s in found.standings] == ["ours", "y", "x"]
    # The rivals' own standings count ours among their rivals.
    assert found.of("x").regret_worst == pytest.approx(0.85)
    assert found.of("x").worst_rival == "y"


def test_variants_of_one_policy_are_no_rivals_of_each_other() -> None:
    attained = {"ours": [0.5], "ours:fast": [0.9], "x": [0.4]}
    found = league(attained, ["d"], families={"ours": "ours", "ours:fast": "ours", "x": "x"}, ours="ours")
    assert found.of("ours").advantage.mean == pytest.approx(0.1)
    assert found.of("ours").behind == 0.0
    assert found.of("x").regret_mean == pytest.approx(0.5)


def test_a_policy_alone_has_no_rivals() -> None:
    found = league({"a": [0.5, 0.7]}, ["x", "y"], ours="a")
    assert math.isnan(found.of("a").ahead)
    assert found.to_dict()["standings"][0]["regret_worst"] is None


def test_values_and_draws_must_match() -> None:
    with pytest.raises(InputError, match="attainment of a must be 2 values, got 1"):
        league({"a": [0.5]}, ["x", "y"])


shares = st.lists(st.floats(0, 1, allow_nan=False), min_size=3, max_size=3)


@settings(max_examples=100, deadline=None)
@given(table=st.dictionaries(st.sampled_from("abcdef"), shares, min_size=2))
def test_shares_and_signs_fit_together(table: dict[str, list[float]]) -> None:
    found = league(table, ["x", "y", "z"])
    for s in found.standings:
        assert s.ahead + s.level + s.behind == pytest.approx(1.0)
        others = np.array([v for k, v in table.items() if k != s.policy])
        own = np.array(table[s.policy])
        assert s.behind == np.mean(own - others.max(axis=0) < -CLOSE)
        assert s.regret_worst >= s.regret_p90 - 1e-12
        assert s.regret_worst >= s.regret_mean - 1e-12
        assert s.advantage.low - 1e-9 <= s.advantage.mean <= s.advantage.high + 1e-9
    means = [s.attainment.mean for s in found.standings]
    assert means == sorted(means, reverse=True)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        found = Interval.of(rng.normal(0.3, 0.2, 60))
        inside += found.low <= 0.3 <= found.high
    assert 0.90 < inside / 300 < 0.985


def test_ratios_are_geometric_and_paired() -> None:
    found = ratios([1.0, 8.0, None, 0.0], [2.0, 1.0, 1.0, 1.0])
    assert found.mean == pytest.approx(2.0)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(8.0)
    assert ratios([3.0, 1.0], [1.0, 0.0]).mean == pytest.approx(3.0)
    assert math.isnan(ratios([None], [1.0]).mean)
    assert ratios([0.5], [0.25]).mean == pytest.approx(2.0)


def test_two_points_are_level_and_no_more() -> None:
    """The edge belongs to level, on both sides."""
    found = league({"a": [0.515, 0.485, 0.53, 0.46], "b": [0.5, 0.5, 0.5, 0.5]}, list("wxyz"))
    exact = league({"a": [CLOSE, 0.0, 0.0, 0.0], "b": [0.0, CLOSE, 0.0, 0.0]}, list("wxyz"))
    assert (found.of("a").ahead, found.of("a").behind) == (0.25, 0.25)
    assert (exact.of("a").ahead, exact.of("a").level, exact.of("a").behind) == (0.0, 1.0, 0.0)


def test_who_is_never_behind_has_no_worst_draw() -> None:
    """Nor a rival to whom; who is, has the first of its worst."""
    found = league({"a": [0.5, 0.9, 0.9], "b": [0.5, 0.4, 0.4]}, ["x", "y", "z"], ours="a")
    us, them = found.of("a"), found.of("b")
    assert (us.worst_draw, us.worst_rival, us.regret_worst) == ("", "", 0.0)
    assert (them.worst_draw, them.worst_rival) == ("y", "a")
    assert (found.ours, list(found.duels)) == ("a", ["b"])
    assert league({"a": [0.5]}, ["x"], ours="c").ours is None
    assert league({"a": [0.5], "b": [0.5]}, ["x"], ours="c").duels == {}


def test_ties_are_by_name_and_alone_is_unknown() -> None:
    found = league({"b": [0.5], "a": [0.5], "c": [0.6]}, ["x"])
    assert [s.policy for s in found.standings] == ["c", "a", "b"]
    alone = league({"a": [0.5, 0.7]}, ["x", "y"]).of("a")
    assert all(math.isnan(x) for x in (alone.level, alone.behind, alone.regret_mean, alone.advantage.mean))
    assert (alone.worst_draw, alone.worst_rival) == ("", "")
    with pytest.raises(InputError, match="draws must be one or more"):
        league({}, [])


def test_intervals_of_nothing_one_and_many() -> None:
    """What is not finite is left out; the interval holds 95 % of the means of resamples."""
    assert math.isnan(Interval.of(np.array([np.nan, np.inf])).mean)
    assert math.isnan(Interval.of(np.empty(0)).low)
    one = Interval.of(np.array([0.3, np.nan]))
    assert (one.mean, one.low, one.high) == (0.3, 0.3, 0.3)
    values = np.random.default_rng(1).normal(size=400)
    found = Interval.of(values)
    half = 1.96 * values.std() / 20
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)


def test_the_plain_form_is_nested_and_strict() -> None:
    """Numbers stay, NaN becomes None, at every depth."""
    plain = league({"a": [0.5, 0.7], "b": [0.25, 0.75]}, ["x", "y"], ours="a").to_dict()
    (first, second) = plain["standings"]
    assert (first["policy"], first["ahead"], first["behind"]) == ("a", 0.5, 0.5)
    assert second["attainment"]["mean"] == 0.5
    assert plain["draws"] == ["x", "y"]
    assert plain["duels"]["b"]["mean"] == pytest.approx(0.1)
