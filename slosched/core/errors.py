"""Errors that users see: each names the field, its domain and the value given."""

from __future__ import annotations

import re
from pathlib import Path


class InputError(ValueError):
    """Bad input of any kind; the command line turns it into one line and exit code 2."""


class DataError(InputError):
    """Bad input in a file: names the file, the row (1-based, header excluded), the field and the value.

    Examples
    --------
    >>> str(DataError("t.csv", 3, "input_tokens", "an integer of at least 1", "-4"))
    "t.csv, row 3: input_tokens must be an integer of at least 1, got '-4'."
    """

    def __init__(self, path: str | Path, row: int | None, field: str, domain: str, value: object) -> None:
        where = f"{path}, row {row}" if row is not None else f"{path}"
        super().__init__(f"{where}: {field} must be {domain}, got {value!r}.")


class MissingExtraError(ImportError):
    """An optional dependency is absent; the message says how to install what the extra names."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: {install_words(extra, package)}")


def install_words(extra: str, package: str) -> str:
    """A command that installs the packages of an extra, wherever slosched itself was installed from.

    Parameters
    ----------
    extra
        Name of the extra.
    package
        Named alone where nothing is known of the extra, as in a source tree that is not installed.

    Examples
    --------
    >>> install_words("no-such-extra", "ortools")
    "pip install 'ortools' (extra no-such-extra of slosched)"
    """
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("slosched") or []
    except PackageNotFoundError:
        lines = []
    ending = re.compile(rf"\s*;\s*extra\s*==\s*[\"']{re.escape(extra)}[\"']\s*$")
    wanted = [ending.sub("", line) for line in lines if ending.search(line)] or [package]
    return f"pip install {' '.join(map(repr, wanted))} (extra {extra} of slosched)"


def require(ok: bool, field: str, domain: str, value: object) -> None:
    """Raise `InputError` naming field, domain and value unless `ok`.

    Write the condition so that NaN fails it (``x > 0``, not ``not x <= 0``).

    Examples
    --------
    >>> require(1.0 > 0, "ttft_s", "a number above 0", 1.0)
    >>> require(float("nan") > 0, "ttft_s", "a number above 0", float("nan"))
    Traceback (most recent call last):
    slosched.core.errors.InputError: ttft_s must be a number above 0, got nan.
    """
    if not ok:
        raise InputError(f"{field} must be {domain}, got {value!r}.")
