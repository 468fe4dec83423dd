"""Refusing and passing over in vLLM's real scheduler; heads that do not fit; what the prefix cache holds."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine, EngineLimits
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy
from slosched.simulator import simulate

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

STEPS = StepTimeModel(base_s=0.01, prefill_token_s=2e-5, sequence_s=7e-5)
LIMITS = EngineLimits(
    max_num_seqs=8, max_num_batched_tokens=128, kv_blocks=60, block_tokens=16, max_model_len=512
)


class Anything(Policy):
    """Everything a plan may ask for, at random."""

    name: ClassVar[str] = "anything"
    preempts: bool = True
    rejects: bool = True
    skips: ClassVar[bool] = True

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.skipped = 0

    def some(self, rows: Ints, share: float) -> Ints:
        return rows[self.rng.random(len(rows)) < share]

    def plan(self, snapshot: Snapshot) -> Plan:
        rng, order = self.rng, self.rng.permutation(snapshot.waiting)
        skip = self.some(snapshot.running, 0.3) if rng.random() < 0.5 else snapshot.running[:0]
        if rng.random() < 0.05:
            skip = snapshot.running
        self.skipped += len(skip)
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order,
            hold=self.some(order, 0.1),
            reject=self.some(order, 0.02),
            skip=skip,
            preempt=self.some(snapshot.running, 0.05),
            running_order=rng.permutation(snapshot.running) if rng.random() < 0.3 else None,
            prefill_tokens=int(rng.integers(0, 64)) if rng.random() < 0.2 else None,
        )


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_chaos_with_refusals_and_skips(asynchronous: bool, depth: int, prefix_cache: bool) -> None:
    """Every token right, every request answered or refused, every block back."""
    from slosched.testing.chaos import ChaosEngine, chaos_workload

    limits = replace(LIMITS, prefix_cache=prefix_cache)
    work = chaos_workload(120, depth, prefix_cache=prefix_cache)
    engine = ChaosEngine(work, Engine(limits=limits, step_time=STEPS), depth=depth, asynchronous=asynchronous)
    policy = Anything(depth)
    engine.use_policy(policy)
    engine.disturb(depth + 1)
    engine.run()
    engine.scheduler.schedule()
    engine.check_empty()
    stats = engine.scheduler.slosched.stats
    out = engine.result(0.0).outcomes
    assert out.rejected is not None
    assert stats.rejected == out.rejected.sum() > 3
    assert stats.skipped > 100
    assert (out.finished.sum() + out.rejected.sum() + engine.aborted) == len(work)
    assert not (out.finished & out.rejected).any()


class Refuses(Policy):
    """Refuses whoever has a long prompt as soon as he waits."""

    name: ClassVar[str] = "refuses"
    rejects: bool = True

    def plan(self, snapshot: Snapshot) -> Plan:
        rows = snapshot.waiting
        reject = rows[snapshot.table.prompt_tokens[rows] > 100]
        return Plan(snapshot=snapshot, policy=self.name, order=rows, reject=reject)


class TakesTurns(Policy):
    """Half of the running requests in one step, the other half in the next."""

    name: ClassVar[str] = "takes-turns"
    skips: ClassVar[bool] = True

    def plan(self, snapshot: Snapshot) -> Plan:
        running = snapshot.running
        skip = running[snapshot.table.serial[running] % 2 == snapshot.step % 2]
        return Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting, skip=skip)


def _work(n: int = 60, seed: int = 3) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload.plain(
        np.sort(rng.uniform(0, n / 50, n)), rng.integers(1, 200, n), rng.integers(2, 40, n), name="fields"
    )


def test_a_refusing_policy_agrees_with_the_simulator() -> None:
    """The same requests are refused and the others end at the same times in both engines."""
    from slosched.testing.virtual_clock import simulate_vllm

    work = _work()
    real = simulate_vllm(work, Refuses(), engine=Engine(limits=LIMITS, step_time=STEPS)).outcomes
    model = simulate(work, Refuses(), engine=Engine(limits=LIMITS, step_time=STEPS)).outcomes
    assert real.rejected is not None
    assert model.rejected is not None
    assert np.array_equal(real.rejected, work.prompt_tokens > 100)
    assert np.array_equal(real.rejected, model.rejected)
    assert np.array_equal(real.finish_s, model.finish_s, equal_nan=True)


def test_skipping_agrees_with_the_simulator() -> None:
    """With memory to spare, passing over half the batch in turn gives the same steps in both engines."""
    from slosched.testing.virtual_clock import simulate_vllm

    roomy = replace(LIMITS, kv_blocks=400)
    work = _work()
    real = simulate_vllm(work, TakesTurns(), engine=Engine(limits=roomy, step_time=STEPS))
    model = simulate(work, TakesTurns(), engine=Engine(limits=roomy, step_time=STEPS))
    assert real.outcomes.finished.all()
    assert np.array_equal(real.outcomes.finish_s, model.outcomes.finish_s)
    plain = simulate(work, "fcfs", engine=Engine(limits=roomy, step_time=STEPS))
    assert np.nanmean(real.outcomes.tpot_s) > 1.3 * np.nanmean(plain.outcomes.tpot_s)


def _scheduler(policy: Policy, **settings: Any) -> Any:
    from slosched.integrations.vllm.adapter import adapted, attach, base_class
    from slosched.integrations.vllm.clock import VirtualClock
    from slosched.integrations.vllm.config import Config
    from slosched.integrations.vllm.state import Learned
    from slosched.testing.harness import make_scheduler

    limits = settings.pop("limits", LIMITS)
    clock = settings.pop("clock", VirtualClock())
    config = Config.model_validate(settings)

    def factory(vllm_config: Any, **keywords: Any) -> Any:
        scheduler = adapted(base_class(vllm_config))(vllm_config=vllm_config, **keywords)
        attach(scheduler, vllm_config, config, clock, policy, Learned(config.engine))
        return scheduler

    return make_scheduler(limits, factory=factory)


def _add(scheduler: Any, request_id: str, tokens: int, **fields: Any) -> Any:
    from slosched.testing.harness import make_request

    start = fields.pop("start", 1000 * len(request_id))
    keywords = {
        "max_tokens": 50,
        "arrival_s": 0.0,
        "priority": 0,
        "block_tokens": 16,
        "hashed": False,
        **fields,
    }
    request = make_request(request_id, list(range(start, start + tokens)), **keywords)
    scheduler.add_request(request)
    return request


def _step(scheduler: Any, token: int = 100) -> tuple[list[str], dict[int, Any]]:
    from slosched.testing.harness import runner_output

    output = scheduler.schedule()
    ids = list(output.num_scheduled_tokens)
    done = [scheduler.requests[i].num_computed_tokens >= scheduler.requests[i].num_tokens for i in ids]
    outputs = scheduler.update_from_output(output, runner_output(ids, [[token] if d else [] for d in done]))
    return ids, outputs


@pytest.mark.parametrize("allowed", [False, True])
def test_a_refused_client_is_told(allowed: bool) -> None:
    """The output names the request with finish reason abort; without leave in the configuration it runs."""
    scheduler = _scheduler(Refuses(), allow_reject=allowed)
    _add(scheduler, "long", 120)
    _add(scheduler, "short", 20)
    ids, outputs = _step(scheduler)
    ended = {out.request_id: (str(out.finish_reason), out.stop_reason) for out in outputs[0].outputs}
    if allowed:
        assert ids == ["short"]
        assert ended["long"] == ("abort", "rejected by slosched")
        assert "long" not in scheduler.requests
        assert scheduler.slosched.stats.rejected == 1
        assert scheduler.slosched.stats.missed == {}  # nothing was promised
        assert scheduler.slosched.stats.aborted == 0
    else:
        assert "long" in ids
        assert ended.get("long", (None, None))[1] is None
    assert scheduler.slosched.stats.errors == {}


def test_who_is_passed_over_keeps_place_and_slot() -> None:
    """Nobody takes the slot of a request passed over, and the running list keeps its order."""
    scheduler = _scheduler(TakesTurns(), limits=replace(LIMITS, max_num_seqs=4))
    for i in range(6):
        _add(scheduler, f"{i}", 10, start=1000 * i)
    _step(scheduler)
    assert [r.request_id for r in scheduler.running] == ["0", "1", "2", "3"]
    seen = [sorted(_step(scheduler)[0]) for _ in range(4)]
    assert seen == [["0", "2"], ["1", "3"]] * 2 or seen == [["1", "3"], ["0", "2"]] * 2
    assert [r.request_id for r in scheduler.running] == ["0", "1", "2", "3"]
    assert (scheduler.max_num_running_reqs, len(scheduler.waiting)) == (4, 2)


def test_an_error_of_vllm_puts_everybody_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Knobs and running list are as before when schedule() itself raises."""
    scheduler = _scheduler(TakesTurns())
    for i in range(4):
        _add(scheduler, f"{i}", 10, start=1000 * i)
    _step(scheduler)
    before = list(scheduler.running)
    monkeypatch.setattr(scheduler.kv_cache_manager, "allocate_slots", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scheduler.schedule()
    assert scheduler.running == before
    assert scheduler.max_num_running_reqs == LIMITS.max_num_seqs


class ByArrival(KeyPolicy):
    """Arrival order, but asked at every step."""

    name: ClassVar[str] = "by-arrival"

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        return snapshot.table.arrival_s[rows]


@pytest.mark.parametrize("steady", [False, True])
def test_a_head_that_does_not_fit_is_passed_for_a_while(steady: bool) -> None:
    """Smaller requests go first while the time lasts; then the head blocks the queue until it fits."""
    from slosched.integrations.vllm.clock import VirtualClock

    def admitted(bypass_s: float, now_s: float) -> list[str]:
        clock = VirtualClock()
        policy = type("Policy", (ByArrival,), {"steady": steady})()
        small = replace(LIMITS, kv_blocks=12, max_num_batched_tokens=512)
        scheduler = _scheduler(
            policy, limits=small, clock=clock, guards={"bypass_unfit_s": bypass_s, "starvation_gap_s": 3600}
        )
        _add(scheduler, "runs", 100)  # 7 of 12 blocks
        _step(scheduler)
        _add(scheduler, "large", 150, arrival_s=1.0, start=5000)
        _add(scheduler, "small", 20, arrival_s=2.0, start=9000)
        seen = []
        for _ in range(2):
            seen.append([i for i in _step(scheduler)[0] if i != "runs"])
            _add(scheduler, f"small-{len(seen)}", 5, arrival_s=3.0, start=20_000 * len(seen))
            clock.time_s = now_s
        assert scheduler.slosched.stats.errors == {}
        assert (scheduler.slosched.stats.bypassed > 0) == (bypass_s > 0)
        return sorted(i for ids in seen for i in ids)

    assert admitted(0.0, 0.0) == []
    assert admitted(10.0, 1.0) == ["small", "small", "small-1"]
    assert admitted(10.0, 100.0) == ["small", "small"]


def test_peeking_finds_what_vllm_would_find() -> None:
    """Hit lengths of waiting requests equal those of vLLM's own look-up, also after eviction."""
    limits = replace(LIMITS, max_num_seqs=2, prefix_cache=True, kv_blocks=40, max_num_batched_tokens=256)
    scheduler = _scheduler(ByArrival(), limits=limits)
    controller = scheduler.slosched
    assert controller.peek.on
    rng = np.random.default_rng(0)
    compared = hits = 0
    for i in range(120):
        family, own = int(rng.integers(0, 4)), int(rng.integers(0, 60))
        shared = list(range(family * 10_000, family * 10_000 + int(rng.integers(0, 100))))
        prompt = [*shared, *range(10**6 + 1000 * i, 10**6 + 1000 * i + own + 1)]
        from slosched.testing.harness import make_request

        scheduler.add_request(
            make_request(
                str(i), prompt, max_tokens=3, arrival_s=float(i), priority=0, block_tokens=16, hashed=True
            )
        )
        _step(scheduler)
        if i % 3:
            continue
        waiting = controller.queue.line.rows.copy()
        for _ in range(20):
            controller.peek.look([], waiting)
        for row in waiting.tolist():
            request = controller.ledger.requests[row]
            wanted = scheduler.kv_cache_manager.get_computed_blocks(request)[1]
            assert controller.ledger.table.cached_tokens[row] == wanted
            compared += 1
            hits += wanted > 0
    assert compared > 200
    assert hits > 50
    assert controller.stats.errors == {}


def test_peeking_is_off_where_it_would_be_wrong() -> None:
    """No cache, several kinds of blocks, or a look-up of another shape: waiting requests count as unknown."""
    from slosched.integrations.vllm.prefix_hits import supported

    spec = SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=16))

    def scheduler(caching: bool = True, groups: int = 1, look: Any = lambda block_hash, ids: None) -> Any:
        pool = SimpleNamespace(get_cached_block=look)
        return SimpleNamespace(
            kv_cache_manager=SimpleNamespace(enable_caching=caching, block_pool=pool),
            kv_cache_config=SimpleNamespace(kv_cache_groups=[spec] * groups),
            block_size=16,
        )

    assert supported(scheduler())
    assert not supported(scheduler(caching=False))
    assert not supported(scheduler(groups=2))
    assert not supported(scheduler(look=lambda block_hash: None))
    assert not supported(SimpleNamespace())


class EdfMine(Policy):
    """Last come first, by a name that begins as that of another policy does."""

    name: ClassVar[str] = "edf-mine"

    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting[::-1])


def test_behaviour_follows_attributes_and_not_names() -> None:
    """A policy that does not say that it goes by SLOs is asked where there are none, whatever its name."""
    from slosched.testing.virtual_clock import simulate_vllm

    engine = Engine(limits=LIMITS, step_time=STEPS)
    real = simulate_vllm(_work(), EdfMine(), engine=engine).outcomes
    model = simulate(_work(), EdfMine(), engine=engine).outcomes
    fcfs = simulate(_work(), "fcfs", engine=engine).outcomes
    assert np.array_equal(real.finish_s, model.finish_s)
    assert not np.array_equal(real.finish_s, fcfs.finish_s)


def test_a_token_budget_is_kept_in_vllm_too() -> None:
    """`@` is the same engine in the simulator and in vLLM."""
    from slosched.testing.virtual_clock import simulate_vllm

    engine = Engine(limits=LIMITS, step_time=STEPS)
    real = simulate_vllm(_work(), "fcfs@48", engine=engine).outcomes
    model = simulate(_work(), "fcfs@48", engine=engine).outcomes
    plain = simulate(_work(), "fcfs", engine=engine).outcomes
    assert np.array_equal(real.finish_s, model.finish_s)
    assert not np.array_equal(real.finish_s, plain.finish_s)


class LittlePrompt(Policy):
    """Arrival order, one token of prompts a step beside the answers."""

    name: ClassVar[str] = "little-prompt"
    paces: ClassVar[bool] = True

    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting, prefill_tokens=1)


def test_who_waits_for_kv_from_elsewhere_takes_no_answer_its_token() -> None:
    """Requests whose KV a connector is loading have left the queue, but are no prompts of this step."""
    from slosched.testing.chaos import ChaosEngine
    from slosched.testing.chaos_features import RemoteKv

    class Slow(RemoteKv):
        """Everybody's first block is loaded, which takes as long as all else."""

        starved = loading = 0

        def get_num_new_matched_tokens(self, request: Any, computed: int) -> tuple[int | None, bool]:
            late = request.arrival_time > 0.0
            self._wanted[request.request_id] = (late, 0)
            return (16 if late else 0), late

        def reply(self, engine: Any, reply: Any) -> None:
            """Nothing is ever done before everybody else."""

        def scheduled(self, engine: Any, output: Any) -> None:
            running = engine.scheduler.running
            self.loading = max(self.loading, len(engine.scheduler.kv_holding_waiting))
            decoding = [r.request_id for r in running if not r.is_prefill_chunk and r.num_output_tokens > 0]
            self.starved += len(set(decoding) - set(output.num_scheduled_tokens))

    if not RemoteKv.exists():
        pytest.skip("this vLLM has no queue of its own for those whose KV is being loaded")
    arrivals = np.array([0.0, 0.0, 0.0, 0.3, 0.3, 0.3])
    work = Workload.plain(arrivals, np.array([4, 4, 4, 40, 40, 40]), np.array([90] * 3 + [2] * 3))
    engine = ChaosEngine(work, Engine(limits=replace(LIMITS, kv_blocks=400), step_time=STEPS))
    engine.use_policy(LittlePrompt())
    engine.disturb(0, abort=0.0, reset=0.0)
    slow = Slow(0)
    engine.use_features([slow])
    while any(engine.finish_ps[row] < 0 for row in range(3)):
        engine.advance()
    assert slow.loading == 3
    assert slow.starved == 0


class Watches(Policy):
    """Arrival order; notes the capacity and the memory it is shown."""

    name: ClassVar[str] = "watches"
    paces: ClassVar[bool] = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def plan(self, snapshot: Snapshot) -> Plan:
        self.seen.append((snapshot.engine.limits.max_num_seqs, snapshot.free_blocks))
        return Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting)


def test_a_policy_sees_the_slots_and_the_memory_that_vllm_gives_to_newcomers() -> None:
    """`max_num_active_seqs` below `max_num_seqs`, and a watermark of memory while somebody runs."""
    from slosched.integrations.vllm.snapshots import limits_of

    policy = Watches()
    scheduler = _scheduler(policy)
    manager = scheduler.kv_cache_manager
    if not hasattr(manager, "watermark_blocks") or not hasattr(scheduler, "max_num_active_reqs"):
        pytest.skip("this vLLM has no max_num_active_seqs or no watermark")
    manager.watermark_blocks = 7
    for i in range(3):
        _add(scheduler, f"{i}", 60, start=1000 * i)
    _step(scheduler)
    assert policy.seen == [(LIMITS.max_num_seqs, LIMITS.kv_blocks)]
    free = manager.block_pool.get_num_free_blocks()
    _step(scheduler)  # the third prompt is not done yet
    assert policy.seen[1:] == [(LIMITS.max_num_seqs, free - 7)]
    scheduler.max_num_active_reqs = 3
    assert limits_of(scheduler).max_num_seqs == 3
