"""The probe in the real CPU engine: whose state is whose, and that forecasts reach the scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slosched.predictors.probe import About, Mlp, Probe
from slosched.predictors.states import States, load_states

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HERE = Path(__file__).parent
LAYER, HIDDEN = 2, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, but for a few steps."""
    pytest.importorskip("torch")
    from slosched.testing import tiny_lm

    folder = tmp_path_factory.mktemp("lm") / "tiny"
    tiny_lm.train(folder, steps=3, hidden=HIDDEN, layers=3)
    return folder


def _run(model: Path, task: str, record: Path, **environment: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, str(HERE / "probe_engine.py"), str(model), task, str(record)],
        env={**os.environ, "PYTHONPATH": str(HERE), "TQDM_DISABLE": "1", **environment},
        cwd=record.parent, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, (done.stdout + done.stderr)[-3000:]
    return json.loads(lines[0].removeprefix("RESULT ")), done.stdout + done.stderr


@pytest.fixture(scope="module")
def collected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], States]:
    """Answers with random plans and preemptions, and the states of layer 2 at every token."""
    folder = tmp_path_factory.mktemp("states")
    settings = {"SLOSCHED_STATES": str(folder), "SLOSCHED_STATES_LAYER": str(LAYER), "SLOSCHED_PROBE": ""}
    result, _ = _run(model, "collect", folder / "none", **settings)
    return result, load_states(folder)


def _by_number(states: States) -> dict[int, int]:
    return {int(name.split("-")[0]): i for i, name in enumerate(states.names)}


def test_vllm_finds_the_plugin() -> None:
    """As installed; the Makefile installs the package before these tests."""
    found = {e.name: e.value for e in entry_points(group="vllm.general_plugins")}
    assert found["slosched-probe"] == "slosched.integrations.vllm.plugin:register"


def test_every_state_is_that_of_its_request(model: Path, collected: tuple[dict[str, Any], States]) -> None:
    """Against Hugging Face's forward pass, and the rest of the network must give the sampled token."""
    import torch
    from transformers import AutoModelForCausalLM

    result, states = collected
    assert result["preempted"] > 10
    assert states.hidden_size == HIDDEN
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    number = _by_number(states)
    assert sorted(number) == list(range(24))
    checked = 0
    for i, (prompt, tokens) in enumerate(zip(result["prompts"], result["tokens"], strict=True)):
        request = number[i]
        with torch.no_grad():
            out = reference(torch.tensor([prompt + tokens]), output_hidden_states=True)
        wanted = out.hidden_states[LAYER][0].numpy()
        np.testing.assert_allclose(
            states.prompt_states[request],
            np.concatenate([wanted[: len(prompt)].mean(axis=0), wanted[len(prompt) - 1]]),
            atol=2e-4,
        )
        rows = np.flatnonzero(states.request == request)
        assert states.generated_tokens[rows].tolist() == list(range(1, len(tokens)))
        np.testing.assert_allclose(states.states[rows], wanted[len(prompt) : -1], atol=2e-4)
        # The last layer and the head, on vLLM's own states, must give the tokens that vLLM sampled.
        whole = np.concatenate([wanted[: len(prompt)], states.states[rows]])
        with torch.no_grad():
            hidden = torch.from_numpy(whole)[None]
            where = torch.arange(hidden.shape[1])[None]
            turned = reference.model.rotary_emb(hidden, where)
            hidden = reference.model.layers[LAYER](hidden, position_embeddings=turned)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            logits = reference.lm_head(reference.model.norm(hidden))[0]
        assert logits.argmax(-1)[len(prompt) - 1 :].tolist() == tokens
        checked += len(tokens)
    assert checked > 300
    assert result["left"][0] == 0


def test_lengths_and_ends_are_those_of_the_answers(collected: tuple[dict[str, Any], States]) -> None:
    result, states = collected
    for i, request in _by_number(states).items():
        assert states.output_tokens[request] == len(result["tokens"][i])
        assert states.cut[request] == (result["reasons"][i] == "length")


def test_forecasts_reach_the_scheduler_of_another_process(
    model: Path, collected: tuple[dict[str, Any], States], tmp_path: Path
) -> None:
    """Multiprocess executor: the table holds what the probe says of the states collected before."""
    result, states = collected
    rng = np.random.default_rng(0)

    def mlp(inputs: int) -> Mlp:
        shapes = ((inputs, 16), (16,), (16, 3), (3,))
        return Mlp(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))

    about = About(
        model="tiny", hidden_size=HIDDEN, layer=LAYER, edges=(0.0, 4.0, 12.0, 40.0), values=(2.0, 8.0, 20.0),
        every_tokens=4,
    )  # fmt: skip
    probe = Probe(about, mlp(2 * HIDDEN), mlp(HIDDEN + 4))
    config, record = tmp_path / "slosched.yaml", tmp_path / "record.jsonl"
    config.write_text("policy: trail\n")
    settings = {"SLOSCHED_PROBE": str(probe.save(tmp_path / "probe")), "SLOSCHED_CONFIG": str(config)}
    again, log = _run(model, "serve", record, SLOSCHED_STATES="", **settings)
    assert again["tokens"] == result["tokens"]
    assert "forecaster reads layer 2" in log
    number = _by_number(states)
    taken = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(taken) > 80
    for entry in taken:
        i = int(entry["name"].split("-")[0])
        request, tokens = number[i], entry["generated"]
        (belief,) = probe.begin(states.prompt_states[request : request + 1])
        assert belief is not None
        if tokens:
            row = np.flatnonzero((states.request == request) & (states.generated_tokens == tokens))
            probe.update([belief], states.states[row], [tokens])
        wanted = np.clip(probe.atoms([belief])[0], 1, 12 + i)
        np.testing.assert_allclose(entry["atoms"], wanted, rtol=2e-3)


def test_a_probe_of_another_model_leaves_the_engine_alone(
    model: Path, collected: tuple[dict[str, Any], States], tmp_path: Path
) -> None:
    """One line in the log, the same tokens, no forecasts."""
    result, _ = collected
    one = np.zeros((1, 2), dtype=np.float32)
    about = About(
        model="tiny", hidden_size=1, layer=1, edges=(0.0, 1.0, 2.0), values=(1.0, 2.0), refinement="none",
        prompt_input="mean",
    )  # fmt: skip
    small = Mlp(np.ones((1, 1), dtype=np.float32), one[0, :1], one, one[0])
    folder, record = Probe(about, small, small).save(tmp_path / "probe"), tmp_path / "record.jsonl"
    again, log = _run(model, "serve", record, SLOSCHED_STATES="", SLOSCHED_PROBE=str(folder))
    assert again["tokens"] == result["tokens"]
    lines = [line for line in log.splitlines() if "no hidden states are read" in line]
    assert len(lines) == 1
    assert "hidden_size must be 64" in lines[0]
    assert not record.exists() or record.read_text() == ""
