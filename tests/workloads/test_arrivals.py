"""Arrival processes have the rate and burstiness they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.workloads import Workload, burst_arrivals, gamma_arrivals, resample, rescale
from slosched.workloads.arrivals import first_arrivals
from slosched.workloads.describe import dispersion


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_rate_and_cv(cv: float) -> None:
    """Mean rate and coefficient of variation of the gaps match within sampling error."""
    times = gamma_arrivals(10.0, 5000.0, cv=cv, rng=np.random.default_rng(7))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(50_000, rel=5 * cv / np.sqrt(50_000))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)
    assert np.all(gaps >= 0)
    assert times[0] >= 0
    assert times[-1] < 5000.0


def test_gamma_is_stationary() -> None:
    """Bursty arrivals are as frequent in the first second as later, on average over seeds."""
    first = [len(gamma_arrivals(2.0, 1.0, cv=4.0, rng=np.random.default_rng(s))) for s in range(4000)]
    assert np.mean(first) == pytest.approx(2.0, abs=4 * np.std(first) / np.sqrt(len(first)))


def test_bursts() -> None:
    """On-off arrivals keep the mean rate and are over-dispersed as an interrupted Poisson process is."""
    on, off, rate, window = 5.0, 20.0, 4.0, 1.0
    times = burst_arrivals(rate, 40_000.0, on_s=on, off_s=off, rng=np.random.default_rng(3))
    assert len(times) == pytest.approx(rate * 40_000, rel=0.1)
    assert np.all(np.diff(times) >= 0)
    p, tau = on / (on + off), 1 / (1 / on + 1 / off)
    theory = 1 + 2 * rate * (1 - p) / p * tau * (1 - tau / window * -np.expm1(-window / tau))
    assert dispersion(times, window) == pytest.approx(theory, rel=0.1)


def test_short_burst_windows_are_comparable() -> None:
    """Even windows of a few bursts have a load within a factor of the mean."""
    counts = [
        len(burst_arrivals(10.0, 120.0, on_s=9.0, off_s=41.0, rng=np.random.default_rng(s)))
        for s in range(50)
    ]
    assert min(counts) > 0.55 * 1200
    assert max(counts) < 1.65 * 1200


def test_exact_number() -> None:
    """`first_arrivals` gives exactly the number asked for, none included."""
    rng = np.random.default_rng(0)
    assert [len(first_arrivals(n, 3.0, cv=2.0, rng=rng)) for n in (0, 1, 1000)] == [0, 1, 1000]


@pytest.mark.parametrize(
    ("field", "kwargs"),
    [
        ("rate_per_s", {"rate_per_s": 0.0}),
        ("rate_per_s", {"rate_per_s": float("nan")}),
        ("duration_s", {"duration_s": -1.0}),
        ("duration_s", {"duration_s": float("inf")}),
        ("cv", {"cv": 0.0}),
    ],
)
def test_domains(field: str, kwargs: dict[str, float]) -> None:
    """A parameter outside its domain is named."""
    values = {"rate_per_s": 1.0, "duration_s": 1.0, "cv": 1.0} | kwargs
    with pytest.raises(InputError, match=field):
        gamma_arrivals(
            values["rate_per_s"], values["duration_s"], cv=values["cv"], rng=np.random.default_rng(0)
        )


def trace(n: int = 1000) -> Workload:
    """A bursty trace whose prompt lengths tell its rows."""
    times = np.sort(np.random.default_rng(5).gamma(0.2, 10.0, n).cumsum())
    return Workload.plain(times, np.arange(1, n + 1), np.ones(n, dtype=np.int64))


def test_rescale() -> None:
    """Rescaling gives the mean rate and keeps the ratios of gaps."""
    before, after = trace(), rescale(trace(), 7.0)
    assert (len(after) - 1) / (after.arrival_s[-1] - after.arrival_s[0]) == pytest.approx(7.0)
    assert np.diff(after.arrival_s) == pytest.approx(
        np.diff(before.arrival_s) * after.arrival_s[-1] / before.arrival_s[-1], abs=1e-9
    )


def test_resample_keeps_rate_and_bursts() -> None:
    """Blocks drawn with replacement keep the rate and the dispersion of counts of the trace."""
    before = trace()
    after = resample(before, 20_000, block_s=200.0, seed=1)
    assert len(after) == 20_000
    assert 20_000 / after.arrival_s[-1] == pytest.approx(1000 / before.arrival_s[-1], rel=0.1)
    d0, d1 = dispersion(before.arrival_s, 1.0), dispersion(after.arrival_s, 1.0)
    assert d0 is not None
    assert d1 == pytest.approx(d0, rel=0.2)
    assert np.array_equal(after.prompt_tokens, resample(before, 20_000, block_s=200.0, seed=1).prompt_tokens)
    assert not np.array_equal(
        after.prompt_tokens, resample(before, 20_000, block_s=200.0, seed=2).prompt_tokens
    )


def test_resample_keeps_rows_whole() -> None:
    """A resampled row is a row of the trace: blocks are runs of it, wrapping at the end."""
    after = resample(trace(), 500, block_s=1e9, seed=3)
    steps = np.diff(after.prompt_tokens) % 1000
    assert np.mean(steps == 1) > 0.99
