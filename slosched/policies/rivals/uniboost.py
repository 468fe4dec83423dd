"""Boosted arrival times: Gamma-boost (arXiv 2404.08826) and UniBoost (arXiv 2606.18431)."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy
from slosched.policies.departures import Departures
from slosched.policies.ranked import giving_way

TOKEN_S = 64e-6
"""Seconds of work per token, as in the released patch."""


def boost_s(work_s: Floats, gamma: float) -> Floats:
    """Seconds by which a request with this much work seems to have come earlier.

    Parameters
    ----------
    work_s
        Work w, above 0.
    gamma
        Decay rate in 1/s, above 0: large is first come, first served, small is shortest first.

    Returns
    -------
    Floats
        b(w) = ln(1 / (1 - exp(-gamma·w))) / gamma, at least 0.

    Examples
    --------
    >>> boost_s(np.array([0.1, 1.0]), 1.0).round(3).tolist()
    [2.352, 0.459]
    """
    return np.asarray(-np.log(-np.expm1(-gamma * work_s)) / gamma)


class Tail:
    """Estimate of gamma from latencies of finished requests.

    Parameters
    ----------
    gamma
        First value, in 1/s, within `bounds`.
    bounds
        Least and largest gamma.
    released
        Whether the target is the released patch's, largest / (1 + 4·max(0, P99 / P95 - 1)), or the slope of
        the log tail, ln 5 / (P99 - P95).

    Notes
    -----
    Every 5 s a moving average (factor 0.3) follows the target over the last 2000 requests, once there are
    200. These figures are the released patch's.
    """

    def __init__(self, gamma: float, bounds: tuple[float, float], released: bool) -> None:
        self.gamma, self.bounds, self.released = gamma, bounds, released
        self._left = Departures()
        self._latencies_s: deque[float] = deque(maxlen=2000)
        self._next_s = -np.inf

    def observe(self, snapshot: Snapshot) -> None:
        """Take in who has finished; a latency is known to the time between two plans."""
        done = self._left.since(snapshot)
        self._latencies_s.extend((snapshot.now_s - snapshot.table.arrival_s[done]).tolist())
        if len(self._latencies_s) < 200 or snapshot.now_s < self._next_s:
            return
        self._next_s = snapshot.now_s + 5.0
        p95, p99 = np.percentile(np.array(self._latencies_s), (95, 99)).tolist()
        low, high = self.bounds
        if self.released:
            target = high / (1.0 + 4.0 * max(0.0, p99 / max(p95, 1e-9) - 1.0))
        else:
            target = np.log(5.0) / max(p99 - p95, 1e-9)
        self.gamma += 0.3 * (float(np.clip(target, low, high)) - self.gamma)


def _gamma_ok(gamma: float, bounds: tuple[float, float]) -> None:
    require(0 < bounds[0] <= bounds[1] < np.inf, "bounds", "two numbers above 0, ascending", bounds)
    require(bounds[0] <= gamma <= bounds[1], "gamma", f"from {bounds[0]} to {bounds[1]}", gamma)


class UniBoost(Policy):
    """UniBoost as in the paper: arrival less a boost for little attained service, preemptive, no predictions.

    Key A - b(w), smaller first, waiting and running requests together. w is the attained service, prompt and
    output tokens alike, times `token_s`. MemGuard: it is rounded down to `guard_tokens` times a power of two,
    so that a request changes rank a few times only, and a running one may be preempted only at the plan after
    it has crossed such a boundary, and only if it ranks behind by more than computing its cache again takes.
    Gamma follows the tail of latencies (`Tail`, slope form).

    Parameters
    ----------
    gamma
        First gamma in 1/s; 10 in the released patch.
    adaptive
        Whether gamma follows the tail.
    bounds
        Range of gamma; the lower end is ours (the released patch stops at 1).
    guard_tokens
        MemGuard's k, at least 1; 256.
    token_s
        Seconds of work per token, above 0; that of the released patch.
    decode_weight
        What an output token counts beside a prompt token, at least 0. Ours: the paper's unit is not known.
    """

    name: ClassVar[str] = "uniboost"
    bounded: ClassVar[bool] = True
    preempts: bool = True

    def __init__(
        self,
        *,
        gamma: float = 10.0,
        adaptive: bool = True,
        bounds: tuple[float, float] = (0.01, 200.0),
        guard_tokens: int = 256,
        token_s: float = TOKEN_S,
        decode_weight: float = 1.0,
    ) -> None:
        _gamma_ok(gamma, bounds)
        require(guard_tokens >= 1, "guard_tokens", "at least 1", guard_tokens)
        require(0 < token_s < np.inf, "token_s", "a number of seconds above 0", token_s)
        require(0 <= decode_weight < np.inf, "decode_weight", "a finite number of at least 0", decode_weight)
        self.tail = Tail(gamma, bounds, released=False)
        self.adaptive, self.guard_tokens = adaptive, guard_tokens
        self.token_s, self.decode_weight = token_s, decode_weight

    def plan(self, snapshot: Snapshot) -> Plan:
        """Rank everybody; let those at a boundary give way."""
        if self.adaptive:
            self.tail.observe(snapshot)
        t, waiting, running = snapshot.table, snapshot.waiting, snapshot.running
        seen = t.extra("uniboost.level", fill=-1.0)
        mine, theirs = self.key(snapshot, waiting), self.key(snapshot, running)
        level = self._level(snapshot, running)
        crossed = (seen[running] >= 0) & (level > seen[running])
        seen[waiting] = -1.0  # whoever enters is safe until its next boundary
        seen[running] = level
        again_s = _recompute_s(snapshot, running[crossed])
        by_key = np.argsort(mine, kind="stable")
        order = waiting[by_key]
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order,
            preempt=giving_way(snapshot, order, mine[by_key], running[crossed], theirs[crossed] - again_s),
            running_order=running[np.argsort(theirs, kind="stable")],
        )

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Boosted arrival on the engine's clock."""
        work = self.guard_tokens * 2.0 ** self._level(snapshot, rows)
        return np.asarray(snapshot.table.arrival_s[rows] - boost_s(work * self.token_s, self.tail.gamma))

    def _level(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Boundaries crossed so far, whether or not the cache was lost since."""
        t = snapshot.table
        generated, most = t.generated_tokens[rows], t.extra("uniboost.attained")
        attained = np.where(
            generated > 0, t.prompt_tokens[rows] + self.decode_weight * generated, t.computed_tokens[rows]
        )
        most[rows] = np.maximum(most[rows], attained)
        return np.asarray(np.floor(np.log2(np.maximum(most[rows], self.guard_tokens) / self.guard_tokens)))


def _recompute_s(snapshot: Snapshot, rows: Ints) -> Floats:
    """Seconds to compute again what running requests have in the cache."""
    held = snapshot.table.computed_tokens[rows].astype(np.float64)
    model = snapshot.step_time
    return np.asarray(model.prefill_token_s * held + model.attention_work_s * held * held / 2)


class UniBoostSglang(KeyPolicy):
    """UniBoost as released for SGLang: the waiting queue by A - b(w), w = 64 us per prompt token to compute.

    No preemption, no MemGuard; gamma follows the tail of latencies as in the patch (`Tail`, released form).

    Parameters
    ----------
    gamma
        First gamma in 1/s; 10.
    adaptive
        Whether gamma follows the tail.
    bounds
        Range of gamma, (1, 200).
    token_s
        Seconds of work per token, above 0.
    """

    name: ClassVar[str] = "uniboost-sglang"
    bounded: ClassVar[bool] = True

    def __init__(
        self,
        *,
        gamma: float = 10.0,
        adaptive: bool = True,
        bounds: tuple[float, float] = (1.0, 200.0),
        token_s: float = TOKEN_S,
    ) -> None:
        _gamma_ok(gamma, bounds)
        require(0 < token_s < np.inf, "token_s", "a number of seconds above 0", token_s)
        self.tail = Tail(gamma, bounds, released=True)
        self.adaptive, self.token_s = adaptive, token_s

    def plan(self, snapshot: Snapshot) -> Plan:
        """Follow the tail, then sort."""
        if self.adaptive:
            self.tail.observe(snapshot)
        return super().plan(snapshot)

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Boosted arrival on the engine's clock."""
        t = snapshot.table
        todo = t.prompt_tokens[rows] + t.generated_tokens[rows] - t.cached_tokens[rows]
        work_s = np.maximum(1, todo) * self.token_s
        return np.asarray(t.arrival_s[rows] - boost_s(work_s, self.tail.gamma))
