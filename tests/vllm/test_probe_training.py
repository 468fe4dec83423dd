"""Training finds what is there, counts what is not, and refuses what it cannot use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slosched.cli import main
from slosched.core.errors import InputError
from slosched.predictors.probe import load_probe
from slosched.predictors.probe_training import Settings, _Fit, measure, replay, train_probe
from slosched.predictors.states import States

torch = pytest.importorskip("torch")

HIDDEN = 5
QUICK = Settings(epochs=12, bins=10, width=32, learning_rate=0.01, every_tokens=2)


def made(requests: int = 300, seed: int = 0, *, noise: float = 0.1, cut_share: float = 0.0) -> States:
    """States whose first number is the logarithm of what remains; prompts know it more roughly."""
    rng = np.random.default_rng(seed)
    tokens = np.maximum(3, rng.lognormal(3.0, 0.8, requests)).astype(np.int64)
    limit = 2 + rng.geometric(1 / 25, requests)  # when clients hang up, whatever the answer
    cut = (rng.random(requests) < cut_share) & (limit < tokens)
    seen = np.where(cut, limit, tokens)
    request = np.repeat(np.arange(requests), seen - 1)
    generated = np.concatenate([np.arange(1, n) for n in seen])
    states = rng.normal(size=(len(request), HIDDEN)).astype(np.float32)
    states[:, 0] = np.log(tokens[request] - generated) + noise * states[:, 0]
    prompts = rng.normal(size=(requests, 2 * HIDDEN)).astype(np.float32)
    prompts[:, HIDDEN] = np.log(tokens) + 0.5 * prompts[:, HIDDEN]
    return States(
        model="made", layer=1, names=[str(i) for i in range(requests)], prompt_states=prompts,
        output_tokens=seen, cut=cut, states=states, request=request, generated_tokens=generated,
    )  # fmt: skip


@pytest.mark.parametrize("refinement", ["none", "bayes", "prior"])
def test_a_probe_learns_what_the_states_say(refinement: str) -> None:
    """Far better than knowing nothing, on requests it has not seen; better later than at the prompt."""
    probe, curves = train_probe(made(), replace(QUICK, refinement=refinement))
    unseen = made(seed=1)
    found = measure(probe, unseen)
    blind = np.abs(unseen.remaining_tokens - np.median(unseen.remaining_tokens)).mean()
    assert found["later"]["mae_tokens"] < (0.5 if refinement == "bayes" else 0.3) * blind
    blind = np.abs(unseen.output_tokens - np.median(unseen.output_tokens)).mean()
    assert found["prompt_end"]["mae_tokens"] < 0.9 * blind
    assert curves["decode"].held_out[-1] < curves["decode"].held_out[0]
    assert len(curves["prompt"].train) == QUICK.epochs


def test_training_is_repeatable() -> None:
    one, _ = train_probe(made(100), QUICK)
    other, _ = train_probe(made(100), QUICK)
    np.testing.assert_array_equal(one.decode.w1, other.decode.w1)
    assert one.about == other.about


def test_replay_follows_one_request_at_a_time() -> None:
    """The batched replay equals a request's own belief, token by token."""
    data = made(60)
    probe, _ = train_probe(data, QUICK)
    start, expected, atoms = replay(probe, data)
    for r in (0, 7, 59):
        (belief,) = probe.begin(data.prompt_states[r : r + 1])
        assert belief is not None
        assert probe.remaining_tokens(belief) == pytest.approx(start[r])
        due = 2
        for i in np.flatnonzero(data.request == r):
            tokens = int(data.generated_tokens[i])
            if tokens < due:
                assert np.isnan(expected[i])
                continue
            due = tokens + 2
            probe.update([belief], data.states[i : i + 1], [tokens])
            assert probe.remaining_tokens(belief) == pytest.approx(expected[i], rel=1e-4)
            np.testing.assert_allclose(probe.atoms([belief])[0], atoms[i], rtol=1e-4)


def test_cut_answers_are_lower_bounds_not_lengths() -> None:
    """With many answers cut, forecasts must stay near the truth."""
    data = made(600, cut_share=0.8)
    probe, _ = train_probe(data, QUICK)
    whole = made(seed=1)
    start, _, _ = replay(probe, whole)
    naive = States(
        model="made", layer=1, names=data.names, prompt_states=data.prompt_states,
        output_tokens=data.output_tokens, cut=np.zeros_like(data.cut), states=data.states,
        request=data.request, generated_tokens=data.generated_tokens,
    )  # fmt: skip
    fooled, _ = train_probe(naive, QUICK)
    mistaken, _, _ = replay(fooled, whole)
    true = whole.output_tokens.mean()
    assert mistaken.mean() < 0.8 * true
    assert 0.8 * true < start.mean() < 1.25 * true


def test_the_loss_of_a_cut_answer_is_that_of_all_later_bins() -> None:
    fit = _Fit(QUICK, [0.0, 1.0, 2.0, 3.0], None)
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    p = torch.softmax(logits, dim=1)[0]
    one = fit._loss(logits, torch.tensor([[1, 1]]))
    several = fit._loss(logits, torch.tensor([[1, 2]]))
    assert float(one) == pytest.approx(-float(torch.log(p[1])), rel=1e-5)
    assert float(several) == pytest.approx(-float(torch.log(p[1] + p[2])), rel=1e-5)


def test_states_that_are_not_finite_are_dropped_and_counted() -> None:
    data = made(60)
    data.states[5, 1] = np.nan
    data.prompt_states[9, 0] = np.inf
    probe, _ = train_probe(data, QUICK)
    rows = int((data.request == 9).sum())
    assert probe.about.report["not_finite_dropped"] == 2 + rows
    assert all(np.isfinite(a).all() for a in (probe.decode.w1, probe.prompt.w1))


def test_data_that_teach_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="data must be states of at least 20 requests, got '7'"):
        train_probe(made(7), QUICK)
    data = made(40)
    data.output_tokens[:] = 9
    with pytest.raises(InputError, match="different lengths, got all of 9 tokens"):
        train_probe(data, QUICK)
    data = made(40)
    data.cut[:] = True
    with pytest.raises(InputError, match="none that ended by itself"):
        train_probe(data, QUICK)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"refinement": "magic"}, "refinement must be one of none, bayes, prior, got 'magic'"),
        ({"prompt_input": "first"}, "prompt_input must be one of"),
        ({"bins": 1}, "bins must be from 2 to 1000, got 1"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"every_tokens": 0}, "every_tokens must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(**change)  # type: ignore[arg-type]


def test_the_command_writes_a_probe_and_its_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(80).save(tmp_path / "states.safetensors")
    out = tmp_path / "probe"
    asked = ["--data", str(tmp_path / "states.safetensors"), "--out", str(out), "--epochs", "3", "--json"]
    with pytest.raises(SystemExit) as left:
        main(["train", "probe", *asked])
    assert left.value.code in (0, None)
    told = json.loads(capsys.readouterr().out)
    probe = load_probe(out)
    assert told["held_out"] == probe.about.report["held_out"]
    assert told["requests"] == 80
    curves = json.loads((out / "curves.json").read_text())
    assert {name: len(c["train"]) for name, c in curves.items()} == {"prompt": 3, "decode": 3}


def test_the_command_takes_trails_settings_and_each_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten bins up to 512 tokens and their middles, a forecast at every token; what is said besides counts."""
    made(60).save(tmp_path / "states.safetensors")
    out = tmp_path / "probe"
    asked = ["--data", str(tmp_path / "states.safetensors"), "--out", str(out), "--json"]
    for more in (
        ["--trail", "--epochs", "1"],
        ["--trail", "--epochs", "1", "--width", "9", "--values", "mean"],
    ):
        with pytest.raises(SystemExit) as left:
            main(["train", "probe", *asked, *more])
        assert left.value.code in (0, None)
        capsys.readouterr()
        probe = load_probe(out)
        assert len(probe.about.values) == 10
        assert probe.about.edges[-1] == pytest.approx(512)
        assert (probe.about.values[0] == pytest.approx(25.6)) == ("mean" not in more)
        assert probe.decode.w1.shape[1] == (9 if "9" in more else 512)
        assert (probe.about.prompt_input, probe.about.refinement) == ("mean", "bayes")
        assert probe.about.every_tokens == 1


def test_the_command_leaves_nothing_behind_on_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "states.safetensors").write_bytes(b"x")
    asked = ["--data", str(tmp_path / "states.safetensors"), "--out", str(tmp_path / "probe")]
    with pytest.raises(SystemExit) as left:
        main(["train", "probe", *asked])
    assert left.value.code == 2
    assert "must be a safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "probe").exists()
