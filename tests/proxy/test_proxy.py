"""The proxy before engines that behave, die, stall and lie: one answer for each request, or why not."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

import aiohttp
import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.integrations.asking import read_asked
from slosched.integrations.proxy_settings import RouterSettings
from slosched.integrations.upstream import read_gauges
from slosched.integrations.vllm.config import Config
from slosched.routers import FleetSnapshot, Router, Routing

from .conftest import Bench, FakeEngine, bench, free_port

WHOLE = b"".join(b'data: {"t": %d}\n\n' % i for i in range(10)) + b"data: [DONE]\n\n"


def at_rest(b: Bench) -> bool:
    """Whether nothing is left in the proxy's books."""
    books = b.app.dispatcher.books
    return not b.app.dispatcher.held and not books.place and not any(len(v.rows) for v in books.engines)


@pytest.mark.parametrize("router", ["round-robin", "slosched", "dynamo", "prefix-affinity"])
def test_streams_pass_untouched(router: str) -> None:
    """Every byte of a stream arrives, with the engine's status and headers; both engines get work."""

    async def run() -> None:
        async with bench("stream", "stream", router=router) as b:
            answers = await asyncio.gather(*(b.complete(prompt=f"{i} " * 300) for i in range(20)))
            assert all(status == 200 and body == WHOLE for status, body, _ in answers)
            assert all(headers["content-type"] == "text/event-stream" for _, _, headers in answers)
            assert min(len(engine.bodies) for engine in b.engines) > 0
            assert sum(len(engine.bodies) for engine in b.engines) == 20
            assert at_rest(b)
            assert await b.metric('slosched_router_requests_total{outcome="answered"}') == 20

    asyncio.run(run())


def test_whole_answers_and_other_paths() -> None:
    """Answers that are not streamed come whole; other paths reach an engine; health and metrics are ours."""

    async def run() -> None:
        async with bench("json") as b:
            status, body, headers = await b.complete(stream=False)
            assert status == 200
            assert json.loads(body)["usage"]["completion_tokens"] == 25
            assert headers["content-length"] == str(len(body))
            async with b.client.get(f"{b.url}/v1/models") as answer:
                assert (await answer.json())["data"][0]["id"] == "tiny"
            async with b.client.get(f"{b.url}/health") as answer:
                assert answer.status == 200
            async with b.client.get(f"{b.url}/nothing/here") as answer:
                assert answer.status == 404  # the engine's own word
            assert await b.metric("slosched_router_engine_up") == 1
            assert b.app.dispatcher.books.engines[0].status is not None
            assert b.app.dispatcher.books.engines[0].status.waiting == 2

    asyncio.run(run())


def test_slo_from_headers_and_body() -> None:
    """SLOs of llm-d's headers, of our headers and of the body reach the router and the engine's scheduler."""
    asked = read_asked(
        [(b"x-llm-d-slo-ttft-ms", b"300"), (b"x-slo-class", b"chat")],
        b'{"prompt": [1, 2, 3], "max_tokens": 7, "vllm_xargs": {"slo_tpot_ms": 40}}',
        Config.model_validate({"classes": {"chat": {"e2e_ms": 9000}}}),
    )
    slo = asked.claim.slo
    assert (slo.ttft_s, slo.tpot_s, slo.e2e_s) == (0.3, 0.04, 9.0)
    assert (asked.prompt_tokens, asked.max_tokens) == (3, 7)
    xargs = json.loads(asked.body)["vllm_xargs"]
    assert xargs == {"slo_tpot_ms": 40, "slo_ttft_ms": "300", "slo_class": "chat"}

    async def run() -> None:
        async with bench("stream") as b:
            await b.complete(headers={"x-llm-d-slo-ttft-ms": "10000", "authorization": "Bearer k"})
            assert b.engines[0].bodies[0]["vllm_xargs"] == {"slo_ttft_ms": "10000"}
            assert b.engines[0].headers[0]["Authorization"] == "Bearer k"
            assert await b.metric("slosched_router_slo_total") == 1

    asyncio.run(run())


def test_data_parallel_ranks() -> None:
    """Ranks of one server are engines, chosen by vLLM's header; statistics come by rank."""

    async def run() -> None:
        async with bench("stream", data_parallel_size=3, router="round-robin") as b:
            b.engines[0].gauges = "".join(
                f'vllm:num_requests_running{{engine="{i}"}} {i}.0\n' for i in range(3)
            )
            await asyncio.gather(*(b.complete() for _ in range(6)))
            ranks = [h["X-data-parallel-rank"] for h in b.engines[0].headers]
            assert sorted(ranks) == ["0", "0", "1", "1", "2", "2"]
            await asyncio.sleep(0.15)
            views = b.app.dispatcher.books.engines
            assert [v.status.running if v.status else -1 for v in views] == [0, 1, 2]

    asyncio.run(run())


@pytest.mark.parametrize("how", ["half", "503", "empty"])
def test_goes_elsewhere_before_the_first_byte(how: str) -> None:
    """An engine that fails before the client has anything costs a second try, not the request."""

    async def run() -> None:
        async with bench(how, "stream", router="round-robin") as b:
            status, body, _ = await b.complete()
            assert (status, body) == (200, WHOLE)
            assert len(b.engines[0].bodies) == len(b.engines[1].bodies) == 1
            assert at_rest(b)

    asyncio.run(run())


def test_never_sent_a_third_time() -> None:
    """Two engines that fail after they got the request are the end of it: 502, in OpenAI's form."""

    async def run() -> None:
        async with bench("half", "half", "half", router="round-robin") as b:
            status, body, _ = await b.complete()
            assert status == 502
            assert json.loads(body)["error"]["code"] == 502
            assert sum(len(engine.bodies) for engine in b.engines) == 2
            assert at_rest(b)

    asyncio.run(run())


def test_an_engine_that_dies_in_an_answer() -> None:
    """The client keeps what it has and is told by an error event, without an end mark."""

    async def run() -> None:
        async with bench("die", "stream", router="round-robin") as b:
            status, body, _ = await b.complete()
            assert status == 200
            assert body.startswith(WHOLE[:45])
            assert b"broke off the answer" in body
            assert b"[DONE]" not in body
            assert len(b.engines[1].bodies) == 0
            assert at_rest(b)

    asyncio.run(run())


def test_engines_down_at_start_and_back() -> None:
    """With no engine the answer is 503 with Retry-After; an engine that comes up is found by itself."""

    async def run() -> None:
        port = free_port()
        async with bench(engines=(f"http://127.0.0.1:{port}",)) as b:
            status, body, headers = await b.complete()
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            assert b"no engine is up" in body
            async with b.client.get(f"{b.url}/health") as answer:
                assert answer.status == 503
            engine = FakeEngine(port=port)
            await engine.start()
            for _ in range(60):
                await asyncio.sleep(0.05)
                status, body, _ = await b.complete()
                if status == 200:
                    break
            assert (status, body) == (200, WHOLE)
            await engine.stop()

    asyncio.run(run())


def test_an_engine_that_goes_away_between_looks() -> None:
    """A refused connection sends the request elsewhere at once, and nothing more goes to the dead one."""

    async def run() -> None:
        async with bench("stream", "stream", router="round-robin", statistics_s=30.0) as b:
            await b.engines[0].stop()
            answers = await asyncio.gather(*(b.complete() for _ in range(8)))
            assert all((status, body) == (200, WHOLE) for status, body, _ in answers)
            assert await b.metric("slosched_router_engine_up") == 1
            await b.engines[0].start()

    asyncio.run(run())


def test_a_client_that_hangs_up() -> None:
    """The engine's connection is closed with the client's, and the books forget the request."""

    async def run() -> None:
        async with bench("stream") as b:
            b.engines[0].pause_s = 0.2
            body = {"prompt": "x", "stream": True}
            answer = await b.client.post(f"{b.url}/v1/completions", json=body)
            await answer.content.readany()
            answer.close()
            for _ in range(60):
                await asyncio.sleep(0.05)
                if b.engines[0].cancelled and at_rest(b):
                    break
            assert b.engines[0].cancelled == 1
            assert at_rest(b)
            assert await b.metric('slosched_router_requests_total{outcome="hung up"}') == 1

    asyncio.run(run())


class Refuser(Router):
    """Refuses whatever has a limit, holds what asks for it."""

    name: ClassVar[str] = "refuser"
    holds = True
    tick_s = 0.05

    def route(self, fleet: FleetSnapshot) -> Routing:
        limited = np.isfinite(fleet.table.ttft_s[fleet.pending])
        held = np.isfinite(fleet.table.e2e_s[fleet.pending])
        send = tuple((int(row), 0) for row in fleet.pending[~limited & ~held])
        return Routing(send=send, refuse=tuple(int(row) for row in fleet.pending[limited]))


@pytest.mark.parametrize("status", [429, 503])
def test_refusals_are_real(status: int) -> None:
    """A refusal is 429 or 503 with Retry-After and the predicted wait; one held too long is one, too."""

    async def run() -> None:
        async with bench("stream", router=f"{__name__}:Refuser", refuse_status=status, hold_s=1.0) as b:
            for limit in ("slo_ttft_ms", "slo_e2e_ms"):
                got, body, headers = await b.complete(vllm_xargs={limit: 500})
                assert got == status
                assert int(headers["retry-after"]) >= 1
                assert json.loads(body)["error"]["predicted_wait_s"] >= 0
            assert (await b.complete())[0] == 200
            assert len(b.engines[0].bodies) == 1
            assert at_rest(b)

    asyncio.run(run())


def test_bad_requests() -> None:
    """Huge headers, huge bodies, no JSON, unknown models: each a defined answer, and the proxy lives on."""

    async def run() -> None:
        async with bench("stream", "500", router="round-robin", max_body_bytes=1 << 17) as b:
            status, body, _ = await b.complete(prompt="x" * (1 << 18))
            assert status == 413
            assert b"at most" in body
            async with b.client.post(
                f"{b.url}/v1/completions", json={}, headers={f"x-{i}": "y" * 8000 for i in range(8)}
            ) as answer:
                assert answer.status == 431
            async with b.client.post(f"{b.url}/v1/completions", data=b"no json") as answer:
                assert answer.status == 200  # as the engine says
            status, body, _ = await b.complete()
            assert status == 500
            assert json.loads(body)["error"]["message"] == "engine"
            assert (await b.complete())[0] == 200
            assert at_rest(b)

    asyncio.run(run())


def test_malformed_events_pass() -> None:
    """What an engine streams is not judged: it arrives byte for byte."""

    async def run() -> None:
        async with bench("malformed") as b:
            status, body, _ = await b.complete()
            assert (status, body) == (200, b"nonsense\r\n" * 10 + b"data: [DONE]\n\n")

    asyncio.run(run())


def test_two_routers_before_the_same_engines() -> None:
    """Each knows only its own requests and the engines' statistics; nothing is lost or answered twice."""

    async def run() -> None:
        async with (
            bench("stream", "stream", router="slosched") as one,
            bench(engines=tuple(e.url for e in one.engines), router="slosched") as two,
        ):
            answers = await asyncio.gather(*(b.complete() for _ in range(20) for b in (one, two)))
            assert all((status, body) == (200, WHOLE) for status, body, _ in answers)
            assert sum(len(e.bodies) for e in one.engines) == 40

    asyncio.run(run())


def test_a_router_that_errs_costs_its_choice_only() -> None:
    """A router that names what is not there is overruled: the engine with the fewest requests."""

    async def run() -> None:
        async with bench("stream", router=f"{__name__}:Astray") as b:
            status, body, _ = await b.complete()
            assert (status, body) == (200, WHOLE)

    asyncio.run(run())


class Astray(Router):
    """Names an engine that is not there."""

    name: ClassVar[str] = "astray"

    def route(self, fleet: FleetSnapshot) -> Routing:
        return Routing(send=tuple((int(row), 99) for row in fleet.pending))


def test_many_streams_at_once() -> None:
    """Three hundred streams are open together, and all end whole."""

    async def run() -> None:
        async with bench("stream", "stream") as b:
            for engine in b.engines:
                engine.pause_s = 0.1
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as client:
                b.client, old = client, b.client
                answers = await asyncio.gather(*(b.complete() for _ in range(300)))
                b.client = old
            assert all((status, body) == (200, WHOLE) for status, body, _ in answers)
            assert at_rest(b)

    asyncio.run(run())


def test_a_connection_that_times_out_has_reached_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the proxy stood still while it connected: tried again, more often than what was reached."""
    connect, failures = aiohttp.TCPConnector.connect, [0]
    port: list[int] = []

    async def late(self: aiohttp.TCPConnector, request: Any, *args: Any, **more: Any) -> Any:
        if request.url.port == port[0] and request.url.path == "/v1/completions" and failures[0] < 3:
            failures[0] += 1
            raise aiohttp.ConnectionTimeoutError
        return await connect(self, request, *args, **more)

    async def run() -> None:
        async with bench("stream") as b:
            port.append(b.engines[0].port)
            monkeypatch.setattr(aiohttp.TCPConnector, "connect", late)
            status, body, _ = await b.complete()
            assert (status, body, failures) == (200, WHOLE, [3])
            assert len(b.engines[0].bodies) == 1
            assert at_rest(b)

    asyncio.run(run())


def test_gauges() -> None:
    """What is no number, or not finite, is passed over; pages without any gauge say nothing."""
    page = 'vllm:num_requests_waiting{engine="0"} NaN\nvllm:kv_cache_usage_perc 1.5\nother 3\n# vllm: x\n'
    assert read_gauges(page, 1.0)[0].kv_used == 1.0
    assert read_gauges("other 3\n", 1.0) == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engines": ()}, "server must be one or more"),
        ({"engines": ("a:8000",)}, "server must be a root"),
        ({"engines": ("http://a/v1",)}, "server must be a root"),
        ({"engines": ("http://a", "http://a/")}, "distinct"),
        ({"data_parallel_size": 0}, "data_parallel_size"),
        ({"refuse_status": 500}, "429 or 503"),
        ({"statistics_s": 0.0}, "statistics_s"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"router": "huh"}, "router must be one of"),
        ({"profile": "huh"}, "huh"),
    ],
)
def test_bad_settings(fields: dict[str, Any], words: str) -> None:
    """Each setting outside its domain is named."""
    with pytest.raises(InputError, match=words):
        RouterSettings(**({"engines": ("http://a:1",)} | fields))


def test_warming_up_does_all_that_a_router_may_come_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of floors are compared once, so that no client waits for a compiler then."""
    from slosched.core.engine import find_engine
    from slosched.integrations.dispatch import warm_up
    from slosched.routers.floors import Floors

    compared: list[int] = []

    def learn(self: Floors, settings: list[Any], gains: Any) -> None:
        compared.append(len(settings))

    monkeypatch.setattr(Floors, "_learn", learn)
    warm_up("slosched", find_engine("h100-llama-3.1-8b"))
    assert compared
    assert min(compared) > 1
