"""What a request asks for, read from its headers and body; never raises, whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.middleware import fields_of, merged
from slosched.integrations.vllm.slo_fields import Claim, read_claim
from slosched.predictors.history import ClassHistory

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
"""Paths whose requests are routed by their SLO; all others go to any engine."""

CHARACTERS_PER_TOKEN = 4.0
"""English text in common tokenizers; a prompt's true length is learnt by the engine, not by the proxy."""

BLOCK_CHARACTERS = 256
"""Grain of the prefix index: about 64 tokens."""

MOST_BLOCKS = 512
"""Blocks hashed of one prompt: 128 Ki characters; what follows cannot be shared without them anyway."""

MOST_TOKENS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Fields that bound the answer; the first that is given counts."""

HINT_SIGMA = 0.4
"""Spread of a client's hint of the output length that comes without a quantile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as the router sees it.

    Parameters
    ----------
    claim
        Its SLO, weight and labels.
    model
        Name of the model, "" where none is given.
    prompt_tokens
        Length of its prompt, exact if it came as token numbers, else estimated from its characters.
    max_tokens
        Most output tokens, None if not given.
    streamed
        Whether the answer is to come as server-sent events.
    ids
        Names of the prompt's blocks: equal ids at the same place mean equal beginnings.
    body
        What is sent to the engine.
    """

    claim: Claim
    model: str
    prompt_tokens: int
    max_tokens: int | None
    streamed: bool
    ids: Ints
    body: bytes

    def request(self, request_id: str, now_s: float, history: ClassHistory) -> Request:
        """The request with a forecast of its answer: the client's hint, or the class's latest answers."""
        claim = self.claim
        forecast = history.of(claim.slo_class, self.prompt_tokens)
        if claim.predicted_tokens is not None:
            median, p90 = claim.predicted_tokens, claim.predicted_p90_tokens
            if p90 is not None and p90 > median:
                forecast = LengthForecast.quantiles({0.5: median, 0.9: p90})
            else:
                forecast = LengthForecast.lognormal(median, HINT_SIGMA)
        if self.max_tokens is not None and forecast.atoms[-1] > self.max_tokens:
            forecast = LengthForecast(tuple(min(a, float(self.max_tokens)) for a in forecast.atoms))
        thinking = claim.predicted_thinking_tokens
        return Request(
            request_id=request_id, prompt_tokens=self.prompt_tokens, forecast=forecast, slo=claim.slo,
            thinking=None if thinking is None else LengthForecast.point(thinking), arrival_s=now_s,
            weight=claim.weight, slo_class=claim.slo_class, tenant=claim.tenant,
        )  # fmt: skip


def read_asked(
    headers: list[tuple[bytes, bytes]], body: bytes, config: Config, *, pass_slo: bool = True
) -> Asked:
    """Read a request; what cannot be read counts as not given, and the engine will say so.

    Examples
    --------
    >>> asked = read_asked([(b"x-slo-ttft-ms", b"500")], b'{"prompt": "hello, world"}', Config())
    >>> asked.claim.slo.ttft_s, asked.prompt_tokens, asked.body
    (0.5, 3, b'{"prompt": "hello, world", "vllm_xargs": {"slo_ttft_ms": "500"}}')
    """
    fields = fields_of(headers)
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    given: Mapping[str, Any] = content if isinstance(content, dict) else {}
    extra = given.get("vllm_xargs")
    own = extra if isinstance(extra, dict) else {}
    # SLO fields beside the others, as clients of other servers send them, count too; the innermost wins.
    beside = {name: value for name, value in given.items() if name.startswith(("slo_", "predicted_output"))}
    claim = read_claim({**fields, **beside, **own}, config)
    text, tokens = _prompt(given)
    model = given.get("model")
    most = next((given[name] for name in MOST_TOKENS if given.get(name) is not None), None)
    return Asked(
        claim=claim,
        model=model[:256] if isinstance(model, str) else "",
        prompt_tokens=max(1, tokens if tokens is not None else round(len(text) / CHARACTERS_PER_TOKEN)),
        max_tokens=most if isinstance(most, int) and not isinstance(most, bool) and most >= 1 else None,
        streamed=given.get("stream") is True,
        ids=_blocks(text),
        body=merged(body, fields) if pass_slo and fields else body,
    )


def _prompt(given: Mapping[str, Any]) -> tuple[str, int | None]:
    """The prompt as text, and its length in tokens where it came as token numbers.

    Several prompts in one request count as one that is as long as all of them.
    """
    prompt = given.get("prompt", given.get("input"))
    if isinstance(prompt, list) and prompt and all(isinstance(p, list) for p in prompt):
        prompt = list(chain.from_iterable(prompt))
    if isinstance(prompt, str):
        return prompt, None
    if isinstance(prompt, list) and prompt and all(isinstance(p, int) for p in prompt):
        return " ".join(map(str, prompt)), len(prompt)
    if isinstance(prompt, list) and prompt and all(isinstance(p, str) for p in prompt):
        return "".join(prompt), None
    # Chat templates write what the model should be, and its tools, before the messages.
    parts = [_text(given.get(name)) for name in ("system", "instructions")]
    parts += [_written(tool) for tool in _list(given.get("tools"))]
    for message in _list(given.get("messages", prompt)):
        if isinstance(message, dict):
            role = message.get("role")
            parts.append(f"<{role if isinstance(role, str) else ''}>{_text(message.get('content'))}")
            parts += [_written(call) for call in _list(message.get("tool_calls"))]
    return "".join(parts), None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _written(value: object) -> str:
    """A tool or its call as a template writes it."""
    try:
        return json.dumps(value)
    except RecursionError:
        return ""


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    found = [part.get("text") for part in _list(content) if isinstance(part, dict)]
    return "".join(text for text in found if isinstance(text, str))


def _blocks(text: str) -> Ints:
    """Names of the full blocks of a text, each a hash of all before it, too."""
    count = min(MOST_BLOCKS, len(text) // BLOCK_CHARACTERS)
    data, running = text[: count * BLOCK_CHARACTERS], blake2b(digest_size=8)
    ids = np.empty(count, dtype=np.int64)
    for i in range(count):
        block = data[i * BLOCK_CHARACTERS : (i + 1) * BLOCK_CHARACTERS]
        running.update(block.encode(errors="surrogatepass"))
        ids[i] = int.from_bytes(running.digest()) >> 2
    return ids
