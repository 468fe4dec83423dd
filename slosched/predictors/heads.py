"""From an encoder's vectors to one score: a plane for an encoder that was trained to rank, a surface for one
that was not.

The surface is kernel ridge regression with a Gaussian kernel, fitted to each answer's place among all answers
(normal scores). With many prompts it rests on some of them (Nyström's method: Williams and Seeger 2001).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.predictors.answers import Answers

NOISE = 1.0
"""Variance of what a prompt does not tell, in units of what it tells at most. With .25 to 2 tau differs by up
to .005 within four sets; between sets, too (``docs/predictors.md``)."""

RULES_NOISE = 4.0
"""The same for rules of thumb: from 3 to 10 tau within four sets stays the same within .003, and from one to
another it is .155 to .157 instead of .139 without them, .212 to .222 instead of .186 into chat (one tuning
split)."""

MOST_CENTRES = 1024
"""Prompts of one's own that the surface rests on: 1,024 distances take about a tenth of a millisecond."""


class Head(Protocol):
    """Turns vectors into scores."""

    def score(self, vectors: NDArray[Any]) -> Floats:
        """Score of each vector, shape (n,), from vectors of shape (n, size); higher means longer."""
        ...

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `head_of` makes it from."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A weighted sum of a vector's numbers.

    Parameters
    ----------
    head
        Weights, shape (size,), finite.
    """

    head: Floats

    def __post_init__(self) -> None:
        ok = self.head.ndim == 1 and bool(np.isfinite(self.head).all())
        require(ok, "head", "finite weights, one for each number of a vector", self.head.shape)

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        return len(self.head)

    def score(self, vectors: NDArray[Any]) -> Floats:
        """Score of each vector, shape (n,)."""
        return np.asarray(vectors.astype(np.float64) @ self.head)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Weights by name."""
        return {"head": self.head}


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A weighted sum of likenesses to vectors of known prompts.

    Parameters
    ----------
    centres
        Vectors of those prompts, shape (m, size), finite.
    weights
        Of each likeness, shape (m,), finite.
    width
        Squared distance at which likeness has fallen to 1 / e, above 0.
    """

    centres: NDArray[np.float32]
    weights: Floats
    width: float

    def __post_init__(self) -> None:
        m = len(self.weights)
        ok = m > 0 and self.centres.ndim == 2 and len(self.centres) == m
        require(ok, "centres", f"of shape ({m}, size)", self.centres.shape)
        ok = bool(np.isfinite(self.centres).all() and np.isfinite(self.weights).all())
        require(ok, "head", "finite centres and weights", "others")
        require(bool(0 < self.width < np.inf), "width", "above 0", self.width)

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        return int(self.centres.shape[1])

    def score(self, vectors: NDArray[Any]) -> Floats:
        """Score of each vector, shape (n,)."""
        return np.asarray(_likeness(vectors, self.centres, self.width) @ self.weights)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Centres, weights and width by name."""
        return {"centres": self.centres, "weights": self.weights, "width": np.array([self.width])}


def head_of(arrays: Mapping[str, NDArray[Any]]) -> Head:
    """The head that `Head.arrays` came from.

    Raises
    ------
    KeyError
        If an array is missing.
    InputError
        If arrays do not fit each other.
    """
    if "centres" not in arrays:
        return Plane(np.asarray(arrays["head"], np.float64))
    width = np.asarray(arrays["width"], np.float64).ravel()
    require(width.shape == (1,), "width", "one number", width.shape)
    centres = np.asarray(arrays["centres"], np.float32)
    return Surface(centres, np.asarray(arrays["weights"], np.float64), float(width[0]))


def fit_surface(
    vectors: NDArray[np.float32],
    aims: Floats,
    general: tuple[NDArray[np.float32], Floats] | None = None,
    *,
    seed: int = 0,
) -> Surface:
    """Fit a surface to the prompts' aims, see `aims_of`.

    Parameters
    ----------
    vectors
        One a prompt, shape (n, size).
    aims
        What each should score, shape (n,).
    general
        Vectors and aims of `slosched.predictors.rules_of_thumb`: what to believe far from all prompts.
    seed
        Of the choice of centres where there are more prompts than `MOST_CENTRES`.

    Examples
    --------
    >>> places = np.linspace(0, 6, 60, dtype=np.float32)[:, None]
    >>> made = fit_surface(places, np.sin(places[:, 0]))
    >>> bool(np.corrcoef(made.score(places), np.sin(places[:, 0]))[0, 1] > 0.9)
    True
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:MOST_CENTRES])
    centres, known, aim = vectors[rows], vectors, aims - aims.mean()
    width = float(max(np.median(_squared(centres, centres)), 1e-9))
    noise = np.full(len(vectors), NOISE)
    if general is not None:
        centres, known = np.concatenate([centres, general[0]]), np.concatenate([known, general[0]])
        aim = np.concatenate([aim, general[1]])
        noise = np.concatenate([noise, np.full(len(general[1]), RULES_NOISE)])
    among = _likeness(centres, centres, width)
    if len(centres) == len(known):
        return Surface(centres, np.linalg.solve(among + np.diag(noise), aim), width)
    likeness = _likeness(known, centres, width)
    # A millionth on the diagonal: prompts that are alike make the system singular.
    system = likeness.T @ (likeness / noise[:, None]) + among + 1e-6 * len(known) * np.eye(len(centres))
    return Surface(centres, np.linalg.solve(system, likeness.T @ (aim / noise)), width)


def aims_of(answers: Answers) -> Floats:
    """Normal score of each prompt: its answers' places among all, as quantiles of the normal distribution.

    A cut-off answer counts as the mean of the places beyond the one where it was cut (Kaplan and Meier's
    estimate of them); several answers of a prompt as their mean.

    Returns
    -------
    ndarray
        Shape (prompts,).

    Examples
    --------
    >>> aims_of(Answers.single(["a", "b", "c"], [9, 20, 30])).round(2).tolist()
    [-0.97, 0.0, 0.97]
    """
    from scipy.special import ndtri

    tokens, cut = answers.output_tokens, answers.cut
    order = np.lexsort((cut, tokens))  # at a tie those that ended come before those cut off
    at_risk = np.arange(len(tokens), 0, -1)
    alive = np.cumprod(np.where(cut[order], 1.0, 1.0 - 1.0 / at_risk))
    before = np.concatenate([[1.0], alive[:-1]])
    # Equal lengths share one place, in the middle of their steps.
    length, first = np.unique(tokens[order], return_index=True)
    last = np.append(first[1:], len(tokens)) - 1
    place = np.searchsorted(length, tokens)
    ended = _last_end(first, last, cut[order], place)
    middle = (before[first[place]] + alive[ended]) / 2.0
    left = np.maximum(alive[ended], 0.5 / len(tokens))
    tail = np.exp(-0.5 * ndtri(left) ** 2) / np.sqrt(2 * np.pi) / left  # mean of the normal beyond a point
    scores = np.where(cut, tail, -ndtri(np.clip(middle, 0.25 / len(tokens), 1 - 0.25 / len(tokens))))
    count = np.bincount(answers.prompt, minlength=len(answers.prompts))
    return np.asarray(
        np.bincount(answers.prompt, scores, minlength=len(answers.prompts)) / np.maximum(count, 1)
    )


def _last_end(first: Ints, last: Ints, cut: NDArray[np.bool_], place: Ints) -> Ints:
    """Of each answer, where in ascending order the last of its length stands that ended, or that was cut."""
    whole = np.add.reduceat(~cut, first)
    return np.asarray(np.where(whole > 0, first + whole - 1, last)[place])


def _squared(a: NDArray[np.float32], b: NDArray[np.float32]) -> Floats:
    """Squared distances, shape (len(a), len(b))."""
    sides = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :]
    return np.asarray(np.maximum(sides - 2.0 * (a @ b.T), 0.0), np.float64)


def _likeness(a: NDArray[Any], b: NDArray[np.float32], width: float) -> Floats:
    return np.asarray(np.exp(-_squared(a.astype(np.float32, copy=False), b) / width))
