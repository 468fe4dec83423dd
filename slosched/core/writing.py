"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO, TextIO, cast

from slosched.core.errors import DataError, InputError, MissingExtraError


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
