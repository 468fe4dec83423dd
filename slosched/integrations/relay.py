"""One request's way to an engine and its answer's way back, byte for byte."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from slosched.integrations.asgi import HungUp, own_headers
from slosched.integrations.events import WholeLines
from slosched.integrations.upstream import Upstream

if TYPE_CHECKING:
    import aiohttp

Message = MutableMapping[str, Any]

HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
     b"transfer-encoding", b"upgrade", b"host", b"content-length", b"expect", b"proxy-connection",
     b"http2-settings")
)  # fmt: skip
"""Headers that concern one connection only (RFC 9110, section 7.6.1), and those the client sets itself."""

RANK = b"X-data-parallel-rank"
"""vLLM's header that names the rank; where the router chooses ranks, a client's own is left out."""

EVENTS = "text/event-stream"
IN_PIECES = (EVENTS, "application/x-ndjson", "application/jsonl", "application/stream+json")
"""Types of answers that come piece by piece, and are passed on so, whether or not that was asked for."""

STATUSES = range(200, 600)
"""Statuses an answer may have; anything else is an engine that does not speak HTTP."""

UNAVAILABLE = (502, 503, 504)
"""Statuses that say the engine, or what is before it, is not there."""

MOST_WHOLE_BYTES = 64 * 1024 * 1024
"""Answers that are not streamed are kept whole up to this size, so that half of one is never passed on."""

MOST_TOKENS = 10**9
"""Output tokens that an answer may claim; more is a mistake, and would not fit the table."""


class Broken(Exception):
    """The engine has not answered, or not to the end.

    `refused`: it takes no connections. `unreached`: nothing has reached it, for that or another reason, as
    where this process stood still while it connected. `begun`: the client has part of the answer. `status`:
    what the engine said in place of an answer, 0 for nothing; `retry_after`: when clients may come back.
    """

    def __init__(
        self, text: str, *, refused: bool = False, unreached: bool = False, begun: bool = False,
        status: int = 0, retry_after: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(text)
        self.refused, self.unreached, self.begun = refused, refused or unreached, begun
        self.status, self.retry_after = status, retry_after


class Relay:
    """Sends one request to engines until one answers, and the answer to the client.

    Parameters
    ----------
    session
        HTTP client.
    scope, receive, send
        The client's connection, as in ASGI.

    Attributes
    ----------
    status
        Of the answer that was passed on; 0 before.
    usage_tokens
        Output tokens as the answer's ``usage`` has them; None where it says nothing.
    begun
        Whether the client has part of an answer.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        self.session, self.scope, self.send = session, scope, send
        self.status = 0
        self.usage_tokens: int | None = None
        self.begun = False
        self._events = self._ended = False
        self._gone = asyncio.ensure_future(_disconnect(receive))

    async def unless_hung_up(self, work: asyncio.Future[Any]) -> None:
        """Wait for `work`; cancel it and raise `HungUp` if the client goes first."""
        try:
            await asyncio.wait({work, self._gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:  # this task may be cancelled, too
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        if work.cancelled():
            raise HungUp

    def close(self) -> None:
        """Stop waiting for the client to go."""
        self._gone.cancel()

    async def run(
        self, upstream: Upstream, body: bytes, passed: Callable[[int], None], *, streamed: bool = False
    ) -> None:
        """Send the request and relay its answer; `passed` hears of tokens that reach the client.

        `streamed` says that the client asked for an answer in pieces.

        Raises
        ------
        HungUp
            If the client has gone; the engine's connection is closed, which makes it stop.
        Broken
            If the engine fails.
        """
        work = asyncio.ensure_future(self._run(upstream, body, passed, streamed))
        await self.unless_hung_up(work)
        work.result()

    async def _run(
        self, upstream: Upstream, body: bytes, passed: Callable[[int], None], streamed: bool
    ) -> None:
        import aiohttp
        from yarl import URL

        try:
            async with self.session.request(
                self.scope["method"],
                URL(upstream.url + _target(self.scope), encoded=True),
                data=io.BytesIO(body) if body else None,
                headers=self._headers(upstream),
                allow_redirects=False,
            ) as answer:
                if answer.status in UNAVAILABLE or answer.status not in STATUSES:
                    text = f"{upstream.name} answered with status {answer.status}"
                    later = next((v for n, v in answer.raw_headers if n.lower() == b"retry-after"), None)
                    raise Broken(
                        text,
                        status=answer.status,
                        retry_after=None if later is None else later.decode("latin-1"),
                    )
                asked_for = streamed and answer.status == 200 and answer.content_type != "application/json"
                if asked_for or answer.content_type in IN_PIECES:
                    await self._pieces(upstream, answer, passed)
                else:
                    await self._whole(upstream, answer, passed)
        except aiohttp.ClientConnectorError as error:
            text = f"{upstream.name} refuses connections ({error.os_error or error})"
            raise Broken(text, refused=True) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise Broken(f"{upstream.name} takes no connection", unreached=True) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Broken(f"{upstream.name}: {error or type(error).__name__}", begun=self.begun) from error

    def _headers(self, upstream: Upstream) -> list[tuple[str, str]]:
        """What the engine gets: the client's own headers, each as often and in the order they came."""
        given = end_to_end(self.scope["headers"])
        if upstream.rank is not None:
            given = [(name, value) for name, value in given if name.lower() != RANK.lower()]
            given.append((RANK, str(upstream.rank).encode()))
        return [(name.decode("latin-1"), _text(value)) for name, value in given]

    async def _start(
        self, upstream: Upstream, answer: aiohttp.ClientResponse, length: int | None = None
    ) -> None:
        headers = [
            (name.lower(), _here(value, upstream.url) if name.lower() == b"location" else value)
            for name, value in end_to_end(answer.raw_headers)
        ]
        if self.scope["method"] == "HEAD" or answer.status == 304:  # of the answer that is not here
            headers += [(n.lower(), v) for n, v in answer.raw_headers if n.lower() == b"content-length"]
        elif length is not None and answer.status != 204:
            headers.append((b"content-length", str(length).encode()))
        self.status, self.begun = answer.status, True
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})

    async def _pieces(
        self, upstream: Upstream, answer: aiohttp.ClientResponse, passed: Callable[[int], None]
    ) -> None:
        """Pass pieces on as they come; the answer begins with the first, so that none is lost.

        Of events only whole lines are passed on: where the engine dies, half a line would be half an event.
        """
        coded = answer.headers.get("Content-Encoding", "identity") != "identity"
        lines = WholeLines() if answer.content_type == EVENTS and not coded else None
        self._events = lines is not None
        try:
            async for piece in answer.content.iter_any():
                if not self.begun:
                    await self._start(upstream, answer)
                ready, tokens = lines.add(piece) if lines is not None else (piece, 1)
                if ready:
                    await self.send({"type": "http.response.body", "body": ready, "more_body": True})
                passed(tokens)
        except Exception:
            await self.cut_off(f"{upstream.name} broke off the answer")
            raise
        if not self.begun:
            raise Broken("the answer was empty")
        ready, tokens = lines.rest() if lines is not None else (b"", 0)
        passed(tokens)
        await self._end(ready)

    async def _whole(
        self, upstream: Upstream, answer: aiohttp.ClientResponse, passed: Callable[[int], None]
    ) -> None:
        """Pass a whole answer on at once, so that half of one is never seen."""
        parts: list[bytes] = []
        size = 0
        while size < MOST_WHOLE_BYTES and not answer.content.at_eof():
            parts.append(await answer.content.read(MOST_WHOLE_BYTES - size))
            size += len(parts[-1])
        body, more = b"".join(parts), not answer.content.at_eof()
        if answer.status == 200 and not more:
            self.usage_tokens = _usage(body)
            passed(self.usage_tokens or 1)
        await self._start(upstream, answer, None if more else len(body))
        if not more:
            await self._end(body)
            return
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        async for piece in answer.content.iter_any():
            await self.send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._end(b"")

    async def _end(self, body: bytes) -> None:
        self._ended = True
        await self.send({"type": "http.response.body", "body": body})

    async def cut_off(self, text: str) -> None:
        """Tell a client with half a stream of events that no more will come; without ``[DONE]``.

        Other answers end without their end, which clients notice as well.
        """
        if self._ended or not (self._events and self.begun):
            return
        event = b"data: " + error_body(text, 502) + b"\n\n"
        with suppress(Exception):
            await self._end(b"\n\n" + event)

    async def fail(
        self, status: int, text: str, *, retry_after: str | float | None = None, wait_s: float | None = None
    ) -> None:
        """An answer of the proxy's own in place of an engine's; `retry_after` in seconds, or as one said."""
        body = error_body(text, status, wait_s=wait_s)
        headers = [*own_headers(body), (b"content-type", b"application/json")]
        if retry_after is not None:
            said = retry_after if isinstance(retry_after, str) else str(max(1, math.ceil(retry_after)))
            headers.append((b"retry-after", said.encode("latin-1")))
        self.status, self.begun = status, True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self._end(body)


def error_body(text: str, status: int, *, wait_s: float | None = None) -> bytes:
    """An error as OpenAI's servers write it.

    Examples
    --------
    >>> error_body("no engine is up", 503)
    b'{"error": {"message": "no engine is up", "type": "slosched_router", "code": 503}}'
    """
    error: dict[str, Any] = {"message": text, "type": "slosched_router", "code": status}
    if wait_s is not None:
        error["predicted_wait_s"] = round(wait_s, 3)
    return json.dumps({"error": error}).encode()


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers that a proxy passes on: not those of one connection, or that ``Connection`` names.

    Examples
    --------
    >>> end_to_end([(b"Connection", b"close, X-Hop"), (b"X-Hop", b"1"), (b"X-A", b"1"), (b"X-A", b"2")])
    [(b'X-A', b'1'), (b'X-A', b'2')]
    """
    given = list(headers)
    named = b",".join(value for name, value in given if name.lower() == b"connection").lower()
    hop = HOP_BY_HOP.union(name.strip() for name in named.split(b","))
    return [(name, value) for name, value in given if name.lower() not in hop]


def _target(scope: Message) -> str:
    """Path and query as the client wrote them; what may not stand in a request line is escaped."""
    raw = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    whole: bytes = raw + (b"?" + query if query else b"")
    return "".join(chr(b) if 0x21 <= b < 0x7F and b != ord("#") else f"%{b:02X}" for b in whole)


def _here(location: bytes, root: str) -> bytes:
    """Where a redirect leads: one to the engine's own address would lead the client past the router."""
    path = location.removeprefix(root.encode())
    return path if len(path) < len(location) and path[:1] == b"/" else location


def _text(value: bytes) -> str:
    """A header's value for a client that writes UTF-8: the same bytes, unless they are none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _usage(body: bytes) -> int | None:
    """Output tokens of a whole answer; None where it does not say."""
    try:
        usage = json.loads(body).get("usage") or {}
        tokens = usage.get("completion_tokens", usage.get("output_tokens"))
    except (ValueError, AttributeError, RecursionError):
        return None
    return tokens if type(tokens) is int and 0 <= tokens <= MOST_TOKENS else None


async def _disconnect(receive: Callable[[], Awaitable[Message]]) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
