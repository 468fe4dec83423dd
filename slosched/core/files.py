"""Reading text in one way everywhere, and writing results so that a reader never meets half a file."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, TextIO, cast

from slosched.core.errors import DataError, InputError, MissingExtraError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MOST_SHOWN = 80
"""Characters of a wrong value that an error message shows."""


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


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write several files into a folder: all of them, or on an error none.

    Every file is first written in full under a temporary name in the same folder, then all are renamed.

    Parameters
    ----------
    folder
        Made if absent.
    files
        Contents by file name.

    Raises
    ------
    InputError
        If the folder cannot be made or written to.
    """
    waiting: list[tuple[str, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
                waiting.append((file.name, folder / name))
                file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        while waiting:
            temporary, path = waiting[0]
            os.chmod(temporary, 0o666 & ~mask)  # temporary files are private by default
            os.replace(temporary, path)
            waiting.pop(0)
    except OSError as error:
        raise InputError(
            f"out must be a place that can be written to, got {str(folder)!r}: {error.strerror}."
        ) from None
    finally:
        for temporary, _ in waiting:
            Path(temporary).unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write one file whole or not at all; see `write_files`."""
    write_files(path.parent, {path.name: content})
