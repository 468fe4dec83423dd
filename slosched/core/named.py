"""Objects by name, in one grammar: ``name``, ``name:key=value,key=value`` or ``package.module:Class``."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from slosched.core.errors import InputError

FOREIGN: set[str] = set()
"""Packages and modules that were imported because somebody named them: not ours."""
GRAMMAR = "NAME or package.module:Class, then :KEY=VALUE,… if wanted"


def split(text: str, kind: str, grammar: str = GRAMMAR) -> tuple[str, dict[str, Any]]:
    """Name and parameters.

    Parameters
    ----------
    text
        A name or ``package.module:Class``, then perhaps ``:key=value,key=value``. Values are read as numbers,
        true, false or none where they look like it. A key of two parts, ``key.name=value``, gives one
        entry of a mapping.
    kind, grammar
        What it is, and what its words may be, for messages.

    Examples
    --------
    >>> split("edf:budget=512,demote=true", "policy")
    ('edf', {'budget': 512, 'demote': True})
    >>> split("my.module:Mine:k=2", "policy")
    ('my.module:Mine', {'k': 2})
    >>> split("slosched:promised.chat=0.99,promised.batch=0.5", "policy")
    ('slosched', {'promised': {'chat': 0.99, 'batch': 0.5}})
    """
    name, _, words = text.strip().partition(":")
    if words and "=" not in words.partition(":")[0]:
        attribute, _, words = words.partition(":")
        name = f"{name}:{attribute}"
    parameters: dict[str, Any] = {}
    for word in filter(None, words.split(",")):
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{kind} must be {grammar}, got {text!r}.")
        key, dot, entry = key.strip().partition(".")
        key = key.replace("-", "_")
        if not dot:
            parameters[key] = _value(value.strip())
            continue
        mapping = parameters.setdefault(key, {})
        if not entry or not isinstance(mapping, dict):
            raise InputError(f"{kind} must be {grammar}, got {text!r}.")
        mapping[entry] = _value(value.strip())
    return name.strip(), parameters


def make(
    name: str,
    factory: Callable[..., Any],
    parameters: Mapping[str, Any],
    *,
    kind: str,
    base: type[Any],
    seed: int = 0,
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """A fresh object.

    Parameters
    ----------
    name
        Name of the factory, for messages.
    factory
        What makes it.
    parameters
        Its parameters.
    kind, base
        What it is, and the class that it must be derived from.
    seed
        Given to a factory that has a parameter of this name.
    defaults
        Parameters for a factory that has them and where `parameters` has none.

    Raises
    ------
    InputError
        If a parameter is unknown or off its domain, the factory fails, or something else is made.

    Examples
    --------
    >>> from fractions import Fraction
    >>> make("half", Fraction, {"numerator": 1, "denominator": 2}, kind="number", base=Fraction)
    Fraction(1, 2)
    """
    if isinstance(factory, type):
        if not issubclass(factory, base):
            raise _stranger(name, factory, kind, base)
    elif not _promises(factory, base):  # What would be called to no purpose is not called.
        words = f"{kind} {name!r} must be a class derived from {base.__name__}"
        raise InputError(f"{words}, or a function whose annotation says that it returns one.")
    known = parameters_of(factory)
    chosen = dict(parameters)
    if known is not None:
        for given, value in chosen.items():
            if given not in known or given == "seed":
                own = [p for p in known if p != "seed"]
                domain = f"one of {', '.join(own)}" if own else "left out, since it has none"
                words = f"{domain}, got {given!r}."
                raise InputError(f"parameter of {kind} {name!r} must be {words}" + near(given, own))
            if isinstance(value, str) and isinstance(known[given], int | float):
                words = (
                    f"true or false, got {value!r}"
                    if isinstance(known[given], bool)
                    else f"a number, got {value!r}"
                )
                raise InputError(f"parameter {given} of {kind} {name!r} must be {words}.")
        chosen |= {k: v for k, v in (defaults or {}).items() if k in known and k not in chosen}
        if "seed" in known:
            chosen["seed"] = seed
    try:
        made = factory(**chosen)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        own_words = ", ".join(known or ()) or "none"
        raise InputError(f"parameters of {kind} {name!r} ({own_words}): {error}") from None
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        raise InputError(f"{kind} {name!r} cannot be made with {chosen}: {words}.") from error
    if not isinstance(made, base):
        raise _stranger(name, type(made), kind, base)
    return made


def _promises(factory: Callable[..., Any], base: type[Any]) -> bool:
    """Whether the annotation of a function says that it returns a `base`."""
    try:
        made = inspect.signature(factory, eval_str=True).return_annotation
    except Exception:  # No signature, or names in it that mean nothing here: anything may be raised.
        return False
    return isinstance(made, type) and issubclass(made, base)


def _stranger(name: str, made: type, kind: str, base: type[Any]) -> InputError:
    wanted = f"{base.__module__.removesuffix('.base')}.{base.__name__}"
    words = f"{kind} {name!r} must make a {wanted}, got {made.__name__}"
    return InputError(f"{words}: its class must be derived from {base.__name__}.")


def load(place: str, kind: str, base: type) -> Callable[..., Any]:
    """What stands at ``package.module:Class``; modules in the working directory count.

    Raises
    ------
    InputError
        If it cannot be imported; the message lists what of this kind the module holds.
    """
    module_name, _, attribute = place.partition(":")
    try:
        module = import_named(module_name)
    except Exception as error:
        path = module_name.removeprefix("./").removesuffix(".py")
        hint = "" if path == module_name else f" Did you mean {path.replace('/', '.')}:{attribute}?"
        raise InputError(
            f"{kind} must name a module that can be imported (package.module:Class), got {place!r} "
            f"({type(error).__name__}: {error}).{hint}"
        ) from error
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        own = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
        ]
        known = ", ".join(own) or "none"
        raise InputError(
            f"{kind} must name a class of {module_name} (package.module:Class: {known}), got {place!r}."
            + near(attribute, own)
        )
    made: Callable[..., Any] = found
    return made


def parameters_of(factory: Callable[..., Any]) -> dict[str, Any] | None:
    """Parameters with their defaults; None where a factory takes any keyword."""
    found = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in found):
        return None
    return {p.name: p.default for p in found}


def near(given: str, known: Sequence[str]) -> str:
    """A sentence with the nearest known names, or with the colon that a class in a module needs."""
    found = get_close_matches(given, known, n=3, cutoff=0.6)
    module, dot, last = given.rpartition(".")
    if not found and dot and module and last.isidentifier():
        found = [f"{module}:{last}"]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def blame(error: BaseException) -> str | None:
    """Where a module that somebody named went wrong, in one line; None where it had no part in the error.

    Examples
    --------
    >>> blame(ValueError("ours")) is None
    True
    """
    place, trace = None, error.__traceback__
    while trace is not None:
        frame, trace = trace, trace.tb_next
        if str(frame.tb_frame.f_globals.get("__name__")).partition(".")[0] in FOREIGN:
            code = frame.tb_frame.f_code
            place = f"{os.path.basename(code.co_filename)}, line {frame.tb_lineno}, in {code.co_name}"
    return place and f"{place}: {type(error).__name__}: {error}"


def import_named(name: str) -> Any:
    """A module; one in the working directory, too, which installed commands do not look into."""
    found = _import(name)
    if (top := name.partition(".")[0]) != "slosched":
        FOREIGN.add(top)
    return found


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if error.name is None or not name.startswith(error.name) or here in sys.path:
            raise
        sys.path.append(here)
        return import_module(name)


def _value(text: str) -> Any:
    """A number, true, false, none, or the words themselves."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
