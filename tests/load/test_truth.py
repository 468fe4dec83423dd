"""The load generator tells the truth: tokens that came, ends that add up, and nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.core.metrics import Metrics
from slosched.core.outcome import Run
from slosched.core.thinking import Thinking
from slosched.core.workload import PrefixBlocks, Workload
from slosched.integrations.openai_client import Client
from slosched.lab.load import LoadCounts, LoadSettings, load
from slosched.report.table import run_table

web = pytest.importorskip("aiohttp.web")

Habits = Any
"""The server of conftest.py."""
Write = Callable[[dict[str, Any] | str], Awaitable[None]]
STEP_S = 0.01

ROOT = Path(__file__).resolve().parents[2]


def chunk(text: str = " a", finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One event of a stream of a completion."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}], **more}


def work(requests: int = 3, output: int = 32, gap_s: float = 0.05) -> Workload:
    """A few equal requests."""
    tokens = np.full(requests, output, dtype=np.int64)
    times = np.arange(requests, dtype=np.float64) * gap_s
    return Workload.plain(times, np.full(requests, 5, dtype=np.int64), tokens)


def sent(habits: Habits, workload: Workload, **settings: Any) -> tuple[Run, LoadCounts]:
    """A run, whose ends must add up."""
    counts = LoadCounts()
    run = load(habits.url, workload, LoadSettings(warm_up=0, model="m", **settings), counts=counts)
    assert counts.total == counts.requests == len(workload)
    assert counts.finished == int(run.outcomes.finished.sum())
    return run, counts


# tokens that came -------------------------------------------------------------------------------------------


async def short(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await habits.tokens(write, 3, step_s=0.2, finish="stop")


async def empty_first(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await write(chunk(""))
    await asyncio.sleep(0.5)
    await habits.tokens(write, body["max_tokens"])


async def multi(habits: Habits, body: dict[str, Any], write: Write) -> None:
    for i in range(0, body["max_tokens"], 16):
        await asyncio.sleep(16 * STEP_S)
        await write(chunk(" a" * 16, finish="length" if i + 16 >= body["max_tokens"] else None))


async def late_tail(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await habits.tokens(write, body["max_tokens"], finish=None)
    await asyncio.sleep(1.5)
    await write(chunk("", "length"))


async def late_tail_with_sum(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await habits.tokens(write, body["max_tokens"], finish=None)
    await asyncio.sleep(1.5)
    await write(chunk("", "length", usage={"completion_tokens": body["max_tokens"]}))


async def silent_tokens(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """Tokens without text, counted by the server in every event, as vLLM does when asked."""
    for i in range(body["max_tokens"]):
        await asyncio.sleep(STEP_S)
        finish = "length" if i + 1 == body["max_tokens"] else None
        await write(chunk("", finish, usage={"prompt_tokens": 5, "completion_tokens": i + 1}))


async def listed_tokens(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """Several tokens in an event, listed."""
    for i in range(0, body["max_tokens"], 4):
        await asyncio.sleep(4 * STEP_S)
        finish = "stop" if i + 4 >= body["max_tokens"] else None
        choice = {"index": 0, "text": "x", "finish_reason": finish, "token_ids": [1, 2, 3, 4]}
        await write({"choices": [choice]})


@pytest.mark.parametrize(
    ("script", "ttft_s", "tpot_s", "tokens", "counted"),
    [
        (short, 0.2, 0.2, 3, "chunks"),
        (empty_first, 0.5 + STEP_S, STEP_S, 32, "length"),
        (multi, 16 * STEP_S, STEP_S, 32, "length"),
        (late_tail, STEP_S, STEP_S, 32, "length"),
        (late_tail_with_sum, STEP_S, STEP_S, 32, "usage"),
        (silent_tokens, STEP_S, STEP_S, 32, "usage"),
        (listed_tokens, 4 * STEP_S, STEP_S, 32, "events"),
    ],
)
def test_latencies_are_of_tokens_that_came(
    habits: Habits, script: Any, ttft_s: float, tpot_s: float, tokens: int, counted: str
) -> None:
    """Neither an empty chunk nor the end is a token; several in a chunk are several."""
    habits.script = lambda body, write: script(habits, body, write)
    run, counts = sent(habits, work(2, gap_s=0.0))
    out = run.outcomes
    assert counts.finished == 2
    assert out.workload.output_tokens.tolist() == [tokens, tokens]
    assert counts.counted == {counted: 2}
    # A loaded machine makes everything later, never earlier; the old faults were off by a factor of 2 to 70.
    assert ttft_s <= float(np.median(out.ttft_s)) < ttft_s + 1.0
    assert 0.95 * tpot_s <= float(np.median(out.tpot_s)) < 3 * tpot_s + 0.004


# ends with reasons ------------------------------------------------------------------------------------------


async def mid_error(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await habits.tokens(write, 3, finish=None)
    await write({"error": {"message": "engine died", "type": "InternalServerError", "code": 500}})


async def fin_abort(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await habits.tokens(write, 3, finish=None)
    await write(chunk("", "abort"))


async def only_done(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """What vLLM sends for a refused request whose stream has begun."""


async def no_finish(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await habits.tokens(write, body["max_tokens"], finish=None)


async def usage_null(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await habits.tokens(write, body["max_tokens"])
    await write({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": None}})


async def odd_events(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await write({"choices": [None]})
    await write("data: {broken\n\n")
    await write("data: [1]\n\n: a comment\nevent: x\n\n")
    await habits.tokens(write, body["max_tokens"])


async def deep_event(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await write("data: " + "[" * 100_000 + "\n\n")
    await habits.tokens(write, body["max_tokens"])


async def hostile_words(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """Half a character and a sequence that clears a terminal, as JSON may hold them."""
    await write('data: {"error": {"message": "engine \\ud800 died \\u001b[2J"}}\n\n')


async def over_lines(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """An event's data over two lines, Windows line ends, and packets cut anywhere."""
    for i in range(body["max_tokens"]):
        await asyncio.sleep(STEP_S)
        text = json.dumps(chunk(finish="stop" if i + 1 == body["max_tokens"] else None))
        await write(f"data: {text[:1]}\r\ndata: {text[1:9]}")
        await write(f"{text[9:]}\r\n\r\n")


async def reasons_in_every_event(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """An empty finish reason means that there is none yet: the answer broke off."""
    habits.done = False
    for _ in range(body["max_tokens"]):
        await write(chunk(finish=""))


async def in_parts(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """A chat's content as a list of parts, and a byte-order mark before all."""
    await write("\ufeff")
    for i in range(body["max_tokens"]):
        delta = {"content": [{"type": "text", "text": " a"}, {"type": "image"}, None]}
        finish = "stop" if i + 1 == body["max_tokens"] else None
        await write({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


async def object_error(habits: Habits, body: dict[str, Any], write: Write) -> None:
    await write({"object": "error", "message": "engine died", "type": "InternalServerError", "code": 500})


async def bare_lines(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """JSON lines instead of server-sent events."""
    habits.done = False
    for i in range(body["max_tokens"]):
        finish = "stop" if i + 1 == body["max_tokens"] else None
        await write(json.dumps(chunk(finish=finish)) + "\n")


@pytest.mark.parametrize(
    ("script", "field", "expected"),
    [
        (reasons_in_every_event, "cut_off", {"the stream ended early": 3}),
        (in_parts, "finished", 3),
        (object_error, "errors", {"error event": 3}),
        (bare_lines, "finished", 3),
        (mid_error, "cut_off", {"error event": 3}),
        (fin_abort, "cut_off", {"finish_reason abort": 3}),
        (only_done, "refused", {"empty answer": 3}),
        (no_finish, "finished", 3),
        (usage_null, "finished", 3),
        (odd_events, "finished", 3),
        (deep_event, "finished", 3),
        (hostile_words, "errors", {"error event": 3}),
        (over_lines, "finished", 3),
    ],
)
def test_every_end_is_counted_with_its_reason(habits: Habits, script: Any, field: str, expected: Any) -> None:
    """Outcomes add up; one odd event marks its request at most, and the run goes on."""
    habits.script = lambda body, write: script(habits, body, write)
    run, counts = sent(habits, work(output=4))
    assert getattr(counts, field) == expected
    if script is odd_events:
        assert counts.odd_events == 9
    if script is deep_event:
        assert counts.odd_events == 3
    if script is hostile_words:
        said = counts.sentences()
        assert said.encode()
        assert "error event: engine \N{REPLACEMENT CHARACTER} died \N{REPLACEMENT CHARACTER}[2J" in said
    if script is mid_error:
        assert "3 cut off (error event: engine died)" in counts.sentences()
        assert np.isfinite(run.outcomes.ttft_s).all()
    if script is only_done:
        assert Metrics.of(run).rejected == 3


@pytest.mark.parametrize(
    ("models", "status", "expected"),
    [
        (json.dumps({"data": [{"id": "m"}]}), 200, "m"),
        (json.dumps({"data": [{"id": "m \ud800"}]}), 200, "m \N{REPLACEMENT CHARACTER}"),
        ("<html>", 200, "status 200, JSONDecodeError"),
        ("[" * 100_000, 200, "RecursionError"),
        ("", 404, "status 404"),
    ],
)
def test_the_list_of_models_is_read_whatever_its_type(
    habits: Habits, models: str, status: int, expected: str
) -> None:
    """Small servers name no content type; one without a list says how to name the model."""
    habits.answer_models = lambda: web.Response(body=models.encode(), status=status)

    async def ask() -> str:
        async with Client(habits.url, timeout_s=10.0) as client:
            return await client.first_model()

    if status == 200 and models.startswith("{"):
        assert asyncio.run(ask()) == expected
    else:
        with pytest.raises(InputError, match=f"no list of models .*{expected}.*--model"):
            asyncio.run(ask())


def test_a_stream_without_an_end_is_cut_off(habits: Habits) -> None:
    """Tokens came, but neither a finish reason nor [DONE]."""
    habits.done = False
    habits.script = lambda body, write: no_finish(habits, body, write)
    _, counts = sent(habits, work(output=4))
    assert counts.cut_off == {"the stream ended early": 3}


@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/json", "binary/octet-stream"])
def test_a_stream_is_one_whatever_its_type(habits: Habits, kind: str) -> None:
    """Events are stamped as they come, though the server calls them by another name."""
    habits.type = kind
    run, counts = sent(habits, work(output=8))
    assert counts.finished == 3
    assert (run.outcomes.tpot_s > 0.5 * STEP_S).all()


@pytest.mark.parametrize("charset", ["utf-8", "no-such-charset"])
def test_a_refusal_in_any_letters(habits: Habits, charset: str) -> None:
    """Bytes that are no text and an unknown charset are a refusal like any other."""
    kind = {"Content-Type": f"text/plain; charset={charset}"}
    habits.before = lambda _: web.Response(body=b"\xff busy", status=500, headers=kind)
    _, counts = sent(habits, work())
    assert counts.refused == {"HTTP 500": 3}
    assert "busy" in counts.sentences()


def test_a_server_that_does_not_stream(habits: Habits) -> None:
    """One JSON body: finished, with all its tokens at once."""
    content = {"choices": [{"text": "a b", "finish_reason": "length"}], "usage": {"completion_tokens": 4}}
    habits.before = lambda _: web.json_response(content)
    run, counts = sent(habits, work(output=4))
    assert counts.finished == 3
    assert run.outcomes.tpot_s.tolist() == [0, 0, 0]
    assert run.outcomes.workload.output_tokens.tolist() == [4, 4, 4]


# refusals ---------------------------------------------------------------------------------------------------


def test_retry_after_is_honoured(habits: Habits) -> None:
    """A request is sent again when the server said, at most so often; its latency counts from the plan."""
    refused: list[float] = []
    after_s = ["0.3"]

    def before(body: dict[str, Any]) -> Any:
        if len(refused) < 2:
            refused.append(time.perf_counter())
            return web.json_response(
                {"error": {"message": "queue full"}}, status=429, headers={"Retry-After": after_s[0]}
            )
        return None

    habits.before = before
    run, counts = sent(habits, work(requests=1, output=2))
    assert (counts.finished, counts.retries) == (1, 2)
    assert refused[1] - refused[0] >= 0.3
    assert float(run.outcomes.ttft_s[0]) >= 0.6
    refused.clear()
    run, counts = sent(habits, work(requests=1, output=2), retries=1)
    assert counts.refused == {"HTTP 429": 1}
    assert "1 refused (HTTP 429: queue full)" in counts.sentences()
    assert run.outcomes.rejected is not None
    assert run.outcomes.rejected.tolist() == [True]
    refused.clear()
    after_s[0] = "900"
    _, counts = sent(habits, work(requests=1, output=2), timeout_s=60.0)
    assert counts.refused == {"HTTP 429": 1}  # waiting would outlast the time-out


def test_a_server_that_knows_no_stream_options_is_asked_without(habits: Habits) -> None:
    """Counting in every event is asked for, then a sum, then nothing; a request that is bad stays bad."""

    def before(body: dict[str, Any]) -> Any:
        options = body.get("stream_options") or {}
        if "continuous_usage_stats" in options or body["max_tokens"] == 99:
            return web.json_response({"error": {"message": "unknown field"}}, status=400)
        return None

    habits.before = before
    _, counts = sent(habits, work(requests=4, output=2, gap_s=1.0))
    assert counts.finished == 4
    options = [body.get("stream_options") for body in habits.bodies]
    assert options[1:] == [{"include_usage": True}] * 4  # asked in vain once
    _, counts = sent(habits, work(requests=2, output=99))
    assert counts.refused == {"HTTP 400": 2}


def test_warm_up_ends_at_the_timeout(habits: Habits) -> None:
    """A server that never answers it is named after that time."""
    habits.warm_up_s = 300.0
    begin = time.perf_counter()
    with pytest.raises(InputError, match=r"must answer a warm-up request within the timeout.*0\.5 s"):
        load(habits.url, work(), LoadSettings(timeout_s=0.5, model="m"))
    assert time.perf_counter() - begin < 60


# addresses and forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/completions", "/v1/chat/completions"])
def test_any_address_of_the_server_will_do(habits: Habits, path: str) -> None:
    """The root is found in each."""
    root = habits.url
    habits.url = root + path
    _, counts = sent(habits, work(requests=1, output=1))
    assert counts.finished == 1
    assert Client(root + path).url == root


def test_chat_completions(habits: Habits) -> None:
    """A role, then content, reasoning or tool calls: the first of these is the first token."""

    async def script(body: dict[str, Any], write: Write) -> None:
        deltas: list[dict[str, Any]] = [
            {"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "yes"},
            {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, {},
        ]  # fmt: skip
        for i, delta in enumerate(deltas):
            finish = "stop" if i == len(deltas) - 1 else None
            await write({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
            await asyncio.sleep(0.1)
        await write({"choices": [], "usage": {"prompt_tokens": 17, "completion_tokens": 3}})

    habits.script = script
    run, counts = sent(habits, work(requests=2), chat=True)
    assert counts.finished == 2
    assert set(habits.paths) == {"/v1/chat/completions"}
    assert habits.bodies[0]["messages"][0]["role"] == "user"
    assert len(habits.bodies[0]["messages"][0]["content"].split()) == 5
    assert run.outcomes.workload.prompt_tokens.tolist() == [17, 17]
    assert run.outcomes.workload.output_tokens.tolist() == [3, 3]
    # The role comes at once, the first token 100 ms later; a loaded machine makes everything later only.
    assert float(run.outcomes.ttft_s.min()) >= 0.09


def test_shared_prefixes_are_shared(habits: Habits) -> None:
    """Equal blocks have equal tokens, at the same place, and the rest differs."""
    blocks = PrefixBlocks(offsets=np.array([0, 2, 4]), ids=np.array([7, 8, 7, 9]), block_tokens=16)
    shared = replace(work(requests=2, output=1), prompt_tokens=np.array([40, 40]), prefix=blocks)
    sent(habits, shared)
    first, second = (body["prompt"] for body in sorted(habits.bodies, key=lambda body: str(body["prompt"])))
    assert len(first) == len(second) == 40
    assert first[:16] == second[:16]
    assert first[16:32] != second[16:32]


# sessions ---------------------------------------------------------------------------------------------------


def test_sessions_are_closed_loops(habits: Habits) -> None:
    """A turn leaves think time after the answer before, however long that took; none follows a failure."""
    session, think = np.array([0, 0, 1, 1, 1]), np.array([-1.0, 0.2, -1.0, 0.1, 0.1])
    arrival = np.array([0.0, 0.01, 0.02, 0.03, 0.04])
    turns = Workload.plain(
        arrival, np.full(5, 5), np.array([30, 2, 2, 3, 2]), session=session, think_s=think
    )  # fmt: skip

    def before(body: dict[str, Any]) -> Any:
        return web.Response(status=500) if body["max_tokens"] == 3 else None

    habits.before = before
    run, counts = sent(habits, turns)
    out = run.outcomes
    assert counts.finished == 3
    assert counts.refused == {"HTTP 500": 1}
    assert counts.not_sent == {"the answer before it did not end": 1}
    assert float(out.finish_s[0]) >= 0.3
    assert float(out.arrival_s[1]) >= float(out.finish_s[0]) + 0.2
    assert np.isnan(out.arrival_s[4])
    assert out.met.tolist() == [True, True, True, False, False]
    run, _ = sent(habits, turns.open_loop())
    assert run.outcomes.arrival_s.tolist() == arrival.tolist()


# the client's own clock -------------------------------------------------------------------------------------


def test_how_busy_the_server_was_is_not_invented(habits: Habits) -> None:
    """Seen from outside it is not known: null in JSON, no row in the table."""
    run, counts = sent(habits, work(output=2))
    assert Metrics.of(run).to_dict()["busy_share"] is None
    cells = [str(cell) for cell in run_table(Metrics.of(run)).columns[0].cells]
    assert not {"engine", "preemptions", "planning"} & set(cells)
    assert 0 <= counts.late_p99_s <= counts.latest_send_s
    assert "ms late" in counts.sentences()


def test_a_late_client_says_so(habits: Habits) -> None:
    """A client whose loop is held up says that its figures are of this machine."""

    async def script(body: dict[str, Any], write: Write) -> None:
        time.sleep(0.0)
        await habits.tokens(write, 2)

    habits.script = script
    slow = work(requests=4, output=2, gap_s=0.1)
    counts = LoadCounts()
    load(habits.url, slow, LoadSettings(warm_up=0), counts=counts, progress=lambda *_: time.sleep(0.4))
    assert counts.late
    assert "The client was late" in counts.sentences()


def test_ctrl_c_keeps_what_is_done(habits: Habits, tmp_path: Path) -> None:
    """What has ended is reported, what is in flight and what was never sent is counted; exit code 130."""
    short = [0]

    async def script(body: dict[str, Any], write: Write) -> None:
        await habits.tokens(write, 1 if body["max_tokens"] == 1 else 100_000)
        short[0] += 1

    habits.script = script
    trace = tmp_path / "t.csv"
    rows = "".join(f"{i * 0.1},5,{1 if i < 5 else 9},chat\n" for i in range(200))
    trace.write_text("arrival_s,prompt_tokens,output_tokens,slo_class\n" + rows)
    command = [sys.executable, "-c", "from slosched.cli import main; main()", "load", habits.url]
    with subprocess.Popen(
        [*command, "--trace", str(trace), "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 300
            while short[0] < 5 or len([b for b in habits.bodies if b.get("stream")]) < 8:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 130, err
    client = json.loads(out)["client"]
    assert client["finished"] == 5
    assert client["interrupted"] >= 3
    assert client["finished"] + client["interrupted"] + client["not_sent"]["the run was stopped"] == 200
    assert json.loads(out)["points"][0]["requests"] == 5
    assert "Traceback" not in err


def test_a_run_in_which_nothing_finished_fails(habits: Habits, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, with the reasons."""
    from slosched.cli import main

    habits.before = lambda _: web.Response(status=503)
    with pytest.raises(SystemExit) as left:
        main(["load", habits.url, "--workload", "chat", "--rate", "20", "--duration", "0.5"])
    assert left.value.code == 1
    assert "refused (HTTP 503)" in " ".join(capsys.readouterr().out.split())


# thinking ---------------------------------------------------------------------------------------------------


async def marked(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """Four tokens of thinking, its mark in two halves, two tokens of answer."""
    for text in ("<think>", " a", " b", " c </thi", "nk>", "x", "y"):
        await asyncio.sleep(5 * STEP_S)
        await write(chunk(text, "stop" if text == "y" else None))


async def parted(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """A server that parts reasoning from content itself."""
    for i in range(7):
        await asyncio.sleep(5 * STEP_S)
        delta = {"reasoning_content": "hm"} if i < 5 else {"content": "x"}
        await write({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if i == 6 else None}]})


async def unmarked(habits: Habits, body: dict[str, Any], write: Write) -> None:
    """Thinking that a limit ended."""
    for i in range(7):
        await asyncio.sleep(5 * STEP_S)
        await write(chunk(" a", "length" if i == 6 else None))


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("script", [marked, parted, unmarked])
def test_the_first_answer_token_is_the_first_after_thinking(
    habits: Habits, script: Any, forced: bool
) -> None:
    """Told by the mark, by the server, or, where lengths are forced, by the count of tokens."""
    habits.script = lambda body, write: script(habits, body, write)
    base = work(2, 7)
    base = replace(base, thinking=Thinking.of(np.full(2, 5), np.array([9.0, np.inf])))
    settings = LoadSettings(warm_up=0, model="m")
    run = load(habits.url, base, settings, prompts=None if forced else ["a", "b"])
    ttfat_s, ttft_s = run.outcomes.ttfat_s, run.outcomes.ttft_s
    if script is unmarked and not forced:
        assert np.isnan(ttfat_s).all()
        assert run.outcomes.met.tolist() == [False, True]
        return
    assert np.all(ttfat_s - ttft_s > 4 * 5 * STEP_S)
    assert np.all(ttfat_s < run.outcomes.e2e_s)
    sent = habits.bodies[0]["vllm_xargs"]
    assert (sent["slo_ttfat_ms"], sent["predicted_thinking_tokens"]) == (9000.0, 5.0)
    assert "slo_ttfat_ms" not in habits.bodies[1]["vllm_xargs"]
