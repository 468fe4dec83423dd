"""Collecting lengths from servers and logs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slosched.cli import main
from slosched.core.errors import InputError
from slosched.lab.collect import (
    CollectSettings,
    collect_log,
    collect_server,
    read_prompts,
    write_records,
)
from slosched.predictors.answers import read_answers

web = pytest.importorskip("aiohttp.web")


class Server:
    """Answers with as many tokens as the prompt's last word says, cut at max_tokens; "fail" fails."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []

    async def models(self, request: Any) -> Any:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def complete(self, request: Any) -> Any:
        body = await request.json()
        self.bodies.append(body)
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        word = prompt.split()[-1]
        if word == "fail":
            return web.Response(status=500)
        if word == "odd":
            return web.json_response({"surprise": 1})
        tokens = min(int(word) + body["seed"], body["max_tokens"])
        reason = "length" if tokens == body["max_tokens"] else "stop"
        await asyncio.sleep(0.001)
        choice = {"finish_reason": reason, "text": "x"}
        return web.json_response({"choices": [choice], "usage": {"completion_tokens": tokens}})


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", made.models)
        app.router.add_post("/v1/completions", made.complete)
        app.router.add_post("/v1/chat/completions", made.complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(120)
    yield made
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.mark.parametrize("chat", [False, True])
def test_a_server_is_asked_for_every_sample(server: Server, chat: bool) -> None:
    settings = CollectSettings(samples=3, max_tokens=50, concurrency=4, chat=chat, seed=2)
    found = collect_server(server.url, ["say 5", "say 49", "say fail", "say odd"], settings)
    lengths = [(r["prompt"], r["sample"], r["output_tokens"], r["cut"]) for r in found.records]
    assert lengths == [
        ("say 5", 0, 7, False), ("say 5", 1, 8, False), ("say 5", 2, 9, False),
        ("say 49", 0, 50, True), ("say 49", 1, 50, True), ("say 49", 2, 50, True),
    ]  # fmt: skip
    assert found.failed == {"HTTP 500": 3, "KeyError": 3}
    assert {body["temperature"] for body in server.bodies} == {1.0}
    assert all(("messages" in body) == chat for body in server.bodies)


def test_the_command_writes_json_lines(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("say 5\n\nsay 900\nsay fail\n")
    with pytest.raises(SystemExit) as left:
        main(
            [
                "collect",
                server.url,
                "--prompts",
                str(prompts),
                "--out",
                str(out),
                "--max-tokens",
                "99",
                "--json",
            ]
        )
    assert left.value.code in (0, None)
    told = json.loads(capsys.readouterr().out)
    assert (told["answers"], told["cut"], told["failed"]) == (2, 1, {"HTTP 500": 1})
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["output_tokens"], r["cut"], r["model"]) for r in records] == [
        (5, False, "tiny"),
        (99, True, "tiny"),
    ]
    again = collect_log(out)
    assert again.records == records


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"url must be that of an OpenAI-compatible server, got 'http://127"):
        collect_server("http://127.0.0.1:9", ["x"])


def test_proxy_logs_of_openai_bodies(tmp_path: Path) -> None:
    log = tmp_path / "proxy.jsonl"
    answer = {"model": "m", "choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 7}}
    cut = {**answer, "choices": [{"finish_reason": "length"}]}
    chat = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}
    lines = [
        {"request": {"prompt": "p"}, "response": answer},
        {"request": {"prompt": "p"}, "response": cut},
        {"request": chat, "response": answer},
        {"request": chat, "response": {"error": "busy"}},
        {"prompt": "flat", "completion_tokens": 3, "finish_reason": "length"},
        {"prompt": "flat", "output_tokens": 0},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = collect_log(log)
    got = [(r["prompt"], r["output_tokens"], r["cut"], r["sample"], r["model"]) for r in found.records]
    assert got == [
        ("p", 7, False, 0, "m"), ("p", 7, True, 1, "m"), ("q", 7, False, 0, "m"), 
        ("flat", 3, True, 0, "unknown"),
    ]  # fmt: skip
    assert found.failed.total() == 2


def test_what_is_written_is_read_back_whatever_the_text(tmp_path: Path) -> None:
    """Prompts hold line separators that are no line ends."""
    texts = ["first\u2028second\u0085third", "a\rb", "tab\tand \x1c\x1d", "\ufeffmark"]
    records = [
        {"prompt": f"{text} {i}", "output_tokens": 5 + i, "cut": False, "sample": 0, "model": "m"}
        for i, text in enumerate(texts * 6)
    ]
    path = tmp_path / "answers.jsonl"
    write_records(records, path)
    assert collect_log(path).records == records
    assert [prompt.text for prompt in read_answers(path).prompts] == [r["prompt"] for r in records]
    assert read_prompts(path) == [r["prompt"] for r in records]


def test_vllm_s_own_log(tmp_path: Path) -> None:
    """Lines as vLLM 0.32 writes them at level DEBUG."""
    log = tmp_path / "vllm.log"
    begin = "(APIServer pid=1) DEBUG 11-21 12:00:05 [request_logger.py:51] "
    log.write_text(
        f"{begin}Request cmpl-1-0 details: prompt: 'it\\'s \"a\"', prompt_token_ids: [1, 5], prompt_embeds "
        "shape: None.\n"
        f"{begin}Received request cmpl-1-0: params: SamplingParams(n=1), lora_request: None.\n"
        f"{begin}Generated response cmpl-1 details: output_token_ids: [7, 8, 9, 2]\n"
        f"{begin}Generated response cmpl-1: output: 'x: finish', finish_reason: stop\n"
        f'{begin}Request chatcmpl-2 details: prompt: "b\'s", prompt_token_ids: [1], prompt_embeds shape: '
        "None.\n"
        f"{begin}Generated response chatcmpl-2 (streaming complete) details: output_token_ids: [7, 8]\n"
        f"{begin}Generated response chatcmpl-2 (streaming complete): output: 'y', finish_reason: length\n"
        f"{begin}Generated response cmpl-9: output: 'lost', finish_reason: stop\n"
    )
    found = collect_log(log)
    got = [(r["prompt"], r["output_tokens"], r["cut"]) for r in found.records]
    assert got == [('it\'s "a"', 4, False), ("b's", 2, True)]
    assert found.failed.total() == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "with none"), (b"\xff\xfe\x00", "UTF-8"), (b"{}\n", "with none"), (b"[1]\n{", "with none")],
)
def test_bad_logs_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(content)
    with pytest.raises(InputError, match=words):
        collect_log(log)


def test_bad_prompts_are_refused(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.txt", "\n \n", "prompts must be at least one"),
        ("a.jsonl", '{"prompt": 3}\n', "row 1: prompt must be a text, got 3"),
        ("b.jsonl", "x\n", "row 1: line must be one JSON object"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=words):
            read_prompts(tmp_path / name)
    assert read_prompts(_written(tmp_path / "c.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n')) == ["a", "b"]


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"temperature": float("nan")}, "temperature must be from 0 to 2, got nan"),
        ({"timeout_s": 0.0}, "timeout_s"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        CollectSettings(**change)


def test_the_command_refuses_what_is_neither(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["collect", "nowhere", "--out", "x.jsonl"])
    assert left.value.code == 2
    assert (
        "source must be a server's URL, a log file or a model's folder, got 'nowhere'"
        in capsys.readouterr().err
    )


def test_ctrl_c_keeps_the_answers_so_far(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are in the file, and the exit code is 130."""
    from slosched.lab import collect

    ask = collect._Asker.question

    def question(self: collect._Asker, i: int, sample: int) -> dict[str, Any]:
        if len(self.found) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return ask(self, i, sample)

    monkeypatch.setattr(collect._Asker, "question", question)
    prompts, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("say 5\n" * 200)
    with pytest.raises(SystemExit) as end:
        main(["collect", server.url, "--prompts", str(prompts), "--concurrency", "1", "--out", str(out)])
    assert end.value.code == 130
    assert 3 <= len(out.read_text().splitlines()) < 200
    assert "holds the answers that had come" in capsys.readouterr().err
