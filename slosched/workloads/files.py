"""Reading and writing workload files: gzip, encodings, fields; whatever is wrong becomes one clear error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from slosched.core.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
MOST_TOKENS = 10_000_000
"""Longest believable prompt or answer; more is taken for a damaged file."""
MOST_SECONDS = 1e10
"""Latest believable time: three centuries."""
MOST_DIGITS = 18
"""Longer digits are no length; this also keeps `int` fast."""
MOST_SHOWN = 80
"""Characters of a wrong value that an error message shows."""
TOKEN_DOMAIN = f"an integer from 1 to {MOST_TOKENS}"


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file, plain or gzip by its content, and turn every failure to read into a `DataError`."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if packed
            else path.open("rt", encoding="utf-8-sig", newline="")
        ) as file:
            yield file
    except UnicodeDecodeError as error:
        damaged = error.object[error.start : error.start + 1]
        raise DataError(path, None, "text", "UTF-8", damaged) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(path, None, "file", "a whole gzip file", "a truncated or damaged one") from error
    except OSError as error:
        raise DataError(path, None, "file", "a readable file", error.strerror or str(error)) from error


def first_line(path: Path) -> str:
    """First line that is not blank, without white space around it; an empty file is an error."""
    with open_text(path) as file:
        for line in file:
            if line.strip():
                return line.strip()
    raise DataError(path, None, "file", "not empty", "no rows")


def csv_header(line: str) -> list[str]:
    """Column names in the first line of a CSV file; [] if it cannot be one."""
    try:
        return [name.strip() for name in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def csv_rows(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file as (row number from 1, {column: text}); other columns are ignored.

    Raises
    ------
    DataError
        If a required column is missing, a column appears twice, a row has another number of fields, or there
        is no row at all.
    """
    with open_text(path) as file:
        reader = csv.reader(file)
        number = 0
        try:
            header = [name.strip() for name in next(reader, [])]
            if not any(header):
                raise DataError(path, None, "file", "not empty", "no header")
            places = _places(path, header, required, optional)
            for fields in reader:
                if not fields:
                    continue
                number += 1
                if len(fields) != len(header):
                    raise DataError(path, number, "row", f"{len(header)} fields", f"{len(fields)} fields")
                yield number, {name: fields[at] for name, at in places}
        except csv.Error as error:
            raise DataError(path, number + 1, "row", "CSV", str(error)) from error
    if number == 0:
        raise DataError(path, None, "file", "not empty", "no rows")


def _places(
    path: Path, header: list[str], required: Sequence[str], optional: Sequence[str]
) -> list[tuple[str, int]]:
    for name in (*required, *optional):
        if header.count(name) > 1:
            raise DataError(path, None, "header", "distinct columns", f"{name} twice")
    for name in required:
        if name not in header:
            raise DataError(path, None, "header", f"columns {', '.join(required)}", ", ".join(header)[:200])
    return [(name, header.index(name)) for name in (*required, *optional) if name in header]


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON-lines file as (line number from 1, object); blank lines are skipped."""
    found = False
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            found = True
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(path, number, "line", "one JSON object", line.strip()[:80]) from error
            if not isinstance(row, dict):
                raise DataError(path, number, "line", "one JSON object", line.strip()[:80])
            yield number, row
    if not found:
        raise DataError(path, None, "file", "not empty", "no rows")


def whole(path: Path, row: int, field: str, value: object, low: int, high: int, domain: str) -> int:
    """An integer field from `low` to `high`, from text or JSON; 12.0 counts as 12."""
    if isinstance(value, str) and len(value) < MOST_DIGITS and value.isascii() and value.isdigit():
        exact = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        exact = value
    else:
        real = _float(value)
        if not (math.isfinite(real) and real == int(real)):
            raise DataError(path, row, field, domain, _shown(value))
        exact = int(real)
    if not low <= exact <= high:
        raise DataError(path, row, field, domain, _shown(value))
    return exact


def tokens(path: Path, row: int, field: str, value: object) -> int:
    """A length field: an integer from 1 to `MOST_TOKENS`."""
    return whole(path, row, field, value, 1, MOST_TOKENS, TOKEN_DOMAIN)


def number(path: Path, row: int, field: str, value: object, low: float, high: float, domain: str) -> float:
    """A finite number field from `low` to `high`, from text or JSON."""
    answer = _float(value)
    if not low <= answer <= high:
        raise DataError(path, row, field, domain, _shown(value))
    return answer


def moment(path: Path, row: int, field: str, value: object, before: float, unit: str = "seconds") -> float:
    """A time field that must not fall below `before`, the one of the row above (0 at first)."""
    answer = _float(value)
    if not before <= answer <= MOST_SECONDS:
        domain = f"{unit} of at least {before:g}" + (", the one before" if before else "")
        raise DataError(path, row, field, domain, _shown(value))
    return answer


def _shown(value: object) -> object:
    """The value for an error message: a long one is cut."""
    text = str(value)
    return value if len(text) <= MOST_SHOWN else text[:MOST_SHOWN]


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """Write a text file, gzip if its name ends in ``.gz``, so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as raw, ExitStack() as stack:
            sink: BinaryIO = raw
            if path.suffix == ".gz":
                # No time stamp in the gzip header: same workload, same bytes.
                packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
                sink = cast("BinaryIO", stack.enter_context(packed))
            yield stack.enter_context(io.TextIOWrapper(sink, encoding="utf-8", newline=""))
        partial.replace(path)
    except OSError as error:
        raise DataError(
            path, None, "file", "a file that can be written", error.strerror or str(error)
        ) from error
    finally:
        partial.unlink(missing_ok=True)
