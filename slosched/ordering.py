"""The shortest way from a queue to its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slosched.core.compiling import eased
from slosched.core.request import Request
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies import Policy
from slosched.policies.registry import policy_of


def order(queue: Snapshot | Sequence[Request], *, policy: str | Policy = "slosched", seed: int = 0) -> Plan:
    """Order a queue once.

    Parameters
    ----------
    queue
        A snapshot, or waiting requests of an idle engine with default limits (see `Snapshot.of`).
    policy
        A policy by name or a policy object.
    seed
        Seed of a policy given by name.

    Raises
    ------
    InputError
        If the policy is unknown or two requests have the same name.

    Examples
    --------
    >>> from slosched import LengthForecast, Request, Slo
    >>> chat = Request(request_id="chat", prompt_tokens=300, forecast=LengthForecast.point(150),
    ...                slo=Slo(ttft_s=0.5), arrival_s=0.2)
    >>> batch = Request(request_id="batch", prompt_tokens=9000, forecast=LengthForecast.point(800))
    >>> order([batch, chat]).request_ids
    ['chat', 'batch']
    """
    snapshot = queue if isinstance(queue, Snapshot) else Snapshot.of(queue)
    chosen = policy_of(policy, seed=seed)
    if chosen.budget_tokens is not None:
        snapshot = replace(snapshot, engine=chosen.engine_for(snapshot.engine))
    with eased():  # the first plan of a process may compile
        return chosen.plan(snapshot)
