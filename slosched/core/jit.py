"""The one way to compile a kernel: numba, with its cache where a folder can be written, without it elsewhere.

numba refuses to make a cached function, and so to import the module that holds it, where no cache folder is
writable: a read-only container, another user's installation. Such a process compiles anew, and says so once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np

logger = logging.getLogger("slosched")

BORROWED: dict[str, Any] = {"_nrt": False}
"""For kernels that allocate nothing: they count no references to the arrays that their callers hold.

A kernel that calls another with ten arrays spends some 500 ns on counting, in atomic operations. A function
with this option that allocates does not compile."""

OUTER: dict[str, Any] = {**BORROWED, "no_rewrites": True, "error_model": "numpy"}
"""For kernels of loops only: without rewrites for whole arrays, an eighth of the time to compile them.

Divisions by zero give infinity, as in numpy, and are not looked for."""

INNER: dict[str, Any] = {**OUTER, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""For kernels that only kernels call: without the code by which Python would.

That saves a sixth to a half of the time to compile them, the more the more arrays they take. From Python call
their ``py_func``; anything else ends the process."""

ZERO: Any = np.int64(0)
"""A 0 for calls between kernels: numba compiles the called one anew for each literal number it is given."""

_UNCACHED: list[str] = []
_DIGESTS: dict[str, str] = {}
"""What kernels of other modules depend on, by module: computed once in a process."""


def njit(**options: Any) -> Callable[[Any], Any]:
    """Compile a function without Python objects: `numba.njit` with the cache on if it can be.

    Parameters
    ----------
    **options
        Those of `numba.njit`; ``nogil`` and ``cache`` are on unless they say otherwise.

    Returns
    -------
    callable
        The decorator.

    Examples
    --------
    >>> @njit(cache=False)
    ... def double(x):
    ...     return 2 * x
    >>> double(21)
    42
    """
    wanted = {"nogil": True, "cache": True, **options}

    def decorate(function: Any) -> Any:
        """Compile one function."""
        if not wanted["cache"]:
            return numba.njit(**wanted)(function)
        try:
            made = numba.njit(**wanted)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            _say(str(error))
            return numba.njit(**{**wanted, "cache": False})(function)
        _forgive(made)
        _guard(made)
        return made

    return decorate


def cache_reason() -> str | None:
    """Why compiled kernels are not kept in this process; None if they are, as far as is known."""
    return _UNCACHED[0] if _UNCACHED else None


def _guard(made: Any) -> None:
    """Let the cache see what a function takes from other files: numba looks at its own file only.

    Without this a constant renumbered in one file would stay as it was in the kernels of another.
    """
    file = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if file is not None and hasattr(file, "_source_stamp"):
        foreign = fingerprint(made.py_func.__globals__)
        file._source_stamp = (file._source_stamp, foreign)


def fingerprint(names: dict[str, Any]) -> str:
    """Digest of what a module's functions may take from other files of its package.

    Parameters
    ----------
    names
        The module's globals at the time its first kernel is made: all that it imports is there.

    Returns
    -------
    str
        Digest of the numbers, words and tuples among them, and of the files of kernels and of modules that
        hold kernels or constants.
    """
    own = str(names.get("__name__"))
    parts = [f"{name}={value!r}" for name, value in sorted(names.items()) if _is_constant(name, value)]
    for name, value in sorted(names.items(), key=lambda item: item[0]):
        module = value if isinstance(value, ModuleType) else _module_of(value)
        if module is None or module.__name__ == own or module.__name__ in (__name__, "__main__"):
            continue
        if module.__name__.partition(".")[0] == own.partition(".")[0]:
            parts.append(f"{name}:{module.__name__}:{_digest_of(module)}")
    return sha256("\n".join(parts).encode()).hexdigest()


def _is_constant(name: str, value: Any) -> bool:
    return not name.startswith("__") and isinstance(value, int | float | str | tuple | np.generic)


def _module_of(value: Any) -> ModuleType | None:
    """The module of a kernel; None for anything else."""
    function = getattr(value, "py_func", None)
    return sys.modules.get(function.__module__) if function is not None else None


def _digest_of(module: ModuleType) -> str:
    """Digest of a module that a kernel's module uses: its constants, and its text if it holds kernels."""
    if module.__name__ not in _DIGESTS:
        _DIGESTS[module.__name__] = ""  # whoever comes back here has been counted
        holds = any(_module_of(value) is module for value in vars(module).values())
        text = Path(str(module.__file__)).read_bytes() if holds and module.__file__ else b""
        _DIGESTS[module.__name__] = sha256(text + fingerprint(vars(module)).encode()).hexdigest()
    return _DIGESTS[module.__name__]


def _forgive(made: Any) -> None:
    """Let a compiled function go on where its machine code cannot be written: a full or failing disk."""
    cache: Any = getattr(made, "_cache", None)
    save = getattr(cache, "save_overload", None)
    if save is None:
        return

    def save_or_say(*arguments: Any) -> None:
        """As numba does, but a disk that fails costs the cache only."""
        try:
            save(*arguments)
        except OSError as error:
            _say(str(error))

    cache.save_overload = save_or_say


def _say(reason: str) -> None:
    if not _UNCACHED:
        logger.warning(
            "slosched: compiled code is not kept, every process compiles anew, about 10 s: %s. Set "
            "NUMBA_CACHE_DIR to a folder that can be written.", reason,
        )  # fmt: skip
    _UNCACHED.append(reason)
