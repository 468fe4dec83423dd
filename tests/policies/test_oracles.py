"""Each policy against its own definition, worked out independently."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.estimate import deadline_s, hopeless, latest_start_s, prefill_s
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.planner import rollout as r
from slosched.planner.futures import engine_of, gather
from slosched.planner.plan import Plan
from slosched.planner.rules import Leader, family
from slosched.policies import policy
from slosched.policies.base import Policy
from slosched.policies.rivals.ltr import Ltr
from slosched.policies.rivals.trail import Trail
from slosched.policies.slosched import Slosched
from slosched.simulator import simulate
from slosched.solvers.solve import solve
from slosched.solvers.static.problem import StaticProblem

RandomSnapshot = Callable[..., Snapshot]
MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)


def request(name: str, prompt: int = 10, output: float = 10, **fields: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(output),
        **fields,  # type: ignore[arg-type]
    )


def first_plan(name: str, queue: list[Request], now_s: float = 0.0) -> list[str]:
    return policy(name).plan(Snapshot.of(queue, now_s=now_s, engine=Engine(step_time=MODEL))).request_ids


def test_fcfs_is_arrival_order(random_snapshot: RandomSnapshot) -> None:
    """First come, first served."""
    for seed in range(10):
        snapshot = random_snapshot(seed)
        arrivals = snapshot.table.arrival_s[policy("fcfs").plan(snapshot).order]
        assert np.all(np.diff(arrivals) >= 0)


def test_priority_then_arrival(random_snapshot: RandomSnapshot) -> None:
    """Lower priority numbers first, then earlier arrivals."""
    for seed in range(10):
        snapshot = random_snapshot(seed)
        t, order = snapshot.table, policy("priority").plan(snapshot).order.tolist()
        assert order == sorted(order, key=lambda r: (t.priority[r], t.arrival_s[r]))


def test_sjf_sorts_by_predicted_service() -> None:
    """A short prompt with a long answer goes behind a long prompt with a short one, by hand."""
    queue = [
        request("a", prompt=10, output=100),  # 10 ms + 1 ms + 99 steps of 11 ms = 1.1 s
        request("b", prompt=2000, output=50),  # 10 ms + 200 ms + 49 x 11 ms = 0.749 s
        request("c", prompt=10, output=50),  # 0.55 s
        request("d", prompt=100, output=60),  # 0.669 s
    ]
    assert first_plan("sjf", queue) == ["c", "d", "b", "a"]


def test_srpt_counts_what_is_done() -> None:
    """A long answer that is nearly done goes before a short one that has not begun."""
    queue = [request("new", output=60), request("old", output=500, generated_tokens=480)]
    assert first_plan("srpt", queue) == ["old", "new"]
    assert first_plan("sjf", queue) == ["new", "old"]


def test_srpt_preempts_only_for_gain() -> None:
    """On a full engine the longest running request gives way to a much shorter one, not to an equal one."""
    limits = EngineLimits(max_num_seqs=1)

    def victims(waiting_output: float) -> list[int]:
        running = [request("run", output=200, generated_tokens=1)]
        queue = [request("wait", output=waiting_output)]
        snapshot = Snapshot.of(queue, running, engine=Engine(limits=limits, step_time=MODEL))
        return [int(row) for row in policy("srpt").plan(snapshot).preempt]

    assert victims(10) == [1]
    assert victims(199) == []


def test_deadlines_by_hand() -> None:
    """What is due next: first token, then the token envelope, the whole answer if that comes sooner."""
    queue = [
        request("ttft", arrival_s=1.0, slo=Slo(ttft_s=2.0, tpot_s=0.1)),
        request("e2e", arrival_s=1.0, slo=Slo(ttft_s=9.0, e2e_s=4.0)),
        request("token", arrival_s=1.0, slo=Slo(ttft_s=2.0, tpot_s=0.1), generated_tokens=5),
        request("no first", arrival_s=1.0, slo=Slo(tpot_s=0.1), generated_tokens=5),
        request("best effort", arrival_s=1.0),
        request("whole", arrival_s=1.0, slo=Slo(tpot_s=0.1, e2e_s=2.0), generated_tokens=90),
    ]
    snapshot = Snapshot.of(queue, now_s=3.0, engine=Engine(step_time=MODEL))
    snapshot.table.first_token_s[3] = 2.5
    snapshot.table.first_token_s[5] = 2.5
    due = deadline_s(snapshot, np.arange(6))
    assert due == pytest.approx([3.0, 5.0, 3.5, 3.0, math.inf, 3.0])


def test_edf_orders_by_deadline(random_snapshot: RandomSnapshot) -> None:
    """Deadlines ascend along the plan, best effort last."""
    for seed in range(20):
        snapshot = random_snapshot(seed)
        due = deadline_s(snapshot, policy("edf").plan(snapshot).order)
        assert np.all(due[:-1] <= due[1:])


def test_least_laxity_orders_by_latest_start() -> None:
    """The request that must start first goes first, though its deadline is later."""
    queue = [
        request("soon", prompt=10, slo=Slo(ttft_s=1.0)),  # latest start 1 - 0.011
        request("long", prompt=5000, slo=Slo(ttft_s=1.2)),  # three steps: 1.2 - 0.53
    ]
    assert first_plan("least-laxity", queue) == ["long", "soon"]
    assert first_plan("edf", queue) == ["soon", "long"]


def test_hrrn_formula() -> None:
    """By descending waiting time over service: 1.1 / 1.10 goes behind 0.6 / 0.55 and before 0.1 / 0.22."""
    queue = [
        request("long", output=100, arrival_s=0.0),
        request("middle", output=50, arrival_s=0.5),
        request("new", output=20, arrival_s=1.0),
    ]
    # A decode step alone takes 11 ms: services 1.1, 0.55 and 0.22 s.
    assert first_plan("hrrn", queue, now_s=1.1) == ["middle", "long", "new"]
    assert first_plan("hrrn", queue, now_s=1.5) == ["new", "middle", "long"]


@pytest.mark.parametrize("name", ["edf+d", "least-laxity+d", "sjf+d", "hrrn+d"])
def test_hopeless_requests_go_last(name: str, random_snapshot: RandomSnapshot) -> None:
    """All who can still be saved go before all who cannot; those by their prefill."""
    mixed = 0
    for seed in range(30):
        snapshot = random_snapshot(seed)
        order = policy(name).plan(snapshot).order
        rows = snapshot.running
        step_s = float(
            snapshot.step_time.predict(
                sequences=max(1, len(rows)), kv_tokens=snapshot.table.computed_tokens[rows].sum()
            )
        )
        lost = hopeless(snapshot, order, step_s)
        mixed += bool(lost.any() and not lost.all())
        assert np.all(lost[:-1] <= lost[1:])
        prefills = prefill_s(snapshot, order[lost])
        assert np.all(prefills[:-1] <= prefills[1:])
        alive = order[~lost].tolist()
        base = policy(name.removesuffix("+d")).plan(snapshot).order.tolist()
        assert alive == [row for row in base if row in alive]
    assert mixed > 10


def test_hopeless_by_hand() -> None:
    """Hopeless: served at once it would still be late, or its first token was late already."""
    queue = [
        request("fine", slo=Slo(ttft_s=1.0)),
        request("late", prompt=2000, slo=Slo(ttft_s=0.2)),  # its prefill alone takes 0.21 s
        request("long", output=100, slo=Slo(e2e_s=1.0)),  # 1.1 s
        request("missed", slo=Slo(ttft_s=0.1), generated_tokens=2),
        request("best effort", prompt=5000, output=900),
    ]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    snapshot.table.first_token_s[3] = 0.11
    assert hopeless(snapshot, np.arange(5), 0.011).tolist() == [False, True, True, True, False]
    assert latest_start_s(snapshot, np.array([0, 4]), 0.011) == pytest.approx([1.0 - 0.011, math.inf])


def test_huang_is_the_solver_on_a_static_queue(random_snapshot: RandomSnapshot) -> None:
    """A queue that is all there is ordered as the published search orders it, and keeps that order."""
    for seed in range(5):
        snapshot = random_snapshot(seed, waiting=12)
        order = policy("huang", seed=seed, max_batch=3).plan(snapshot).order
        problem = StaticProblem.of(snapshot, max_batch=3)
        result = solve(problem, solver="huang-literal", objective="g", seed=seed)
        assert order.tolist() == snapshot.waiting[result.sequence].tolist()


def test_huang_lets_newcomers_wait() -> None:
    """Between searches, the ordered set goes on in its order and newcomers follow by arrival."""
    huang = policy("huang", seed=1)
    queue = [request(f"q{i}", output=10 + 7 * i, arrival_s=0.01 * i) for i in range(6)]
    before = huang.plan(Snapshot.of(queue, now_s=0.1, engine=Engine(step_time=MODEL))).order.tolist()
    snapshot = Snapshot.of(
        [*queue, request("late", output=1, arrival_s=0.2)], now_s=0.3, engine=Engine(step_time=MODEL)
    )
    # The same engine has one table for ever; carry the policy's column over as it would.
    snapshot.table.extra("huang.rank", fill=np.inf)[before] = np.arange(6)
    assert huang.plan(snapshot).order.tolist() == [*before, 6]


def test_ltr_ranks_by_forecast_length() -> None:
    """Shorter forecasts first, whatever the prompt."""
    queue = [request("a", prompt=1, output=30), request("b", prompt=900, output=20)]
    assert first_plan("ltr", queue) == ["b", "a"]


def test_ltr_promotes_the_starved() -> None:
    """After T steps without being scheduled a long request goes before all shorter ones, not sooner."""
    ltr = Ltr(starvation_steps=50, quantum_steps=3)
    queue = [request("long", output=500), request("short", output=5, arrival_s=0.1)]
    limits = EngineLimits(max_num_seqs=1)
    snapshot = Snapshot.of(queue, [request("run", output=1)], engine=Engine(limits=limits, step_time=MODEL))
    for step in range(1, 30):  # the short one has not come yet
        ltr.plan(replace(snapshot, step=step, waiting=snapshot.waiting[:1]))
    for step in range(30, 50):
        assert ltr.plan(replace(snapshot, step=step)).order.tolist() == [1, 0]
    assert ltr.plan(replace(snapshot, step=50)).order.tolist() == [0, 1]


def test_ltr_counts_idle_steps_anew_after_service() -> None:
    """Who has run waits the whole T steps again before it goes first."""
    ltr = Ltr(starvation_steps=50, quantum_steps=3)
    queue = [request("long", output=500), request("short", output=5, arrival_s=0.1)]
    limits = EngineLimits(max_num_seqs=1)
    both = Snapshot.of(queue, [request("run", output=1)], engine=Engine(limits=limits, step_time=MODEL))
    long = both.waiting[:1]
    ltr.plan(replace(both, step=40, waiting=long))
    ltr.plan(replace(both, step=41, waiting=long[:0], running=long))
    ltr.plan(replace(both, step=85, waiting=long))
    # 84 steps of waiting in all, 44 since it ran; the short one has only just come.
    for step in range(86, 91):
        assert ltr.plan(replace(both, step=step)).order.tolist() == [1, 0]
    assert ltr.plan(replace(both, step=91)).order.tolist() == [0, 1]


def test_ltr_preempts_whoever_ranks_behind() -> None:
    """A running request with a longer forecast gives way on a full engine; a shorter one does not."""
    limits = EngineLimits(max_num_seqs=2)
    running = [request("short", output=5, generated_tokens=1), request("long", output=90, generated_tokens=1)]
    snapshot = Snapshot.of(
        [request("wait", output=50)], running, engine=Engine(limits=limits, step_time=MODEL)
    )
    plan = Ltr().plan(snapshot)
    assert [snapshot.table.request_ids[row] for row in plan.preempt.tolist()] == ["long"]
    assert len(Ltr(most_preemptions=0).plan(snapshot).preempt) == 0


class Watched(Policy):
    """Notes at which share of its forecast a running request is preempted."""

    name: ClassVar[str] = "watched"
    preempts: bool = True

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.shares: list[float] = []

    def plan(self, snapshot: Snapshot) -> Plan:
        """Plan of the inner policy."""
        plan = self.inner.plan(snapshot)
        t = snapshot.table
        for row in plan.preempt.tolist():
            self.shares.append(float(t.generated_tokens[row] / t.atoms[row].mean()))
        return plan


@pytest.mark.parametrize(("share", "least"), [(0.0, 0), (0.5, 5), (1.0, 5)])
def test_trail_never_preempts_past_its_cut(share: float, least: int) -> None:
    """A running request is preempted only while younger than C times its forecast; with C = 0 never."""
    rng = np.random.default_rng(4)
    n = 60
    work = Workload.plain(np.arange(n) / n, rng.integers(1, 30, size=n), rng.integers(1, 90, size=n))
    watched = Watched(Trail(preemptible_share=share))
    run = simulate(work, watched, engine=Engine(limits=EngineLimits(max_num_seqs=3), step_time=MODEL))
    assert run.outcomes.finished.all()
    assert len(watched.shares) >= least
    assert all(s < share for s in watched.shares)
    assert share > 0 or run.outcomes.preemptions.sum() == 0


def test_batch_of_one_sjf_minimises_mean_latency() -> None:
    """On an engine that serves one at a time, shortest first beats every other order we have, on the mean."""
    rng = np.random.default_rng(2)
    work = Workload.plain(np.zeros(40), np.full(40, 10), rng.integers(1, 300, size=40))
    limits = EngineLimits(max_num_seqs=1)
    latency = {
        name: float(simulate(work, name, engine=Engine(limits=limits, step_time=MODEL)).outcomes.e2e_s.mean())
        for name in ("sjf", "srpt", "fcfs", "hrrn", "ltr", "edf")
    }
    service = np.sort(0.01 + 10e-4 + (work.output_tokens - 1) * 0.011)
    assert latency["sjf"] == pytest.approx(np.cumsum(service).mean(), rel=1e-9)
    assert latency["sjf"] == min(latency.values())
    assert latency["fcfs"] > 1.2 * latency["sjf"]


def test_deterministic_queue_by_formula() -> None:
    """Equal requests, one at a time, arriving faster than served: the i-th waits i times the difference."""
    service_s, gap_s, n = 0.011 + 4 * 0.011, 0.05, 30
    work = Workload.plain(np.arange(n, dtype=np.float64) * gap_s, np.full(n, 10), np.full(n, 5))
    run = simulate(work, "fcfs", engine=Engine(limits=EngineLimits(max_num_seqs=1), step_time=MODEL))
    expected = service_s + np.arange(n) * (service_s - gap_s)
    assert run.outcomes.e2e_s == pytest.approx(expected, abs=1e-9)


def test_poisson_arrivals_wait_as_in_theory() -> None:
    """With Poisson arrivals and equal service, the mean wait is that of M/D/1 (Pollaczek-Khinchine)."""
    n, load = 40_000, 0.7
    service_s = 0.011 + 4 * 0.011
    gaps = np.random.default_rng(0).exponential(service_s / load, size=n)
    work = Workload.plain(np.cumsum(gaps).astype(np.float64), np.full(n, 10), np.full(n, 5))
    run = simulate(work, "fcfs", engine=Engine(limits=EngineLimits(max_num_seqs=1), step_time=MODEL))
    wait_s = float((run.outcomes.e2e_s - service_s).mean())
    assert wait_s == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.05)


def test_slosched_is_led_by_the_best_rule_of_its_model(random_snapshot: RandomSnapshot) -> None:
    """After many comparisons of one queue no rule of the family keeps more weight than the leader."""
    for seed in range(6):
        snapshot = random_snapshot(seed, waiting=25)
        rows = np.concatenate([snapshot.running, snapshot.waiting])
        jobs = gather(snapshot, rows, len(snapshot.running), np.ones(len(rows)))
        engine, work, until_s = engine_of(snapshot, 8.0), r.work_for(len(rows)), snapshot.now_s + 30.0
        rules = family()
        worth = [
            r.rollout(jobs, len(snapshot.running), len(rows), engine, rule, until_s, work) for rule in rules
        ]
        leader = Leader(seed)
        for turn in range(200):
            tried = leader.candidates()
            leader.learn(tried, np.array([worth[i] for i in tried]) / jobs[:, r.WEIGHT].sum(), 0.01 * turn)
        assert worth[leader.now] >= max(worth) - 0.02 * jobs[:, r.WEIGHT].sum()


def test_slosched_leaves_prefill_alone_without_reason() -> None:
    """Nobody has a TPOT limit and no prompt is longer than a step: no prefill limit."""
    queue = [request(f"q{i}", prompt=100, output=1, slo=Slo(ttft_s=5.0)) for i in range(6)]
    assert Slosched().plan(Snapshot.of(queue, engine=Engine(step_time=MODEL))).prefill_tokens is None
    assert Slosched().plan(Snapshot.of(queue[:1], engine=Engine(step_time=MODEL))).prefill_tokens is None


def test_slosched_paces_prefill_for_running_requests() -> None:
    """A long prompt is computed in small chunks where whole ones would break a running TPOT limit."""
    model = StepTimeModel(base_s=0.01, prefill_token_s=1e-4)
    promise = Slo(tpot_s=0.03, ttft_s=10.0)
    running = [request("run", output=100, generated_tokens=20, slo=promise, arrival_s=-0.6)]
    queue = [request("wait", prompt=30_000, output=1), request("next", output=1)]
    limits = EngineLimits(max_num_batched_tokens=2048)
    snapshot = Snapshot.of(queue, running, now_s=0.0, engine=Engine(limits=limits, step_time=model))
    prefill = Slosched().plan(snapshot).prefill_tokens
    assert prefill is not None
    assert prefill < 1024


@pytest.mark.parametrize("output", [8, 7, 16])
def test_slosched_starves_nobody(output: int) -> None:
    """Hopeless requests overtaken by an endless stream wait for the bound and their turns, no longer."""
    n, bound_s, share = 300, 1.0, 0.3
    service_s = output * 0.011 + 0.001
    arrival = np.concatenate([np.zeros(3), np.arange(n) * service_s * 0.8])
    prompt = np.concatenate([np.full(3, 6000), np.full(n, 10)])
    answers = np.concatenate([np.full(3, 50), np.full(n, output)])
    lost = np.arange(n + 3) < 3
    work = replace(
        Workload.plain(arrival, prompt, answers),
        ttft_s=np.where(lost, 0.001, 3.0),
        weight=np.where(lost, 0.01, 1.0),
    )
    limits = EngineLimits(max_num_seqs=1)
    fresh = Slosched(starvation_s=bound_s, rescue_share=share)
    run = simulate(work, fresh, engine=Engine(limits=limits, step_time=MODEL))
    assert run.outcomes.finished.all()
    waited = np.sort(run.outcomes.admitted_s[:3])
    prefill_s = 3 * 0.01 + 6000 * 1e-4
    turn_s = (prefill_s + 49 * 0.011) / share + service_s  # the pause after one, and a slot to fall free
    served_s = 1.2 * prefill_s + 49 * 0.011
    assert waited[0] > 0.5 * bound_s  # they were overtaken
    for i in range(3):
        assert waited[i] <= bound_s + service_s + i * (turn_s + served_s) + 0.02
