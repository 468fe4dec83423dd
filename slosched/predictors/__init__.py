"""Output length predictors: what is known of a prompt becomes forecast atoms.

Every predictor answers `forecast(prompts)` with atoms, shape (n, FORECAST_ATOMS), eight equally likely
lengths a row, ascending, at least 1: what `slosched.core.forecast.LengthForecast` and a `RequestTable` hold.
Conditioning on the tokens already generated is theirs (`LengthForecast.given`,
`slosched.core.remaining.remaining_tokens`).
"""

from __future__ import annotations

from slosched.predictors.base import Predictor as Predictor
from slosched.predictors.base import Prompt as Prompt
from slosched.predictors.registry import load_predictor as load_predictor
