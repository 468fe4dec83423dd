"""The ranker that ships with the package, for the time before there are answers of one's own.

It holds weights only, no text; its card, ``prior/predictor.json``, names what it was trained on
(``benchmarks/build_prior.py``). It knows which prompts ask for more, not how long your model's answers are:
its forecasts are right in order at best, and `slosched.predictors.blend` gives them level and spread.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from slosched.predictors.ranker import Ranker

PRIOR = "prior"
"""Names it where a ranker's folder could stand."""

FOLDER = Path(__file__).with_name(PRIOR)


@lru_cache(maxsize=1)
def load_prior() -> Ranker:
    """The shipped ranker.

    Examples
    --------
    >>> ranker = load_prior()
    >>> short, long = ranker.score(["What is 2 + 2?", "Write a detailed story about a dragon and a knight."])
    >>> bool(short < long)
    True
    """
    return Ranker.load(FOLDER)
