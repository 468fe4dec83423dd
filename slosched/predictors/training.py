"""One way to train every ranker: its method by name, the settings that all share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slosched.core.errors import InputError, require
from slosched.core.named import import_named
from slosched.predictors.answers import Answers
from slosched.predictors.encoder import WINDOW_TOKENS
from slosched.predictors.ranker import Progress, train_ranker


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a ranker is trained; each method looks at what concerns it.

    Parameters
    ----------
    out
        Folder it will be saved to; an encoder is written there while training.
    objective
        See `slosched.predictors.ranker.OBJECTIVES` and `slosched.predictors.transformer.OBJECTIVES`.
    model
        Folder or package of a Hugging Face model.
    download
        Let the model be fetched.
    epochs, learning_rate
        Of training by gradient; None: the method's own rate.
    window_tokens
        Tokens that an encoder reads of a prompt.
    chat
        Put the model's chat template around prompts.
    device
        Where torch computes: ``cpu``, ``cuda``, or ``auto``.
    seed
        Of splits, orders and weights.
    progress
        Told of each step.
    """

    out: Path
    objective: str = "listmle"
    model: str | Path | None = None
    download: bool = False
    epochs: int = 5
    learning_rate: float | None = None
    window_tokens: int = WINDOW_TOKENS
    chat: bool = False
    device: str = "auto"
    seed: int = 0
    progress: Progress | None = None


Trainer = Callable[[Answers, Training], Any]
"""Makes a predictor with ``report`` and ``save(folder)`` from answers."""


def light(answers: Answers, t: Training) -> Any:
    """Words and counts: `slosched.predictors.ranker`."""
    return train_ranker(answers, objective=t.objective, seed=t.seed, progress=t.progress)


def frozen(answers: Answers, t: Training) -> Any:
    """A pretrained encoder as it is, beside the light ranker: `slosched.predictors.encoder_ranker`."""
    return _encoder(answers, t, "frozen")


def tuned(answers: Answers, t: Training) -> Any:
    """A pretrained encoder trained to rank, beside the light ranker: `slosched.predictors.encoder_ranker`."""
    return _encoder(answers, t, "tuned")


def _encoder(answers: Answers, t: Training, method: str) -> Any:
    from slosched.predictors.encoder_ranker import LEARNING_RATE, train_encoder

    return train_encoder(
        answers, t.model or "", t.out, method=method, window_tokens=t.window_tokens, epochs=t.epochs,
        learning_rate=_rate(t, LEARNING_RATE), seed=t.seed, device=t.device, download=t.download,
        progress=t.progress,
    )  # fmt: skip


def ltr(answers: Answers, t: Training) -> Any:
    """Fu et al.'s own recipe on any model: `slosched.predictors.transformer`."""
    from slosched.predictors.transformer_training import LEARNING_RATE, Recipe, train_transformer

    rate = _rate(t, LEARNING_RATE)
    recipe = Recipe(objective=t.objective, epochs=t.epochs, learning_rate=rate, chat=t.chat)
    return train_transformer(
        answers, t.model or "", recipe, seed=t.seed, device=t.device, download=t.download,
        progress=t.progress,
    )  # fmt: skip


def _rate(t: Training, usual: float) -> float:
    return usual if t.learning_rate is None else t.learning_rate


METHODS: dict[str, Trainer] = {"light": light, "frozen": frozen, "tuned": tuned, "ltr": ltr}


def trainer(method: str) -> Trainer:
    """The method of that name, or what ``package.module:function`` names.

    Raises
    ------
    InputError
        If there is no such method or function.

    Examples
    --------
    >>> trainer("light").__name__
    'light'
    """
    if ":" not in method:
        names = ", ".join(METHODS)
        require(method in METHODS, "method", f"one of {names}, or package.module:function", method)
        return METHODS[method]
    module, _, name = method.partition(":")
    try:
        found = getattr(import_named(module), name)
    except Exception as error:  # somebody else's module may raise anything
        raise InputError(f"method must name a function, got {method!r}: {error}.") from None
    require(callable(found), "method", "a function", method)
    try:
        inspect.signature(found).bind(None, None)
    except (TypeError, ValueError) as error:  # takes something else, or does not say what
        domain = "a function of the answers and a Training"
        raise InputError(f"method must be {domain}, got {method!r}: {error}.") from None
    made: Trainer = found
    return made
