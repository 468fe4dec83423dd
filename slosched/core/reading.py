"""Reading files in one way everywhere: text however packed, and rows, whatever holds them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import IO, Any, TextIO, cast

from slosched.core.errors import DataError, MissingExtraError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MOST_SHOWN = 80
"""Characters of a wrong value that an error message shows."""
PARQUET_MAGIC = b"PAR1"
SEPARATORS = ",;\t"
LONGEST_FIELD = 1 << 28
"""Characters of a field of CSV, such as a prompt; the library's own limit is 131,072."""
_LIMIT_SET = Lock()
DOCUMENT_LISTS = ("requests", "data", "records")
"""Names under which a JSON document may hold its list of records."""
SCANNED = 1000
"""Records of JSON lines in which columns are looked for: an optional key may be absent from the first."""

Row = tuple[int, dict[str, Any]]


@contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    r"""Open UTF-8 text, plain, gzip or Zstandard by its content, with or without a byte-order mark.

    Lines end at ``\n`` only: a text may hold U+2028, U+0085 or a lone carriage return. Every failure to read
    becomes a `DataError`, whenever it happens inside the block.

    Raises
    ------
    DataError
        If the file cannot be opened, is cut short or damaged, or is not UTF-8.
    MissingExtraError
        If the file is packed by Zstandard and no package here can unpack it.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw, _unpacked(raw) as content:
            yield io.TextIOWrapper(content, encoding="utf-8-sig", newline="\n")
    except UnicodeDecodeError as error:
        damaged = error.object[error.start : error.start + 1]
        raise DataError(path, None, "text", "UTF-8", damaged) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(path, None, "file", "a whole gzip file", "a truncated or damaged one") from error
    except OSError as error:
        raise DataError(path, None, "file", "a readable file", error.strerror or str(error)) from error


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without their line end, as (number from 1, line)."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def read_text(path: str | Path) -> str:
    """The whole text of a file; see `open_text`."""
    with open_text(path) as file:
        return file.read()


def json_object(path: str | Path, number: int, line: str) -> dict[str, Any]:
    """The JSON object in a line.

    Raises
    ------
    DataError
        If the line holds anything else.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DataError(path, number, "line", "one JSON object", line.strip()[:MOST_SHOWN])
    return content


@contextmanager
def _unpacked(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    """The content of a file that may be packed, as its first bytes say."""
    magic = raw.read(4)
    raw.seek(0)
    if magic[:2] == GZIP_MAGIC:
        with gzip.GzipFile(fileobj=raw, mode="rb") as content:
            yield cast("IO[bytes]", content)
    elif magic == ZSTD_MAGIC:
        yield cast("IO[bytes]", io.BufferedReader(_Zstd(raw), 1 << 17))
    else:
        yield raw


class _Zstd(io.RawIOBase):
    """Frames of Zstandard, one after the other; a frame cut short is an error, not a shorter text."""

    def __init__(self, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingExtraError("zstandard", "files") from None
        self.raw, self.zstandard = raw, zstandard
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.fresh, self.ready = True, b""

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with unpacked bytes; returns how many, 0 at the end."""
        while not self.ready:
            packed = self.frame.unused_data if self.frame.eof else b""
            packed = packed or self.raw.read(1 << 13)
            if not packed:
                if self.frame.eof or self.fresh:
                    return 0
                raise self._damaged("a truncated one")
            if self.frame.eof:
                self.frame = self.zstandard.ZstdDecompressor().decompressobj()
            self.fresh = False
            try:
                self.ready = self.frame.decompress(packed)
            except self.zstandard.ZstdError:
                raise self._damaged("a damaged one") from None
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def _damaged(self, got: str) -> DataError:
        return DataError(str(getattr(self.raw, "name", "")), None, "file", "a whole Zstandard file", got)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A file of rows.

    Parameters
    ----------
    path
        The file.
    kind
        ``CSV``, ``JSON lines``, ``JSON`` or ``Parquet``.
    names
        Columns, as the header or the first records have them.
    records
        Reads the file anew and yields (row number from 1, {column: value}).
    seen
        Filled while rows are read: every column that occurred, in order.
    """

    path: Path
    kind: str
    names: tuple[str, ...]
    records: Callable[[], Iterator[Row]]
    seen: dict[str, None] = field(default_factory=dict)

    def rows(
        self, required: Sequence[str] = (), known: Sequence[str] = (), *, everywhere: bool = True
    ) -> Iterator[Row]:
        """All rows in the file's order; `required` and `known` columns must not stand there twice.

        Records of JSON need not have the same keys: with `everywhere` each must have the required ones.

        Raises
        ------
        DataError
            If a required column is missing, a column that is read appears twice, a row has another number of
            fields than the header, or there is no row at all.
        """
        for name in (*required, *known):
            if self.names.count(name) > 1:
                raise DataError(self.path, None, "header", "distinct columns", f"{name} twice")
        for name in required:
            if name not in self.names:
                columns, found = f"columns {', '.join(required)}", ", ".join(self.names)[:200]
                raise DataError(self.path, None, "header", columns, found)
        self.seen.update(dict.fromkeys(self.names))
        count, must = 0, set(required)
        for number, row in self.records():
            count += 1
            if len(row) > len(self.seen) or not row.keys() <= self.seen.keys():
                self.seen.update(dict.fromkeys(row))
            if everywhere and not row.keys() >= must:
                keys = ", ".join(str(key) for key in row)[:MOST_SHOWN]
                raise DataError(self.path, number, "keys", ", ".join(required), keys)
            yield number, row
        if count == 0:
            raise DataError(self.path, None, "file", "not empty", "no rows")


def open_table(path: str | Path) -> Table:
    """The table in a file, plain or packed, told by its content.

    Raises
    ------
    DataError
        If the file cannot be read, is empty, or holds no rows.
    """
    path = Path(path)
    if _magic(path) == PARQUET_MAGIC:
        return _parquet(path)
    line = next((line.strip() for _, line in text_lines(path)), None)
    if line is None:
        raise DataError(path, None, "file", "not empty", "no rows")
    if line[0] not in "{[":
        return _csv(path)
    if line[0] == "{" and line[-1] == "}":
        first = json_object(path, 1, line)
        if not any(isinstance(first.get(name), list) for name in DOCUMENT_LISTS):
            names = dict.fromkeys(name for _, row in islice(_lines(path), SCANNED) for name in row)
            return Table(path=path, kind="JSON lines", names=tuple(names), records=lambda: _lines(path))
    elif line[0] == "{" and len(line) > 1 and _second_line_is_record(path):
        json_object(path, 1, line)  # JSON lines of which the first is cut: its own error
    return _document(path)


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            return raw.read(len(PARQUET_MAGIC))
    except OSError as error:
        raise DataError(path, None, "file", "a readable file", error.strerror or str(error)) from error


def _second_line_is_record(path: Path) -> bool:
    lines = (line for _, line in text_lines(path))
    next(lines)
    return next(lines, "").startswith("{")


def _lines(path: Path) -> Iterator[Row]:
    for number, line in text_lines(path):
        yield number, json_object(path, number, line)


def _csv(path: Path) -> Table:
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
    separator = max(SEPARATORS, key=first.count)
    try:
        names = tuple(name.strip() for name in next(csv.reader([first], delimiter=separator), []))
    except csv.Error as error:
        raise DataError(path, None, "header", "CSV", str(error)) from error
    return Table(path=path, kind="CSV", names=names, records=lambda: _csv_rows(path, separator, names))


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, its fields as long as prompts are; None at the end.

    The library knows one limit for the whole process, so it is set for this row only.
    """
    with _LIMIT_SET:
        before = csv.field_size_limit(LONGEST_FIELD)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)


def _csv_rows(path: Path, separator: str, names: tuple[str, ...]) -> Iterator[Row]:
    with open_text(path) as file:
        header = next((line for line in file if line.strip()), "")
        reader = csv.reader(chain([header], file), delimiter=separator)
        number = 0
        try:
            _next_row(reader)
            while (fields := _next_row(reader)) is not None:
                if not fields:
                    continue
                number += 1
                if len(fields) != len(names):
                    raise DataError(path, number, "row", f"{len(names)} fields", f"{len(fields)} fields")
                yield number, dict(zip(names, fields, strict=True))
        except csv.Error as error:
            raise DataError(path, number + 1, "row", "CSV", str(error)) from error


def _document(path: Path) -> Table:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(path, None, "file", "JSON", str(error)[:200]) from error
    if isinstance(content, dict):
        lists = [content[name] for name in DOCUMENT_LISTS if isinstance(content.get(name), list)]
        content = lists[0] if lists else [content]
    for number, record in enumerate(content, start=1):
        if not isinstance(record, dict):
            raise DataError(path, number, "record", "a JSON object", str(record)[:80])
    names = tuple(dict.fromkeys(name for record in content for name in record))
    return Table(path=path, kind="JSON", names=names, records=lambda: iter(list(enumerate(content, start=1))))


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "files") from None
    try:
        names = tuple(parquet.read_schema(path).names)
    except pyarrow.ArrowException as error:
        raise DataError(path, None, "file", "a whole Parquet file", str(error)[:200]) from error

    def rows() -> Iterator[Row]:
        number = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(path, number + 1, "row", "Parquet", str(error)[:200]) from error

    return Table(path=path, kind="Parquet", names=names, records=rows)
