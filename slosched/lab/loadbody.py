"""What the load generator sends: settings, prompts, and the body of each request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import require
from slosched.core.workload import Workload

FIRST_TOKEN_ID = 5

WORDS = (
    "the", "time", "person", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "child",
    "eye", "woman", "place", "work", "week", "case", "point", "company", "number", "group", "problem", "fact",
    "good", "new", "first", "last", "long", "great", "little", "own", "other", "old", "right", "big", "high",
    "small", "large", "next", "early", "young", "few", "public", "bad", "same", "able", "water", "house",
)  # fmt: skip
"""Words that most vocabularies have as one token each."""

NONSENSE: dict[str, tuple[Any, ...]] = {
    "slo_ttft_ms": ("soon", -1, 0, 1e300, "NaN", [1.0, 2.0]),
    "slo_ttfat_ms": ("later", -1, 0, "NaN"),
    "predicted_thinking_tokens": ("many", -1, 1e300),
    "slo_tpot_ms": ("", -0.5, "Infinity", 1e-300, ["x"]),
    "slo_e2e_ms": (-1e9, "1e400", 0, "\x00"),
    "slo_class": (7, "no such class", "", ["chat"]),
    "slo_weight": (1e12, -3, "heavy", "NaN"),
    "predicted_output_tokens": (-5, 1e18, "many", 0),
}
"""Values that a server must take without an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """How requests are sent.

    Parameters
    ----------
    model
        Name of the model at the server; None asks the server for its first one.
    timeout_s
        A request that takes longer is given up; warm-up and the question for the model, too.
    warm_up
        Requests sent one after another beforehand and not counted.
    abort_share
        Share of requests whose client hangs up at a random time within the first `abort_within_s` seconds.
    abort_within_s
        See above.
    malformed_share
        Share of requests whose SLO fields are nonsense, to try how a server takes it.
    vocabulary
        Prompts are random token numbers below this.
    speed
        Arrivals come this many times as fast as the workload says.
    send_slo, send_priority, send_forecast
        Whether the body carries SLO fields, vLLM's priority, and the forecast's median and 90 % quantile.
    send_seed
        Whether answers that end by themselves are sampled with a seed for each request. vLLM 0.32 on CPU ends
        with an error when such a request's prompt does not fit in one step.
    prompt_text
        Send words instead of token numbers, for servers that take text only: lengths are then about right;
        the outcomes hold the server's own count where it gives one.
    chat
        Ask for chat completions, with words as a user's message.
    retries
        Times at most that a request is sent again after a 429 or 503 that says when (``Retry-After``);
        latencies count from the planned arrival all the same.
    thinking_end
        Text that ends thinking, for servers that do not part it from the answer themselves.
    api_key
        Sent as a bearer token.
    seed
        Of prompts and aborts.
    """

    model: str | None = None
    timeout_s: float = 600.0
    warm_up: int = 2
    abort_share: float = 0.0
    abort_within_s: float = 5.0
    malformed_share: float = 0.0
    vocabulary: int = 500
    speed: float = 1.0
    send_slo: bool = True
    send_priority: bool = True
    send_forecast: bool = True
    send_seed: bool = True
    prompt_text: bool = False
    chat: bool = False
    retries: int = 2
    thinking_end: str = "</think>"
    api_key: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("timeout_s", "abort_within_s", "speed"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, "a finite number above 0", value)
        for name in ("abort_share", "malformed_share"):
            require(0 <= getattr(self, name) <= 1, name, "from 0 to 1", getattr(self, name))
        require(bool(self.thinking_end), "thinking_end", "a text", self.thinking_end)
        for name in ("warm_up", "retries"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(self.vocabulary > FIRST_TOKEN_ID, "vocabulary", f"above {FIRST_TOKEN_ID}", self.vocabulary)


class Prompts:
    """The prompt of each request of a workload: the same for the same seed, whenever it is made.

    Where the workload knows which blocks prompts share, equal blocks have equal content, so that a server's
    prefix cache finds what the workload's author meant it to.
    """

    def __init__(self, workload: Workload, settings: LoadSettings, given: Sequence[str] | None) -> None:
        self.workload, self.settings, self.given = workload, settings, given

    def __getitem__(self, i: int) -> list[int] | str:
        """Prompt of request `i`: token numbers, or words."""
        if self.given is not None:
            return self.given[i]
        work, wanted = self.workload, int(self.workload.prompt_tokens[i])
        parts: list[Ints] = []
        if work.prefix is not None:
            ids = work.prefix.ids[work.prefix.offsets[i] : work.prefix.offsets[i + 1]]
            parts = [self._tokens(work.prefix.block_tokens, 1, block) for block in ids.tolist()]
        left = wanted - sum(len(part) for part in parts)
        if left > 0:
            parts.append(self._tokens(left, 0, i))
        return self._form(np.concatenate(parts)[:wanted])

    def short(self, tokens: int) -> list[int] | str:
        """A prompt of so many tokens that belongs to no request."""
        return self.given[0] if self.given else self._form(self._tokens(tokens, 2))

    def _form(self, tokens: Ints) -> list[int] | str:
        if self.settings.prompt_text or self.settings.chat:
            return " ".join(WORDS[token % len(WORDS)] for token in tokens.tolist())
        numbers: list[int] = tokens.tolist()
        return numbers

    def _tokens(self, count: int, *stream: int) -> Ints:
        rng = np.random.default_rng([self.settings.seed, *stream])
        return rng.integers(FIRST_TOKEN_ID, self.settings.vocabulary, count)


def body(
    workload: Workload, i: int, prompt: list[int] | str, settings: LoadSettings, *, forced: bool = True
) -> dict[str, Any]:
    """The request for row `i`, with its SLO in ``vllm_xargs``; `forced` to its length, or not."""
    tokens = int(workload.output_tokens[i])
    content: dict[str, Any] = {"model": settings.model, "max_tokens": tokens}
    content |= {"messages": [{"role": "user", "content": prompt}]} if settings.chat else {"prompt": prompt}
    if forced:
        content |= {"min_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
    else:
        content["temperature"] = 1.0
        if settings.send_seed:
            content["seed"] = settings.seed + i
    extra: dict[str, Any] = {}
    if settings.send_slo:
        for name, column in (
            ("slo_ttft_ms", workload.ttft_s), ("slo_tpot_ms", workload.tpot_s),
            ("slo_e2e_ms", workload.e2e_s), ("slo_ttfat_ms", workload.ttfat_s),
        ):  # fmt: skip
            if np.isfinite(column[i]):
                extra[name] = float(column[i]) * 1000.0
        extra["slo_weight"] = float(workload.weight[i])
        extra["slo_class"] = workload.classes[workload.class_index[i]]
        extra["slo_tenant"] = workload.tenants[workload.tenant_index[i]]
    if settings.send_forecast:
        extra["predicted_output_tokens"] = float(np.median(workload.atoms[i]))
        extra["predicted_output_tokens_p90"] = float(workload.atoms[i][-1])
        if workload.thinking is not None:
            extra["predicted_thinking_tokens"] = max(1.0, float(np.median(workload.thinking.atoms[i])))
    if extra:
        content["vllm_xargs"] = extra
    if settings.send_priority:
        content["priority"] = int(workload.priority[i])
    return content
