"""Writing results so that a reader never meets half a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile

from slosched.core.errors import InputError


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
