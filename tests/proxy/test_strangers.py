"""The proxy before clients and engines that keep to no rule: each gets its answer, nobody else suffers."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import ClassVar

import aiohttp
import pytest

from slosched.integrations.proxy_settings import RouterSettings
from slosched.routers import FleetSnapshot, Router, Routing

from .conftest import Bench, bench, free_port
from .test_proxy import WHOLE, at_rest


async def rests(b: Bench) -> bool:
    """Wait until the proxy's books are empty; False if they are not within three seconds."""
    for _ in range(60):
        if at_rest(b):
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize("status", [400, 404, 422, 429])
def test_what_the_engine_says_about_a_request_is_passed_on(status: int) -> None:
    """An unknown model, say: the engine's words, asked once; the engine is not held to be down."""

    async def run() -> None:
        async with bench(str(status), "stream", router="round-robin") as b:
            got, body, _ = await b.complete(model="nobody-has-this")
            assert got == status
            assert json.loads(body) == {"error": {"message": "engine"}}
            assert [len(engine.bodies) for engine in b.engines] == [1, 0]
            assert await b.metric("slosched_router_engine_up") == 2
            assert await b.metric(f'slosched_router_requests_total{{outcome="status {status}"}}') == 1
            assert at_rest(b)

    asyncio.run(run())


@pytest.mark.parametrize("how", ["502", "503", "504"])
def test_statuses_of_absence_send_a_request_elsewhere(how: str) -> None:
    """Once. Where nobody else is, the answer is 502, which says what the engine said.

    Engines that say 503 are there but cannot answer: the client hears 503, and when to come back.
    """

    async def run() -> None:
        async with bench(how, "stream", router="round-robin") as b:
            assert (await b.complete())[:2] == (200, WHOLE)
        async with bench(how, how, how, router="round-robin") as b:
            for engine in b.engines:
                engine.retry_after = "17"
            status, body, headers = await b.complete()
            assert status == (503 if how == "503" else 502)
            assert headers["retry-after"] == "17"
            assert how in json.loads(body)["error"]["message"]
            assert sum(len(engine.bodies) for engine in b.engines) == 2
            assert at_rest(b)

    asyncio.run(run())


def test_a_silent_engine_is_left() -> None:
    """After `silence_s` another engine answers, the first connection is closed, and one answer comes."""

    async def run() -> None:
        async with bench("silent", "stream", router="round-robin", silence_s=0.3) as b:
            assert (await b.complete())[:2] == (200, WHOLE)
            assert [len(engine.bodies) for engine in b.engines] == [1, 1]
            assert at_rest(b)

    asyncio.run(run())


async def _babble(port: int, words: bytes) -> asyncio.Server:
    """A server that says the same to everybody, whatever they say."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(words)
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port)


@pytest.mark.parametrize(
    "words",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\ncontent-type: application/json\r\n\r\n{",
        b"",
    ],
)
def test_a_server_that_speaks_no_http(words: bytes) -> None:
    """Nonsense in place of an answer is an engine that failed: another one answers."""

    async def run() -> None:
        port = free_port()
        server = await _babble(port, words)
        async with bench("stream", router="least-requests") as good:
            urls = (f"http://127.0.0.1:{port}", good.engines[0].url)
            async with bench(engines=urls, router="round-robin") as b:
                b.app.upstreams[0].up = True  # it would be down by its looks: the worst case
                b.app.dispatcher.books.accept(0, True)
                assert (await b.complete())[:2] == (200, WHOLE)
                assert await rests(b)
        server.close()

    asyncio.run(run())


def test_events_cut_anywhere_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that end within an event change neither the bytes nor the count of tokens."""

    async def run() -> None:
        async with bench("pieces") as b:
            learnt: list[int] = []
            history = b.app.dispatcher.history
            monkeypatch.setattr(history, "observe", lambda name, tokens, **more: learnt.append(tokens))
            assert (await b.complete())[:2] == (200, WHOLE)
            assert await rests(b)
            assert learnt == [10]

    asyncio.run(run())


def test_a_client_that_leaves_within_its_body() -> None:
    """No engine hears of a request of which half has come."""

    async def run() -> None:
        async with bench("stream") as b:
            port = int(b.url.rsplit(":", 1)[1])
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"
            writer.write(head + b'{"prompt": "half')
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.close()
            await asyncio.sleep(0.3)
            assert b.engines[0].bodies == []
            assert await b.metric('slosched_router_requests_total{outcome="hung up"}') == 1
            assert at_rest(b)
            assert (await b.complete())[:2] == (200, WHOLE)

    asyncio.run(run())


class Keeper(Router):
    """Holds everybody."""

    name: ClassVar[str] = "keeper"
    holds = True
    tick_s = 0.05

    def route(self, fleet: FleetSnapshot) -> Routing:
        return Routing()


def test_a_client_that_leaves_while_held() -> None:
    """A request that the router holds is forgotten with its client, and never sent."""

    async def run() -> None:
        async with bench("stream", router=f"{__name__}:Keeper", hold_s=30.0) as b:
            with pytest.raises(asyncio.TimeoutError):
                async with asyncio.timeout(0.3):
                    await b.complete()
            assert await rests(b)
            assert b.engines[0].bodies == []

    asyncio.run(run())


async def _megabytes(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * (1 << 20)


def test_bodies_of_a_hundred_megabytes() -> None:
    """With the settings as they are: 413 for 100 MB, announced or not; what is below arrives whole."""

    async def run() -> None:
        async with bench("stream") as b:
            assert b.app.settings.max_body_bytes == RouterSettings(engines=("http://a",)).max_body_bytes
            for data in (io.BytesIO(b"x" * (100 << 20)), _megabytes(100)):
                try:
                    async with b.client.post(f"{b.url}/v1/completions", data=data) as answer:
                        assert answer.status == 413
                        assert answer.headers["connection"] == "close"
                except aiohttp.ClientError:
                    pass  # the connection was closed on a client that had not stopped sending
            assert await b.metric('slosched_router_requests_total{outcome="too large"}') == 2
            assert b.engines[0].bodies == []
            large = io.BytesIO(b'{"stream": true, "prompt": "%s"}' % (b"x" * (8 << 20)))
            async with b.client.post(f"{b.url}/v1/completions", data=large) as answer:
                assert (answer.status, await answer.read()) == (200, WHOLE)
            assert len(b.engines[0].bodies[0]["prompt"]) == 8 << 20
            assert at_rest(b)

    asyncio.run(run())


@pytest.mark.parametrize(("kib", "statuses"), [(7, {200}), (64, {431}), (300, {400, 431})])
def test_one_long_header(kib: int, statuses: set[int]) -> None:
    """7 KiB pass, 64 KiB get 431, what the server cannot hold is refused there; the proxy lives on."""

    async def run() -> None:
        async with bench("stream") as b:
            port = int(b.url.rsplit(":", 1)[1])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            long = b"x-long: " + b"y" * (kib << 10) + b"\r\n"
            body = b'{"prompt": "a", "stream": true}'
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n" + long
                + b"content-length: %d\r\n\r\n" % len(body) + body
            )  # fmt: skip
            line = await reader.readline()
            assert int(line.split()[1]) in statuses
            if kib == 64:
                counted = await b.metric('slosched_router_requests_total{outcome="headers too large"}')
                assert counted == 1
            writer.close()
            assert (await b.complete())[:2] == (200, WHOLE)
            assert await rests(b)

    asyncio.run(run())


def test_two_routers_and_an_engine_that_goes() -> None:
    """Both routers find out by themselves; every request has one whole answer, computed once."""

    async def run() -> None:
        async with (
            bench("stream", "stream", router="slosched") as one,
            bench(engines=tuple(e.url for e in one.engines), router="slosched") as two,
        ):
            await one.engines[0].stop()
            answers = await asyncio.gather(*(b.complete() for _ in range(10) for b in (one, two)))
            assert all((status, body) == (200, WHOLE) for status, body, _ in answers)
            assert len(one.engines[1].bodies) == 20
            assert await rests(one)
            assert await rests(two)
            await one.engines[0].start()

    asyncio.run(run())


def test_some_engines_down_at_start() -> None:
    """Those that are up serve; the others are not tried until a look finds them."""

    async def run() -> None:
        async with bench("stream") as good:
            urls = (f"http://127.0.0.1:{free_port()}", good.engines[0].url, f"http://127.0.0.1:{free_port()}")
            async with bench(engines=urls, router="round-robin", statistics_s=30.0) as b:
                answers = await asyncio.gather(*(b.complete() for _ in range(6)))
                assert all((status, body) == (200, WHOLE) for status, body, _ in answers)
                assert await b.metric("slosched_router_retried_total") == 0
                assert await b.metric("slosched_router_engine_up") == 1

    asyncio.run(run())
