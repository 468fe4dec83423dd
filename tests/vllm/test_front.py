"""Refusals before an answer begins, honest endings, and nothing else changed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slosched.integrations.vllm import front
from slosched.integrations.vllm.front import Front
from slosched.integrations.vllm.published import folder_for, sweep, tell, told
from slosched.integrations.vllm.refusal_reason import REASON
from slosched.integrations.vllm.waits import Outlook

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SSE, JSON = b"text/event-stream; charset=utf-8", b"application/json"
TEXT = b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\n'
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of other tests, which have the same parent, are not asked."""
    config = tmp_path / "alone.yaml"
    config.write_text(f"admission: {{folder: {tmp_path / 'nobody'}}}\n")
    monkeypatch.setenv("SLOSCHED_CONFIG", str(config))


def serve(
    chunks: list[bytes],
    *,
    kind: bytes = SSE,
    path: str = COMPLETIONS,
    request: object = None,
    status: int = 200,
) -> tuple[int, dict[bytes, bytes], bytes, bool]:
    """Status, headers and body that a client gets, and whether the application behind was reached."""
    sent: list[Any] = []
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append((await receive())["body"])
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        for k, chunk in enumerate(chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": k + 1 < len(chunks)})

    content = request if isinstance(request, bytes) else json.dumps(request or {"prompt": "hello"}).encode()

    async def receive() -> Any:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(Front(app)(scope, receive, send))
    starts = [m for m in sent if m["type"] == "http.response.start"]
    assert len(starts) == 1
    assert sent[0] is starts[0]
    body = b"".join(m.get("body", b"") for m in sent[1:])
    return starts[0]["status"], dict(starts[0]["headers"]), body, bool(reached)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("before", [[], [ROLE], [USAGE], [ROLE, USAGE], [b"\n"]])
def test_an_empty_stream_is_a_refusal(before: list[bytes], path: str) -> None:
    """What vLLM makes of a refused stream: 200, perhaps a role, and the end."""
    status, headers, body, _ = serve([*before, DONE], path=path)
    assert status == 429
    assert int(headers[b"retry-after"]) >= 1
    assert json.loads(body)["error"]["code"] == 429


@pytest.mark.parametrize("chunks", [[TEXT, TEXT, STOP, DONE], [ROLE, TEXT, STOP, USAGE, DONE], [STOP, DONE]])
def test_a_whole_stream_is_not_touched(chunks: list[bytes]) -> None:
    status, headers, body, _ = serve(chunks)
    assert (status, headers, body) == (200, {b"content-type": SSE}, b"".join(chunks))


def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    """The client can tell an answer that was cut from a whole one."""
    status, _, body, _ = serve([TEXT, TEXT, DONE])
    assert status == 200
    assert body.startswith(TEXT + TEXT)
    assert body.endswith(b"\n\n" + DONE)
    told_ = json.loads(body.removeprefix(TEXT + TEXT).removesuffix(DONE).removeprefix(b"data: "))
    assert told_["error"]["code"] == 503


def test_an_answer_may_speak_of_the_mark_that_ends_streams() -> None:
    """An answer about server-sent events, several tokens in a chunk: text is text."""
    about = b'data: {"choices":[{"index":0,"text":"write data: [DONE] last","finish_reason":null}]}\n\n'
    chunks = [TEXT, about, STOP, DONE]
    assert serve(chunks)[2] == b"".join(chunks)


def test_each_answer_asked_for_needs_its_end() -> None:
    """Two prompts, one of which was refused: the other's answer comes, and an error."""
    two = {"prompt": ["a", "b"], "n": 1}
    _, _, body, _ = serve([TEXT, STOP, DONE], request=two)
    assert b'data: {"error"' in body
    _, _, body, _ = serve([TEXT, STOP, STOP, DONE], request=two)
    assert b'data: {"error"' not in body
    _, _, body, _ = serve([TEXT, STOP, DONE], request={"prompt": "a", "n": 2})
    assert b'data: {"error"' in body


def test_an_error_of_the_server_is_passed_on() -> None:
    error = b'data: {"error": {"message": "dead", "code": 500}}\n\n'
    assert serve([error, DONE])[2] == error + DONE
    assert serve([b"{}"], kind=JSON, status=503)[0] == 503


def test_a_refused_answer_without_streaming_is_a_429() -> None:
    refused = {"index": 0, "text": "", "finish_reason": "abort", "stop_reason": REASON}
    status, headers, body, _ = serve([json.dumps({"choices": [refused, refused]}).encode()], kind=JSON)
    assert status == 429
    assert b"retry-after" in headers
    assert json.loads(body)["error"]["type"] == "RateLimitError"


@pytest.mark.parametrize(
    "choice",
    [
        {"text": REASON, "finish_reason": "stop", "stop_reason": None},
        {"text": "", "finish_reason": "abort", "stop_reason": None},
        {"text": REASON},
    ],
)
def test_other_answers_are_not_touched(choice: dict[str, Any]) -> None:
    content = json.dumps({"choices": [choice]}).encode()
    assert serve([content], kind=JSON)[:3] == (200, {b"content-type": JSON}, content)


# at the door ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = tmp_path / "c.yaml"
    config.write_text(
        "classes: {chat: {ttft_ms: 2000}}\n"
        f"admission: {{min_chance: 0.2, max_wait_s: 60, folder: {tmp_path / 'told'}}}\n"
    )
    monkeypatch.setenv("SLOSCHED_CONFIG", str(config))
    return folder_for(tmp_path / "told")


BUSY = Outlook(waiting=100, gap_s=0.1, step_s=0.02, token_s=1e-4, decode_s=0.02)


def ask(xargs: dict[str, Any]) -> tuple[int, dict[bytes, bytes], bytes, bool]:
    return serve([TEXT, STOP, DONE], request={"prompt": "hello", "stream": True, "vllm_xargs": xargs})


def test_a_hopeless_request_is_refused_at_the_door(folder: Path) -> None:
    """10 s of queue: no chance within 2 s, a good one within 40 s, and none is asked for without a limit."""
    tell(folder, os.getpid(), 0, BUSY)
    status, headers, body, reached = ask({"slo_class": "chat"})
    assert (status, reached) == (429, False)
    assert 5 <= int(headers[b"retry-after"]) <= 12
    assert "10.0 s" in json.loads(body)["error"]["message"]
    assert ask({"slo_ttft_ms": 40_000})[0] == 200
    assert ask({"slo_e2e_ms": 1_000})[0] == 429
    assert ask({})[0] == 200


def test_the_best_rank_counts(folder: Path) -> None:
    tell(folder, os.getpid(), 0, BUSY)
    tell(folder, os.getppid(), 1, Outlook(step_s=0.02, decode_s=0.02))
    assert ask({"slo_class": "chat"})[0] == 200


def test_a_wait_beyond_the_most_is_refused_without_a_limit(folder: Path) -> None:
    tell(folder, os.getpid(), 0, Outlook(waiting=1000, gap_s=0.1))
    status, headers, _, _ = ask({})
    assert status == 429
    assert int(headers[b"retry-after"]) == 40


def test_a_server_that_ends_says_so(folder: Path) -> None:
    tell(folder, os.getpid(), 0, BUSY, ending=True)
    assert ask({})[0] == 503


def test_everybody_is_let_in_where_nothing_is_known(folder: Path) -> None:
    """No file, a broken one, an old one, a foreign server's."""
    assert ask({"slo_class": "chat"})[0] == 200
    path = folder / f"engine-{os.getpid()}.rank0.json"
    path.write_text("{")
    assert ask({"slo_class": "chat"})[0] == 200
    tell(folder, os.getpid(), 0, BUSY)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "time_s": content["time_s"] - 60}))
    assert ask({"slo_class": "chat"})[0] == 200
    tell(folder, 2**22 + 1, 0, BUSY)  # beyond any process; 1 may be the parent of this one
    assert ask({"slo_class": "chat"})[0] == 200


def test_requests_let_in_since_the_engine_told_count(folder: Path) -> None:
    """A burst between two publications does not slip in as a whole."""
    tell(folder, os.getpid(), 0, Outlook(waiting=15, gap_s=0.1))
    made = Front(None)  # type: ignore[arg-type]
    from slosched.integrations.vllm.slo_fields import read_claim

    claim = read_claim({"slo_ttft_ms": 2000}, made.config)
    verdicts = [made.door.refuse(claim, 3) for _ in range(200)]
    assert verdicts[0] is None
    assert verdicts[-1] is not None
    assert 10 < sum(v is None for v in verdicts) < 100


def test_what_dead_servers_left_is_swept(folder: Path) -> None:
    tell(folder, 2**22 - 1, 0, BUSY)
    tell(folder, os.getpid(), 0, BUSY)
    sweep(folder)
    assert [path.name for path in folder.iterdir()] == [f"engine-{os.getpid()}.rank0.json"]
    assert told(folder, (os.getpid(),))[0].outlook == BUSY


@pytest.mark.parametrize("begun", [False, True])
def test_an_answer_of_a_dead_engine_is_ended(
    begun: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLLM's server waits for ever for an engine that was killed; clients get 503, or an error chunk."""
    monkeypatch.setattr(front, "WATCH_S", 0.01)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    tell(folder, os.getpid(), 0, BUSY)
    path = folder / f"engine-{os.getpid()}.rank0.json"
    sent: list[Any] = []
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        if begun:
            await send({"type": "http.response.body", "body": TEXT, "more_body": True})
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": child.pid}))
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"prompt": "a"}', "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}
    asyncio.run(asyncio.wait_for(Front(app)(scope, receive, send), 30))
    assert ended == [True]
    assert sent[0]["status"] == (200 if begun else 503)
    body = b"".join(m.get("body", b"") for m in sent[1:])
    assert json.loads(body.split(b"data: ")[2 if begun else 0])["error"]["code"] == 503
    assert body.endswith(DONE) == begun
    assert not sent[-1].get("more_body", False)


def test_half_a_character_is_a_bad_request() -> None:
    """VLLM's tokenizer answers 500."""
    status, _, body, reached = serve([DONE], request=b'{"prompt": "a\\ud800b"}')
    assert (status, reached) == (400, False)
    assert json.loads(body)["error"]["code"] == 400
    assert serve([TEXT, STOP, DONE], request=b'{"prompt": "\\ud83d\\ude00"}')[0] == 200


@pytest.mark.parametrize("body", [b"not json", b"[1]", b"", b"[" * 100_000, b'{"vllm_xargs": 3}'])
def test_odd_bodies_are_the_servers_business(body: bytes) -> None:
    assert serve([TEXT, STOP, DONE], request=body)[3]


@pytest.mark.parametrize("depth", [100, 600, 900])
def test_a_deeply_nested_body_is_the_servers_business(depth: int) -> None:
    """However deep: no error of the front's own."""
    body = b'{"prompt":' + b"[" * depth + b"]" * depth + b"}"
    assert serve([b"{}"], kind=JSON, request=body, status=400)[0] == 400


def test_a_body_that_needs_no_change_is_not_written_anew() -> None:
    """To the byte, blanks and all; images in it make that worth while."""
    body = b'{ "prompt" :  "hello", "stream": true }'
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", JSON)]})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}
    asyncio.run(Front(app)(scope, receive, send))
    assert reached == [body]
