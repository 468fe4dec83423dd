"""Simple orders with paced prefill: short rules that respect both first tokens and the pace of answers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.estimate import deadline_s, decode_step_s, hopeless, prefill_s
from slosched.core.jit import njit
from slosched.core.remaining import remaining_tokens
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.fill import todo_tokens
from slosched.policies.hopeless import refused
from slosched.policies.pace import in_decode

SAFE_SHARE = 0.9
"""Share of the tightest pace that a step may take: the rest is for errors of the step-time model."""
LEAST_TOKENS = 16
"""Prompt tokens of a step in which no pace leaves room for more: prompts go on, whatever the token budget."""
FATES = ("last", "refuse")
"""What becomes of hopeless requests."""


class Paced(Policy):
    """An order, hopeless requests last, and as many prompt tokens in a step as decoding answers can bear.

    Prompts that have begun compete with those that wait: where a waiting one is ahead, they are passed over.
    A step holds the most prompt tokens with which it lasts at most `share` of the tightest pace that a
    decoding answer can still keep; at least 16. An answer's pace is what it may take per token to come: its
    TPOT limit with what it has saved, or what is left of its e2e limit. One that cannot keep its pace even
    without any prompt slows nobody down.

    Parameters
    ----------
    hopeless
        Requests that would miss a limit even if served at once go "last", shortest prompt first; or
        "refuse" those without a token whose chance to keep their limits is below `least_chance`.
    hold
        Whether newcomers wait whose decoding alone would break the tightest pace.
    share
        Share of the tightest pace that a step may take, above 0, at most 1.
    least_chance
        Above 0, at most 1; used where hopeless requests are refused.
    """

    paces: ClassVar[bool] = True

    def __init__(
        self,
        *,
        hopeless: str = "last",
        hold: bool = False,
        share: float = SAFE_SHARE,
        least_chance: float = 0.05,
    ) -> None:
        require(hopeless in FATES, "hopeless", " or ".join(FATES), hopeless)
        require(isinstance(hold, bool), "hold", "true or false", hold)
        require(0 < share <= 1, "share", "a number above 0, at most 1", share)
        require(0 < least_chance <= 1, "least_chance", "a number above 0, at most 1", least_chance)
        self.hold, self.share, self.least_chance = hold, share, least_chance
        self.rejects = self.preempts = hopeless == "refuse"

    @abstractmethod
    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Sort keys of waiting and begun requests, smaller first, shape (len(rows),)."""

    def plan(self, snapshot: Snapshot) -> Plan:
        """Sort prompts, and share out the step."""
        reject = preempt = snapshot.waiting[:0]
        seen = snapshot
        if self.rejects:
            reject = refused(snapshot, snapshot.waiting, self.least_chance)
            preempt = refused(snapshot, snapshot.running, self.least_chance)  # to be refused next
            seen = _without(snapshot, reject, preempt)
        decode = in_decode(seen, seen.running)
        decodes, begun = seen.running[decode], seen.running[~decode]
        line, runs = self._line(seen, begun)
        order = line[~runs]
        pace_s, alone_s = self.pace_s(seen, decodes)
        able = seen.admissible(order)
        if self.hold and len(decodes):
            able = self._bearable(seen, decodes, begun, able, pace_s)
        # Those admitted now are the first waiting ones of the line.
        competes = runs | (np.cumsum(~runs) <= len(able))
        prompts, runs = line[competes], runs[competes]
        want = todo_tokens(seen, prompts)
        room = self._room(seen, decodes, prompts, want, max(self.share * pace_s, alone_s))
        given = np.clip(room - (np.cumsum(want) - want), 0, want)
        overtaken = np.cumsum(~runs) > 0
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order,
            hold=order[len(able) :] if self.hold and len(decodes) else order[:0],
            running_order=np.concatenate([decodes, prompts[runs], preempt]),
            prefill_tokens=room,
            preempt=preempt,
            reject=reject,
            skip=prompts[runs & overtaken & (given < want)],
        )

    def pace_s(self, snapshot: Snapshot, decodes: Ints) -> tuple[float, float]:
        """The tightest pace that a decoding row can still keep, and a step without any prompt; seconds."""
        t, now_s = snapshot.table, snapshot.now_s
        context = float(t.computed_tokens[decodes].sum())
        alone_s = float(snapshot.step_time.predict(sequences=len(decodes), kv_tokens=context))
        left = remaining_tokens(t.atoms, decodes, t.generated_tokens)
        tpot = t.tpot_s[decodes]
        paced = np.isfinite(tpot)
        limit = np.where(paced, tpot, 0.0)
        saved_s = limit * (t.generated_tokens[decodes] - 1.0) - (now_s - t.first_token_s[decodes])
        own = np.where(paced, limit + saved_s / left, np.inf)
        own = np.minimum(own, (t.arrival_s[decodes] + t.e2e_s[decodes] - now_s) / left)
        late = t.first_token_s[decodes] - t.arrival_s[decodes] > t.ttft_s[decodes]
        kept = ~late & (self.share * own >= alone_s)
        return float(own[kept].min(initial=np.inf)), alone_s

    def _line(self, snapshot: Snapshot, begun: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Begun and waiting rows in the order of their prompts, and which of them have begun."""
        t = snapshot.table
        rows = np.concatenate([begun, snapshot.waiting])
        lost = hopeless(snapshot, rows, decode_step_s(snapshot))
        key = np.where(lost, prefill_s(snapshot, rows), self.key(snapshot, rows))
        order = np.lexsort((t.serial[rows], t.arrival_s[rows], key, lost))
        return rows[order], order < len(begun)

    def _bearable(self, snapshot: Snapshot, decodes: Ints, begun: Ints, able: Ints, pace_s: float) -> Ints:
        """The head of `able` whose decoding leaves the tightest pace."""
        t = snapshot.table
        count = len(decodes) + len(begun) + np.arange(1, len(able) + 1)
        context = t.computed_tokens[decodes].sum() + t.prompt_tokens[begun].sum()
        context = context + np.cumsum(t.prompt_tokens[able])
        seconds = snapshot.step_time.predict(sequences=count, kv_tokens=context)
        return np.asarray(able[seconds <= self.share * pace_s])

    def _room(self, snapshot: Snapshot, decodes: Ints, prompts: Ints, want: Ints, step_s: float) -> int:
        """Prompt tokens of the step."""
        t, model = snapshot.table, snapshot.step_time
        budget = max(1, snapshot.limits.max_num_batched_tokens - len(decodes))
        if len(prompts) == 0 or step_s == np.inf:
            return budget
        room: int = prompt_tokens_within(
            np.maximum(t.computed_tokens[prompts], t.cached_tokens[prompts]),
            want,
            len(decodes),
            float(t.computed_tokens[decodes].sum()),
            np.array([
                model.base_s, model.prefill_token_s, model.attention_work_s, model.sequence_s,
                model.kv_token_s, model.knee_tokens, model.knee_token_s,
            ]),
            step_s,
        )  # fmt: skip
        return min(budget, max(LEAST_TOKENS, room))


@njit()
def prompt_tokens_within(
    have: Ints, want: Ints, decodes: int, context: float, model: Floats, step_s: float
) -> int:
    """Most prompt tokens, taken along a line, with which a step lasts at most `step_s`.

    Parameters
    ----------
    have, want
        Tokens computed and to compute of each prompt of the line, shape (n,).
    decodes, context
        Requests that decode in the step, and the tokens of context they read.
    model
        Coefficients of `StepTimeModel` in the order of its fields, shape (7,).
    step_s
        Seconds.

    Examples
    --------
    >>> line = np.array([0, 0]), np.array([300, 300])
    >>> prompt_tokens_within(*line, 1, 0.0, np.array([0.01, 1e-4, 0, 1e-3, 0, 0, 0]), 0.05101)
    400
    """
    fixed = model[0] + model[3] * decodes + model[4] * context
    tokens = 0
    for i in range(len(want)):
        low, high = 0, want[i]
        while low < high:
            middle = (low + high + 1) // 2
            seconds = fixed + model[1] * middle + model[2] * middle * (have[i] + middle / 2)
            seconds += model[6] * max(0.0, tokens + middle + decodes - model[5])
            if seconds <= step_s:
                low = middle
            else:
                high = middle - 1
        tokens += low
        fixed += model[1] * low + model[2] * low * (have[i] + low / 2)
        if low < want[i]:
            break
    return tokens


def _without(snapshot: Snapshot, waiting: Ints, running: Ints) -> Snapshot:
    """The snapshot as if some waiting and running rows were not there."""
    return replace(
        snapshot,
        waiting=snapshot.waiting[~np.isin(snapshot.waiting, waiting)] if len(waiting) else snapshot.waiting,
        running=snapshot.running[~np.isin(snapshot.running, running)] if len(running) else snapshot.running,
    )


class PacedEdf(Paced):
    """Earliest deadline first with paced prefill."""

    name: ClassVar[str] = "paced-edf"
    bounded: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """When the next thing is due."""
        return deadline_s(snapshot, rows)


class PacedSrpt(Paced):
    """Least engine time first with paced prefill: prompt, and the decoding's part in shared steps."""

    name: ClassVar[str] = "paced-srpt"
    bounded: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Seconds of the engine that a request takes."""
        return work_s(snapshot, rows)


class PacedWspt(Paced):
    """Least engine time per weight first with paced prefill; weight 0 last."""

    name: ClassVar[str] = "paced-wspt"
    bounded: ClassVar[bool] = True

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Seconds of the engine per weight."""
        weight = snapshot.table.weight[rows]
        work = work_s(snapshot, rows)
        return np.asarray(np.divide(work, weight, out=np.full(len(rows), np.inf), where=weight > 0))


def work_s(snapshot: Snapshot, rows: Ints) -> Floats:
    """Engine seconds of requests: the prompt, and decode steps divided among those that run now.

    Parameters
    ----------
    snapshot, rows
        Requests that wait, or whose prompt has begun.

    Examples
    --------
    >>> from slosched import Engine, LengthForecast, Request, StepTimeModel
    >>> one = Request(request_id="a", prompt_tokens=100, forecast=LengthForecast.point(11))
    >>> engine = Engine(step_time=StepTimeModel(base_s=0.01, prefill_token_s=1e-4))
    >>> work_s(Snapshot.of([one], engine=engine), np.arange(1)).round(3).tolist()
    [0.12]
    """
    t = snapshot.table
    tokens = remaining_tokens(t.atoms, rows, t.generated_tokens) - 1.0
    return np.asarray(
        prefill_s(snapshot, rows) + tokens * decode_step_s(snapshot) / max(1, len(snapshot.running))
    )
