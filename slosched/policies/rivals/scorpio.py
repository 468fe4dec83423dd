"""SCORPIO (arXiv 2505.23022), after its authors' repository."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.estimate import decode_step_s
from slosched.core.jit import njit
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.fill import todo_tokens
from slosched.policies.pace import answer_tokens, first_and_pace_s, in_decode

HEADROOM = 0.99
"""Share of the tightest TPOT limit that predictions must stay below."""


class Scorpio(Policy):
    """Least deadline first, with guards on TTFT and TPOT that refuse, hold back and slow down requests.

    *LDF*: the queue is sorted by A + S. *Reject* (`reject`): along that order prompt tokens c add up, the
    first token is predicted after max(decode step, c·seconds per token) + `ttft_margin_s`; who would be late
    is refused and adds nothing. *TPOT admission* (`admission`): with T the tightest TPOT limit and the
    virtual batch V = sum of T/TPOT over running requests and the candidate, a candidate is held unless
    `factor` times the predicted time of a step of V requests with mean contexts is below 0.99·T. *Credit
    batching* (`credits`): at each step a decode earns T/TPOT; it gets a token if it has a whole credit,
    which it then pays. Those at T always do.

    The authors predict with a step model linear in V and V times context; here the snapshot's model does.
    An end-to-end limit is split into TTFT and TPOT (see `first_and_pace_s`). Requests without a TPOT limit,
    which the paper does not have, count in V and earn credit as if theirs were T / `least_credit`; those
    without a TTFT limit go last and are never refused. Prompts begun count in c. One request is let in when
    nobody runs, whatever the guards say.

    Parameters
    ----------
    reject, admission, credits
        Switches of the guards.
    factor
        On predicted TPOT, above 0; 1.3 in the authors' runs.
    ttft_margin_s
        Added to the predicted TTFT, at least 0.
    least_credit
        Above 0, at most 1.
    whole_paces
        Whether an end-to-end limit implies one on the pace of the answer (see `first_and_pace_s`). Without,
        attainment is up to 45 points higher where all limits are end-to-end.
    """

    name: ClassVar[str] = "scorpio"
    bounded: ClassVar[bool] = True
    rejects: bool = True
    skips: ClassVar[bool] = True

    def __init__(
        self,
        *,
        reject: bool = True,
        admission: bool = True,
        credits: bool = True,
        factor: float = 1.3,
        ttft_margin_s: float = 0.05,
        least_credit: float = 0.1,
        whole_paces: bool = False,
    ) -> None:
        require(0 < factor < np.inf, "factor", "above 0", factor)
        require(0 <= ttft_margin_s < np.inf, "ttft_margin_s", "at least 0", ttft_margin_s)
        require(0 < least_credit <= 1, "least_credit", "above 0, at most 1", least_credit)
        require(isinstance(whole_paces, bool), "whole_paces", "true or false", whole_paces)
        self.whole_paces = whole_paces
        self.reject, self.admission, self.credits = reject, admission, credits
        self.factor, self.ttft_margin_s, self.least_credit = factor, ttft_margin_s, least_credit

    def plan(self, snapshot: Snapshot) -> Plan:
        """Sort by deadline, refuse, hold back, and pass over decodes without credit."""
        first, pace = first_and_pace_s(snapshot, snapshot.waiting, whole_paces=self.whole_paces)
        due = snapshot.table.arrival_s[snapshot.waiting] + first
        by_due = np.argsort(due, kind="stable")
        line, pace, due = snapshot.waiting[by_due], pace[by_due], due[by_due]
        late = self._late(snapshot, line, due) if self.reject else np.zeros(len(line), dtype=np.bool_)
        refused, line, pace = line[late], line[~late], pace[~late]
        held = line[self._too_many(snapshot, line, pace)] if self.admission else line[:0]
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=line,
            hold=held,
            reject=refused,
            skip=self._without_credit(snapshot) if self.credits else line[:0],
        )

    def _late(self, snapshot: Snapshot, line: Ints, due: Floats) -> NDArray[np.bool_]:
        """Who along the line would get the first token too late."""
        t, budget = snapshot.table, snapshot.limits.max_num_batched_tokens
        begun = snapshot.running[~in_decode(snapshot, snapshot.running)]
        token_s = float(snapshot.step_time.predict(budget, budget * budget / 2)) / budget
        late: NDArray[np.bool_] = _refusals(
            np.where(t.generated_tokens[line] > 0, np.inf, due - snapshot.now_s - self.ttft_margin_s),
            todo_tokens(snapshot, line),
            int(todo_tokens(snapshot, begun).sum()),
            decode_step_s(snapshot),
            token_s,
        )
        return late

    def _too_many(self, snapshot: Snapshot, line: Ints, pace: Floats) -> NDArray[np.bool_]:
        """Who along the line would make steps too slow for the tightest TPOT limit."""
        model, running = snapshot.step_time, snapshot.running
        _, running_pace = first_and_pace_s(snapshot, running, whole_paces=self.whole_paces)
        held: NDArray[np.bool_] = _holds(
            pace,
            self._context_tokens(snapshot, line),
            running_pace,
            float(self._context_tokens(snapshot, running).sum()),
            np.array([model.base_s, model.sequence_s, model.kv_token_s]) * self.factor,
            self.least_credit,
        )
        return held

    @staticmethod
    def _context_tokens(snapshot: Snapshot, rows: Ints) -> Floats:
        """Mean context of a request over its answer."""
        return np.asarray(snapshot.table.prompt_tokens[rows] + answer_tokens(snapshot, rows) / 2)

    def _without_credit(self, snapshot: Snapshot) -> Ints:
        """Decodes that get no token now; pays for those that do."""
        credit = snapshot.table.extra("scorpio.credit")
        rows = snapshot.running[in_decode(snapshot, snapshot.running)]
        _, pace = first_and_pace_s(snapshot, rows, whole_paces=self.whole_paces)
        tightest = float(pace.min(initial=np.inf))
        if np.isinf(tightest):
            return rows[:0]
        credit[rows] += np.maximum(tightest / pace, self.least_credit)
        paid = (credit[rows] >= 1 - 1e-9) | (pace == tightest)
        credit[rows[paid]] = np.maximum(0.0, credit[rows[paid]] - 1.0)
        return np.asarray(rows[~paid])


@njit(nogil=True, cache=True)
def _refusals(left_s: Floats, tokens: Ints, begun: int, flat_s: float, token_s: float) -> NDArray[np.bool_]:
    """Walk the line: refuse who has less time left than all tokens up to its own take."""
    refused = np.zeros(len(left_s), np.bool_)
    total = begun
    for i in range(len(left_s)):
        total += tokens[i]
        if max(flat_s, total * token_s) > left_s[i]:
            refused[i] = True
            total -= tokens[i]
    return refused


@njit(nogil=True, cache=True)
def _holds(
    pace: Floats, context: Floats, running_pace: Floats, running_context: float, step: Floats, least: float
) -> NDArray[np.bool_]:
    """Walk the line: hold who would bring the step of the virtual batch to the tightest limit or above."""
    held = np.zeros(len(pace), np.bool_)
    tightest = np.inf
    inverse = 0.0
    for i in range(len(running_pace)):
        tightest = min(tightest, running_pace[i])
        inverse += 1 / running_pace[i]
    loose = 0
    for i in range(len(running_pace)):
        loose += running_pace[i] == np.inf
    count, total = len(running_pace), running_context
    for i in range(len(pace)):
        limit = min(tightest, pace[i])
        mine = 1 / pace[i]
        unpaced = loose + (pace[i] == np.inf)
        if count > 0 and limit < np.inf:
            virtual = limit * (inverse + mine) + least * unpaced
            mean = (total + context[i]) / (count + 1)
            if step[0] + step[1] * virtual + step[2] * virtual * mean >= HEADROOM * limit:
                held[i] = True
                continue
        tightest, inverse, loose = limit, inverse + mine, unpaced
        count += 1
        total += context[i]
    return held
