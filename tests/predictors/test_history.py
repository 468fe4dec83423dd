"""Class history: what it learns, forgets and never counts as whole."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.predictors import Prompt, load_predictor
from slosched.predictors.calibration import censored_quantiles
from slosched.predictors.history import HALF_LIFE, KEPT, LEAST, ClassHistory


def test_quantiles_are_those_of_the_class() -> None:
    """A stationary class: 80 % of new answers fall between the outer quantiles."""
    rng = np.random.default_rng(0)
    history = ClassHistory()
    inside = []
    for tokens in np.maximum(1, rng.lognormal(5, 0.8, 3000)).astype(int).tolist():
        forecast = history.of("chat")
        inside.append(forecast.quantile_tokens(0.1) <= tokens <= forecast.quantile_tokens(0.9))
        history.observe("chat", tokens)
    assert 0.77 < np.mean(inside[LEAST:]) < 0.83


def test_answers_cut_off_do_not_shorten_the_forecast() -> None:
    """True median 200, capped at 150: taken as whole, the median would be 150."""
    rng = np.random.default_rng(1)
    true = rng.lognormal(np.log(200), 0.6, 2000)
    capped = np.minimum(true, 150)
    history = ClassHistory()
    for tokens, whole in zip(capped, true <= 150, strict=True):
        history.observe("chat", int(tokens), cut=not whole)
    assert history.of("chat").quantile_tokens(0.5) > 150
    assert history.of("chat").quantile_tokens(0.1) == pytest.approx(np.quantile(true, 0.1), rel=0.2)


def test_running_requests_count_as_lower_bounds() -> None:
    """Long answers come late: those under way tell of them before they end."""
    history = ClassHistory()
    for _ in range(40):
        history.observe("chat", 10)
    alone = history.of("chat").mean_tokens
    history.running = lambda: [("chat", 1, 500)] * 20 + [("code", 1, 9000)] * 20
    for _ in range(40):
        history.observe("chat", 10)
    assert alone == 10
    assert history.of("chat").quantile_tokens(0.9) > 500
    assert history.of("chat").quantile_tokens(0.9) < 5000


def test_an_old_regime_is_forgotten() -> None:
    """After twice the half-life the new lengths outweigh the old ones; memory is bounded."""
    history = ClassHistory()
    for _ in range(2000):
        history.observe("chat", 1000)
    for _ in range(2 * HALF_LIFE):
        history.observe("chat", 10)
    assert history.of("chat").quantile_tokens(0.5) == 10
    assert sum(map(len, history.as_dict().values())) <= KEPT


def test_prompt_lengths_have_histories_of_their_own() -> None:
    """Once a bucket has enough answers; the class speaks for the others, a broad forecast for new classes."""
    history = ClassHistory()
    for _ in range(LEAST):
        history.observe("chat", 10, prompt_tokens=20)
        history.observe("chat", 900, prompt_tokens=2000)
    assert history.of("chat", 30).mean_tokens == 10
    assert history.of("chat", 3000).mean_tokens == 900
    assert 10 < history.of("chat", 300).mean_tokens < 900
    atoms = history.forecast([Prompt("", 30, "chat"), Prompt("", 30, "new")])
    assert atoms.shape == (2, 8)
    assert np.ptp(atoms[1]) > 100


def test_few_answers_of_a_class_count_beside_the_general_forecast() -> None:
    """Quantiles move from the general forecast to the class's with each answer, never past it."""
    history = ClassHistory()
    means = []
    for _ in range(LEAST + 4):
        means.append(history.of("chat").mean_tokens)
        history.observe("chat", 10)
    assert all(a >= b for a, b in pairwise(means))
    assert means[4] < 0.7 * means[0]
    assert means[-1] == 10


def test_saved_history_forecasts_the_same(tmp_path: Path) -> None:
    """And a broken one is refused by name."""
    history = ClassHistory()
    for tokens in range(1, 60):
        history.observe("chat", tokens, prompt_tokens=7 * tokens, cut=tokens % 5 == 0)
    again = load_predictor(history.save(tmp_path))
    asked = [Prompt("", 10, "chat"), Prompt("", 200, "chat"), Prompt("", 10, "x")]
    assert np.array_equal(again.forecast(asked), history.forecast(asked))
    for rows in ([[1, 2]], [["a", 1, 0]], [[99, 1, 0]], 5):
        with pytest.raises(InputError, match="lengths must be"):
            ClassHistory().restore({"chat": rows})  # type: ignore[dict-item]


def test_censored_quantiles_are_kaplan_and_meiers() -> None:
    """Against random censoring the true quantiles come back; without censoring plain ones do."""
    rng = np.random.default_rng(2)
    true, limit = rng.exponential(100, 20_000), rng.exponential(200, 20_000)
    found = censored_quantiles(np.minimum(true, limit), true > limit, [0.1, 0.5, 0.9])
    assert found == pytest.approx(-100 * np.log1p(-np.array([0.1, 0.5, 0.9])), rel=0.06)
    plain = censored_quantiles(true, np.zeros(20_000, bool), [0.25, 0.75])
    assert plain == pytest.approx(np.quantile(true, [0.25, 0.75]), rel=0.01)
    assert np.all(np.isfinite(censored_quantiles([50, 60], [True, True])))
    assert censored_quantiles([50, 60], [True, True])[0] > 60


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (None, "lengths must be"),
        ([1], "lengths must be"),
        ({"chat": [[99, 5, 0]]}, "lengths must be"),
        ({"chat": [[0, float("nan"), 0]]}, "lengths must be"),
        ({"chat": [[0, float("inf"), 0]]}, "lengths must be"),
        ({"chat": [[0, -5, 0]]}, "lengths of chat must be from 0 to 1000000000 tokens, got -5"),
        ({"chat": [[0, 10**400, 0]]}, "lengths of chat must be from 0 to 1000000000 tokens, got inf"),
    ],
)
def test_lengths_that_are_none_are_refused_by_file_and_class(
    tmp_path: Path, lengths: object, words: str
) -> None:
    """Else the first forecast of that class would fail, and all after it."""
    folder = ClassHistory().save(tmp_path / "h")
    (folder / "predictor.json").write_text(json.dumps({"kind": "history", "lengths": lengths}))
    with pytest.raises(InputError, match=rf"predictor\.json: {words}"):
        load_predictor(folder)
    with pytest.raises(InputError, match=words):
        ClassHistory().restore(lengths)  # type: ignore[arg-type]
