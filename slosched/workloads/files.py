"""Fields of workload files, checked, and writing them whole; whatever is wrong becomes one clear error."""

from __future__ import annotations

import gzip
import io
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from slosched.core.errors import DataError, MissingExtraError
from slosched.core.files import MOST_SHOWN

MOST_TOKENS = 10_000_000
"""Longest believable prompt or answer; more is taken for a damaged file."""
MOST_SECONDS = 1e10
"""Latest believable time: three centuries."""
MOST_DIGITS = 18
"""Longer digits are no length; this also keeps `int` fast."""
TOKEN_DOMAIN = f"an integer from 1 to {MOST_TOKENS}"


def whole(path: Path, row: int, field: str, value: object, low: int, high: int, domain: str) -> int:
    """An integer field from `low` to `high`, from text or JSON; 12.0 counts as 12."""
    if isinstance(value, str) and len(value) < MOST_DIGITS and value.isascii() and value.isdigit():
        exact = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        exact = value
    else:
        real = real_number(value)
        if not (math.isfinite(real) and real == int(real)):
            raise DataError(path, row, field, domain, shown(value))
        exact = int(real)
    if not low <= exact <= high:
        raise DataError(path, row, field, domain, shown(value))
    return exact


def tokens(path: Path, row: int, field: str, value: object) -> int:
    """A length field: an integer from 1 to `MOST_TOKENS`."""
    return whole(path, row, field, value, 1, MOST_TOKENS, TOKEN_DOMAIN)


def number(path: Path, row: int, field: str, value: object, low: float, high: float, domain: str) -> float:
    """A finite number field from `low` to `high`, from text or JSON."""
    answer = real_number(value)
    if not low <= answer <= high:
        raise DataError(path, row, field, domain, shown(value))
    return answer


def moment(path: Path, row: int, field: str, value: object, before: float, unit: str = "seconds") -> float:
    """A time field that must not fall below `before`, the one of the row above (0 at first)."""
    answer = real_number(value)
    if not before <= answer <= MOST_SECONDS:
        domain = f"{unit} of at least {before:g}" + (", the one before" if before else "")
        raise DataError(path, row, field, domain, shown(value))
    return answer


def shown(value: object) -> object:
    """The value for an error message: a long one is cut."""
    text = str(value)
    return value if len(text) <= MOST_SHOWN else text[:MOST_SHOWN]


def real_number(value: object) -> float:
    """A number from text or JSON; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def is_number(text: str) -> bool:
    """Whether a text is a number as Python reads it, be it NaN or infinite."""
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """Write a text file, packed as its ending ``.gz`` or ``.zst`` says: it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as raw, ExitStack() as stack:
            sink: BinaryIO = raw
            if path.suffix == ".gz":
                # No time stamp in the gzip header: same workload, same bytes.
                packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
                sink = cast("BinaryIO", stack.enter_context(packed))
            elif path.suffix == ".zst":
                sink = stack.enter_context(_zstd(raw))
            yield stack.enter_context(io.TextIOWrapper(sink, encoding="utf-8", newline=""))
        partial.replace(path)
    except OSError as error:
        raise DataError(
            path, None, "file", "a file that can be written", error.strerror or str(error)
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _zstd(raw: BinaryIO) -> BinaryIO:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("zstandard", "files") from None
    return cast("BinaryIO", zstandard.ZstdCompressor().stream_writer(raw, closefd=False))
