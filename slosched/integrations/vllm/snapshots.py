"""The engine's present state in slosched's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from slosched.core.arrays import Ints
from slosched.core.engine import LOOPS, Engine, EngineLimits
from slosched.core.snapshot import Snapshot
from slosched.core.table import RequestTable
from slosched.integrations.vllm.clock import Clock, StepWatch
from slosched.integrations.vllm.decision import NOBODY
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.memory_bypass import free_blocks
from slosched.integrations.vllm.queue import SloQueue
from slosched.integrations.vllm.running_rows import RunningRows

SYNC_STEPS = 8
"""Steps for which a policy that only sorts the queue sees the same running requests."""


class Snapshots:
    """Takes snapshots of one scheduler; the table is brought up to date only where a policy may look.

    Parameters
    ----------
    queue, ledger, watch, limits, clock, running
        Who waits, their rows, the step-time model, the engine's capacity, the time, and rows of who runs.
    lax
        Whether the running requests may be those of a few steps ago, as a mere sort of the queue allows.
    """

    def __init__(
        self,
        queue: SloQueue,
        ledger: Ledger,
        watch: StepWatch,
        limits: EngineLimits,
        clock: Clock,
        running: RunningRows,
        *,
        lax: bool,
    ) -> None:
        self._queue, self._ledger, self._watch = queue, ledger, watch
        self._clock, self._latest, self._lax = clock, running, lax
        self._engine = Engine(limits=limits, step_time=watch.model)
        self._running: list[Any] = []
        self._rows: Ints = NOBODY
        self._synced = -SYNC_STEPS

    def take(
        self, scheduler: Any, step: int, *, copied: bool, now_s: float | None = None
    ) -> tuple[Snapshot, Callable[[RequestTable], None]]:
        """The present state, and what brings a copy of the table up to date with the running requests.

        Parameters
        ----------
        scheduler
            vLLM's scheduler.
        step
            Number of the coming step.
        copied
            Whether the policy looks at a copy, so that the table itself needs no update.
        now_s
            When the last step was scheduled, if that was a moment ago: policies tell the time of a step from
            that between two plans. By default it is now.
        """
        running = scheduler.running
        lax = self._lax and len(running) == len(self._running)
        old = not lax or step - self._synced >= SYNC_STEPS
        if old:
            self._rows = self._latest.of(running)
            self._running = self._latest.requests
        refresh = partial(self._ledger.sync, self._running, self._rows)
        if old and not copied:
            refresh(self._ledger.table)
            self._synced = step
        waiting, free = self._queue.line.rows.copy(), free_blocks(scheduler)
        return self.of(waiting, self._rows, free, step, now_s), refresh

    def of(
        self, waiting: Ints, running: Ints, free_blocks: int, step: int, now_s: float | None = None
    ) -> Snapshot:
        """The state now, with the given rows waiting and running."""
        model = self._watch.model
        if model is not self._engine.step_time:
            self._engine = replace(self._engine, step_time=model)
        found = Snapshot(
            now_s=self._clock.now_s() if now_s is None else now_s,
            table=self._ledger.table,
            waiting=waiting,
            running=running,
            engine=self._engine,
            free_blocks=free_blocks,
            step=step - 1,
        )
        if self._ledger.thinking.on:
            self._ledger.thinking.aim(found)
        return found


def limits_of(scheduler: Any) -> EngineLimits:
    """The scheduler's capacity in slosched's terms."""
    config = scheduler.scheduler_config
    interval = getattr(scheduler, "local_prefill_interval", None)  # since 0.33
    most = int(scheduler.max_num_running_reqs)
    return EngineLimits(
        max_num_seqs=max(1, min(most, int(getattr(scheduler, "max_num_active_reqs", most)))),  # since 0.31
        max_num_batched_tokens=max(1, int(scheduler.max_num_scheduled_tokens)),
        # One block is vLLM's placeholder and never given out.
        kv_blocks=max(1, int(scheduler.cache_config.num_gpu_blocks or 0) - 1),
        block_tokens=max(1, int(getattr(scheduler, "block_size", 0) or scheduler.cache_config.block_size)),
        max_model_len=max(1, int(scheduler.max_model_len)),
        chunked_prefill=bool(getattr(config, "enable_chunked_prefill", True)),
        prefix_cache=bool(scheduler.cache_config.enable_prefix_caching),
        long_prefill_token_threshold=max(0, int(getattr(config, "long_prefill_token_threshold", 0) or 0)),
        loop=LOOPS[interval is not None],
        prefill_schedule_interval=max(1, int(interval or 1)),
    )
