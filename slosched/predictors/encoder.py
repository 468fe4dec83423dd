"""A pretrained text encoder as an ONNX file: prompts in, one vector each out.

Rankers that read prompts with a pretrained model run on this. The file holds the model with mean pooling and
weights of 8 bits, so that serving needs neither torch nor transformers, only onnxruntime and tokenizers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.errors import InputError, MissingExtraError, require

Vectors = NDArray[np.float32]

ENCODER, TOKENIZER = "encoder.onnx", "tokenizer.json"
"""Files of an encoder in a predictor's folder."""

WINDOW_TOKENS = 64
"""Tokens read of a prompt, half from each end of a longer one: cost grows with them (``docs/predictors.md``
has tau and milliseconds at 64 and 128)."""

BATCH = 16
"""Texts computed at once; texts of like length stand side by side, so that little is padding."""

BYTES_PER_TOKEN = 16
"""Characters of a text that are tokenized for each token of the window; few tokens are longer."""


class Encoder:
    """An ONNX encoder with its tokenizer, on one thread.

    Parameters
    ----------
    folder
        Holds `ENCODER` and `TOKENIZER`.
    window_tokens
        Tokens read of a prompt, special ones included, at least 8.

    Raises
    ------
    MissingExtraError
        If onnxruntime or tokenizers is not installed.
    InputError
        If a file is missing or is not what it should be.
    """

    def __init__(self, folder: str | Path, window_tokens: int = WINDOW_TOKENS) -> None:
        require(window_tokens >= 8, "window_tokens", "at least 8", window_tokens)
        runtime, tokenizers = import_runtime()
        self.folder, self.window_tokens = Path(folder), window_tokens
        for name in (ENCODER, TOKENIZER):
            if not (self.folder / name).is_file():
                raise InputError(f"encoder must be a folder with {name}, got {str(folder)!r}.")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            path = str(self.folder / ENCODER)
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.folder / TOKENIZER))
        except Exception as error:  # both libraries raise their own kinds
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{folder} must hold an ONNX encoder and a tokenizer: {reason}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.hidden_size = int(self._session.get_outputs()[0].shape[-1])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One vector a text, shape (n, hidden size); texts of any content, empty ones too."""
        found = np.zeros((len(texts), self.hidden_size), dtype=np.float32)
        tokens = [self.tokens(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: (len(tokens[i]), i))
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            longest = max(len(tokens[i]) for i in part)
            ids = np.zeros((len(part), longest), dtype=np.int64)
            mask = np.zeros((len(part), longest), dtype=np.int64)
            for row, i in enumerate(part):
                ids[row, : len(tokens[i])] = tokens[i]
                mask[row, : len(tokens[i])] = 1
            found[part] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return found

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text within the window, never none."""
        half = self.window_tokens // 2
        ids = self._tokenizer.encode(readable(both_ends(text, self.window_tokens))).ids
        if len(ids) > self.window_tokens:
            ids = ids[:half] + ids[half - self.window_tokens :]
        return ids or [0]


def both_ends(text: str, window_tokens: int) -> str:
    """A text without its middle, if it is so long that nothing there can come into the window: tokenizers
    take a second for a million characters.

    Examples
    --------
    >>> len(both_ends("word " * 100_000, 64))
    1025
    """
    most = BYTES_PER_TOKEN * (window_tokens // 2)
    return text if len(text) <= 2 * most else text[:most] + " " + text[-most:]


def readable(text: str) -> str:
    """The text with what is no text to a tokenizer replaced: lone surrogates, as in a broken JSON string."""
    return text.encode("utf-8", "replace").decode()


def layers_read(layers: int) -> tuple[int, ...]:
    """Layers of a model of so many whose states tell most of an answer's length: from the middle to before
    the last, which knows what a text means, not how it is put.

    Of the six layers of MiniLM, within three sets: 3 to 5 together give a tau of .314, all six .313, 2, 4 and
    6 .306, 4 alone .308, the last alone .25 (``docs/predictors.md``).

    Examples
    --------
    >>> layers_read(6), layers_read(12), layers_read(1)
    ((3, 4, 5), (6, 8, 10), (1,))
    """
    return tuple(sorted({max(1, round(layers * part)) for part in (1 / 2, 2 / 3, 5 / 6)}))


def export_encoder(
    body: Any, tokenizer: Any, folder: str | Path, layers: Sequence[int] | None = None
) -> None:
    """Write a Hugging Face model with mean pooling as `ENCODER`, weights in 8 bits, and its `TOKENIZER`.

    Parameters
    ----------
    body, tokenizer
        The model and its tokenizer.
    folder
        Where to.
    layers
        Vectors are the pooled states of these layers one after another, each scaled to length 1; what comes
        after them in the model is left out. None: the last layer's as they are.

    Raises
    ------
    MissingExtraError
        If a package of the extra ``encoder`` is not installed.
    InputError
        If the model cannot be written as ONNX, or its tokenizer is not a fast one.
    """
    import_exporter()
    import contextlib
    import io
    import tempfile

    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise InputError(f"model must have a fast tokenizer, got {type(tokenizer).__name__}.")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    inner.no_truncation()
    inner.no_padding()
    inner.save(str(target / TOKENIZER))
    sample = torch.ones(2, 16, dtype=torch.long)
    sizes = {0: torch.export.Dim("texts", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=512)}
    with tempfile.TemporaryDirectory() as work, _quiet():
        plain = str(Path(work) / "plain.onnx")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                torch.onnx.export(
                    pooled(body, layers).cpu().eval(), (sample, torch.ones_like(sample)), plain, dynamo=True,
                    input_names=["input_ids", "attention_mask"], output_names=["vector"],
                    dynamic_shapes={"input_ids": sizes, "attention_mask": sizes}, external_data=False,
                    verbose=False,
                )  # fmt: skip
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{type(body).__name__} cannot be written as ONNX: {reason}") from error
        quantize_dynamic(plain, str(target / ENCODER), weight_type=QuantType.QInt8, per_channel=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings of what does not concern who trains a ranker."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def pooled(body: Any, layers: Sequence[int] | None = None) -> Any:
    """The model with the mean over the states of a text's tokens as its output, as a torch module; see
    `export_encoder` for `layers`.
    """
    import torch

    class Pooled(torch.nn.Module):  # type: ignore[misc]
        """The encoder with its states averaged over the tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            """A vector for each text: the mean state of the last layer, or of `layers` side by side."""
            options = {"input_ids": input_ids, "attention_mask": attention_mask}
            if layers is None:
                return mean(self.body(**options).last_hidden_state, attention_mask)
            states = self.body(**options, output_hidden_states=True).hidden_states
            means = [mean(states[k], attention_mask) for k in layers]
            return torch.cat([torch.nn.functional.normalize(v, dim=1) for v in means], dim=1)

    def mean(states: Any, mask: Any) -> Any:
        """Mean over the tokens that the mask keeps."""
        weight = mask.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1)

    return Pooled()


def import_runtime() -> tuple[Any, Any]:
    """Onnxruntime and tokenizers.

    Raises
    ------
    MissingExtraError
        If one is not installed.
    """
    runtime, tokenizers = _import("onnxruntime", "tokenizers")
    return runtime, tokenizers


def import_exporter() -> None:
    """Raise `MissingExtraError` unless the whole extra ``encoder`` is installed, as training needs it."""
    _import("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers")


def _import(*names: str) -> list[Any]:
    found = []
    for name in names:
        try:
            found.append(__import__(name))
        except ImportError as error:
            raise MissingExtraError(name, "encoder") from error
    return found
