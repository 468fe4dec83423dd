"""Replay a workload through the simulated engine under a policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slosched.core.engine import DEFAULT_ENGINE
from slosched.core.errors import InputError
from slosched.core.limits import EngineLimits
from slosched.core.outcome import Outcomes, Run, RunLog
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.table import Ints, RequestTable
from slosched.core.workload import Workload
from slosched.planner.plan import Plan
from slosched.policies import policy as policy_by_name
from slosched.policies.base import KeyPolicy, Policy
from slosched.simulator import kernel as k

_PS = 1e-12
_NOBODY = np.empty(0, dtype=np.int64)
_SAMPLES = 65_536


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
    limits: EngineLimits | None = None,
    step_time: StepTimeModel | None = None,
    seed: int = 0,
    measure_plans: bool = False,
    progress: Callable[[int, int], None] | None = None,
    record: list[StepRecord] | None = None,
) -> Run:
    """Replay `workload` under `policy` and return what happened to every request.

    The engine is a vLLM V1 scheduler with the given limits whose steps last as `step_time` says. The policy
    sees forecasts, never true output lengths. The result depends on the arguments only, not on the machine:
    the clock is an integer and policies are given deterministic budgets.

    Parameters
    ----------
    workload
        Requests to replay; each must fit the context and the KV cache.
    policy
        A policy by name or a fresh policy object.
    limits, step_time
        The engine; the preset H100 with Llama-3.1-8B by default.
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
    limits = limits or EngineLimits()
    step_time = step_time or DEFAULT_ENGINE.step_time
    chosen = policy_by_name(policy, seed=seed) if isinstance(policy, str) else policy
    refuse_oversize(workload, limits)
    begin = time.perf_counter()
    engine = _Engine(workload, chosen, limits, step_time, record is not None)
    plan_s = engine.run(measure_plans, progress)
    if record is not None:
        record.append(engine.steps_recorded())
    return engine.result(plan_s, time.perf_counter() - begin, seed)


def refuse_oversize(workload: Workload, limits: EngineLimits) -> None:
    """Raise `InputError` naming the first request that exceeds the context or the KV cache."""
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


class _Engine:
    """The kernel's arrays, and the loop that feeds it plans."""

    def __init__(
        self, workload: Workload, policy: Policy, limits: EngineLimits, step_time: StepTimeModel, record: bool
    ) -> None:
        self.workload, self.policy, self.limits, self.step_time = workload, policy, limits, step_time
        n = len(workload)
        self.table = table_of(workload)
        table = self.table

        def ints(size: int = n, fill: int = 0) -> NDArray[np.int64]:
            return np.full(size, fill, dtype=np.int64)

        # Rounding up to whole picoseconds: nobody is seen before having arrived.
        arrival_ps = np.ceil(workload.arrival_s / _PS).astype(np.int64)
        self.requests = k.Requests(
            arrival_ps=arrival_ps, prompt=table.prompt_tokens, output=workload.output_tokens,
            computed=table.computed_tokens, cached=table.cached_tokens, generated=table.generated_tokens,
            served=table.served_tokens, preemptions=table.preemptions, peak=ints(), recomputed=ints(),
            hit=ints(fill=-1), blocks=ints(), admitted_ps=ints(fill=-1), first_ps=ints(fill=-1),
            finish_ps=ints(fill=-1), first_token_s=table.first_token_s, key=np.zeros(n),
        )  # fmt: skip
        log = 1 << 16 if record else 0
        self.queues = k.Queues(
            running=ints(limits.max_num_seqs), waiting=ints(), line=ints(), mark=ints(),
            rows=ints(limits.max_num_seqs), tokens=ints(limits.max_num_seqs), sample_ps=ints(_SAMPLES),
            sample_waiting=ints(_SAMPLES), sample_running=ints(_SAMPLES),
            log_step=ints(log), log_row=ints(log), log_tokens=ints(log),
        )  # fmt: skip
        self.pool = _pool(workload, limits)
        self.state = ints(k.STATE_SIZE)
        self.state[k.FREE] = limits.kv_blocks
        self.state[k.STRIDE] = 1
        self.bounds = ints(k.LIMITS_SIZE)
        self.bounds[k.MAX_SEQS] = limits.max_num_seqs
        self.bounds[k.BUDGET] = limits.max_num_batched_tokens
        self.bounds[k.BLOCK] = limits.block_tokens
        self.bounds[k.CHUNKED] = limits.chunked_prefill
        self.bounds[k.CACHE] = limits.prefix_cache
        self.bounds[k.LONG_PREFILL] = limits.long_prefill_token_threshold
        self.bounds[k.VICTIM_WORST] = policy.victim_worst
        self.bounds[k.STATIC] = policy.static
        self.bounds[k.ASK_ALWAYS] = policy.preempts or policy.paces or policy.rejects or policy.skips
        self.bounds[k.ASK_PREFILL] = policy.paces
        self.bounds[k.ASK_EACH] = policy.skips
        self.bounds[k.RECORD] = record
        self.coef = step_time.coefficients_ps()
        if policy.static:
            assert isinstance(policy, KeyPolicy)
            rows = np.arange(n, dtype=np.int64)
            self.requests.key[:] = policy.key(self.snapshot(), rows)

    def snapshot(self) -> Snapshot:
        """What the policy may see before the next step."""
        state = self.state
        return Snapshot(
            now_s=float(state[k.NOW]) * _PS,
            table=self.table,
            waiting=self.queues.waiting[: state[k.WAITING]].copy(),
            running=self.queues.running[: state[k.RUNNING]].copy(),
            limits=self.limits,
            step_time=self.step_time,
            free_blocks=int(state[k.FREE]),
            step=int(state[k.STEPS]),
        )

    def run(self, measure: bool, progress: Callable[[int, int], None] | None) -> list[float]:
        """Run to the end; returns the seconds of each plan if measured."""
        args = (self.requests, self.queues, self.pool, self.state, self.bounds, self.coef)
        plan_s: list[float] = []
        self.plans = 0
        while True:
            status = k.advance(*args, 100_000)
            if status == k.NEED_PLAN:
                snapshot = self.snapshot()
                begin = time.perf_counter() if measure else 0.0
                plan = self.policy.plan(snapshot)
                if measure:
                    plan_s.append(time.perf_counter() - begin)
                self.plans += 1
                status = k.apply_plan(*args, *_plan_arrays(plan))
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
            if status == k.DONE:
                return plan_s

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

    def result(self, plan_s: list[float], wall_s: float, seed: int) -> Run:
        """Outcomes and log of the finished run."""
        r, q, state = self.requests, self.queues, self.state
        n = state[k.SAMPLES]

        def seconds(ps: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.where(ps >= 0, ps * _PS, np.nan)

        outcomes = Outcomes(
            workload=self.workload,
            admitted_s=seconds(r.admitted_ps),
            first_token_s=seconds(r.first_ps),
            finish_s=seconds(r.finish_ps),
            preemptions=r.preemptions,
            recomputed_tokens=r.recomputed,
            cached_tokens=np.maximum(r.hit, 0),
            rejected=r.finish_ps == k.REJECTED,
        )
        log = RunLog(
            steps=int(state[k.STEPS]),
            plans=self.plans,
            plan_s=np.asarray(plan_s),
            depth_time_s=np.asarray(q.sample_ps[:n] * _PS, dtype=np.float64),
            depth_waiting=q.sample_waiting[:n],
            depth_running=q.sample_running[:n],
            busy_s=float(state[k.BUSY]) * _PS,
            wall_s=wall_s,
        )
        return Run(policy=self.policy.name, engine="simulator", outcomes=outcomes, log=log, seed=seed)


def table_of(workload: Workload) -> RequestTable:
    """The request table of a whole workload: row i is request i, forecasts in place of true lengths."""
    n = len(workload)
    table = RequestTable.all_in_use(n)
    for name in ("arrival_s", "ttft_s", "tpot_s", "e2e_s", "weight"):
        setattr(table, name, np.array(getattr(workload, name), dtype=np.float64))
    for name in ("prompt_tokens", "priority", "class_index", "tenant_index"):
        setattr(table, name, np.array(getattr(workload, name), dtype=np.int64))
    if workload.prefix is not None:
        known = np.flatnonzero(np.diff(workload.prefix.offsets))
        table.prefix_index[known] = workload.prefix.ids[workload.prefix.offsets[known]]
    table.atoms = np.ascontiguousarray(workload.atoms, dtype=np.float64)
    table.classes, table.tenants = list(workload.classes), list(workload.tenants)
    table.request_ids = list(workload.request_ids) or [str(i) for i in range(n)]
    return table


def _plan_arrays(
    plan: Plan,
) -> tuple[Ints, Ints, Ints, Ints, int, Ints, Ints]:
    running_order = _NOBODY if plan.running_order is None else plan.running_order
    prefill = -1 if plan.prefill_tokens is None else max(0, plan.prefill_tokens)
    return plan.order, plan.hold, plan.preempt, running_order, prefill, plan.reject, plan.skip


def _pool(workload: Workload, limits: EngineLimits) -> k.Pool:
    """Blocks and content keys; one-element arrays where the prefix cache is off."""
    n = len(workload)
    if not limits.prefix_cache:
        unused = {name: np.zeros(1, dtype=np.int64) for name in k.Pool._fields}
        return k.Pool(**{**unused, "held": np.zeros((1, 1), dtype=np.int64)})
    block, blocks = limits.block_tokens, limits.kv_blocks
    after = np.arange(1, blocks + 2, dtype=np.int64)
    after[-1] = 0
    before = np.arange(-1, blocks, dtype=np.int64)
    before[0] = blocks
    total = -(-(workload.prompt_tokens + workload.output_tokens) // block)
    if workload.prefix is None:
        ratio, ids, starts = 1, _NOBODY, np.zeros(n, dtype=np.int64)
        shared = np.zeros(n, dtype=np.int64)
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
    slots = limits.max_num_seqs
    longest = int(total.max(initial=1)) + 1
    return k.Pool(
        after=after, before=before,
        users=np.zeros(blocks + 1, dtype=np.int64), key=np.full(blocks + 1, -1, dtype=np.int64),
        key_next=np.zeros(blocks + 1, dtype=np.int64),
        key_head=np.zeros(known + int(own.sum()) + 1, dtype=np.int64),
        held=np.zeros((slots, longest), dtype=np.int64), slot=np.full(n, -1, dtype=np.int64),
        free_slots=np.concatenate([np.arange(slots), [slots]]).astype(np.int64),
        full=np.zeros(n, dtype=np.int64), shared=shared.astype(np.int64), shared_at=starts.astype(np.int64),
        ids=ids.astype(np.int64), ratio=np.array([ratio], dtype=np.int64),
        unique_at=(known + np.cumsum(own) - own).astype(np.int64),
    )  # fmt: skip
