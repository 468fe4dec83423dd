"""Replay a workload through the simulated engine under a policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Ints
from slosched.core.engine import DEFAULT_ENGINE, LOOPS, Engine, EngineLimits, find_engine
from slosched.core.errors import InputError
from slosched.core.outcome import Outcomes, Run, RunLog
from slosched.core.snapshot import Snapshot
from slosched.core.table import RequestTable
from slosched.core.thinking import aim_now
from slosched.core.workload import Workload
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy
from slosched.policies.registry import policy_of
from slosched.simulator import kernel as k

_PS = 1e-12
_NOBODY = np.empty(0, dtype=np.int64)
_SAMPLES = 65_536
LATEST_ARRIVAL_S = 8e6
"""Clocks count picoseconds in 64 bits, which hold 106 days: arrivals end two weeks before that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """Which requests got how many tokens in which step: three columns of equal length."""

    step: NDArray[np.int64]
    row: NDArray[np.int64]
    tokens: NDArray[np.int64]


def simulate(
    workload: Workload,
    policy: str | Policy = "fcfs",
    *,
    engine: Engine | str = DEFAULT_ENGINE,
    seed: int = 0,
    measure_plans: bool = False,
    progress: Callable[[int, int], None] | None = None,
    record: list[StepRecord] | None = None,
) -> Run:
    """Replay `workload` under `policy` and return what happened to every request.

    The engine is a vLLM V1 scheduler, of the release that `EngineLimits.loop` names, whose steps last as its
    step-time model says. A turn of a session is
    sent when the answer before it has ended and its think time has passed; none follows a refused one. The
    policy sees forecasts, never true output lengths. The result depends on the arguments only, not on the
    machine: the clock is an integer and policies are given deterministic budgets.

    Parameters
    ----------
    workload
        Requests to replay; each must fit the context and the KV cache.
    policy
        A policy by name or a fresh policy object.
    engine
        The engine, or the name of a preset or of a JSON file; Llama-3.1-8B on one H100 by default.
    seed
        Seed of a policy given by name.
    measure_plans
        Whether to time every plan.
    progress
        Called now and then with (finished requests, all requests).
    record
        A list that receives one `StepRecord`; recording turns off the closed form for decode runs.

    Raises
    ------
    InputError
        If a request can never fit, a policy name is unknown, or a policy returns a plan with rows that are
        not where it says, or holds all requests for ever.

    Examples
    --------
    >>> import numpy as np
    >>> work = Workload.plain(np.array([0.0, 0.1]), np.array([100, 200]), np.array([5, 7]))
    >>> run = simulate(work, "fcfs")
    >>> bool(run.outcomes.finished.all()), run.log.steps
    (True, 12)
    """
    chosen = policy_of(policy, seed=seed)
    engine = chosen.engine_for(find_engine(engine))
    refuse_oversize(workload, engine.limits)
    begin = time.perf_counter()
    columns = columns_of(workload)
    simulated = SimulatedEngine(workload, columns, chosen, engine, record=record is not None)
    first = np.flatnonzero(~columns.is_turn)
    simulated.deliver(first, columns.requests.arrival_ps[first])
    simulated.advance(measure=measure_plans, progress=progress)
    if record is not None:
        record.append(simulated.steps_recorded())
    outcomes, log = outcomes_of(workload, columns.requests), simulated.log(time.perf_counter() - begin)
    return Run(policy=chosen.name, engine="simulator", outcomes=outcomes, log=log, seed=seed)


def refuse_oversize(workload: Workload, limits: EngineLimits) -> None:
    """Raise `InputError` naming the first request that exceeds the context, the KV cache or the clock."""
    if len(workload) and workload.arrival_s[-1] > LATEST_ARRIVAL_S:
        raise InputError(
            f"arrival_s must be at most {LATEST_ARRIVAL_S:g} s ({LATEST_ARRIVAL_S / 86_400:.0f} days), got "
            f"{workload.arrival_s[-1]:g} in {workload.name!r}: cut the workload, or give a rate."
        )
    total = workload.prompt_tokens + workload.output_tokens
    for bound, field in (
        (limits.max_model_len, "max_model_len"),
        (limits.kv_tokens, "the KV cache"),
    ):
        rows = np.flatnonzero(total > bound)
        if len(rows):
            raise InputError(
                f"prompt_tokens + output_tokens must be at most {bound} ({field}), "
                f"got {total[rows[0]]} in request {rows[0]} of {workload.name!r} ({len(rows)} such requests)."
            )
    if not limits.chunked_prefill:
        rows = np.flatnonzero(total > limits.max_num_batched_tokens)
        if len(rows):
            raise InputError(
                f"prompt_tokens + output_tokens must be at most {limits.max_num_batched_tokens} "
                f"(max_num_batched_tokens) without chunked prefill, got {total[rows[0]]} in request "
                f"{rows[0]}."
            )


class SimulatedEngine:
    """One engine under one policy, advanced from outside.

    The requests' columns (`columns`, `requests_of`) may be shared by several engines, each of which changes
    only the rows that were delivered to it.

    Parameters
    ----------
    workload, columns
        What is replayed, and its columns for the kernel.
    policy
        A fresh policy object.
    engine
        What it can hold, and how long its steps last.
    record
        Whether to log every step's tokens; turns off the closed form for decode runs.
    returns_turns
        Whether `advance` returns when an answer has ended that another turn follows, with the turn in
        `turns_sent`, for another engine perhaps. By default the turn comes to this engine.
    contents
        Prompt blocks for the prefix cache, if another engine of this block size has made them (`contents`).
    """

    def __init__(
        self,
        workload: Workload,
        columns: Columns,
        policy: Policy,
        engine: Engine,
        *,
        record: bool = False,
        returns_turns: bool = False,
        contents: Contents | None = None,
    ) -> None:
        self.workload, self.policy, self.engine, limits = workload, policy, engine, engine.limits
        n = len(workload)
        self.returns_turns = returns_turns
        self.turns_sent: list[int] = []
        self.is_turn = columns.is_turn
        self.thinks = bool(np.isfinite(workload.ttfat_s).any())
        self.table = columns.table.shared()
        self.requests = columns.requests._replace(key=np.zeros(n))
        log = 1 << 16 if record else 0
        self.queues = k.Queues(
            inbox=_ints(n), inbox_ps=_ints(n), turns=_ints(n),
            running=_ints(limits.max_num_seqs), waiting=_ints(n), line=_ints(n), mark=_ints(n),
            rows=_ints(limits.max_num_seqs), tokens=_ints(limits.max_num_seqs), sample_ps=_ints(_SAMPLES),
            sample_waiting=_ints(_SAMPLES), sample_running=_ints(_SAMPLES),
            log_step=_ints(log), log_row=_ints(log), log_tokens=_ints(log),
        )  # fmt: skip
        self.contents = contents
        if limits.prefix_cache and contents is None:
            self.contents = contents_of(workload, limits.block_tokens)
        self.pool = _pool(n, self.contents, limits)
        self.state = _ints(k.STATE_SIZE)
        self.state[k.FREE] = limits.kv_blocks
        self.state[k.STRIDE] = 1
        self.state[k.LAST_PROMPT] = -limits.prefill_schedule_interval  # the first step may compute prompts
        self.bounds = _bounds(policy, limits, record)
        self.coef = engine.step_time.coefficients_ps()
        self.plans = 0
        self.plan_s: list[float] = []
        if policy.static:
            self._key(np.arange(n, dtype=np.int64))

    @property
    def idle(self) -> bool:
        """Whether nobody runs, waits or is on the way."""
        return self.next_ps == k.FOREVER

    @property
    def next_ps(self) -> int:
        """When its next step begins, in picoseconds: now, at the next arrival, or never if none is known."""
        state = self.state
        if state[k.RUNNING] or state[k.WAITING]:
            return int(state[k.NOW])
        if state[k.NEXT] < state[k.KNOWN]:
            return max(int(state[k.NOW]), int(self.queues.inbox_ps[state[k.NEXT]]))
        return k.FOREVER

    def snapshot(self) -> Snapshot:
        """What the policy may see before the next step."""
        state = self.state
        waiting = self.queues.waiting[: state[k.WAITING]].copy()
        running = self.queues.running[: state[k.RUNNING]].copy()
        found = Snapshot(
            now_s=float(state[k.NOW]) * _PS,
            table=self.table,
            waiting=waiting,
            running=running,
            engine=self.engine,
            free_blocks=int(state[k.FREE]),
            step=int(state[k.STEPS]),
        )
        if self.thinks:
            aim_now(found, np.concatenate([waiting, running]))
        return found

    def _key(self, rows: Ints) -> None:
        """Keys of some rows under a static policy."""
        assert isinstance(self.policy, KeyPolicy)
        snapshot = self.snapshot()
        if self.thinks:
            aim_now(snapshot, rows)
        self.requests.key[rows] = self.policy.key(snapshot, rows)

    def deliver(self, rows: Ints, at_ps: Ints) -> None:
        """Let requests arrive; times ascend within a call, and none is in the past of the horizon."""
        q, known = self.queues, int(self.state[k.KNOWN])
        if known + len(rows) > len(q.inbox):  # withdrawn and delivered again: what has joined is forgotten
            joined = int(self.state[k.NEXT])
            for column in (q.inbox, q.inbox_ps):
                column[: known - joined] = column[joined:known].copy()
            known -= joined
            self.state[k.NEXT] = 0
        begin = int(self.state[k.NEXT])
        if len(rows) and begin < known and at_ps[0] < q.inbox_ps[known - 1]:  # a turn before those to come
            for row, ps in zip(rows.tolist(), at_ps.tolist(), strict=True):
                place = begin + int(np.searchsorted(q.inbox_ps[begin:known], ps, side="right"))
                for column, value in ((q.inbox, row), (q.inbox_ps, ps)):
                    column[place + 1 : known + 1] = column[place:known].copy()
                    column[place] = value
                known += 1
        else:
            q.inbox[known : known + len(rows)] = rows
            q.inbox_ps[known : known + len(rows)] = at_ps
            known += len(rows)
        self.state[k.KNOWN] = known
        if self.policy.static and len(late := rows[self.is_turn[rows]]):
            self._key(late)

    def withdraw(self, row: int) -> bool:
        """Take back a request of which nothing has been computed; False where that is too late."""
        return bool(k.withdraw(self.requests, self.queues, self.pool, self.state, self.bounds, row))

    def advance(
        self,
        horizon_ps: int = k.FOREVER,
        *,
        measure: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Carry out all steps that begin before `horizon_ps`; whoever arrives before it has been delivered.

        Parameters
        ----------
        horizon_ps
            Picoseconds; by default to the end of all work.
        measure
            Whether to time every plan.
        progress
            Called now and then with (finished requests, all requests).
        """
        self.state[k.HORIZON] = horizon_ps
        args = (self.requests, self.queues, self.pool, self.state, self.bounds, self.coef)
        while True:
            status = k.advance(*args, 100_000)
            if status == k.NEED_PLAN:
                snapshot = self.snapshot()
                begin = time.perf_counter() if measure else 0.0
                plan = self.policy.plan(snapshot)
                if measure:
                    self.plan_s.append(time.perf_counter() - begin)
                self.plans += 1
                status = k.apply_plan(*args, _decided(plan))
                if progress is not None and self.plans % 500 == 0:
                    progress(int(self.state[k.FINISHED]), len(self.workload))
            elif status == k.LOG_FULL:
                self._grow_log()
                args = (self.requests, self.queues, self.pool, self.state, self.bounds, self.coef)
            elif status == k.PAUSED and progress is not None:
                progress(int(self.state[k.FINISHED]), len(self.workload))
            if status == k.BAD_PLAN:
                plan.check()
                raise InputError(f"plan of policy {self.policy.name!r} must use rows of its snapshot.")
            if status == k.STUCK:
                raise InputError(f"policy {self.policy.name!r} must not hold all requests for ever.")
            if status == k.TURNS:
                turns = self.queues.turns[: self.state[k.SENT]].copy()
                self.state[k.SENT] = 0
                if self.returns_turns:
                    self.turns_sent += turns.tolist()
                    return
                turns = turns[np.lexsort((turns, self.requests.arrival_ps[turns]))]
                self.deliver(turns, self.requests.arrival_ps[turns])
            if status in (k.DONE, k.REACHED):
                return

    def _grow_log(self) -> None:
        q = self.queues
        self.queues = q._replace(
            log_step=np.concatenate([q.log_step, q.log_step]),
            log_row=np.concatenate([q.log_row, q.log_row]),
            log_tokens=np.concatenate([q.log_tokens, q.log_tokens]),
        )

    def steps_recorded(self) -> StepRecord:
        """The log of scheduled tokens."""
        n = self.state[k.LOGGED]
        q = self.queues
        return StepRecord(step=q.log_step[:n], row=q.log_row[:n], tokens=q.log_tokens[:n])

    def log(self, wall_s: float) -> RunLog:
        """How the engine fared."""
        q, state = self.queues, self.state
        n = state[k.SAMPLES]
        return RunLog(
            steps=int(state[k.STEPS]),
            plans=self.plans,
            plan_s=np.asarray(self.plan_s),
            depth_time_s=np.asarray(q.sample_ps[:n] * _PS, dtype=np.float64),
            depth_waiting=q.sample_waiting[:n],
            depth_running=q.sample_running[:n],
            busy_s=float(state[k.BUSY]) * _PS,
            wall_s=wall_s,
        )


class Columns(NamedTuple):
    """All requests of a workload, as policies see them and as the kernel does: the same arrays."""

    table: RequestTable
    requests: k.Requests
    is_turn: NDArray[np.bool_]
    """Which rows are sent only after the answer before, at a time not known yet."""


def columns_of(workload: Workload) -> Columns:
    """Columns of requests of which nothing has been computed yet."""
    n, table = len(workload), table_of(workload)
    # Rounding up to whole picoseconds: nobody is seen before having arrived.
    arrival_ps = np.ceil(workload.arrival_s / _PS).astype(np.int64)
    is_turn = workload.previous >= 0
    arrival_ps[is_turn] = -1
    next_turn, think_ps = turns_of(workload)
    requests = k.Requests(
        arrival_ps=arrival_ps, arrival_s=table.arrival_s, next_turn=next_turn, think_ps=think_ps,
        prompt=table.prompt_tokens, output=workload.output_tokens,
        computed=table.computed_tokens, cached=table.cached_tokens, partial=_ints(n),
        generated=table.generated_tokens,
        served=table.served_tokens, preemptions=table.preemptions, peak=_ints(n), recomputed=_ints(n),
        hit=_ints(n, -1), blocks=_ints(n), admitted_ps=_ints(n, -1), first_ps=_ints(n, -1),
        finish_ps=_ints(n, -1), first_token_s=table.first_token_s, key=np.zeros(n),
        think=_ints(n) if workload.thinking is None else np.ascontiguousarray(workload.thinking.tokens),
        answer_ps=_ints(n, -1), answer_s=table.answer_s,
    )  # fmt: skip
    return Columns(table=table, requests=requests, is_turn=is_turn)


def outcomes_of(workload: Workload, requests: k.Requests) -> Outcomes:
    """What has happened to every request."""

    def seconds(ps: Ints) -> NDArray[np.float64]:
        return np.where(ps >= 0, ps * _PS, np.nan)

    return Outcomes(
        workload=workload,
        arrival_s=np.where(requests.arrival_ps >= 0, requests.arrival_s, np.nan),
        admitted_s=seconds(requests.admitted_ps),
        first_token_s=seconds(requests.first_ps),
        finish_s=seconds(requests.finish_ps),
        preemptions=requests.preemptions,
        recomputed_tokens=requests.recomputed,
        cached_tokens=np.maximum(requests.hit, 0),
        rejected=requests.finish_ps == k.REJECTED,
        answer_s=None if workload.thinking is None else seconds(requests.answer_ps),
    )


def _ints(size: int, fill: int = 0) -> Ints:
    return np.full(size, fill, dtype=np.int64) if fill else np.zeros(size, dtype=np.int64)


def _bounds(policy: Policy, limits: EngineLimits, record: bool) -> Ints:
    """The kernel's `limits`."""
    bounds = _ints(k.LIMITS_SIZE)
    bounds[k.MAX_SEQS] = limits.max_num_seqs
    bounds[k.BUDGET] = limits.max_num_batched_tokens
    bounds[k.BLOCK] = limits.block_tokens
    bounds[k.CHUNKED] = limits.chunked_prefill
    bounds[k.CACHE] = limits.prefix_cache
    bounds[k.LONG_PREFILL] = limits.long_prefill_token_threshold
    bounds[k.VICTIM_WORST] = policy.victim_worst
    bounds[k.STATIC] = policy.static
    bounds[k.ASK_ALWAYS] = policy.preempts or policy.paces or policy.rejects or policy.skips
    bounds[k.ASK_PREFILL] = policy.paces
    bounds[k.ASK_EACH] = policy.skips
    bounds[k.RECORD] = record
    bounds[k.GOES_ON] = limits.loop != LOOPS[0]
    bounds[k.INTERVAL] = limits.prefill_schedule_interval
    return bounds


def turns_of(workload: Workload) -> tuple[Ints, Ints]:
    """Row that follows each row in its session, -1 for none, and each row's think time in picoseconds."""
    previous = workload.previous
    later = np.flatnonzero(previous >= 0)
    next_turn, think_ps = _ints(len(workload), -1), _ints(len(workload))
    next_turn[previous[later]] = later
    think_ps[later] = np.ceil(workload.think_s[later] / _PS).astype(np.int64)
    return next_turn, think_ps


def table_of(workload: Workload) -> RequestTable:
    """The request table of a whole workload: row i is request i, forecasts in place of true lengths."""
    n = len(workload)
    table = RequestTable.all_in_use(n)
    for name in ("arrival_s", "ttft_s", "tpot_s", "e2e_s", "ttfat_s", "weight"):
        setattr(table, name, np.array(getattr(workload, name), dtype=np.float64))
    table.own_e2e_s = table.e2e_s.copy()
    if workload.thinking is not None:
        table.thinking_tokens = workload.thinking.atoms.mean(axis=1)
    for name in ("prompt_tokens", "priority", "class_index", "tenant_index"):
        setattr(table, name, np.array(getattr(workload, name), dtype=np.int64))
    if workload.prefix is not None:
        known = np.flatnonzero(np.diff(workload.prefix.offsets))
        table.prefix_index[known] = workload.prefix.ids[workload.prefix.offsets[known]]
    # Traces without sessions tell a program by what its prompts begin with.
    sessions = bool((workload.session >= 0).any())
    table.program_index[:] = workload.session if sessions else table.prefix_index
    table.atoms = np.ascontiguousarray(workload.atoms, dtype=np.float64)
    table.classes, table.tenants = list(workload.classes), list(workload.tenants)
    table.request_ids = list(workload.request_ids) or [str(i) for i in range(n)]
    return table


def _decided(plan: Plan) -> k.Decided:
    running_order = _NOBODY if plan.running_order is None else plan.running_order
    prefill = -1 if plan.prefill_tokens is None else max(0, plan.prefill_tokens)
    return k.Decided(plan.order, plan.hold, plan.preempt, running_order, prefill, plan.reject, plan.skip)


class Contents(NamedTuple):
    """Contents of all prompt blocks of a workload, as `kernel.Pool` has them."""

    ids: Ints
    starts: Ints
    shared: Ints
    unique_at: Ints
    ratio: int
    keys: int
    longest: int


def contents_of(workload: Workload, block: int) -> Contents:
    """Numbers for the contents of prompt blocks, for engines with blocks of `block` tokens."""
    n = len(workload)
    total = -(-(workload.prompt_tokens + workload.output_tokens) // block)
    if workload.prefix is None:
        ratio, ids, starts = 1, _NOBODY, _ints(n)
        shared = _ints(n)
    else:
        ratio, rest = divmod(workload.prefix.block_tokens, block)
        if rest or ratio == 0:
            raise InputError(
                f"block_tokens must divide the {workload.prefix.block_tokens} tokens of the trace's prompt "
                f"blocks, got {block}."
            )
        _, ids = np.unique(workload.prefix.ids, return_inverse=True)
        starts = workload.prefix.offsets[:-1]
        covered = np.diff(workload.prefix.offsets) * ratio
        shared = np.minimum(workload.prompt_tokens // block, covered)
    known = (int(ids.max()) + 1 if len(ids) else 0) * ratio
    own = total - shared
    return Contents(
        ids=ids.astype(np.int64),
        starts=starts.astype(np.int64),
        shared=shared.astype(np.int64),
        unique_at=(known + np.cumsum(own) - own).astype(np.int64),
        ratio=ratio,
        keys=known + int(own.sum()) + 1,
        longest=int(total.max(initial=1)) + 1,
    )


def _pool(n: int, contents: Contents | None, limits: EngineLimits) -> k.Pool:
    """Blocks and content keys; one-element arrays where the prefix cache is off."""
    if contents is None or not limits.prefix_cache:
        unused = {name: _ints(1) for name in k.Pool._fields}
        return k.Pool(**{**unused, "held": np.zeros((1, 1), dtype=np.int64)})
    blocks, slots = limits.kv_blocks, limits.max_num_seqs
    after = np.arange(1, blocks + 2, dtype=np.int64)
    after[-1] = 0
    before = np.arange(-1, blocks, dtype=np.int64)
    before[0] = blocks
    return k.Pool(
        after=after, before=before, users=_ints(blocks + 1), key=_ints(blocks + 1, -1),
        key_next=_ints(blocks + 1), key_head=_ints(contents.keys),
        held=np.zeros((slots, contents.longest), dtype=np.int64), slot=_ints(n, -1),
        free_slots=np.concatenate([np.arange(slots), [slots]]).astype(np.int64),
        full=_ints(n), shared=contents.shared, shared_at=contents.starts, ids=contents.ids,
        ratio=np.array([contents.ratio], dtype=np.int64), unique_at=contents.unique_at,
    )  # fmt: skip
