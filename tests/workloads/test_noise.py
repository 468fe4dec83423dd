"""Forecast models err as they say they do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from slosched.core.errors import InputError
from slosched.core.forecast import FORECAST_ATOMS
from slosched.workloads import FORECASTS, Workload, generate, mixed, read, with_forecast
from slosched.workloads.lengths import fitted


def lengths(n: int = 20_000) -> Workload:
    """One class of widely spread answers."""
    output = np.maximum(1, np.rint(np.exp(np.random.default_rng(1).normal(5, 1, n)))).astype(np.int64)
    return Workload.plain(np.arange(float(n)), np.ones(n, dtype=np.int64), output, slo_class="chat")


@pytest.mark.parametrize("model", [*FORECASTS, "lognormal:1.2"])
def test_valid_and_deterministic(model: str) -> None:
    """Atoms are valid, equal for equal seeds; nothing but the forecast changes."""
    w = mixed(5.0, 60.0, seed=1)
    one, same = with_forecast(w, model, seed=3), with_forecast(w, model, seed=3)
    assert np.array_equal(one.atoms, same.atoms)
    assert one.atoms.shape == (len(w), FORECAST_ATOMS)
    assert np.all(one.atoms >= 1)
    assert np.all(np.diff(one.atoms, axis=1) >= 0)
    assert replace(one, atoms=w.atoms).output_tokens is w.output_tokens


@pytest.mark.parametrize(
    "model", ["class-quantiles", "lognormal", "lognormal:1", "predictor-3", "predictor-5"]
)
def test_calibrated(model: str) -> None:
    """The truth falls between two neighbouring atoms as often as the levels say."""
    w = lengths()
    atoms = with_forecast(w, model, seed=5).atoms
    below = np.bincount(np.sum(atoms < w.output_tokens[:, None], axis=1), minlength=FORECAST_ATOMS + 1)
    expected = np.array([0.5, *[1.0] * (FORECAST_ATOMS - 1), 0.5]) / FORECAST_ATOMS
    assert below / len(w) == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize(("model", "tau"), [("predictor-3", 0.567), ("predictor-5", 0.638)])
def test_predictor_has_the_measured_rank_correlation(model: str, tau: float) -> None:
    """Kendall's tau between guess and truth is that of the real predictor, on lengths of another scale."""
    w = lengths()
    guess = with_forecast(w, model, seed=2).atoms.mean(axis=1)
    assert kendalltau(guess, w.output_tokens).statistic == pytest.approx(tau, abs=0.015)
    assert len(np.unique(guess)) == int(model[-1])


def test_predictor_matches_the_published_predictions(data_folder: Path) -> None:
    """On the very lengths it was measured on, the model's median per guess is the class median there."""
    import csv
    import gzip

    with gzip.open(data_folder / "prompts" / "ssjf_bert_predictions_20k.csv.gz", "rt") as file:
        rows = [(int(r["out_tok"]), int(r["pred_5class"])) for r in csv.DictReader(file)]
    true, guess = (np.array(column) for column in zip(*rows, strict=True))
    w = Workload.plain(np.arange(float(len(true))), np.ones(len(true), dtype=np.int64), true)
    atoms = with_forecast(w, "predictor-5", seed=1).atoms
    medians = np.unique(atoms[:, 3:5].mean(axis=1))
    assert medians == pytest.approx([np.median(true[guess == c]) for c in range(5)], rel=0.12)
    assert np.sum(fitted()["predictor"]["5"]) == len(true)


def test_classes_are_told_apart() -> None:
    """Class statistics use the class's own lengths."""
    w = mixed(20.0, 60.0, seed=1)
    mean = with_forecast(w, "class-mean").atoms[:, 0]
    for index in range(len(w.classes)):
        rows = w.class_index == index
        assert mean[rows] == pytest.approx(w.output_tokens[rows].mean())


def test_history() -> None:
    """Statistics come from the history where one is given, by class name; an unknown class uses all of it."""
    w, past = lengths(50), generate("chat", rate_per_s=5.0, duration_s=60.0)
    assert with_forecast(w, "class-mean", history=past).atoms[0, 0] == pytest.approx(
        past.output_tokens.mean()
    )
    other = replace(w, classes=("unseen",))
    assert with_forecast(other, "class-mean", history=past).atoms[0, 0] == pytest.approx(
        past.output_tokens.mean()
    )


def test_lognormal_is_as_wrong_as_sigma() -> None:
    """The log error of the median forecast has the standard deviation asked for."""
    w = lengths()
    atoms = with_forecast(w, "lognormal:0.3", seed=4).atoms
    error = np.log(np.sqrt(atoms[:, 3] * atoms[:, 4]) / w.output_tokens)
    assert error[w.output_tokens > 20].std() == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize("model", ["crystal-ball", "lognormal:-1", "lognormal:x", "oracle:2", ""])
def test_unknown_model(model: str) -> None:
    """An unknown model or parameter is refused by name."""
    with pytest.raises(InputError, match="forecast must be"):
        with_forecast(lengths(10), model)


def test_empty_workload() -> None:
    """No requests, no forecast, no error."""
    empty = lengths(10).rows(np.zeros(10, dtype=bool))
    assert len(with_forecast(empty, "predictor-5")) == 0


def test_trace_read_then_forecast(data_folder: Path) -> None:
    """A real trace keeps its lengths under a real predictor's errors."""
    w = read(data_folder / "traces" / "azure2023_code.csv.gz")
    told = with_forecast(w, "predictor-5", seed=1)
    assert kendalltau(told.atoms.mean(axis=1), w.output_tokens).statistic == pytest.approx(0.638, abs=0.03)
