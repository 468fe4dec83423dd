"""JITServe (arXiv 2504.20068, NSDI 2026): the policy of the paper, and that of the released code."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.estimate import decode_step_s, prefill_s, remaining_s
from slosched.core.forecast import OUTLIVED_GROWTH
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy
from slosched.policies.orders import blocked
from slosched.policies.pace import answer_due_s

PREFILL_REWARD, DECODE_REWARD = 1.0, 8.0
"""Reward of a prompt token and of an output token in the released code."""


class JitServe(Policy):
    """Grouped margin goodput maximisation: most goodput per bandwidth first, similar prompts together.

    The bandwidth a request needs is its remaining service time, by an upper quantile of its forecast that is
    refined every `refine_tokens` tokens, over the time to its deadline; with several limits the largest
    counts. Its priority is the goodput it can gain, its weight, over that; 0 if it needs more than one
    engine or was promised nothing. Of the waiting requests, those with at least `factor` times the
    `batch`-th largest priority are candidates; sorted by prompt length, the window of `batch` neighbours
    with the largest sum of priorities goes first. When the head does not fit, the running request of least
    priority is preempted if that is less than the head's by more than the share that recomputing adds to
    its service, one a step. Who has waited `drop_s` and cannot be saved is refused.

    Known second-hand only. `factor`, `drop_s` and the price of preemption are our choice. Its quantile
    forest is the forecast given here; requests made of several calls are left out.

    Parameters
    ----------
    batch
        Requests in a window, at least 0; 0 for the free slots of the engine.
    factor
        From 0 to 1.
    quantile
        Above 0, below 1.
    refine_tokens
        At least 1.
    drop_s
        Above 0, infinity for never.
    """

    name: ClassVar[str] = "jitserve"
    bounded: ClassVar[bool] = True
    preempts: bool = True
    rejects: bool = True

    def __init__(
        self,
        *,
        batch: int = 0,
        factor: float = 0.5,
        quantile: float = 0.9,
        refine_tokens: int = 50,
        drop_s: float = 120.0,
    ) -> None:
        require(batch >= 0, "batch", "at least 0", batch)
        require(0 <= factor <= 1, "factor", "from 0 to 1", factor)
        require(0 < quantile < 1, "quantile", "above 0, below 1", quantile)
        require(refine_tokens >= 1, "refine_tokens", "at least 1", refine_tokens)
        require(drop_s > 0, "drop_s", "above 0", drop_s)
        self.batch, self.factor, self.quantile = batch, factor, quantile
        self.refine_tokens, self.drop_s = refine_tokens, drop_s

    def plan(self, snapshot: Snapshot) -> Plan:
        """Choose the window, perhaps a victim, and who is dropped."""
        t, waiting, running = snapshot.table, snapshot.waiting, snapshot.running
        priority = self.priority(snapshot, waiting)
        chosen = self._window(snapshot, priority)
        by_priority = np.lexsort((-priority, ~chosen))
        order = waiting[by_priority]
        promised = np.isfinite(np.minimum(t.ttft_s[waiting], answer_due_s(snapshot, waiting)))
        lost = promised & (priority == 0) & (snapshot.now_s - t.arrival_s[waiting] > self.drop_s)
        order = order[~lost[by_priority]]
        victim = running[:0]
        if len(order) and len(running) and blocked(snapshot, int(order[0])):
            theirs = self.priority(snapshot, running)
            least = int(np.argmin(theirs))
            again = snapshot.step_time.prefill_token_s * t.computed_tokens[running[least]]
            service = float(remaining_s(snapshot, running[least : least + 1], decode_step_s(snapshot))[0])
            head = float(priority[by_priority][~lost[by_priority]][0])
            if head > theirs[least] * (1 + again / service):
                victim = running[least : least + 1]
        return Plan(snapshot=snapshot, policy=self.name, order=order, preempt=victim, reject=waiting[lost])

    def priority(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Goodput per bandwidth."""
        t, now, step_s = snapshot.table, snapshot.now_s, decode_step_s(snapshot)
        prefill = prefill_s(snapshot, rows)
        service = prefill + (self._upper_tokens(snapshot, rows) - 1.0) * step_s
        first_left = np.where(t.generated_tokens[rows] == 0, t.arrival_s[rows] + t.ttft_s[rows] - now, np.inf)
        whole_left = answer_due_s(snapshot, rows) - now
        need = np.maximum(_over(prefill, first_left), _over(service, whole_left))
        return np.asarray(np.where((need > 0) & (need <= 1), t.weight[rows] / np.maximum(need, 1e-9), 0.0))

    def _upper_tokens(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Upper quantile of the remaining length, given the tokens at the last refinement; at least 1."""
        t = snapshot.table
        atoms, generated = t.atoms[rows], t.generated_tokens[rows]
        known = generated // self.refine_tokens * self.refine_tokens
        alive = (atoms > known[:, None]).sum(axis=1)
        place = atoms.shape[1] - alive + np.minimum((self.quantile * alive).astype(np.int64), alive - 1)
        length = atoms[np.arange(len(rows)), np.minimum(place, atoms.shape[1] - 1)]
        length = np.where(alive > 0, length, generated * (1 + OUTLIVED_GROWTH))
        return np.asarray(np.maximum(1.0, length - generated))

    def _window(self, snapshot: Snapshot, priority: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which waiting requests are in the best window."""
        size = self.batch or max(1, snapshot.free_seqs)
        chosen = np.zeros(len(priority), dtype=np.bool_)
        if len(priority) == 0:
            return chosen
        threshold = np.sort(priority)[-min(size, len(priority))]
        able = np.flatnonzero((priority >= self.factor * threshold) & (priority > 0))
        able = able[np.argsort(snapshot.table.prompt_tokens[snapshot.waiting[able]], kind="stable")]
        if len(able) > size:
            total = np.concatenate([[0.0], np.cumsum(priority[able])])
            best = int(np.argmax(total[size:] - total[:-size]))
            able = able[best : best + size]
        chosen[able] = True
        return chosen


class JitServeCode(KeyPolicy):
    """As released: most reward per remaining second first, recomputed every 50 steps.

    The reward is (prompt tokens + 8·expected output tokens) times min(1, limit / predicted
    latency)^`penalty`; the remaining time is the predicted service. Only the queue is ordered. Groups of
    calls are left out. A request with limits on its first token and on its answer counts the worse; without
    limits nothing is taken off, as for the code's throughput type. The exponent's default is our choice.

    Parameters
    ----------
    penalty
        Exponent, at least 0.
    refresh_steps
        Engine steps from one computation of all keys to the next, at least 1.
    """

    name: ClassVar[str] = "jitserve-code"
    bounded: ClassVar[bool] = True

    def __init__(self, *, penalty: float = 1.0, refresh_steps: int = 50) -> None:
        require(0 <= penalty < np.inf, "penalty", "at least 0", penalty)
        require(refresh_steps >= 1, "refresh_steps", "at least 1", refresh_steps)
        self.penalty, self.refresh_steps = penalty, refresh_steps
        self._next_step = 0

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Negated reward per second, as of the last computation."""
        kept = snapshot.table.extra("jitserve-code.key", fill=np.nan)
        if snapshot.step >= self._next_step:
            self._next_step = snapshot.step + self.refresh_steps
            stale = rows
        else:
            stale = rows[np.isnan(kept[rows])]
        if len(stale):
            kept[stale] = self._fresh(snapshot, stale)
        return kept[rows]

    def _fresh(self, snapshot: Snapshot, rows: Ints) -> Floats:
        t, now, step_s = snapshot.table, snapshot.now_s, decode_step_s(snapshot)
        service, arrival = remaining_s(snapshot, rows, step_s), t.arrival_s[rows]
        tokens = PREFILL_REWARD * t.prompt_tokens[rows] + DECODE_REWARD * t.atoms[rows].mean(axis=1)
        answer = (answer_due_s(snapshot, rows) - arrival) / (now + service - arrival)
        first = t.ttft_s[rows] / (now + prefill_s(snapshot, rows) - arrival)
        first = np.where(t.generated_tokens[rows] == 0, first, np.inf)
        share = np.clip(np.minimum(answer, first), 0.0, 1.0)
        return np.asarray(-tokens * share**self.penalty / service)


def _over(work_s: Floats, left_s: Floats) -> Floats:
    """Share of an engine that work needs in the time left; infinity if there is none."""
    return np.where(left_s > 0, work_s / np.where(left_s > 0, left_s, 1.0), np.inf)
