"""Routers by name: which engine a request goes to."""

from __future__ import annotations

from collections.abc import Callable

from slosched.core.errors import InputError, require
from slosched.core.named import load, make, near, split
from slosched.routers import simple
from slosched.routers.base import EngineStatus as EngineStatus
from slosched.routers.base import EngineView as EngineView
from slosched.routers.base import FleetSnapshot as FleetSnapshot
from slosched.routers.base import PickRouter as PickRouter
from slosched.routers.base import Router as Router
from slosched.routers.base import Routing as Routing
from slosched.routers.dynamo import Dynamo
from slosched.routers.huang import Huang
from slosched.routers.scores import LlmdHeadroom, LMetric, PolyServe
from slosched.routers.slosched import Slosched

ROUTERS: dict[str, Callable[..., Router]] = {
    r.name: r
    for r in (
        simple.RoundRobin, simple.Random, simple.PowerOfTwo, simple.LeastRequests, simple.LeastTokens,
        simple.PrefixAffinity, simple.SessionAffinity, LMetric, PolyServe, LlmdHeadroom, Dynamo, Huang,
        Slosched,
    )
}  # fmt: skip
"""Every router by name; call one to get a fresh object."""


def router(name: str, *, seed: int = 0, **parameters: object) -> Router:
    """A fresh router object by name.

    Parameters
    ----------
    name
        One of `ROUTERS`, with parameters perhaps (``slosched:refuse=true``), or ``package.module:Class``.
    seed
        Seed of a router that draws random numbers; others ignore it.
    parameters
        The router's own parameters, see its docstring.

    Raises
    ------
    InputError
        If the name or a parameter is unknown; the message lists the known ones.

    Examples
    --------
    >>> router("prefix-affinity:share=0.5").name
    'prefix-affinity:share=0.5'
    """
    bare, given = split(name, "router")
    factory = ROUTERS.get(bare)
    if factory is None:
        if ":" not in bare:
            known = list(ROUTERS)
            raise InputError(
                f"router must be one of {', '.join(known)} or package.module:Class, got {bare!r}."
                + near(bare, known)
            )
        factory = load(bare, "router", Router)
    made: Router = make(bare, factory, given | parameters, kind="router", base=Router, seed=seed)
    require(made.tick_s > 0, "tick_s", "a number of seconds above 0", made.tick_s)
    if name != getattr(made, "name", None):  # reports tell variants apart by the words that made them
        object.__setattr__(made, "name", name)
    return made
