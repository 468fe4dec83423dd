"""The client's side of the proxy: bodies it sends, and short answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class HungUp(Exception):
    """The client has gone."""


async def respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """A whole answer of the proxy's own."""
    fields = own_headers(body) + (headers or [])
    if not any(name == b"content-type" for name, _ in fields):
        fields.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def own_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    """Headers of every answer of the proxy's own; an engine's answer has the engine's."""
    return [(b"date", formatdate(usegmt=True).encode()), (b"content-length", str(len(body)).encode())]


async def read_body(headers: list[tuple[bytes, bytes]], receive: Receive, most: int) -> bytes | None:
    """The whole body; None if it is larger than `most`; `HungUp` if the client leaves before its end.

    A body that says beforehand that it is larger is not read at all.
    """
    if announced(headers) > most:
        return None
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise HungUp
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def announced(headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of the body as its header says; 0 where it does not.

    Examples
    --------
    >>> announced([(b"content-length", b"12")]), announced([])
    (12, 0)
    """
    said = [value for name, value in headers if name.lower() == b"content-length"]
    return int(said[0]) if said and said[0].isdigit() and len(said[0]) < MOST_DIGITS else 0


MOST_DIGITS = 20
"""Digits of a length: above, no number of bytes."""


def lost_body(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a body that seems empty was taken for another protocol, as uvicorn's parser does.

    A request with ``Upgrade`` and a body, as some clients offer HTTP/2, loses the body there.

    Examples
    --------
    >>> lost_body([(b"upgrade", b"h2c"), (b"content-length", b"12")])
    True
    """
    names = {name.lower() for name, _ in headers}
    return b"upgrade" in names and (announced(headers) > 0 or b"transfer-encoding" in names)


async def no_websockets(scope: Message, receive: Receive, send: Send) -> None:
    """Refuse a websocket: 501 where the server lets us say so."""
    await receive()
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1011})
        return
    body = b"websockets are not passed on"
    headers = [*own_headers(body), (b"content-type", b"text/plain")]
    await send({"type": "websocket.http.response.start", "status": 501, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
