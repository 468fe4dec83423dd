"""SLOs-Serve (arXiv 2504.08784): admission by dynamic programming over deadlines."""

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
from slosched.policies.pace import first_and_pace_s, in_decode

NEW, ACCEPTED, DECLINED = 0.0, 1.0, 2.0


class SlosServe(Policy):
    """Accepts the most weight that can meet its deadlines; all others are best effort.

    When somebody arrives, a dynamic program walks the requests by TTFT deadline. For each total weight
    accepted it keeps the most prefill tokens left over once the decodes accepted so far have been served at
    the tightest TPOT limit: until the next deadline that budget grows by what steps of that length can hold
    besides them; accepting a request takes its tokens off and adds one to the decodes. Requests accepted
    before stay accepted as long as that is feasible. Accepted requests go first, by deadline; best effort
    follows by arrival. A step holds what fits in the tightest TPOT limit of the decodes that run.

    Known second-hand only. Left out: speculation, re-routing to other replicas, and serving decodes of loose
    TPOT limits less often. An end-to-end limit is split into TTFT and TPOT
    (`first_and_pace_s`). Requests without limits are best effort.

    Parameters
    ----------
    margin
        On predicted step times, above 0.
    most
        Requests in one program, by deadline, at least 1.
    units
        Steps that the largest weight is divided into, at least 1.
    whole_paces
        Whether an end-to-end limit implies one on the pace of the answer (see `first_and_pace_s`).
    """

    name: ClassVar[str] = "slos-serve"
    bounded: ClassVar[bool] = True
    paces: ClassVar[bool] = True

    def __init__(
        self, *, margin: float = 1.0, most: int = 64, units: int = 10, whole_paces: bool = False
    ) -> None:
        require(0 < margin < np.inf, "margin", "above 0", margin)
        require(most >= 1, "most", "at least 1", most)
        require(units >= 1, "units", "at least 1", units)
        require(isinstance(whole_paces, bool), "whole_paces", "true or false", whole_paces)
        self.margin, self.most, self.units, self.whole_paces = margin, most, units, whole_paces

    def plan(self, snapshot: Snapshot) -> Plan:
        """Decide on newcomers; accepted by deadline, then the others."""
        t, waiting, running = snapshot.table, snapshot.waiting, snapshot.running
        state = t.extra("slos-serve.state", fill=NEW)
        first, pace = first_and_pace_s(snapshot, waiting, whole_paces=self.whole_paces)
        due = t.arrival_s[waiting] + first
        state[waiting[np.isinf(due)]] = DECLINED
        state[waiting[t.generated_tokens[waiting] > 0]] = ACCEPTED
        if (state[waiting] == NEW).any():
            asked = np.flatnonzero((state[waiting] != DECLINED) & (t.generated_tokens[waiting] == 0))
            asked = asked[np.argsort(due[asked], kind="stable")][: self.most]
            self._decide(snapshot, waiting[asked], due[asked] - snapshot.now_s, pace[asked], state)
        group = np.where(state[waiting] == ACCEPTED, 0, np.where(state[waiting] == NEW, 1, 2))
        order = waiting[np.lexsort((np.where(group == 2, 0.0, due), group))]
        decode = in_decode(snapshot, running)
        _, theirs = first_and_pace_s(snapshot, running[decode], whole_paces=self.whole_paces)
        head = np.concatenate([running[~decode], order])[:1]
        have = float(np.maximum(t.computed_tokens[head], t.cached_tokens[head]).sum())
        count = np.array([int(decode.sum())])
        room, _ = self._step(snapshot, count, have, float(theirs.min(initial=np.inf)))
        return Plan(snapshot=snapshot, policy=self.name, order=order, prefill_tokens=max(1, int(room[0])))

    def _decide(self, snapshot: Snapshot, rows: Ints, left_s: Floats, pace: Floats, state: Floats) -> None:
        t, running = snapshot.table, snapshot.running
        decode = in_decode(snapshot, running)
        _, theirs = first_and_pace_s(snapshot, running, whole_paces=self.whole_paces)
        tightest = min(float(theirs.min(initial=np.inf)), float(pace.min(initial=np.inf)))
        counts, middle = len(running) + np.arange(len(rows) + 1), float(t.prompt_tokens[rows].mean() / 2)
        room, seconds = self._step(snapshot, counts, middle, tightest)
        begun = int(todo_tokens(snapshot, running[~decode]).sum())
        largest = float(t.weight[rows].max(initial=0.0)) or 1.0
        worth = np.maximum(1, np.round(t.weight[rows] / largest * self.units)).astype(np.int64)
        accepted = accept(
            np.maximum(0.0, left_s), todo_tokens(snapshot, rows), worth, state[rows] == ACCEPTED,
            room / seconds, float(begun),
        )  # fmt: skip
        state[rows] = np.where(accepted, ACCEPTED, DECLINED)

    def _step(self, snapshot: Snapshot, decodes: Ints, have: float, limit_s: float) -> tuple[Ints, Floats]:
        """Most prefill tokens after `have` others, by number of decodes, in a step of `limit_s`; its time."""
        t, running, model = snapshot.table, snapshot.running, snapshot.step_time
        context = float(t.computed_tokens[running].mean()) if len(running) else 0.0
        x = np.arange(snapshot.limits.max_num_batched_tokens + 1)
        alone = model.predict(x, x * (have + x / 2))
        extra = model.sequence_s + model.kv_token_s * context
        room = np.empty(len(decodes), dtype=np.int64)
        for i, count in enumerate(decodes.tolist()):
            # The knee moves with the decodes; beyond it each of them costs knee_token_s more.
            seconds = (
                alone
                + count * extra
                + model.knee_token_s
                * (np.maximum(0, x + count - model.knee_tokens) - np.maximum(0, x - model.knee_tokens))
            )
            room[i] = np.searchsorted(self.margin * seconds, limit_s, side="right") - 1
        room = np.clip(room, 0, np.maximum(0, len(x) - 1 - decodes))
        return room, alone[room] + decodes * extra


@njit(nogil=True, cache=True)
def accept(
    left_s: Floats,
    tokens: Ints,
    worth: Ints,
    kept: NDArray[np.bool_],
    rate_tps: Floats,
    begun_tokens: float,
) -> NDArray[np.bool_]:
    """The accepted requests of most worth that all meet their deadlines.

    Parameters
    ----------
    left_s
        Seconds to each deadline, ascending, at least 0, shape (n,).
    tokens, worth
        Prefill tokens and value of each, at least 1.
    kept
        Who is accepted already and is declined only if it cannot be on time.
    rate_tps
        Prefill tokens per second by number of accepted requests, shape (n + 1,).
    begun_tokens
        Prefill tokens to compute before all others.

    Returns
    -------
    ndarray of bool
        Shape (n,).
    """
    n, size = len(tokens), int(worth.sum()) + 1
    spare = np.full(size, -np.inf)  # most tokens left, by worth accepted
    count = np.zeros(size, np.int64)
    took = np.zeros((n, size), np.bool_)
    spare[0] = -begun_tokens
    before = 0.0
    for i in range(n):
        grown = spare + rate_tps[count] * (left_s[i] - before)
        before = left_s[i]
        older = count.copy()
        spare[:] = -np.inf
        for v in range(size):
            if grown[v] == -np.inf:
                continue
            fits = grown[v] >= tokens[i]
            if fits and grown[v] - tokens[i] > spare[v + worth[i]]:
                spare[v + worth[i]] = grown[v] - tokens[i]
                count[v + worth[i]] = older[v] + 1
                took[i, v + worth[i]] = True
            if not (fits and kept[i]) and grown[v] > spare[v]:
                spare[v] = grown[v]
                count[v] = older[v]
                took[i, v] = False
    v = size - 1
    while spare[v] == -np.inf:
        v -= 1
    accepted = np.zeros(n, np.bool_)
    for i in range(n - 1, -1, -1):
        accepted[i] = took[i, v]
        if accepted[i]:
            v -= worth[i]
    return accepted
