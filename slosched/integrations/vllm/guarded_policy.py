"""Asks the policy for plans within a time box, and keeps its failures from the engine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.integrations.vllm.background import PlansAhead, Refresh
from slosched.integrations.vllm.config import GuardsConfig
from slosched.integrations.vllm.decision import NOBODY, Decision, checked
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.waiting_rows import smallest
from slosched.policies.base import KeyPolicy, Policy

logger = logging.getLogger("vllm.slosched")

SPARE = 16
"""Requests ranked beyond the free places: some may be passed over within the step."""

FEW = 256
"""Queues up to this length are ranked whole at every plan."""

FULL_RANKING_STEPS = 32
"""Plans for which the head of a longer queue's last ranking, and who joined since, stand for all of it."""

OVERRUNS, OVERRUNS_BY_KEY = 3.0, 30.0
"""Plans in a row beyond the time box until planning moves to the background: a few may be mere chance, and a
sort that is cut short soon fits again."""

WAITING_BOXES, WAITING_OVERRUN = 4, 0.1
"""A plan that lasts so many time boxes, though its processor time fits, waits for something. It counts as
this share of an overrun, since on a busy machine what it waits for is mostly the processor."""

REHEARSALS = 4

STALE_STEPS = 16
"""Steps after which a background plan is no longer acted on."""

FIRST_PLAN_S = 60.0
"""Seconds that code of others may take for its first plan, compiling and importing included; far longer than
any of ours takes on a busy machine."""

QUICK = 200
"""Background plans in a row within half the time box until planning moves back to the engine's thread."""


class GuardedPolicy:
    """One policy under guard.

    Policies that sort by a key are asked for their keys and only the head of the queue is sorted. Others are
    asked for a plan on the engine's thread while that fits the time box, in processor time: where others take
    the processor away, plans last longer but are no dearer. A plan beyond the box is still carried out, since
    its time is spent. After `OVERRUNS` of them in a row a background thread makes the plans: while the device
    computes one step, on the state after it, for the next. Planning returns once it has become quick.

    Parameters
    ----------
    policy
        The policy.
    guards
        Time box, limit of background plans, failures until the breaker opens.
    stats
        Where to count.
    boxed
        Whether the time box holds; a virtual clock turns it off and plans on the engine's thread.
    apart
        Whether plans are made by a background thread from the first to the last, so that the engine goes on
        whatever becomes of one: for code that may never return. Only where the time box holds.

    Attributes
    ----------
    by_key
        Whether the policy only sorts the queue by a key.
    background
        The thread that makes plans, if one does.
    step_s
        Seconds of a decoding step, of which a share is free for planning.
    """

    def __init__(
        self, policy: Policy, guards: GuardsConfig, stats: Stats, *, boxed: bool = True, apart: bool = False
    ) -> None:
        self.policy = policy
        self._guards, self._stats, self._boxed = guards, stats, boxed
        self.by_key = isinstance(policy, KeyPolicy) and type(policy).plan is KeyPolicy.plan
        self._failures = self._quick = 0
        self._overruns = self.step_s = 0.0
        self._apart, self._late = apart and boxed, 0
        self.background: PlansAhead | None = PlansAhead(self._decide) if self._apart else None
        self._shortlist, self._serial = NOBODY, NOBODY
        self._newest, self._age = -1, FULL_RANKING_STEPS

    @property
    def open(self) -> bool:
        """Whether the breaker has turned the policy off."""
        return self._stats.breaker_open

    @property
    def steady(self) -> bool:
        """Whether requests need a key only when they join the queue."""
        return self.by_key and not self._apart and (self.policy.static or self.policy.steady)

    def keys(self, snapshot: Snapshot) -> list[float]:
        """Keys of the waiting rows; infinity for all if the policy fails, which counts as a failed plan."""
        begin = time.perf_counter()
        try:
            key = self._keys(snapshot, snapshot.waiting)
        except Exception as error:
            self._fail("policy", error)
            return [math.inf] * len(snapshot.waiting)
        self._failures = 0
        self._stats.plans += 1
        self._stats.plan_s.observe(time.perf_counter() - begin)
        return key.tolist()  # type: ignore[no-any-return]

    def rehearse(self, snapshot: Snapshot) -> None:
        """Plan a few times without use: to compile and import, and to see whether plans fit the time box."""
        seconds = []
        if self._apart and self.background is not None:
            self.background.submit(snapshot)
            if not self.background.wait(FIRST_PLAN_S):
                self._fail("policy", TimeoutError(f"no first plan within {FIRST_PLAN_S:g} s"))
            elif self.background.error is not None:
                self._fail("policy", self.background.error)
            self.background.latest = None
            return
        try:
            for _ in range(REHEARSALS):
                own = time.thread_time()
                self._decide(snapshot)
                seconds.append(time.thread_time() - own)
        except Exception as error:
            self._fail("policy", error)
            return
        if self._boxed and not self.by_key and min(seconds) > self.box_s:
            self.background = PlansAhead(self._decide)

    def decide(
        self, snapshot: Snapshot, joined: Sequence[int] = (), queued: NDArray[np.bool_] | None = None
    ) -> Decision | None:
        """What to do in this step, planned now; None for the engine's own order.

        Parameters
        ----------
        snapshot
            The engine's state.
        joined
            Rows that joined the queue since the last call.
        queued
            Whether a row stands in the queue, by row; without it every plan ranks the whole queue.
        """
        if self.open:
            return None
        begin, own = time.perf_counter(), time.thread_time()
        try:
            if self.by_key and self._boxed and queued is not None and len(snapshot.waiting) > FEW:
                decision = self._from_shortlist(snapshot, joined, queued)
            else:
                decision = self._decide(snapshot)
        except Exception as error:
            self._fail("policy", error)
            return None
        own, seconds = time.thread_time() - own, time.perf_counter() - begin
        self._stats.plans += 1
        self._stats.plan_s.observe(seconds)
        self._failures = 0
        if not self._boxed or max(own, seconds / WAITING_BOXES) <= self.box_s:
            self._overruns = 0.0
        else:
            self._overruns += 1.0 if own > self.box_s else WAITING_OVERRUN
            self._stats.failure("overrun")
            if self._overruns >= (OVERRUNS_BY_KEY if self.by_key else OVERRUNS):
                self.background, self._quick = PlansAhead(self._decide), 0
        return decision

    @property
    def box_s(self) -> float:
        """Processor seconds that a plan may take on the engine's thread."""
        return max(self._guards.time_box_us * 1e-6, self._guards.time_box_share * self.step_s)

    def close(self) -> None:
        """Stop the background thread."""
        if self.background is not None:
            self.background.close()

    @property
    def free(self) -> bool:
        """Whether the background thread waits for a snapshot."""
        return self.background is not None and self.background.idle and not self.open

    def latest(self, step: int) -> Decision | None:
        """The last background plan, unless it is too old at this step to act on."""
        if self.background is not None and not self.background.idle:
            self._wait_no_longer(self.background.since_s)
        decision = None if self.background is None else self.background.latest
        if decision is not None and step - decision.step > STALE_STEPS:
            self._stats.stale_plans += 1
            return None
        return decision

    def _wait_no_longer(self, since_s: float) -> None:
        """Count a plan that is under way once for each limit that has passed since it was asked for."""
        limit_s = self._guards.plan_limit_ms / 1000.0
        late = int((time.perf_counter() - since_s) / limit_s)
        if late > self._late and not self.open:
            self._late = late
            self._fail("overrun", TimeoutError(f"no plan for {late * limit_s:g} s"))

    def launch(self, snapshot: Snapshot, refresh: Refresh | None = None) -> None:
        """Begin a background plan for the next step; only while `free`.

        Only once a step is scheduled: its requests are where they will be then, and the engine's thread is
        about to wait for the device, so that the two do not fight for the interpreter.

        Parameters
        ----------
        snapshot
            The engine's state after the step.
        refresh
            Brings a copy of the table up to date with the running requests.
        """
        if self.background is not None:
            self._collect(self.background)
        if self.background is not None and not self.open:
            self.background.submit(snapshot, refresh)

    def _collect(self, worker: PlansAhead) -> None:
        """Count the plan the thread has made; go back to the engine's thread if plans have become quick."""
        seconds, worker.seconds = worker.seconds, 0.0
        counted, self._late = self._late, 0
        if worker.error is not None:
            self._fail("policy", worker.error)
        elif seconds > self._guards.plan_limit_ms / 1000.0:
            if not counted:
                self._fail("overrun", None)
        elif seconds > 0.0:
            self._failures = 0
            self._stats.plans += 1
            self._stats.plan_s.observe(seconds)
            quick = 2 * max(worker.own_s, seconds / WAITING_BOXES) <= self.box_s
            self._quick = self._quick + 1 if quick else 0
            if self._quick >= QUICK and not self._apart:
                worker.close()
                self.background, self._overruns = None, 0.0

    def _decide(self, snapshot: Snapshot) -> Decision:
        if self.by_key:
            rows = snapshot.waiting
            count = max(64, snapshot.free_seqs + SPARE)
            order = rows[smallest(self._keys(snapshot, rows), count)]
            return Decision(order=order, step=snapshot.step)
        return checked(self.policy.plan(snapshot), snapshot)

    def _from_shortlist(
        self, snapshot: Snapshot, joined: Sequence[int], queued: NDArray[np.bool_]
    ) -> Decision:
        """Rank the head of the last ranking and who has joined since; now and then everybody."""
        need = max(64, snapshot.free_seqs + SPARE)
        serial = snapshot.table.serial
        self._age += 1
        if joined:
            new = np.array(joined, dtype=np.int64)
            if serial[new].min() <= self._newest:
                self._age = FULL_RANKING_STEPS + 1  # somebody came back who may be on the list already
            self._shortlist = np.concatenate([self._shortlist, new])
            self._serial = np.concatenate([self._serial, serial[new]])
        if self._age <= FULL_RANKING_STEPS:
            alive = queued[self._shortlist] & (serial[self._shortlist] == self._serial)
            rows = self._shortlist[alive]
            if need <= len(rows) <= 4 * FEW:
                return Decision(order=rows[smallest(self._keys(snapshot, rows), need)])
        rows = snapshot.waiting
        ranked = smallest(self._keys(snapshot, rows), max(FEW, 2 * need))
        # In order of arrival, so that ties go by arrival in the rankings to come.
        self._shortlist = rows[np.sort(ranked)]
        self._serial = serial[self._shortlist]
        self._newest, self._age = int(serial.max()), 0
        return Decision(order=rows[ranked])

    def _keys(self, snapshot: Snapshot, rows: Ints) -> Floats:
        assert isinstance(self.policy, KeyPolicy)
        key = np.asarray(self.policy.key(snapshot, rows), dtype=np.float64)
        if key.shape != rows.shape or np.isnan(key).any():
            raise InputError(f"key of policy {self.policy.name!r} must be one number for each row.")
        return key

    def _fail(self, reason: str, error: BaseException | None) -> None:
        self._stats.failure(reason, error)
        self._failures += 1
        if self._failures >= self._guards.breaker_failures and not self.open:
            self._stats.breaker_open = True
            logger.error(
                "slosched: policy %r failed %d times in a row and is turned off; the engine goes on first "
                "come, first served.", self.policy.name, self._failures,
            )  # fmt: skip
