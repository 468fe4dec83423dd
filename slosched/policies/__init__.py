"""Scheduling policies by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from slosched.core.errors import InputError
from slosched.policies.base import KeyPolicy as KeyPolicy
from slosched.policies.base import Policy as Policy
from slosched.policies.rivals.attained import Atlas, Las, Mlfq, Plas
from slosched.policies.rivals.cascade import Cascade
from slosched.policies.rivals.fairbatching import FairBatching
from slosched.policies.rivals.gateways import AibrixSlo, LlmdDeadline
from slosched.policies.rivals.huang import Huang
from slosched.policies.rivals.jitserve import JitServe, JitServeCode
from slosched.policies.rivals.ltr import Ltr
from slosched.policies.rivals.past_future import PastFuture
from slosched.policies.rivals.proserve import ProServe
from slosched.policies.rivals.qoserve import QoServe
from slosched.policies.rivals.scorpio import Scorpio
from slosched.policies.rivals.sglang import HrrnSglang, Lpm
from slosched.policies.rivals.slai import Slai
from slosched.policies.rivals.slidingserve import SlidingServe
from slosched.policies.rivals.slos_serve import SlosServe
from slosched.policies.rivals.tie import Tie
from slosched.policies.rivals.trail import Trail
from slosched.policies.rivals.uniboost import UniBoost, UniBoostSglang
from slosched.policies.simple import orders
from slosched.policies.simple.wspt import Wspt
from slosched.policies.slosched import Slosched

POLICIES: dict[str, Callable[..., Policy]] = {
    p.name: p
    for p in (
        orders.Fcfs, orders.Priority, orders.Edf, orders.EdfDemote, orders.LeastLaxity,
        orders.LeastLaxityDemote, orders.Sjf, orders.SjfDemote, orders.Srpt, orders.Hrrn, orders.HrrnDemote,
        Huang, Ltr, Trail, QoServe, Scorpio, ProServe, JitServe, JitServeCode, Cascade, FairBatching,
        SlidingServe, SlosServe, Wspt, Tie, Las, Mlfq, Plas, Atlas, Lpm, HrrnSglang, UniBoost, UniBoostSglang,
        PastFuture, AibrixSlo, LlmdDeadline, Slai, Slosched,
    )
}  # fmt: skip
"""Every policy by name; call one to get a fresh object."""


def policy(name: str, *, seed: int = 0, **parameters: object) -> Policy:
    """A fresh policy object by name.

    Parameters
    ----------
    name
        One of `POLICIES`.
    seed
        Seed of a policy that draws random numbers; others ignore it.
    parameters
        The policy's own parameters, see its docstring.

    Raises
    ------
    InputError
        If the name or a parameter is unknown; the message lists the known ones.

    Examples
    --------
    >>> policy("edf+d").name
    'edf+d'
    """
    if name not in POLICIES:
        raise InputError(f"policy must be one of {', '.join(POLICIES)}, got {name!r}.")
    factory = POLICIES[name]
    known = list(inspect.signature(factory).parameters)
    for parameter in parameters:
        if parameter not in known or parameter == "seed":
            own = ", ".join(p for p in known if p != "seed") or "none"
            raise InputError(f"parameter of policy {name!r} must be one of {own}, got {parameter!r}.")
    if "seed" in known:
        parameters["seed"] = seed
    return factory(**parameters)
