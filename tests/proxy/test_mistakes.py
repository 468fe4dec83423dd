"""Routers of anybody's: what they do wrong costs their choice, never a request or the proxy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from slosched.core.engine import DEFAULT_ENGINE
from slosched.core.errors import InputError
from slosched.integrations.asking import read_asked
from slosched.integrations.dispatch import Dispatcher
from slosched.integrations.vllm.config import Config
from slosched.routers import FleetSnapshot, PickRouter, Router, Routing, router

from .conftest import bench, free_port
from .test_proxy import WHOLE
from .test_strangers import rests
from .wire import parts_of, pieces, post, raw, say, whole


class Later(PickRouter):
    """Fails once the trial before the first request is over."""

    name: ClassVar[str] = "later"

    def live(self) -> None:
        self.lives = True

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        if getattr(self, "lives", False):
            raise KeyError("inside")
        return fleet.open[0]


class Wordless(Router):
    """Says nothing at all."""

    name: ClassVar[str] = "wordless"

    def route(self, fleet: FleetSnapshot) -> Routing:
        return None  # type: ignore[return-value]


class Sleeper(Router):
    """Holds though it says it does not."""

    name: ClassVar[str] = "sleeper"

    def route(self, fleet: FleetSnapshot) -> Routing:
        return Routing()


class Stubborn(PickRouter):
    """Sends to engine 0 even if it takes no requests."""

    name: ClassVar[str] = "stubborn"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        return 0


class Batch(Router):
    """Decides about many at once, and always wrongly, once it is live."""

    name: ClassVar[str] = "batch"
    holds = True
    tick_s = 0.02
    lives = False

    def live(self) -> None:
        self.lives = True

    def route(self, fleet: FleetSnapshot) -> Routing:
        if self.lives:
            raise ValueError("inside")
        return Routing()


class Nameless(PickRouter):
    """Has no name of its own."""

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        return fleet.open[-1]


class Restless(Router):
    """Wants to be asked without end."""

    name: ClassVar[str] = "restless"
    holds = True
    tick_s = 0.0

    def route(self, fleet: FleetSnapshot) -> Routing:
        return Routing()


@pytest.mark.parametrize("name", ["Later", "Wordless", "Sleeper", "Stubborn", "Batch", "Nameless"])
def test_a_router_that_errs_serves_all_the_same(name: str) -> None:
    """Whatever it does, all are answered, the looks at engines go on, and the overruling is counted."""

    async def run() -> None:
        async with bench("stream", "stream", router=f"{__name__}:{name}") as b:
            await b.engines[0].stop()
            answers = await asyncio.gather(*(b.complete() for _ in range(8)))
            assert all((status, body) == (200, WHOLE) for status, body, _ in answers)
            await b.engines[0].start()
            for _ in range(100):
                await asyncio.sleep(0.05)
                if b.app.dispatcher.open == 2:
                    break
            assert b.app.dispatcher.open == 2  # found by a look
            if name not in ("Stubborn", "Nameless"):
                await asyncio.sleep(0.1)
                assert await b.metric("slosched_router_overruled_total") > 0
            assert await rests(b)

    asyncio.run(run())


def test_names_and_ticks_of_routers() -> None:
    """One without a name has the words that made it; one to be asked without end is refused."""
    assert router(f"{__name__}:Nameless").name == f"{__name__}:Nameless"
    with pytest.raises(InputError, match="tick_s"):
        router(f"{__name__}:Restless")


def test_many_that_a_failing_router_holds_are_dealt_out() -> None:
    """Not all to one engine."""

    async def run() -> None:
        d = Dispatcher(DEFAULT_ENGINE, ["a", "b"], Batch(), time.monotonic)
        d.router.live()
        for i in range(2):
            d.said(i, True, None)
        held = [d.add(read_asked([], b"{}", Config())) for _ in range(8)]
        places = await asyncio.gather(*(d.place(one, 5.0) for one in held))
        assert sorted(places) == [0] * 4 + [1] * 4

    asyncio.run(run())


def test_what_is_held_while_all_engines_go_is_told_so() -> None:
    """503, as those who come then, not a refusal by its limits."""

    async def run() -> None:
        async with bench("stream", router="tests.proxy.test_strangers:Keeper", hold_s=1.5) as b:
            waits = asyncio.create_task(b.complete())
            await asyncio.sleep(0.3)
            await b.engines[0].stop()
            status, body, headers = await waits
            assert status == 503
            assert b"no engine is up" in body
            assert "retry-after" in headers
            await b.engines[0].start()

    asyncio.run(run())


def test_tenants_are_bounded() -> None:
    """A new name with every request fills no table."""
    d = Dispatcher(DEFAULT_ENGINE, ["a"], router("least-requests"), time.monotonic, most_tenants=10)
    for i in range(200):
        held = d.add(read_asked([(b"x-gateway-inference-fairness-id", b"t%d" % i)], b"{}", Config()))
        if i % 2:
            d.left(held, whole=False)
    assert len(d.table.tenants) <= 12


def test_a_comment_is_no_first_token() -> None:
    """Servers keep slow streams alive with comments: the first token is still to come."""

    async def run() -> None:
        async with (
            raw(lambda head, body: pieces(b": wait\n\n", b"data: 1\n\n")) as engine,
            bench(engines=(engine.url,)) as b,
        ):
            seen: list[int] = []
            tokens = b.app.dispatcher.tokens

            def watch(held: Any, count: int) -> None:
                tokens(held, count)
                seen.append(int(b.app.dispatcher.table.first_token_s[held.row] > 0))

            b.app.dispatcher.tokens = watch  # type: ignore[method-assign]
            assert parts_of(await say(b.url, post()))[0] == 200
            assert seen[0] == 0
            assert seen[-1] == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fields", "tokens", "most"),
    [
        ({"prompt": [[1, 2], [3, 4, 5]]}, 5, None),
        ({"prompt": ["x" * 40, "y" * 40]}, 20, None),
        ({"prompt": [], "max_tokens": 5}, 1, 5),
        ({"prompt": [1, "a", None, {}, [2]], "max_completion_tokens": None, "max_tokens": 7}, 1, 7),
        ({"input": "x" * 40, "instructions": "y" * 40, "max_output_tokens": 9}, 10, 9),
        ({"system": "y" * 40, "messages": [{"role": "user", "content": "x" * 34}]}, 20, None),
        ({"messages": [{"role": ["a"], "content": {"text": "x"}}, 3, None], "max_tokens": "7"}, 1, None),
        ({"messages": [{"content": [{"text": "x" * 38}, {"image_url": {"url": "data:"}}]}]}, 10, None),
        ({"tools": [{"function": {"name": "x" * 400}}], "messages": []}, 106, None),
        ({"messages": [{"tool_calls": [{"function": {"arguments": "x" * 400}}]}]}, 108, None),
        ({"prompt": "x", "max_tokens": True, "model": ["m"], "stream": "true"}, 1, None),
    ],
)
def test_how_long_a_prompt_is(fields: dict[str, Any], tokens: int, most: int | None) -> None:
    """Batches, roles, tools and instructions count; what is none of these does not."""
    asked = read_asked([], json.dumps(fields).encode(), Config())
    assert asked.prompt_tokens == pytest.approx(tokens, abs=1)
    assert asked.max_tokens == most


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_router_that_is_stopped_tells_its_clients(sent: signal.Signals, tmp_path: Path) -> None:
    """A real process: new clients are refused, fast streams end, slow ones are told, and it ends in time."""

    def answer(head: bytes, body: bytes) -> Any:
        count = 1000 if b"slow" in body else 40
        return pieces(*(b"data: %d\n\n" % i for i in range(count)), b"data: [DONE]\n\n")

    async def run() -> None:
        port = free_port()
        async with raw(answer) as engine:
            log = (tmp_path / "log").open("wb")
            words = ["router", "--server", engine.url, "--port", str(port), "--router", "least-requests"]
            process = subprocess.Popen(
                [sys.executable, "-m", "slosched", *words, "--drain", "3"], stdout=log, stderr=log,
                env=os.environ | {"PYTHONWARNINGS": "ignore"},
            )  # fmt: skip
            try:
                url = f"http://127.0.0.1:{port}"
                await asyncio.to_thread(wait_for, port)
                kinds = [b'{"prompt": "slow"}', b'{"prompt": "fast"}'] * 25
                asked = [asyncio.create_task(say(url, post(kind, b"authorization: k3y"))) for kind in kinds]
                while len(engine.got) < len(kinds):
                    await asyncio.sleep(0.05)
                process.send_signal(sent)
                await asyncio.sleep(0.5)
                with pytest.raises(OSError, match="Connect call failed"):
                    await say(url, post())
                answers = await asyncio.gather(*asked)
                await asyncio.to_thread(process.wait, 20)
            finally:
                process.kill()
                log.close()
            for kind, said in zip(kinds, answers, strict=True):
                body = parts_of(said)[2]
                assert said.endswith(b"0\r\n\r\n")
                assert (b"data: [DONE]" in body) == (b"fast" in kind)
                assert (b"the router is stopping" in body) == (b"slow" in kind)
            said = (tmp_path / "log").read_bytes()
            assert b"k3y" not in said
            assert b"Traceback" not in said

    asyncio.run(run())


def wait_for(port: int) -> None:
    """Until somebody listens."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("nobody listens")


def test_half_a_request_reaches_nobody() -> None:
    """A client that leaves within its body costs an engine nothing."""

    async def run() -> None:
        async with raw(whole()) as engine, bench(engines=(engine.url,)) as b:
            _, writer = await asyncio.open_connection("127.0.0.1", int(b.url.rsplit(":", 1)[1]))
            writer.write(post(b'{"prompt": "long"}')[:-3])
            await writer.drain()
            await asyncio.sleep(0.2)
            writer.transport.abort()
            await asyncio.sleep(0.2)
            assert engine.got == []
            assert await b.metric('slosched_router_requests_total{outcome="hung up"}') == 1

    asyncio.run(run())
