"""Digests of the code behind a result, which says what could change it, and of the data behind it.

A digest covers a module and all modules of this package that it imports, directly or not, read from their
sources without running them. Comments, docstrings and layout do not count. So a result stays valid while
others work on files that it does not depend on, and no longer.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from slosched.core.errors import InputError

PACKAGE = "slosched"
ROOT = Path(__file__).resolve().parent.parent

NO_INFLUENCE = frozenset(
    {
        "slosched",
        "slosched.policies",
        "slosched.policies.registry",
        "slosched.planner.prediction",
        "slosched.routers",
        "slosched.integrations",
        "slosched.warmup",
    }
)
"""Modules that names are looked up in, or that only explain a plan: what they import decides no result."""


def code_digest(*modules: str) -> str:
    """Digest of modules and of all in this package that they import.

    Parameters
    ----------
    modules
        Names; one outside this package counts by its own source only, and by what it imports of ours.

    Returns
    -------
    str
        Sixteen hexadecimal digits.

    Raises
    ------
    InputError
        If a module has no readable source.

    Examples
    --------
    >>> code_digest("slosched.core.request") == code_digest("slosched.core.request", "slosched.core.errors")
    True
    """
    lines = [f"{name} {_source_digest(name)}" for name in sorted(closure(*modules))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def closure(*modules: str) -> frozenset[str]:
    """Modules with all modules of this package that they import, directly or not, `NO_INFLUENCE` left out."""
    found: set[str] = set()
    todo = [name for name in modules if name not in NO_INFLUENCE]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        todo.extend(_imports(name) - found - NO_INFLUENCE)
    return frozenset(found)


def policy_digest(policy: object) -> str:
    """Digest of the code behind a policy object: the modules of its class and of its base classes."""
    names = [c.__module__ for c in type(policy).__mro__ if c.__module__ not in ("builtins", "abc", "typing")]
    return code_digest(*dict.fromkeys(names))


def data_digest(value: object) -> str:
    """Digest of data: arrays, and what holds them, such as a workload; equal wherever the values are.

    Parameters
    ----------
    value
        Plain values, arrays, and dataclasses, lists, tuples and dictionaries of them.

    Returns
    -------
    str
        Sixteen hexadecimal digits.

    Examples
    --------
    >>> data_digest((np.arange(3), "x")) == data_digest((np.array([0, 1, 2]), "x"))
    True
    """
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: hashlib._Hash, value: object) -> None:
    """Each value with its type and size, so that no two values look alike."""
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            digest.update(field.name.encode())
            _feed(digest, getattr(value, field.name))
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for inner in value:
            _feed(digest, inner)
    elif isinstance(value, dict):
        _feed(digest, sorted(value.items()))
    else:
        digest.update(f"{type(value).__name__}:{value!r};".encode())


@lru_cache(maxsize=4096)
def _imports(name: str) -> frozenset[str]:
    """Modules of this package that a module imports anywhere in its source."""
    found: set[str] = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if _path(inner) is not None else node.module)
    return frozenset(module for module in found if _path(module) is not None)


@lru_cache(maxsize=4096)
def _source_digest(name: str) -> str:
    """Digest of a module's code as such; data files beside it that are part of the package count with it."""
    tree = _tree(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    digest = hashlib.sha256(ast.unparse(tree).encode())
    path = _path(name)
    if path is not None:
        constants = _constants(name)
        for file in sorted(path.parent.glob("*.json")):
            if file.name in constants:
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _is_text(node: ast.stmt) -> bool:
    """Whether a statement is a mere string: a docstring, or the explanation below a constant."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _constants(name: str) -> set[str]:
    """String constants of a module: names of the data files it reads are among them."""
    return {
        node.value
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def _tree(name: str) -> ast.Module:
    return ast.parse(_text(name))


@lru_cache(maxsize=4096)
def _text(name: str) -> str:
    path = _path(name)
    try:
        if path is not None:
            return path.read_text(encoding="utf-8")
        module = importlib.util.find_spec(name)
        if module is not None and module.origin and module.origin.endswith(".py"):
            return Path(module.origin).read_text(encoding="utf-8")
        return inspect.getsource(__import__(name))
    except (OSError, TypeError, ImportError, ValueError) as error:
        raise InputError(
            f"policy must be of a module whose source can be read, got {name!r}: {error}."
        ) from None


@lru_cache(maxsize=4096)
def _path(name: str) -> Path | None:
    """File of a module of this package, or None."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    place = ROOT.joinpath(*parts[1:])
    for path in (place.with_suffix(".py") if len(parts) > 1 else ROOT / "__init__.py", place / "__init__.py"):
        if path.is_file():
            return path
    return None
