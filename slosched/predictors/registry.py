"""Predictors read from disk, by their kind."""

from __future__ import annotations

from pathlib import Path

from slosched.core.errors import InputError
from slosched.predictors.base import ABOUT, Predictor, about_of
from slosched.predictors.encoder_ranker import EncoderRanker
from slosched.predictors.history import ClassHistory
from slosched.predictors.prior import PRIOR, load_prior
from slosched.predictors.ranker import Ranker
from slosched.predictors.transformer import TransformerRanker


def load_predictor(folder: str | Path) -> Predictor:
    """Read a ranker of any rung or a class history; nothing in it is executed. ``prior`` names the one that
    ships with the package.

    Raises
    ------
    InputError
        If the folder or a file is missing, or is not what it should be.
    """
    if str(folder) == PRIOR:
        return load_prior()
    kind = about_of(folder)["kind"]
    if kind == "light":
        return Ranker.load(folder)
    if kind == "encoder":
        return EncoderRanker.load(folder)
    if kind == "transformer":
        return TransformerRanker.load(folder)
    if kind == "history":
        return ClassHistory.load(folder)
    raise InputError(
        f"{Path(folder) / ABOUT}: kind must be light, encoder, transformer or history, got {kind!r}."
    )
