"""The interface of every router: what it may know, and what it decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine
from slosched.core.errors import InputError
from slosched.core.table import RequestTable


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What an engine last said about itself; plain vLLM's ``/metrics`` has the first four.

    Parameters
    ----------
    at_s
        When that was so, on the router's clock.
    waiting, running
        Requests in its queue and in its batch.
    kv_used
        Share of its KV cache in use, from 0 to 1.
    prompt_tokens
        Prompt tokens still to compute, of waiting and running requests; -1 where it does not say.
    """

    at_s: float
    waiting: int
    running: int
    kv_used: float
    prompt_tokens: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """One engine as the router knows it.

    Parameters
    ----------
    name
        Name in reports.
    engine
        What it can hold, and how long its steps take.
    rows
        Rows of the requests sent there whose end has not been seen, in the order they were sent.
    status
        What it last said, or None if it has said nothing yet.
    accepts
        Whether it takes requests: it is up and not draining.
    """

    name: str
    engine: Engine
    rows: Ints
    status: EngineStatus | None = None
    accepts: bool = True


def _no_hits(row: int) -> Ints:
    raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FleetSnapshot:
    """Several engines at one instant: all that a router may see.

    Parameters
    ----------
    now_s
        The router's clock.
    table
        Columns of all requests that the router holds or has sent. `first_token_s` is what the router has
        seen pass; `generated_tokens` and `computed_tokens` are as old as the engines' statistics.
    engines
        The engines, always in the same order. One that has failed stays in its place and accepts nothing.
    pending
        Rows the router holds, in ascending arrival: the newcomer, and those it kept.
    hits
        Prompt tokens of a row that each engine's prefix cache should hold by the router's own log, shape
        (engines,).
    """

    now_s: float
    table: RequestTable
    engines: tuple[EngineView, ...]
    pending: Ints
    hits: Callable[[int], Ints] = field(default=_no_hits, repr=False)

    @property
    def open(self) -> list[int]:
        """Indices of the engines that accept requests, ascending; never empty when a router is asked."""
        return [i for i, view in enumerate(self.engines) if view.accepts]

    def outstanding(self) -> Ints:
        """Requests at each engine whose end has not been seen, shape (engines,)."""
        return np.array([len(view.rows) for view in self.engines], dtype=np.int64)

    def tokens_ahead(self) -> Floats:
        """Expected tokens still to be computed at each engine, prompts and answers, shape (engines,)."""
        t = self.table
        total = np.zeros(len(self.engines))
        for i, view in enumerate(self.engines):
            rows = view.rows
            prompt = np.where(np.isnan(t.first_token_s[rows]), t.prompt_tokens[rows], 0)
            answer = np.maximum(1.0, t.atoms[rows].mean(axis=1) - t.generated_tokens[rows])
            total[i] = prompt.sum() + answer.sum()
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """A router's decision.

    Parameters
    ----------
    send
        Pairs (row, engine). Pending rows that are missing here and in `refuse` are held. A row that waits at
        another engine may be named, too: it is taken back and sent there if nothing of it has been computed.
    refuse
        Pending rows that get no answer.
    """

    send: tuple[tuple[int, int], ...] = ()
    refuse: tuple[int, ...] = ()

    def check(self, fleet: FleetSnapshot) -> None:
        """Raise `InputError` unless every row is one the router may decide about, and named once."""
        pending = set(fleet.pending.tolist())
        others = {row for row, _ in self.send} - pending
        sent = {int(row) for view in fleet.engines for row in view.rows} if others else set()
        named = [row for row, _ in self.send] + list(self.refuse)
        if len(set(named)) != len(named):
            raise InputError(f"send and refuse must name each row once, got {named}.")
        for row, engine in self.send:
            if row in others and row not in sent:
                raise InputError(f"send must name pending rows or rows at an engine, got {row}.")
            if not (0 <= engine < len(fleet.engines) and fleet.engines[engine].accepts):
                raise InputError(f"send must name engines that accept requests, got {engine}.")
        for row in self.refuse:
            if row not in pending:
                raise InputError(f"refuse must name pending rows, got {row}.")


class Router(ABC):
    """Decides which engine a request goes to; deterministic given its history of snapshots.

    A router object serves one fleet for one run. It is asked when a request arrives or comes back from an
    engine that failed, and, if it holds or moves requests, every `tick_s` seconds.

    Attributes
    ----------
    name
        Name on the command line and in reports.
    holds
        Whether it may keep requests, or decide about several at once. One that does not is asked about one
        request at a time.
    tick_s
        Seconds from one unasked look to the next; infinity for none.
    """

    name: ClassVar[str]
    holds: bool = False
    tick_s: float = np.inf

    @abstractmethod
    def route(self, fleet: FleetSnapshot) -> Routing:
        """Decide where the pending requests go."""

    def live(self) -> None:  # noqa: B027
        """Called once by who serves real clients: slow thoughts may go to a thread from now on."""

    def close(self) -> None:  # noqa: B027
        """End what `live` has begun."""


class PickRouter(Router):
    """Sends every request on at once, to the engine of its `pick`."""

    @abstractmethod
    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """Index of the engine for the request in `row`, one of `fleet.open`."""

    def route(self, fleet: FleetSnapshot) -> Routing:
        """Pick an engine for the newcomer."""
        row = int(fleet.pending[0])
        return Routing(send=((row, self.pick(row, fleet)),))
