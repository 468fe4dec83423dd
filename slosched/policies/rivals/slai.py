"""SLAI (arXiv 2508.01002): decodes wait until they must go, prefills take what that leaves."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy


class Slai(Policy):
    """Urgent decodes, then unfinished prefills, then new ones, then the other decodes while room lasts.

    A decode is urgent from its last schedulable time on: last token + TPOT limit - o mean steps, o = 5, or 10
    when more than 96 % of the KV cache is in use; without a TPOT limit it never is. Urgent ones go earliest
    first. Other decodes get the token budget that prefills leave, in the same order, while at most `most` are
    decoded in the step. New prefills enter first come, first served or shortest prompt first. Memory is taken
    from the youngest unfinished prefill.

    Parameters
    ----------
    shortest
        Whether new prefills enter by ascending prompt length.
    most
        Decodes in a step beyond which only urgent ones are added, at least 1; 128 in the released code.
    offset_steps, tight_offset_steps
        o while memory is ample and while it is tight, each at least 0; 5 and 10.
    """

    name: ClassVar[str] = "slai"
    bounded: ClassVar[bool] = True
    skips: ClassVar[bool] = True

    def __init__(
        self,
        *,
        shortest: bool = False,
        most: int = 128,
        offset_steps: float = 5.0,
        tight_offset_steps: float = 10.0,
    ) -> None:
        require(most >= 1, "most", "at least 1", most)
        require(offset_steps >= 0, "offset_steps", "at least 0", offset_steps)
        require(tight_offset_steps >= 0, "tight_offset_steps", "at least 0", tight_offset_steps)
        self.shortest, self.most = shortest, most
        self.offset_steps, self.tight_offset_steps = offset_steps, tight_offset_steps
        self._step, self._now_s = 0, np.nan
        self._steps, self._steps_s = 0, 0.0

    def plan(self, snapshot: Snapshot) -> Plan:
        """Put the step's groups in order and pass over decodes without room."""
        t, running, waiting = snapshot.table, snapshot.running, snapshot.waiting
        if self.shortest:
            waiting = waiting[np.argsort(t.prompt_tokens[waiting], kind="stable")]
        due_s = self._due_s(snapshot)
        todo = t.prompt_tokens[running] + t.generated_tokens[running] - t.computed_tokens[running]
        decode = (todo == 1) & (t.generated_tokens[running] > 0)
        by_due = np.argsort(due_s, kind="stable")
        urgent = running[by_due[(decode & (due_s <= snapshot.now_s))[by_due]]]
        others = running[by_due[(decode & (due_s > snapshot.now_s))[by_due]]]
        prefills = running[~decode]
        prefills = prefills[np.argsort(t.serial[prefills], kind="stable")]
        left = snapshot.limits.max_num_batched_tokens - len(urgent) - int(todo[~decode].sum())
        left -= self._new_tokens(snapshot, waiting)
        room = max(0, min(left, self.most - len(urgent)))
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=waiting,
            # With the others cut to what prefills leave, prefills lose nothing by standing last, where memory
            # is taken first.
            running_order=np.concatenate([urgent, others, prefills]),
            skip=others[room:],
        )

    def _due_s(self, snapshot: Snapshot) -> Floats:
        """Last schedulable time of each running request, were it in decode."""
        t, running, now_s = snapshot.table, snapshot.running, snapshot.now_s
        if snapshot.step == self._step + 1 and now_s > self._now_s:
            self._steps += 1
            self._steps_s += now_s - self._now_s
        self._step, self._now_s = snapshot.step, now_s
        tokens, last_s = t.extra("slai.tokens"), t.extra("slai.last_s")
        grown = t.generated_tokens[running] > tokens[running]
        last_s[running[grown]] = now_s
        tokens[running] = t.generated_tokens[running]
        used = 1.0 - snapshot.free_blocks / snapshot.limits.kv_blocks
        offset = self.tight_offset_steps if used > 0.96 else self.offset_steps
        step_s = self._steps_s / self._steps if self._steps else float(snapshot.step_time.base_s)
        return np.asarray(last_s[running] + t.tpot_s[running] - offset * step_s)

    def _new_tokens(self, snapshot: Snapshot, waiting: Ints) -> int:
        """Prompt tokens of those who could enter now, by slots and memory."""
        return int(snapshot.table.missing_tokens(snapshot.admissible(waiting)).sum())
