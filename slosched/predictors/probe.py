"""A probe: tells from a serving model's own hidden states how much of an answer is still to come.

A multilayer perceptron over a middle layer's state, after TRAIL (Shahout et al. 2024, arXiv 2410.01035,
section 3.1): at the prompt's end its input is the mean over the prompt's states, then the newest token's
state, and its answer a probability for each bin of remaining tokens. It runs in plain numpy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slosched.core.arrays import Floats
from slosched.core.errors import InputError
from slosched.core.forecast import FORECAST_ATOMS, LengthForecast
from slosched.predictors.refinement import REFINEMENTS, bayes
from slosched.predictors.states import finite_rows, read_tensors, write_tensors

Vectors = NDArray[np.float32]

FORMAT = "slosched-probe-1"
LEVELS = (np.arange(FORECAST_ATOMS) + 0.5) / FORECAST_ATOMS
PROMPT_INPUTS = ("mean", "mean+last")
TINY = 1e-6
"""Least probability whose logarithm is taken."""


class About(BaseModel):
    """What a probe was trained for, and how it is read; the JSON file beside its weights.

    Parameters
    ----------
    model
        Name of the serving model.
    hidden_size
        Numbers in a state.
    layer
        Decoder layers a state has passed, 1 to all of them.
    edges
        Edges of the bins in remaining tokens, ascending from 0, one more than bins; what lies beyond the
        last counts in the last bin.
    values
        Remaining tokens that stand for each bin: their mean in training.
    prompt_input
        ``mean`` over the prompt's states, as TRAIL, or ``mean+last``: beside it the last prompt token's.
    refinement
        ``none``, ``bayes`` or ``prior``; see `slosched.predictors.refinement`.
    every_tokens
        A running request gets a new forecast each so many tokens, or steps of the engine.
    report
        Measures of the training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = FORMAT
    model: str
    hidden_size: int = Field(ge=1)
    layer: int = Field(ge=1)
    edges: tuple[float, ...] = Field(min_length=2)
    values: tuple[float, ...]
    prompt_input: str = "mean+last"
    refinement: str = "prior"
    every_tokens: int = Field(default=8, ge=1)
    report: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> About:
        if self.format != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}, got {self.format!r}")
        if self.prompt_input not in PROMPT_INPUTS:
            raise ValueError(
                f"prompt_input must be one of {', '.join(PROMPT_INPUTS)}, got {self.prompt_input!r}"
            )
        if self.refinement not in REFINEMENTS:
            raise ValueError(f"refinement must be one of {', '.join(REFINEMENTS)}, got {self.refinement!r}")
        if self.edges[0] != 0 or not all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"edges must ascend from 0, got {self.edges}")
        if len(self.values) != len(self.edges) - 1:
            raise ValueError(f"values must be one for each of {len(self.edges) - 1} bins, got {self.values}")
        return self


@dataclass(frozen=True, slots=True)
class Mlp:
    """One hidden layer with ReLU: weights of shape (inputs, width) and (width, outputs)."""

    w1: Vectors
    b1: Vectors
    w2: Vectors
    b2: Vectors

    def probabilities(self, inputs: Vectors) -> Floats:
        """Softmax of the outputs, shape (n, outputs)."""
        return self.of_sums(inputs @ self.w1)

    def of_sums(self, sums: Vectors) -> Floats:
        """The same from the first layer's sums ``inputs @ w1``, shape (n, width)."""
        hidden = np.maximum(sums + self.b1, np.float32(0.0))
        logits = (hidden @ self.w2 + self.b2).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return np.asarray(logits, dtype=np.float64)


@dataclass(slots=True)
class Belief:
    """What a probe holds about one request: beliefs at the prompt's end and now, and when that was."""

    prior: Floats
    now: Floats
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """A trained probe.

    Parameters
    ----------
    about
        What it is for.
    prompt, decode
        Networks for the mean prompt state and for the newest token's state. With refinement ``prior`` the
        latter also takes the logarithms of the prior and of 1 + tokens generated.
    """

    about: About
    prompt: Mlp
    decode: Mlp
    _edges: Floats = field(init=False, repr=False)
    _widths: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        bins, hidden = len(self.about.values), self.about.hidden_size
        prompt = hidden * len(self.about.prompt_input.split("+"))
        decode = hidden + (bins + 1 if self.about.refinement == "prior" else 0)
        for name, mlp, inputs in (("prompt", self.prompt, prompt), ("decode", self.decode, decode)):
            wanted = (inputs, bins)
            got = (mlp.w1.shape[0], mlp.w2.shape[1])
            if got != wanted or mlp.w1.shape[1:] != mlp.b1.shape or mlp.w2.shape[:1] != mlp.b1.shape:
                raise InputError(f"{name}: inputs and bins of the weights must be {wanted}, got {got}.")
        object.__setattr__(self, "_edges", np.array(self.about.edges))
        object.__setattr__(self, "_widths", np.diff(self._edges))

    # belief -----------------------------------------------------------------------------------------------

    @property
    def newest_weights(self) -> Vectors:
        """First layer of the decode network over the newest token's state, shape (hidden size, width)."""
        return self.decode.w1[: self.about.hidden_size]

    def begin(self, prompt_states: Vectors) -> list[Belief | None]:
        """Beliefs at the prompt's end; None where a state is not finite.

        Parameters
        ----------
        prompt_states
            Mean over each prompt's states, then its last token's, shape (n, 2 * hidden size).
        """
        return self.begin_from(_sums(prompt_states[:, : len(self.prompt.w1)], self.prompt.w1))

    def begin_from(self, sums: Vectors) -> list[Belief | None]:
        """The same from the sums of the prompt network's first layer, ``prompt_states @ prompt.w1``.

        They may have been computed where the states are. A state that is not finite makes its sums so.
        """
        good = finite_rows(sums)
        beliefs = self.prompt.of_sums(_zeroed(sums, good))
        return [Belief(prior=p, now=p) if ok else None for p, ok in zip(beliefs, good, strict=True)]

    def update(self, held: Sequence[Belief], states: Vectors, generated_tokens: Sequence[int]) -> list[bool]:
        """Bring beliefs up to date with the newest tokens' states.

        Parameters
        ----------
        held
            Beliefs, changed in place.
        states
            Shape (n, hidden size).
        generated_tokens
            Tokens generated up to and with the newest, for each.

        Returns
        -------
        list of bool
            False where the state was not finite and the belief stays as it was.
        """
        return self.update_from(held, _sums(states, self.newest_weights), generated_tokens)

    def update_from(
        self, held: Sequence[Belief], sums: Vectors, generated_tokens: Sequence[int]
    ) -> list[bool]:
        """The same from ``states @ newest_weights``, which may have been computed where the states are."""
        good = finite_rows(sums)
        sums = _zeroed(sums, good)
        if self.about.refinement == "prior":
            known = prior_inputs(np.array([b.prior for b in held]), np.asarray(generated_tokens))
            sums = sums + known @ self.decode.w1[self.about.hidden_size :]
        newest = self.decode.of_sums(sums)
        for belief, p, tokens, ok in zip(held, newest, generated_tokens, good, strict=True):
            if not ok:
                continue
            if self.about.refinement == "bayes":
                since = max(0, tokens - belief.generated_tokens)
                p = bayes(belief.now, p, self.about.edges, since)
            belief.now, belief.generated_tokens = p, tokens
        return list(map(bool, good))

    # reading ----------------------------------------------------------------------------------------------

    def remaining_tokens(self, belief: Belief) -> float:
        """Expected tokens still to come when the belief was formed."""
        return float(belief.now @ np.array(self.about.values))

    def atoms(self, held: Sequence[Belief]) -> Floats:
        """Whole output lengths as equally likely values, shape (n, FORECAST_ATOMS): generated plus quantiles
        of what remains, at least one token. Within a bin all lengths are equally likely.
        """
        now = np.array([b.now for b in held])
        below = now.cumsum(axis=1)
        row, into = np.arange(len(held))[:, None], (below[:, :-1, None] < LEVELS).sum(axis=1)
        above = np.maximum(below[row, into] - LEVELS, 0.0)
        left = self._edges[into + 1] - above / now[row, into] * self._widths[into]
        generated = np.array([b.generated_tokens for b in held])[:, None]
        return np.asarray(generated + np.maximum(left, 1.0), dtype=np.float64)

    def forecast(self, belief: Belief) -> LengthForecast:
        """One of them as a `LengthForecast`."""
        return LengthForecast(tuple(float(a) for a in self.atoms([belief])[0]))

    # files ------------------------------------------------------------------------------------------------

    def check(self, *, model: str, hidden_size: int, layers: int) -> None:
        """Refuse a model this probe was not trained for.

        Raises
        ------
        InputError
            If the hidden size, the number of layers, or the model's name does not fit; folders before a
            name do not matter.
        """
        about = self.about
        if about.hidden_size != hidden_size:
            raise InputError(
                f"hidden_size must be {hidden_size}, that of {model}, got a probe for {about.hidden_size} "
                f"({about.model})."
            )
        if about.layer > layers:
            raise InputError(
                f"layer must be from 1 to {layers}, as {model} has, got a probe for {about.layer} "
                f"({about.model})."
            )
        if _short(about.model) != _short(model):
            raise InputError(f"model must be {model!r}, got a probe for {about.model!r}.")

    def save(self, folder: str | Path) -> Path:
        """Write ``probe.safetensors`` and ``probe.json``; returns the folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{part}.{name}": getattr(mlp, name)
            for part, mlp in (("prompt", self.prompt), ("decode", self.decode))
            for name in ("w1", "b1", "w2", "b2")
        }
        write_tensors(target / "probe.safetensors", arrays, {"format": FORMAT})
        (target / "probe.json").write_text(json.dumps(self.about.model_dump(), indent=1))
        return target


def load_probe(folder: str | Path) -> Probe:
    """Read what `Probe.save` wrote; nothing in it is executed.

    Raises
    ------
    InputError
        If a file is missing, is not what it should be, or weights and description do not fit.
    """
    source = Path(folder)
    path = source / "probe.json"
    if not path.is_file():
        raise InputError(f"probe must be a folder with probe.json, got {str(source)!r}.")
    try:
        about = About.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        words = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        where = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
        raise InputError(f"{path}: {'.'.join(map(str, where)) or 'content'}: {words}.") from error
    arrays, _ = read_tensors(source / "probe.safetensors")
    try:
        parts = [
            Mlp(*(arrays[f"{part}.{name}"].astype(np.float32) for name in ("w1", "b1", "w2", "b2")))
            for part in ("prompt", "decode")
        ]
        return Probe(about, *parts)
    except KeyError as error:
        raise InputError(f"{source / 'probe.safetensors'}: tensor {error} is missing.") from error
    except InputError as error:
        raise InputError(f"{source / 'probe.safetensors'}: {error}") from error


def decode_inputs(states: Vectors, prior: Floats, generated_tokens: NDArray[np.int64]) -> Vectors:
    """Inputs of the decode network with refinement ``prior``, shape (n, hidden size + bins + 1)."""
    return np.concatenate([states, prior_inputs(prior, generated_tokens)], axis=1)


def prior_inputs(prior: Floats, generated_tokens: NDArray[np.int64]) -> Vectors:
    """What refinement ``prior`` adds to the inputs of the decode network, shape (n, bins + 1)."""
    return np.concatenate(
        [np.log(prior + TINY), np.log1p(generated_tokens)[:, None]], axis=1, dtype=np.float32
    )


def _sums(states: Vectors, weights: Vectors) -> Vectors:
    with np.errstate(invalid="ignore", over="ignore"):  # states need not be finite
        return np.asarray(states @ weights)


def _zeroed(sums: Vectors, good: NDArray[np.bool_]) -> Vectors:
    """The sums with zeros in the rows that are not good."""
    return sums if good.all() else np.where(good[:, None], sums, np.float32(0))


def bin_of(remaining_tokens: NDArray[np.generic], edges: Sequence[float]) -> NDArray[np.int64]:
    """Bin of each count of remaining tokens: bin i holds what is above edge i, up to edge i + 1.

    Examples
    --------
    >>> bin_of(np.array([1, 10, 11, 99]), (0.0, 10.0, 20.0)).tolist()
    [0, 0, 1, 1]
    """
    found = np.searchsorted(np.asarray(edges), remaining_tokens, side="left") - 1
    return np.clip(found, 0, len(edges) - 2).astype(np.int64)


def _short(model: str) -> str:
    return Path(model.rstrip("/")).name or model
