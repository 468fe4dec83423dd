"""Training of the transformer ranker: as in Fu et al. 2024 (arXiv 2408.15792, section 3), or by a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import require
from slosched.predictors.answers import Answers
from slosched.predictors.calibration import calibrate
from slosched.predictors.pretrained import import_torch, open_model
from slosched.predictors.ranker import Progress, tau
from slosched.predictors.rules_of_thumb import rules_of_thumb
from slosched.predictors.transformer import MOST_TOKENS, OBJECTIVES, POOLINGS, TransformerRanker

LONGEST = 8192
"""Longer answers count as this long."""

LIST_SIZE = 32
LEARNING_RATE = 2e-5
WEIGHT_DECAY = 0.01
LABEL_TOKENS = 10
"""Lengths are ranked in steps of so many tokens; ties are broken at random at each epoch."""

TRAINED_ON = 0.9
"""Share of the prompts trained on; the others are watched and calibrate."""

WARM_UP = 10
"""Steps in which a fading rate rises to its full height; a fifth of all steps, if that is fewer."""

RULES_LIST = 16
"""Rules of thumb in each of their lists, half as many as prompts of one's own: a fifth of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a transformer is trained to rank; the paper's settings by default, but for the chat template.

    Parameters
    ----------
    objective
        One of `slosched.predictors.transformer.OBJECTIVES`.
    epochs, learning_rate
        5 and 2e-5 in the paper.
    pooling, most_tokens, chat, both_ends
        See `TransformerRanker`; ``last``, 2,048, True and False in the paper.
    fading
        Let the rate rise for `WARM_UP` steps, then fall to zero; in the paper it stays.
    rules
        Weight of a list of `slosched.predictors.rules_of_thumb` beside each list of prompts, the weight of
        these being 1; classes know no rules.
    """

    objective: str = "listmle"
    epochs: int = 5
    learning_rate: float = LEARNING_RATE
    pooling: str = "last"
    most_tokens: int = MOST_TOKENS
    chat: bool = False
    both_ends: bool = False
    fading: bool = False
    rules: float = 0.0

    def __post_init__(self) -> None:
        known = self.objective in OBJECTIVES
        require(known, "objective", f"one of {', '.join(OBJECTIVES)}", self.objective)
        require(self.pooling in POOLINGS, "pooling", f"one of {', '.join(POOLINGS)}", self.pooling)
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        ok = 0 < self.learning_rate < np.inf
        require(ok, "learning_rate", "a finite number above 0", self.learning_rate)
        require(0 <= self.rules < np.inf, "rules", "at least 0", self.rules)

    @property
    def class_tokens(self) -> int:
        """Tokens that a length class is wide; 0 without classes."""
        return 0 if self.objective == "listmle" else int(self.objective.split("-")[1])

    @property
    def outputs(self) -> int:
        """Numbers that the head gives: one score, or a logit for each length class."""
        return -(-LONGEST // self.class_tokens) if self.class_tokens else 1

    def rate(self, done: int, steps: int) -> float:
        """Learning rate of a step, after `done` of `steps`."""
        if not self.fading:
            return self.learning_rate
        rise = min(WARM_UP, steps / 5)
        return self.learning_rate * min(1.0, (done + 1) / rise) * (1.0 - done / steps)


def train_transformer(
    answers: Answers,
    model: str | Path,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    download: bool = False,
    progress: Progress | None = None,
) -> TransformerRanker:
    """Train by a recipe, the paper's by default; a tenth of the prompts is held out to watch and calibrate.

    Parameters
    ----------
    answers
        Prompts and lengths. Cut-off answers stay in their list among those still to be drawn; classes count
        them as long as they are.
    model
        Folder of a Hugging Face model with its tokenizer, or a name on the hub with `download`.
    recipe
        Objective, rate, window and the like.
    seed
        Of the split, the order, and the head.
    device
        Where torch computes, such as ``cuda``; ``auto`` takes that where there is one.
    download
        Let the model be fetched.
    progress
        Told of each step.

    Raises
    ------
    InputError
        If there is no model or tokenizer, or too few prompts.
    """
    answers.require_enough()
    import_torch()
    recipe = recipe or Recipe()
    made = _untrained(model, recipe, seed, device, download)
    train, watch = answers.split(TRAINED_ON, seed)
    watched = [prompt.text for prompt in watch.prompts]
    curve: list[tuple[int, float]] = []
    scores = np.zeros(0)
    for answered in _epochs(made, train, recipe, seed, progress):
        scores = made.score(watched)[watch.prompt]
        curve.append((answered, tau(scores, watch.output_tokens)))
    made.calibration = calibrate(scores, watch.output_tokens, watch.cut, seed=seed)
    made.report = {
        "prompts": len(answers.prompts), "answers": len(answers.output_tokens),
        "cut": int(answers.cut.sum()), "objective": recipe.objective, "model": str(model),
        "tau_watched": curve[-1][1], "curve": curve,
    }  # fmt: skip
    return made


def _untrained(
    model: str | Path, recipe: Recipe, seed: int, device: str, download: bool
) -> TransformerRanker:
    """The model with a random head."""
    import torch

    body, tokenizer = open_model(model, download=download)
    torch.manual_seed(seed)
    head = torch.nn.Linear(int(body.config.hidden_size), recipe.outputs, bias=False)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return TransformerRanker(
        body.to(device), tokenizer, head.to(device), recipe.objective, pooling=recipe.pooling,
        most_tokens=recipe.most_tokens, chat=recipe.chat, both_ends=recipe.both_ends,
    )  # fmt: skip


def _epochs(
    made: TransformerRanker, train: Answers, recipe: Recipe, seed: int, progress: Progress | None
) -> Iterator[int]:
    """Train; after each epoch, how many answers have been shown."""
    import torch

    weights = [*made.body.parameters(), *made.head.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY)
    rng = np.random.default_rng(seed)
    n = len(train.output_tokens)
    steps, done = recipe.epochs * -(-n // LIST_SIZE), 0
    lists = _Lists(made, train, recipe, rng)
    for epoch in range(recipe.epochs):
        made.body.train()
        order = rng.permutation(n)
        for at in range(0, n, LIST_SIZE):
            loss = lists.loss(order[at : at + LIST_SIZE])
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(done, steps)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            done += 1
            if progress is not None:
                progress(done, steps)
        yield n * (epoch + 1)


class _Lists:
    """Losses of lists of answers, each with its list of rules of thumb."""

    def __init__(
        self, made: TransformerRanker, train: Answers, recipe: Recipe, rng: np.random.Generator
    ) -> None:
        self.made, self.train, self.recipe, self.rng = made, train, recipe, rng
        self.texts = [prompt.text for prompt in train.prompts]
        self.tokens = np.minimum(train.output_tokens, LONGEST)
        self.rules = rules_of_thumb()
        ruled = recipe.rules and not recipe.class_tokens
        self.patterns = [prompt.text for prompt in self.rules.prompts] if ruled else []

    def loss(self, rows: Ints) -> Any:
        """Loss of these answers, and of rules drawn at random."""
        import torch

        drawn = self.rng.permutation(len(self.patterns))[:RULES_LIST]
        asked = [self.texts[i] for i in self.train.prompt[rows].tolist()]
        out = self.made.outputs(asked + [self.patterns[i] for i in drawn.tolist()])
        width = self.recipe.class_tokens
        if width:
            label = np.minimum(self.tokens[rows] // width, self.recipe.outputs - 1)
            return torch.nn.functional.cross_entropy(out, torch.tensor(label, device=out.device))
        loss = _list_loss(out[: len(rows), 0], self.tokens[rows], self.train.cut[rows], self.rng)
        if len(drawn):
            told = self.rules.output_tokens[drawn], self.rules.cut[drawn]
            loss = loss + self.recipe.rules * _list_loss(out[len(rows) :, 0], *told, self.rng)
        return loss


def _ranked(tokens: Ints, cut: Any, rng: np.random.Generator) -> Ints:
    """Shortest first in steps of `LABEL_TOKENS`; at a tie those that ended first, then at random."""
    return np.lexsort((rng.random(len(tokens)), cut, tokens // LABEL_TOKENS))


def _list_loss(scores: Any, tokens: Ints, cut: Any, rng: np.random.Generator) -> Any:
    """ListMLE of a list's scores and lengths."""
    return _listmle(scores, _ranked(tokens, cut, rng), cut)


def _listmle(scores: Any, order: Ints, cut: Any) -> Any:
    import torch

    hazard = -scores[torch.tensor(order, device=scores.device)]
    still = torch.flip(torch.logcumsumexp(torch.flip(hazard, [0]), 0), [0])
    ended = torch.tensor(~cut[order], dtype=hazard.dtype, device=scores.device)
    return ((still - hazard) * ended).sum() / ended.sum().clamp(min=1.0)
