"""Streams as odd servers send them: no event takes others with it, and no count is believed blindly."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import pytest

from slosched.core.workload import Workload
from slosched.integrations.openai_stream import DONE, FINISHED, MOST_LINE, Answer, Stamps, events, judge
from slosched.lab.load import LoadCounts, LoadSettings, load

web = pytest.importorskip("aiohttp.web")

END = b"data: [DONE]\n\n"


def said(text: str = "a", **more: Any) -> bytes:
    """One event of a stream of a completion, without the end of its line."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text}], **more}).encode()


def choice(**holds: Any) -> bytes:
    """One whole event whose choice holds this."""
    return b"data: " + json.dumps({"choices": [holds]}).encode() + b"\n\n"


def answered(packets: Iterable[bytes]) -> Answer:
    """What comes of a stream of these packets; event number n comes at second n."""
    answer = Answer()
    stamps = Stamps(answer, None)

    async def sent() -> AsyncIterator[bytes]:
        for packet in packets:
            yield packet

    async def read() -> bool:
        now = 0.0
        async for event in events(sent()):
            now += 1.0
            if event == DONE:
                return True
            if isinstance(event, dict):
                stamps.take(event, now)
            else:
                answer.odd_events += 1
        return False

    ended = asyncio.run(read())
    stamps.count(None)
    judge(answer, ended)
    return answer


@pytest.mark.parametrize("broken", [b"data: {bad", b"data: hello", b'data: {"choices": ['])
def test_a_broken_line_takes_no_other_with_it(broken: bytes) -> None:
    """Where no blank lines part events, those after a broken one still count."""
    answer = answered([broken + b"\n", said() + b"\n", said() + b"\n", b"data: [DONE]\n"])
    assert (answer.outcome, answer.tokens, answer.odd_events) == (FINISHED, 2, 1)


def test_an_event_over_lines_is_one() -> None:
    """A line of it that is JSON by itself is no event of its own."""
    answer = answered([b'data: {"choices": [\ndata: {"text": "a"}\ndata: ]}\n\n', END])
    assert (answer.outcome, answer.tokens, answer.odd_events) == (FINISHED, 1, 0)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_as_the_standard_allows(end: bytes) -> None:
    """Also where every byte comes alone."""
    whole = b"".join(
        [said("\u00e9\u2028") + end + end, b'data: {"choices": [{' + end, b'data: "text": "b"}]}' + end + end]
    )
    whole += b"data: [DONE]" + end + end
    for packets in ([whole], [bytes([byte]) for byte in whole]):
        answer = answered(packets)
        assert (answer.outcome, answer.tokens, answer.odd_events) == (FINISHED, 2, 0)


@pytest.mark.parametrize("last", [{"choices": []}, {"choices": [{"text": "", "finish_reason": "stop"}]}])
def test_a_count_of_nothing_beside_text_is_none(last: dict[str, Any]) -> None:
    """A server that counts only at the end: the first token is stamped when its text came."""
    zero = {"completion_tokens": 0}
    end = b"data: " + json.dumps(last | {"usage": {"completion_tokens": 3}}).encode() + b"\n\n"
    answer = answered([said(usage=zero) + b"\n\n"] * 3 + [end, END])
    assert (answer.tokens, answer.counted, answer.first_s, answer.last_s) == (3, "usage", 1.0, 3.0)


@pytest.mark.parametrize(
    "event",
    [
        choice(text="a", token_ids=[]),
        choice(text="a", logprobs={"tokens": []}),
        choice(delta={"content": "a"}, logprobs={"content": []}),
        choice(delta={"function_call": {"name": "f", "arguments": "{"}}),
    ],
)
def test_text_without_its_tokens_counts(event: bytes) -> None:
    """An empty list beside text does not say that there are no tokens; a called function is an answer."""
    answer = answered([event] * 3 + [END])
    assert (answer.outcome, answer.tokens, answer.first_s, answer.last_s) == (FINISHED, 3, 1.0, 3.0)


def test_a_line_without_end_ends_its_request() -> None:
    """It is neither kept for ever, nor gone through again at every packet."""
    begun = time.process_time()
    with pytest.raises(ValueError, match="more than"):
        answered([b"data: "] + [b"x" * 65_536] * (2 * MOST_LINE // 65_536))
    assert time.process_time() - begun < 5.0


def sent(habits: Any, requests: int = 2, gap_s: float = 0.05) -> tuple[Any, LoadCounts]:
    """A run of a few equal requests."""
    counts = LoadCounts()
    tokens = np.full(requests, 4, dtype=np.int64)
    work = Workload.plain(np.arange(requests, dtype=np.float64) * gap_s, tokens, tokens)
    run = load(habits.url, work, LoadSettings(warm_up=0, model="m", timeout_s=30.0), counts=counts)
    assert counts.total == requests
    return run, counts


@pytest.mark.parametrize("count", [10**20, 2**63, 10**12])
def test_a_count_that_no_answer_has_does_not_end_the_run(habits: Any, count: int) -> None:
    """It is passed over, and the tokens that came are counted."""

    async def script(body: dict[str, Any], write: Callable[[Any], Awaitable[None]]) -> None:
        await habits.tokens(write, 4, finish="stop")
        await write({"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": count}})

    habits.script = script
    run, counts = sent(habits)
    assert counts.finished == 2
    assert run.outcomes.workload.output_tokens.tolist() == [4, 4]
    assert run.outcomes.workload.prompt_tokens.tolist() == [4, 4]


def test_clients_share_no_cookie(habits: Any, run_server: Callable[[Any], Any]) -> None:
    """A balancer's cookie would tie all requests to the server that answered first."""
    cookies: list[str | None] = []

    class Sticky(type(habits)):  # type: ignore[misc]
        async def complete(self, request: Any) -> Any:
            cookies.append(request.headers.get("Cookie"))
            return await super().complete(request)

    def refuse(body: dict[str, Any]) -> Any:
        response = web.Response(status=500)
        response.set_cookie("server", "1")
        return response

    server = run_server(Sticky())
    server.before = refuse
    server.url = server.url.replace("127.0.0.1", "localhost")  # of a bare address no cookie is kept anyway
    sent(server, gap_s=1.0)
    assert cookies == [None, None]


def test_a_refusal_without_end_is_a_refusal(habits: Any) -> None:
    """Of its body only the beginning is read."""

    class Endless(web.StreamResponse):  # type: ignore[misc, name-defined, unused-ignore]
        async def prepare(self, request: Any) -> Any:
            writer = await super().prepare(request)
            try:
                while True:
                    await self.write(b"no " * 10_000)
                    await asyncio.sleep(0)
            except (ConnectionError, asyncio.CancelledError):
                return writer

    habits.before = lambda body: Endless(status=500)
    begun = time.monotonic()
    _, counts = sent(habits)
    assert counts.refused == {"HTTP 500": 2}
    assert time.monotonic() - begun < 15.0


def test_odd_stamps_are_never_made_up() -> None:
    """A finished answer has the times of its tokens."""
    answer = answered([said(usage={"completion_tokens": 0}) + b"\n\n", END])
    assert answer.outcome == FINISHED
    assert math.isfinite(answer.first_s)
