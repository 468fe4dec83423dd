"""What every predictor of output lengths can do, and how one is read from disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from slosched.core.arrays import Floats
from slosched.core.errors import InputError, require

PARTS = (".json", ".safetensors", ".onnx")
"""Endings of the files that a predictor consists of."""

ABOUT = "predictor.json"
"""File of a predictor's folder that says what it is."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is known of a request before its first token.

    Parameters
    ----------
    text
        The prompt; empty where only its length is known.
    tokens
        Its length in tokens, at least 1.
    slo_class
        Name of its class.
    """

    text: str
    tokens: int = 1
    slo_class: str = "default"

    def __post_init__(self) -> None:
        require(isinstance(self.text, str), "prompt", "a text", type(self.text).__name__)


class Predictor(Protocol):
    """Forecasts output lengths from prompts."""

    def forecast(self, prompts: Sequence[Prompt]) -> Floats:
        """Whole output lengths in tokens as equally likely values.

        Returns
        -------
        ndarray
            Shape (n, FORECAST_ATOMS), finite, ascending within a row, at least 1.
        """
        ...


def about_of(folder: str | Path) -> dict[str, Any]:
    """Content of a predictor's description, with its ``kind``.

    Raises
    ------
    InputError
        If the file is missing or is not JSON with a kind.
    """
    path = Path(folder) / ABOUT
    if not path.is_file():
        raise InputError(f"predictor must be a folder with {ABOUT}, got {str(folder)!r}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} must be JSON: {error}.") from None
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise InputError(f"{path} must hold a kind, got {str(content)[:80]!r}.")
    return content


def digest_of(folder: Path) -> str:
    """What a predictor's folder holds, as 16 hex digits."""
    found = blake2b(digest_size=8)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in PARTS):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()
