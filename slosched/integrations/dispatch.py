"""The proxy's books and its router: who is where, who waits for a decision."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from slosched.core.engine import Engine
from slosched.core.errors import InputError
from slosched.core.table import RequestTable
from slosched.core.thinking import aim_at_answers
from slosched.integrations.asking import BLOCK_CHARACTERS, CHARACTERS_PER_TOKEN, Asked, read_asked
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.slo_fields import Tenants
from slosched.predictors.history import ClassHistory
from slosched.routers import router as router_by_name
from slosched.routers.base import EngineStatus, FleetSnapshot, Router, Routing
from slosched.routers.books import FleetBooks

logger = logging.getLogger(__name__)

REFUSED, NOBODY = -1, -2
"""In place of an engine: the router refuses; no engine takes requests."""

LONG_QUEUE, ENOUGH_SEEN = 300, 24
"""Requests of the trial before the first real one: a queue so long that routers look at part of it only, and
decisions after which they have seen enough to compare settings."""


MOST_TENANTS = 1000
"""Tenants that are told apart at once, where nothing else is said: as in vLLM's adapter."""

SAY_S = 60.0
"""Seconds from one line in the log about a router that fails to the next."""


@dataclass(slots=True)
class Held:
    """A request between its arrival and its end.

    `tried` are engines that did not answer it; `tenant` is the name that it counts under.
    """

    row: int
    asked: Asked
    tenant: str
    place: asyncio.Future[int] | None = field(default=None)
    tried: set[int] = field(default_factory=set)


class Dispatcher:
    """Keeps the router's books and asks the router.

    Parameters
    ----------
    engine
        Limits and step times, the same for all engines.
    names
        Names of the engines.
    router
        A fresh router.
    clock
        Seconds that never go back.
    most_tenants
        Tenants that are told apart at once.

    Attributes
    ----------
    overruled
        Decisions of the router that failed or were unlawful; the fewest requests decided. Whoever publishes
        it sets it back.
    """

    def __init__(
        self, engine: Engine, names: list[str], router: Router, clock: Callable[[], float],
        *, most_tenants: int = MOST_TENANTS,
    ) -> None:  # fmt: skip
        self.engine, self.router, self.clock = engine, router, clock
        self.table = RequestTable()
        self.tenants = Tenants(self.table, most_tenants)
        self.overruled, self._said_s = 0, -math.inf
        self.history = ClassHistory()
        block = int(BLOCK_CHARACTERS / CHARACTERS_PER_TOKEN)
        self.books = FleetBooks([engine] * len(names), self.table, block_tokens=block)
        for i in range(len(names)):
            self.books.accept(i, False)
        self.held: dict[int, Held] = {}
        self.decisions_s: list[float] = []
        self._count = 0

    @property
    def open(self) -> int:
        """How many engines take requests."""
        return sum(view.accepts for view in self.books.engines)

    def said(self, engine: int, up: bool, status: EngineStatus | None) -> None:
        """What a look at an engine has shown."""
        if self.books.engines[engine].accepts != up:
            self.books.accept(engine, up)
            if not up:
                self.books.prefixes.lost(engine)
        if status is not None:
            self.books.said(engine, status)
        if up:
            self.ask()

    def add(self, asked: Asked) -> Held:
        """A newcomer, pending."""
        self._count += 1
        now_s = self.clock()
        request = asked.request(f"r{self._count}", now_s, self.history)
        self.tenants.forget(now_s)
        tenant = self.tenants.joins(request.tenant)
        row = self.table.add(replace(request, tenant=tenant))
        step_s = float(self.books.engines[0].engine.step_time.predict(sequences=1))
        aim_at_answers(self.table, np.array([row]), now_s, step_s)
        if len(asked.ids):
            self.table.prefix_index[row] = asked.ids[0]
        self.books.arrived(row, asked.ids)
        held = Held(row=row, asked=asked, tenant=tenant)
        self.held[row] = held
        return held

    async def place(self, held: Held, patience_s: float) -> int:
        """Index of the engine of a pending request; `REFUSED`, or `NOBODY` if none takes requests."""
        held.place = asyncio.get_running_loop().create_future()
        if self.open == 0:
            return NOBODY
        self.ask()
        try:
            return await asyncio.wait_for(asyncio.shield(held.place), patience_s)
        except TimeoutError:
            return REFUSED if self.open else NOBODY

    def ask(self) -> None:
        """Ask the router about everybody who is pending."""
        if self.open == 0:
            return
        now_s = self.clock()
        waits = [row for row in self.books.pending.all.tolist() if self._undecided(row)]
        again = [[row] for row in waits if self.held[row].tried]
        first = [row for row in waits if not self.held[row].tried]
        for rows in again + ([first] if self.router.holds and first else [[row] for row in first]):
            snapshot = self._without_tried(self.books.snapshot(now_s, rows=rows), rows)
            routing = self._decided(snapshot)
            for row in routing.refuse:
                self._settle(row, REFUSED)
            for row, engine in routing.send:
                if self._undecided(row):
                    self._settle(row, engine)

    def _without_tried(self, fleet: FleetSnapshot, rows: Sequence[int]) -> FleetSnapshot:
        """What a router sees of a request that an engine did not answer: others, if there are any."""
        tried = self.held[rows[0]].tried
        if not tried.isdisjoint(fleet.open) and not tried.issuperset(fleet.open):
            views = [
                replace(view, accepts=view.accepts and i not in tried) for i, view in enumerate(fleet.engines)
            ]
            return replace(fleet, engines=tuple(views))
        return fleet

    def _decided(self, fleet: FleetSnapshot) -> Routing:
        """What the router says; a router's mistake costs its choice, not the request."""
        begun = self.clock()
        try:
            routing = self.router.route(fleet)
            routing.check(fleet)
            if not self.router.holds and not routing.send and not routing.refuse:
                raise InputError("a router that does not hold must send or refuse.")
        except Exception as error:  # routers may be anybody's
            self.overruled += 1
            if self.clock() - self._said_s > SAY_S:
                self._said_s = self.clock()
                logger.exception("slosched router: %s failed: %s", self.router.name, error)
            routing = fewest_requests(fleet)
        self.decisions_s.append(self.clock() - begun)
        return routing

    def _undecided(self, row: int) -> bool:
        held = self.held.get(row)
        return held is not None and held.place is not None and not held.place.done()

    def _settle(self, row: int, engine: int) -> None:
        place = self.held[row].place
        if place is None or place.done():
            return
        if engine != REFUSED:
            self.books.sent(row, engine)
        place.set_result(engine)

    def tokens(self, held: Held, count: int) -> None:
        """`count` more tokens have passed to the client."""
        if not count:
            return
        if math.isnan(self.table.first_token_s[held.row]):
            self.table.first_token_s[held.row] = self.clock()
        self.table.generated_tokens[held.row] += count

    def back(self, held: Held, engine: int) -> None:
        """The engine has not answered: the request is pending again, and goes elsewhere if it can."""
        held.tried.add(engine)
        self.table.first_token_s[held.row] = math.nan
        self.table.generated_tokens[held.row] = 0
        self.books.back(held.row)

    def left(self, held: Held, *, whole: bool, tokens: int | None = None) -> None:
        """A request has ended; its length teaches the forecasts if the answer is `whole`."""
        count = int(self.table.generated_tokens[held.row]) if tokens is None else tokens
        if whole and count > 0:
            claim, asked = held.asked.claim, held.asked
            cut = asked.max_tokens is not None and count >= asked.max_tokens
            self.history.observe(claim.slo_class, count, prompt_tokens=asked.prompt_tokens, cut=cut)
        self.books.ended(held.row)
        del self.held[held.row]
        self.table.release(held.row)
        self.tenants.leaves(held.tenant, self.clock())

    def wait_s(self) -> float:
        """Seconds until an engine has computed what is there now, the least over engines: for Retry-After."""
        t, s = self.table, self.engine.step_time
        waits = []
        for view in self.books.engines:
            if view.accepts:
                rows = view.rows
                todo = float(t.prompt_tokens[rows][t.generated_tokens[rows] == 0].sum())
                waits.append(todo * (s.prefill_token_s + s.knee_token_s) + s.base_s * (1 + len(rows)))
        return min(waits, default=5.0)


def fewest_requests(fleet: FleetSnapshot) -> Routing:
    """Every pending request to the engine that has the fewest by then."""
    load = {i: len(fleet.engines[i].rows) for i in fleet.open}
    send = []
    for row in fleet.pending.tolist():
        least = min(load, key=lambda i: (load[i], i))
        load[least] += 1
        send.append((row, least))
    return Routing(send=tuple(send))


def warm_up(router: str, engine: Engine) -> None:
    """Have a router of this name, thrown away afterwards, decide about two engines, one with a long queue.

    It is asked until it has seen enough to do all that it may come to do while clients wait.
    """
    trial = Dispatcher(engine, ["a", "b"], router_by_name(router), time.monotonic)
    for i in range(2):
        trial.books.accept(i, True)
    paces, body = (b"30", b"90"), b'{"prompt": "warm up"}'
    kinds = [read_asked([(b"x-slo-tpot-ms", pace)], body, Config()) for pace in paces]
    for i in range(LONG_QUEUE + ENOUGH_SEEN):
        row = trial.add(kinds[i % 2]).row
        if i >= LONG_QUEUE:
            trial.router.route(trial.books.snapshot(trial.clock(), rows=[row]))
        trial.books.sent(row, 0)
