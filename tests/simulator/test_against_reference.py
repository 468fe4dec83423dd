"""The compiled simulator against a second one, written for clarity from vLLM's scheduling rules."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.engine import LOOPS, Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import PrefixBlocks, Workload
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.simulator import StepRecord, simulate

Content = tuple[object, ...]


@dataclass(eq=False)
class Block:
    """A KV block: how many hold it and what full content it has, if any."""

    users: int = 0
    content: Content | None = None


class Pool:
    """Blocks; the free ones in a queue whose head is reused first."""

    def __init__(self, count: int, caching: bool) -> None:
        self.free = deque(Block() for _ in range(count))
        self.caching = caching
        self.index: dict[Content, list[Block]] = {}

    def take(self, count: int) -> list[Block]:
        """The first free blocks, their old contents forgotten."""
        blocks = [self.free.popleft() for _ in range(count)]
        for block in blocks:
            if block.content is not None:
                self.index[block.content].remove(block)
                block.content = None
            block.users = 1
        return blocks

    def touch(self, block: Block) -> None:
        """Let one more request hold a cached block."""
        if block.users == 0:
            self.free.remove(block)
        block.users += 1

    def find(self, content: Content) -> Block | None:
        """The first block with this content."""
        return next(iter(self.index.get(content, [])), None)

    def fill(self, block: Block, content: Content) -> None:
        """Note that a block now has this content."""
        if self.caching:
            block.content = content
            self.index.setdefault(content, []).append(block)

    def release(self, blocks: list[Block]) -> None:
        """Give a request's blocks back, tail first; blocks without content are reused first of all."""
        first: list[Block] = []
        last: list[Block] = []
        for block in reversed(blocks):
            block.users -= 1
            if block.users == 0:
                (first if block.content is None else last).append(block)
        self.free.extendleft(reversed(first))
        self.free.extend(last)


@dataclass(eq=False)
class Job:
    """One request in the reference engine."""

    row: int
    arrival_ps: int
    prompt: int
    output: int
    priority: int
    contents: list[Content]
    think_ps: int = 0
    then: Job | None = None
    computed: int = 0
    generated: int = 0
    blocks: list[Block] = field(default_factory=list)
    filled: int = 0
    admitted_ps: int = -1
    first_ps: int = -1
    finish_ps: int = -1
    preemptions: int = 0
    recomputed: int = 0
    most: int = 0
    hit: int = -1
    partial: bool = False

    @property
    def known(self) -> int:
        """Prompt and output tokens there are."""
        return self.prompt + self.generated


@dataclass
class Decision:
    """What a scripted policy wants in a step."""

    order: list[int]
    hold: list[int]
    preempt: list[int]
    running_order: list[int]
    prefill_tokens: int | None
    reject: list[int]
    skip: list[int]


class Reference:
    """A vLLM V1 scheduler in plain Python, one step at a time."""

    def __init__(
        self, workload: Workload, limits: EngineLimits, model: StepTimeModel, policy: str, seed: int = 0
    ) -> None:
        self.limits, self.model, self.policy, self.seed = limits, model, policy, seed
        self.pool = Pool(limits.kv_blocks, limits.prefix_cache)
        self.jobs = [
            Job(
                row=i,
                arrival_ps=int(np.ceil(workload.arrival_s[i] / 1e-12)),
                prompt=int(workload.prompt_tokens[i]),
                output=int(workload.output_tokens[i]),
                priority=int(workload.priority[i]),
                contents=contents_of(workload, i, limits.block_tokens),
            )
            for i in range(len(workload))
        ]
        self.coming = list(self.jobs)
        last: dict[int, Job] = {}
        for job in self.jobs:
            session, think_s = int(workload.session[job.row]), float(workload.think_s[job.row])
            before = last.get(session)
            if before is not None and think_s >= 0:
                before.then, job.think_ps, job.arrival_ps = job, int(np.ceil(think_s / 1e-12)), -1
                self.coming.remove(job)
            if session >= 0:
                last[session] = job
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.now, self.step = 0, 0
        self.log: list[tuple[int, int, int]] = []
        self.busiest = 0
        self.executed, self.last_prompt = 0, -limits.prefill_schedule_interval
        self.pause = self.prompt = self.crowded = False

    def run(self) -> Reference:
        """Run until everybody has finished."""
        while self.coming or self.waiting or self.running:
            self.coming.sort(key=lambda j: (j.arrival_ps, j.row))
            while self.coming and self.coming[0].arrival_ps <= self.now:
                self.enqueue(self.coming.pop(0), front=False)
            if not self.waiting and not self.running:
                self.now = self.coming[0].arrival_ps
                continue
            self.one_step()
        return self

    def enqueue(self, job: Job, front: bool) -> None:
        """FCFS: newcomers at the end, preempted requests at the front; else sorted."""
        if self.policy == "fcfs":
            self.waiting.insert(0 if front else len(self.waiting), job)
        else:
            self.waiting.append(job)
            by_priority = self.policy == "priority"
            self.waiting.sort(key=lambda j: (j.priority if by_priority else 0, j.arrival_ps, j.row))

    def preempt(self, job: Job) -> None:
        """Drop a request's memory and queue it again."""
        self.running.remove(job)
        self.pool.release(job.blocks)
        job.blocks, job.filled, job.computed = [], 0, 0
        job.preemptions += 1
        self.enqueue(job, front=True)

    def allocate(self, job: Job, tokens: int) -> bool:
        """Blocks for the first `tokens` tokens of a request, if there are enough free ones."""
        size = self.limits.block_tokens
        more = max(0, -(-tokens // size) - len(job.blocks))
        if more > len(self.pool.free):
            return False
        job.blocks += self.pool.take(more)
        while job.filled < min(tokens, job.known) // size:
            self.pool.fill(job.blocks[job.filled], job.contents[job.filled])
            job.filled += 1
        return True

    def decide(self) -> Decision | None:
        """The script's decision; none where the engine need not ask."""
        prefilling = any(j.computed + 1 < j.known for j in self.running)
        wide = self.policy == "wide script"  # asks at every step
        if not (wide or (self.policy == "script" and (self.waiting or prefilling))):
            return None
        waiting, running = [j.row for j in self.waiting], [j.row for j in self.running]
        return script(self.seed, self.step, waiting, running, wide)

    def one_step(self) -> None:
        """Schedule one step, let its time pass, and hand out tokens."""
        budget = skipless = self.limits.max_num_batched_tokens
        line = list(self.waiting)
        skip: list[Job] = []
        decision = self.decide()
        if decision is not None:
            self.waiting = [j for j in self.waiting if j.row not in decision.reject]
            skip = [self.jobs[row] for row in decision.skip]
            self.running = [self.jobs[row] for row in decision.running_order]
            for row in decision.preempt:
                self.preempt(self.jobs[row])
            rest = [j.row for j in line if j.row not in decision.order]
            out = decision.hold + decision.reject
            line = [self.jobs[row] for row in decision.order + rest if row not in out]
            if decision.prefill_tokens is not None:
                decodes = [j for j in self.running if j.computed + 1 == j.known]
                passed = sum(j in skip for j in decodes)
                budget = min(budget, len(decodes) - passed + decision.prefill_tokens)
                skipless = min(skipless, len(decodes) + decision.prefill_tokens)
            if not self.waiting and not self.running:
                return
        several = len(self.waiting) + len(self.running) > 1
        cap = self.limits.long_prefill_token_threshold if several else 0
        scheduled: dict[Job, int] = {}
        self.prompt = False
        self.serve(scheduled, budget, cap, skip, line)
        if skip and not scheduled:
            self.serve(scheduled, skipless, cap, [], line)
        self.executed += bool(scheduled)
        if self.prompt:
            self.last_prompt = self.executed
        self.log += [(self.step, job.row, tokens) for job, tokens in scheduled.items()]
        self.busiest = max(self.busiest, len(self.running))
        self.now += self.duration_ps(scheduled)
        self.step += 1
        self.hand_out(scheduled)

    def serve(
        self, scheduled: dict[Job, int], budget: int, cap: int, skip: list[Job], line: list[Job]
    ) -> None:
        """Running requests, then waiting ones unless memory ran short; prompts may have to pause."""
        soon = self.executed + 1 - self.last_prompt < self.limits.prefill_schedule_interval
        self.pause = soon and not self.crowded and not all(j.partial for j in self.running)
        if not self.serve_running(scheduled, budget, cap, skip):
            self.admit(scheduled, budget - sum(scheduled.values()), cap, line)
            if not self.pause:
                self.crowded = len(self.waiting) > 0

    def serve_running(self, scheduled: dict[Job, int], budget: int, cap: int, skip: list[Job]) -> bool:
        """Running requests in list order; whoever needs memory takes it from a victim."""
        preempted = False
        place = 0
        while place < len(self.running) and sum(scheduled.values()) < budget:
            job = self.running[place]
            if job in skip or (self.pause and job.partial):
                place += 1
                continue
            tokens = job.known - job.computed
            if 0 < cap < tokens:
                tokens = cap
            tokens = min(tokens, budget - sum(scheduled.values()))
            fits = self.allocate(job, job.computed + tokens)
            while not fits:
                able = [j for j in self.running if j not in skip]
                victim = able[-1]
                if self.policy == "priority":
                    victim = max(able, key=lambda j: (j.priority, j.arrival_ps))
                place -= self.running.index(victim) < place
                scheduled.pop(victim, None)
                self.preempt(victim)
                preempted = True
                if victim is job:
                    break
                fits = self.allocate(job, job.computed + tokens)
            if not fits and (self.policy != "priority" or self.limits.loop == "0.32"):
                return True
            if fits:
                scheduled[job] = tokens
                self.prompt |= job.partial
                place += 1
        return preempted

    def admit(self, scheduled: dict[Job, int], budget: int, cap: int, line: list[Job]) -> None:
        """Waiting requests head of line, while slots, tokens and memory for the whole prompt last."""
        size = self.limits.block_tokens
        for job in line:
            if budget <= 0 or len(self.running) >= self.limits.max_num_seqs:
                return
            hits: list[Block] = []
            while self.pool.caching and len(hits) < (job.known - 1) // size:
                block = self.pool.find(job.contents[len(hits)])
                if block is None:
                    break
                hits.append(block)
            tokens = job.known - len(hits) * size
            if self.pause and tokens > 1:
                return
            long = tokens > 1
            if 0 < cap < tokens:
                tokens = cap
            if not self.limits.chunked_prefill and tokens > budget:
                return
            tokens = min(tokens, budget)
            unheld = sum(block.users == 0 for block in hits)
            if -(-job.known // size) - len(hits) + unheld > len(self.pool.free):
                return
            for block in hits:
                self.pool.touch(block)
            job.blocks, job.filled, job.computed = list(hits), len(hits), len(hits) * size
            assert self.allocate(job, job.computed + tokens)
            if job.admitted_ps < 0:
                job.admitted_ps, job.hit = self.now, job.computed
            self.waiting.remove(job)
            self.running.append(job)
            scheduled[job] = tokens
            self.prompt |= long
            budget -= tokens

    def duration_ps(self, scheduled: dict[Job, int]) -> int:
        """How long the step lasts."""
        decodes = [
            j for j, n in scheduled.items() if n == 1 and j.generated > 0 and j.computed + 1 == j.known
        ]
        prefills = [(j, n) for j, n in scheduled.items() if j not in decodes]
        if not scheduled:
            return int(self.model.coefficients_ps()[0])
        return int(
            self.model.predict_ps(
                prefill_tokens=sum(n for _, n in prefills),
                twice_attention_work=sum(n * (2 * j.computed + n) for j, n in prefills),
                sequences=len(decodes),
                kv_tokens=sum(j.computed for j in decodes),
            )
        )

    def hand_out(self, scheduled: dict[Job, int]) -> None:
        """Everybody whose known tokens are all computed gets one more."""
        for job, tokens in scheduled.items():
            after = job.computed + tokens
            job.recomputed += max(0, min(after, job.most) - job.computed)
            job.most = max(job.most, after)
            job.computed = after
            job.partial = after < job.known
            if after == job.known:
                job.generated += 1
                if job.first_ps < 0:
                    job.first_ps = self.now
                if job.generated == job.output:
                    job.finish_ps = self.now
                    self.running.remove(job)
                    self.pool.release(job.blocks)
                    job.blocks = []
                    if job.then is not None:
                        job.then.arrival_ps = self.now + job.then.think_ps
                        self.coming.append(job.then)


def contents_of(workload: Workload, row: int, size: int) -> list[Content]:
    """Content of each block of a request: shared ids where its prompt has them, else its own."""
    total = int(workload.prompt_tokens[row] + workload.output_tokens[row])
    contents: list[Content] = [("own", row, place) for place in range(total // size + 1)]
    if workload.prefix is not None:
        first, last = workload.prefix.offsets[row : row + 2].tolist()
        per = workload.prefix.block_tokens // size
        for place in range(min(int(workload.prompt_tokens[row]) // size, (last - first) * per)):
            contents[place] = ("id", int(workload.prefix.ids[first + place // per]), place % per)
    return contents


def script(seed: int, step: int, waiting: list[int], running: list[int], wide: bool) -> Decision:
    """A wild but lawful decision that depends on its arguments only; if wide, it refuses and skips, too."""
    rng = np.random.default_rng((seed, step))
    order = rng.permutation(np.array(waiting, dtype=np.int64)).tolist()
    kept = int(rng.integers(len(order) + 1)) if rng.random() < 0.3 else len(order)
    hold = [row for row in waiting if rng.random() < 0.2]
    victims = [row for row in running if rng.random() < 0.1]
    prefill = int(rng.integers(0, 30)) if rng.random() < 0.3 else None
    running_order = rng.permutation(np.array(running, dtype=np.int64)).tolist()
    reject = [row for row in waiting if wide and rng.random() < 0.05]
    skip = [row for row in running if wide and rng.random() < 0.5]
    return Decision(order[:kept], hold, victims, running_order, prefill, reject, skip)


class Scripted(Policy):
    """The scripted decisions as a policy."""

    name: ClassVar[str] = "scripted"
    preempts: bool = True
    paces: ClassVar[bool] = True

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def plan(self, snapshot: Snapshot) -> Plan:
        """Follow the script."""
        d = script(self.seed, snapshot.step, snapshot.waiting.tolist(), snapshot.running.tolist(), self.skips)
        parts = (d.order, d.hold, d.preempt, d.running_order, d.reject, d.skip)
        rows = [np.array(part, dtype=np.int64) for part in parts]
        plan = Plan(
            snapshot=snapshot, policy=self.name, order=rows[0], hold=rows[1], preempt=rows[2],
            running_order=rows[3], prefill_tokens=d.prefill_tokens, reject=rows[4], skip=rows[5],
        )  # fmt: skip
        plan.check()
        return plan


class WideScripted(Scripted):
    """The scripted decisions that refuse and skip, too."""

    name: ClassVar[str] = "wide-scripted"
    rejects: bool = True
    skips: ClassVar[bool] = True


MODEL = StepTimeModel(
    base_s=0.004, prefill_token_s=3e-5, attention_work_s=7e-9, sequence_s=4e-5, kv_token_s=3e-8,
    knee_tokens=20, knee_token_s=1e-5,
)  # fmt: skip


@st.composite
def workloads(draw: st.DrawFn, most_tokens: int, shared: bool) -> Workload:
    """Up to 14 requests of up to `most_tokens` tokens, some at the same instant, some after a pause.

    In every other workload some are turns of sessions.
    """
    n = draw(st.integers(1, 14))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.003, 0.0123, 0.05, 0.4]), min_size=n, max_size=n))
    prompt = draw(st.lists(st.integers(1, most_tokens * 2 // 3), min_size=n, max_size=n))
    output = [draw(st.integers(1, most_tokens - p)) for p in prompt]
    priority = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    prefix = None
    if shared:
        # Prompts are paths in a small tree: an id names its block and all blocks before it.
        paths = draw(st.lists(st.lists(st.integers(1, 2), max_size=8), min_size=n, max_size=n))
        ids = [[int("".join(map(str, path[: k + 1]))) for k in range(len(path))] for path in paths]
        prefix = PrefixBlocks(
            offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64),
            ids=np.array([i for some in ids for i in some], dtype=np.int64),
            block_tokens=draw(st.sampled_from([4, 8])),
        )
    session, think = [-1] * n, [-1.0] * n
    if draw(st.booleans()):
        session = draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))
        pause = st.sampled_from([0.0, 0.0, 1e-4, 0.0123, 0.4, -1.0])
        think = draw(st.lists(pause, min_size=n, max_size=n))
    plain = Workload.plain(
        np.cumsum(gaps), np.array(prompt, dtype=np.int64), np.array(output, dtype=np.int64), prefix=prefix,
        session=np.array(session, dtype=np.int64), think_s=np.array(think, dtype=np.float64),
    )  # fmt: skip
    return replace(plain, priority=np.array(priority, dtype=np.int64))


@st.composite
def cases(draw: st.DrawFn, prefix_cache: bool) -> tuple[Workload, EngineLimits]:
    """A workload that just fits a small engine."""
    size = 4
    blocks = draw(st.integers(4, 24))
    chunked = draw(st.booleans())
    budget = draw(st.integers(2, 40)) if chunked else draw(st.integers(blocks * size, blocks * size + 30))
    interval = draw(st.sampled_from([1, 1, 1, 2, 5]))
    limits = EngineLimits(
        loop=LOOPS[-1] if interval > 1 else draw(st.sampled_from(LOOPS)),
        prefill_schedule_interval=interval,
        max_num_seqs=draw(st.integers(1, 6)),
        max_num_batched_tokens=budget,
        kv_blocks=blocks,
        block_tokens=size,
        chunked_prefill=chunked,
        prefix_cache=prefix_cache,
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 3, 7])),
    )
    return draw(workloads(blocks * size, prefix_cache and draw(st.booleans()))), limits


def compare(case: tuple[Workload, EngineLimits], name: str, policy: str | Policy, seed: int = 0) -> None:
    """Fail unless both simulators give every request the same tokens in the same steps at the same times."""
    workload, limits = case
    reference = Reference(workload, limits, MODEL, name, seed).run()
    logs: list[StepRecord] = []
    run = simulate(workload, policy, engine=Engine(limits=limits, step_time=MODEL), record=logs)
    log = list(zip(logs[0].step.tolist(), logs[0].row.tolist(), logs[0].tokens.tolist(), strict=True))
    assert log == reference.log
    o, jobs = run.outcomes, reference.jobs
    # The engine rounds arrivals up to whole picoseconds; outcomes keep what the workload says.
    late = [j.arrival_ps - at for j, at in zip(jobs, picoseconds(o.arrival_s), strict=True)]
    assert set(late) <= {0, 1}
    assert picoseconds(o.admitted_s) == [j.admitted_ps for j in jobs]
    assert picoseconds(o.first_token_s) == [j.first_ps for j in jobs]
    assert picoseconds(o.finish_s) == [j.finish_ps for j in jobs]
    assert o.rejected is not None
    assert o.rejected.tolist() == [j.finish_ps < 0 <= j.arrival_ps for j in jobs]
    assert name == "wide script" or not o.rejected.any()
    assert o.preemptions.tolist() == [j.preemptions for j in jobs]
    assert o.recomputed_tokens.tolist() == [j.recomputed for j in jobs]
    assert o.cached_tokens.tolist() == [max(0, j.hit) for j in jobs]
    assert run.log.steps == reference.step
    assert reference.busiest <= limits.max_num_seqs
    assert len(reference.pool.free) == limits.kv_blocks


def picoseconds(seconds: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[int]:
    """Times as the reference has them: -1 for what never came."""
    return [-1 if np.isnan(s) else round(s * 1e12) for s in seconds.tolist()]


@settings(max_examples=120, deadline=None)
@given(case=cases(prefix_cache=False))
def test_fcfs(case: tuple[Workload, EngineLimits]) -> None:
    """First come, first served: same tokens in the same steps as the reference."""
    compare(case, "fcfs", "fcfs")


@settings(max_examples=120, deadline=None)
@given(case=cases(prefix_cache=True))
def test_fcfs_with_prefix_cache(case: tuple[Workload, EngineLimits]) -> None:
    """With shared and evicted blocks, too."""
    compare(case, "fcfs", "fcfs")


@settings(max_examples=100, deadline=None)
@given(case=cases(prefix_cache=False))
def test_priority(case: tuple[Workload, EngineLimits]) -> None:
    """Priorities: the worst running request gives way, and gives back the tokens it got in the step."""
    compare(case, "priority", "priority")


def test_a_request_that_gave_up_its_own_memory_lets_others_go_on_since_033() -> None:
    """Before, its preemption ended the step for those behind it, which then waited for the next."""
    plain = Workload.plain(0.003 * np.arange(3, dtype=np.float64), np.array([8, 7, 6]), np.array([9, 9, 12]))
    work = replace(plain, priority=np.array([2, 0, 0]))
    steps = []
    for loop in LOOPS:
        limits = EngineLimits(
            max_num_seqs=3, max_num_batched_tokens=24, kv_blocks=6, block_tokens=4, loop=loop
        )
        compare((work, limits), "priority", "priority")
        steps.append(simulate(work, "priority", engine=Engine(limits=limits, step_time=MODEL)).log.steps)
    assert steps[1] < steps[0]


def test_prompts_pause_for_answers_unless_a_queue_has_built_up() -> None:
    """With an interval of 4 a newcomer waits while the first answers, and answers have steps of their own."""
    work = Workload.plain(0.001 * np.arange(3, dtype=np.float64), np.array([4, 30, 4]), np.array([30, 9, 9]))
    alone = []
    for interval in (1, 4):
        limits = EngineLimits(
            max_num_seqs=3, max_num_batched_tokens=8, kv_blocks=40, block_tokens=4, loop="0.33",
            prefill_schedule_interval=interval,
        )  # fmt: skip
        compare((work, limits), "fcfs", "fcfs")
        logs: list[StepRecord] = []
        simulate(work, "fcfs", engine=Engine(limits=limits, step_time=MODEL), record=logs)
        prompts = np.unique(logs[0].step[logs[0].tokens > 1])
        alone.append(int(np.diff(prompts).max()))
    assert alone == [1, 4]


def test_an_interval_needs_the_loop_that_has_it() -> None:
    """Rather an error than an option without effect."""
    with pytest.raises(InputError, match=r"prefill_schedule_interval must be 1 with loop 0\.32, got 4"):
        EngineLimits(prefill_schedule_interval=4)
    with pytest.raises(InputError, match=r"loop must be one of 0\.32, 0\.33, got '0\.31'"):
        EngineLimits(loop="0.31")


def test_tokens_of_a_victim_are_given_back() -> None:
    """A request preempted after it was scheduled in the same step leaves its tokens to those behind it."""
    plain = Workload.plain(0.006 * np.arange(3, dtype=np.float64), np.array([2, 4, 6]), np.array([13, 6, 3]))
    work = replace(plain, priority=np.array([1, 0, 0]))
    limits = EngineLimits(max_num_seqs=3, max_num_batched_tokens=3, kv_blocks=6, block_tokens=4)
    compare((work, limits), "priority", "priority")


@settings(max_examples=100, deadline=None)
@given(case=cases(prefix_cache=True))
def test_priority_with_prefix_cache(case: tuple[Workload, EngineLimits]) -> None:
    """Priorities with shared and evicted blocks."""
    compare(case, "priority", "priority")


@settings(max_examples=100, deadline=None)
@given(case=cases(prefix_cache=False), seed=st.integers(0, 2**31))
def test_wild_plans(case: tuple[Workload, EngineLimits], seed: int) -> None:
    """Random orders, holds, preemptions, running orders and prefill limits are carried out to the letter."""
    compare(case, "script", Scripted(seed), seed)


@settings(max_examples=100, deadline=None)
@given(case=cases(prefix_cache=True), seed=st.integers(0, 2**31))
def test_wild_plans_with_prefix_cache(case: tuple[Workload, EngineLimits], seed: int) -> None:
    """Also with shared and evicted blocks."""
    compare(case, "script", Scripted(seed), seed)


@settings(max_examples=150, deadline=None)
@given(case=cases(prefix_cache=False), seed=st.integers(0, 2**31))
def test_wide_plans(case: tuple[Workload, EngineLimits], seed: int) -> None:
    """Refused requests leave without a token, and running ones that are passed over keep their place."""
    compare(case, "wide script", WideScripted(seed), seed)


@settings(max_examples=150, deadline=None)
@given(case=cases(prefix_cache=True), seed=st.integers(0, 2**31))
def test_wide_plans_with_prefix_cache(case: tuple[Workload, EngineLimits], seed: int) -> None:
    """Also with shared and evicted blocks."""
    compare(case, "wide script", WideScripted(seed), seed)
