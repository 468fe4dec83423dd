"""A client of OpenAI-compatible servers: whole answers, or streams whose tokens are stamped as they come.

Used by the load generator and by the collection of training data. Needs aiohttp.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from slosched.core.errors import InputError, MissingExtraError, require
from slosched.integrations.openai_stream import (
    CUT_OFF,
    DONE,
    FAILED,
    REFUSED,
    Answer,
    EndOfThinking,
    Stamps,
    events,
    judge,
    printable,
    words_of,
)

NO_THINKING = EndOfThinking()
RETRIED_STATUSES = (429, 503)
MOST_REFUSAL = 65_536
"""Bytes of a refusal that are read: far more than the words that are kept of it."""
STREAM_OPTIONS: tuple[dict[str, bool] | None, ...] = (
    None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True},
)  # fmt: skip
"""What a stream is asked to count, from nothing to tokens in every event; a server may refuse the last."""


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
        # Clients know nothing of each other: a cookie would tie all of them to one server behind a balancer.
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self.headers, cookie_jar=aiohttp.DummyCookieJar()
        )
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
                    status = response.status
                    content = json.loads(await response.read())  # whatever type the server says it is
            return printable(str(content["data"][0]["id"]))
        except TimeoutError:
            words = f"no answer within {self.timeout_s:g} s"
        except _failures() as error:
            words = str(error) or type(error).__name__
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            words = f"no list of models (status {status}, {type(error).__name__}); name the model: --model"
        raise InputError(f"url must be that of an OpenAI-compatible server, got {self.url!r}: {words}")

    async def complete(self, content: dict[str, Any]) -> dict[str, Any]:
        """The whole answer to a request, as JSON; see `text`."""
        try:
            answer = json.loads(await self.text(content))
        except (ValueError, RecursionError):
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
            If no answer came: ``HTTP 500`` with the server's words, or the name of a connection's error.
        TimeoutError
            If it took longer than `timeout_s`.
        """
        data, retries = json.dumps(content).encode(), 0
        async with asyncio.timeout(self.timeout_s):
            while True:
                try:
                    async with self._post(content, data) as response:
                        text: str = (await response.read()).decode("utf-8", errors="replace")
                        wait_s = retry_after_s(response.status, response.headers)
                except _failures() as error:
                    raise RequestError(type(error).__name__, words_of(error)) from error
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
        end: EndOfThinking = NO_THINKING,
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
        end
            How the end of thinking is told.
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
                        await self._read(response, answer, content, Stamps(answer, on_first, end))
                        return
                    words = error_words((await _begun(response.content)).decode("utf-8", errors="replace"))
                    wait_s = retry_after_s(response.status, response.headers)
            except _failures() as error:
                outcome = CUT_OFF if math.isfinite(answer.first_s) else FAILED
                answer.end(outcome, type(error).__name__, words_of(error))
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

    async def _read(self, response: Any, answer: Answer, content: dict[str, Any], stamps: Stamps) -> None:
        """Read a stream to its end."""
        first = await response.content.readany()
        kind = response.headers.get("Content-Type", "")
        whole = kind.startswith("application/json") and first.lstrip()[:1] in (b"{", b"[")
        ended = whole
        body: Any = None
        if whole:
            first += await response.content.read()
            with suppress(ValueError, RecursionError):
                body = json.loads(first)
        if body is not None:
            stamps.take(body if isinstance(body, dict) else {}, self.clock())
        else:
            async for event in events(_all(first, response.content)):
                if event == DONE:
                    ended = True
                    break
                if isinstance(event, dict):
                    stamps.take(event, self.clock())
                else:
                    answer.odd_events += 1
        asked = content.get("max_tokens", content.get("max_completion_tokens"))
        stamps.count(asked if isinstance(asked, int) else None)
        judge(answer, ended)


async def _begun(content: Any) -> bytes:
    """What a refusal's body begins with: a page without end must not be kept."""
    begun = b""
    while len(begun) < MOST_REFUSAL and (packet := await content.readany()):
        begun += packet
    return begun


async def _all(first: bytes, content: Any) -> AsyncIterator[bytes]:
    """What has been read of an answer, and what is still to come."""
    yield first
    async for packet in content.iter_any():
        yield packet


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
    >>> retry_after_s(503, {"Retry-After": "2.5"}), retry_after_s(503, {})
    (2.5, None)
    >>> retry_after_s(500, {"Retry-After": "1"}) is None
    True
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
    except (ValueError, RecursionError):
        return "" if text.lstrip().startswith("<") else words_of(text)
    return words_of(content.get("error", content) if isinstance(content, dict) else content)


def _failures() -> tuple[type[Exception], ...]:
    """What a connection that breaks raises."""
    import aiohttp

    return (aiohttp.ClientError, ConnectionError, OSError)
