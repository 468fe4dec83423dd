"""Rankers that read prompts with a pretrained encoder, beside the light ranker's words and counts.

Two rungs above the light one. ``frozen``: a score of the states of three of the encoder's layers as they are,
by likeness to prompts whose answers are known. ``tuned``: the encoder itself is trained to rank (ListMLE, as
Fu et al. 2024, arXiv 2408.15792, but mean pooling and a higher rate). Either is added to the light ranker's
score, each in units of its own spread, so that neither drowns the other.

What nearly all prompts begin or end with, such as a template or a system prompt, tells nothing of an answer's
length but would fill the encoder's window. It is cut off before the encoder reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import InputError, require
from slosched.core.writing import write_files
from slosched.predictors.answers import Answers
from slosched.predictors.base import ABOUT, Prompt, about_of
from slosched.predictors.calibration import Calibration, calibrate
from slosched.predictors.encoder import (
    ENCODER,
    TOKENIZER,
    WINDOW_TOKENS,
    Encoder,
    export_encoder,
    import_exporter,
    layers_read,
)
from slosched.predictors.heads import Head, Plane, aims_of, fit_surface, head_of
from slosched.predictors.ranker import (
    FOLDS,
    RULES,
    Progress,
    Ranker,
    folds,
    scored_out_of_fold,
    tau,
    train_ranker,
)
from slosched.predictors.rules_of_thumb import rules_of_thumb
from slosched.predictors.states import read_tensors, write_tensors

METHODS = ("frozen", "tuned")

SHARES = (0.5, 1.0, 2.0, 4.0)
"""Weights of the encoder's score, the light one's being 1; the best on prompts held out is taken."""

LEAST_TO_CHOOSE = 200
"""Prompts held out from which on the share is chosen: the error of tau is about .05 with these. With fewer
it is 1."""

EPOCHS = 5
LEARNING_RATE = 1e-4
"""Of a tuned encoder; the paper's 2e-5 learns too little from some hundred prompts."""

SHARED_BY = 0.9
"""Share of the prompts that must begin, or end, with a text for it to be cut off as a template."""

FORMAT = "slosched-encoder-2"

QUICK = "light"
"""Folder of the light ranker within an encoder ranker's."""


@dataclass(frozen=True, slots=True, eq=False)
class EncoderRanker:
    """A pretrained encoder beside the light ranker, a `slosched.predictors.Predictor`.

    Parameters
    ----------
    quick
        The light ranker alone: its forecast costs a hundredth, for the time until this one's is there.
    encoder
        Turns prompts into vectors.
    head
        Turns vectors into scores.
    spread
        Standard deviations of the light and of the encoder's score on prompts not trained on, shape (2,).
    share
        Weight of the encoder's score, the light one's being 1.
    calibration
        What lengths a sum stands for.
    ends
        What prompts begin and end with that the encoder need not read.
    report
        Measures of its training.
    """

    quick: Ranker
    encoder: Encoder
    head: Head
    spread: Floats
    share: float
    calibration: Calibration
    ends: tuple[str, str] = ("", "")
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.encoder.hidden_size
        require(self.head.size == size, "head", f"for vectors of {size}, as the encoder's", self.head.size)
        ok = self.spread.shape == (2,) and bool(np.all(self.spread > 0) and np.isfinite(self.spread).all())
        require(ok, "spread", "two finite numbers above 0", self.spread)

    def score(self, texts: Sequence[str]) -> Floats:
        """Score of each text, higher means longer, shape (n,)."""
        apart = np.stack([self.quick.score(texts), self.encoded(texts)], axis=1) / self.spread
        return np.asarray(apart @ np.array([1.0, self.share]))

    def encoded(self, texts: Sequence[str]) -> Floats:
        """The encoder's score of each text, shape (n,)."""
        return self.head.score(self.encoder.embed(inner_of(texts, self.ends)))

    def forecast(self, prompts: Sequence[Prompt]) -> Floats:
        """Atoms for each prompt, shape (n, FORECAST_ATOMS)."""
        return self.calibration.atoms(self.score([prompt.text for prompt in prompts]))

    def save(self, folder: str | Path) -> Path:
        """Write the encoder's files, ``ranker.safetensors``, ``predictor.json`` and the light ranker."""
        target = Path(folder)
        self.quick.save(target / QUICK)
        for name in (ENCODER, TOKENIZER):
            if (self.encoder.folder / name).resolve() != (target / name).resolve():
                shutil.copyfile(self.encoder.folder / name, target / name)
        arrays = self.head.arrays() | {
            "spread": self.spread, "scores": self.calibration.scores,
            "log_atoms": self.calibration.log_atoms,
        }  # fmt: skip
        write_tensors(target / "ranker.safetensors", arrays, {"format": FORMAT})
        about = {
            "kind": "encoder", "share": self.share,
            "window_tokens": self.encoder.window_tokens, "ends": self.ends, "report": self.report,
        }  # fmt: skip
        write_files(target, {ABOUT: (json.dumps(about, indent=1) + "\n").encode()})
        return target

    @classmethod
    def load(cls, folder: str | Path) -> EncoderRanker:
        """Read what `save` wrote; needs onnxruntime and tokenizers.

        Raises
        ------
        InputError
            If a file is missing or does not fit the others.
        """
        source = Path(folder)
        about = about_of(source)
        path = source / "ranker.safetensors"
        arrays, written = read_tensors(path)
        if written.get("format") != FORMAT:
            found = written.get("format")
            raise InputError(f"{path}: format must be {FORMAT!r}, got {found!r}; train the ranker anew.")
        try:
            head = head_of(arrays)
            spread, scores, log_atoms = (
                np.asarray(arrays[name], np.float64) for name in ("spread", "scores", "log_atoms")
            )
            window, share = int(about["window_tokens"]), float(about["share"])
            begin, end = (str(text) for text in about.get("ends", ("", "")))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source}: {error} is missing or is not a number.") from None
        return cls(
            Ranker.load(source / QUICK), Encoder(source, window), head, spread, share,
            Calibration(scores, log_atoms), (begin, end), about.get("report", {}),
        )  # fmt: skip


def train_encoder(
    answers: Answers,
    model: str | Path,
    out: str | Path,
    *,
    method: str = "frozen",
    window_tokens: int = WINDOW_TOKENS,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    device: str = "cpu",
    download: bool = False,
    progress: Progress | None = None,
) -> EncoderRanker:
    """Train one of the two rungs; what is deployed, 8-bit weights and all, is also what is calibrated.

    Parameters
    ----------
    answers
        Prompts and lengths.
    model
        Folder of a Hugging Face encoder, or an installed package that carries one.
    out
        Folder for the ranker; the encoder's files are written there at once.
    method
        ``frozen`` or ``tuned``.
    window_tokens
        Tokens read of a prompt.
    epochs, learning_rate
        Of ``tuned``.
    seed
        Of the folds, or of the split and the order.
    device
        Where torch trains; serving always runs on the processor.
    download
        Let the model be fetched.
    progress
        Told of each step.

    Raises
    ------
    InputError
        If the model cannot be read or written as ONNX, or there are too few prompts.
    MissingExtraError
        If a package of the extra ``encoder`` is not installed.
    """
    require(method in METHODS, "method", f"one of {', '.join(METHODS)}", method)
    answers.require_enough()
    import_exporter()
    from slosched.predictors.pretrained import layers_of, open_model
    from slosched.predictors.transformer_training import TRAINED_ON, Recipe, train_transformer

    if method == "frozen":
        body, tokenizer = open_model(model, download=download)
        export_encoder(body, tokenizer, out, layers_read(layers_of(body)))
        made = train_frozen(answers, Encoder(out, window_tokens), seed=seed, progress=progress)
        return replace(made, report={"model": Path(model).name} | made.report)
    ends = common_ends([prompt.text for prompt in answers.prompts])
    inner = inner_of([prompt.text for prompt in answers.prompts], ends)
    cut = [replace(p, text=text) for p, text in zip(answers.prompts, inner, strict=True)]
    recipe = Recipe(
        epochs=epochs, learning_rate=learning_rate, pooling="mean", most_tokens=window_tokens,
        both_ends=True, fading=True, rules=RULES,
    )  # fmt: skip
    tuned = train_transformer(
        replace(answers, prompts=cut), model, recipe, seed=seed, device=device, download=download,
        progress=progress,
    )  # fmt: skip
    export_encoder(tuned.body, tuned.tokenizer, out)
    encoder = Encoder(out, window_tokens)
    head = Plane(tuned.head.weight.detach().cpu().double().numpy()[0])
    known, watched = answers.split(TRAINED_ON, seed)
    quick = train_ranker(known, seed=seed)
    texts = [prompt.text for prompt in watched.prompts]
    encoded = head.score(encoder.embed(inner_of(texts, ends)))
    made = _summed(watched, np.stack([quick.score(texts), encoded], axis=1), quick, encoder, head, ends, seed)
    report = {"model": Path(model).name, "method": method} | made.report | {"prompts": len(answers.prompts)}
    return replace(made, report=report)


def train_frozen(
    answers: Answers, encoder: Encoder, *, seed: int = 0, progress: Progress | None = None
) -> EncoderRanker:
    """The frozen rung on an encoder that was written before, see `train_encoder`; several may share one."""
    answers.require_enough()
    texts = [prompt.text for prompt in answers.prompts]
    ends = common_ends(texts)
    vectors = encoder.embed(inner_of(texts, ends))
    rules = rules_of_thumb()
    general = encoder.embed([prompt.text for prompt in rules.prompts]), aims_of(rules)
    quick, light = scored_out_of_fold(answers, seed=seed, progress=progress)
    fold = folds(answers, seed)
    encoded = np.zeros(len(fold))
    for k in range(FOLDS):
        inside, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        part = fit_surface(vectors[inside], aims_of(answers.select(inside)), general, seed=seed)
        encoded[held] = part.score(vectors[held])
    head = fit_surface(vectors, aims_of(answers), general, seed=seed)
    made = _summed(answers, np.stack([light, encoded], axis=1), quick, encoder, head, ends, seed)
    return replace(made, report={"method": "frozen"} | made.report)


def _summed(
    watched: Answers, apart: Floats, quick: Ranker, encoder: Encoder, head: Head, ends: tuple[str, str],
    seed: int,
) -> EncoderRanker:  # fmt: skip
    """The ranker, from light and encoder's scores of prompts not trained on, shape (prompts, 2)."""
    spread = np.maximum(apart.std(axis=0), 1e-9)
    lengths = watched.output_tokens
    sums = {share: (apart / spread) @ np.array([1.0, share]) for share in SHARES}
    order = {share: tau(score[watched.prompt], lengths) for share, score in sums.items()}
    enough = len(watched.prompts) >= LEAST_TO_CHOOSE
    share = max(SHARES, key=lambda s: (order[s], -abs(np.log(s)))) if enough else 1.0
    made = calibrate(sums[share][watched.prompt], lengths, watched.cut, seed=seed)
    report = {
        "prompts": len(watched.prompts), "answers": len(lengths), "cut": int(watched.cut.sum()),
        "share": share, "tau_held_out": order[share], "tau_light": tau(apart[watched.prompt, 0], lengths),
        "tau_encoder": tau(apart[watched.prompt, 1], lengths),
    }  # fmt: skip
    return EncoderRanker(quick, encoder, head, spread, share, made, ends, report)


def common_ends(texts: Sequence[str]) -> tuple[str, str]:
    """What at least `SHARED_BY` of the texts begin with, and end with; the longest such.

    Examples
    --------
    >>> common_ends([f"Question: {word} Be brief." for word in ("Why?", "How?", "Who?")] * 4)
    ('Question: ', '? Be brief.')
    """
    begin = _shared(texts)
    end = _shared([text[len(begin) * text.startswith(begin) :][::-1] for text in texts])
    return begin, end[::-1]


def _shared(texts: Sequence[str]) -> str:
    """The longest beginning that enough texts have; it is one of the texts in the middle, when sorted."""
    found = ""
    ordered = sorted(texts)
    for text in {ordered[len(ordered) * k // 10] for k in range(10)}:
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if sum(t.startswith(text[:middle]) for t in texts) >= SHARED_BY * len(texts):
                low = middle
            else:
                high = middle - 1
        found = max(found, text[:low], key=len)
    return found


def inner_of(texts: Sequence[str], ends: tuple[str, str]) -> list[str]:
    """The texts without what they begin and end with; one that is nothing else stays as it is."""
    return [text.removeprefix(ends[0]).removesuffix(ends[1]) or text for text in texts]
