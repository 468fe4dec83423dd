"""Engines and clients of bytes: what really goes over the wire, on either side of the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Pieces = Callable[[asyncio.StreamWriter], Awaitable[None]]
Answer = Callable[[bytes, bytes], bytes | Pieces | None]
"""Of head and body: what the engine writes, a function that writes it, or None for a reset."""


class RawEngine:
    """A server that writes what it is told, and keeps head and body of what it was sent.

    Looks at its health and statistics get `page`.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer, self.got, self.page = answer, list[tuple[bytes, bytes]](), whole(b"")
        self.looks: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                low, length = head.lower(), 0
                if b"content-length:" in low:
                    length = int(low.split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                if head.startswith((b"GET /metrics ", b"GET /health ")):
                    self.looks.append(head)
                    writer.write(self.page)
                    continue
                self.got.append((head, body))
                said = self.answer(head, body)
                if said is None:
                    writer.transport.abort()
                    return
                if isinstance(said, bytes):
                    writer.write(said)
                else:
                    await said(writer)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def raw(answer: Answer | bytes | None) -> AsyncIterator[RawEngine]:
    """An engine that says the same to everybody, or what a function tells it."""
    engine = RawEngine(answer if callable(answer) else lambda head, body: answer)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0, limit=1 << 20)
    engine.port = server.sockets[0].getsockname()[1]
    try:
        yield engine
    finally:
        server.close()


def whole(body: bytes = b"{}", *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer with its length."""
    fields = b"".join(line + b"\r\n" for line in (b"content-type: application/json", *headers))
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status, fields, len(body), body)


def pieces(
    *parts: bytes, kind: bytes = b"text/event-stream", end: bool = True, headers: tuple[bytes, ...] = ()
) -> Pieces:
    """A chunked answer, each part for itself; without its `end` the connection breaks."""

    async def write(writer: asyncio.StreamWriter) -> None:
        fields = b"".join(
            line + b"\r\n" for line in (b"content-type: " + kind, b"transfer-encoding: chunked", *headers)
        )
        writer.write(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")
        for part in parts:
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
            await asyncio.sleep(0.03)
        if end:
            writer.write(b"0\r\n\r\n")
        else:
            writer.transport.close() if not parts else writer.close()

    return write


def post(body: bytes = b'{"prompt": "a"}', *headers: bytes, path: bytes = b"/v1/completions") -> bytes:
    """A request with its length."""
    fields = b"".join(line + b"\r\n" for line in (b"host: a", *headers))
    return b"POST %s HTTP/1.1\r\n%scontent-length: %d\r\n\r\n%s" % (path, fields, len(body), body)


def get(path: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    """A request without a body."""
    fields = b"".join(line + b"\r\n" for line in (b"host: a", *headers))
    return b"%s %s HTTP/1.1\r\n%s\r\n" % (method, path, fields)


async def say(url: str, request: bytes) -> bytes:
    """All that a server answers until it closes the connection, as it is asked to."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    head, _, rest = request.partition(b"\r\n")
    writer.write(head + b"\r\nconnection: close\r\n" + rest)
    async with asyncio.timeout(20):
        answer = await reader.read(-1)
    writer.close()
    return answer


def parts_of(answer: bytes) -> tuple[int, dict[str, list[str]], bytes]:
    """Status, headers by small name, and body of an answer; chunks are joined."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    headers: dict[str, list[str]] = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        headers.setdefault(name.decode().lower(), []).append(value.strip().decode("latin-1"))
    if headers.get("transfer-encoding") == ["chunked"]:
        joined = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            joined, body = joined + body[: int(size, 16)], body[int(size, 16) + 2 :]
        body = joined
    return int(lines[0].split()[1]), headers, body
