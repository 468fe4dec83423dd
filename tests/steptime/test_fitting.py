"""Fitting: known coefficients come back, and errors are measured on steps not seen."""

from pathlib import Path

import numpy as np
import pytest

from slosched.core.arrays import Floats
from slosched.core.errors import InputError
from slosched.core.fitting import fit, fit_file, plot_fit
from slosched.core.steptime import StepTimeModel

TRUTH = StepTimeModel(
    base_s=0.008, prefill_token_s=1.5e-5, attention_work_s=9e-10, sequence_s=6e-5, kv_token_s=5e-8,
    knee_tokens=256, knee_token_s=3e-5,
)  # fmt: skip


def steps(n: int, seed: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Steps as an engine makes them: most decode only, some with a chunk of a prompt."""
    rng = np.random.default_rng(seed)
    chunk: Floats = np.where(rng.random(n) < 0.4, rng.integers(16, 2048, n), 0).astype(float)
    before = rng.integers(0, 4000, n).astype(float)
    sequences: Floats = rng.integers(0, 256, n).astype(float)
    context = sequences * rng.integers(100, 3000, n).astype(float)
    return chunk, chunk * (before + chunk / 2), sequences, context


def test_fit_recovers_known_coefficients() -> None:
    """Steps made by a model with 2 % noise give its coefficients back, knee included."""
    work = steps(4000, seed=1)
    noise = np.random.default_rng(2).normal(1.0, 0.02, 4000)
    model, report = fit(*work, TRUTH.predict(*work) * noise)
    assert model.knee_tokens == TRUTH.knee_tokens
    for name in ("base_s", "prefill_token_s", "attention_work_s", "sequence_s", "kv_token_s", "knee_token_s"):
        assert getattr(model, name) == pytest.approx(getattr(TRUTH, name), rel=0.08), name
    assert report.mape == pytest.approx(0.016, abs=0.003)
    assert report.r2 > 0.99
    assert (report.rows_fitted, report.rows_held_out) == (3200, 800)


def test_fit_without_knee_finds_none() -> None:
    """Steps without a knee are given none, though the grid is searched."""
    work = steps(2000, seed=3)
    plain = StepTimeModel(base_s=0.008, prefill_token_s=4e-5, sequence_s=6e-5, kv_token_s=5e-8)
    noise = np.random.default_rng(4).normal(1.0, 0.02, 2000)
    model, _ = fit(*work, plain.predict(*work) * noise)
    assert (model.knee_tokens, model.knee_token_s) == (0, 0.0)


def test_coefficients_are_never_negative() -> None:
    """Steps that seem to get cheaper with more sequences give a coefficient of 0, not below."""
    sequences = np.arange(1.0, 101.0)
    zeros = np.zeros(100)
    model, _ = fit(zeros, zeros, sequences, zeros, 0.02 - 1e-5 * sequences)
    assert model.sequence_s == 0.0


def test_stalled_steps_do_not_wreck_the_fit() -> None:
    """With one step in fifty taking ten times as long, like steps are still predicted within 5 %."""
    work = steps(4000, seed=5)
    clean = TRUTH.predict(*work)
    stalled = np.where(np.random.default_rng(6).random(4000) < 0.02, 10.0, 1.0)
    model, _ = fit(*work, clean * stalled)
    assert np.median(np.abs(model.predict(*work) / clean - 1.0)) < 0.05


def test_held_out_rows_are_not_fitted() -> None:
    """Reported errors come from rows the fit never saw: noise it could only memorise shows in full."""
    rng = np.random.default_rng(7)
    zeros = np.zeros(10)
    _, report = fit(zeros, zeros, rng.integers(1, 9, 10), zeros, rng.uniform(0.01, 0.02, 10), seed=1)
    assert report.rows_fitted + report.rows_held_out == 10
    assert report.mape > 0.05


def test_same_seed_same_fit() -> None:
    """The seed alone chooses the held-out rows."""
    work = steps(200, seed=8)
    seconds = TRUTH.predict(*work) * np.random.default_rng(9).normal(1.0, 0.05, 200)
    first, second, other = (fit(*work, seconds, seed=seed) for seed in (3, 3, 4))
    assert first[0] == second[0]
    assert np.array_equal(first[1].measured_s, second[1].measured_s)
    assert not np.array_equal(first[1].measured_s, other[1].measured_s)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": np.zeros(20)}, "seconds must be above 0"),
        ({"seconds": np.full(20, np.nan)}, "seconds must be finite"),
        ({"kv_tokens": np.full(20, -1.0)}, "kv_tokens must be finite numbers of at least 0"),
        ({"sequences": np.ones(19)}, "sequences must be shape"),
        ({"knee": -5}, "knee must be"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    """Each bad argument is refused by name."""
    good: dict[str, object] = {
        name: np.ones(20)
        for name in ("prefill_tokens", "attention_work", "sequences", "kv_tokens", "seconds")
    }
    with pytest.raises(InputError, match=message):
        fit(**(good | change))  # type: ignore[arg-type]


def test_too_few_rows_are_refused() -> None:
    """A handful of steps is no basis for a fit."""
    with pytest.raises(InputError, match="rows must be at least 10, got 9"):
        fit(*(np.ones(9),) * 5)


def test_fit_file_and_plot(tmp_path: Path) -> None:
    """A log on disk is fitted as its arrays are, and the plot is written."""
    work = steps(300, seed=10)
    table = np.column_stack([*work, TRUTH.predict(*work)])
    path = tmp_path / "steps.csv"
    header = "prefill_tokens,attention_work,sequences,kv_tokens,seconds"
    np.savetxt(path, table, delimiter=",", header=header, comments="", fmt="%.17g")
    model, report = fit_file(path, seed=2)
    assert model == fit(*work, TRUTH.predict(*work), seed=2)[0]
    assert report.mape < 1e-6
    assert plot_fit(report, tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
