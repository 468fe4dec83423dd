"""One request as a scheduler sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from slosched.core.errors import require
from slosched.core.forecast import LengthForecast
from slosched.core.slo import Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that waits for, or is in, an engine.

    Parameters
    ----------
    request_id
        Name, unique among the requests that are alive together.
    prompt_tokens
        Length of the prompt, at least 1.
    forecast
        Predicted output length.
    slo
        Latency limits; best effort by default.
    arrival_s
        Arrival on the engine's clock in seconds.
    weight
        What meeting the SLO is worth, at least 0.
    priority
        vLLM's priority: lower goes first; used by the priority policy only.
    slo_class, tenant
        Labels for reports and fairness.
    generated_tokens
        Output tokens it already has: above 0 for a request that runs or was preempted.
    thinking
        Predicted output tokens before the first answer token; None if it does not think.

    Examples
    --------
    >>> chat = Request(request_id="a", prompt_tokens=350, forecast=LengthForecast.point(120),
    ...                slo=Slo(ttft_s=1.0, tpot_s=0.05), slo_class="chat")
    >>> chat.slo.best_effort
    False
    """

    request_id: str
    prompt_tokens: int
    forecast: LengthForecast
    slo: Slo = field(default_factory=Slo)
    arrival_s: float = 0.0
    weight: float = 1.0
    priority: int = 0
    slo_class: str = "default"
    tenant: str = "default"
    generated_tokens: int = 0
    thinking: LengthForecast | None = None

    def __post_init__(self) -> None:
        require(self.prompt_tokens >= 1, "prompt_tokens", "an integer of at least 1", self.prompt_tokens)
        require(math.isfinite(self.arrival_s), "arrival_s", "a finite number of seconds", self.arrival_s)
        require(0 <= self.weight < math.inf, "weight", "a finite number of at least 0", self.weight)
        require(self.generated_tokens >= 0, "generated_tokens", "at least 0", self.generated_tokens)
