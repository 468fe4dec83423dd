"""How much of an answer's length can be known: figures of made-up groups whose truth is known."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The function of that name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("knowable").errors


def test_equal_answers_can_be_known_whole(errors: Any) -> None:
    found = errors([np.full(4, tokens) for tokens in (10, 50, 200)])
    assert found["knows the others"] == found["knows its own group"] == 0
    assert found["share of log variance between groups"] == pytest.approx(1)
    assert found["knows nothing"] > 50


def test_prompts_that_tell_nothing_leave_the_whole_error(errors: Any) -> None:
    """The truth lies between one who sees the others of a group and one who sees the whole group."""
    rng = np.random.default_rng(0)
    found = errors(list(rng.integers(1, 1000, size=(400, 4))))
    assert found["least share of the error that stays"] < 1 < found["most share of the error that stays"]
    assert found["share of log variance between groups"] < 0.05
    assert found["knows nothing"] == pytest.approx(250, rel=0.05)


def test_the_share_between_groups_is_that_of_the_noise(errors: Any) -> None:
    rng = np.random.default_rng(1)
    level, noise = rng.normal(5, 1, size=(500, 1)), rng.normal(0, 0.5, size=(500, 4))
    found = errors(list(np.exp(level + noise).astype(np.int64) + 1))
    assert found["share of log variance between groups"] == pytest.approx(0.8, abs=0.04)
