"""Byte for byte: what engines get of a request, and clients of an answer, odd ones included."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from slosched.integrations.proxy_settings import RouterSettings

from .conftest import Bench, bench, free_port
from .test_strangers import rests
from .wire import Answer, RawEngine, get, parts_of, pieces, post, raw, say, whole


def before(answer: Answer | bytes | None, test: Callable[[Bench, RawEngine], Awaitable[None]]) -> None:
    """Run a test with the proxy before one engine of bytes."""

    async def run() -> None:
        async with raw(answer) as engine, bench(engines=(engine.url,)) as b:
            await test(b, engine)
            assert await rests(b)

    asyncio.run(run())


def test_a_request_gains_and_loses_no_header() -> None:
    """The engine sees the client's headers, in order and as often as they came, and none of the proxy's."""

    async def test(b: Bench, engine: RawEngine) -> None:
        given = (
            b"x-dup: 1", b"x-dup: 2", b"x-utf: \xc3\xa9", b"authorization: Bearer key",
            b"proxy-connection: keep-alive", b"te: trailers",
        )  # fmt: skip
        await say(b.url, post(b"{}", *given))
        lines = engine.got[0][0].rstrip().split(b"\r\n")
        host = b"Host: " + engine.url.removeprefix("http://").encode()
        assert lines == [
            b"POST /v1/completions HTTP/1.1", host, b"x-dup: 1", b"x-dup: 2", b"x-utf: \xc3\xa9",
            b"authorization: Bearer key", b"Content-Length: 2",
        ]  # fmt: skip

    before(whole(), test)


def test_headers_of_one_connection_stay_there() -> None:
    """Whatever ``Connection`` names is meant for the proxy alone, either way."""

    async def test(b: Bench, engine: RawEngine) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(b.url.rsplit(":", 1)[1]))
        writer.write(post(b"{}", b"connection: close, X-Hop", b"x-hop: 1", b"x-kept: 1"))
        _, headers, _ = parts_of(await reader.read(-1))
        writer.close()
        assert b"x-hop" not in engine.got[0][0]
        assert b"x-kept" in engine.got[0][0]
        assert "x-mine" not in headers

    before(whole(b"{}", b"connection: X-Mine", b"x-mine: 1"), test)


@pytest.mark.parametrize(
    "target",
    [b"/v1/files/a%3Fb%2Fc%23d%20e", b"/v1/../x/./y?q=%2F+a&b=%C3%A9%zz", b"//x//y/", b"/v1/models?"],
)
def test_targets_arrive_as_written(target: bytes) -> None:
    """An escaped ``?`` stays part of the name, and nothing is put in order."""

    async def test(b: Bench, engine: RawEngine) -> None:
        assert parts_of(await say(b.url, get(target)))[0] == 200
        assert engine.got[0][0].split()[1] == target.removesuffix(b"?")

    before(whole(), test)


@pytest.mark.parametrize("target", [b"*", b"@127.0.0.1:1/x", b"a:443"])
def test_targets_that_are_no_path(target: bytes) -> None:
    """They would become part of the engine's address: 400, and no engine hears of it."""

    async def test(b: Bench, engine: RawEngine) -> None:
        assert parts_of(await say(b.url, get(target, method=b"OPTIONS")))[0] == 400
        assert engine.got == []
        assert b.app.upstreams[0].up

    before(whole(), test)


def test_the_routers_rank_wins() -> None:
    """A client's own rank does not contradict the router's choice."""

    async def run() -> None:
        async with (
            raw(whole()) as engine,
            bench(engines=(engine.url,), data_parallel_size=2, router="round-robin") as b,
        ):
            await say(b.url, post(b"{}", b"X-Data-Parallel-Rank: 7"))
            ranks = [line for line in engine.got[0][0].lower().split(b"\r\n") if b"rank" in line]
            assert ranks == [b"x-data-parallel-rank: 0"]

    asyncio.run(run())


def test_a_body_that_an_upgrade_costs() -> None:
    """Clients that offer HTTP/2 lose the body in the server's parser: told so, not answered without it."""

    async def test(b: Bench, engine: RawEngine) -> None:
        offer = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(b.url.rsplit(":", 1)[1]))
        writer.write(post(b'{"prompt": "abc"}', *offer))
        status, _, body = parts_of(await reader.read(-1))
        writer.close()
        assert (status, engine.got) == (400, [])
        assert b"Upgrade" in body
        assert parts_of(await say(b.url, get(b"/v1/models", *offer[1:])))[0] == 200

    before(whole(), test)


def test_websockets_are_refused() -> None:
    """501, not an error of the server's."""

    async def test(b: Bench, engine: RawEngine) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await b.client.ws_connect(f"{b.url}/v1/realtime")
        assert refusal.value.status == 501
        assert engine.got == []

    before(whole(), test)


def test_a_long_body_is_refused_unread() -> None:
    """Where its length is announced, nobody waits for it, and ``100 Continue`` is not said."""

    async def test(b: Bench, engine: RawEngine) -> None:
        announced = (b"expect: 100-continue", b"content-length: 99999999999")
        head = get(b"/v1/completions", *announced, method=b"POST")
        status, headers, _ = parts_of(await say(b.url, head))
        assert (status, headers["connection"]) == (413, ["close"])

    before(whole(), test)


def test_answers_without_a_body_keep_their_length() -> None:
    """HEAD has the length that GET would have; 204 has none."""

    def answer(head: bytes, body: bytes) -> bytes:
        if head.startswith(b"HEAD"):
            return b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ncontent-length: 57\r\n\r\n"
        if b"/304" in head:
            return b"HTTP/1.1 304 Not Modified\r\netag: 1\r\ncontent-length: 9\r\n\r\n"
        return b"HTTP/1.1 204 No Content\r\n\r\n"

    async def test(b: Bench, engine: RawEngine) -> None:
        status, headers, body = parts_of(await say(b.url, get(b"/v1/models", method=b"HEAD")))
        assert (status, headers["content-length"], body) == (200, ["57"], b"")
        status, headers, _ = parts_of(await say(b.url, get(b"/304")))
        assert (status, headers["content-length"], headers["etag"]) == (304, ["9"], ["1"])
        status, headers, _ = parts_of(await say(b.url, get(b"/v1/models", method=b"OPTIONS")))
        assert (status, "content-length" in headers) == (204, False)

    before(answer, test)


def test_an_answers_headers_are_the_engines() -> None:
    """One date, one server, both cookies, bytes that are no text, and 20 KiB in one header."""
    said = (
        b"date: Sat, 01 Jan 2000 00:00:00 GMT", b"server: mine", b"set-cookie: a=1", b"set-cookie: b=2",
        b"x-odd: \xe9\xff", b"x-long: " + b"y" * 20_000,
    )  # fmt: skip

    async def test(b: Bench, engine: RawEngine) -> None:
        _, headers, _ = parts_of(await say(b.url, post()))
        assert headers["date"] == ["Sat, 01 Jan 2000 00:00:00 GMT"]
        assert headers["server"] == ["mine"]
        assert headers["set-cookie"] == ["a=1", "b=2"]
        assert headers["x-odd"] == ["\xe9\xff"]
        assert len(headers["x-long"][0]) == 20_000

    before(whole(b"{}", *said), test)


def test_a_cookie_is_its_clients_alone() -> None:
    """What an engine gives one client is not sent along with another's request."""

    async def run() -> None:
        async with raw(whole(b"{}", b"set-cookie: session=secret; path=/")) as engine:
            by_name = engine.url.replace("127.0.0.1", "localhost")
            async with bench(engines=(by_name,)) as b:
                for _ in range(2):
                    await say(b.url, post())
                assert len(engine.got) == 2
                assert not any(b"secret" in head for head, _ in engine.got)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "heard"),
    [("{url}/v1/completions", "/v1/completions"), ("{url}0/x", "{url}0/x"), ("https://a/b", "https://a/b")],
)
def test_redirects_do_not_lead_past_the_router(said: str, heard: str) -> None:
    """Servers redirect ``/v1/completions/`` to their own address, which clients cannot or must not reach."""
    urls: list[str] = []

    def answer(head: bytes, body: bytes) -> bytes:
        return whole(b"", b"location: " + said.format(url=urls[0]).encode(), status=b"307 Temporary Redirect")

    async def test(b: Bench, engine: RawEngine) -> None:
        urls.append(engine.url)
        status, headers, _ = parts_of(await say(b.url, post(path=b"/v1/completions/")))
        assert (status, headers["location"]) == (307, [heard.format(url=urls[0])])

    before(answer, test)


@pytest.mark.parametrize("later", [b"Sat, 28 Nov 2026 23:00:00 GMT", b"17", b"\xe2\x82\xac"])
@pytest.mark.parametrize("status", [b"429", b"503"])
def test_when_to_come_back_is_passed_on(later: bytes, status: bytes) -> None:
    """As the engine said it: in seconds, as a date, or as nonsense."""

    async def test(b: Bench, engine: RawEngine) -> None:
        got, headers, _ = parts_of(await say(b.url, post()))
        assert got == int(status)
        assert headers["retry-after"] == [later.decode("latin-1")]

    before(whole(b"{}", b"retry-after: " + later, status=status + b" Busy"), test)


@pytest.mark.parametrize("status", [b"999 Odd", b"600 Odd"])
def test_statuses_that_are_none(status: bytes) -> None:
    """An engine that does not speak HTTP has failed."""

    async def test(b: Bench, engine: RawEngine) -> None:
        for request in (post(), get(b"/v1/models")):
            assert parts_of(await say(b.url, request))[0] == 502

    before(whole(b"", status=status), test)


def test_half_an_event_is_not_passed_on() -> None:
    """Where an engine dies within a line, clients get the events before it, then the error, as events."""
    first, half = b'data: {"t": 1}\r\n\r\n', b'data: {"t": '

    async def test(b: Bench, engine: RawEngine) -> None:
        status, _, body = parts_of(await say(b.url, post()))
        assert status == 200
        events = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
        assert json.loads(events[0]) == {"t": 1}
        assert json.loads(events[1])["error"]["code"] == 502
        assert len(events) == 2

    before(lambda head, body: pieces(first, half, end=False), test)


@pytest.mark.parametrize(
    ("stream", "tokens"),
    [
        (b": ping\r\n\r\n" + b'data: {"t": 1}\r\n\r\n' * 3 + b"data: [DONE]\r\n\r\n", 3),
        (b"data: a\r\rdata: b\r\rdata: [DONE]\r\r", 2),
        ('data: {"t": "é data: [DONE] \U0001f600"}\n\n'.encode() * 4, 4),
        (b'event: response.created\ndata: {}\n\nevent: delta\ndata: {"d": 1}\n\n', 1),
        (b"data:" + b"x" * 200_000 + b"\n\ndata:1\n\n", 2),
        (b"no line ends here", 0),
    ],
)
@pytest.mark.parametrize("size", [1 << 20, 4999, 7])
def test_streams_of_every_kind_arrive_and_are_counted(
    stream: bytes, tokens: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line ends, comments, letters cut in two, marks within texts: the same bytes, and as many tokens."""
    cut = [stream[i : i + size] for i in range(0, min(len(stream), 40 * size), size)]
    cut.append(stream[40 * size :])

    async def run() -> None:
        async with (
            raw(lambda head, body: pieces(*filter(None, cut))) as engine,
            bench(engines=(engine.url,)) as b,
        ):
            learnt: list[int] = []
            history = b.app.dispatcher.history
            monkeypatch.setattr(history, "observe", lambda name, count, **more: learnt.append(count))
            status, _, body = parts_of(await say(b.url, post()))
            assert (status, body) == (200, stream)
            assert await rests(b)
            assert learnt == [tokens] * (tokens > 0)

    asyncio.run(run())


def test_compressed_streams() -> None:
    """They pass as they are; one that breaks off ends without its end, since no event can follow."""
    packed = gzip.compress(b"data: 1\n\ndata: [DONE]\n\n")

    async def run() -> None:
        for end in (True, False):
            content = packed if end else packed[:20]
            async with (
                raw(lambda head, body: pieces(content, end=end, headers=(b"content-encoding: gzip",))) as e,  # noqa: B023
                bench(engines=(e.url,)) as b,
            ):
                answer = await say(b.url, post(b"{}", b"accept-encoding: gzip"))
                assert answer.endswith(b"0\r\n\r\n") == end
                if end:
                    assert parts_of(answer)[2] == packed
                assert content in answer
                assert b"error" not in answer

    asyncio.run(run())


@pytest.mark.parametrize("kind", [b"application/x-ndjson", b"text/plain"])
def test_other_streams_are_not_held_back(kind: bytes) -> None:
    """Lines of JSON, or whatever else a client asked to have in pieces, come as they are made."""

    async def slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: "
            + kind
            + b"\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n"
        )
        await asyncio.sleep(60)

    async def test(b: Bench, engine: RawEngine) -> None:
        body = {"prompt": "a", "stream": True}
        async with asyncio.timeout(5), b.client.post(f"{b.url}/v1/completions", json=body) as answer:
            assert await answer.content.readany() == b"{}\n"

    before(lambda head, body: slowly, test)


@pytest.mark.parametrize("tokens", ["1" + "0" * 30, "true", "-3", "1e400", '"7"', "[]"])
def test_usage_that_is_no_count(tokens: str) -> None:
    """The answer passes; what it claims to have used is not believed."""
    body = b'{"usage": {"completion_tokens": %s}}' % tokens.encode()

    async def test(b: Bench, engine: RawEngine) -> None:
        assert parts_of(await say(b.url, post()))[::2] == (200, body)

    before(whole(body), test)


@pytest.mark.parametrize("router", ["least-requests", "slosched", "power-of-two", "least-tokens"])
@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/embeddings"])
def test_a_second_engine_answers(router: str, path: bytes) -> None:
    """Not the same one again, however much the router likes it: it is idle since it answers nothing."""

    async def run() -> None:
        async with (
            raw(None) as bad,
            raw(whole()) as good,
            bench(engines=(bad.url, good.url), router=router) as b,
        ):
            for _ in range(6):
                assert parts_of(await say(b.url, post(path=path)))[0] == 200
            assert len(good.got) == 6
            assert len(bad.got) <= 6
            assert await rests(b)

    asyncio.run(run())


@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/embeddings"])
def test_two_engines_at_most_get_a_request(path: bytes) -> None:
    """Whatever its path; the client hears that they failed, not that there is none."""

    async def run() -> None:
        async with (
            raw(None) as one,
            raw(None) as two,
            raw(None) as three,
            bench(engines=(one.url, two.url, three.url)) as b,
        ):
            status, _, body = parts_of(await say(b.url, post(path=path)))
            assert status == 502
            assert b"did not answer" in body
            assert [len(e.got) for e in (one, two, three)] == [1, 1, 0]

    asyncio.run(run())


def test_statistics_are_read_whoever_packs_them() -> None:
    """Servers that pack pages for those who say they can unpack them are not told so."""

    async def test(b: Bench, engine: RawEngine) -> None:
        assert engine.looks
        assert not any(b"accept-encoding" in look.lower() for look in engine.looks)
        for page in (
            b"vllm:num_requests_waiting 1e300\nvllm:num_requests_running -5\n",
            b"\xff\xfe\x00" * 99,
        ):
            engine.page = whole(page)
            await asyncio.sleep(0.15)
            assert parts_of(await say(b.url, post()))[0] == 200
        engine.page = whole(b"sglang:num_queue_reqs 7\n")
        await asyncio.sleep(0.15)
        status = b.app.dispatcher.books.engines[0].status
        assert status is not None
        assert status.waiting == 7

    before(whole(), test)


def test_an_engine_whose_look_fails_oddly_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error of any kind must not end the looks at this engine, or at others."""
    from slosched.integrations import upstream

    async def test(b: Bench, engine: RawEngine) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(upstream, "read_gauges", lambda text, now_s: 1 // 0)
            await asyncio.sleep(0.2)
        engine.page = whole(b"vllm:num_requests_waiting 9\n")
        await asyncio.sleep(0.2)
        status = b.app.dispatcher.books.engines[0].status
        assert status is not None
        assert status.waiting == 9

    before(whole(), test)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:key@a:1", "http://a:1?x=1", "http://a:1?", "http://a:1#x", "http://a:99999", "http://a:x",
        "http://[::1", "http://:80", "ftp://a", "http://a:0",
    ],
)  # fmt: skip
def test_addresses_that_are_more_than_a_root(url: str) -> None:
    """Keys in an address would stand in metrics and errors; the rest could not be put before a path."""
    from slosched.core.errors import InputError

    with pytest.raises(InputError, match="server must be a root"):
        RouterSettings(engines=(url,))
    with pytest.raises(InputError, match="distinct"):
        RouterSettings(engines=("http://A:80", "http://a"))


def test_an_error_of_the_routers_own_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 in OpenAI's form, the books closed, and neither the key nor the prompt in the log."""

    async def test(b: Bench, engine: RawEngine) -> None:
        def fail(*given: Any) -> None:
            raise KeyError("inside")

        monkeypatch.setattr(b.app.dispatcher, "tokens", fail)
        status, _, body = parts_of(
            await say(b.url, post(b'{"prompt": "hush"}', b"authorization: Bearer k3y"))
        )
        assert status == 500
        assert json.loads(body)["error"]["type"] == "slosched_router"
        assert await b.metric('slosched_router_requests_total{outcome="failed"}') == 1
        assert "KeyError" in caplog.text
        assert "k3y" not in caplog.text
        assert "hush" not in caplog.text

    before(whole(), test)


def test_a_router_before_itself() -> None:
    """A port typed twice: it says 503, and sends nothing round in circles; one before another works."""

    async def run() -> None:
        port = free_port()
        async with raw(whole()) as engine:
            urls = (f"http://127.0.0.1:{port}", engine.url)
            async with (
                bench(engines=urls, port=port, router="round-robin") as one,
                bench(engines=(one.url,)) as two,
            ):
                await asyncio.sleep(0.3)
                assert [upstream.up for upstream in one.app.upstreams] == [False, True]
                for b in (one, two):
                    assert parts_of(await say(b.url, post()))[0] == 200
                assert len(engine.got) == 2

    asyncio.run(run())
