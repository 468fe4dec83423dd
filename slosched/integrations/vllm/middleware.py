"""ASGI middleware for vLLM's server: SLO headers become ``vllm_xargs`` in the body.

    vllm serve MODEL --middleware slosched.integrations.vllm.middleware.SloHeaders

vLLM drops headers it does not know before the scheduler could see them; a gateway that sets headers needs
this. A field in the body wins over a header. Bounds on what a client may claim are the scheduler's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

HEADERS = {
    b"x-llm-d-slo-ttft-ms": "slo_ttft_ms",
    b"x-llm-d-slo-tpot-ms": "slo_tpot_ms",
    b"x-slo-ttft-ms": "slo_ttft_ms",
    b"x-slo-tpot-ms": "slo_tpot_ms",
    b"x-slo-e2e-ms": "slo_e2e_ms",
    b"x-slo-ttfat-ms": "slo_ttfat_ms",
    b"x-slo-class": "slo_class",
    b"x-slo-weight": "slo_weight",
    b"x-slo-program": "slo_program",
    b"x-slo-predicted-output-tokens": "predicted_output_tokens",
    b"x-gateway-inference-fairness-id": "slo_tenant",
    b"x-llm-d-inference-fairness-id": "slo_tenant",
}
"""Field by header name; of two headers for one field the first in this order counts."""

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
MAX_VALUE = 128
MAX_BODY = 64 * 1024 * 1024
"""Bytes of a body that are held to be read; a longer one goes on as it comes, without fields from headers."""

Message = MutableMapping[str, Any]
MORE: Message = {"type": "http.request", "body": b"", "more_body": True}
"""Stands for the rest of a body that is too long to be read."""

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class SloHeaders:
    """Moves SLO headers into the body of completion requests; everything else passes untouched.

    Parameters
    ----------
    app
        The ASGI application behind it.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope.get("type") != "http" or scope.get("path") not in PATHS:
            await self.app(scope, receive, send)
            return
        fields = fields_of(scope["headers"])
        if not fields:
            await self.app(scope, receive, send)
            return
        content, after = await body_of(receive)
        changed = content if after is MORE else merged(content, fields)
        await self.app(*replayed(scope, receive, changed, after), send)


def replayed(
    scope: Message, receive: Receive, content: bytes, after: Message | None
) -> tuple[Message, Receive]:
    """A connection whose body is `content`, followed by what came `after` it, for the application behind."""
    headers = scope["headers"]
    if after is not MORE:
        headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(content)).encode()))
    messages: list[Message] = [{"type": "http.request", "body": content, "more_body": after is not None}]
    if after is not None:
        messages.append(after)

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return {**scope, "headers": headers}, replay


def fields_of(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """SLO fields named by headers; values too long or not ASCII are left out.

    Examples
    --------
    >>> fields_of([(b"X-SLO-TTFT-ms", b"500"), (b"accept", b"*/*")])
    {'slo_ttft_ms': '500'}
    """
    given = {name.lower(): value for name, value in headers}
    fields: dict[str, str] = {}
    for name, field in HEADERS.items():
        value = given.get(name, b"")
        if 0 < len(value) <= MAX_VALUE and value.isascii():
            fields.setdefault(field, value.decode("ascii").strip())
    return fields


def merged(content: bytes, fields: dict[str, str]) -> bytes:
    """The JSON body with the fields in ``vllm_xargs``; the body itself if it is no JSON object.

    Examples
    --------
    >>> merged(b'{"vllm_xargs": {"slo_ttft_ms": 100}}', {"slo_ttft_ms": "500", "slo_class": "chat"})
    b'{"vllm_xargs": {"slo_ttft_ms": 100, "slo_class": "chat"}}'
    """
    try:
        request = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(request, dict):
        return content
    return rewritten(content, request, fields)[1]


def rewritten(
    content: bytes, request: dict[str, Any], fields: dict[str, str]
) -> tuple[dict[str, Any], bytes]:
    """A request with the fields, and its body: the same bytes where nothing changes."""
    changed = with_fields(request, fields)
    try:
        return changed, content if changed is request else json.dumps(changed).encode()
    except RecursionError:  # so deep that it could just be read
        return request, content


def with_fields(request: dict[str, Any], fields: dict[str, str]) -> dict[str, Any]:
    """A request with the fields in ``vllm_xargs``; the same object if nothing changes."""
    extra = request.get("vllm_xargs")
    if not fields or (extra is not None and not isinstance(extra, dict)):
        return request
    given = extra or {}
    return {**request, "vllm_xargs": {**given, **{k: v for k, v in fields.items() if k not in given}}}


async def body_of(receive: Receive) -> tuple[bytes, Message | None]:
    """The whole body and None; or its beginning, and `MORE` or the message that ended it (a disconnect)."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts), message
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body", False):
            return b"".join(parts), None
        if size > MAX_BODY:
            return b"".join(parts), MORE
