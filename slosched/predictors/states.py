"""Training data of a probe: hidden states of the serving model, and how much of each answer was to come.

A file is safetensors, whose metadata name model and layer; a folder holds several. Written by the vLLM plugin
(`slosched.integrations.vllm.probe`) while a model serves, read by `slosched.predictors.probe_training`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.errors import InputError, MissingExtraError, require

FORMAT = "slosched-states-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Hidden states of answered requests.

    Parameters
    ----------
    model
        Name of the serving model.
    layer
        Decoder layers a state has passed.
    names
        Request names, R of them.
    prompt_states
        Mean over each prompt's states, then the state of its last token, shape (R, 2 * hidden size).
    output_tokens
        Answer lengths in tokens, the end token included, shape (R,), at least 1.
    cut
        Whether the answer was cut off, by a limit or the client: its length is then only a lower bound.
    states
        State of the newest token at some points of the answers, shape (n, hidden size).
    request
        Request of each state, as an index into `names`, shape (n,).
    generated_tokens
        Tokens generated up to and with that newest token, shape (n,), at least 1.
    """

    model: str
    layer: int
    names: list[str] = field(repr=False)
    prompt_states: NDArray[np.float32]
    output_tokens: NDArray[np.int64]
    cut: NDArray[np.bool_]
    states: NDArray[np.float32]
    request: NDArray[np.int64]
    generated_tokens: NDArray[np.int64]

    def __post_init__(self) -> None:
        require(self.layer >= 1, "layer", "at least 1", self.layer)
        ok = self.states.ndim == 2 and self.states.shape[1] > 0
        require(ok, "states", "rows of one number or more", self.states.shape)
        requests, pairs = len(self.names), len(self.states)
        shapes = {
            "prompt_states": (requests, 2 * self.hidden_size), "output_tokens": (requests,),
            "cut": (requests,), "states": (pairs, self.hidden_size), "request": (pairs,),
            "generated_tokens": (pairs,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise InputError(f"{name} must be of shape {shape}, got {getattr(self, name).shape}.")
        if requests and self.output_tokens.min() < 1:
            raise InputError(f"output_tokens must be at least 1, got {self.output_tokens.min()}.")
        if pairs and not (self.request.min() >= 0 and self.request.max() < requests):
            odd = self.request[(self.request < 0) | (self.request >= requests)][0]
            raise InputError(f"request must be from 0 to {requests - 1}, got {odd}.")
        if pairs:
            wrong = (self.generated_tokens < 1) | (self.remaining_tokens < 0)
            odd = self.generated_tokens[wrong][0] if wrong.any() else 1
            require(not wrong.any(), "generated_tokens", "from 1 to the answer's output_tokens", int(odd))

    @property
    def hidden_size(self) -> int:
        """Numbers in a state."""
        return int(self.states.shape[1])

    @property
    def remaining_tokens(self) -> NDArray[np.int64]:
        """Tokens still to come at each state, shape (n,); of a cut answer, a lower bound."""
        return self.output_tokens[self.request] - self.generated_tokens

    def select(self, requests: NDArray[np.int64]) -> States:
        """Only some requests, in the given order, with their states."""
        place = np.full(len(self.names), -1)
        place[requests] = np.arange(len(requests))
        kept = np.flatnonzero(place[self.request] >= 0)
        return States(
            model=self.model, layer=self.layer, names=[self.names[i] for i in requests],
            prompt_states=self.prompt_states[requests], output_tokens=self.output_tokens[requests],
            cut=self.cut[requests], states=self.states[kept], request=place[self.request[kept]],
            generated_tokens=self.generated_tokens[kept],
        )  # fmt: skip

    def finite(self) -> tuple[States, int]:
        """Without the states that hold NaN or infinity, and how many those were.

        A request whose prompt state is not finite goes with all its states.
        """
        good = finite_rows(self.prompt_states)
        rows = finite_rows(self.states) & good[self.request]
        dropped = int((~rows).sum() + (~good).sum())
        if dropped == 0:
            return self, 0
        kept = States(
            model=self.model, layer=self.layer, names=self.names, prompt_states=self.prompt_states,
            output_tokens=self.output_tokens, cut=self.cut, states=self.states[rows],
            request=self.request[rows], generated_tokens=self.generated_tokens[rows],
        )  # fmt: skip
        return kept.select(np.flatnonzero(good)), dropped

    def save(self, path: str | Path) -> None:
        """Write one safetensors file in one move."""
        arrays: dict[str, NDArray[Any]] = {
            "prompt_states": self.prompt_states, "output_tokens": self.output_tokens,
            "cut": self.cut.astype(np.uint8), "states": self.states, "request": self.request,
            "generated_tokens": self.generated_tokens,
        }  # fmt: skip
        about = {
            "format": FORMAT,
            "model": self.model,
            "layer": str(self.layer),
            "names": json.dumps(self.names),
        }
        write_tensors(Path(path), arrays, about)


def finite_rows(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows hold neither NaN nor infinity, shape (n,)."""
    return np.asarray(np.isfinite(values).all(axis=1))


def load_states(path: str | Path) -> States:
    """Read a file, or every ``*.safetensors`` of a folder as one.

    Raises
    ------
    InputError
        If there is none, one is not what `States.save` wrote, or they differ in model, layer or hidden size.
    """
    files = _files(Path(path))
    parts = [_read(file) for file in files]
    return join(parts, [str(file) for file in files])


def states_names(path: str | Path) -> list[str]:
    """Names of the requests of a file or folder, in the order of `load_states`; no state is read."""
    return [name for file in _files(Path(path)) for name in _names(file, read_about(file))]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"data must be a file or folder of hidden states, got {str(path)!r}.")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"data must hold *.safetensors files, got {str(path)!r}.")
    return files


def join(parts: Sequence[States], labels: Sequence[str]) -> States:
    """Several sets of states of one model and layer as one; `labels` name them in an error."""
    first = parts[0]
    for part, label in zip(parts, labels, strict=True):
        for name in ("model", "layer", "hidden_size"):
            wanted, got = getattr(first, name), getattr(part, name)
            if got != wanted:
                raise InputError(f"{label}: {name} must be {wanted!r} as in {labels[0]}, got {got!r}.")
    offsets = np.cumsum([0, *(len(part.names) for part in parts[:-1])])
    return States(
        model=first.model,
        layer=first.layer,
        names=[name for part in parts for name in part.names],
        prompt_states=np.concatenate([part.prompt_states for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
        cut=np.concatenate([part.cut for part in parts]),
        states=np.concatenate([part.states for part in parts]),
        request=np.concatenate([part.request + o for part, o in zip(parts, offsets, strict=True)]),
        generated_tokens=np.concatenate([part.generated_tokens for part in parts]),
    )


def _read(path: Path) -> States:
    arrays, about = read_tensors(path)
    names = _names(path, about)
    for name in ("output_tokens", "request", "generated_tokens"):
        kind = arrays[name].dtype if name in arrays else np.dtype(int)
        require(kind.kind in "iu", f"{path}: {name}", "integers", str(kind))
    try:
        return States(
            model=about["model"],
            layer=int(about["layer"]),
            names=names,
            prompt_states=arrays["prompt_states"].astype(np.float32),
            output_tokens=arrays["output_tokens"].astype(np.int64),
            cut=arrays["cut"].astype(np.bool_),
            states=arrays["states"].astype(np.float32),
            request=arrays["request"].astype(np.int64),
            generated_tokens=arrays["generated_tokens"].astype(np.int64),
        )
    except KeyError as error:
        raise InputError(f"{path} must be a file of hidden states: {error} is missing.") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except ValueError as error:
        raise InputError(f"{path} must be a file of hidden states: {error}") from error


def _names(path: Path, about: dict[str, str]) -> list[str]:
    """The requests of a file, by its metadata."""
    if about.get("format") != FORMAT:
        raise InputError(f"{path}: format must be {FORMAT!r}, got {about.get('format')!r}.")
    try:
        return [str(name) for name in json.loads(about["names"])]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} must be a file of hidden states: {error}") from error


def write_tensors(path: Path, arrays: dict[str, NDArray[Any]], about: dict[str, str]) -> None:
    """Write a safetensors file in one move.

    Raises
    ------
    MissingExtraError
        If safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtraError("safetensors", "predict") from error
    partial = path.with_name(path.name + ".partial")
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, partial, metadata=about)
    partial.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Arrays and metadata of a safetensors file; nothing in it is executed.

    Raises
    ------
    MissingExtraError
        If safetensors is not installed.
    InputError
        If the file is not safetensors.
    """
    with _opened(path) as file:
        return {name: _tensor(path, file, name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _tensor(path: Path, file: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(file.get_tensor(name))
    except (TypeError, ValueError, AttributeError):  # numpy has no 16-bit floats of the brain kind, for one
        kind = file.get_slice(name).get_dtype()
        raise InputError(f"{path}: {name} must be of a type that numpy has, got {kind}.") from None


def read_about(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file alone; errors as `read_tensors`."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "predict") from error
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} must be a safetensors file: {error}") from error
