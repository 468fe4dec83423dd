"""Where a file of the command line goes: a place of its own, or through a link, a pipe or a device."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from slosched.core.errors import InputError


@contextmanager
def written(out: Path, ending: str = "") -> Iterator[Path]:
    """A path to write to, so that what is written arrives at `out`.

    Files are written under another name and renamed, which would put a file in the place of a link or a
    device. So a link is followed, and what is no file gets its content once it is whole.

    Parameters
    ----------
    out
        As given: a file, a link to one, a named pipe, a device such as ``/dev/stdout``.
    ending
        Ending of the name where `out` is no file and has none, since some formats go by it.

    Raises
    ------
    InputError
        If it is a folder, or a pipe or device that cannot be written to.
    """
    if out.is_dir():
        raise InputError(f"out must be a file, got {str(out)!r}, which is a folder.")
    if not passes_through(out):
        yield Path(os.path.realpath(out)) if out.is_symlink() else out
        return
    with TemporaryDirectory(prefix="slosched-") as folder:
        place = Path(folder) / (out.name if out.suffix else out.name + ending)
        yield place
        content = place.read_bytes()
    try:
        stream = _stream_of(out)
        if stream is not None:
            stream.write(content)
            stream.flush()
        else:
            with out.open("wb") as sink:
                sink.write(content)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"out must be a place that can be written to, got {str(out)!r}: {error.strerror}."
        ) from None


def passes_through(out: Path) -> bool:
    """Whether a path leads to what is no file or folder: a pipe, a device, or what this program prints to."""
    try:
        mode = out.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _stream_of(out) is not None


def _stream_of(out: Path) -> BinaryIO | None:
    """Standard output or error where `out` is the same file: its place in that file must not be lost."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if os.path.samestat(out.stat(), os.fstat(stream.fileno())):
                stream.flush()
                return stream.buffer
        except (OSError, ValueError, AttributeError):  # closed, or none of the system's
            continue
    return None
