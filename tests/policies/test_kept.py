"""One policy kept over snapshots that are made afresh at every step: the loop that a reader would write."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from slosched import Engine, EngineLimits, LengthForecast, Request, Slo, Snapshot, StepTimeModel
from slosched.core.kept import KeptTable
from slosched.planner.plan import Plan
from slosched.policies import Policy, policy

ENGINE = Engine(
    name="toy",
    limits=EngineLimits(max_num_seqs=8, kv_blocks=4000, chunked_prefill=False),
    step_time=StepTimeModel(base_s=0.01, prefill_token_s=5e-5, sequence_s=2e-4),
)


@dataclass
class Job:
    """A request of the toy engine, with what only the engine knows."""

    request: Request
    length: int
    first_s: float | None = None


def traffic(seed: int, n: int = 150) -> list[Job]:
    """Urgent short and patient long requests, faster than the toy engine serves them."""
    rng = np.random.default_rng(seed)
    jobs, now_s = [], 0.0
    for i in range(n):
        now_s += float(rng.exponential(0.06))
        urgent = rng.random() < 0.7
        length = int(rng.integers(10, 60)) if urgent else int(rng.integers(100, 300))
        slo = Slo(ttft_s=0.6, e2e_s=4.0) if urgent else Slo(e2e_s=25.0)
        jobs.append(
            Job(
                Request(
                    request_id=f"r{i}", prompt_tokens=int(rng.integers(50, 800)), arrival_s=now_s, slo=slo,
                    forecast=LengthForecast.lognormal(length, 0.3), slo_class="chat" if urgent else "job",
                ),
                length,
            )
        )  # fmt: skip
    return jobs


def served(jobs: list[Job], plan_of: Callable[[Snapshot], Plan], engine: Engine = ENGINE) -> float:
    """Share of requests that keep their limits on an engine that computes each prompt in one step."""
    coming, waiting, running = list(jobs), list[Job](), list[Job]()
    now_s, kept = 0.0, 0
    while coming or waiting or running:
        if not waiting and not running:
            now_s = max(now_s, coming[0].request.arrival_s)
        while coming and coming[0].request.arrival_s <= now_s:
            waiting.append(coming.pop(0))
        snapshot = Snapshot.of(
            [j.request for j in waiting], [j.request for j in running], now_s=now_s, engine=engine
        )
        plan = plan_of(snapshot)
        by_name = {j.request.request_id: j for j in waiting}
        held = {snapshot.table.request_ids[row] for row in plan.hold.tolist()}
        room = engine.limits.max_num_batched_tokens if plan.prefill_tokens is None else plan.prefill_tokens
        prompts = 0
        for name in plan.request_ids:
            job = by_name[name]
            tokens = job.request.prompt_tokens
            if len(running) == engine.limits.max_num_seqs or (prompts and prompts + tokens > room):
                break
            if name in held:
                continue
            prompts += tokens
            waiting.remove(job)
            running.append(job)
        now_s += float(engine.step_time.predict(prefill_tokens=prompts, sequences=len(running)))
        for job in list(running):
            tokens = job.request.generated_tokens + 1
            job.request = replace(job.request, generated_tokens=tokens)
            job.first_s = now_s if job.first_s is None else job.first_s
            if tokens == job.length:
                running.remove(job)
                slo, arrival_s = job.request.slo, job.request.arrival_s
                in_time = slo.ttft_s is None or job.first_s - arrival_s <= slo.ttft_s
                kept += in_time and (slo.e2e_s is None or now_s - arrival_s <= slo.e2e_s)
    return kept / len(jobs)


def test_a_kept_policy_mixes_nobody_up() -> None:
    """A policy that is kept does no worse than one that takes every step for a new engine, or a fresh one."""
    kept, mixed, fresh, fcfs = (
        np.mean([served(traffic(seed), make()) for seed in range(3)])
        for make in (
            lambda: policy("slosched").plan,
            lambda: partial(inspect.unwrap(type(policy("slosched")).plan), policy("slosched")),
            lambda: lambda snapshot: policy("slosched").plan(snapshot),
            lambda: policy("fcfs").plan,
        )
    )
    assert kept > mixed - 0.02
    assert kept > fresh - 0.05
    assert kept > fcfs + 0.05


@pytest.mark.parametrize("name", ["mlfq", "ltr", "trail", "las", "qoserve"])
def test_what_a_policy_notes_stays_with_the_request(name: str) -> None:
    """On fresh tables it decides as on one table that the engine keeps."""
    rng = np.random.default_rng(5)
    queue = [
        Request(request_id=f"r{i}", prompt_tokens=int(rng.integers(50, 400)), arrival_s=0.01 * i,
                forecast=LengthForecast.lognormal(50.0, 0.8), slo=Slo(ttft_s=1.0, e2e_s=5.0))
        for i in range(12)
    ]  # fmt: skip
    one, other, table = policy(name), policy(name), KeptTable()
    running = queue[:3]
    for step in range(40):
        running = [replace(r, generated_tokens=r.generated_tokens + 1) for r in running]
        order = list(rng.permutation(len(queue) - 3))
        waiting = [queue[3 + i] for i in order if (3 + i) % 7 != step % 7]
        fresh = Snapshot.of(waiting, running, now_s=1.0 + 0.1 * step, engine=ENGINE)
        kept, back = table.adopt(fresh)
        mine = one.plan(fresh)
        assert not kept.table.detached
        theirs = other.plan(kept)
        assert mine.request_ids == [kept.table.request_ids[row] for row in theirs.sequence.tolist()]
        assert mine.preempt.tolist() == back[theirs.preempt].tolist()
        assert mine.snapshot is fresh


def test_a_request_is_its_name_arrival_and_prompt() -> None:
    """Whoever is gone for a step, or comes back as another, is a newcomer; rows and serials stay else."""
    a, b = (
        Request(request_id=i, prompt_tokens=9, forecast=LengthForecast.point(5), arrival_s=1.0) for i in "ab"
    )
    kept = KeptTable()
    first, _ = kept.adopt(Snapshot.of([a, b]))
    serial = dict(zip("ab", first.table.serial[first.waiting].tolist(), strict=True))
    first.table.extra("note")[first.waiting] = 7.0
    later, back = kept.adopt(Snapshot.of([b], [replace(a, generated_tokens=1)], now_s=2.0))
    assert later.table.serial[later.waiting].tolist() == [serial["b"]]
    assert later.table.serial[later.running].tolist() == [serial["a"]]
    assert later.table.first_token_s[later.running].tolist() == [2.0]
    assert back[later.running].tolist() == [1]
    assert later.table.extra("note")[later.waiting].tolist() == [7.0]
    again, _ = kept.adopt(Snapshot.of([replace(a, generated_tokens=1)], now_s=3.0))
    assert again.table.preemptions[again.waiting].tolist() == [1]
    assert again.table.first_token_s[again.waiting].tolist() == [2.0]
    other, _ = kept.adopt(Snapshot.of([replace(a, prompt_tokens=10), b], now_s=4.0))
    assert set(other.table.serial[other.waiting].tolist()).isdisjoint(serial.values())
    assert other.table.extra("note")[other.waiting].tolist() == [0.0, 0.0]


def test_a_plan_comes_back_in_the_rows_of_the_snapshot() -> None:
    """Also where the kept table has other rows by now."""

    class Backwards(Policy):
        name = "backwards"

        def plan(self, snapshot: Snapshot) -> Plan:
            return Plan(
                snapshot=snapshot, policy=self.name, order=snapshot.waiting[::-1], hold=snapshot.waiting[:1],
                running_order=snapshot.running[::-1],
            )  # fmt: skip

    queue = [
        Request(request_id=str(i), prompt_tokens=9, forecast=LengthForecast.point(5), arrival_s=float(i))
        for i in range(6)
    ]
    mine = Backwards()
    for gone in range(4):
        plan = mine.plan(Snapshot.of(queue[gone:5], queue[5:], now_s=9.0))
        plan.check()
        assert plan.order.tolist() == list(range(5 - gone))[::-1]
        assert plan.hold.tolist() == [0]
        assert plan.request_ids == [str(i) for i in range(4, gone - 1, -1)]
