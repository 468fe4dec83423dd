"""The one way to compile a kernel: numba, with its cache where a folder can be written, without it elsewhere.

numba refuses to make a cached function, and so to import the module that holds it, where no cache folder is
writable: a read-only container, another user's installation. Such a process compiles anew, and says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba

logger = logging.getLogger("slosched")

_UNCACHED: list[str] = []


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
        return made

    return decorate


def cache_reason() -> str | None:
    """Why compiled kernels are not kept in this process; None if they are, as far as is known."""
    return _UNCACHED[0] if _UNCACHED else None


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
