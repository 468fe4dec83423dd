"""SlidingServe (arXiv 2606.05933): protected requests first, chunks over two steps."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.jit import njit
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.fill import todo_tokens
from slosched.policies.pace import first_and_pace_s, in_decode, next_due_s, paced_due_s

TIE_TOKENS = 2
"""Pairs of chunks whose sums differ by no more are equally good: sizes are whole numbers."""
CELLS = 256
"""Cells that the knapsack's capacity is divided into."""


class SlidingServe(Policy):
    """Sorts prefills by (protected, urgency, remaining work); plans the chunks of two steps together.

    *Chunk*: among the prefill tokens x of this step and y of the next that keep the next two tokens of all
    decodes on time, the pair with the largest sum, of equals the one with the largest x. *Protection*: along
    the order of TTFT deadlines, at that rate, whenever a first token would be late, a 0/1 knapsack (tokens
    against weight, capacity the time to that deadline) chooses who is protected among those up to it; the
    others go behind. *Urgency* is the time to the latest start in whole units of `urgency_s`, the least
    first.

    Known second-hand only: what makes a request protected, and the units, are our reading. The authors find
    the chunk by ternary search; here all sizes are compared at once. An end-to-end limit is split into TTFT
    and TPOT (`first_and_pace_s`). Requests without limits are protected, and last among those.

    Parameters
    ----------
    urgency_s
        Above 0.
    least_tokens
        Prefill tokens of a step whatever the slack, at least 1.
    most
        Waiting requests, by deadline, among which the knapsack chooses, at least 1; later ones are
        protected.
    from_first
        Count the pace from the real first token, as TPOT is measured, instead of the envelope A + S + j·P.
    """

    name: ClassVar[str] = "slidingserve"
    bounded: ClassVar[bool] = True
    paces: ClassVar[bool] = True

    def __init__(
        self,
        *,
        urgency_s: float = 0.1,
        least_tokens: int = 128,
        most: int = 64,
        from_first: bool = False,
    ) -> None:
        require(0 < urgency_s < np.inf, "urgency_s", "above 0", urgency_s)
        require(least_tokens >= 1, "least_tokens", "at least 1", least_tokens)
        require(most >= 1, "most", "at least 1", most)
        self.urgency_s, self.least_tokens, self.most = urgency_s, least_tokens, most
        self.from_first = from_first

    def plan(self, snapshot: Snapshot) -> Plan:
        """Choose the chunk, protect, sort."""
        t, waiting, running = snapshot.table, snapshot.waiting, snapshot.running
        decode = in_decode(snapshot, running)
        decodes, begun = running[decode], running[~decode]
        rows = np.concatenate([begun, waiting])
        chunk, rate_tps = self.chunk(snapshot, decodes, rows)
        work = todo_tokens(snapshot, rows)
        first, _ = first_and_pace_s(snapshot, rows)
        left = t.arrival_s[rows] + first - snapshot.now_s
        left = np.where(t.generated_tokens[rows] > 0, 0.0, left)
        urgency = np.floor((left - work / rate_tps) / self.urgency_s)
        protected = np.ones(len(rows), dtype=np.bool_)
        wait = np.arange(len(begun), len(rows))
        head = wait[np.argsort(left[wait], kind="stable")][: self.most]
        allowed = left[head] * rate_tps - work[: len(begun)].sum()
        answering = t.generated_tokens[rows[head]] > 0
        protected[head] = protect(
            np.where(answering, np.inf, allowed), work[head].astype(np.float64), t.weight[rows[head]] + 1e-6
        )
        ranked = np.lexsort((t.serial[rows], t.arrival_s[rows], work, urgency, ~protected))
        line = rows[ranked]
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=line[ranked >= len(begun)],
            running_order=np.concatenate([decodes, line[ranked < len(begun)]]),
            prefill_tokens=chunk,
        )

    def chunk(self, snapshot: Snapshot, decodes: Ints, prefills: Ints) -> tuple[int, float]:
        """Prefill tokens of this step, and prefill tokens per second over two steps."""
        t = snapshot.table
        first, pace = first_and_pace_s(snapshot, decodes)
        due = (paced_due_s if self.from_first else next_due_s)(snapshot, decodes, first, pace)
        slack = due - snapshot.now_s
        head = prefills[:1]
        have = float(np.maximum(t.computed_tokens[head], t.cached_tokens[head]).sum())
        x = np.arange(max(2, snapshot.limits.max_num_batched_tokens - len(decodes) + 1))
        seconds = snapshot.step_time.predict(
            x, x * (have + x / 2), len(decodes), t.computed_tokens[decodes].sum()
        )
        one, two = float(slack.min(initial=np.inf)), float((slack + pace).min(initial=np.inf))
        least = min(self.least_tokens, len(x) - 1)
        most = max(least, int(np.searchsorted(seconds, one, side="right")) - 1)
        now = seconds[least : most + 1]
        then = np.maximum(least, np.searchsorted(seconds, two - now, side="right") - 1)
        both = x[least : most + 1] + then
        best = int(np.flatnonzero(both >= both.max() - TIE_TOKENS)[-1])
        return least + best, float(both[best] / (now[best] + seconds[then[best]]))


@njit(nogil=True, cache=True)
def protect(allowed: Floats, tokens: Floats, value: Floats) -> NDArray[np.bool_]:
    """Who is protected among requests in the order of their deadlines.

    Parameters
    ----------
    allowed
        Tokens that can be computed until the deadline of each, ascending but for infinities; any sign.
    tokens, value
        Tokens each needs, and what it is worth, above 0.

    Returns
    -------
    ndarray of bool
        Those who are all on time, and no less worth than before each knapsack's choice.
    """
    n = len(tokens)
    kept = np.ones(n, np.bool_)
    total = 0.0
    for i in range(n):
        total += tokens[i]
        if total <= allowed[i]:
            continue
        knapsack(tokens, value, kept, i + 1, allowed[i])
        total = 0.0
        for j in range(i + 1):
            if kept[j]:
                total += tokens[j]
    return kept


@njit(nogil=True, cache=True)
def knapsack(tokens: Floats, value: Floats, kept: NDArray[np.bool_], n: int, capacity: float) -> None:
    """Keep, of the first n that are kept, those of most value that fit; sizes round up to whole cells."""
    best = np.zeros(CELLS + 1)
    taken = np.zeros((n, CELLS + 1), np.bool_)
    cell = capacity / CELLS
    size = np.zeros(n, np.int64)
    for j in range(n):
        size[j] = CELLS + 1
        if kept[j] and tokens[j] <= capacity:
            size[j] = int(np.ceil(tokens[j] / cell - 1e-9))
            for c in range(CELLS, size[j] - 1, -1):
                if best[c - size[j]] + value[j] > best[c]:
                    best[c] = best[c - size[j]] + value[j]
                    taken[j, c] = True
    c = CELLS
    for j in range(n - 1, -1, -1):
        kept[j] = size[j] <= CELLS and taken[j, c]
        if kept[j]:
            c -= size[j]
