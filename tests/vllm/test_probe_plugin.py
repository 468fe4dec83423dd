"""The plugin stays out of the way: unless asked, after a surprise, with forecasts that make no sense."""

from __future__ import annotations

import logging
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.integrations.vllm import plugin, probe_settings, state_collector
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.probe import Seen, reader_for
from slosched.integrations.vllm.probe_forecasts import foretold
from slosched.integrations.vllm.state_collector import Collector
from slosched.predictors.states import load_states, states_names

from .conftest import fake_request


def test_importing_the_plugin_loads_nothing_heavy() -> None:
    """VLLM imports it in every process, asked for or not, and its CPU worker fails where numba is loaded."""
    words = (
        "import sys, slosched.integrations.vllm.plugin as p; p.register(); "
        "print(sorted({'numba', 'numpy', 'torch', 'vllm', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", words], env={"PATH": ""}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


class Runner:
    """As much of a model runner as is wrapped."""

    def __init__(self) -> None:
        self.set_up = 0

    def _setup_eagle3_aux_hidden_state_outputs(self) -> None:
        self.set_up += 1

    def sample_tokens(self, grammar: object) -> Any:
        return SimpleNamespace(tokens=[1, 2, 3])


class Watching:
    """A watch that fails when told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls = fails, 0

    def before(self, runner: Any) -> dict[str, Any]:
        self.calls += 1
        if self.fails == "before":
            raise RuntimeError("no such tensor")
        return {"a": [1.0]}

    def after(self, runner: Any, output: Any, found: dict[str, Any]) -> None:
        if self.fails == "after":
            raise RuntimeError("no such field")
        output.slosched_atoms = found


@pytest.fixture
def runner_class() -> type[Runner]:
    made = type("Wrapped", (Runner,), dict(vars(Runner)))
    plugin._wrap(made)
    plugin._wrap(made)  # a second load of the plugins changes nothing
    return made


@pytest.mark.parametrize("fails", ["", "before", "after"])
def test_a_failing_watch_is_dropped_with_one_line(
    runner_class: type[Runner], fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watching(fails)
    monkeypatch.setattr(plugin, "_attach", lambda runner: watch)
    runner = runner_class()
    runner._setup_eagle3_aux_hidden_state_outputs()
    with caplog.at_level(logging.WARNING, logger="vllm.slosched"):
        outputs = [runner.sample_tokens(None) for _ in range(3)]
    assert [o.tokens for o in outputs] == [[1, 2, 3]] * 3
    assert [hasattr(o, probe_settings.ATTRIBUTE) for o in outputs] == [not fails] * 3
    assert watch.calls == (1 if fails else 3)
    assert len(caplog.records) == (1 if fails else 0)
    assert (plugin.watch_of(runner) is None) == bool(fails)


def test_a_runner_that_cannot_be_watched_is_set_up_as_before(
    runner_class: type[Runner], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(runner: Any) -> None:
        raise InputError("the engine must run without speculative decoding.")

    monkeypatch.setattr(plugin, "_attach", refuse)
    runner = runner_class()
    with caplog.at_level(logging.WARNING, logger="vllm.slosched"):
        runner._setup_eagle3_aux_hidden_state_outputs()
    assert runner.set_up == 1
    assert runner.sample_tokens(None).tokens == [1, 2, 3]
    assert "without speculative decoding" in caplog.text


def test_wanted_by_environment_or_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (probe_settings.PROBE, probe_settings.STATES, "SLOSCHED_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    assert not probe_settings.wanted()
    config = tmp_path / "c.yaml"
    config.write_text("policy: trail\n")
    monkeypatch.setenv("SLOSCHED_CONFIG", str(config))
    assert not probe_settings.wanted()
    config.write_text("forecast: {probe: somewhere}\n")
    assert probe_settings.wanted()
    assert probe_settings.probe_folder() == "somewhere"
    monkeypatch.setenv(probe_settings.PROBE, "elsewhere")
    assert probe_settings.probe_folder() == "elsewhere"


@pytest.mark.parametrize("text", ["0", "5", "two", "-1"])
def test_a_layer_the_model_has_not_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(probe_settings.STATES, str(tmp_path / "states"))
    monkeypatch.setenv(probe_settings.LAYER, text)
    with pytest.raises(
        InputError, match=f"SLOSCHED_STATES_LAYER must be an integer from 1 to 4, got '{text}'"
    ):
        reader_for("tiny", 8, 4)
    monkeypatch.delenv(probe_settings.LAYER)
    reader = reader_for("tiny", 8, 4)
    assert isinstance(reader, Collector)
    assert reader.layers == (2,)


def test_several_layers_are_written_to_a_folder_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """States stand side by side in a row: each layer gets its own columns, of prompts as well."""
    monkeypatch.setenv(probe_settings.STATES, str(tmp_path))
    monkeypatch.setenv(probe_settings.LAYER, "1,3")
    reader = reader_for("tiny", 2, 4)
    assert isinstance(reader, Collector)
    assert reader.layers == (1, 3)
    none = np.empty((0, 0), dtype=np.float32)
    # Mean of layers 1 and 3, then the last token's of both.
    reader.take(Seen([], [], none, ["a"], np.arange(8, dtype=np.float32)[None]))
    reader.take(Seen(["a"], [1], np.array([[1, 2, 3, 4]], dtype=np.float32), [], none))
    reader._open["a"].newest = 2
    reader._close("a", cut=False)
    reader.flush()
    first, third = load_states(tmp_path / "layer-1"), load_states(tmp_path / "layer-3")
    assert (first.layer, third.layer) == (1, 3)
    assert first.states.tolist() == [[1, 2]]
    assert third.states.tolist() == [[3, 4]]
    assert first.prompt_states.tolist() == [[0, 1, 4, 5]]
    assert third.prompt_states.tolist() == [[2, 3, 6, 7]]
    for wrong in ("1,9", "2,2", "1,"):
        monkeypatch.setenv(probe_settings.LAYER, wrong)
        with pytest.raises(InputError, match="SLOSCHED_STATES_LAYER"):
            reader_for("tiny", 2, 4)


def test_collecting_holds_no_more_than_what_is_open_and_one_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """400 answers of 20 states in batches of 8, one answer open all the time: 26 MB in all."""
    monkeypatch.setattr(state_collector, "SHARD_BYTES", 1 << 20)
    hidden, batch = 384, 8
    reader = Collector(tmp_path, "tiny", (1,), 1)
    none = np.empty((0, 0), dtype=np.float32)
    rng = np.random.default_rng(0)

    def states(n: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return rng.random((n, width), dtype=np.float32)

    reader.take(Seen([], [], none, ["open"], states(1, 2 * hidden)))
    tracemalloc.start()
    for turn in range(50):
        names = [f"{turn}-{i}" for i in range(batch)]
        reader.take(Seen([], [], none, names, states(batch, 2 * hidden)))
        for tokens in range(1, 21):
            reader.take(
                Seen(
                    [*names, "open"],
                    [tokens] * batch + [20 * turn + tokens],
                    states(batch + 1, hidden),
                    [],
                    none,
                )
            )
        for name in names:
            reader._open[name].newest = 20
            reader._close(name, cut=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reader.flush()
    open_bytes = reader._open["open"].bytes
    assert peak < open_bytes + 5 * (1 << 20)
    found = load_states(tmp_path)
    assert len(found.names) == 400
    assert len(found.states) == 8000
    assert states_names(tmp_path) == found.names


def test_forecasts_that_make_no_sense_are_counted_and_ignored(ledger: Ledger) -> None:
    """Unknown requests, wrong shapes and NaN change nothing; lengths beyond max_tokens are clipped."""
    row = ledger.row(fake_request("a", max_tokens=50))
    stats = Stats()
    controller = SimpleNamespace(ledger=ledger, stats=stats)
    before = ledger.table.atoms[row].copy()
    foretold(controller, SimpleNamespace())
    foretold(controller)
    foretold(controller, SimpleNamespace(slosched_atoms={"b": np.arange(8.0)}))
    assert stats.fallbacks == {}
    for bad in (np.arange(3.0), np.full(8, np.nan)):
        foretold(controller, SimpleNamespace(slosched_atoms={"a": bad}))
    assert stats.fallbacks == {"probe": 2}
    np.testing.assert_array_equal(ledger.table.atoms[row], before)
    good = {"a": np.linspace(90, 20, 8), "gone": np.arange(8.0)}
    foretold(controller, SimpleNamespace(slosched_atoms=good, slosched_probe_s=0.25))
    assert stats.forecasts == {"probe": 5}
    assert stats.forecast_s == {"probe": 0.25}
    assert ledger.table.atoms[row].tolist() == [20, 30, 40, 50, 50, 50, 50, 50]
