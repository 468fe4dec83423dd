"""What the conformance suites of policies and of routers share: running the checks, and words for a fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slosched.core.errors import InputError


class Fault(AssertionError):
    """An object does what none of its kind may do; the message says in which check and how."""


def ensure(ok: bool, words: str) -> None:
    """Raise `Fault` with these words unless it is so."""
    if not ok:
        raise Fault(words)


def run_checks(
    checks: Mapping[str, Callable[[Any], None]], make: Callable[[], Any], base: type, fault: type[Fault]
) -> list[str]:
    """Run a suite on what `make` makes.

    Parameters
    ----------
    checks
        The suite, by name; each is called with `make`.
    make
        Makes a fresh object.
    base
        The class it must be derived from.
    fault
        Raised at the first check that fails.

    Returns
    -------
    list of str
        Names of the checks, all passed.
    """
    if not isinstance(make(), base):
        raise fault(f"must be a {base.__name__} of slosched, got {type(make()).__name__}.")
    for name, check in checks.items():
        try:
            check(make)
        except (Fault, InputError) as error:
            raise fault(f"{make().name}, check {name!r}: {error}") from error
    return list(checks)
