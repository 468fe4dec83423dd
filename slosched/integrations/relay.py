"""One request's way to an engine and its answer's way back, byte for byte."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from slosched.integrations.upstream import Upstream

if TYPE_CHECKING:
    import aiohttp

Message = MutableMapping[str, Any]

HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
     b"transfer-encoding", b"upgrade", b"host", b"content-length", b"expect")
)  # fmt: skip
"""Headers that concern one connection only (RFC 9110, section 7.6.1), and those the client sets itself."""

UNAVAILABLE = (502, 503, 504)
"""Statuses that say the engine, or what is before it, is not there."""

MOST_WHOLE_BYTES = 64 * 1024 * 1024
"""Answers that are not streamed are kept whole up to this size, so that half of one is never passed on."""

TAIL_BYTES = 5
"""Bytes kept of a piece of a stream: a mark of six bytes may go on in the next one."""


class HungUp(Exception):
    """The client has gone."""


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
        self._begun = False
        self._gone = asyncio.ensure_future(_disconnect(receive))

    async def unless_hung_up(self, work: asyncio.Future[Any]) -> None:
        """Wait for `work`; cancel it and raise `HungUp` if the client goes first."""
        await asyncio.wait({work, self._gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            raise HungUp

    async def run(self, upstream: Upstream, body: bytes, passed: Callable[[int], None]) -> None:
        """Send the request and relay its answer; `passed` hears of tokens that reach the client.

        Raises
        ------
        HungUp
            If the client has gone; the engine's connection is closed, which makes it stop.
        Broken
            If the engine fails.
        """
        work = asyncio.ensure_future(self._run(upstream, body, passed))
        try:
            await self.unless_hung_up(work)
        except asyncio.CancelledError:
            work.cancel()
            raise
        work.result()
        self._gone.cancel()

    async def _run(self, upstream: Upstream, body: bytes, passed: Callable[[int], None]) -> None:
        import aiohttp

        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self.scope["headers"]
            if name.lower() not in HOP_BY_HOP
        ]
        if upstream.rank is not None:
            headers.append(("X-data-parallel-rank", str(upstream.rank)))
        query = self.scope.get("query_string", b"").decode("latin-1")
        url = upstream.url + self.scope["path"] + (f"?{query}" if query else "")
        try:
            async with self.session.request(
                self.scope["method"],
                url,
                data=io.BytesIO(body) if body else None,
                headers=headers,
                allow_redirects=False,
            ) as answer:
                if answer.status in UNAVAILABLE:
                    text = f"{upstream.name} answered with status {answer.status}"
                    later = answer.headers.get("Retry-After")
                    raise Broken(text, status=answer.status, retry_after=later)
                if answer.content_type == "text/event-stream":
                    await self._stream(answer, passed)
                else:
                    await self._whole(answer, passed)
        except aiohttp.ClientConnectorError as error:
            raise Broken(f"{upstream.name} refuses connections", refused=True) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise Broken(f"{upstream.name} takes no connection", unreached=True) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self._begun:
                await self._cut_off(upstream)
            raise Broken(f"{upstream.name}: {error or type(error).__name__}", begun=self._begun) from error

    async def _start(self, answer: aiohttp.ClientResponse, length: int | None = None) -> None:
        headers = [
            (name.lower(), value) for name, value in answer.raw_headers if name.lower() not in HOP_BY_HOP
        ]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        self.status, self._begun = answer.status, True
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})

    async def _stream(self, answer: aiohttp.ClientResponse, passed: Callable[[int], None]) -> None:
        """Pass every piece on as it comes; the answer begins with the first, so that none is lost."""
        tail = b""
        async for piece in answer.content.iter_any():
            if not self._begun:
                await self._start(answer)
            await self.send({"type": "http.response.body", "body": piece, "more_body": True})
            joint = tail + piece  # a mark may be cut in two by the end of a piece
            events = joint.count(b"data:") - tail.count(b"data:")
            ends = joint.count(b"[DONE]") - tail.count(b"[DONE]")
            tail = joint[-TAIL_BYTES:]
            passed(events - ends)
        if not self._begun:
            raise Broken("the answer was empty")
        await self.send({"type": "http.response.body", "body": b""})

    async def _whole(self, answer: aiohttp.ClientResponse, passed: Callable[[int], None]) -> None:
        """Pass a whole answer on at once, so that half of one is never seen."""
        body = await answer.content.read(MOST_WHOLE_BYTES)
        while not answer.content.at_eof() and len(body) < MOST_WHOLE_BYTES:
            body += await answer.content.read(MOST_WHOLE_BYTES)
        more = not answer.content.at_eof()
        if answer.status == 200 and not more:
            self.usage_tokens = _usage(body)
            passed(self.usage_tokens or 1)
        await self._start(answer, None if more else len(body))
        await self.send({"type": "http.response.body", "body": body, "more_body": more})
        if more:
            async for piece in answer.content.iter_any():
                await self.send({"type": "http.response.body", "body": piece, "more_body": True})
            await self.send({"type": "http.response.body", "body": b""})

    async def _cut_off(self, upstream: Upstream) -> None:
        """Tell a client with half a stream that no more will come; without ``[DONE]`` at its end."""
        event = b"data: " + error_body(f"{upstream.name} broke off the answer", 502) + b"\n\n"
        with suppress(Exception):
            await self.send({"type": "http.response.body", "body": b"\n\n" + event})

    async def fail(
        self, status: int, text: str, *, retry_after: str | float | None = None, wait_s: float | None = None
    ) -> None:
        """An answer of the proxy's own in place of an engine's; `retry_after` in seconds, or as one said."""
        body = error_body(text, status, wait_s=wait_s)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if retry_after is not None:
            said = retry_after if isinstance(retry_after, str) else str(max(1, math.ceil(retry_after)))
            headers.append((b"retry-after", said.encode("latin-1")))
        self.status = status
        self._gone.cancel()
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


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


def _usage(body: bytes) -> int | None:
    """Output tokens of a whole answer; None where it does not say."""
    try:
        usage = json.loads(body).get("usage") or {}
        tokens = usage.get("completion_tokens", usage.get("output_tokens"))
    except (ValueError, AttributeError, RecursionError):
        return None
    return tokens if isinstance(tokens, int) and tokens >= 0 else None


async def _disconnect(receive: Callable[[], Awaitable[Message]]) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
