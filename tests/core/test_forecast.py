"""Forecasts of output length and what is left of them when part of the answer is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.errors import InputError
from slosched.core.forecast import (
    FORECAST_ATOMS,
    OUTLIVED_GROWTH,
    LengthForecast,
    lognormal_atoms,
)
from slosched.core.remaining import remaining_tokens

lengths = st.floats(1.0, 1e5)
samples = st.lists(lengths, min_size=1, max_size=30).map(LengthForecast.sample)
lognormals = st.builds(LengthForecast.lognormal, lengths, st.floats(0.0, 3.0))
points = lengths.map(LengthForecast.point)
forecasts = samples | lognormals | points


@given(forecast=forecasts)
def test_atoms_are_sorted_lengths(forecast: LengthForecast) -> None:
    """Every constructor gives the fixed number of ascending lengths of at least 1."""
    assert len(forecast.atoms) == FORECAST_ATOMS
    assert list(forecast.atoms) == sorted(forecast.atoms)
    assert 1 <= forecast.atoms[0] <= forecast.mean_tokens * (1 + 1e-12)
    assert forecast.mean_tokens <= forecast.atoms[-1] * (1 + 1e-12)


@given(forecast=forecasts, generated=st.integers(0, 200_000), more=st.integers(0, 1000))
def test_a_longer_answer_is_expected_longer(forecast: LengthForecast, generated: int, more: int) -> None:
    """Conditioning raises the mean, puts every atom above what is there, and keeps them sorted."""
    given_now = forecast.given(generated)
    later = forecast.given(generated + more)
    assert given_now.mean_tokens >= forecast.mean_tokens * (1 - 1e-12)
    assert given_now.atoms[0] > generated
    assert list(given_now.atoms) == sorted(given_now.atoms)
    assert later.mean_tokens >= given_now.mean_tokens * (1 - 1e-9) or generated >= max(forecast.atoms)


@given(forecast=forecasts)
def test_nothing_generated_changes_nothing(forecast: LengthForecast) -> None:
    """Conditioning on 0 tokens leaves the forecast as it is."""
    assert forecast.given(0).atoms == pytest.approx(forecast.atoms, rel=1e-12)


@given(generated=st.integers(100, 10_000))
def test_outlived_forecasts_grow(generated: int) -> None:
    """Past all atoms, a fixed share of the present length is expected on top, at least one token."""
    mean = LengthForecast.point(100).given(generated).mean_tokens
    assert mean == pytest.approx(generated * (1 + OUTLIVED_GROWTH))
    assert LengthForecast.point(1).given(1).mean_tokens == 2.0


@settings(max_examples=200, deadline=None)
@given(queue=st.lists(st.tuples(forecasts, st.integers(0, 120_000)), min_size=1, max_size=10))
def test_kernel_agrees_with_conditioning(queue: list[tuple[LengthForecast, int]]) -> None:
    """The compiled mean of what is left is that of the atoms above what is there, row by row."""
    atoms = np.array([forecast.atoms for forecast, _ in queue])
    generated = np.array([count for _, count in queue], dtype=np.int64)
    rows = np.arange(len(queue), dtype=np.int64)[::-1].copy()
    left = remaining_tokens(atoms, rows, generated)
    for value, row in zip(left.tolist(), rows.tolist(), strict=True):
        forecast, count = queue[row]
        alive = [a - count for a in forecast.atoms if a > count]
        expected = sum(alive) / len(alive) if alive else OUTLIVED_GROWTH * count
        assert value == pytest.approx(max(1.0, expected), rel=1e-9)


@given(forecast=forecasts, generated=st.integers(0, 120_000))
def test_kernel_agrees_with_given(forecast: LengthForecast, generated: int) -> None:
    """The compiled mean of what is left is that of the conditioned forecast."""
    left = remaining_tokens(
        np.array([forecast.atoms]), np.zeros(1, dtype=np.int64), np.array([generated], dtype=np.int64)
    )
    expected = forecast.given(generated).mean_tokens - generated
    assert left[0] == pytest.approx(max(1.0, expected), rel=1e-6)


def test_quantiles_by_hand() -> None:
    """Between two levels lengths are interpolated in the logarithm; beyond the outer ones they are flat."""
    forecast = LengthForecast.quantiles({0.9: 1000, 0.1: 10})
    assert forecast.atoms[0] == pytest.approx(10)
    assert forecast.atoms[-1] == pytest.approx(1000)
    level = 3.5 / FORECAST_ATOMS
    assert forecast.atoms[3] == pytest.approx(10 * 100 ** ((level - 0.1) / 0.8))
    assert LengthForecast.quantiles({0.5: 7}).atoms == (7.0,) * FORECAST_ATOMS


@given(median=st.floats(50.0, 1e4), sigma=st.floats(0.0, 1.0))
def test_lognormal_is_centred(median: float, sigma: float) -> None:
    """Half of a lognormal forecast is below its median; its rows agree with the table's."""
    forecast = LengthForecast.lognormal(median, sigma)
    assert forecast.quantile_tokens(0.5) == pytest.approx(median, rel=0.03)
    assert lognormal_atoms([median], sigma)[0].tolist() == list(forecast.atoms)


@given(forecast=forecasts, low=st.floats(0.01, 0.98), step=st.floats(0.0, 0.5))
def test_quantiles_rise(forecast: LengthForecast, low: float, step: float) -> None:
    """A higher probability never gives a shorter length."""
    assert forecast.quantile_tokens(low) <= forecast.quantile_tokens(min(0.99, low + step))


@pytest.mark.parametrize("tokens", [0, 0.99, -3, math.nan, math.inf])
def test_bad_lengths_are_refused(tokens: float) -> None:
    """No constructor takes a length below 1 or one that is not finite."""
    with pytest.raises(InputError, match="tokens must be"):
        LengthForecast.point(tokens)
    with pytest.raises(InputError, match="tokens must be"):
        LengthForecast.sample([5.0, tokens])
    with pytest.raises(InputError, match="levels must be"):
        LengthForecast.quantiles({0.5: tokens})
    with pytest.raises(InputError, match="median_tokens must be"):
        LengthForecast.lognormal(tokens, 0.5)
    with pytest.raises(InputError, match="atoms must be"):
        LengthForecast((tokens,) * FORECAST_ATOMS)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, math.nan])
def test_bad_probabilities_are_refused(level: float) -> None:
    """Probabilities are above 0 and below 1."""
    with pytest.raises(InputError, match="levels must be probabilities above 0 and below 1"):
        LengthForecast.quantiles({level: 10})
    with pytest.raises(InputError, match="probability must be above 0 and below 1"):
        LengthForecast.point(3).quantile_tokens(level)


def test_other_bad_forecasts_are_refused() -> None:
    """Wrong number or order of atoms, no quantiles, falling quantiles, no sample, bad sigma."""
    with pytest.raises(InputError, match=f"atoms must be {FORECAST_ATOMS} lengths"):
        LengthForecast((1.0, 2.0))
    with pytest.raises(InputError, match="ascending"):
        LengthForecast(tuple(float(a) for a in range(FORECAST_ATOMS, 0, -1)))
    with pytest.raises(InputError, match="at least one"):
        LengthForecast.quantiles({})
    with pytest.raises(InputError, match="do not fall"):
        LengthForecast.quantiles({0.1: 9, 0.9: 3})
    with pytest.raises(InputError, match="one or more"):
        LengthForecast.sample([])
    for sigma in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="sigma must be"):
            LengthForecast.lognormal(5, sigma)
