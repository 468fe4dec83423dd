"""A client of OpenAI-compatible servers: whole answers, or streams whose tokens are stamped as they come.

Used by the load generator and by the collection of training data. Needs aiohttp.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from slosched.core.errors import InputError, MissingExtraError, require

FINISHED, REFUSED, CUT_OFF, FAILED = "finished", "refused", "cut off", "failed"
"""How a request ends: its whole answer came; the server did not take it, or answered with nothing; the server
broke the answer off; or the connection or the answer's form was at fault."""

BROKEN_REASONS = ("abort", "aborted", "error", "cancelled", "canceled")
"""Finish reasons that do not mean that the answer ended."""

RETRIED_STATUSES = (429, 503)
STREAM_OPTIONS: tuple[dict[str, bool] | None, ...] = (
    None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True},
)  # fmt: skip
"""What a stream is asked to count, from nothing to tokens in every event; a server may refuse the last two."""

DONE = "[DONE]"
"""Data of the event that ends a stream."""

MOST_WORDS = 100
"""Characters of a server's message that a reason keeps."""


@dataclass(slots=True)
class Answer:
    """What came back from one streamed request; filled while it comes, so that a part is kept.

    Parameters
    ----------
    status
        HTTP status, 0 before there is one.
    outcome, reason
        `FINISHED`, `REFUSED`, `CUT_OFF` or `FAILED`, and why in a few words; "" while it still comes.
    detail
        What the server said about it, cut short.
    finish_reason
        The server's own.
    first_s, last_s
        Clock at the first and the last token that came; NaN if none did.
    tokens
        Tokens that came.
    first_tokens
        Of these, the ones that came in the same event as the first.
    counted
        What the count rests on: ``usage`` (the server's count), ``events`` (token ids or log-probabilities),
        ``length`` (all that were asked for, as the finish reason says) or ``chunks`` (one token each).
    prompt_tokens
        The server's count, if it gave one.
    odd_events
        Events that could not be understood and were passed over.
    retries
        Times that the request was sent again after the server had said when.
    """

    status: int = 0
    outcome: str = ""
    reason: str = ""
    detail: str = ""
    finish_reason: str | None = None
    first_s: float = math.nan
    last_s: float = math.nan
    tokens: int = 0
    first_tokens: int = 0
    counted: str = ""
    prompt_tokens: int | None = None
    odd_events: int = 0
    retries: int = 0

    def end(self, outcome: str, reason: str = "", detail: str = "") -> None:
        """Note how it ended, unless that is known already."""
        if not self.outcome:
            self.outcome, self.reason, self.detail = outcome, reason, detail


class RequestError(Exception):
    """A request that got no answer; the message says why in a few words."""


class Client:
    """One server, for the duration of an ``async with`` block.

    Parameters
    ----------
    url
        Root of the server, or its address with ``/v1``, ``/v1/completions`` or ``/v1/chat/completions``.
    api_key
        Sent as a bearer token.
    timeout_s
        Of requests for the model and for whole answers, retries included. Streams have none of their own: put
        them in ``asyncio.timeout``.
    retries
        Times at most that a request is sent again after a 429 or 503 whose ``Retry-After`` says when.
    clock
        Seconds, for stamps.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 2,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if find_spec("aiohttp") is None:
            raise MissingExtraError("aiohttp", "load")
        require(0 < timeout_s < math.inf, "timeout_s", "a finite number above 0", timeout_s)
        require(retries >= 0, "retries", "at least 0", retries)
        self.url, self.timeout_s, self.retries, self.clock = root_of(url), timeout_s, retries, clock
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.level, self.proven = len(STREAM_OPTIONS) - 1, False
        self._session: Any = None

    async def __aenter__(self) -> Client:
        import aiohttp

        # A connection each: a request waits for the server, never for another request's connection.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self.headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def first_model(self) -> str:
        """Name of the model that the server lists first.

        Raises
        ------
        InputError
            If there is no such server, or it does not answer in time.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                async with self._session.get(f"{self.url}/v1/models") as response:
                    content = await response.json()
            return str(content["data"][0]["id"])
        except TimeoutError:
            words = f"no answer within {self.timeout_s:g} s"
        except _failures() as error:
            words = str(error) or type(error).__name__
        except (KeyError, IndexError, TypeError, ValueError) as error:
            words = f"no list of models ({type(error).__name__})"
        raise InputError(f"url must be that of an OpenAI-compatible server, got {self.url!r}: {words}")

    async def complete(self, content: dict[str, Any]) -> dict[str, Any]:
        """The whole answer to a request, as JSON; see `text`."""
        try:
            answer = json.loads(await self.text(content))
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RequestError("not JSON")
        return answer

    async def text(self, content: dict[str, Any]) -> str:
        """The whole answer to a request, whatever its form.

        Parameters
        ----------
        content
            Body of the request: with ``messages`` for chat completions, else with ``prompt``.

        Raises
        ------
        RequestError
            If no answer came: ``HTTP 500`` with the server's words, or the name of an error of the connection.
        TimeoutError
            If it took longer than `timeout_s`.
        """
        data, retries = json.dumps(content).encode(), 0
        async with asyncio.timeout(self.timeout_s):
            while True:
                try:
                    async with self._post(content, data) as response:
                        text = str(await response.text(errors="replace"))
                        wait_s = retry_after_s(response.status, response.headers)
                except _failures() as error:
                    raise RequestError(type(error).__name__, _words(error)) from error
                if response.status == 200:
                    return text
                if wait_s is None or retries == self.retries or wait_s > self.timeout_s:
                    raise RequestError(f"HTTP {response.status}", error_words(text))
                retries += 1
                await asyncio.sleep(wait_s)

    async def stream(
        self,
        content: dict[str, Any],
        answer: Answer,
        *,
        patience_s: float = math.inf,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        """Send a request, and stamp its tokens as they come; whatever happens to it is in `answer`.

        Parameters
        ----------
        content
            Body of the request, as for `complete`; it is asked for as a stream.
        answer
            Filled while the answer comes.
        patience_s
            Longest wait in all that a server may ask for.
        on_first
            Called at the first token.
        """
        begin = self.clock()
        level = self.level
        while True:
            body = content | {"stream": True}
            if STREAM_OPTIONS[level] is not None:
                body["stream_options"] = STREAM_OPTIONS[level]
            try:
                async with self._post(body, json.dumps(body).encode()) as response:
                    answer.status = response.status
                    if response.status == 200:
                        self.level, self.proven = min(self.level, level), True
                        await self._read(response, answer, content, on_first)
                        return
                    words = error_words(await response.text())
                    wait_s = retry_after_s(response.status, response.headers)
            except _failures() as error:
                outcome = CUT_OFF if math.isfinite(answer.first_s) else FAILED
                answer.end(outcome, type(error).__name__, _words(error))
                return
            if response.status in (400, 422) and level > 0 and not self.proven:
                # Perhaps the server does not know the options; if the request itself is bad, it fails again.
                level -= 1
                continue
            left_s = patience_s - (self.clock() - begin)
            if wait_s is None or answer.retries >= self.retries or wait_s >= left_s:
                answer.end(REFUSED, f"HTTP {response.status}", words)
                return
            answer.retries += 1
            await asyncio.sleep(wait_s)

    def _post(self, content: dict[str, Any], data: bytes) -> Any:
        path = "chat/completions" if "messages" in content else "completions"
        headers = {"Content-Type": "application/json"}
        return self._session.post(f"{self.url}/v1/{path}", data=data, headers=headers)

    async def _read(
        self, response: Any, answer: Answer, content: dict[str, Any], on_first: Callable[[], None] | None
    ) -> None:
        """Read a stream to its end."""
        stamps = _Stamps(answer, on_first)
        whole = "text/event-stream" not in response.headers.get("Content-Type", "text/event-stream")
        if whole:
            body = await response.json(content_type=None)
            stamps.take(body if isinstance(body, dict) else {}, self.clock())
            ended = True
        else:
            ended = False
            async for event in events(response.content):
                if event == DONE:
                    ended = True
                    break
                if isinstance(event, dict):
                    stamps.take(event, self.clock())
                else:
                    answer.odd_events += 1
        asked = content.get("max_tokens", content.get("max_completion_tokens"))
        stamps.count(asked if isinstance(asked, int) else None)
        _judge(answer, ended)


def _judge(answer: Answer, ended: bool) -> None:
    """How a stream ended that was read to its end."""
    if answer.finish_reason in BROKEN_REASONS:
        answer.end(CUT_OFF if answer.tokens else REFUSED, f"finish_reason {answer.finish_reason}")
    elif answer.tokens == 0:
        answer.end(REFUSED, "empty answer")
    elif answer.finish_reason is not None or ended:
        answer.end(FINISHED)
    else:
        answer.end(CUT_OFF, "the stream ended early")


@dataclass(slots=True)
class _Stamps:
    """When which tokens of one answer came."""

    answer: Answer
    on_first: Callable[[], None] | None
    usage: int | None = None
    exact: int = 0
    """Tokens counted by usage, ids or log-probabilities, event by event."""
    inexact: int = 0
    """Events with text whose tokens are not known."""
    characters: int = 0
    first_characters: int = 0
    silent_s: list[float] = field(default_factory=list)
    """First and last event without text, in case tokens have none."""

    def take(self, event: dict[str, Any], now: float) -> None:
        """Note one event."""
        answer = self.answer
        if error := event.get("error"):
            outcome = CUT_OFF if math.isfinite(answer.first_s) else FAILED
            answer.end(outcome, "error event", _words(error))
            return
        counted = self._usage(event.get("usage"))
        if self.inexact:
            counted = None  # a sum at the end, not a count of this event
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices:
            if counted is None and choices != []:
                answer.odd_events += 1
            return
        choice = choices[0]
        if not isinstance(choice, dict):
            answer.odd_events += 1
            return
        if choice.get("finish_reason") is not None:
            answer.finish_reason = str(choice["finish_reason"])
        text, tokens = _text_of(choice), counted
        if tokens is None:
            tokens = _tokens_of(choice)
        if tokens is None and not text:
            self.silent_s[1:] = [now]
        elif tokens is None:
            self._stamp(now, text)
            self.inexact += 1
        elif tokens > 0:
            answer.first_tokens = tokens if math.isnan(answer.first_s) else answer.first_tokens
            self._stamp(now, text)
            self.exact += tokens
        answer.tokens = self.exact + self.inexact

    def _stamp(self, now: float, text: str) -> None:
        answer = self.answer
        self.characters += len(text)
        if math.isnan(answer.first_s):
            answer.first_s = now
            self.first_characters = len(text)
            if self.on_first is not None:
                self.on_first()
        answer.last_s = now

    def _usage(self, usage: object) -> int | None:
        """New tokens since the event before, as the server counts; None if it does not say."""
        if not isinstance(usage, dict):
            return None
        if _is_count(usage.get("prompt_tokens")):
            self.answer.prompt_tokens = usage["prompt_tokens"]
        now = usage.get("completion_tokens")
        if not isinstance(now, int) or not _is_count(now):
            return None
        before, self.usage = self.usage or 0, now
        return max(0, now - before)

    def count(self, asked: int | None) -> None:
        """The tokens of the whole answer, from the best evidence there is."""
        answer = self.answer
        chunks = self.inexact
        if self.usage is not None and self.usage > 0:
            answer.tokens, answer.counted = self.usage, "usage"
        elif chunks == 0:
            answer.tokens, answer.counted = self.exact, "events"
        elif answer.finish_reason == "length" and asked is not None and asked >= self.exact + chunks:
            answer.tokens, answer.counted = asked, "length"
        else:
            answer.tokens, answer.counted = self.exact + chunks, "chunks"
        if answer.tokens and math.isnan(answer.first_s) and self.silent_s:
            # Every token is without text, such as special tokens: then the events themselves are the stamps.
            answer.first_s, answer.last_s = self.silent_s[0], self.silent_s[-1]
        if answer.tokens and not answer.first_tokens:
            share = self.first_characters / self.characters if self.characters else 0.0
            alone = answer.tokens == self.exact + chunks or chunks == 0
            answer.first_tokens = 1 if alone else max(1, round(answer.tokens * share))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text_of(choice: dict[str, Any]) -> str:
    """Text of a choice of a completion or a chat completion, reasoning and tool calls included."""
    parts = [choice.get("text")]
    for name in ("delta", "message"):
        if isinstance(delta := choice.get(name), dict):
            parts += [delta.get(key) for key in ("content", "reasoning_content", "reasoning", "refusal")]
            if delta.get("tool_calls"):
                parts.append(json.dumps(delta["tool_calls"]))
    return "".join(part for part in parts if isinstance(part, str))


def _tokens_of(choice: dict[str, Any]) -> int | None:
    """Tokens of a choice that lists them; None for one that does not."""
    if isinstance(ids := choice.get("token_ids"), list):
        return len(ids)
    if isinstance(chances := choice.get("logprobs"), dict):
        for name in ("tokens", "content"):
            if isinstance(listed := chances.get(name), list):
                return len(listed)
    return None


async def events(content: Any) -> AsyncIterator[object]:
    """JSON of the server-sent events in a stream of bytes, and `DONE`; None for one that is not JSON.

    An event's data may span lines, and lines may span packets; a line that is JSON by itself is an event even
    if no blank line follows, as some servers send it. Comments and other fields are passed over.
    """
    rest = b""
    pending: list[str] = []
    async for packet in content.iter_any():
        lines = (rest + packet).split(b"\n")
        rest = lines.pop()
        for line in lines:
            for event in _event(line, pending):
                yield event
    for line in (rest, b""):
        for event in _event(line, pending):
            yield event


def _event(line: bytes, pending: list[str]) -> list[object]:
    """Events that a line completes; what it does not complete is appended to `pending`."""
    line = line.rstrip(b"\r")
    if not line:
        odd: list[object] = [None] if pending else []
        pending.clear()
        return odd
    if not line.startswith(b"data:"):
        return []
    pending.append(line[5:].decode("utf-8", errors="replace").strip())
    joined = "\n".join(pending)
    try:
        event: object = DONE if joined == DONE else json.loads(joined)
    except ValueError:
        return []
    pending.clear()
    return [event]


def root_of(url: str) -> str:
    """Root of a server whose address may end in ``/v1`` and a path below it.

    Examples
    --------
    >>> root_of("http://localhost:8000/v1/chat/completions"), root_of("https://host/base/v1/")
    ('http://localhost:8000', 'https://host/base')
    """
    ok = url.startswith(("http://", "https://"))
    require(ok, "url", "one that begins with http:// or https://", url)
    root = url.rstrip("/")
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1"):
        if root.endswith(path):
            return root.removesuffix(path).rstrip("/")
    return root


def retry_after_s(status: int, headers: Any, *, now: Callable[[], float] = time.time) -> float | None:
    """Seconds after which a refused request may be sent again, as ``Retry-After`` says; None if it does not.

    Examples
    --------
    >>> retry_after_s(503, {"Retry-After": "2.5"}), retry_after_s(503, {}), retry_after_s(500, {"Retry-After": "1"})
    (2.5, None, None)
    >>> retry_after_s(429, {"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}, now=lambda: 50.0)
    10.0
    """
    given = headers.get("Retry-After")
    if status not in RETRIED_STATUSES or given is None:
        return None
    try:
        wait_s = float(given)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(given).timestamp() - now()
        except ValueError:
            return None
    return max(0.0, wait_s) if math.isfinite(wait_s) else None


def error_words(text: str) -> str:
    """The message in the body of a refusal, cut short; "" if there is none, or a web page."""
    try:
        content = json.loads(text)
    except ValueError:
        return "" if text.lstrip().startswith("<") else _words(text)
    return _words(content.get("error", content) if isinstance(content, dict) else content)


def _words(error: object) -> str:
    if isinstance(error, dict):
        error = next((error[name] for name in ("message", "detail", "type") if error.get(name)), error)
    return " ".join(str(error).split())[:MOST_WORDS]


def _failures() -> tuple[type[Exception], ...]:
    """What a connection that breaks raises."""
    import aiohttp

    return (aiohttp.ClientError, ConnectionError, OSError)
