"""Families of lengths, and arrivals whose rate follows a profile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.errors import InputError
from slosched.workloads.arrivals import shaped_arrivals
from slosched.workloads.families import FAMILIES, SYSTEM_TOKENS, draw_family
from slosched.workloads.prefix import shared_prefix


@pytest.mark.parametrize("name", FAMILIES)
def test_family_fits_the_engine_and_is_seeded(name: str) -> None:
    drawn = draw_family(name, 800, longest_tokens=16_384, rng=np.random.default_rng(3))
    again = draw_family(name, 800, longest_tokens=16_384, rng=np.random.default_rng(3))
    assert len(drawn) == 800
    assert (drawn.prompt_tokens + drawn.output_tokens).max() <= 16_384
    assert min(drawn.prompt_tokens.min(), drawn.output_tokens.min()) >= 1
    assert np.array_equal(drawn.prompt_tokens, again.prompt_tokens)
    assert np.array_equal(drawn.output_tokens, again.output_tokens)
    assert np.all(drawn.reused_tokens < drawn.prompt_tokens)


@pytest.mark.parametrize("name", ["agents", "multi-turn"])
def test_sessions_grow(name: str) -> None:
    drawn = draw_family(name, 2000, longest_tokens=65_536, rng=np.random.default_rng(1))
    later = np.flatnonzero(drawn.turn > 0)
    assert len(later) > 1000
    assert np.all(drawn.session[later] == drawn.session[later - 1])
    assert np.all(drawn.turn[later] == drawn.turn[later - 1] + 1)
    assert np.all(drawn.prompt_tokens[later] >= drawn.prompt_tokens[later - 1])
    assert np.all(drawn.pause_s[drawn.turn == 0] == 0)
    first = drawn.turn == 0
    assert np.all(drawn.reused_tokens[first] == (SYSTEM_TOKENS if name == "agents" else 0))


def test_answer_scale_scales_answers_only() -> None:
    one = draw_family("conversation", 500, longest_tokens=65_536, rng=np.random.default_rng(1))
    two = draw_family(
        "conversation", 500, longest_tokens=65_536, answer_scale=2.0, rng=np.random.default_rng(1)
    )
    assert np.array_equal(two.output_tokens, 2 * one.output_tokens)
    assert np.array_equal(two.prompt_tokens, one.prompt_tokens)


def test_common_prefix_is_shared_by_all_sessions() -> None:
    blocks = shared_prefix(
        np.array([0, 1, 0]), np.array([100, 100, 140]), np.array([0, 0, 100]), 32, common_tokens=70
    )
    rows = [blocks.ids[a:b].tolist() for a, b in zip(blocks.offsets, blocks.offsets[1:], strict=False)]
    assert rows[0][:2] == rows[1][:2] == [0, 1]
    assert not set(rows[0][2:]) & set(rows[1][2:])
    assert rows[2][:3] == rows[0][:3]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 300),
    low=st.floats(0.01, 5),
    high=st.floats(0, 5),
    cv=st.floats(0.5, 4),
    jump=st.floats(0.1, 0.9),
    seed=st.integers(0, 1000),
)
def test_shaped_arrivals_are_n_ascending_times(
    n: int, low: float, high: float, cv: float, jump: float, seed: int
) -> None:
    profile = [(0.0, low), (jump, high), (jump, low), (1.0, high)]
    times = shaped_arrivals(n, 7.0, profile=profile, cv=cv, rng=np.random.default_rng(seed))
    assert len(times) == n
    assert np.all(np.diff(times) >= 0)
    assert n == 0 or (times[0] >= 0 and times[-1] < 7.0)


def test_shaped_arrivals_follow_a_ramp() -> None:
    """On a rate that goes from 0 to 2 the count up to time t is t squared."""
    times = shaped_arrivals(20_000, 1.0, profile=[(0, 0), (1, 2)], rng=np.random.default_rng(0))
    for t in (0.2, 0.5, 0.9):
        assert np.mean(times < t) == pytest.approx(t * t, abs=0.015)


@pytest.mark.parametrize(
    "profile",
    [[(0, 1)], [(0, 0), (1, 0)], [(0, 1), (0.5, 1)], [(0, 1), (0.7, 1), (0.6, 1), (1, 1)], [(0, -1), (1, 2)]],
)
def test_bad_profiles_are_named(profile: list[tuple[float, float]]) -> None:
    with pytest.raises(InputError, match="profile must be"):
        shaped_arrivals(5, 1.0, profile=profile, rng=np.random.default_rng(0))
