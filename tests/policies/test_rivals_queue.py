"""Rules of other schedulers and gateways for the waiting queue, each by hand on small queues."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.policies import policy
from slosched.policies.rivals.gateways import AibrixSlo
from slosched.policies.rivals.past_future import PastFuture
from slosched.policies.rivals.sglang import HrrnSglang
from slosched.policies.rivals.tie import Tie
from slosched.policies.rivals.uniboost import boost_s
from slosched.simulator import simulate
from slosched.workloads.prefix import shared_prefix

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)


def request(name: str, prompt: int = 10, output: float = 10, **fields: object) -> Request:
    return Request(
        request_id=name, prompt_tokens=prompt, forecast=LengthForecast.point(output),
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def queue_of(waiting: list[Request], now_s: float = 1.0, limits: EngineLimits | None = None) -> Snapshot:
    return Snapshot.of(waiting, now_s=now_s, engine=Engine(limits=limits or EngineLimits(), step_time=MODEL))


def test_wspt_by_hand() -> None:
    """Service .11 s at weight 1, .55 s at weight 10 and 1.1 s at weight 15; no weight is last."""
    queue = [
        request("nothing", output=1, weight=0.0),
        request("short", output=10, weight=1.0),  # .11
        request("middle", output=50, weight=10.0),  # .055
        request("long", output=100, weight=15.0),  # .073
    ]
    assert policy("wspt").plan(queue_of(queue)).request_ids == ["middle", "long", "short", "nothing"]


def test_tie_by_hand() -> None:
    """Mean plus beta times the longest length, decayed by .9 every 30 s; beta grows with the queue."""
    spread = LengthForecast((10.0,) * 7 + (810.0,))  # mean 110
    queue = [
        Request(request_id="unsure", prompt_tokens=10, forecast=spread, arrival_s=100.0),
        request("sure", output=150, arrival_s=100.0),
        request("old", output=200, arrival_s=10.0),
    ]
    snapshot = queue_of(queue, now_s=100.0)
    rows = np.arange(3)
    expected = [110 + 0.1 * 810, 1.1 * 150, 1.1 * 200 * 0.9**3]
    assert Tie().key(snapshot, rows) == pytest.approx(expected)
    assert Tie().plan(snapshot).request_ids == ["old", "sure", "unsure"]
    crowded = replace(snapshot, engine=snapshot.engine.with_limits(max_num_seqs=1))
    assert Tie().key(crowded, rows)[0] == pytest.approx(110 + 0.3 * 810)
    assert Tie(decay=1.0).plan(snapshot).request_ids == ["sure", "unsure", "old"]


def test_lpm_longest_cached_first() -> None:
    """By cached tokens; of the uncached that begin alike only the first goes with the others."""
    queue = [request(name, prompt=900, arrival_s=0.1 * i) for i, name in enumerate("abcdefg")]
    snapshot = queue_of(queue)
    t = snapshot.table
    t.cached_tokens[:7] = [0, 512, 32, 512, 0, 64, 0]
    t.prefix_index[:7] = [5, 5, 5, -1, 6, 6, -1]
    # c follows a; e is the first uncached of its prefix; g's prompt is not known.
    assert policy("lpm").plan(snapshot).request_ids == list("bdfaegc")
    assert policy("lpm", most_sorted=6).plan(snapshot).request_ids == list("abcdefg")


def test_lpm_finds_more_in_the_cache() -> None:
    """Where sessions come together and the cache is small, LPM computes less than FCFS."""
    rng = np.random.default_rng(1)
    n = 120
    session = rng.integers(0, 12, size=n)
    prompt = 400 + 16 * np.arange(n) % 160
    work = Workload.plain(
        np.sort(rng.random(n) * 4), prompt, np.full(n, 20), prefix=shared_prefix(session, prompt, prompt, 16)
    )
    limits = EngineLimits(max_num_seqs=4, kv_blocks=200, prefix_cache=True)
    cached = {
        name: int(
            simulate(work, name, engine=Engine(limits=limits, step_time=MODEL)).outcomes.cached_tokens.sum()
        )
        for name in ("lpm", "fcfs")
    }
    assert cached["lpm"] > 1.1 * cached["fcfs"]


def test_hrrn_sglang_counts_prefilled_tokens() -> None:
    """Waiting is measured in what the engine prefilled since the request came, not in seconds."""
    queue = [request("long", prompt=1000, arrival_s=0.1), request("short", prompt=100, arrival_s=0.2)]
    run = request("run", prompt=5000, arrival_s=0.0)
    snapshot = Snapshot.of(queue, [run], now_s=1.0, engine=Engine(step_time=MODEL))
    t = snapshot.table
    t.detached = False  # one table over all plans, as an engine has
    t.computed_tokens[2] = 0
    first = replace(snapshot, waiting=snapshot.waiting[:1])
    hrrn = HrrnSglang()
    hrrn.plan(first)
    t.served_tokens[2] = 2000
    assert hrrn.plan(snapshot).request_ids == ["long", "short"]  # 2000 / 1000 and 0 / 100
    assert hrrn.plan(replace(snapshot, now_s=500.0)).request_ids == ["long", "short"]  # time alone: nothing
    t.served_tokens[2] = 2300
    assert hrrn.plan(snapshot).request_ids == ["short", "long"]  # 2300 / 1000 and 300 / 100
    t.cached_tokens[0] = 900
    assert hrrn.plan(snapshot).request_ids == ["long", "short"]  # 2300 / 100
    t.generated_tokens[2] = 301  # 300 of the tokens were decodes: 2000 prefilled, 0 since "short" came
    assert hrrn.key(snapshot, np.array([1])).tolist() == [-3.0]
    hrrn.plan(snapshot)
    assert hrrn.key(snapshot, np.array([1])).tolist() == [0.0]
    assert policy("hrrn-sglang", most_sorted=1).plan(snapshot).request_ids == ["long", "short"]


def test_uniboost_sglang_is_a_boosted_arrival() -> None:
    """A - b(64 us per uncached prompt token): short prompts overtake by at most their boost."""
    queue = [
        request("long", prompt=8000, arrival_s=0.0),
        request("short", prompt=20, arrival_s=0.3),
        request("late", prompt=20, arrival_s=0.9),
    ]
    snapshot = queue_of(queue)
    one = policy("uniboost-sglang", gamma=10.0)
    work = 64e-6 * np.array([8000, 20, 20])
    assert boost_s(work, 10.0) == pytest.approx([0.0006, 0.4366, 0.4366], abs=1e-3)
    assert one.plan(snapshot).request_ids == ["short", "long", "late"]
    assert policy("uniboost-sglang", gamma=1.0).plan(snapshot).request_ids == ["short", "late", "long"]
    snapshot.table.cached_tokens[0] = 7999
    assert one.plan(snapshot).request_ids == ["long", "short", "late"]


def test_past_future_peak_by_hand() -> None:
    """Peak of used + k times to come over the first k by what is to come; the first misfit stops the line."""
    running = [request("r", prompt=100, generated_tokens=50)]
    queue = [request(name, prompt=prompt, arrival_s=0.1) for name, prompt in (("a", 60), ("b", 10), ("c", 1))]
    # r: 150 used, 49 to come; a: 60 used, 99 to come; b: 10 used, 99 to come; c: 1 used, 99 to come.
    # With a: max(60 + 99, 210 + 98) = 308. With b: max(159, 70 + 198, 220 + 147) = 367. With c: 417.
    for blocks, admitted in ((19, 0), (20, 1), (23, 2), (26, 2), (27, 3)):
        limits = EngineLimits(kv_blocks=blocks)
        snapshot = Snapshot.of(queue, running, now_s=1.0, engine=Engine(limits=limits, step_time=MODEL))
        plan = PastFuture(start_tokens=100).plan(snapshot)
        assert plan.hold.tolist() == [0, 1, 2][admitted:], blocks


def test_past_future_learns_lengths() -> None:
    """The average moves by .5, .4, .32 ... towards the lengths of finished answers, 64 at least."""
    one = PastFuture()
    average, factor = 2048.0, 0.5
    for tokens in (100, 3, 500, 80):
        snapshot = queue_of([request("x", generated_tokens=tokens)])
        one.plan(snapshot)
        snapshot.table.serial[0] = -1
        one.plan(replace(snapshot, waiting=snapshot.waiting[:0]))
        average += factor * (max(64, tokens) - average)
        factor *= 0.8
        assert one.average_tokens == pytest.approx(average)


def test_past_future_avoids_preemption() -> None:
    """Where FCFS runs out of memory and preempts, holding in time does so far less often."""
    rng = np.random.default_rng(2)
    n = 150
    work = Workload.plain(np.sort(rng.random(n) * 3), np.full(n, 30), rng.integers(80, 120, size=n))
    limits = EngineLimits(max_num_seqs=64, kv_blocks=160)
    preempted = {
        name: int(
            simulate(work, name, engine=Engine(limits=limits, step_time=MODEL)).outcomes.preemptions.sum()
        )
        for name in ("past-future", "fcfs")
    }
    assert preempted["fcfs"] > 50
    assert preempted["past-future"] < 0.1 * preempted["fcfs"]


def test_aibrix_by_hand() -> None:
    """Most overdue first, those expected to be late refused; by first token and by the whole answer."""
    # A decode step takes .011 s; a prefill of 10 tokens .011 s, one of 2000 tokens .21 s.
    queue = [
        request("ttft", prompt=2000, arrival_s=0.9, slo=Slo(ttft_s=0.5)),  # .1 + .21 - .5 = -.19
        request("e2e", output=50, arrival_s=0.8, slo=Slo(e2e_s=0.8)),  # .2 + .011 + .539 - .8 = -.05
        request("pace", output=50, arrival_s=0.8, slo=Slo(ttft_s=0.5, tpot_s=0.01)),  # .75 - .99 = -.24
        request("late", output=50, arrival_s=0.5, slo=Slo(e2e_s=0.8)),  # +.25
        request("late, begun", output=50, arrival_s=0.5, slo=Slo(e2e_s=0.8), generated_tokens=1),
        request("best effort", arrival_s=0.0),
    ]
    snapshot = queue_of(queue)
    expected = [0.19, 0.05, 0.24, -0.25, -0.2501, np.inf]
    assert AibrixSlo().key(snapshot, np.arange(6)) == pytest.approx(expected, abs=1e-9)
    plan = AibrixSlo().plan(snapshot)
    plan.check()
    assert plan.reject.tolist() == [3]
    assert plan.request_ids == ["late, begun", "e2e", "ttft", "pace", "best effort"]
    plan = AibrixSlo(reject=False).plan(snapshot)
    assert len(plan.reject) == 0
    assert plan.request_ids == ["late, begun", "late", "e2e", "ttft", "pace", "best effort"]


def test_aibrix_learns_lengths_by_prompt() -> None:
    """Answers to prompts of 8 to 15 tokens teach about such prompts only."""
    one = AibrixSlo()
    done = [request("x", prompt=9, generated_tokens=21), request("y", prompt=15, generated_tokens=41)]
    snapshot = queue_of(done)
    one.plan(snapshot)
    snapshot.table.serial[:2] = -1
    one.plan(replace(snapshot, waiting=snapshot.waiting[:0]))
    queue = [request(name, prompt=p, output=101, slo=Slo(e2e_s=5.0)) for name, p in (("a", 8), ("b", 16))]
    overdue = -one.key(queue_of(queue, now_s=0.0), np.arange(2))
    assert overdue == pytest.approx([0.0108 + 30 * 0.011 - 5, 0.0116 + 100 * 0.011 - 5])


def test_llmd_orders_inside_flows() -> None:
    """Earliest TTFT deadline inside a flow, far future without one; flows take turns."""
    queue = [
        request("a1", arrival_s=0.0, slo=Slo(ttft_s=5.0), tenant="a"),
        request("a2", arrival_s=0.1, slo=Slo(ttft_s=1.0), tenant="a"),
        request("a3", arrival_s=0.2, slo=Slo(e2e_s=0.1), tenant="a"),
        request("b1", arrival_s=0.3, slo=Slo(ttft_s=9.0), tenant="b"),
        request("b2", arrival_s=0.4, slo=Slo(ttft_s=8.0), tenant="b"),
    ]
    snapshot = queue_of(queue)
    one = policy("llm-d-deadline")
    assert one.plan(snapshot).request_ids == ["a2", "b2", "a1", "b1", "a3"]
    # a2 has entered: the next turn is b's.
    left = snapshot.waiting[snapshot.waiting != 1]
    assert one.plan(replace(snapshot, waiting=left)).request_ids == ["b2", "a1", "b1", "a3"]
    left = left[left != 4]
    assert one.plan(replace(snapshot, waiting=left)).request_ids == ["a1", "b1", "a3"]


def test_llmd_is_edf_on_ttft_in_one_flow() -> None:
    """With one tenant the order is that of TTFT deadlines."""
    rng = np.random.default_rng(0)
    queue = [request(str(i), arrival_s=0.0, slo=Slo(ttft_s=float(s))) for i, s in enumerate(rng.random(20))]
    snapshot = queue_of(queue)
    order = policy("llm-d-deadline").plan(snapshot).order
    assert order.tolist() == np.argsort(snapshot.table.ttft_s[:20]).tolist()
