"""Urgency, then density: the order of ProServe (arXiv 2512.12928) as released in xLLM."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.fill import fill, todo_tokens
from slosched.policies.pace import first_and_pace_s, in_decode, paced_due_s

PACE_SHARE = 0.65
"""Share of the tightest TPOT limit that a step may take at least."""


class ProServe(Policy):
    """Deadline first at light load, value per second first in overload.

    What is due next is the first token at S, or the next one at real TTFT + g·P; rem is the time left. ℓ is
    the predicted time of the request alone in a step, less the constant c of a step. The step's time budget
    β is the least rem of those not overdue, but at least 0.65 of the tightest P. The load L is c plus the
    sum of ℓ, or where decodes run, the sum of ℓ times β / (β - c). A request is urgent if rem < λ·L. Urgent
    ones go first: decodes, then prefills overdue by more than S by deadline (a starvation guard), then the
    others, each by descending weight / ℓ. Those not urgent go by rem. Running and waiting requests stand in
    one line, which fills the step until β.

    xLLM's own step model is quadratic in prefill and linear in decode context, as the snapshot's is. An
    end-to-end limit, which xLLM accepts but does not use, is split into TTFT and TPOT (`first_and_pace_s`).
    A request without limits is urgent only where the load is unbounded, and otherwise goes last.

    Parameters
    ----------
    urgency
        λ, above 0.
    prefill_weight, decode_weight
        Weights of the phases, above 0, times the weight of the request.
    """

    name: ClassVar[str] = "proserve"
    bounded: ClassVar[bool] = True
    paces: ClassVar[bool] = True
    skips: ClassVar[bool] = True

    def __init__(
        self, *, urgency: float = 1.0, prefill_weight: float = 1.0, decode_weight: float = 1.0
    ) -> None:
        require(0 < urgency < np.inf, "urgency", "above 0", urgency)
        require(0 < prefill_weight < np.inf, "prefill_weight", "above 0", prefill_weight)
        require(0 < decode_weight < np.inf, "decode_weight", "above 0", decode_weight)
        self.urgency, self.prefill_weight, self.decode_weight = urgency, prefill_weight, decode_weight

    def plan(self, snapshot: Snapshot) -> Plan:
        """One line of everybody, cut at the time budget."""
        t = snapshot.table
        rows = np.concatenate([snapshot.running, snapshot.waiting])
        rows = rows[np.lexsort((t.serial[rows], t.arrival_s[rows]))]
        line, budget_s = self.line(snapshot, rows)
        waits = np.isin(line, snapshot.waiting)
        order, ranked = line[waits], line[~waits]
        now = line[~waits | np.isin(line, snapshot.admissible(order))]
        filled = fill(snapshot, now, budget_s)
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order,
            running_order=ranked,
            prefill_tokens=filled.prefill_tokens,
            skip=filled.skip,
        )

    def line(self, snapshot: Snapshot, rows: Ints) -> tuple[Ints, float]:
        """`rows` in the order of service, and the time budget β in seconds."""
        t, constant = snapshot.table, snapshot.step_time.base_s
        decode = in_decode(snapshot, rows)
        first, pace = first_and_pace_s(snapshot, rows)
        due = paced_due_s(snapshot, rows, first, pace)
        left, answering = due - snapshot.now_s, t.generated_tokens[rows] > 0
        alone = self._alone_s(snapshot, rows, decode)
        budget = float(left[left >= 0].min(initial=np.inf))
        tightest = PACE_SHARE * float(pace.min(initial=np.inf))
        if np.isfinite(tightest):
            budget = tightest if np.isinf(budget) else max(budget, tightest)
        load = float(alone.sum())
        if not decode.any() or np.isinf(budget):
            load += constant
        else:
            load = load * budget / (budget - constant) if budget > constant else np.inf
        urgent = left < self.urgency * load
        starved = urgent & ~decode & ~answering & (left < -first)
        density = t.weight[rows] / alone * np.where(decode, self.decode_weight, self.prefill_weight)
        group = np.where(~urgent, 3, np.where(decode, 0, np.where(starved, 1, 2)))
        rank = np.where(urgent, np.where(starved, due, -density), left)
        return rows[np.lexsort((rank, group))], budget

    @staticmethod
    def _alone_s(
        snapshot: Snapshot, rows: Ints, decode: np.ndarray[tuple[int], np.dtype[np.bool_]]
    ) -> Floats:
        """Seconds each row adds to a step: its whole prefill, or one token."""
        t, model = snapshot.table, snapshot.step_time
        have = np.maximum(t.computed_tokens[rows], t.cached_tokens[rows])
        todo = todo_tokens(snapshot, rows)
        prefill = model.predict(todo, todo * (have + todo / 2))
        step = model.predict(0, 0, 1, have)
        return np.asarray(np.maximum(np.where(decode, step, prefill) - model.base_s, 1e-9))
