"""QoServe, formerly Niyama (arXiv 2503.22562, ASPLOS 2026), after its released artifact."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.fill import todo_tokens
from slosched.policies.pace import first_and_pace_s, in_decode

CHUNKS = np.array([128, *range(256, 2049, 256), 2552])
"""Tokens a step may hold."""
SMALL_CHUNK_TOKENS, SPARE_KV_TOKENS = 512, 32_000
"""Largest step while fewer KV tokens than that are free."""
FADE = 0.995
"""Weight of the past in the average of prefill throughput."""


class QoServe(Policy):
    """Between earliest deadline and shortest prefill first, with chunks as large as decodes have slack for.

    A prefill's key is (relegated, A + D + α·u), with D its TTFT limit and u its tokens still to compute.
    *Eager relegation*: a prefill not yet started that cannot be done by A + D at the observed prefill
    throughput goes behind all others, for good. *Dynamic chunk*: decodes always run; the step gets the most
    tokens of a grid (128, 256, 512, ... 2048, 2552) whose predicted time times `margin` is at most the least
    slack of a decode, A + max(real TTFT, D) + P·(g + 1) - t; 128 if that is not above 0, at most 512 while
    the KV cache is nearly full.

    The artifact has its own step-time regression; here the snapshot's model predicts. There a tier with a
    whole-answer limit E has D = E - n·0.4 s; with limits of seconds instead of minutes that can leave
    nothing, so D is at least E / 2 here (`first_and_pace_s`). A request without limits goes last but for the
    relegated, and constrains no chunk. Prefills begun go before those waiting, as the engine does it.

    Parameters
    ----------
    alpha_s_per_token
        α, at least 0: 0 is EDF, large is shortest prefill first; 0.008 as released (0.016 in its overload
        script).
    margin
        On predicted step times, above 0.
    pace_s
        P of a request with limits but none on TPOT, in seconds, above 0.
    throughput_tps
        Prefill tokens per second assumed before any are seen, above 0.
    from_first
        Count the pace from the real first token, as TPOT is measured, instead of max(real TTFT, D).
    """

    name: ClassVar[str] = "qoserve"
    bounded: ClassVar[bool] = True
    paces: ClassVar[bool] = True

    def __init__(
        self,
        *,
        alpha_s_per_token: float = 0.008,
        margin: float = 1.2,
        pace_s: float = 0.4,
        throughput_tps: float = 8500.0,
        from_first: bool = False,
    ) -> None:
        require(0 <= alpha_s_per_token < np.inf, "alpha_s_per_token", "at least 0", alpha_s_per_token)
        require(0 < margin < np.inf, "margin", "above 0", margin)
        require(0 < pace_s < np.inf, "pace_s", "above 0", pace_s)
        require(0 < throughput_tps < np.inf, "throughput_tps", "above 0", throughput_tps)
        self.alpha_s_per_token, self.margin, self.pace_s = alpha_s_per_token, margin, pace_s
        self.throughput_tps, self.from_first = throughput_tps, from_first
        self._step, self._seen_s = -1, 0.0

    def plan(self, snapshot: Snapshot) -> Plan:
        """Relegate, sort, and choose the chunk."""
        self._observe(snapshot)
        waiting, running = snapshot.waiting, snapshot.running
        key, gone = self.key(snapshot, waiting), self._relegated(snapshot)
        order = waiting[np.lexsort((key, gone[waiting]))]
        decode = in_decode(snapshot, running)
        started = np.where(decode, -np.inf, self.key(snapshot, running))
        ranked = running[np.lexsort((started, np.where(decode, 0.0, gone[running]), ~decode))]
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order,
            running_order=ranked,
            prefill_tokens=self._chunk(snapshot, order, ranked),
        )

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """A + D + α·u."""
        first, _ = first_and_pace_s(snapshot, rows, self.pace_s)
        due = snapshot.table.arrival_s[rows] + first
        return np.asarray(due + self.alpha_s_per_token * todo_tokens(snapshot, rows))

    def slack_s(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Slack of decoding rows."""
        t = snapshot.table
        first, pace = first_and_pace_s(snapshot, rows, self.pace_s)
        start = t.first_token_s[rows]
        if not self.from_first:
            start = np.where(np.isfinite(first), np.maximum(start, t.arrival_s[rows] + first), start)
        tokens = t.generated_tokens[rows] + (0 if self.from_first else 1)
        return np.asarray(start + pace * tokens - snapshot.now_s)

    def _relegated(self, snapshot: Snapshot) -> Floats:
        """The column of those relegated, 1 or 0, brought up to date."""
        gone, t, rows = snapshot.table.extra("qoserve.relegated"), snapshot.table, snapshot.waiting
        first, _ = first_and_pace_s(snapshot, rows, self.pace_s)
        done_s = snapshot.now_s + todo_tokens(snapshot, rows) / self.throughput_tps
        gone[rows[(done_s > t.arrival_s[rows] + first) & (t.generated_tokens[rows] == 0)]] = 1.0
        return gone

    def _chunk(self, snapshot: Snapshot, order: Ints, ranked: Ints) -> int:
        """Most prefill tokens of the step."""
        t, limits = snapshot.table, snapshot.limits
        decode = in_decode(snapshot, ranked)
        decodes, head = ranked[decode], np.concatenate([ranked[~decode], order])[:1]
        chunks = CHUNKS
        if snapshot.free_blocks * limits.block_tokens < SPARE_KV_TOKENS:
            chunks = CHUNKS[CHUNKS <= SMALL_CHUNK_TOKENS]
        prefill = np.maximum(0, chunks - len(decodes))
        have = float(np.maximum(t.computed_tokens[head], t.cached_tokens[head]).sum())
        work, kv = prefill * (have + prefill / 2), t.computed_tokens[decodes].sum()
        seconds = snapshot.step_time.predict(prefill, work, len(decodes), kv)
        slack = float(self.slack_s(snapshot, decodes).min(initial=np.inf))
        fits = np.flatnonzero(self.margin * seconds <= slack)
        return max(1, int(prefill[fits[-1] if len(fits) else 0]))

    def _observe(self, snapshot: Snapshot) -> None:
        """Average the prefill throughput of steps seen on both sides."""
        t, running = snapshot.table, snapshot.running
        served = t.extra("qoserve.served")
        new = t.served_tokens[running] - served[running]
        tokens, elapsed = float(new[new > 1].sum()), snapshot.now_s - self._seen_s
        if snapshot.step == self._step + 1 and tokens > 0 and elapsed > 0:
            self.throughput_tps = FADE * self.throughput_tps + (1 - FADE) * tokens / elapsed
        served[running] = t.served_tokens[running]
        served[snapshot.waiting] = t.served_tokens[snapshot.waiting]
        self._step, self._seen_s = snapshot.step, snapshot.now_s
