"""Compiling takes a quarter less processor time without two habits of the compiler that change no result."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FLAGS = "numba.core.targetconfig"
"""The module of numba's `TargetConfig`, the options of a compilation: they are keys of its tables."""


def _values(flags: Any) -> dict[str, Any]:
    """What numba's `TargetConfig.values` returns, without a call of two properties for each of 30 options."""
    own = flags._values
    return {name: own.get(name, option._default) for name, option in flags.options.items()}


@contextmanager
def eased() -> Iterator[None]:
    """Within the block kernels compile faster; what is compiled is the same.

    Numba compares its options at each of thousands of steps, by properties written in Python: a fifth of the
    time. Python's garbage collector walks a million objects again and again, and nearly all of them stay: a
    twentieth. Both are as before at the end of the block. Where numba is not loaded, or has no such options,
    the first is left out.

    Examples
    --------
    >>> with eased():
    ...     2 + 2
    4
    """
    options: Any = getattr(sys.modules.get(FLAGS), "TargetConfig", None)
    usual = vars(options).get("values") if options is not None else None
    # Another thread may be within such a block: the first to enter restores, whoever leaves last.
    replaces = usual is not None and usual is not _values and _same(options)
    collects = gc.isenabled()
    if replaces:
        options.values = _values
    gc.disable()
    try:
        yield
    finally:
        if replaces:
            options.values = usual
        if collects:
            gc.enable()


def _same(options: Any) -> bool:
    """Whether `_values` says of options without a value what numba says: its insides may change."""
    try:
        fresh = options()
        return bool(_values(fresh) == fresh.values())
    except (AttributeError, KeyError, TypeError):
        return False
