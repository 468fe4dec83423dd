"""The live comparison: what it sends, what it counts, and how it compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("name", ["tiers", "lengths", "today"])
def test_a_mix_is_what_it_says(name: str) -> None:
    """The rate asked for, limits in units of a full step, the same for the same seed."""
    from live_mixes import live_mix, random_priority

    work, again, other = (live_mix(name, 500.0, 2.0, seed, 0.05) for seed in (1, 1, 2))
    assert len(work) == pytest.approx(1000, rel=0.15)
    assert np.array_equal(work.prompt_tokens, again.prompt_tokens)
    assert len(other) != len(work) or not np.array_equal(other.prompt_tokens, work.prompt_tokens)
    slower = live_mix(name, 500.0, 2.0, 1, 0.1)
    assert np.array_equal(slower.ttft_s, 2 * work.ttft_s)
    assert len(work.classes) == 3
    shuffled = random_priority(work, 3)
    assert sorted(shuffled.priority.tolist()) == sorted(work.priority.tolist())
    assert not np.array_equal(shuffled.priority, work.priority)


def test_three_tiers_are_of_the_same_work_and_lengths_of_the_same_limits() -> None:
    """In one mix only the promises differ, in another only the prompts."""
    from live_mixes import live_mix

    tiers, lengths = (live_mix(name, 2000.0, 2.0, 1, 0.05) for name in ("tiers", "lengths"))
    means = [tiers.prompt_tokens[tiers.class_index == k].mean() for k in range(3)]
    assert means == pytest.approx([90, 90, 90], rel=0.06)
    assert len(np.unique(tiers.ttft_s)) == 3
    assert len(np.unique(lengths.ttft_s)) == 1
    assert lengths.prompt_tokens[lengths.class_index == 2].mean() > 300


def row(server: str, seed: int, weighted: float, *, void: bool = False) -> dict[str, Any]:
    """One run."""
    return {"mix": "tiers", "server": server, "seed": seed, "weighted": weighted, "void": void}


def test_gains_are_paired_by_seed_and_void_runs_do_not_count() -> None:
    """A late run is kept in the file, but in no figure."""
    from live import results

    rows = [
        row("stock fcfs", 1, 0.2), row("slosched", 1, 0.5), row("slosched", 2, 0.1, void=True),
        row("slosched", 2, 0.9), row("stock fcfs", 2, 0.4), row("stock fcfs", 3, 0.0),
    ]  # fmt: skip
    found = results(rows, ["tiers"])["tiers"]
    assert found["attainment"]["slosched"]["mean"] == pytest.approx(0.7)
    gain = found["gain_of_slosched_paired"]["stock fcfs"]
    assert (gain["mean"], gain["repeats"]) == (pytest.approx(0.4), 2)
    # Gains .3 and .5: t of one degree of freedom, 12.706, times their deviation .1414 over the root of 2.
    assert gain["half_interval_95"] == pytest.approx(1.2706, rel=0.001)


def test_stock_keeps_a_knob_only_if_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each choice in turn, on top of those that were kept."""
    import live
    from live_mixes import Speed

    tried: list[list[str]] = []

    def turn(model: Any, name: str, arguments: Any, *_: Any) -> list[dict[str, Any]]:
        tried.append(list(arguments))
        value = 0.5 + 0.2 * ("priority" in arguments) + 0.1 * ("512" in arguments) - 0.3 * ("64" in arguments)
        return [row("tuning", 0, value)]

    monkeypatch.setattr(live, "turn", turn)
    options = type("Options", (), {"seed": 0, "tune_seconds": 1.0})()
    found = live.tune(Path(), Speed(step_s=1.0, full_step_s=1.0, rates_rps={}), Path(), options)
    assert found["arguments"] == ["--scheduling-policy", "priority", "--max-num-batched-tokens", "512"]
    assert tried[0] == []
    assert tried[-1] == [*found["arguments"], "--max-num-queued-tokens", "4096"]
