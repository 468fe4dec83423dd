"""Rankers that read prompts with a pretrained encoder, beside the light ranker's words and counts.

Two rungs above the light one. ``frozen``: a score of the states of three of the encoder's layers as they are,
by likeness to prompts whose answers are known. ``tuned``: a second copy of the encoder is trained to rank
(ListMLE, as Fu et al. 2024, arXiv 2408.15792, but mean pooling and a higher rate), and read beside the frozen
one. All are added to the light ranker's score, each in units of its own spread, so that none drowns another.

What nearly all prompts begin or end with, such as a template or a system prompt, tells nothing of an answer's
length but would fill the encoder's window. It is cut off before the encoder reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slosched.core.arrays import Floats, Ints
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
)
from slosched.predictors.rules_of_thumb import rules_of_thumb
from slosched.predictors.states import read_tensors, write_tensors

if TYPE_CHECKING:
    from slosched.predictors.transformer_training import Recipe

FROZEN, TUNED = METHODS = ("frozen", "tuned")

SHARES = {
    1: ((1.0,), (2.0,), (0.5,), (4.0,)),
    2: ((1.0, 2.0), (1.0, 1.0), (2.0, 2.0), (1.0, 4.0), (2.0, 1.0)),
}
"""Weights of the encoders' scores, the light one's being 1, by their number; the best on prompts held out is
taken, the first where there are too few of them."""

LEAST_TO_CHOOSE = 200
"""Prompts held out from which on shares are chosen: the error of tau is about .05 with these."""

EPOCHS = 5
LEARNING_RATE = 1e-4
"""Of a tuned encoder; the paper's 2e-5 learns too little from some hundred prompts."""

SHARED_BY = 0.9
"""Share of the prompts that must begin, or end, with a text for it to be cut off as a template."""

FORMAT = "slosched-encoder-3"

QUICK = "light"
"""Folder of the light ranker within an encoder ranker's."""


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """An encoder and what turns its vectors into scores."""

    encoder: Encoder
    head: Head

    def __post_init__(self) -> None:
        size = self.encoder.hidden_size
        require(self.head.size == size, "head", f"for vectors of {size}, as the encoder's", self.head.size)

    def score(self, texts: Sequence[str]) -> Floats:
        """Score of each text, shape (n,)."""
        return self.head.score(self.encoder.embed(texts))


@dataclass(frozen=True, slots=True, eq=False)
class EncoderRanker:
    """Pretrained encoders beside the light ranker, a `slosched.predictors.Predictor`.

    Parameters
    ----------
    quick
        The light ranker alone: its forecast costs a hundredth, for the time until this one's is there.
    readers
        By name, one of `METHODS`: ``frozen``, and perhaps ``tuned``.
    spread
        Standard deviations of the light score and of each reader's on prompts not trained on, shape
        (1 + readers,).
    shares
        Weights of the readers' scores, the light one's being 1, shape (readers,).
    calibration
        What lengths a sum stands for.
    ends
        What prompts begin and end with that encoders need not read.
    report
        Measures of its training.
    """

    quick: Ranker
    readers: dict[str, Reader]
    spread: Floats
    shares: Floats
    calibration: Calibration
    ends: tuple[str, str] = ("", "")
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = bool(self.readers) and self.readers.keys() <= set(METHODS)
        require(known, "readers", f"of {', '.join(METHODS)}", ", ".join(self.readers))
        for name, values, count in (
            ("spread", self.spread, 1 + len(self.readers)), ("shares", self.shares, len(self.readers)),
        ):  # fmt: skip
            ok = values.shape == (count,) and bool(np.all(values > 0) and np.isfinite(values).all())
            require(ok, name, f"{count} finite numbers above 0", values)

    def score(self, texts: Sequence[str]) -> Floats:
        """Score of each text, higher means longer, shape (n,)."""
        inner = inner_of(texts, self.ends)
        apart = [self.quick.score(texts), *(reader.score(inner) for reader in self.readers.values())]
        return np.asarray((np.stack(apart, axis=1) / self.spread) @ np.append(1.0, self.shares))

    def encoded(self, texts: Sequence[str], name: str) -> Floats:
        """The score of each text by one reader alone, shape (n,)."""
        return self.readers[name].score(inner_of(texts, self.ends))

    def forecast(self, prompts: Sequence[Prompt]) -> Floats:
        """Atoms for each prompt, shape (n, FORECAST_ATOMS)."""
        return self.calibration.atoms(self.score([prompt.text for prompt in prompts]))

    def save(self, folder: str | Path) -> Path:
        """Write ``ranker.safetensors``, ``predictor.json``, the light ranker, and each reader's encoder in a
        folder of the reader's name.
        """
        target = Path(folder)
        self.quick.save(target / QUICK)
        arrays = {
            "spread": self.spread, "shares": self.shares, "scores": self.calibration.scores,
            "log_atoms": self.calibration.log_atoms,
        }  # fmt: skip
        for name, reader in self.readers.items():
            source, place = reader.encoder.folder, target / name
            place.mkdir(parents=True, exist_ok=True)
            for file in (ENCODER, TOKENIZER):
                if (source / file).resolve() != (place / file).resolve():
                    shutil.copyfile(source / file, place / file)
            arrays |= {f"{name}.{key}": array for key, array in reader.head.arrays().items()}
        write_tensors(target / "ranker.safetensors", arrays, {"format": FORMAT})
        window = max(reader.encoder.window_tokens for reader in self.readers.values())
        about = {
            "kind": "encoder", "readers": list(self.readers), "window_tokens": window, "ends": self.ends,
            "report": self.report,
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
            names = [str(name) for name in about["readers"]]
            require(set(names) <= set(METHODS), "readers", f"of {', '.join(METHODS)}", names)
            heads = {name: head_of(_within(arrays, name)) for name in names}
            spread, shares, scores, log_atoms = (
                np.asarray(arrays[name], np.float64) for name in ("spread", "shares", "scores", "log_atoms")
            )
            window = int(about["window_tokens"])
            begin, end = (str(text) for text in about.get("ends", ("", "")))
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source}: {error} is missing or is not a number.") from None
        readers = {name: Reader(Encoder(source / name, window), head) for name, head in heads.items()}
        return cls(
            Ranker.load(source / QUICK), readers, spread, shares, Calibration(scores, log_atoms),
            (begin, end), about.get("report", {}),
        )  # fmt: skip


def _within(arrays: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arrays of one reader, by their names without its own."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


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

    body, tokenizer = open_model(model, download=download)
    export_encoder(body, tokenizer, Path(out) / FROZEN, layers_read(layers_of(body)))
    encoder = Encoder(Path(out) / FROZEN, window_tokens)
    about = {"model": Path(model).name}
    if method == FROZEN:
        made = train_frozen(answers, encoder, seed=seed, progress=progress)
        return replace(made, report=about | made.report)
    from slosched.predictors.transformer_training import Recipe

    recipe = Recipe(
        epochs=epochs, learning_rate=learning_rate, pooling="mean", most_tokens=window_tokens,
        both_ends=True, fading=True, rules=RULES,
    )  # fmt: skip
    found = _frozen(answers, encoder, seed)
    texts = [prompt.text for prompt in answers.prompts]
    cut = [replace(p, text=t) for p, t in zip(answers.prompts, inner_of(texts, found.ends), strict=True)]
    reader, watched = _tuned(
        replace(answers, prompts=cut), model, Path(out) / TUNED, recipe, seed=seed, device=device,
        download=download, progress=progress,
    )  # fmt: skip
    encoded = reader.score([cut[i].text for i in watched.tolist()])
    found = replace(
        found, readers=found.readers | {TUNED: reader}, spread=np.append(found.spread, _spread(encoded)),
        apart=np.column_stack([found.apart[watched], encoded]),
    )  # fmt: skip
    made = _summed(answers.select(watched), found, seed)
    return replace(made, report=about | {"method": method} | made.report | {"prompts": len(texts)})


def train_frozen(
    answers: Answers, encoder: Encoder, *, seed: int = 0, progress: Progress | None = None
) -> EncoderRanker:
    """The frozen rung on an encoder that was written before, see `train_encoder`; several may share one."""
    answers.require_enough()
    made = _summed(answers, _frozen(answers, encoder, seed, progress), seed)
    return replace(made, report={"method": FROZEN} | made.report)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a sum is made of; `apart` holds scores of prompts by what was not trained on them, one column for
    the light ranker and one for each reader, `spread` the columns' standard deviations.
    """

    quick: Ranker
    readers: dict[str, Reader]
    ends: tuple[str, str]
    apart: Floats
    spread: Floats


def _frozen(answers: Answers, encoder: Encoder, seed: int, progress: Progress | None = None) -> _Parts:
    """Light ranker and frozen encoder trained on all answers, and their scores out of fold."""
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
    apart = np.column_stack([light, encoded])
    return _Parts(quick, {FROZEN: Reader(encoder, head)}, ends, apart, _spread(apart))


def _tuned(
    answers: Answers, model: str | Path, out: Path, recipe: Recipe, *, seed: int, device: str,
    download: bool, progress: Progress | None,
) -> tuple[Reader, Ints]:  # fmt: skip
    """An encoder trained to rank, written to a folder, and which prompts it was not trained on."""
    from slosched.predictors.transformer_training import TRAINED_ON, train_transformer

    tuned = train_transformer(
        answers, model, recipe, seed=seed, device=device, download=download, progress=progress
    )
    export_encoder(tuned.body, tuned.tokenizer, out)
    head = Plane(tuned.head.weight.detach().cpu().double().numpy()[0])
    reader = Reader(Encoder(out, recipe.most_tokens), head)
    return reader, answers.parts(TRAINED_ON, seed)[1]


def _spread(scores: Floats) -> Floats:
    """Standard deviation of scores, or of each column; never 0."""
    return np.asarray(np.maximum(scores.std(axis=0), 1e-9))


def _summed(watched: Answers, parts: _Parts, seed: int) -> EncoderRanker:
    """The ranker, from the parts' scores of these prompts, on which none of them was trained."""
    lengths = watched.output_tokens
    tried = [np.array(shares) for shares in SHARES[len(parts.readers)]]
    sums = [(parts.apart / parts.spread) @ np.append(1.0, shares) for shares in tried]
    order = [tau(score[watched.prompt], lengths) for score in sums]
    enough = len(watched.prompts) >= LEAST_TO_CHOOSE
    best = int(np.argmax(order)) if enough else 0
    made = calibrate(sums[best][watched.prompt], lengths, watched.cut, seed=seed)
    alone = {
        f"tau_{name}": tau(parts.apart[watched.prompt, k], lengths)
        for k, name in enumerate(("light", *parts.readers))
    }
    report = {
        "prompts": len(watched.prompts), "answers": len(lengths), "cut": int(watched.cut.sum()),
        "shares": tried[best].tolist(), "tau_held_out": order[best],
    } | alone  # fmt: skip
    return EncoderRanker(parts.quick, parts.readers, parts.spread, tried[best], made, parts.ends, report)


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
