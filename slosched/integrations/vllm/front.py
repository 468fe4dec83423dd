"""ASGI middleware for vLLM's server: SLO headers, refusals before an answer begins, and honest endings.

    vllm serve MODEL --middleware slosched.integrations.vllm.front.Front ...

A request whose chance is too small, as the engines publish it, is answered 429 with ``Retry-After`` at once
(`admission` in the configuration). One that the scheduler refuses later gets the same, since the beginning of
an answer is held back until there is something in it; vLLM alone says 200 and then nothing. Where a stream
has begun, it ends with an error chunk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from slosched.core.errors import InputError
from slosched.integrations.vllm.config import Config, load_config
from slosched.integrations.vllm.endings import Ending
from slosched.integrations.vllm.middleware import (
    MORE,
    PATHS,
    Message,
    Receive,
    Send,
    body_of,
    fields_of,
    replayed,
    rewritten,
)
from slosched.integrations.vllm.published import Told, folder_for, told
from slosched.integrations.vllm.slo_fields import Claim, read_claim

logger = logging.getLogger("vllm.slosched")

READ_EVERY_S = 0.05
"""Seconds for which what was read of the engines is used again."""

CHARACTERS_PER_TOKEN = 4.0
"""Of English text, for most tokenizers; a prompt's length decides little beside the queue."""

LOG_EVERY_S = 10.0

WATCH_S = 0.5
"""Seconds between looks whether the engines' processes still live, while answers are awaited."""

STREAMED = ("/v1/completions", "/v1/chat/completions")
"""Paths whose streams end with ``[DONE]``."""

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a request is refused before an answer begins, and when to come again."""

    status: int
    message: str
    retry_s: float


class Door:
    """Decides from the engines' published outlooks whom to refuse; without one everybody is let in."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._servers = (os.getpid(), os.getppid())
        self._read_s = -math.inf
        self._told: list[Told] = []
        self._let_in: deque[float] = deque(maxlen=4096)

    def refuse(self, claim: Claim, prompt_tokens: int) -> Verdict | None:
        """The verdict on a request; None lets it in."""
        rules, now_s = self._config.admission, time.monotonic()
        if rules.min_chance <= 0.0 and rules.max_wait_s is None:
            return None
        engines = [engine for engine in self._engines(now_s) if engine.fresh]
        if not engines:
            return None
        if all(engine.ending for engine in engines):
            return Verdict(503, "the server is shutting down", 1.0)
        slo = claim.slo
        while self._let_in and self._let_in[0] <= min(engine.time_s for engine in engines):
            self._let_in.popleft()  # the engines have seen it by now
        found = []
        for engine in engines:
            new = sum(at > engine.time_s for at in self._let_in) / len(engines)
            outlook = replace(engine.outlook, waiting=round(engine.outlook.waiting + new))
            answer_s = (claim.predicted_tokens or 1.0) * min(outlook.decode_s, slo.tpot_s or math.inf)
            thinking_s = answer_s / (claim.predicted_tokens or 1.0) * (claim.predicted_thinking_tokens or 0.0)
            limit_s = min(
                slo.ttft_s or math.inf, (slo.e2e_s or math.inf) - answer_s,
                (slo.ttfat_s or math.inf) - thinking_s,
            )  # fmt: skip
            wait_s = outlook.wait_s(prompt_tokens, claim.slo_class)
            chance = outlook.chance(prompt_tokens, claim.slo_class, max(0.0, limit_s))
            found.append((chance, -wait_s, limit_s))
        chance, negative, limit_s = max(found)
        wait_s = -negative
        if rules.max_wait_s is not None and wait_s > rules.max_wait_s:
            text = f"the expected wait is {wait_s:.1f} s, and {rules.max_wait_s:g} s is the most"
            return Verdict(429, text, wait_s - rules.max_wait_s)
        if limit_s < math.inf and chance < rules.min_chance:
            text = f"the expected wait is {wait_s:.1f} s, the limit {limit_s:.2f} s: a chance of {chance:.0%}"
            return Verdict(429, text, wait_s - limit_s)
        self._let_in.append(now_s)
        return None

    def ending(self) -> bool:
        """Whether the engines say that they are shutting down, or are gone."""
        engines = self._engines(time.monotonic())
        return bool(engines) and all(engine.ending or engine.dead for engine in engines)

    def dead(self) -> bool:
        """Whether the process of every engine that has ever told something is gone."""
        engines = self._engines(time.monotonic())
        return bool(engines) and all(engine.dead for engine in engines)

    def _engines(self, now_s: float) -> list[Told]:
        if now_s - self._read_s > READ_EVERY_S:
            self._read_s = now_s
            try:
                self._told = told(folder_for(self._config.admission.folder), self._servers)
            except (InputError, OSError):
                self._told = []
        return self._told


class Front:
    """The middleware.

    Parameters
    ----------
    app
        The ASGI application behind it.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        try:
            self.config = load_config()
        except InputError as error:
            logger.error("slosched: the front process refuses nobody: %s", error)
            self.config = Config()
        self.door = Door(self.config)
        self.counter = _counter()
        self._unsaid, self._said_s = 0, -math.inf
        self._open: dict[Ending, asyncio.Future[None]] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope.get("type") != "http" or scope.get("path") not in PATHS or scope.get("method") != "POST":
            await self.app(scope, receive, send)
            return
        content, after = await body_of(receive)
        request = None if after is MORE else _object(content)
        verdict, changed = None, content
        if request is not None:  # else it is the server's own business
            if SURROGATE.search(content) and not _encodable(request):
                await _answer(send, 400, "the request holds half a character (a lone surrogate)", None)
                return
            request, changed = rewritten(content, request, fields_of(scope["headers"]))
            claim = read_claim(request.get("vllm_xargs"), self.config)
            verdict = self.door.refuse(claim, _prompt_tokens(request))
        if verdict is not None:
            self._count("front", verdict.status, verdict.message)
            await _answer(send, verdict.status, verdict.message, verdict.retry_s)
            return
        scope, receive = replayed(scope, receive, changed, after)
        if scope["path"] not in STREAMED:
            await self.app(scope, receive, send)
            return
        ending = Ending(send, _answers(request), self._refused)
        serving = asyncio.ensure_future(self.app(scope, receive, ending.send))
        self._open[ending] = serving
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.ensure_future(self._watch())
        try:
            await serving
        except asyncio.CancelledError:
            if not ending.abandoned:  # the server's own cancelling, not ours
                serving.cancel()
                raise
        finally:
            del self._open[ending]

    async def _watch(self) -> None:
        """End the answers of engines that are gone, for which vLLM's server would wait for ever."""
        while self._open:
            await asyncio.sleep(WATCH_S)
            if not self.door.dead():
                continue
            for ending, serving in list(self._open.items()):
                await ending.abandon()
                serving.cancel()

    async def _refused(self, send: Send) -> None:
        """Answer a request that the scheduler has refused, or that a server which ends has dropped."""
        status = 503 if self.door.ending() else 429
        message = "the scheduler refused the request" if status == 429 else "the server is shutting down"
        self._count("scheduler", status, message)
        await _answer(send, status, message, 1.0)

    def _count(self, where: str, status: int, message: str) -> None:
        if self.counter is not None:
            self.counter.labels(where, str(status)).inc()
        self._unsaid += 1
        now_s = time.monotonic()
        if now_s - self._said_s > LOG_EVERY_S:
            logger.info("slosched: %d requests refused, the last one since %s", self._unsaid, message)
            self._unsaid, self._said_s = 0, now_s


def error_body(status: int, message: str) -> dict[str, Any]:
    """An error as vLLM's server words it."""
    kinds = {400: "BadRequestError", 429: "RateLimitError", 503: "ServiceUnavailableError"}
    return {"error": {"message": message, "type": kinds[status], "param": None, "code": status}}


async def _answer(send: Send, status: int, message: str, retry_s: float | None) -> None:
    body = json.dumps(error_body(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_s))).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        request = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def _encodable(request: dict[str, Any]) -> bool:
    try:
        json.dumps(request, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _prompt_tokens(request: dict[str, Any]) -> int:
    """About how many tokens a request's prompt has."""
    prompt = request.get("prompt", request.get("messages", request.get("input", "")))
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return len(prompt)
    return max(1, round(_characters(prompt) / CHARACTERS_PER_TOKEN))


def _characters(part: Any) -> int:
    """Characters of all texts in a prompt or in messages, however deeply they are nested."""
    total, left = 0, [part]
    while left:
        piece = left.pop()
        if isinstance(piece, str):
            total += len(piece)
        elif isinstance(piece, list):
            left += piece
        elif isinstance(piece, dict):
            left.append(piece.get("content", piece.get("text", "")))
    return total


def _answers(request: dict[str, Any] | None) -> int:
    """How many answers a request asks for: prompts times ``n``."""
    if request is None:
        return 1
    n, prompt = request.get("n"), request.get("prompt")
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return max(1, n if isinstance(n, int) else 1) * (len(prompt) if several else 1)  # type: ignore[arg-type]


def _counter() -> Any:
    """The count of refusals on vLLM's own page; None where prometheus_client is not installed."""
    try:
        import prometheus_client as prometheus

        return prometheus.Counter(
            "slosched:refused_requests", "Requests answered 429 or 503.", ("where", "status")
        )
    except (ImportError, ValueError):
        return None
