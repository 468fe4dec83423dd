"""What forecasts are worth: how forecasts are carried from one set of lengths to another."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("probed")


def test_lengths_are_carried_by_their_quantiles_and_keep_their_order(probed: Any) -> None:
    rng = np.random.default_rng(0)
    source, target = rng.lognormal(5, 1, 4000).astype(int) + 1, rng.lognormal(3, 0.5, 4000).astype(int) + 1
    move = probed.carried(source, target)
    for level in (0.1, 0.5, 0.9):
        assert move(np.quantile(source, level)) == pytest.approx(np.quantile(target, level), rel=0.05)
    assert move(np.zeros(1))[0] < 0.01
    far = move(np.array([1.0, 10.0, 100.0, 1e4, 1e6]))
    assert np.all(np.diff(far) > 0)


def test_things_drawn_go_by_rank_whatever_the_scale(probed: Any) -> None:
    drawn, lengths = np.array([7, 8, 9]), np.array([30, 10, 20])
    found = probed.by_rank(np.array([5, 900, 70]), drawn, lengths, np.random.default_rng(0))
    assert found.tolist() == [8, 7, 9]


def test_a_probe_tells_of_what_runs_and_never_of_the_past(probed: Any) -> None:
    """At the first token and at each eighth one; never less than what is there already."""

    class Plain:
        def plan(self, snapshot: Any) -> str:
            return "planned"

    said = (np.array([0.0, 8.0, 16.0]), np.array([[50.0] * 8, [40.0] * 8, [10.0] * 8]))
    policy = probed.asked(Plain(), [said, said])
    table = SimpleNamespace(atoms=np.full((2, 8), 99.0), generated_tokens=np.array([1, 0]))
    seen = []
    for tokens in (1, 7, 9, 17):
        table.generated_tokens[0] = tokens
        assert policy.plan(SimpleNamespace(table=table, running=np.array([0]))) == "planned"
        seen.append(float(table.atoms[0, 0]))
    assert seen == [50.0, 50.0, 40.0, 18.0]
    assert table.atoms[1, 0] == 99.0
