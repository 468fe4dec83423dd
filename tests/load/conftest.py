"""A small OpenAI-compatible server in a thread, with the habits of real ones."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

web = pytest.importorskip("aiohttp.web")

STEP_S = 0.01

Write = Callable[[dict[str, Any] | str], Awaitable[None]]


class Habits:
    """A server whose streams are written by `script`; everything that it was sent is in `bodies`."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.script: Callable[[dict[str, Any], Write], Awaitable[None]] = self.plain
        self.before: Callable[[dict[str, Any]], Any] = lambda _: None
        """May return a response in place of a stream."""
        self.warm_up_s = 0.0
        self.answer_models: Callable[[], Any] | None = None
        self.done = True
        """Whether a stream ends with [DONE]."""
        self.type = "text/event-stream"
        """What its streams are said to be."""

    async def tokens(
        self, write: Write, count: int, *, step_s: float = STEP_S, finish: str | None = "length"
    ) -> None:
        """Some tokens, one a chunk."""
        for i in range(count):
            await asyncio.sleep(step_s)
            choice = {"index": 0, "text": " a", "finish_reason": finish if i == count - 1 else None}
            await write({"choices": [choice]})

    async def plain(self, body: dict[str, Any], write: Write) -> None:
        """All tokens that were asked for."""
        await self.tokens(write, body["max_tokens"])

    async def models(self, request: Any) -> Any:
        if self.answer_models is not None:
            return self.answer_models()
        return web.json_response({"data": [{"id": "m"}]})

    async def complete(self, request: Any) -> Any:
        body = await request.json()
        self.bodies.append(body)
        self.paths.append(request.path)
        if not body.get("stream"):
            await asyncio.sleep(self.warm_up_s)
            return web.json_response({"choices": [{"text": "a"}], "usage": {"completion_tokens": 4}})
        refusal = self.before(body)
        if refusal is not None:
            return refusal
        response = web.StreamResponse(headers={"Content-Type": self.type})
        await response.prepare(request)

        async def write(event: dict[str, Any] | str) -> None:
            data = event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"
            await response.write(data.encode())

        await self.script(body, write)
        if self.done:
            await write("data: [DONE]\n\n")
        await response.write_eof()
        return response


@contextmanager
def serving(made: Any) -> Iterator[Any]:
    """Run a server object with `models` and `complete` in a thread; its address is put into its `url`."""
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", made.models)
        for path in ("/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, made.complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(120)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(120)
        loop.close()


@pytest.fixture
def run_server() -> Iterator[Callable[[Any], Any]]:
    """Runs a server object until the test ends."""
    with ExitStack() as stack:
        yield lambda made: stack.enter_context(serving(made))


@pytest.fixture
def habits(run_server: Callable[[Any], Any]) -> Any:
    """A running server; its script can be changed at any time."""
    return run_server(Habits())
