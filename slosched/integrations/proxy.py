"""The proxy as an ASGI application: receives, has the router choose, relays, survives what can go wrong."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from slosched.core.engine import find_engine
from slosched.core.errors import MissingExtraError
from slosched.integrations.asgi import HungUp, lost_body, no_websockets, read_body, respond
from slosched.integrations.asking import PATHS, read_asked
from slosched.integrations.dispatch import NOBODY, REFUSED, Dispatcher, Held, warm_up
from slosched.integrations.proxy_metrics import RouterMetrics
from slosched.integrations.proxy_settings import RouterSettings
from slosched.integrations.relay import Broken, Relay, error_body
from slosched.integrations.upstream import LOOKS_FROM, Poller, Upstream
from slosched.integrations.vllm.config import load_config
from slosched.routers import router as router_by_name

if TYPE_CHECKING:
    import aiohttp
    import uvicorn

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ATTEMPTS = 2
"""Engines that a request may reach; one that took no connection was not reached."""

AT_ONCE = 16
"""Requests that are read and routed in one turn of the event loop, some milliseconds of work: where many come
together, connections to engines are still looked after before they time out."""

MOST_FILES = 65_536
"""Open files that the process asks for: two for each request that is being answered."""

ENGINE_IDLE_S = 3.0
"""Seconds that an idle connection to an engine is kept: uvicorn, and so vLLM, closes them after five, and a
request must not be on its way then."""

CLIENT_IDLE_S = 75
"""Seconds that a client's idle connection is kept: longer than common clients keep theirs."""

LAST_WORD_S, LAST_LOOKS = 1.0, 20
"""Longest time at the end until all who are cut off have been told, and how often that is looked at."""

ANSWER_HEADER_BYTES = 64 * 1024
"""Longest header of an engine's answer."""


class RouterApp:
    """Reverse proxy for OpenAI-compatible servers.

    Requests to the paths of `slosched.integrations.asking.PATHS` are routed; ``/health`` and
    ``/metrics`` are the proxy's own; everything else goes to the first engine that is up.

    Parameters
    ----------
    settings
        Engines, router and limits. Classes and bounds of SLOs come from the file that ``SLOSCHED_CONFIG``
        names, as in vLLM.
    """

    def __init__(self, settings: RouterSettings) -> None:
        if find_spec("aiohttp") is None:
            raise MissingExtraError("aiohttp", "router")
        self.settings, self.config, self.metrics = settings, load_config(), RouterMetrics()
        ranks = range(settings.data_parallel_size) if settings.data_parallel_size > 1 else [None]
        self.upstreams = [Upstream(url.rstrip("/"), rank) for url in settings.engines for rank in ranks]
        self.dispatcher = Dispatcher(
            find_engine(settings.profile),
            [upstream.name for upstream in self.upstreams],
            router_by_name(settings.router, seed=settings.seed),
            time.monotonic,
            most_tenants=self.config.bounds.max_tenants,
        )
        self._mark = uuid4().hex
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, or the server's start and end."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await no_websockets(scope, receive, send)

    async def start(self) -> None:
        """Connect, look at every engine once, and keep looking."""
        import aiohttp

        # Compiled code is loaded before the first request comes, not while it waits.
        await asyncio.to_thread(warm_up, self.settings.router, self.dispatcher.engine)
        connect_s = self.settings.connect_s  # names that do not resolve count, too
        timeout = aiohttp.ClientTimeout(
            total=None, connect=connect_s, sock_connect=connect_s, sock_read=self.settings.silence_s
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=ENGINE_IDLE_S),
            timeout=timeout, auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),  # one client's cookies are nobody else's
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            max_line_size=ANSWER_HEADER_BYTES, max_field_size=ANSWER_HEADER_BYTES,
        )  # fmt: skip
        poller = Poller(
            self._session, self.upstreams, self.settings.statistics_s, time.monotonic, self._looked,
            self._mark,
        )  # fmt: skip
        await poller.look()
        self.dispatcher.router.live()
        self._tasks = [asyncio.create_task(poller.run())]
        if not math.isinf(self.dispatcher.router.tick_s):
            self._tasks.append(asyncio.create_task(self._ticks()))

    async def stop(self) -> None:
        """Stop looking, let those who were cut off be told, and close all connections."""
        for _ in range(LAST_LOOKS):
            if not self.dispatcher.held:
                break
            await asyncio.sleep(LAST_WORD_S / LAST_LOOKS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            self.dispatcher.router.close()
        finally:
            if self._session is not None:
                await self._session.close()

    def _looked(self, i: int, status: Any) -> None:
        upstream = self.upstreams[i]
        self.dispatcher.said(i, upstream.up, status)
        self.metrics.up.labels(upstream.name).set(upstream.up)
        self.metrics.outstanding.labels(upstream.name).set(len(self.dispatcher.books.engines[i].rows))
        for seconds in self.dispatcher.decisions_s:
            self.metrics.decision.observe(seconds)
        self.dispatcher.decisions_s.clear()
        self.metrics.overruled.inc(self.dispatcher.overruled)
        self.dispatcher.overruled = 0

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(self.dispatcher.router.tick_s)
            self.dispatcher.ask()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if (LOOKS_FROM.encode(), self._mark.encode()) in scope["headers"]:
            await respond(send, 508, error_body("the router is named as its own server", 508))
        elif path == "/health":
            up = self.dispatcher.open > 0
            await respond(send, 200 if up else 503, b"" if up else error_body("no engine is up", 503))
        elif path == "/metrics":
            await respond(send, 200, self.metrics.page(), [(b"content-type", b"text/plain; version=0.0.4")])
        elif sum(len(n) + len(v) for n, v in scope["headers"]) > self.settings.max_header_bytes:
            text = f"headers must be at most {self.settings.max_header_bytes} bytes"
            self.metrics.requests.labels("headers too large").inc()
            await respond(send, 431, error_body(text, 431))
        else:
            await self._proxied(scope, receive, send)

    async def _proxied(self, scope: Message, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith("/"):  # "OPTIONS *", or another server's address
            self.metrics.requests.labels("malformed").inc()
            await respond(send, 400, error_body("the request's target must begin with /", 400))
            return
        try:
            body = await read_body(scope["headers"], receive, self.settings.max_body_bytes)
        except HungUp:  # no engine hears of half a request
            self.metrics.requests.labels("hung up").inc()
            return
        if body is None:
            self.metrics.requests.labels("too large").inc()
            text = f"the body must be at most {self.settings.max_body_bytes} bytes"
            await respond(send, 413, error_body(text, 413), [(b"connection", b"close")])
            return
        if not body and lost_body(scope["headers"]):  # the server takes what follows for another protocol
            self.metrics.requests.labels("malformed").inc()
            text = "the body was lost: send no Upgrade header with it, only HTTP/1.1 is spoken here"
            await respond(send, 400, error_body(text, 400), [(b"connection", b"close")])
            return
        assert self._session is not None
        relay = Relay(self._session, scope, receive, send)
        outcome = "failed"
        try:
            if scope["path"] in PATHS and scope["method"] == "POST":
                outcome = await self._routed(relay, scope, body)
            else:
                outcome = await self._anywhere(relay, body)
        except HungUp:
            outcome = "hung up"
        except asyncio.CancelledError:  # the router is being stopped, and the answer ends here
            outcome = "stopped"
            await self._stopped(relay)
        except Exception as error:
            # Neither the request nor its headers: keys stand there.
            logger.exception("slosched router: %s %s failed", scope["method"], scope["path"])
            if not relay.begun:
                await relay.fail(500, f"the router failed: {type(error).__name__}")
        finally:
            relay.close()
            self.metrics.requests.labels(outcome).inc()

    async def _stopped(self, relay: Relay) -> None:
        """Say so to a client whose answer is cut off by the router's own end."""
        if relay.begun:
            await relay.cut_off("the router is stopping")
        else:
            await relay.fail(503, "the router is stopping", retry_after=1.0)

    async def _anywhere(self, relay: Relay, body: bytes) -> str:
        """Pass on what needs no choice to the first engine that is up."""
        reached, last = 0, None
        for engine, upstream in [(i, u) for i, u in enumerate(self.upstreams) if u.up]:
            try:
                await relay.run(upstream, body, lambda count: None)
            except Broken as broken:
                self._down(engine, broken)
                if broken.begun:
                    return "cut off"
                reached, last = reached + (not broken.unreached), broken
                if reached >= ATTEMPTS:
                    break
            else:
                return "passed on"
        return await self._failed(relay, last)

    async def _failed(self, relay: Relay, broken: Broken | None) -> str:
        """Answer for engines that did not."""
        if broken is None or broken.unreached:
            await relay.fail(503, "no engine is up", retry_after=self.settings.statistics_s * 4)
            return "no engine"
        status = 503 if broken.status == 503 else 502
        text = f"the engine did not answer: {broken}"
        await relay.fail(status, text, retry_after=broken.retry_after)
        return "engine failed"

    async def _routed(self, relay: Relay, scope: Message, body: bytes) -> str:
        """Have the router choose, relay, and go elsewhere if the engine is gone before it said anything."""
        async with self._turns:
            asked = read_asked(scope["headers"], body, self.config, pass_slo=self.settings.pass_slo)
            await asyncio.sleep(0)
        held = self.dispatcher.add(asked)
        whole = False
        try:
            reached = 0
            while True:
                placed = asyncio.ensure_future(self.dispatcher.place(held, self.settings.hold_s))
                await relay.unless_hung_up(placed)
                engine = placed.result()
                if engine in (REFUSED, NOBODY):
                    return await self._no(relay, engine)
                upstream = self.upstreams[engine]
                self.metrics.sent.labels(upstream.name).inc()
                try:
                    passed = partial(self.dispatcher.tokens, held)
                    await relay.run(upstream, asked.body, passed, streamed=asked.streamed)
                except Broken as broken:
                    self._down(engine, broken)
                    reached += not broken.unreached
                    if broken.begun:
                        return "cut off"
                    if reached >= ATTEMPTS:
                        return await self._failed(relay, broken)
                    self.metrics.retried.labels("refused" if broken.unreached else "broken").inc()
                    self.dispatcher.back(held, engine)
                    continue
                whole = relay.status == 200
                self._count(held, whole)
                return "answered" if whole else f"status {relay.status}"
        finally:
            self.dispatcher.left(held, whole=whole, tokens=relay.usage_tokens)

    async def _no(self, relay: Relay, reason: int) -> str:
        if reason == NOBODY:
            return await self._failed(relay, None)
        wait_s = self.dispatcher.wait_s()
        text = f"refused: the limits cannot be kept; the wait is about {wait_s:.1f} s"
        await relay.fail(self.settings.refuse_status, text, retry_after=wait_s, wait_s=wait_s)
        return "refused"

    def _down(self, engine: int, broken: Broken) -> None:
        """An engine that refuses connections is down until a look shows otherwise."""
        if broken.refused:
            self.upstreams[engine].up = False
            self._looked(engine, None)

    def _count(self, held: Held, whole: bool) -> None:
        t, row, now_s = self.dispatcher.table, held.row, self.dispatcher.clock()
        first_s = float(t.first_token_s[row])
        if math.isnan(first_s):
            return
        self.metrics.first_token.observe(first_s - float(t.arrival_s[row]))
        if whole and not held.asked.claim.slo.best_effort:
            if held.asked.claim.slo.ttfat_s is not None:  # the proxy reads no answers: engines count these
                return
            tokens = max(1, int(t.generated_tokens[row]) - 1)
            met = held.asked.claim.slo.met(
                ttft_s=first_s - float(t.arrival_s[row]),
                tpot_s=(now_s - first_s) / tokens,
                e2e_s=now_s - float(t.arrival_s[row]),
            )
            self.metrics.slo.labels(held.asked.claim.slo_class, str(met).lower()).inc()


def allow_files(most: int) -> None:
    """Raise this process's limit on open files to `most`, or as far as the system lets it."""
    if find_spec("resource") is None:  # not on Windows
        return
    import resource

    now, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if highest == resource.RLIM_INFINITY else min(most, highest)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, highest))


def server_config(app: RouterApp, *, host: str, port: int) -> uvicorn.Config:
    """How the proxy listens."""
    import uvicorn

    return uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, lifespan="on",
        server_header=False, date_header=False,  # answers have their engine's own
        timeout_keep_alive=CLIENT_IDLE_S, timeout_graceful_shutdown=math.ceil(app.settings.drain_s),
        h11_max_incomplete_event_size=4 * app.settings.max_header_bytes,
    )  # fmt: skip


def serve(settings: RouterSettings, *, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Run the proxy until SIGTERM or SIGINT; requests that are being answered have `drain_s` seconds then.

    Raises
    ------
    MissingExtraError
        If aiohttp, uvicorn or prometheus-client is not installed.
    SystemExit
        If it cannot listen, or the router's class cannot start.
    """
    if find_spec("uvicorn") is None:
        raise MissingExtraError("uvicorn", "router")
    import uvicorn

    allow_files(MOST_FILES)
    server = uvicorn.Server(server_config(RouterApp(settings), host=host, port=port))
    server.run()
    if not server.started:
        raise SystemExit(1)  # uvicorn has said why
