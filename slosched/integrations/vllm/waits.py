"""A newcomer's wait for its first token and its chance to keep a limit, learned from outcomes."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REMEMBERED = 128
"""Outcomes of a class that its chances are read from: enough for 5 % steps, few enough to follow the load."""

ENOUGH = 16
"""Outcomes from which on a class has chances of its own; below, all classes together answer."""

PRIOR = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.5)
"""Real over estimated wait before any outcome is known: within a factor of 2 in three of four cases."""

GAP_SHARE = 1.0 / 32.0
"""Weight of the newest gap between two first tokens in their mean: about the last 32 count."""

BINS = 10
"""Bins of stated chance in which kept limits are counted."""


@dataclass(slots=True)
class Outlook:
    """What is known at a moment about the wait of a newcomer; a front process reads it, too.

    Attributes
    ----------
    waiting
        Requests in the queue.
    gap_s
        Mean seconds between two first tokens while requests wait.
    step_s, token_s
        Seconds of a step that only decodes; seconds more for each prompt token.
    decode_s
        Seconds of a decoding step at the present batch.
    ratios
        Real over estimated wait, ascending, by class; "" for all classes; ``class+`` while requests wait.
    """

    waiting: int = 0
    gap_s: float = 0.0
    step_s: float = 0.0
    token_s: float = 0.0
    decode_s: float = 0.0
    ratios: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def estimate_s(self, prompt_tokens: int) -> float:
        """Seconds to the first token of one more request, before outcomes have been looked at."""
        return max(1e-6, self.step_s + self.token_s * prompt_tokens + self.waiting * self.gap_s)

    def spread(self, slo_class: str) -> Sequence[float]:
        """Real over estimated wait in the past, ascending, of requests like one that comes now."""
        late = "+" if self.waiting else ""
        return self.ratios.get(slo_class + late) or self.ratios.get(late) or PRIOR

    def wait_s(self, prompt_tokens: int, slo_class: str) -> float:
        """Median seconds to the first token of one more request."""
        spread = self.spread(slo_class)
        return max(1e-6, self.estimate_s(prompt_tokens) * spread[len(spread) // 2])

    def chance(self, prompt_tokens: int, slo_class: str, limit_s: float) -> float:
        """Chance, from 0 to 1, that one more request has its first token within `limit_s` seconds.

        Examples
        --------
        >>> outlook = Outlook(waiting=10, gap_s=0.1, ratios={"+": [0.5, 1.0, 1.0, 2.0]})
        >>> outlook.chance(100, "chat", 1.0), outlook.chance(100, "chat", 60.0)
        (0.7, 0.9)
        """
        if limit_s == math.inf:
            return 1.0
        bound = limit_s / self.estimate_s(prompt_tokens)
        spread = self.spread(slo_class)
        return (bisect_right(spread, bound) + 0.5) / (len(spread) + 1)


@dataclass(slots=True)
class _Told:
    """What was said of a request when it came."""

    slo_class: str
    arrival_s: float
    estimate_s: float
    wait_s: float
    chance: float
    limit_s: float


class _Latest:
    """The latest `REMEMBERED` ratios, kept in ascending order as they come."""

    __slots__ = ("_order", "ascending")

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self.ascending: list[float] = []

    def add(self, ratio: float) -> None:
        """One more; the oldest goes once there are too many."""
        if len(self._order) >= REMEMBERED:
            del self.ascending[bisect_left(self.ascending, self._order.popleft())]
        self._order.append(ratio)
        insort(self.ascending, ratio)


class Waits:
    """Learns the outlook from requests that come, get their first token, or leave without one.

    The estimate is what is ahead of a newcomer times the pace of first tokens, plus its own prompt. It knows
    nothing of the policy. What the policy makes of it shows in the ratio of real to estimated waits, by
    class, apart for an empty and a non-empty queue. Chances are shares of past ratios, so they are right on
    average whatever the policy does, as long as the load changes slower than `REMEMBERED` requests pass.

    Attributes
    ----------
    bins
        By bin of stated chance: requests with a limit that had their first token or gave up after it, how
        many kept it, and the sum of their stated chances.
    """

    def __init__(self) -> None:
        self._told: dict[int, _Told] = {}
        self._ratios: dict[str, _Latest] = {}
        self._sorted: dict[str, tuple[float, ...]] = {}
        self._gap_s = 0.0
        self._last_s = math.nan
        self.bins = [[0, 0, 0.0] for _ in range(BINS)]

    def outlook(self, waiting: int, model: Any, decode_s: float) -> Outlook:
        """The outlook of a newcomer now, with the step-time model as it is."""
        return Outlook(
            waiting=waiting,
            gap_s=self._gap_s or model.base_s,
            step_s=model.base_s + decode_s,
            token_s=model.prefill_token_s,
            decode_s=decode_s,
            ratios=self._sorted,
        )

    def arrived(
        self, row: int, slo_class: str, arrival_s: float, prompt_tokens: int, limit_s: float, outlook: Outlook
    ) -> None:
        """A request has come: state its wait and chance."""
        self._told[row] = _Told(
            slo_class + ("+" if outlook.waiting else ""),
            arrival_s,
            outlook.estimate_s(prompt_tokens),
            outlook.wait_s(prompt_tokens, slo_class),
            outlook.chance(prompt_tokens, slo_class, limit_s),
            limit_s,
        )

    def began(self, row: int, now_s: float, waiting: int) -> float:
        """A request has its first token; returns its real over its stated wait, NaN if none was stated."""
        gap = now_s - self._last_s
        if waiting and gap >= 0.0:
            self._gap_s += (gap - self._gap_s) * (GAP_SHARE if self._gap_s else 1.0)
        self._last_s = now_s if waiting else math.nan
        told = self._told.pop(row, None)
        if told is None:
            return math.nan
        real_s = max(0.0, now_s - told.arrival_s)
        self._count(told, real_s)
        self._learn(told, real_s)
        return real_s / told.wait_s

    def left(self, row: int, now_s: float) -> None:
        """A request leaves; if it has had no token yet, it counts only if its limit had passed."""
        told = self._told.pop(row, None)
        if told is not None and now_s - told.arrival_s > told.limit_s:
            self._count(told, math.inf)
            self._learn(told, now_s - told.arrival_s)

    def _count(self, told: _Told, real_s: float) -> None:
        if told.limit_s < math.inf:
            bin_ = self.bins[min(BINS - 1, int(told.chance * BINS))]
            bin_[0] += 1
            bin_[1] += real_s <= told.limit_s
            bin_[2] += told.chance

    def _learn(self, told: _Told, real_s: float) -> None:
        ratio = real_s / told.estimate_s
        for name in (told.slo_class, told.slo_class[-1:] if told.slo_class.endswith("+") else ""):
            seen = self._ratios.get(name)
            if seen is None:
                seen = self._ratios[name] = _Latest()
            seen.add(ratio)
            if len(seen.ascending) >= ENOUGH:
                if name in self._sorted:
                    self._sorted[name] = tuple(seen.ascending)
                else:  # a new one: other threads read the old
                    self._sorted = {**self._sorted, name: tuple(seen.ascending)}

    def calibration(self) -> list[dict[str, float]]:
        """Stated against real: for each bin of stated chance its mean, the share kept and the requests."""
        return [
            {"stated": round(total / n, 4), "kept": round(kept / n, 4), "requests": n}
            for n, kept, total in self.bins
            if n
        ]
