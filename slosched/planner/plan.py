"""A policy's decision for the next step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.core.table import Ints

if TYPE_CHECKING:
    from slosched.planner.prediction import Prediction


def _nobody() -> Ints:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who goes next, who is held, preempted, refused or passed over, how much prefill.

    All rows (the fields of type `Ints`) index `snapshot.table`.

    Parameters
    ----------
    snapshot
        What the decision was made on.
    policy
        Name of the policy that made it.
    order
        Waiting rows, first to be admitted first. Waiting rows that are missing from it follow in the
        engine's order (ascending arrival): a policy may order a prefix only.
    hold
        Waiting rows that must not be admitted in this step.
    preempt
        Running rows to preempt before admission; their KV is dropped and recomputed later.
    running_order
        All running rows in a new order, or None to leave the engine's order.
    prefill_tokens
        Most prompt tokens to compute in this step, recomputation included, or None for what the engine's
        token budget allows. The engine sees it as a budget of that many tokens plus one per decoding
        request.
    reject
        Waiting rows that are refused for good: they leave the queue with no further token and count as
        missed.
    skip
        Running rows that get no tokens in this step; they keep their KV, and may lose it to a request that
        needs memory as any other may. Ignored by the engine where nothing at all would be scheduled
        otherwise.

    Examples
    --------
    >>> from slosched import LengthForecast, Request, Slo, order
    >>> long = Request(request_id="long", prompt_tokens=4000, forecast=LengthForecast.point(400))
    >>> short = Request(request_id="short", prompt_tokens=50, forecast=LengthForecast.point(20),
    ...                 slo=Slo(ttft_s=0.2), arrival_s=0.01)
    >>> plan = order([long, short], policy="edf")
    >>> plan.request_ids
    ['short', 'long']
    >>> print(plan.explain("short"))  # doctest: +ELLIPSIS
    short is number 1 of 2 waiting, by policy edf. Expected: TTFT ... (limit 200 ms), ...
    """

    snapshot: Snapshot
    policy: str
    order: Ints
    hold: Ints = field(default_factory=_nobody)
    preempt: Ints = field(default_factory=_nobody)
    running_order: Ints | None = None
    prefill_tokens: int | None = None
    reject: Ints = field(default_factory=_nobody)
    skip: Ints = field(default_factory=_nobody)

    def check(self) -> None:
        """Raise `InputError` unless every row is where it should be: for tests and for engine adapters."""
        waiting, running = set(self.snapshot.waiting.tolist()), set(self.snapshot.running.tolist())
        for name, rows, allowed in (
            ("order", self.order, waiting),
            ("hold", self.hold, waiting),
            ("preempt", self.preempt, running),
            ("reject", self.reject, waiting),
            ("skip", self.skip, running),
        ):
            listed = rows.tolist()
            if len(set(listed)) != len(listed) or not set(listed) <= allowed:
                raise InputError(f"{name} must be distinct rows of its queue, got {listed}.")
        if self.running_order is not None and sorted(self.running_order.tolist()) != sorted(running):
            raise InputError(f"running_order must be all running rows, got {self.running_order.tolist()}.")

    def on(self, snapshot: Snapshot, rows: Ints) -> Plan:
        """The same plan in the rows of another table: row i is ``rows[i]`` there."""
        changes = {
            f.name: rows[value]
            for f in fields(self)
            if str(f.type).startswith("Ints") and (value := getattr(self, f.name)) is not None
        }
        return replace(self, snapshot=snapshot, **changes)

    @cached_property
    def sequence(self) -> Ints:
        """Waiting rows in the planned order, then by arrival those the policy left out; none refused."""
        rest = self.snapshot.waiting[~np.isin(self.snapshot.waiting, self.order)]
        everyone = np.concatenate([self.order, rest])
        return everyone[~np.isin(everyone, self.reject)] if len(self.reject) else everyone

    @property
    def request_ids(self) -> list[str]:
        """Names of the waiting requests in the planned order, none refused."""
        return [self.snapshot.table.request_ids[row] for row in self.sequence.tolist()]

    @cached_property
    def prediction(self) -> Prediction:
        """Expected latencies and chances of everybody under this plan."""
        from slosched.planner.prediction import predict  # compiled: only when asked for

        return predict(self.snapshot, self.sequence, self.prefill_tokens)

    def explain(self, request_id: str) -> str:
        """Why a request is where it is, what moving it first would cost others, and its chance; in words.

        Raises
        ------
        InputError
            If no waiting or running request has this name.
        """
        names = [self.snapshot.table.request_ids[row] for row in self.reject.tolist()]
        if request_id in names:
            return f"{request_id} is refused by policy {self.policy}: it gets no answer."
        from slosched.planner.prediction import explain

        return explain(self.snapshot, self.sequence, self.policy, self.prefill_tokens, request_id)
