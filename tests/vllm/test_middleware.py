"""Headers become fields of the body and nothing else changes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from slosched.integrations.vllm import middleware
from slosched.integrations.vllm.middleware import PATHS, SloHeaders


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


def test_a_body_without_end_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the client counts as gone: no more is read, and no whole body goes on."""
    monkeypatch.setattr(middleware, "MAX_BODY", 10)
    parts = [b"12345"] * 50
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not seen or seen[-1]["type"] == "http.request":
            seen.append(await receive())

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "path": PATHS[0], "headers": [(b"x-slo-ttft-ms", b"5")]}
    asyncio.run(SloHeaders(app)(scope, receive, send))
    assert len(parts) == 47
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]
    assert seen[0]["more_body"] is True
    assert _serve(PATHS[0], {"x-slo-ttft-ms": "500"}, [b"12345", b"67890"])[0] == b"1234567890"
