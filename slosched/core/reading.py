"""Reading files in one way everywhere: text however packed, and rows, whatever holds them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import IO, Any, TextIO, cast

from slosched.core.errors import DataError, MissingExtraError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BZIP2_MAGIC = b"BZh"
XZ_MAGIC = b"\xfd7zXZ"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
NO_TABLES = {
    b"PK\x03\x04": "an Excel workbook or another zip file: save it as CSV",
    b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched",
    b"<": "a web page or XML",
    b"SQLite format 3": "a database of SQLite: export the table as CSV",
}
"""What people take for a table, by its first bytes."""
MOST_SHOWN = 80
"""Characters of a wrong value that an error message shows."""
PARQUET_MAGIC = b"PAR1"
SEPARATORS = ",;\t|"
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+(?:[eE][+-]?[0-9]+)?")
GROUPED = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+")
"""What may also be thousands."""
LONGEST_FIELD = 1 << 28
"""Characters of a field of CSV, such as a prompt; the library's own limit is 131,072."""
_LIMIT_SET = Lock()
DOCUMENT_LISTS = ("requests", "data", "records")
"""Names under which a JSON document may hold its list of records."""
DEEPEST = 4
"""Keys that lead to a value of a record: deeper ones are not looked at."""
SCANNED = 1000
"""Records of JSON lines in which columns are looked for: an optional key may be absent from the first."""

Row = tuple[int, dict[str, Any]]


@contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    r"""Open UTF-8 text, plain or packed (gzip, Zstandard, bzip2, xz), with or without a byte-order mark.

    With the byte-order mark of UTF-16, as some spreadsheets and shells write it, it is read as that.

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
            marked = content.peek(2)[:2] in UTF16_MARKS
            yield io.TextIOWrapper(content, encoding="utf-16" if marked else "utf-8-sig", newline="\n")
    except UnicodeDecodeError as error:
        damaged = error.object[error.start : error.start + 1]
        raise DataError(path, None, "text", "UTF-8", damaged) from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        kind = {GZIP_MAGIC: "gzip", BZIP2_MAGIC[:2]: "bzip2"}.get(_magic(path, 2), "xz")
        raise DataError(path, None, "file", f"a whole {kind} file", "a truncated or damaged one") from error
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
def _unpacked(raw: io.BufferedReader) -> Iterator[io.BufferedReader]:
    """The content of a file that may be packed, as its first bytes say."""
    magic = raw.read(5)
    raw.seek(0)
    if magic[:2] == GZIP_MAGIC:
        with gzip.GzipFile(fileobj=raw, mode="rb") as content:
            yield cast("io.BufferedReader", content)
    elif magic[:3] == BZIP2_MAGIC:
        with bz2.BZ2File(raw) as content_:
            yield cast("io.BufferedReader", content_)
    elif magic == XZ_MAGIC:
        with lzma.LZMAFile(raw) as content__:
            yield cast("io.BufferedReader", content__)
    elif magic[:4] == ZSTD_MAGIC:
        yield io.BufferedReader(_Zstd(raw), 1 << 17)
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
    for beginning, what in NO_TABLES.items():
        if _magic(path, len(beginning)) == beginning:
            raise DataError(path, None, "file", "a table", what)
    line = next((line.strip() for _, line in text_lines(path)), None)
    if line is None:
        raise DataError(path, None, "file", "not empty", "no rows")
    if line[0] not in "{[":
        return _csv(path)
    if line[0] == "{" and line[-1] == "}":
        first = json_object(path, 1, line)
        whole = any(isinstance(first.get(name), list) for name in DOCUMENT_LISTS)
        if not whole and (_records(first) is None or _second_line_is_record(path)):
            names = dict.fromkeys(name for _, row in islice(_lines(path), SCANNED) for name in row)
            return Table(path=path, kind="JSON lines", names=tuple(names), records=lambda: _lines(path))
    elif line[0] == "{" and len(line) > 1 and _second_line_is_record(path):
        json_object(path, 1, line)  # JSON lines of which the first is cut: its own error
    return _document(path)


def _magic(path: Path, length: int = len(PARQUET_MAGIC)) -> bytes:
    try:
        with path.open("rb") as raw:
            return raw.read(length)
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
        first, _ = _header(file)
    separator = max(SEPARATORS, key=first.count)
    try:
        names = tuple(name.strip() for name in next(csv.reader([first], delimiter=separator), []))
    except csv.Error as error:
        raise DataError(path, None, "header", "CSV", str(error)) from error
    decimal = _decimal_commas(path, separator, names) if separator != "," else frozenset()
    return Table(
        path=path, kind="CSV", names=names, records=lambda: _csv_rows(path, separator, names, decimal)
    )


def _decimal_commas(path: Path, separator: str, names: tuple[str, ...]) -> frozenset[str]:
    """Columns whose numbers have a comma for a decimal point, as much of Europe writes them.

    A column is one of them if some number can be nothing else (1,100 may be a thousand), and all are numbers.
    """
    sure: dict[str, None] = {}
    others: dict[str, None] = {}
    with suppress(DataError):  # what is wrong is told when the rows are read
        for _, row in islice(_csv_rows(path, separator, names, frozenset()), SCANNED):
            for name, text in row.items():
                comma = DECIMAL_COMMA.fullmatch(text.strip())
                if comma and not GROUPED.fullmatch(text.strip()):
                    sure[name] = None
                elif not comma and text.strip() and not _is_number(text):
                    others[name] = None
    return frozenset(name for name in sure if name not in others)


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


def _csv_rows(path: Path, separator: str, names: tuple[str, ...], decimal: frozenset[str]) -> Iterator[Row]:
    with open_text(path) as file:
        header, read = _header(file)
        reader = csv.reader(chain([header], read, file), delimiter=separator)
        number = 0
        try:
            _next_row(reader)
            while (fields := _next_row(reader)) is not None:
                if not fields:
                    continue
                number += 1
                if len(fields) != len(names):
                    raise DataError(path, number, "row", f"{len(names)} fields", f"{len(fields)} fields")
                row = dict(zip(names, fields, strict=True))
                for name in decimal:
                    row[name] = row[name].replace(",", ".")
                yield number, row
        except csv.Error as error:
            raise DataError(path, number + 1, "row", "CSV", str(error)) from error


def _header(file: TextIO) -> tuple[str, list[str]]:
    """The header of CSV, and what was read beyond it: comments before it are skipped.

    The last comment is the header itself if the line after it has as many fields, some of them numbers.
    """
    remark = ""
    for line in file:
        if line.startswith("#"):
            remark = line
        elif line.strip():
            as_many = any(remark.count(mark) == line.count(mark) > 0 for mark in SEPARATORS)
            if as_many and any(_is_number(part) for part in re.split(f"[{SEPARATORS}]", line)):
                name = remark.lstrip("# ")
                return (remark if name[:1] in SEPARATORS else name), [line]
            return line, []
    return remark, []


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _records(content: dict[str, Any]) -> list[Any] | None:
    """The records of a document that holds columns, as pandas and others write them; None if it does not.

    Examples
    --------
    >>> _records({"t": [1, 2], "n": [3, 4]}) == _records({"t": {"0": 1, "1": 2}, "n": {"0": 3, "1": 4}})
    True
    >>> _records({"columns": ["t", "n"], "index": [0, 1], "data": [[1, 3], [2, 4]]})
    [{'t': 1, 'n': 3}, {'t': 2, 'n': 4}]
    """
    names, rows = content.get("columns"), content.get("data")
    if isinstance(names, list) and isinstance(rows, list):
        if all(isinstance(row, list) and len(row) == len(names) for row in rows):
            return [dict(zip(map(str, names), row, strict=True)) for row in rows]
        return None
    columns: list[Any] = list(content.values())
    if len(columns) < 2:
        return None
    if all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        columns = [list(column.values()) for column in columns]
    elif not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return None
    if any(isinstance(value, dict) for column in columns for value in column):
        return None
    return [dict(zip(content, row, strict=True)) for row in zip(*columns, strict=True)]


def flat(table: Table) -> Table | None:
    """The same table with what its records hold in objects as columns; None if they hold none.

    A column has its own name where nobody else has it and it says something, else that of its path.

    Parameters
    ----------
    table
        A table of JSON.
    """
    if table.kind not in ("JSON", "JSON lines"):
        return None
    paths: dict[tuple[str, ...], None] = {}
    for _, record in islice(table.records(), SCANNED):
        paths.update(dict.fromkeys(path for path, _ in _leaves(record)))
    if all(len(path) == 1 for path in paths):
        return None
    names: dict[tuple[str, ...], str] = {}
    taken: dict[str, None] = {}
    for path in sorted(paths, key=len):
        short = path[-1]
        vague = len(path) > 1 and (short in taken or len(re.findall("[A-Z_]?[a-z0-9]+", short)) < 2)
        names[path] = ".".join(path) if vague else short
        taken[names[path]] = None

    def rows() -> Iterator[Row]:
        for number, record in table.records():
            yield number, {names.get(path, ".".join(path)): value for path, value in _leaves(record)}

    return Table(path=table.path, kind=table.kind, names=tuple(names.values()), records=rows)


def _leaves(record: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Whatever a record holds that is no object, with the keys that lead there; at most `DEEPEST` of them."""
    for name, value in record.items():
        path = (*above, name)
        listed = _attributes(value)
        if isinstance(value, dict) and len(path) < DEEPEST:
            yield from _leaves(value, path)
        elif listed is not None:
            yield from _leaves(listed, path)
        else:
            yield path, value


def _attributes(value: object) -> dict[str, Any] | None:
    """Attributes as OpenTelemetry's JSON lists them, by name; None if this is no such list.

    Examples
    --------
    >>> _attributes([{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}}])
    {'gen_ai.usage.input_tokens': '12'}
    """
    if not isinstance(value, list) or not value:
        return None
    found: dict[str, Any] = {}
    for pair in value:
        if (
            not isinstance(pair, dict)
            or pair.keys() != {"key", "value"}
            or not isinstance(pair["value"], dict)
        ):
            return None
        found[str(pair["key"])] = next(iter(pair["value"].values()), None)
    return found


def _document(path: Path) -> Table:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(path, None, "file", "JSON", str(error)[:200]) from error
    columns = _records(content) if isinstance(content, dict) else None
    if columns is not None:
        content = columns
    elif isinstance(content, dict):
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
