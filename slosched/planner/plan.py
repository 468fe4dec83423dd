"""A policy's decision for the next step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Ints
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot

if TYPE_CHECKING:
    from slosched.planner.prediction import Prediction


WAITS, RUNS = 1, 2
"""Where a row stands."""

MOST_TOKENS = 2**31
"""Engines count a step's tokens in 32 bits."""


SHOWN = 20
"""Rows that a message lists."""


def _distinct(name: str, rows: object, standing: NDArray[np.int8], place: int) -> None:
    """Raise `InputError` unless `rows` are distinct rows that stand in one place."""
    if not (isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype.kind == "i"):
        raise InputError(f"{name} must be a one-dimensional array of integers, got {type(rows).__name__}.")
    if len(rows) == 0:
        return
    wrong = rows[(rows < 0) | (rows >= len(standing))]
    if len(wrong) == 0:
        wrong = rows[standing[rows] != place]
    if len(wrong) == 0:
        seen = np.zeros(len(standing), dtype=np.bool_)
        seen[rows] = True
        if int(seen.sum()) == len(rows):
            return
    raise _unlawful(name, rows)


def _unlawful(name: str, rows: Ints) -> InputError:
    where = "all running rows" if name == "running_order" else "distinct rows of its queue"
    some = rows.tolist() if len(rows) <= SHOWN else f"{rows[:SHOWN].tolist()} and {len(rows) - SHOWN} more"
    return InputError(f"{name} must be {where}, got {some}.")


def _nobody() -> Ints:
    return np.empty(0, dtype=np.int64)


class Certificate(NamedTuple):
    """What the last comparison of rules found.

    Parameters
    ----------
    leader
        Share of the weight that the leading rule keeps within its limits on the sampled futures; what waiting
        costs is taken off, so it may lie a little below 0.
    rival
        The same of the best other rule; minus infinity where nothing was left to gain and none was tried.
    start
        The same of the rule that everybody starts with.
    rules, futures
        How many were compared.
    """

    leader: float
    rival: float
    start: float
    rules: int
    futures: int


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
    certificate
        By how much, in the model, the rule behind the plan beats the one it started with; None where a policy
        compares nothing.

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
    certificate: Certificate | None = None

    def check(self, snapshot: Snapshot | None = None) -> None:
        """Raise `InputError` unless the plan can be carried out: the one rule, for tests and for engines.

        Parameters
        ----------
        snapshot
            The engine's own state, if it may differ from what the policy saw; else the plan's snapshot.

        Raises
        ------
        InputError
            If a row is not where the plan says or is listed twice, or a number is out of its domain.
        """
        seen = self.snapshot if snapshot is None else snapshot
        standing = np.zeros(seen.table.capacity, dtype=np.int8)
        standing[seen.waiting], standing[seen.running] = WAITS, RUNS
        for name, place in (
            ("order", WAITS), ("hold", WAITS), ("preempt", RUNS), ("reject", WAITS), ("skip", RUNS),
        ):  # fmt: skip
            _distinct(name, getattr(self, name), standing, place)
        if self.running_order is not None:
            _distinct("running_order", self.running_order, standing, RUNS)
            if len(self.running_order) != len(seen.running):
                raise _unlawful("running_order", self.running_order)
        tokens = self.prefill_tokens
        if tokens is not None and not 0 <= int(tokens) < MOST_TOKENS:
            raise InputError(f"prefill_tokens must be from 0 to {MOST_TOKENS - 1}, got {tokens!r}.")

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
