"""The two rungs above the light ranker, on a tiny encoder made here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slosched.core.errors import InputError, MissingExtraError
from slosched.predictors import load_predictor
from slosched.predictors.answers import Answers
from slosched.predictors.ranker import tau
from slosched.predictors.states import read_tensors, write_tensors

for name in ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason="encoder rankers need the extra encoder")

from slosched.predictors.encoder import Encoder  # noqa: E402
from slosched.predictors.encoder_ranker import (  # noqa: E402
    METHODS,
    EncoderRanker,
    common_ends,
    inner_of,
    train_encoder,
)

from .test_transformer import made_up, tiny  # noqa: E402


@pytest.mark.parametrize("method", METHODS)
def test_a_rung_learns_and_comes_back_from_disk(tmp_path: Path, method: str) -> None:
    model = tiny(tmp_path / "model", "encoder")
    made = train_encoder(
        made_up(400, 0), model, tmp_path / "ranker", method=method, learning_rate=2e-3, window_tokens=16
    )
    test = made_up(200, 5)
    texts = [prompt.text for prompt in test.prompts]
    assert tau(made.score(texts), test.output_tokens) > 0.6
    assert tau(made.encoded(texts, method), test.output_tokens) > (0.6 if method == "tuned" else 0.2)
    again = load_predictor(made.save(tmp_path / "ranker"))
    assert isinstance(again, EncoderRanker)
    assert list(again.readers) == list(METHODS[: METHODS.index(method) + 1])
    atoms = made.forecast(test.prompts)
    assert again.forecast(test.prompts) == pytest.approx(atoms, rel=1e-6)
    assert np.mean(test.output_tokens <= atoms[:, -1]) > 0.8
    assert tau(again.quick.forecast(test.prompts).mean(axis=1), test.output_tokens) > 0.5


ODD = ("", "say one " * 20_000, "\x00\xff\ud800", "derive ten \u2028 laws", "列出十首歌 🎵", " " * 5000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> EncoderRanker:
    folder = tmp_path_factory.mktemp("encoder")
    ranker = train_encoder(made_up(60, 0), tiny(folder / "m", "encoder"), folder / "r", window_tokens=16)
    ranker.save(folder / "r")
    return ranker


def test_prompts_of_any_content_get_the_same_score_alone_as_in_company(made: EncoderRanker) -> None:
    """Empty, huge, binary, in any script; those beyond the window are read at both ends."""
    together = made.score(ODD)
    assert np.isfinite(together).all()
    assert together == pytest.approx([float(made.score([text])[0]) for text in ODD], abs=0.05)
    encoder = made.readers["frozen"].encoder
    assert len(encoder.tokens(ODD[1])) == 16
    assert encoder.tokens("say " * 50 + "now")[-1] == encoder.tokens("now")[-1]


def test_what_does_not_fit_is_refused_by_name(made: EncoderRanker, tmp_path: Path) -> None:
    folder = made.save(tmp_path / "r")
    arrays, about = read_tensors(folder / "ranker.safetensors")
    path = folder / "ranker.safetensors"
    write_tensors(path, arrays | {"frozen.centres": arrays["frozen.centres"][:, :16]}, about)
    with pytest.raises(InputError, match=r"head must be for vectors of \d+, as the encoder's, got 16"):
        load_predictor(folder)
    write_tensors(path, arrays | {"frozen.centres": arrays["frozen.centres"][:16]}, about)
    with pytest.raises(InputError, match=r"centres must be of shape \(\d+, size\)"):
        load_predictor(folder)
    write_tensors(path, arrays, {"format": "slosched-encoder-2"})
    with pytest.raises(InputError, match=r"format must be .*train the ranker anew"):
        load_predictor(folder)
    write_tensors(path, arrays, about)
    (folder / "frozen" / "encoder.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="ONNX encoder"):
        load_predictor(folder)
    (folder / "frozen" / "encoder.onnx").unlink()
    with pytest.raises(InputError, match=r"encoder must be a folder with encoder\.onnx"):
        load_predictor(folder)
    with pytest.raises(InputError, match="model must be a folder"):
        train_encoder(made_up(60, 0), "no_such_package", tmp_path / "x")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingExtraError, match=r"onnxruntime is not installed; install it with: pip install .*extra encoder"
    ):
        Encoder(tmp_path)


def test_what_all_prompts_share_does_not_fill_the_window(tmp_path: Path) -> None:
    """A template longer than the window around every prompt: the encoder still reads what differs."""
    plain = made_up(200, 0)
    begin, end = "please now " * 12, " say list derive" * 8

    def around(answers: Answers) -> Answers:
        told = [replace(prompt, text=begin + prompt.text + end) for prompt in answers.prompts]
        return replace(answers, prompts=told)

    known, test = around(plain), around(made_up(100, 1))
    model = tiny(tmp_path / "m", "encoder")
    ranker = train_encoder(
        known, model, tmp_path / "r", method="tuned", window_tokens=16, epochs=3, learning_rate=2e-3
    )
    assert ranker.ends[0].startswith(begin.strip()[:40])
    texts = [prompt.text for prompt in test.prompts]
    assert tau(ranker.encoded(texts, "tuned"), test.output_tokens) > 0.4
    again = load_predictor(ranker.save(tmp_path / "r"))
    assert isinstance(again, EncoderRanker)
    assert again.ends == ranker.ends
    assert again.encoded(texts, "tuned") == pytest.approx(ranker.encoded(texts, "tuned"))
    other = ["say ten songs", begin, begin + end, ""]  # without the template, or nothing else
    assert np.isfinite(again.score(other)).all()


def test_a_template_is_what_most_begin_and_end_with() -> None:
    texts = [f"<s>Say {i} words.</s>" for i in range(20)]
    assert common_ends(texts) == ("<s>Say ", " words.</s>")
    assert common_ends([*texts, "Hello", "Bye"]) == ("<s>Say ", " words.</s>")
    assert common_ends([*texts, *["Hello"] * 4]) == ("", "")
    assert common_ends(["the same"] * 20) == ("the same", "")
    assert common_ends([""] * 20) == ("", "")
    assert inner_of(["<s>Say 4 words.</s>", "Say 4", "<s>Say "], ("<s>Say ", " words.</s>")) == [
        "4", "Say 4", "<s>Say ",
    ]  # fmt: skip
