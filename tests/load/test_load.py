"""The load generator measures from planned arrivals and counts what goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.core.workload import Workload
from slosched.lab.load import NONSENSE, LoadCounts, LoadSettings, body, load

web = pytest.importorskip("aiohttp.web")

WORK = replace(
    Workload.plain(
        np.linspace(0.0, 0.5, 12), np.full(12, 5, dtype=np.int64), np.arange(1, 13, dtype=np.int64)
    ),
    ttft_s=np.full(12, 0.5),
)


class Server:
    """An OpenAI-compatible server that waits before the first token and between tokens."""

    def __init__(self) -> None:
        self.first_s, self.gap_s, self.status = 0.05, 0.01, 200
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def models(self, request: Any) -> Any:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def complete(self, request: Any) -> Any:
        content = await request.json()
        self.bodies.append(content)
        if self.status != 200 and content.get("stream"):
            return web.Response(status=self.status)
        if not content.get("stream"):
            return web.json_response({"choices": [{"text": "x"}]})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await asyncio.sleep(self.first_s)
        forced = content.get("ignore_eos", False)
        tokens = content["max_tokens"] if forced else min(content["max_tokens"], 1 + content["seed"] % 3)
        for i in range(tokens):
            reason = ("length" if forced else "stop") if i + 1 == tokens else None
            chunk = {"choices": [{"text": "x", "finish_reason": reason}]}
            await answer.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await asyncio.sleep(self.gap_s)
        if content.get("stream_options", {}).get("include_usage"):
            usage = {"choices": [], "usage": {"completion_tokens": tokens}}
            await answer.write(f"data: {json.dumps(usage)}\n\n".encode())
        await answer.write(b"data: [DONE]\n\n")
        return answer


@pytest.fixture
def server(run_server: Callable[[Any], Any]) -> Any:
    return run_server(Server())


def test_latencies_are_those_of_the_server(server: Server) -> None:
    """TTFT and time per token as the server makes them, each request finished and met."""
    seen: list[int] = []
    run = load(server.url, WORK, policy="x", progress=lambda done, _: seen.append(done))
    out = run.outcomes
    assert out.finished.all()
    assert float(out.ttft_s.min()) >= server.first_s
    many = WORK.output_tokens >= 5
    assert float(np.median(out.tpot_s[many])) >= server.gap_s * 0.9
    assert seen[-1] == len(WORK)
    assert len(server.bodies) == len(WORK) + 2  # two of warm-up


def test_requests_carry_their_slo() -> None:
    """Limits in milliseconds, class, weight and forecast go into vllm_xargs; infinite limits do not."""
    extra = body(WORK, 3, [1, 2], LoadSettings())["vllm_xargs"]
    assert extra["slo_ttft_ms"] == 500.0
    assert "slo_e2e_ms" not in extra
    assert extra["slo_class"] == "default"
    assert extra["predicted_output_tokens"] == 4.0


def test_a_late_client_does_not_flatter_the_server(server: Server) -> None:
    """Latency counts from the planned arrival: all at once at time 0 means waiting in the client counts."""
    server.first_s = 0.3
    run = load(server.url, WORK, LoadSettings(speed=1000.0))
    assert float(run.outcomes.ttft_s.min()) >= 0.3
    assert np.allclose(run.outcomes.workload.arrival_s, WORK.arrival_s / 1000.0)


def test_malformed_share_sends_nonsense_and_the_same_prompts(server: Server) -> None:
    load(server.url, WORK, LoadSettings(speed=1000.0, warm_up=0))
    load(server.url, WORK, LoadSettings(speed=1000.0, warm_up=0, malformed_share=1.0))
    sane, odd = server.bodies[: len(WORK)], server.bodies[len(WORK) :]
    for field, values in NONSENSE.items():
        assert all(content["vllm_xargs"][field] in values for content in odd)
    assert {str(content["prompt"]) for content in sane} == {str(content["prompt"]) for content in odd}


def test_aborts_timeouts_and_refusals_are_counted(server: Server) -> None:
    """None of them counts as finished, each is named."""
    server.gap_s = 0.2
    counts = LoadCounts()
    load(server.url, WORK, LoadSettings(abort_share=1.0, abort_within_s=0.04), counts=counts)
    assert (counts.aborted, counts.finished) == (12, 0)
    counts = LoadCounts()
    run = load(server.url, WORK, LoadSettings(timeout_s=0.5, warm_up=0, model="tiny"), counts=counts)
    assert counts.timeouts > 0
    assert counts.timeouts + counts.finished == 12
    assert int((~run.outcomes.finished).sum()) == counts.timeouts
    server.status = 503
    counts = LoadCounts()
    load(server.url, WORK, counts=counts)
    assert counts.refused == {"HTTP 503": 12}
    assert counts.total == 12


def test_a_dead_server_is_an_input_error() -> None:
    """The message names the URL."""
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9"):
        load("http://127.0.0.1:9", WORK)


def test_settings_are_checked() -> None:
    """Each names its field."""
    for bad in ({"timeout_s": 0}, {"abort_share": 2}, {"speed": float("nan")}, {"warm_up": -1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            LoadSettings(**bad)


def test_answers_to_given_prompts_end_by_themselves(server: Server) -> None:
    """No length is forced; the outcomes hold what came, at most the workload's lengths."""
    work = replace(WORK, output_tokens=np.full(12, 2, dtype=np.int64))
    texts = [f"prompt {i}" for i in range(12)]
    run = load(server.url, work, LoadSettings(warm_up=0, seed=6), prompts=texts)
    assert run.outcomes.finished.all()
    assert run.outcomes.workload.output_tokens.tolist() == [1, 2, 2] * 4
    assert sorted(b["prompt"] for b in server.bodies) == sorted(texts)
    assert sorted(b["seed"] for b in server.bodies) == list(range(6, 18))
    assert not any("ignore_eos" in b or "min_tokens" in b for b in server.bodies)
    with pytest.raises(InputError, match="prompts must be one for each of 12, got 3"):
        load(server.url, work, prompts=texts[:3])
