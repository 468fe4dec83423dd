"""Watches how a server's answer begins and ends: a refused request gets a status, or an error chunk."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from slosched.integrations.vllm.middleware import Message, Send
from slosched.integrations.vllm.refusal_reason import REASON

DONE = b"data: [DONE]"
DONE_LINE = re.compile(rb"^" + re.escape(DONE), re.MULTILINE)
"""The end of a stream; the same words within a line are text of an answer."""
FINISHED = re.compile(rb'"finish_reason": ?"')
ERROR = b'data: {"error"'
REFUSED = REASON.encode()


class Ending:
    """Passes an answer on; what would be an empty 200 becomes a refusal.

    vLLM begins a stream with status 200 before it knows whether there will be a token, and leaves out the
    last chunk of a request that ended without text. So the beginning is held back until a chunk says
    something: if the stream ends before, the request was refused. Other answers are looked at as a whole.

    Parameters
    ----------
    send
        Where the answer goes.
    answers
        How many answers the request asked for, each of which has a reason for its end.
    refuse
        Sends the refusal in place of an answer that has not begun.
    """

    def __init__(self, send: Send, answers: int, refuse: Callable[[Send], Awaitable[None]]) -> None:
        self._send, self._answers, self._refuse = send, answers, refuse
        self._start: Message | None = None
        self._stream = self._replaced = self._error = self._begun = False
        self.abandoned = False
        self._finished = 0
        self._held: list[Message] = []

    async def abandon(self) -> None:
        """End an answer that will never come: with a status, or, amid a stream, with an error chunk."""
        if self._replaced:
            return
        self._replaced = self.abandoned = True
        if not self._begun:
            await self._refuse(self._send)
        elif self._stream:
            body = _cut_short() + DONE + b"\n\n"
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def send(self, message: Message) -> None:
        """Pass on one message of the answer."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body" and self._stream:
            await self._chunk(message)
        elif message["type"] == "http.response.body" and self._start is not None:
            await self._whole(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        kind = dict(message.get("headers", ())).get(b"content-type", b"")
        self._stream = message["status"] == 200 and kind.startswith(b"text/event-stream")
        if self._stream or (message["status"] == 200 and kind.startswith(b"application/json")):
            self._start = message
        else:
            self._begun = True
            await self._send(message)

    async def _chunk(self, message: Message) -> None:
        body = message.get("body", b"")
        if self._start is not None:
            if not _says_something(body):
                if DONE_LINE.search(body) or not message.get("more_body", False):
                    self._replaced = True
                    await self._refuse(self._send)
                else:
                    self._held.append(message)
                return
            self._begun = True
            for held in (self._start, *self._held):
                await self._send(held)
            self._start, self._held = None, []
        self._finished += len(FINISHED.findall(body))
        self._error = self._error or ERROR in body
        done = DONE_LINE.search(body)
        if done is not None and self._finished < self._answers and not self._error:
            message = {**message, "body": body[: done.start()] + _cut_short() + body[done.start() :]}
        await self._send(message)

    async def _whole(self, message: Message) -> None:
        body = message.get("body", b"")
        if REFUSED in body and not message.get("more_body", False) and _all_refused(body):
            self._replaced = True
            await self._refuse(self._send)
            return
        start, self._start, self._begun = self._start, None, True
        if start is not None:
            await self._send(start)
        await self._send(message)


def _cut_short() -> bytes:
    """The event that tells a client its answer is not whole."""
    text = "the server ended the request before its answer was complete"
    error = {"message": text, "type": "ServiceUnavailableError", "param": None, "code": 503}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def _says_something(body: bytes) -> bool:
    """Whether a chunk holds text, tokens, an end or an error, rather than a role, counts or nothing."""
    for line in body.splitlines():
        if not line.startswith(b"data: {"):
            continue
        try:
            event: Any = json.loads(line.removeprefix(b"data: "))
            if "error" in event or "choices" not in event:
                return True
            for choice in event["choices"]:
                delta = choice.get("delta") or {}
                said = [choice.get(name) for name in ("text", "token_ids", "finish_reason")]
                if any(said) or any(value for name, value in delta.items() if name != "role"):
                    return True
        except (ValueError, TypeError, AttributeError):
            return True  # nothing we know how to read: pass it on
    return False


def _all_refused(body: bytes) -> bool:
    """Whether every choice of an answer is a refusal of the scheduler's."""
    try:
        choices: Any = json.loads(body)["choices"]
        return bool(choices) and all(
            c["finish_reason"] == "abort" and c["stop_reason"] == REASON for c in choices
        )
    except (ValueError, KeyError, TypeError):
        return False
