"""Headers become fields of the body and nothing else changes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from slosched.integrations.vllm import middleware
from slosched.integrations.vllm.front import Front
from slosched.integrations.vllm.middleware import MAX_VALUE, PATHS, SloHeaders, fields_of


def _serve(path: str, headers: dict[str, str], parts: list[bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    """What the application behind the middleware gets."""
    got: dict[str, Any] = {"body": b""}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got["headers"] = dict(scope["headers"])
        while True:
            message = await receive()
            got["body"] += message.get("body", b"")
            if not message.get("more_body", False):
                return

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None: ...

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "headers": raw}
    asyncio.run(SloHeaders(app)(scope, receive, send))
    return got["body"], got["headers"]


@pytest.mark.parametrize("path", PATHS)
def test_headers_become_fields(path: str) -> None:
    """The body grows, its length header with it, in however many parts it came."""
    body, headers = _serve(
        path,
        {"X-LLM-D-SLO-TTFT-ms": "500", "x-slo-class": "chat", "content-length": "14"},
        [b'{"prom', b'pt":"a"}'],
    )
    assert json.loads(body) == {"prompt": "a", "vllm_xargs": {"slo_ttft_ms": "500", "slo_class": "chat"}}
    assert headers[b"content-length"] == str(len(body)).encode()


def test_the_body_wins_over_the_header() -> None:
    """A client that says both means the body."""
    body, _ = _serve(PATHS[0], {"x-slo-ttft-ms": "500"}, [b'{"vllm_xargs":{"slo_ttft_ms":100,"k":1}}'])
    assert json.loads(body)["vllm_xargs"] == {"slo_ttft_ms": 100, "k": 1}


@pytest.mark.parametrize("body", [b"not json", b"[1]", b'{"vllm_xargs": 3}', b"", b"[" * 100_000])
def test_odd_bodies_pass_untouched(body: bytes) -> None:
    """The server behind answers them as it always did."""
    assert _serve(PATHS[0], {"x-slo-ttft-ms": "500"}, [body])[0] == body


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/v1/models", {"x-slo-ttft-ms": "5"}), (PATHS[0], {}), (PATHS[0], {"x-slo-class": "x" * 999})],
)
def test_other_requests_pass_untouched(path: str, headers: dict[str, str]) -> None:
    """Other paths, no SLO headers, absurd values."""
    assert _serve(path, headers, [b'{"a": 1}'])[0] == b'{"a": 1}'


@pytest.mark.parametrize("middle", [SloHeaders, Front])
def test_a_long_body_goes_on_as_it_comes(middle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Video in a request, or a client that never ends: it is not collected, and nothing of it is lost."""
    monkeypatch.setattr(middleware, "MAX_BODY", 10)
    parts = [b"12345"] * 50
    seen: list[dict[str, Any]] = []
    read: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not seen or seen[-1]["more_body"]:
            seen.append(await receive())
            read.append(50 - len(parts))
        seen[-1]["length"] = dict(scope["headers"])[b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None: ...

    headers = [(b"x-slo-ttft-ms", b"5"), (b"content-length", b"250")]
    scope = {"type": "http", "method": "POST", "path": PATHS[0], "headers": headers}
    asyncio.run(middle(app)(scope, receive, send))
    assert b"".join(message["body"] for message in seen) == b"12345" * 50
    assert seen[-1]["length"] == b"250"
    assert read[0] == 3
    assert _serve(PATHS[0], {"x-slo-ttft-ms": "500"}, [b"12345", b"67890"])[0] == b"1234567890"


def test_values_have_a_length_and_are_plain() -> None:
    """Up to 128 bytes of ASCII, blanks cut off; of two headers for one field the first known name counts."""
    assert fields_of([(b"X-SLO-Class", b"c" * MAX_VALUE)]) == {"slo_class": "c" * MAX_VALUE}
    assert fields_of([(b"x-slo-class", b"c" * (MAX_VALUE + 1))]) == {}
    assert fields_of([(b"x-slo-class", b"")]) == fields_of([(b"x-slo-class", "ü".encode())]) == {}
    assert fields_of([(b"x-slo-weight", b" 2 ")]) == {"slo_weight": "2"}
    both = [(b"x-slo-ttft-ms", b"1"), (b"x-llm-d-slo-ttft-ms", b"2")]
    assert fields_of(both) == {"slo_ttft_ms": "2"}


def test_the_other_headers_stay() -> None:
    """Only the length of the body is said anew, once."""
    got: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got["headers"], got["message"] = scope["headers"], await receive()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None: ...

    headers = [
        (b"Content-Length", b"2"),
        (b"x-slo-class", b"a"),
        (b"content-length", b"2"),
        (b"accept", b"b"),
    ]
    scope = {"type": "http", "path": PATHS[0], "headers": headers, "method": "POST"}
    asyncio.run(SloHeaders(app)(scope, receive, send))
    length = str(len(got["message"]["body"])).encode()
    assert sorted(got["headers"]) == [(b"accept", b"b"), (b"content-length", length), (b"x-slo-class", b"a")]
    assert got["message"]["more_body"] is False


def test_who_leaves_while_sending_is_passed_on() -> None:
    """What came of the body, then the disconnect; other kinds of connection are left alone."""
    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
        {"type": "later"},
    ]
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(3):
            seen.append(await receive())

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "path": PATHS[0], "headers": [(b"x-slo-class", b"a")]}
    asyncio.run(SloHeaders(app)(scope, receive, send))
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect", "later"]
    assert (seen[0]["body"], seen[0]["more_body"]) == (b"{", True)
    messages[:] = [{"type": "websocket.connect"}] * 3
    seen.clear()
    asyncio.run(SloHeaders(app)(scope | {"type": "websocket"}, receive, send))
    assert [message["type"] for message in seen] == ["websocket.connect"] * 3
