"""FairBatching (arXiv 2510.14392): batches formed by slack within a time budget."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.fill import fill
from slosched.policies.pace import first_and_pace_s, in_decode, next_due_s, paced_due_s


class FairBatching(Policy):
    """Urgent decodes, then prefills, then the other decodes, each by slack, until the step's time is full.

    The step may take as long as the least slack of a decode, but at least the tightest TPOT limit P. Slack
    is the time to the deadline of the next token on the envelope A + S + j·P. A decode is urgent if its slack
    is less than the step's time plus P; the others fill what prefills leave.

    Known second-hand only. The paper's step model is linear in new tokens and context, as the snapshot's is.
    Its export of an admission budget to a router is left out: there is one engine. An end-to-end limit is
    split into TTFT and TPOT (`first_and_pace_s`); requests without limits go last in their group.

    Parameters
    ----------
    share
        Share of the least slack and of P that a step may take, above 0; 1 as published.
    from_first
        Count the pace from the real first token, as TPOT is measured, instead of the envelope.
    """

    name: ClassVar[str] = "fairbatching"
    bounded: ClassVar[bool] = True
    paces: ClassVar[bool] = True
    skips: ClassVar[bool] = True

    def __init__(self, *, share: float = 1.0, from_first: bool = False) -> None:
        require(0 < share < np.inf, "share", "above 0", share)
        self.share, self.from_first = share, from_first

    def plan(self, snapshot: Snapshot) -> Plan:
        """Form the step."""
        t, running, waiting = snapshot.table, snapshot.running, snapshot.waiting
        rows = np.concatenate([running, waiting])
        slack, pace = self.slack_s(snapshot, rows)
        decode = in_decode(snapshot, rows)
        tightest = float(pace[decode].min(initial=np.inf))
        least = float(slack[decode].min(initial=np.inf))
        budget_s = self.share * (tightest if least < tightest else least)
        urgent = decode & (slack < budget_s + tightest)
        group = np.where(urgent, 0, np.where(decode, 2, 1))
        line = rows[np.lexsort((t.serial[rows], t.arrival_s[rows], slack, group))]
        waits = np.isin(line, waiting)
        order = line[waits]
        filled = fill(snapshot, line[~waits | np.isin(line, snapshot.admissible(order))], budget_s)
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order,
            running_order=line[~waits],
            prefill_tokens=filled.prefill_tokens,
            skip=filled.skip,
        )

    def slack_s(self, snapshot: Snapshot, rows: Ints) -> tuple[Floats, Floats]:
        """Time to the deadline of the next token, and the pace, of each row."""
        first, pace = first_and_pace_s(snapshot, rows)
        due = (paced_due_s if self.from_first else next_due_s)(snapshot, rows, first, pace)
        return due - snapshot.now_s, pace
