"""The step-by-step model against the simulator, and what each part of a rule does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched import (
    Engine,
    EngineLimits,
    LengthForecast,
    Request,
    Slo,
    Snapshot,
    StepTimeModel,
    Workload,
    simulate,
)
from slosched.core.arrays import Floats
from slosched.core.forecast import OUTLIVED_GROWTH
from slosched.planner import rollout as r
from slosched.planner.futures import engine_of, gather
from slosched.planner.planner import PlannerParams
from slosched.planner.rules import Leader, family
from slosched.policies.slosched import Slosched

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=2e-5, sequence_s=5e-5, kv_token_s=1e-8)
ENGINE = Engine(limits=EngineLimits(max_num_seqs=16, max_num_batched_tokens=512), step_time=MODEL)


def rule(**parts: float) -> Floats:
    """Earliest first token due first, but for the parts given."""
    plain = {
        "urgency": 1.0, "price": 0.0, "slow": 0.0, "whole": 0.0, "caution": 1.0, "answer": 1.0, "cap": np.inf,
        "spread": 0.0,
    }  # fmt: skip
    return np.array(r.Rule(**(plain | parts)))


def traffic(seed: int, n: int = 60) -> Workload:
    """Requests with limits on the first token and the pace, lengths known."""
    rng = np.random.default_rng(seed)
    output = rng.integers(1, 80, n)
    plain = Workload.plain(np.cumsum(rng.exponential(0.05, n)), rng.integers(1, 900, n), output)
    return replace(
        plain,
        ttft_s=rng.uniform(0.2, 3.0, n),
        tpot_s=rng.uniform(0.02, 0.06, n),
        atoms=np.repeat(output[:, None].astype(np.float64), 8, axis=1),
    )


def future_of(work: Workload) -> Floats:
    """A workload as requests yet to come."""
    jobs = np.zeros((len(work), r.COLUMNS))
    jobs[:, r.RELEASE] = jobs[:, r.ARRIVAL] = work.arrival_s
    jobs[:, r.TODO] = work.prompt_tokens
    jobs[:, r.LEFT] = jobs[:, r.TRUTH] = work.output_tokens
    jobs[:, r.FIRST], jobs[:, r.DRIFT] = np.nan, -1.0
    jobs[:, r.FIRST_DUE], jobs[:, r.E2E_DUE] = work.arrival_s + work.ttft_s, work.arrival_s + work.e2e_s
    jobs[:, r.TPOT], jobs[:, r.WEIGHT] = work.tpot_s, work.weight
    return jobs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parts", [{}, {"spread": 1.0}, {"caution": 3.0}])
def test_a_rollout_is_what_the_simulator_does(seed: int, parts: dict[str, float]) -> None:
    """With lengths known, first tokens come as in the simulator under the same rule, within a few steps."""
    work = traffic(seed)
    policy = Slosched(PlannerParams(comparisons=0.0))
    policy.planner.leader = Leader(rules=rule(**parts)[None, :])
    run = simulate(work, policy, engine=ENGINE)
    jobs, space = future_of(work), r.work_for(len(work))
    engine = engine_of(Snapshot.of([], engine=ENGINE), 1.0)
    value = r.rollout(jobs, 0, 0, engine, rule(**parts), 1e9, space)
    seen, told = run.outcomes.first_token_s, space.jobs[:, r.FIRST]
    waits = np.minimum(1.0, (told - work.arrival_s) / work.ttft_s)
    assert value == pytest.approx(space.met.sum() - r.LATENCY * waits.sum())
    assert np.median(np.abs(seen - told)) < 0.02
    kept = (run.outcomes.ttft_s <= work.ttft_s) & (run.outcomes.tpot_s <= work.tpot_s * (1 + 1e-9))
    assert abs(float(kept.mean()) - float(space.met.mean())) < 0.08


def decided(
    queue: list[Request], running: list[Request], chosen: Floats, engine: Engine = ENGINE
) -> tuple[dict[str, int], Snapshot]:
    """Prompt tokens of the next step by request."""
    snapshot = Snapshot.of(queue, running, now_s=1.0, engine=engine)
    rows = np.concatenate([snapshot.running, snapshot.waiting])
    jobs = gather(snapshot, rows, len(snapshot.running), np.ones(len(rows)))
    space = r.work_for(len(rows))
    count, _ = r.decide(jobs, len(snapshot.running), engine_of(snapshot, 1.0), chosen, space)
    names = [snapshot.table.request_ids[rows[j]] for j in space.chosen[:count]]
    return dict(zip(names, space.tokens[:count].astype(int).tolist(), strict=True)), snapshot


def request(name: str, prompt: int = 100, output: int = 50, **more: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(output),
        **more,  # type: ignore[arg-type]
    )


def test_the_tightest_pace_bounds_the_step() -> None:
    """Beside an answer with a tight pace a step holds few prompt tokens, without one the whole budget."""
    paced = request("a", generated_tokens=1, arrival_s=0.99, slo=Slo(tpot_s=0.0135))
    free = request("a", generated_tokens=1, arrival_s=0.99)
    long = [request("long", prompt=4000, arrival_s=0.5)]
    tight, _ = decided(long, [paced], rule())
    loose, _ = decided(long, [free], rule())
    assert 16 <= tight["long"] < 150
    assert loose["long"] == ENGINE.limits.max_num_batched_tokens - 1


def test_the_least_is_a_count_of_tokens_not_a_share_of_the_budget() -> None:
    """A larger token budget puts no more prompt into a step that a tight pace bounds."""
    light = replace(ENGINE, step_time=replace(MODEL, kv_token_s=0.0))
    paced = request("a", generated_tokens=1, arrival_s=0.99, slo=Slo(tpot_s=0.0115))
    long = [request("long", prompt=40_000, arrival_s=0.5)]
    found = [
        decided(long, [paced], rule(), light.with_limits(max_num_batched_tokens=budget))[0]["long"]
        for budget in (512, 8192)
    ]
    assert found == [16, 16]


def test_first_tokens_due_bound_the_step() -> None:
    """Nobody joins a step that would make another's first token late."""
    queue = [
        request("due", prompt=200, arrival_s=1.0, slo=Slo(ttft_s=0.016)),
        request("later", prompt=300, arrival_s=1.0, slo=Slo(ttft_s=5.0)),
    ]
    tokens, _ = decided(queue, [], rule())
    assert tokens["due"] == 200
    assert tokens.get("later", 0) <= 100


def test_lost_requests_are_parked_behind_all_others() -> None:
    """A request whose limit is lost goes only where nobody else waits."""
    lost = request("lost", arrival_s=0.0, slo=Slo(ttft_s=0.5))
    fine = request("fine", prompt=500, arrival_s=0.9, slo=Slo(ttft_s=5.0))
    both, snapshot = decided([lost, fine], [], rule())
    assert "lost" not in both
    assert "lost" in decided([lost], [], rule())[0]
    plan = Slosched(PlannerParams(comparisons=0.0)).plan(snapshot)
    assert plan.request_ids == ["fine", "lost"]


def test_a_newcomer_that_breaks_the_pace_is_held() -> None:
    """Nobody enters whose decoding alone would break the tightest pace; beside a looser one he does."""
    model = StepTimeModel(base_s=0.01, prefill_token_s=1e-6, sequence_s=2e-3)
    engine = Engine(limits=EngineLimits(max_num_seqs=16), step_time=model)
    queue = [request("new", prompt=10, arrival_s=1.0, slo=Slo(ttft_s=5.0))]
    for tpot_s, enters in ((0.0185, False), (0.04, True)):
        running = [
            request(str(i), generated_tokens=1, arrival_s=0.99, slo=Slo(tpot_s=tpot_s)) for i in range(3)
        ]
        assert ("new" in decided(queue, running, rule(), engine)[0]) == enters


def test_a_step_without_a_prompt_holds_a_long_queue_whole() -> None:
    """Beyond the head that is planned with, nobody slips in either."""
    model = StepTimeModel(base_s=0.01, prefill_token_s=1e-6, sequence_s=2e-3)
    engine = Engine(limits=EngineLimits(max_num_seqs=16), step_time=model)
    running = [request(str(i), generated_tokens=1, arrival_s=0.99, slo=Slo(tpot_s=0.0185)) for i in range(3)]
    queue = [request(f"w{i}", prompt=10, arrival_s=1.0, slo=Slo(ttft_s=5.0)) for i in range(700)]
    plan = Slosched(PlannerParams(comparisons=0.0)).plan(
        Snapshot.of(queue, running, now_s=1.0, engine=engine)
    )
    assert len(plan.hold) == 700


def test_a_step_holds_at_most_the_cap() -> None:
    """A rule may ask for small steps though no pace does."""
    queue = [request("p", prompt=400, arrival_s=1.0, slo=Slo(ttft_s=5.0))]
    assert decided(queue, [], rule())[0]["p"] == 400
    assert decided(queue, [], rule(cap=128.0))[0]["p"] == 128


def test_a_cap_at_the_knee_holds_the_tokens_that_are_cheap() -> None:
    """Answers take theirs first; an engine without a knee has no such cap."""
    queue = [request("p", prompt=400, arrival_s=1.0, slo=Slo(ttft_s=5.0))]
    running = [request(str(i), generated_tokens=1, arrival_s=0.99) for i in range(4)]
    knee = replace(ENGINE, step_time=replace(MODEL, knee_tokens=100, knee_token_s=1e-5))
    assert decided(queue, running, rule(cap=r.TO_THE_KNEE), knee)[0]["p"] == 96
    assert decided(queue, running, rule(cap=r.TO_THE_KNEE))[0]["p"] == 400


def test_the_pace_of_now_tells_who_is_lost() -> None:
    """Alone the answer would be in time; beside a crowd that makes steps three times as long it would not."""
    model = StepTimeModel(base_s=0.01, sequence_s=2e-3)
    one = request("one", output=100, arrival_s=0.0, slo=Slo(e2e_s=3.0))
    crowd = [request(str(i), generated_tokens=1, arrival_s=0.9) for i in range(12)]
    for running, parked in (([], False), (crowd, True)):
        snapshot = Snapshot.of([one], running, now_s=1.0, engine=replace(ENGINE, step_time=model))
        jobs = gather(snapshot, snapshot.waiting, 0, np.ones(1))
        keys = r.ranks(jobs, engine_of(snapshot, 1.0), rule(slow=r.AS_NOW))
        assert (keys[0] >= r.PARKED / 2) == parked


def test_urgency_by_the_limit_or_by_the_latest_start() -> None:
    """A long answer due later starts first by the one, and later by the other."""
    long = request("long", prompt=10, output=200, arrival_s=0.0, slo=Slo(e2e_s=10.0))
    short = request("short", prompt=10, output=5, arrival_s=0.0, slo=Slo(e2e_s=9.5))
    snapshot = Snapshot.of([long, short], now_s=1.0, engine=ENGINE)
    jobs, engine = gather(snapshot, snapshot.waiting, 0, np.ones(2)), engine_of(snapshot, 1.0)
    names = [snapshot.table.request_ids[row] for row in snapshot.waiting]
    first = [names[int(np.argmin(r.ranks(jobs, engine, rule(urgency=u))))] for u in (1.0, 2.0)]
    assert first == ["long", "short"]


def test_beliefs_drift_in_the_model_as_in_the_engine() -> None:
    """What is believed to come, as an answer goes on: from a wide forecast, a sure one, and one outlived."""
    assert r.GROWTH == OUTLIVED_GROWTH
    wide = LengthForecast.quantiles({0.1: 20, 0.5: 100, 0.9: 600})
    for forecast, tokens, error in (
        (wide, 100, 0.25), (LengthForecast.point(50), 30, 0.0), (LengthForecast.point(50), 80, 0.0)
    ):  # fmt: skip
        left = []
        for made in (1, 1 + tokens):
            one = Request(
                request_id="a", prompt_tokens=10, forecast=forecast, generated_tokens=made, arrival_s=0.0
            )
            snapshot = Snapshot.of([], [one], now_s=1.0, engine=ENGINE)
            jobs = gather(snapshot, snapshot.running, 1, np.ones(1))
            left.append(jobs)
        jobs = left[0]
        jobs[0, r.TRUTH] = 1000.0
        for _ in range(tokens):
            getattr(r._advance, "py_func", r._advance)(jobs, 0, 1.0)  # compiled or not
        assert jobs[0, r.LEFT] == pytest.approx(left[1][0, r.LEFT], rel=max(error, 0.02))


@pytest.mark.parametrize(("slow", "parked"), [(0.5, False), (1.0, False), (2.0, True)])
def test_an_answer_that_would_end_too_late_is_parked(slow: float, parked: bool) -> None:
    """`slow` is a factor on the time that the answer takes alone: about 1 s here, and 1.5 s are left."""
    one = request("one", output=100, arrival_s=0.0, slo=Slo(e2e_s=2.5))
    snapshot = Snapshot.of([one], [], now_s=1.0, engine=ENGINE)
    jobs = gather(snapshot, snapshot.waiting, 0, np.ones(len(snapshot.waiting)))
    keys = r.ranks(jobs, engine_of(snapshot, 1.0), rule(slow=slow))
    assert (keys[0] >= r.PARKED / 2) == parked


def test_rules_of_the_family_differ() -> None:
    """No rule is there twice."""
    rules = family()
    assert len(np.unique(rules, axis=0)) == len(rules)
