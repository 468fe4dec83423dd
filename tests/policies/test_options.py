"""Options of our own policy: hopeless requests, tenants, programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import PrefixBlocks, Workload
from slosched.policies import PolicySpec, policy
from slosched.policies.hopeless import best_chance, patient, refused
from slosched.policies.programs import ProgramDeadlines
from slosched.policies.tenants import TenantShares
from slosched.simulator import simulate

OPTIONS: list[dict[str, Any]] = [
    {"hopeless": "keep"},
    {"hopeless": "reject"},
    {"fairness": 2.0},
    {"programs": True},
    {"hopeless": "reject", "fairness": 1.0, "programs": True},
]
ENGINE = EngineLimits(max_num_seqs=4, max_num_batched_tokens=256, kv_blocks=400)
STEPS = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-4)


def request(name: str, slo: Slo, **other: Any) -> Request:
    """A hundred tokens of prompt, ten of answer."""
    values: dict[str, Any] = {"prompt_tokens": 100, "forecast": LengthForecast.point(10)} | other
    return Request(request_id=name, slo=slo, **values)


def load(seed: int, n: int = 60, rate: float = 12.0) -> Workload:
    """More than the engine can do, every third request best-effort, two tenants."""
    rng = np.random.default_rng(seed)
    plain = Workload.plain(
        np.cumsum(rng.exponential(1 / rate, n)), rng.integers(50, 900, n), rng.integers(2, 80, n)
    )
    return replace(
        plain,
        ttft_s=np.where(np.arange(n) % 3 == 1, 0.5, np.inf),
        e2e_s=np.where(np.arange(n) % 3 == 2, 1.5, np.inf),
        tenants=("loud", "quiet"),
        tenant_index=(np.arange(n) % 6 == 5).astype(np.int64),
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_plans_are_lawful_and_deterministic(
    options: dict[str, Any], random_snapshot: Callable[..., Snapshot]
) -> None:
    for seed in range(20):
        plans = [policy("slosched", **options).plan(random_snapshot(seed)) for _ in range(2)]
        plans[0].check()
        everyone = [*plans[0].sequence.tolist(), *plans[0].reject.tolist()]
        assert sorted(everyone) == sorted(plans[0].snapshot.waiting.tolist())
        assert plans[0].sequence.tolist() == plans[1].sequence.tolist()


@pytest.mark.parametrize("options", OPTIONS)
def test_the_table_is_left_alone(options: dict[str, Any], random_snapshot: Callable[..., Snapshot]) -> None:
    snapshot, before = random_snapshot(11, waiting=15), random_snapshot(11, waiting=15)
    policy("slosched", **options).plan(snapshot)
    for column in ("weight", "ttft_s", "tpot_s", "e2e_s"):
        assert np.array_equal(getattr(snapshot.table, column), getattr(before.table, column))


@pytest.mark.parametrize("options", OPTIONS)
def test_everybody_finishes_but_the_refused(options: dict[str, Any]) -> None:
    work = load(1)
    run = simulate(work, policy("slosched", **options), engine=Engine(limits=ENGINE, step_time=STEPS))
    assert run.outcomes.rejected is not None
    assert (run.outcomes.finished | run.outcomes.rejected).all()
    if options.get("hopeless") != "reject":
        assert not run.outcomes.rejected.any()


def test_only_promises_that_cannot_be_kept_are_refused() -> None:
    work = load(2, rate=30.0)
    run = simulate(work, policy("slosched", hopeless="reject"), engine=Engine(limits=ENGINE, step_time=STEPS))
    assert run.outcomes.rejected is not None
    assert run.outcomes.rejected.any()
    best_effort = np.isinf(work.ttft_s) & np.isinf(work.e2e_s)
    assert not run.outcomes.rejected[best_effort].any()
    # Refused means no token at all: nobody is cut off within an answer.
    assert np.isnan(run.outcomes.first_token_s[run.outcomes.rejected]).all()


def test_the_whole_distribution_counts() -> None:
    spread = LengthForecast.quantiles({0.1: 5, 0.9: 2000})
    queue = [
        request("long", Slo(e2e_s=1.0), forecast=LengthForecast.point(2000)),
        request("perhaps", Slo(e2e_s=1.0), forecast=spread),
        request("free", Slo(), forecast=LengthForecast.point(10**6)),
        request("fast", Slo(tpot_s=1e-4)),
        request("one token", Slo(tpot_s=1e-4), forecast=LengthForecast.point(1)),
        request("begun", Slo(e2e_s=1e-3), generated_tokens=3),
    ]
    snapshot = Snapshot.of(queue, engine=Engine(step_time=STEPS))
    chance = best_chance(snapshot, np.arange(5))
    assert chance[[0, 2, 3, 4]].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert 0.25 <= chance[1] <= 0.75
    assert refused(snapshot, snapshot.waiting, 0.05).tolist() == [0, 3]
    assert refused(snapshot, snapshot.waiting, 1.0).tolist() == [0, 1, 3]


def test_a_lost_prompt_that_has_begun_is_preempted_and_then_refused() -> None:
    """Two seconds of prompt, due after one: it is in the engine from the start, and out when that is sure."""
    work = Workload.plain(np.array([0.0, 0.1]), np.array([4000, 4000]), np.array([5, 5]))
    work = replace(work, ttft_s=np.array([1.1, 1.0]), e2e_s=np.array([np.inf, np.inf]))
    run = simulate(work, policy("slosched", hopeless="reject"), engine=Engine(limits=ENGINE, step_time=STEPS))
    assert run.outcomes.rejected is not None
    assert run.outcomes.met.sum() == 1
    assert run.outcomes.rejected.sum() == 1


def test_best_chance_is_reached_by_an_idle_engine() -> None:
    for limit in (0.15, 0.18, 0.21, 0.3):
        one = Workload.plain(np.zeros(1), np.array([300]), np.array([11]))
        work = replace(one, e2e_s=np.array([limit]))
        run = simulate(work, "fcfs", engine=Engine(limits=ENGINE, step_time=STEPS))
        queue = [request("a", Slo(e2e_s=limit), prompt_tokens=300, forecast=LengthForecast.point(11))]
        snapshot = Snapshot.of(queue, engine=Engine(limits=ENGINE, step_time=STEPS))
        assert best_chance(snapshot, np.arange(1))[0] == float(run.outcomes.met[0])


def exact(**limits: float) -> Snapshot:
    """One request of 100 prompt and 10 answer tokens that came two seconds ago; steps of 2**-6 s."""
    steps = StepTimeModel(base_s=2.0**-6, prefill_token_s=0.0)
    queue = [request("a", Slo(**limits)), request("b", Slo(**limits), forecast=LengthForecast.point(1))]
    return Snapshot.of(queue, now_s=2.0, engine=Engine(step_time=steps))


STEP_S = 2.0**-6


@pytest.mark.parametrize(
    ("kind", "long_s", "short_s"),
    [
        ("ttft_s", 2.0 + STEP_S, 2.0 + STEP_S),  # waited, and one step of prompt
        ("e2e_s", 2.0 + 10 * STEP_S, 2.0 + STEP_S),  # nine more tokens, or none
        ("tpot_s", STEP_S, 0.0),  # one token has no pace
    ],
)
def test_the_best_chance_holds_to_the_instant(kind: str, long_s: float, short_s: float) -> None:
    """At equality a limit can be kept, below it not; what was waited counts."""
    rows = np.arange(2)
    for place, edge_s in ((0, long_s), (1, short_s)):
        if edge_s > 0:
            assert best_chance(exact(**{kind: edge_s}), rows)[place] == 1.0
            assert best_chance(exact(**{kind: edge_s * (1 - 1e-9)}), rows)[place] == 0.0
    assert best_chance(exact(tpot_s=1e-6), rows).tolist() == [0.0, 1.0]


def test_memory_read_slows_an_answer_down() -> None:
    """A token's time has all three parts of a decode step: constant, by sequence, by context."""
    steps = StepTimeModel(base_s=0.5, prefill_token_s=0.0, sequence_s=0.25, kv_token_s=0.0025)
    engine = Engine(step_time=steps)
    for limit_s, chance in ((1.0, 1.0), (0.999, 0.0)):
        queue = [request("a", Slo(tpot_s=limit_s))]
        assert best_chance(Snapshot.of(queue, engine=engine), np.arange(1)).tolist() == [chance]


def test_a_chance_just_enough_is_no_refusal() -> None:
    """Below the least chance is refused, at it not; a limit of any one kind is a promise."""
    half = LengthForecast.quantiles({0.1: 10, 0.9: 1000})
    queue = [request("a", Slo(e2e_s=0.8), forecast=half)]
    snapshot = Snapshot.of(queue)
    chance = float(best_chance(snapshot, np.arange(1))[0])
    assert 0 < chance < 1
    assert refused(snapshot, snapshot.waiting, chance).tolist() == []
    assert refused(snapshot, snapshot.waiting, np.nextafter(chance, 1)).tolist() == [0]
    tight = [request(str(i), Slo(**{k: 1e-6})) for i, k in enumerate(("ttft_s", "tpot_s", "e2e_s"))]
    snapshot = Snapshot.of([*tight, request("free", Slo())], now_s=1.0)
    assert refused(snapshot, snapshot.waiting, 0.05).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("tokens", "e2e_s"), [(1, 8.0), (4, 4.0)])
def test_patience_is_for_those_who_wait(tokens: int, e2e_s: float) -> None:
    """The TTFT limit of a request with a token orders nobody; its e2e limit counts what is left."""
    steps = StepTimeModel(base_s=0.5, prefill_token_s=0.0)
    begun = request("begun", Slo(ttft_s=0.25, e2e_s=1.0), generated_tokens=tokens)
    waits = request("waits", Slo(ttft_s=0.25, e2e_s=1.0))
    snapshot = Snapshot.of([waits], [begun], engine=Engine(step_time=steps))
    row = int(snapshot.running[0])
    snapshot.table.computed_tokens[row] = 99 + tokens  # its last token is to be computed
    seen = patient(snapshot).table
    assert seen.e2e_s[row] == e2e_s  # nine tokens more take four and a half seconds, six three
    assert seen.ttft_s[row] in (0.25, np.inf)
    assert seen.ttft_s[snapshot.waiting[0]] == 0.5
    assert seen.e2e_s[snapshot.waiting[0]] == 8.0
    assert snapshot.table.e2e_s[row] == 1.0


def test_patience_doubles_a_limit_until_it_can_be_kept() -> None:
    late = [request(str(i), Slo(ttft_s=x, e2e_s=2 * x)) for i, x in enumerate((1.0, 3.0, 100.0))]
    seen = patient(Snapshot.of(late, now_s=3.5, engine=Engine(step_time=STEPS))).table
    assert seen.ttft_s[:3].tolist() == [4.0, 6.0, 100.0]
    assert seen.e2e_s[:3].tolist() == [4.0, 6.0, 200.0]


def test_a_flooding_tenant_weighs_less_and_its_class_does_not() -> None:
    shares = TenantShares(1.0)
    queue = [request(str(i), Slo(ttft_s=1.0), tenant="loud") for i in range(3)]
    queue += [request("q", Slo(ttft_s=1.0), tenant="quiet"), request("o", Slo(), slo_class="other")]
    snapshot = Snapshot.of(queue, engine=Engine(step_time=STEPS))
    assert shares(snapshot) is snapshot  # nobody has had anything yet
    snapshot.table.served_tokens[0], snapshot.table.served_tokens[3] = 900, 100
    weight = shares(snapshot).table.weight[:5]
    assert weight[0] == weight[1] == weight[2]
    assert weight[3] / weight[0] == pytest.approx(0.9 / 0.5)
    assert weight[:4].sum() == pytest.approx(4.0)
    assert weight[4] == 1.0
    # With nine parts of ten due to it, the loud tenant has had what it is due.
    entitled = TenantShares(1.0, {"loud": 9.0})
    assert entitled(snapshot).table.weight[:5].tolist() == [1.0] * 5


def test_counters_fade_and_a_lonely_tenant_gets_all() -> None:
    shares = TenantShares(1.0, window_s=10.0)
    queue = [request("a", Slo(), tenant="loud"), request("b", Slo(), tenant="quiet")]
    snapshot = Snapshot.of(queue, engine=Engine(step_time=STEPS))
    snapshot.table.served_tokens[0] = 1000
    first = shares(snapshot).table.weight[:2]
    later = replace(snapshot, now_s=200.0)
    later.table.served_tokens[1] = 1000
    second = shares(later).table.weight[:2]
    assert first[0] < first[1]
    assert second[0] > second[1]
    alone = replace(later, waiting=later.waiting[1:])
    assert shares(alone).table.weight[1] == 1.0


def test_calls_of_a_program_share_deadline_and_weight() -> None:
    queue = [request(str(i), Slo(e2e_s=10.0), arrival_s=4.0 * i) for i in range(4)]
    snapshot = Snapshot.of(queue, now_s=12.0, engine=Engine(step_time=STEPS))
    snapshot.table.program_index[:4] = [7, 7, -1, 7]
    seen = ProgramDeadlines()(snapshot).table
    # Deadline 10: the second call has 6 seconds of its own, the last one came too late and begins anew.
    assert seen.e2e_s[:4].tolist() == [10.0, 6.0, 10.0, 10.0]
    assert seen.weight[:4].tolist() == pytest.approx([1 / 3, 1 / 3, 1.0, 1 / 3])


@pytest.mark.parametrize("slo", [Slo(e2e_s=1.0), Slo(ttft_s=1.0)])
def test_programs_past_their_deadline_or_without_are_forgotten(slo: Slo) -> None:
    programs = ProgramDeadlines()
    for i in range(30):
        queue = [request(str(k), slo, arrival_s=10.0 * i) for k in range(100)]
        snapshot = Snapshot.of(queue, engine=Engine(step_time=STEPS))
        snapshot.table.program_index[:100] = 100 * i + np.arange(100)
        programs(snapshot)
    assert len(programs._due_s) <= 1124


def test_the_simulator_shows_programs() -> None:
    """Three calls a program, one deadline: the option sees it through the workload's prefixes."""
    rng = np.random.default_rng(0)
    n = 45
    plain = Workload.plain(np.sort(rng.uniform(0, 4, n)), rng.integers(100, 900, n), rng.integers(5, 60, n))
    program = np.arange(n) % 15
    blocks = PrefixBlocks(offsets=np.arange(n + 1), ids=program, block_tokens=16)
    work = replace(plain, e2e_s=np.full(n, 3.0), prefix=blocks)
    run = simulate(work, policy("slosched", programs=True), engine=Engine(limits=ENGINE, step_time=STEPS))
    assert run.outcomes.finished.all()
    other = simulate(work, policy("slosched"), engine=Engine(limits=ENGINE, step_time=STEPS))
    assert not np.array_equal(run.outcomes.finish_s, other.outcomes.finish_s)


def test_options_have_a_contender_syntax() -> None:
    made = PolicySpec.parse("slosched:hopeless=reject,fairness=2,programs=true").make(0)
    assert made.rejects
    with pytest.raises(InputError, match="hopeless must be one of keep, demote, reject"):
        PolicySpec.parse("slosched:hopeless=never")
