"""vLLM's real scheduler under a virtual clock: a fake executor whose steps last as a step-time model says."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.engine import DEFAULT_ENGINE, Engine, find_engine
from slosched.core.errors import InputError, MissingExtraError
from slosched.core.forecast import LengthForecast
from slosched.core.outcome import Outcomes, Run, RunLog
from slosched.core.request import Request, Slo
from slosched.core.workload import Workload
from slosched.integrations.vllm.adapter import adapted, attach
from slosched.integrations.vllm.clock import VirtualClock
from slosched.integrations.vllm.config import Config, ThinkingConfig
from slosched.integrations.vllm.refusal_reason import REASON
from slosched.integrations.vllm.state import Learned
from slosched.lab.bench import Bench
from slosched.lab.digests import code_digest
from slosched.policies.base import Policy
from slosched.policies.registry import policy_of
from slosched.simulator.engine import StepRecord, refuse_oversize, table_of, turns_of
from slosched.testing.harness import STOP, make_request, make_scheduler, runner_output

PS = 1e-12
MAX_EMPTY_STEPS = 10_000
PROMPT_TOKENS = 1 << 40
OUTPUT_TOKENS = 1 << 44
SPAN = 1 << 20
"""Token numbers: prompts of request i from PROMPT_TOKENS + i·SPAN, answers from OUTPUT_TOKENS + i·SPAN, each
counted by position; shared prompt blocks by block below PROMPT_TOKENS."""
THOUGHT = STOP - 1
"""The token that ends thinking."""


def simulate_vllm(
    workload: Workload,
    policy: str | Policy = "fcfs",
    *,
    engine: Engine | str = DEFAULT_ENGINE,
    depth: int = 1,
    asynchronous: bool = False,
    stock: str | None = None,
    seed: int = 0,
    record: list[StepRecord] | None = None,
) -> Run:
    """Replay a workload through the scheduler of the installed vLLM.

    The scheduler and the KV cache manager are vLLM's own; only the model is missing. Every token carries its
    position, and the run fails if any request gets a wrong, missing or repeated one.

    Parameters
    ----------
    workload
        Requests to replay; each must fit the context and the KV cache.
    policy
        A policy by name or a fresh policy object; not used if `stock` is given.
    engine
        The engine, or the name of a preset or of a JSON file; Llama-3.1-8B on one H100 by default.
    depth
        Steps in flight at once, at least 1: 2 with asynchronous scheduling, 4 with four pipeline stages.
    asynchronous
        Whether vLLM's asynchronous scheduler is used.
    stock
        ``"fcfs"`` or ``"priority"``: vLLM alone with this policy of its own, without slosched.
    seed
        Seed of a policy given by name.
    record
        A list that receives one `StepRecord`.

    Returns
    -------
    Run
        As `slosched.simulator.simulate` gives, with engine ``"vllm <version>"``.

    Raises
    ------
    MissingExtraError
        If vLLM is not installed.
    InputError
        If a request can never fit, an argument is out of its domain, a token is wrong, or nothing advances.
    """
    if stock not in (None, "fcfs", "priority"):
        raise InputError(f"stock must be 'fcfs', 'priority' or None, got {stock!r}.")
    if depth < 1:
        raise InputError(f"depth must be at least 1, got {depth!r}.")
    engine = find_engine(engine)
    refuse_oversize(workload, engine.limits)
    begin = time.perf_counter()
    clocked = VirtualEngine(workload, engine, depth=depth, asynchronous=asynchronous)
    if stock is not None:
        clocked.use_stock(priority=stock == "priority")
    else:
        clocked.use_policy(policy_of(policy, seed=seed))
    clocked.run()
    if record is not None:
        record.append(clocked.steps_recorded())
    return clocked.result(time.perf_counter() - begin, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmBench(Bench):
    """A `slosched.lab.bench.Bench` whose runs take place in the installed vLLM's scheduler.

    Parameters
    ----------
    depth, asynchronous
        As in `simulate_vllm`.
    """

    depth: int = 1
    asynchronous: bool = False

    def run(self, policy: str, rate_rps: float | None, seed: int) -> Run:
        """Replay the workload of one rate and seed under one policy."""
        return simulate_vllm(
            self.source(rate_rps, seed), policy, engine=self.engine,  # type: ignore[arg-type]
            depth=self.depth, asynchronous=self.asynchronous, seed=seed,
        )  # fmt: skip

    def key(self) -> dict[str, Any]:
        """The same, with vLLM's scheduler in the simulator's place."""
        try:
            release = version("vllm")
        except PackageNotFoundError:
            raise MissingExtraError("vllm", "vllm") from None
        return Bench.key(self) | {
            "code": code_digest(__name__, "slosched.integrations.vllm.adapter", "slosched.core.metrics"),
            "depth": self.depth,
            "asynchronous": self.asynchronous,
            "vllm": release,
        }


@dataclass(slots=True)
class Flight:
    """One step on its way: vLLM's output object, what the runner will say, when it ends."""

    output: Any
    reply: Any
    end_ps: int


class VirtualEngine:
    """The engine's loop around one scheduler; `simulate_vllm` is the usual way in."""

    def __init__(
        self,
        workload: Workload,
        engine: Engine,
        *,
        depth: int = 1,
        asynchronous: bool = False,
    ) -> None:
        self.workload, self.engine = workload, engine
        self.limits, self.step_time = engine.limits, engine.step_time
        self.depth, self.asynchronous = depth, asynchronous
        self.clock: Any = VirtualClock()
        self.now_ps = 0
        self.scheduler: Any = None
        self.name = ""
        n = len(workload)
        self.ids = list(workload.request_ids) or [str(i) for i in range(n)]
        self.row = {request_id: i for i, request_id in enumerate(self.ids)}
        self.arrival_ps = np.ceil(workload.arrival_s / PS).astype(np.int64).tolist()
        self.arrival_s = workload.arrival_s.tolist()
        later = workload.previous >= 0
        self.next_turn, self.think_ps = (column.tolist() for column in turns_of(workload))
        self.coming = [(self.arrival_ps[i], i) for i in np.flatnonzero(~later).tolist()]
        """(arrival, row) of who is known to come: a heap, ascending at first."""
        for i in np.flatnonzero(later).tolist():
            self.arrival_ps[i], self.arrival_s[i] = -1, math.nan
        self.admitted_ps, self.first_ps, self.answer_ps, self.finish_ps = ([-1] * n for _ in range(4))
        self.generated, self.peak, self.recomputed, self.cached = ([0] * n for _ in range(4))
        self.preemptions = [0] * n
        self.steps, self.busy_ps, self.end_ps = 0, 0, 0
        self.sent = 0
        self.empty = 0
        self.flights: deque[Flight] = deque()
        self.log: list[tuple[int, int, int]] = []
        self.depths: list[tuple[int, int, int]] = []
        self.live: dict[str, Any] = {}
        self.rejected = np.zeros(n, dtype=np.bool_)
        self._shared = _shared_tokens(workload)
        self._table = table_of(workload)

    # set-up -----------------------------------------------------------------------------------------------

    def use_stock(self, *, priority: bool) -> None:
        """Run vLLM's own class and policy."""
        self.name = f"vllm-{'priority' if priority else 'fcfs'}"
        self.scheduler = make_scheduler(self.limits, asynchronous=self.asynchronous, priority=priority)

    def use_policy(self, policy: Policy, config: Config | None = None) -> None:
        """Run a policy of slosched in vLLM's scheduler."""
        self.name = policy.name
        self.engine = policy.engine_for(self.engine)
        self.limits = self.engine.limits
        config = config or Config(allow_reject=policy.rejects)
        if self.workload.thinking is not None:
            config = config.model_copy(update={"thinking": ThinkingConfig(end=THOUGHT)})
        learned = self.learned()

        def factory(vllm_config: Any, **keywords: Any) -> Any:
            """Make the scheduler as vLLM would call its own class."""
            from slosched.integrations.vllm.adapter import base_class

            scheduler = adapted(base_class(vllm_config))(vllm_config=vllm_config, **keywords)
            controller = attach(scheduler, vllm_config, config, self.clock, policy, learned)
            controller.ledger.describe = self.describe
            # Labels are numbered as in the simulator: policies draw their futures class by class.
            table = controller.ledger.table
            table.classes, table.tenants = list(self.workload.classes), list(self.workload.tenants)
            return scheduler

        self.scheduler = make_scheduler(self.limits, asynchronous=self.asynchronous, factory=factory)

    def learned(self) -> Learned:
        """What is known of the engine at the start: its step-time model."""
        learned = Learned(self.engine)
        learned.step_time = type(learned.step_time)(self.step_time)
        return learned

    def describe(self, request: Any) -> tuple[Request, int, int]:
        """A row of the workload in slosched's terms, forecast not true length; program; prefix."""
        w, i = self.workload, self.row[request.request_id]
        limits = (float(w.ttft_s[i]), float(w.tpot_s[i]), float(w.e2e_s[i]), float(w.ttfat_s[i]))
        ttft, tpot, e2e, ttfat = (None if math.isinf(limit) else limit for limit in limits)
        thinking = None
        if w.thinking is not None and w.thinking.atoms[i].mean() >= 1:
            thinking = LengthForecast(tuple(np.maximum(1.0, w.thinking.atoms[i]).tolist()))
        described = Request(
            request_id=request.request_id,
            prompt_tokens=int(w.prompt_tokens[i]),
            forecast=LengthForecast(tuple(w.atoms[i].tolist())),
            thinking=thinking,
            slo=Slo(ttft_s=ttft, tpot_s=tpot, e2e_s=e2e, ttfat_s=ttfat),
            arrival_s=self.arrival_s[i],
            weight=float(w.weight[i]),
            priority=int(w.priority[i]),
            slo_class=w.classes[w.class_index[i]],
            tenant=w.tenants[w.tenant_index[i]],
        )
        return described, int(self._table.program_index[i]), int(self._table.prefix_index[i])

    def submit(self, i: int) -> None:
        """Hand request i to the scheduler."""
        w = self.workload
        prompt = int(w.prompt_tokens[i])
        request = make_request(
            self.ids[i], self.prompt(i), max_tokens=self.limits.max_model_len - prompt,
            arrival_s=self.arrival_s[i], priority=int(w.priority[i]),
            block_tokens=self.limits.block_tokens, hashed=self.limits.prefix_cache,
            dress=lambda keywords: self.dress(i, keywords),
        )  # fmt: skip
        self.live[self.ids[i]] = request
        self.made(i, request)
        self.scheduler.add_request(request)

    def dress(self, i: int, keywords: dict[str, Any]) -> None:
        """Change what request i is made of; here it stays plain."""

    def made(self, i: int, request: Any) -> None:
        """Request i has been made and is about to be handed to the scheduler."""

    def prompt(self, i: int) -> list[int]:
        """Tokens of prompt i: shared blocks first, its own after."""
        shared = self._shared[i] if self._shared is not None else []
        own = PROMPT_TOKENS + i * SPAN
        prompt = int(self.workload.prompt_tokens[i])
        return [*shared, *range(own + len(shared), own + prompt)]

    # the loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until every request that was sent has its whole answer, or was refused."""
        while self.busy:
            self.advance()
        errors = getattr(getattr(self.scheduler, "slosched", None), "stats", None)
        if errors is not None and errors.errors:
            raise InputError(f"policy {self.name!r} must not fail, got {errors.errors}.")

    @property
    def busy(self) -> bool:
        """Whether anybody is known to come, is in the engine, or is in a step on its way."""
        return bool(self.coming or self.live or self.flights)

    def advance(self) -> None:
        """One turn: arrivals, a step if there is room in the pipeline, else the end of the oldest step."""
        self.arrivals()
        if self.scheduler.has_requests():
            output = self.schedule()
            if output.total_num_scheduled_tokens > 0:
                if len(self.flights) < self.depth:
                    return
            else:
                self.take(self.scheduler.update_from_output(output, self.reply([], [])))
                controller = getattr(self.scheduler, "slosched", None)
                if controller is not None and controller.retries:
                    return
                if not self.flights:
                    if self.live:  # else vLLM only cleaned up after the last request
                        self.idle()
                    return
        elif not self.flights:
            if self.coming:
                self.move_to(max(self.now_ps, self.coming[0][0]))
            return
        self.land()

    def arrivals(self) -> None:
        """Queue everybody who has arrived by now."""
        while self.coming and self.coming[0][0] <= self.now_ps:
            self.submit(heapq.heappop(self.coming)[1])
            self.sent += 1

    def move_to(self, ps: int) -> None:
        """Set the clock."""
        self.now_ps = ps
        self.clock.time_s = ps * PS

    def idle(self) -> None:
        """Nothing was scheduled though requests wait: time passes."""
        self.empty += 1
        if self.empty > MAX_EMPTY_STEPS:
            raise InputError(f"policy {self.name!r} must not hold all requests for ever.")
        self.steps += 1
        self.move_to(self.now_ps + int(self.step_time.predict_ps()))

    def schedule(self) -> Any:
        """Ask vLLM for a step and put it in flight."""
        output = self.scheduler.schedule()
        tokens = output.num_scheduled_tokens
        if not tokens:
            return output
        self.empty = 0
        prefill = work2 = decodes = kv = 0
        ids, samples = [], []
        for request_id, n in tokens.items():
            row, request = self.row[request_id], self.live.get(request_id)
            if request is None:  # ended in the meantime: a step too many of the asynchronous scheduler
                continue
            after = request.num_computed_tokens
            before = after - n
            if n == 1 and before >= request.num_prompt_tokens and before + 1 >= request.num_tokens:
                decodes += 1
                kv += before
            else:
                prefill += n
                work2 += n * (2 * before + n)
            self.account(row, before, after)
            self.log.append((self.steps, row, n))
            ids.append(request_id)
            samples.append(self.sample(row, request, output))
        duration = int(self.step_time.predict_ps(prefill, work2, decodes, kv))
        start = max(self.now_ps, self.end_ps)
        self.end_ps = start + duration
        self.busy_ps += duration
        counts = (len(self.scheduler.running), len(self.scheduler.waiting))
        self.depths.append((self.now_ps, counts[1], counts[0]))
        self.steps += 1
        self.flights.append(Flight(output, self.reply(ids, samples), self.end_ps))
        return output

    def reply(self, ids: list[str], samples: list[list[int]]) -> Any:
        """What the runner will say of a step."""
        return runner_output(ids, samples)

    def sample(self, row: int, request: Any, output: Any) -> list[int]:
        """The tokens the model would give now, numbered by their positions; none within a prompt.

        Drafts are accepted up to the first wrong one.
        """
        drafts = output.scheduled_spec_decode_tokens.get(request.request_id, ())
        after = request.num_computed_tokens - len(drafts)
        if after < request.num_tokens + max(getattr(request, "num_output_placeholders", 0) - 1, 0):
            return []
        place = after - request.num_prompt_tokens
        tokens = [self.token(row, place)]
        for draft in drafts:
            if draft != tokens[-1]:
                break
            tokens.append(self.token(row, place + len(tokens)))
        return tokens

    def token(self, row: int, place: int) -> int:
        """The token at a place of an answer; beyond its end any but the right one."""
        if place + 1 == self.workload.output_tokens[row]:
            return STOP
        thinks = self.workload.thinking
        ends = thinks is not None and place + 1 == thinks.tokens[row]
        return THOUGHT if ends else OUTPUT_TOKENS + row * SPAN + place

    def account(self, row: int, before: int, after: int) -> None:
        """Note admission and recomputation."""
        if self.admitted_ps[row] < 0:
            self.admitted_ps[row] = self.now_ps
            self.cached[row] = before
        if before < self.peak[row]:
            self.recomputed[row] += min(after, self.peak[row]) - before
        self.peak[row] = max(self.peak[row], after)

    def land(self) -> None:
        """End the oldest step in flight and check every token that comes out of it."""
        flight = self.flights.popleft()
        self.move_to(max(self.now_ps, flight.end_ps))
        self.take(self.scheduler.update_from_output(flight.output, flight.reply))
        self.landed(flight)

    def landed(self, flight: Flight) -> None:
        """The output of a step has been taken in."""

    def take(self, outputs: Any) -> None:
        """Hand what the engine says to the clients it says it to."""
        for core in outputs.values():
            for out in core.outputs:
                if out.request_id in self.live:
                    if out.stop_reason == REASON:
                        self.refuse(out.request_id)
                    else:
                        self.receive(out.request_id, list(out.new_token_ids), out.finish_reason)

    def refuse(self, request_id: str) -> None:
        """Note a request that the policy refused: it never finishes."""
        row = self.row[request_id]
        self.rejected[row] = True
        self.preemptions[row] = int(self.live.pop(request_id).num_preemptions)

    def receive(self, request_id: str, tokens: list[int], finish_reason: Any) -> None:
        """Check the tokens a client would get."""
        row = self.row[request_id]
        length, thinks = int(self.workload.output_tokens[row]), self.workload.thinking
        for token in tokens:
            place = self.generated[row]
            wanted = self.token(row, place)
            if token != wanted or place >= length:
                raise InputError(f"token {place} of request {request_id!r} must be {wanted}, got {token}.")
            self.generated[row] = place + 1
            if place == 0:
                self.first_ps[row] = self.now_ps
            if thinks is not None and place == thinks.tokens[row]:
                self.answer_ps[row] = self.now_ps
        if finish_reason is not None:
            if self.generated[row] != length:
                raise InputError(
                    f"request {request_id!r} must get {length} tokens, got {self.generated[row]}."
                )
            self.finish_ps[row] = self.now_ps
            self.answered(row)
            self.preemptions[row] = int(self.live.pop(request_id).num_preemptions)

    def answered(self, row: int) -> None:
        """The answer is complete: its client will think, then send the next turn."""
        turn = self.next_turn[row]
        if turn >= 0:
            self.arrival_ps[turn] = self.now_ps + self.think_ps[turn]
            self.arrival_s[turn] = self.arrival_ps[turn] * PS
            heapq.heappush(self.coming, (self.arrival_ps[turn], turn))

    # results ----------------------------------------------------------------------------------------------

    def steps_recorded(self) -> StepRecord:
        """Which requests got how many tokens in which step."""
        table = np.array(self.log, dtype=np.int64).reshape(-1, 3)
        return StepRecord(step=table[:, 0], row=table[:, 1], tokens=table[:, 2])

    def result(self, wall_s: float, seed: int = 0) -> Run:
        """Outcomes and log."""
        from vllm import __version__

        def seconds(ps: list[int]) -> NDArray[np.float64]:
            values = np.array(ps, dtype=np.int64)
            return np.where(values >= 0, values * PS, np.nan)

        controller = getattr(self.scheduler, "slosched", None)
        depths = np.array(self.depths, dtype=np.int64).reshape(-1, 3)
        outcomes = Outcomes(
            workload=self.workload,
            arrival_s=np.array(self.arrival_s, dtype=np.float64),
            admitted_s=seconds(self.admitted_ps),
            first_token_s=seconds(self.first_ps),
            finish_s=seconds(self.finish_ps),
            preemptions=np.array(self.preemptions, dtype=np.int64),
            recomputed_tokens=np.array(self.recomputed, dtype=np.int64),
            cached_tokens=np.array(self.cached, dtype=np.int64),
            rejected=self.rejected,
            answer_s=None if self.workload.thinking is None else seconds(self.answer_ps),
        )
        log = RunLog(
            steps=self.steps,
            plans=0 if controller is None else controller.stats.plans,
            plan_s=np.empty(0),
            depth_time_s=np.asarray(depths[:, 0] * PS, dtype=np.float64),
            depth_waiting=depths[:, 1],
            depth_running=depths[:, 2],
            busy_s=self.busy_ps * PS,
            wall_s=wall_s,
        )
        return Run(policy=self.name, engine=f"vllm {__version__}", outcomes=outcomes, log=log, seed=seed)


def _shared_tokens(workload: Workload) -> list[list[int]] | None:
    """Tokens of each prompt's shared blocks: equal blocks, equal tokens."""
    prefix = workload.prefix
    if prefix is None:
        return None
    _, index = np.unique(prefix.ids, return_inverse=True)
    block = prefix.block_tokens
    found = []
    for i in range(len(workload)):
        blocks = index[prefix.offsets[i] : prefix.offsets[i + 1]].tolist()
        tokens = [STOP + 1 + b * block + t for b in blocks for t in range(block)]
        found.append(tokens[: int(workload.prompt_tokens[i])])
    return found
