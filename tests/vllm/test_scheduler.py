"""The adapter in vLLM's real scheduler: right tokens, its own order where none is asked, no leftovers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import LOOPS, Engine, EngineLimits
from slosched.core.outcome import Run
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy
from slosched.simulator import simulate
from slosched.simulator.engine import StepRecord

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # those of vLLM and PyTorch
]

STEPS = StepTimeModel(
    base_s=0.01, prefill_token_s=2e-5, attention_work_s=8e-10, sequence_s=7e-5, kv_token_s=5e-8
)
LIMITS = EngineLimits(
    max_num_seqs=8, max_num_batched_tokens=256, kv_blocks=60, block_tokens=16, max_model_len=512
)


def _work(seed: int, *, prefix: bool = False, n: int = 60) -> Workload:
    from slosched.testing.chaos import chaos_workload

    rng = np.random.default_rng(seed)
    workload = chaos_workload(n, seed, prefix_cache=prefix)
    names = tuple(f"{i:05d}" for i in range(n))
    return replace(workload, priority=rng.integers(0, 3, n).astype(np.int64), request_ids=names)


def _virtual(workload: Workload, **settings: Any) -> tuple[Run, StepRecord]:
    from slosched.testing.virtual_clock import simulate_vllm

    record: list[StepRecord] = []
    engine = Engine(limits=settings.pop("limits", LIMITS), step_time=STEPS)
    return simulate_vllm(workload, record=record, engine=engine, **settings), record[0]


def _steps(record: StepRecord) -> list[tuple[int, int, int]]:
    from slosched.testing.parity import tokens_by_step

    return tokens_by_step(record)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_chaos_loses_and_corrupts_nothing(asynchronous: bool, depth: int, prefix_cache: bool) -> None:
    """Under random plans, aborts and resets every token is right and every block comes back."""
    from slosched.testing.chaos import run_chaos

    done = run_chaos(100, depth, asynchronous=asynchronous, depth=depth, prefix_cache=prefix_cache)
    assert done["preemptions"] > 50
    assert done["aborted"] > 0


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(("asynchronous", "depth"), [(False, 1), (True, 2), (False, 4)])
def test_fcfs_and_priority_are_those_of_vllm(
    policy: str, prefix: bool, asynchronous: bool, depth: int
) -> None:
    """The same tokens for the same requests in the same steps as vLLM alone."""
    work = _work(3, prefix=prefix)
    settings = {"asynchronous": asynchronous, "depth": depth, "limits": replace(LIMITS, prefix_cache=prefix)}
    ours, steps = _virtual(work, policy=policy, **settings)
    stock, wanted = _virtual(work, stock=policy, **settings)
    assert _steps(steps) == _steps(wanted)
    assert np.array_equal(ours.outcomes.finish_s, stock.outcomes.finish_s)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_simulator_schedules_as_vllm_does(seed: int, policy: str) -> None:
    """Step by step, request by request, token by token, to the picosecond."""
    from slosched.testing.parity import differences

    work, engine = _parity_case(seed, 1)
    assert differences(work, engine, policy) == []


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_prompts_pause_in_the_simulator_as_in_vllm(seed: int, policy: str) -> None:
    """`prefill_schedule_interval` without data parallel, which vLLM has since 0.33; and it matters."""
    from slosched.testing.harness import installed_loop
    from slosched.testing.parity import differences

    if installed_loop() == LOOPS[0]:
        pytest.skip("the installed vLLM has the interval with data parallel only: 0.33 is wanted")
    work, engine = _parity_case(seed, 2 + seed)
    assert differences(work, engine, policy) == []
    logs: list[StepRecord] = []
    for one in (engine, _parity_case(seed, 1)[1]):
        simulate(work, policy, engine=one, record=logs)
    assert _steps(logs[0]) != _steps(logs[1])


def _parity_case(seed: int, interval: int) -> tuple[Workload, Engine]:
    """A workload, and an engine with the loop of the installed vLLM."""
    from slosched.testing.harness import installed_loop

    limits = replace(
        LIMITS, prefix_cache=bool(seed % 2), long_prefill_token_threshold=48 * (seed % 3 == 0),
        loop=installed_loop(), prefill_schedule_interval=interval,
    )  # fmt: skip
    return _work(seed, prefix=bool(seed % 2)), Engine(limits=limits, step_time=STEPS)


@pytest.mark.parametrize("policy", ["fcfs", "priority", "sjf", "edf", "srpt"])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_turns_of_sessions_are_sent_after_answers(policy: str, prefix_cache: bool) -> None:
    """In a closed loop both engines send every turn at the same picosecond, and go on alike."""
    work = _work(7, prefix=prefix_cache)
    rng = np.random.default_rng(7)
    think = rng.choice([0.0, 0.05, 0.5], len(work))
    work = replace(work, session=rng.integers(-1, 6, len(work)), think_s=think)
    limits = replace(LIMITS, prefix_cache=prefix_cache)
    real, _ = _virtual(work, policy=policy, limits=limits)
    model = simulate(work, policy, engine=Engine(limits=limits, step_time=STEPS))
    turns = work.previous >= 0
    assert turns.sum() > len(work) // 2
    assert np.array_equal(real.outcomes.arrival_s, model.outcomes.arrival_s)
    assert not np.array_equal(real.outcomes.arrival_s[turns], work.arrival_s[turns])
    assert np.array_equal(real.outcomes.finish_s, model.outcomes.finish_s)


def test_a_policy_that_preempts_agrees_with_the_simulator() -> None:
    """Plans made at each step lead to the same outcome in both engines."""
    work = _work(5)
    real, _ = _virtual(work, policy="srpt")
    model = simulate(work, "srpt", engine=Engine(limits=LIMITS, step_time=STEPS))
    assert real.outcomes.preemptions.sum() > 10
    assert np.array_equal(real.outcomes.finish_s, model.outcomes.finish_s)


class Backwards(KeyPolicy):
    """Last come, first served."""

    name: ClassVar[str] = "backwards"

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        return -snapshot.table.arrival_s[rows]


class Broken(Policy):
    """Does what it is told, wrongly."""

    name: ClassVar[str] = "broken"

    def __init__(self, do: Callable[[Snapshot], Plan]) -> None:
        self.do = do

    def plan(self, snapshot: Snapshot) -> Plan:
        return self.do(snapshot)


def _raise(snapshot: Snapshot) -> Plan:
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    "do",
    [
        _raise,
        lambda s: Plan(snapshot=s, policy="broken", order=np.concatenate([s.waiting, s.waiting])),
        lambda s: Plan(snapshot=s, policy="broken", order=np.array([10**6])),
        lambda s: Plan(snapshot=s, policy="broken", order=s.waiting, hold=s.waiting, preempt=s.waiting),
    ],
)
def test_a_broken_policy_leaves_the_engine_first_come_first_served(do: Callable[[Snapshot], Plan]) -> None:
    """Same steps as vLLM alone, the failures counted, the breaker open."""
    from slosched.testing.virtual_clock import VirtualEngine

    work = _work(1)
    engine = VirtualEngine(work, Engine(limits=LIMITS, step_time=STEPS))
    engine.use_policy(Broken(do))
    while engine.busy:
        engine.advance()
    _, wanted = _virtual(work, stock="fcfs")
    assert _steps(engine.steps_recorded()) == _steps(wanted)
    stats = engine.scheduler.slosched.stats
    assert stats.breaker_open
    assert sum(stats.fallbacks.values()) >= 5


def test_a_policy_that_holds_everybody_is_overruled_when_nothing_runs() -> None:
    """Holding all requests cannot stop the engine."""
    from slosched.testing.virtual_clock import VirtualEngine

    work = _work(2, n=10)
    engine = VirtualEngine(work, Engine(limits=LIMITS, step_time=STEPS))
    engine.use_policy(Broken(lambda s: Plan(snapshot=s, policy="broken", order=s.waiting, hold=s.waiting)))
    engine.run()
    assert np.isfinite(engine.result(0.0).outcomes.finish_s).all()
    assert engine.scheduler.slosched.stats.fallbacks["all-held"] > 0


def test_nobody_waits_for_ever_under_an_unfair_policy() -> None:
    """The starvation guard lets the oldest go first, whatever the policy says."""
    from slosched.integrations.vllm.config import Config, GuardsConfig
    from slosched.testing.virtual_clock import VirtualEngine

    work = _work(4, n=120)
    waits = []
    for max_wait_s in (1e4, 0.5):
        engine = VirtualEngine(work, Engine(limits=LIMITS, step_time=STEPS))
        guards = GuardsConfig(max_wait_s=max_wait_s, starvation_gap_s=0.01)
        engine.use_policy(Backwards(), Config(guards=guards))
        engine.run()
        outcomes = engine.result(0.0).outcomes
        waits.append(float(np.max(outcomes.admitted_s - work.arrival_s)))
    assert waits[1] < 0.7 * waits[0]


def test_who_was_stopped_has_waited_since_then() -> None:
    """An old answer that the policy stops for others is not taken for a starving one at once."""
    from slosched.integrations.vllm.config import Config, GuardsConfig
    from slosched.testing.virtual_clock import VirtualEngine

    arrival_s = np.array([0.0, 3.0])
    work = Workload.plain(arrival_s, np.array([20, 20]), np.array([400, 20]))

    def stop(snapshot: Snapshot) -> Plan:
        """The first answer waits while the second one is there, a third of a second."""
        first, both = snapshot.table.arrival_s == 0.0, len(snapshot.running) + len(snapshot.waiting) == 2
        held, runs = snapshot.waiting[first[snapshot.waiting]], snapshot.running[first[snapshot.running]]
        nobody = snapshot.waiting[:0]
        return Plan(
            snapshot=snapshot, policy="broken", order=snapshot.waiting,
            hold=held if both else nobody, preempt=runs if both else nobody,
        )  # fmt: skip

    engine = VirtualEngine(work, Engine(limits=LIMITS, step_time=STEPS))
    engine.use_policy(Broken(stop), Config(guards=GuardsConfig(max_wait_s=2.0, starvation_gap_s=0.01)))
    engine.run()
    outcomes = engine.result(0.0).outcomes
    assert outcomes.preemptions.tolist() == [1, 0]
    assert engine.scheduler.slosched.stats.starving == 0


def _factory(**settings: Any) -> Any:
    from slosched.integrations.vllm import Scheduler
    from slosched.testing.harness import make_scheduler

    return make_scheduler(LIMITS, factory=Scheduler, **settings)


@pytest.mark.parametrize(("asynchronous", "name"), [(False, "SloScheduler"), (True, "SloAsyncScheduler")])
def test_the_factory_takes_the_class_vllm_would_use(
    monkeypatch: pytest.MonkeyPatch, asynchronous: bool, name: str
) -> None:
    """A plain subclass under asynchronous scheduling would halve the speed."""
    monkeypatch.delenv("SLOSCHED_CONFIG", raising=False)
    scheduler = _factory(asynchronous=asynchronous)
    assert type(scheduler).__name__ == name
    assert scheduler.slosched.capability.level == "full"
    scheduler.shutdown()


def test_malformed_fields_never_disturb_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever clients send, every request is answered and the bad fields are counted."""
    from slosched.testing.harness import STOP, make_request, runner_output

    monkeypatch.delenv("SLOSCHED_CONFIG", raising=False)
    scheduler = _factory()
    extras: list[Any] = [
        None, {}, {"slo_ttft_ms": float("nan")}, {"slo_ttft_ms": -1}, {"slo_class": "x"},
        {"slo_weight": 1e99},
        {"slo_ttft_ms": 500, "slo_tpot_ms": 50}, {"slo_e2e_ms": "soon"}, {"pred_len": [1, 2]},
    ]  # fmt: skip
    for i, extra in enumerate(extras):
        scheduler.add_request(
            make_request(
                str(i), [100 + i] * 20, max_tokens=9, arrival_s=0.0, priority=0, block_tokens=16, extra=extra,
                hashed=False,
            )
        )  # fmt: skip
    for _ in range(50):
        output = scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        scheduler.update_from_output(output, runner_output(ids, [[STOP]] * len(ids)))
        if not scheduler.has_unfinished_requests():
            break
    assert not scheduler.has_unfinished_requests()
    assert scheduler.slosched.stats.malformed == {
        "slo_ttft_ms": 2, "slo_class": 1, "slo_e2e_ms": 1, "predicted_output_tokens": 1
    }  # fmt: skip
    assert scheduler.slosched.ledger.rows == {}
    assert not any(reason.startswith("hook") for reason in scheduler.slosched.stats.fallbacks)
    scheduler.shutdown()


def test_an_unknown_queue_method_means_observe_only() -> None:
    """A vLLM whose queue has changed is left alone."""
    from slosched.integrations.vllm.capability import OBSERVE_ONLY, ORDER_ONLY, probe

    parallel = SimpleNamespace(distributed_executor_backend=None)
    scheduler = SimpleNamespace(waiting=[], running=[], requests={}, finished_req_ids=set(), connector=None)
    queue = SimpleNamespace(__abstractmethods__=frozenset({"steal_request"}))
    config = SimpleNamespace(parallel_config=parallel)
    assert probe(scheduler, config, queue).level == OBSERVE_ONLY
    queue.__abstractmethods__ = frozenset({"pop_request"})
    assert probe(scheduler, config, queue).level == ORDER_ONLY
    parallel.distributed_executor_backend = "external_launcher"
    assert probe(scheduler, config, queue).level == OBSERVE_ONLY


def test_nothing_is_preempted_while_the_engine_is_paused() -> None:
    """A request preempted under a pause could not be drained."""
    from vllm.v1.core.sched.interface import PauseState

    from slosched.testing.chaos import RandomPolicy
    from slosched.testing.virtual_clock import VirtualEngine

    engine = VirtualEngine(_work(7), Engine(limits=LIMITS, step_time=STEPS))
    engine.use_policy(RandomPolicy(7, preempt=1.0))
    for _ in range(40):
        engine.advance()
    stats = engine.scheduler.slosched.stats
    before = stats.preempted
    assert before > 0
    engine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    for _ in range(20):
        engine.advance()
    assert stats.preempted == before
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    engine.run()
