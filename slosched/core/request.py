"""One request as a scheduler sees it, and what it was promised."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from slosched.core.errors import require
from slosched.core.forecast import LengthForecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Latency limits of one request; any subset, none of them means best effort.

    Parameters
    ----------
    ttft_s
        Limit on the time to first token in seconds, above 0; None for no limit.
    tpot_s
        Limit on the mean time per output token after the first, in seconds, above 0; None for no limit.
    e2e_s
        Limit on the end-to-end latency in seconds, above 0; None for no limit.
    ttfat_s
        Limit on the time to the first answer token, the first one after thinking, in seconds, above 0; None
        for no limit.

    Raises
    ------
    InputError
        If a limit is not above 0 or is not a number.

    Examples
    --------
    >>> Slo(ttft_s=0.5, tpot_s=0.05).met(ttft_s=0.4, tpot_s=0.05, e2e_s=30.0)
    True
    >>> Slo(e2e_s=0)
    Traceback (most recent call last):
    slosched.core.errors.InputError: e2e_s must be a number of seconds above 0, or None, got 0.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    ttfat_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s", "ttfat_s"):
            value = getattr(self, name)
            ok = value is None or (
                isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
            )
            require(ok, name, "a number of seconds above 0, or None", value)

    @property
    def best_effort(self) -> bool:
        """Whether no limit at all was promised."""
        limits = (self.ttft_s, self.tpot_s, self.e2e_s, self.ttfat_s)
        return all(limit is None for limit in limits)

    def limits_s(self) -> tuple[float, float, float]:
        """(ttft, tpot, e2e) in seconds with infinity where there is no limit."""
        return (
            math.inf if self.ttft_s is None else self.ttft_s,
            math.inf if self.tpot_s is None else self.tpot_s,
            math.inf if self.e2e_s is None else self.e2e_s,
        )

    def met(self, *, ttft_s: float, tpot_s: float, e2e_s: float, ttfat_s: float | None = None) -> bool:
        """Whether the measured latencies keep every limit; equality counts as kept.

        Without thinking (`ttfat_s` None) the first token is the first answer token.
        """
        ttft, tpot, e2e = self.limits_s()
        answer_s = ttft_s if ttfat_s is None else ttfat_s
        begun = self.ttfat_s is None or answer_s <= self.ttfat_s
        return ttft_s <= ttft and tpot_s <= tpot and e2e_s <= e2e and begun


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
