"""slosched in Ray Serve: ``request_router_class="slosched.integrations.ray:SloRouter"``.

A request router that lets slosched choose the replica. The module can be read without Ray.
"""

from __future__ import annotations

import json
import logging
import time
import weakref
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from slosched.core.engine import find_engine
from slosched.integrations.asking import Asked, read_asked
from slosched.integrations.dispatch import Dispatcher, Held, warm_up
from slosched.integrations.vllm.config import Config, load_config
from slosched.routers import router as router_by_name
from slosched.routers.base import EngineStatus

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, RunningReplica

# The class is of use with Ray only.
Base: Any = object
if find_spec("ray") is not None:
    from ray.serve.request_router import RequestRouter

    Base = RequestRouter

logger = logging.getLogger(__name__)


class SloRouter(Base):  # type: ignore[misc]
    """Sends each request to the replica where most promises are kept.

    SLOs come as the request's ``vllm_xargs`` or as headers, as in `slosched.integrations.proxy`; in Serve LLM
    both arrive. Ray asks once per request and again after each back-off; a replica that is full is passed
    over for the one with the fewest requests. A request that the router refuses is sent all the same: Ray
    has no answer for it, the replica's scheduler does.

    Set in ``request_router_kwargs``, all optional:

    router
        Name of the router, see `slosched.routers`.
    profile
        Limits and step times of a replica: a preset's name or a JSON file.
    config
        File with classes and bounds of SLOs; by default the one that ``SLOSCHED_CONFIG`` names.
    seed
        Seed of a router that draws random numbers.

    Replicas may publish ``waiting``, ``running``, ``kv_used`` and ``prompt_tokens`` by Serve's
    ``record_routing_stats``; the router does without, from its own log of what it sent.
    """

    _closing: weakref.finalize[[], SloRouter] | None = None

    def initialize_state(
        self,
        router: str = "slosched",
        profile: str = "h100-llama-3.1-8b",
        config: str | None = None,
        seed: int = 0,
    ) -> None:
        """Called by Ray with ``request_router_kwargs``."""
        self._config = load_config(config)
        engine, chosen = find_engine(profile), router_by_name(router, seed=seed)
        warm_up(router, engine)  # compiled code is loaded now, not while requests wait
        if self._closing is not None:  # Ray may configure a router anew
            self._closing()
        chosen.live()
        # Ray tells nobody that a router is no longer used: it is closed when it is collected.
        self._closing = weakref.finalize(self, chosen.close)
        most_tenants = self._config.bounds.max_tenants
        self._dispatcher = Dispatcher(engine, [], chosen, time.monotonic, most_tenants=most_tenants)
        self._index: dict[Any, int] = {}  # replica -> engine
        self._held: dict[str, tuple[Held, PendingRequest | None]] = {}  # request -> its row
        self._said: dict[Any, tuple[Any, float]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas for one request: our choice, then all others by their load."""
        if not candidate_replicas:
            return []
        by_engine = self._follow(candidate_replicas)
        books = self._dispatcher.books
        rest = sorted(by_engine, key=lambda i: (len(books.engines[i].rows), i))
        if pending_request is None:
            return [[by_engine[i]] for i in rest]
        self._forget_cancelled()
        request_id = pending_request.metadata.internal_request_id
        try:
            chosen = self._choose(pending_request)
        except Exception:  # Ray would ask again for ever
            logger.exception("slosched: the router failed; the replica with the fewest requests is taken")
            chosen = rest[0]
        if chosen is None:
            return []  # held: Ray asks again after its back-off
        if chosen not in by_engine:
            chosen = rest[0]
        # Many are asked about before Ray says that any was routed: each counts from here on.
        held = self._held.get(request_id)
        if held is not None:
            books.sent(held[0].row, chosen)
        return [[by_engine[chosen]], *([by_engine[i]] for i in rest if i != chosen)]

    def _choose(self, pending_request: PendingRequest) -> int | None:
        """Index of the engine for a request, -1 if the router refuses it, None if it holds it."""
        books, router = self._dispatcher.books, self._dispatcher.router
        request_id = pending_request.metadata.internal_request_id
        if request_id not in self._held:
            asked = asked_of(pending_request, self._config)
            self._held[request_id] = (self._dispatcher.add(asked), pending_request)
        row = self._held[request_id][0].row
        if row in books.place:  # asked again: its replica was full
            books.back(row)
        snapshot = books.snapshot(time.monotonic(), rows=[row])
        routing = router.route(snapshot)
        routing.check(snapshot)
        return -1 if row in routing.refuse else dict(routing.send).get(row)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: Any, result: Any) -> None:
        """A replica has taken the request."""
        held = self._held.get(pending_request.metadata.internal_request_id)
        if held is not None and replica_id in self._index:
            self._held[pending_request.metadata.internal_request_id] = (held[0], None)
            books, engine = self._dispatcher.books, self._index[replica_id]
            if books.place.get(held[0].row) != engine:
                books.sent(held[0].row, engine)

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """A replica has answered, or failed."""
        held = self._held.pop(internal_request_id, None)
        if held is not None:
            self._dispatcher.left(held[0], whole=False)

    def on_replica_actor_died(self, replica_id: Any) -> None:
        """A replica is gone: it gets no more, and its cache is lost."""
        super().on_replica_actor_died(replica_id)
        if replica_id in self._index:
            self._dispatcher.books.died(self._index[replica_id])

    def _follow(self, replicas: list[RunningReplica]) -> dict[int, RunningReplica]:
        """Bring the books up to the replicas that there are; returns them by index."""
        books, found = self._dispatcher.books, {}
        for replica in sorted(replicas, key=lambda r: str(r.replica_id)):
            if replica.replica_id not in self._index:
                self._index[replica.replica_id] = books.join(self._dispatcher.engine)
            index = self._index[replica.replica_id]
            found[index] = replica
            self._status(index, replica)
        for index in self._index.values():
            if books.engines[index].accepts != (index in found):
                books.accept(index, index in found)
        return found

    def _status(self, index: int, replica: RunningReplica) -> None:
        stats = getattr(replica, "routing_stats", None)
        if not isinstance(stats, Mapping) or not stats or self._said.get(index, (None,))[0] == stats:
            return
        self._said[index] = (dict(stats), time.monotonic())

        def number(name: str, default: float) -> float:
            value = stats.get(name, default)
            return float(value) if isinstance(value, int | float) else default

        self._dispatcher.books.said(
            index,
            EngineStatus(
                at_s=time.monotonic(),
                waiting=int(number("waiting", 0)),
                running=int(number("running", 0)),
                kv_used=min(1.0, max(0.0, number("kv_used", 0.0))),
                prompt_tokens=int(number("prompt_tokens", -1)),
            ),
        )

    def _forget_cancelled(self) -> None:
        """Requests that were cancelled before any replica had them."""
        for request_id, (held, pending) in list(self._held.items()):
            if pending is not None and pending.future.cancelled():
                del self._held[request_id]
                self._dispatcher.left(held, whole=False)


def asked_of(pending: PendingRequest, config: Config) -> Asked:
    """What a request asks for, from its first argument and whatever carries headers among the others."""
    headers: list[tuple[bytes, bytes]] = []
    body = b""
    for value in (*pending.args, *pending.kwargs.values()):
        scope = getattr(value, "asgi_scope", None)
        given = scope.get("headers", []) if isinstance(scope, Mapping) else getattr(value, "headers", None)
        if isinstance(given, Mapping):
            headers += [(str(n).lower().encode(), str(v).encode()) for n, v in given.items()]
        elif isinstance(given, list):
            headers += [(n, v) for n, v in given if isinstance(n, bytes) and isinstance(v, bytes)]
        if not body:
            body = _json(value)
    return read_asked(headers, body, config, pass_slo=False)


def _json(value: object) -> bytes:
    """A request's body as JSON: a mapping, a pydantic model, or nothing."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_none=True)
    if not isinstance(value, Mapping):
        return b""
    try:
        return json.dumps(value, default=str).encode()
    except (TypeError, ValueError):
        return b""
