"""Commands around length predictors: train, predict, evaluate."""

from __future__ import annotations

import typer

train = typer.Typer(
    name="train", help="Train a predictor of output lengths.", no_args_is_help=True, add_completion=False
)
evaluate = typer.Typer(
    name="evaluate", help="Measure a predictor of output lengths.", no_args_is_help=True, add_completion=False
)
