"""Servers of one process: engines that behave and misbehave, and the proxy before them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the proxy needs slosched[router]")
pytest.importorskip("uvicorn", reason="the proxy needs slosched[router]")

import aiohttp
import uvicorn
from aiohttp import web

from slosched.integrations.proxy import RouterApp, server_config
from slosched.integrations.proxy_settings import RouterSettings


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class FakeEngine:
    """An OpenAI-compatible server whose `how` says what it does with a completion.

    "stream": ten tokens; "die": three, then the connection breaks; "json": a whole answer; "half": half of
    one; "500", "503": that status; "malformed": events that are none; "silent": never an answer; "empty": a
    stream of nothing; "pieces": ten tokens in pieces of seven bytes.
    """

    how: str = "stream"
    pause_s: float = 0.001
    tokens: int = 10
    retry_after: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cancelled: int = 0
    gauges: str = "vllm:num_requests_waiting 2.0\nvllm:num_requests_running 3.0\n"
    port: int = 0
    runner: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/chat/completions", self.complete)
        self.runner = web.AppRunner(app, shutdown_timeout=0.2, handler_cancellation=True)
        await self.runner.setup()
        self.port = self.port or free_port()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        await self.runner.cleanup()

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.gauges)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(json.loads(body) if body[:1] == b"{" else {"raw": len(body)})
        self.headers.append(dict(request.headers))
        if self.how.isdigit():
            later = {"retry-after": self.retry_after} if self.retry_after else {}
            error = {"error": {"message": "engine"}}
            return web.json_response(error, status=int(self.how), headers=later)
        if self.how == "silent":
            await asyncio.sleep(60)
        if self.how in ("json", "half"):
            content = json.dumps(
                {"choices": [{"text": "x" * 100}], "usage": {"completion_tokens": 25}}
            ).encode()
            answer = web.StreamResponse(
                headers={"content-type": "application/json", "content-length": str(len(content))}
            )
            await answer.prepare(request)
            await answer.write(content if self.how == "json" else content[:40])
            if self.how == "half":
                assert request.transport is not None
                request.transport.abort()
            return answer
        answer = web.StreamResponse(headers={"content-type": "text/event-stream", "x-engine": str(self.port)})
        await answer.prepare(request)
        if self.how == "empty":
            return answer
        if self.how == "pieces":
            whole = b"".join(b'data: {"t": %d}\n\n' % i for i in range(self.tokens)) + b"data: [DONE]\n\n"
            for start in range(0, len(whole), 7):
                await answer.write(whole[start : start + 7])
                await asyncio.sleep(0.005)
            return answer
        try:
            for i in range(self.tokens):
                piece = b"nonsense\r\n" if self.how == "malformed" else b'data: {"t": %d}\n\n' % i
                await answer.write(piece)
                await asyncio.sleep(self.pause_s)
                if self.how == "die" and i == 2:
                    assert request.transport is not None
                    request.transport.abort()
                    return answer
            await answer.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled += 1
            raise
        return answer


@dataclass
class Bench:
    """The proxy, its engines and a client."""

    app: RouterApp
    url: str
    engines: list[FakeEngine]
    client: aiohttp.ClientSession

    async def complete(self, stream: bool = True, **fields: Any) -> tuple[int, bytes, dict[str, str]]:
        headers = fields.pop("headers", {})
        body = {"model": "tiny", "prompt": "hello", "stream": stream, **fields}
        async with self.client.post(f"{self.url}/v1/completions", json=body, headers=headers) as answer:
            parts = []
            try:
                async for piece in answer.content.iter_any():
                    parts.append(piece)
            except aiohttp.ClientError:
                pass
            return answer.status, b"".join(parts), {k.lower(): v for k, v in answer.headers.items()}

    async def metric(self, name: str) -> float:
        async with self.client.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


@asynccontextmanager
async def bench(*hows: str, **settings: Any) -> AsyncIterator[Bench]:
    """Engines that behave as told, the proxy under uvicorn, a client."""
    engines = [FakeEngine(how) for how in hows]
    for engine in engines:
        await engine.start()
    chosen: dict[str, Any] = {"statistics_s": 0.05, "router": "least-requests"} | settings
    urls = chosen.pop("engines", tuple(engine.url for engine in engines))
    port = chosen.pop("port", 0) or free_port()
    app = RouterApp(RouterSettings(engines=urls, **chosen))
    server = uvicorn.Server(server_config(app, host="127.0.0.1", port=port))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    async with aiohttp.ClientSession() as client:
        yield Bench(app, f"http://127.0.0.1:{port}", engines, client)
    server.should_exit = True
    await task
    for engine in engines:
        await engine.stop()
