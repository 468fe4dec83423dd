"""Objects by name: ``name``, ``name:key=value,key=value`` or ``package.module:Class``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from slosched.core.errors import InputError

T = TypeVar("T")


def make(
    text: str,
    kind: str,
    known: Mapping[str, Callable[..., T]],
    base: type[T],
    *,
    seed: int = 0,
    **parameters: object,
) -> T:
    """A fresh object by name.

    Parameters
    ----------
    text
        A known name or ``package.module:Class``, then perhaps ``:key=value,key=value``. Values are read as
        numbers, true, false or none where they look like it.
    kind
        What it is, for messages.
    known
        Factories by name.
    base
        What a class from outside must derive from.
    seed
        Given to a factory that has a parameter of this name.
    parameters
        Further parameters, beside those in the text.

    Raises
    ------
    InputError
        If the name or a parameter is unknown, or a class cannot be imported.

    Examples
    --------
    >>> from fractions import Fraction
    >>> make("half:numerator=1,denominator=2", "number", {"half": Fraction}, Fraction)
    Fraction(1, 2)
    """
    name, given = split_name(text)
    given |= parameters
    factory = known.get(name) or _imported(name, kind, known, base)
    names = list(inspect.signature(factory).parameters)
    for parameter in given:
        if parameter not in names or parameter == "seed":
            own = ", ".join(p for p in names if p != "seed") or "none"
            raise InputError(f"parameter of {kind} {name!r} must be one of {own}, got {parameter!r}.")
    if "seed" in names:
        given["seed"] = seed
    return factory(**given)


def split_name(text: str) -> tuple[str, dict[str, object]]:
    """Name and parameters.

    Examples
    --------
    >>> split_name("edf:budget=512,demote=true")
    ('edf', {'budget': 512, 'demote': True})
    >>> split_name("my.module:Mine:k=2")
    ('my.module:Mine', {'k': 2})
    """
    parts = text.split(":")
    has_parameters = len(parts) > 1 and "=" in parts[-1]
    name = ":".join(parts[:-1] if has_parameters else parts)
    parameters: dict[str, object] = {}
    for pair in parts[-1].split(",") if has_parameters else ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"parameters must be key=value, got {pair!r} in {text!r}.")
        parameters[key.strip().replace("-", "_")] = _value(value.strip())
    return name, parameters


def _value(text: str) -> object:
    words: dict[str, object] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _imported(name: str, kind: str, known: Mapping[str, Callable[..., T]], base: type[T]) -> Callable[..., T]:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(f"{kind} must be one of {', '.join(known)} or package.module:Class, got {name!r}.")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{kind} must be package.module:Class, got {name!r}: {error}.") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{kind} must be a class derived from {base.__name__}, got {name!r}.")
    return found
