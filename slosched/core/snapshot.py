"""One engine at one instant: all that a policy may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.engine import DEFAULT_ENGINE, Engine, EngineLimits
from slosched.core.errors import require
from slosched.core.request import Request
from slosched.core.steptime import StepTimeModel
from slosched.core.table import RequestTable
from slosched.core.thinking import aim_now


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Who waits, who runs, what is free, on one clock.

    Parameters
    ----------
    now_s
        The engine's clock.
    table
        The requests' columns; rows index into it.
    waiting
        Rows of waiting requests in ascending (arrival, serial), so that a stable sort by any key is a total
        order.
    running
        Rows of running requests in the engine's own order: token budget goes to the first, preemption for
        want of memory takes the last.
    engine
        What it can hold, and how long its steps are predicted to take.
    free_blocks
        KV blocks that are free or can be evicted now.
    step
        Number of the engine step that is about to be scheduled.

    Examples
    --------
    >>> from slosched.core.forecast import LengthForecast
    >>> request = Request(request_id="a", prompt_tokens=10, forecast=LengthForecast.point(5))
    >>> Snapshot.of([request]).waiting.tolist()
    [0]
    """

    now_s: float
    table: RequestTable
    waiting: Ints
    running: Ints
    engine: Engine
    free_blocks: int
    step: int = 0

    @classmethod
    def of(
        cls,
        waiting: Sequence[Request],
        running: Sequence[Request] = (),
        *,
        now_s: float | None = None,
        engine: Engine = DEFAULT_ENGINE,
    ) -> Snapshot:
        """Snapshot of a queue given as `Request` objects.

        Running requests have their whole prompt and their generated tokens in the KV cache; their first
        token, and their first answer token if they have more tokens than they were expected to think, came at
        once. The clock defaults to the latest arrival.
        """
        limits = engine.limits
        everyone = [*waiting, *running]
        table = RequestTable.of(everyone)
        first = np.arange(len(waiting), dtype=np.int64)
        order = np.lexsort((table.serial[first], table.arrival_s[first])) if len(first) else first
        rest = np.arange(len(waiting), len(everyone), dtype=np.int64)
        table.computed_tokens[rest] = table.prompt_tokens[rest] + table.generated_tokens[rest]
        table.first_token_s[rest] = table.arrival_s[rest]
        table.answer_s[rest] = np.where(
            table.generated_tokens[rest] > table.thinking_tokens[rest], table.arrival_s[rest], np.nan
        )
        used = int(np.sum(-(-table.computed_tokens[rest] // limits.block_tokens)))
        require(
            used <= limits.kv_blocks, "running", f"requests that fit in {limits.kv_blocks} KV blocks", used
        )
        if now_s is None:
            now_s = max((r.arrival_s for r in everyone), default=0.0)
        made = cls(
            now_s=now_s,
            table=table,
            waiting=first[order],
            running=rest,
            engine=engine,
            free_blocks=limits.kv_blocks - used,
        )
        aim_now(made, np.arange(len(everyone)))
        return made

    def needed_blocks(self, rows: Ints) -> Ints:
        """KV blocks that admitting each of these waiting rows would take."""
        return np.asarray(-(-self.table.missing_tokens(rows) // self.limits.block_tokens))

    def held_blocks(self, rows: Ints) -> Ints:
        """KV blocks that each of these running rows holds."""
        return np.asarray(-(-self.table.computed_tokens[rows] // self.limits.block_tokens))

    def admissible(self, order: Ints) -> Ints:
        """The waiting rows at the head of `order` for which there are slots and memory now, in that order.

        The one rule for "does it fit". A row that does not fit stops all behind it.

        Examples
        --------
        >>> from slosched.core.forecast import LengthForecast
        >>> five = LengthForecast.point(5)
        >>> queue = [Request(request_id=name, prompt_tokens=10, forecast=five) for name in "abc"]
        >>> engine = Engine(limits=EngineLimits(max_num_seqs=2))
        >>> Snapshot.of(queue, engine=engine).admissible(np.array([2, 0, 1])).tolist()
        [2, 0]
        """
        head = order[: max(0, self.free_seqs)]
        return head[np.cumsum(self.needed_blocks(head)) <= self.free_blocks]

    @property
    def limits(self) -> EngineLimits:
        """Capacity of the engine."""
        return self.engine.limits

    @property
    def step_time(self) -> StepTimeModel:
        """Predicted seconds of one step."""
        return self.engine.step_time

    @property
    def free_seqs(self) -> int:
        """How many more requests may run."""
        return self.limits.max_num_seqs - len(self.running)
