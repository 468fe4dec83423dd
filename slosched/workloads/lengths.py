"""Prompt and output lengths of request classes, as quantile tables fitted to public traces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError, require


@lru_cache(maxsize=1)
def fitted() -> dict[str, Any]:
    """Statistics derived from public traces by ``benchmarks/fit_workloads.py``; do not change the answer."""
    text = files("slosched.workloads").joinpath("fitted.json").read_text(encoding="utf-8")
    answer: dict[str, Any] = json.loads(text)
    return answer


def from_quantiles(uniform: ArrayLike, tokens: ArrayLike) -> Floats:
    """Values at probabilities `uniform` of the distribution with the quantiles `tokens`.

    Parameters
    ----------
    uniform
        Probabilities from 0 to 1, any shape.
    tokens
        Quantiles at the levels of ``fitted()["levels"]``, each above 0.

    Returns
    -------
    ndarray
        Same shape as `uniform`; interpolated in the logarithm, since lengths are spread over decades.
    """
    levels = np.asarray(fitted()["levels"], dtype=np.float64)
    logs = np.log(np.asarray(tokens, dtype=np.float64))
    return np.asarray(np.exp(np.interp(np.asarray(uniform, dtype=np.float64), levels, logs)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthTable:
    """Joint distribution of prompt and output length of one class.

    Parameters
    ----------
    prompt_tokens, output_tokens
        Quantiles at the levels of ``fitted()["levels"]``, each at least 1, ascending.
    rank_correlation
        Spearman correlation of the two, above -1 and below 1.
    source
        Trace they come from.

    Examples
    --------
    >>> prompt, output = LengthTable.named("code").draw(1000, np.random.default_rng(0))
    >>> bool(1000 < np.median(prompt) < 2000 and 10 < np.median(output) < 16)
    True
    """

    prompt_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    rank_correlation: float
    source: str

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens"):
            values = getattr(self, name)
            ok = len(values) == len(fitted()["levels"]) and list(values) == sorted(values) and values[0] >= 1
            require(ok, name, f"{len(fitted()['levels'])} ascending lengths of at least 1", values)
        require(
            -1 < self.rank_correlation < 1, "rank_correlation", "above -1 and below 1", self.rank_correlation
        )

    @classmethod
    def named(cls, name: str) -> LengthTable:
        """A table fitted to a public trace.

        Parameters
        ----------
        name
            ``conversation``, ``code`` (Azure 2023), ``chat`` (ShareGPT), ``dialog`` (ShareGPT, the
            conversation so far as prompt), ``summarization`` (arXiv papers) or ``documents`` (Mooncake
            conversation: long prompts).

        Raises
        ------
        InputError
            If there is no such table; the message lists those there are.
        """
        tables = fitted()["lengths"]
        if name not in tables:
            raise InputError(f"lengths must be one of {', '.join(sorted(tables))}, got {name!r}.")
        row = tables[name]
        return cls(
            prompt_tokens=tuple(row["prompt_tokens"]),
            output_tokens=tuple(row["output_tokens"]),
            rank_correlation=row["rank_correlation"],
            source=row["source"],
        )

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Lengths of n requests: prompt and output tokens, shape (n,) each, at least 1.

        A Gaussian copula carries the rank correlation (its parameter is 2·sin(pi·rho/6), Kruskal 1958).
        """
        from scipy.special import ndtr

        require(n >= 0, "n", "an integer of at least 0", n)
        rho = 2 * np.sin(np.pi * self.rank_correlation / 6)
        first = rng.standard_normal(n)
        second = rho * first + np.sqrt(1 - rho * rho) * rng.standard_normal(n)
        prompt = np.rint(from_quantiles(ndtr(first), self.prompt_tokens)).astype(np.int64)
        output = np.rint(from_quantiles(ndtr(second), self.output_tokens)).astype(np.int64)
        return np.maximum(prompt, 1), np.maximum(output, 1)
