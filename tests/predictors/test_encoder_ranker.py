"""The two rungs above the light ranker, on a tiny encoder made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slosched.predictors import load_predictor
from slosched.predictors.ranker import tau

for name in ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason="encoder rankers need the extra encoder")

from slosched.predictors.encoder_ranker import METHODS, EncoderRanker, train_encoder  # noqa: E402

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
    assert tau(made.encoded(texts), test.output_tokens) > (0.6 if method == "tuned" else 0.2)
    again = load_predictor(made.save(tmp_path / "ranker"))
    atoms = made.forecast(test.prompts)
    assert again.forecast(test.prompts) == pytest.approx(atoms, rel=1e-6)
    assert np.mean(test.output_tokens <= atoms[:, -1]) > 0.8
    assert isinstance(again, EncoderRanker)
    assert tau(again.quick.forecast(test.prompts).mean(axis=1), test.output_tokens) > 0.5
