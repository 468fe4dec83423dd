"""Two real schedulers of vLLM behind one router, under the virtual clock: what the simulated fleet does."""

from __future__ import annotations

import heapq
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slosched.core.arrays import Ints
from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.policies.base import Policy
from slosched.policies.registry import policy_of
from slosched.routers import router
from slosched.simulator import fleet as f
from slosched.simulator import kernel as k
from slosched.simulator import simulate_fleet
from slosched.simulator.engine import Columns

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

MODEL = StepTimeModel(base_s=0.004, prefill_token_s=3e-5, sequence_s=4e-5, kv_token_s=3e-8)
FAST = Engine(
    limits=EngineLimits(max_num_seqs=6, max_num_batched_tokens=128, kv_blocks=200, max_model_len=512),
    step_time=MODEL,
)
SLOW = replace(FAST, name="slow", step_time=replace(MODEL, base_s=0.008, prefill_token_s=6e-5))
DELAY_S, STATISTICS_S = 0.001, 0.05


@cache
def busy(seed: int, n: int = 60) -> Workload:
    """More than two engines can serve in time."""
    rng = np.random.default_rng(seed)
    work = Workload.plain(
        np.sort(rng.random(n) * 1.5), rng.integers(1, 200, size=n), rng.integers(1, 60, size=n)
    )
    return replace(
        work,
        ttft_s=np.where(rng.random(n) < 0.5, 0.1 + rng.random(n), np.inf),
        tpot_s=np.where(rng.random(n) < 0.5, 0.006 + 0.01 * rng.random(n), np.inf),
        e2e_s=np.where(rng.random(n) < 0.3, 0.5 + 2 * rng.random(n), np.inf),
        weight=rng.choice([1.0, 2.0], size=n),
        atoms=np.sort(np.maximum(1.0, work.atoms * rng.lognormal(0, 0.5, work.atoms.shape)), axis=1),
    )


class RealEngine:
    """vLLM's scheduler under the virtual clock, in the place of one engine of a simulated fleet.

    It writes into the fleet's columns what a router may come to know, as the simulated engine does.
    """

    def __init__(self, workload: Workload, columns: Columns, policy: Policy, engine: Engine) -> None:
        from slosched.testing.virtual_clock import VirtualEngine

        self.virtual = VirtualEngine(workload, engine)
        self.virtual.coming.clear()  # the router says who comes
        self.virtual.use_policy(policy)
        self.requests, self.policy, self.engine = columns.requests, policy, engine
        self.rows: list[int] = []
        self.turns_sent: list[int] = []

    @property
    def next_ps(self) -> int:
        v = self.virtual
        if v.live:
            return int(v.now_ps)
        return max(v.now_ps, v.coming[0][0]) if v.coming else int(k.FOREVER)

    @property
    def idle(self) -> bool:
        return self.next_ps == k.FOREVER

    @property
    def state(self) -> Ints:
        v = self.virtual
        state = np.zeros(k.STATE_SIZE, dtype=np.int64)
        state[k.NOW], state[k.RUNNING] = v.now_ps, len(v.scheduler.running)
        state[k.WAITING] = len(v.live) - len(v.scheduler.running)
        state[k.FREE] = v.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return state

    @property
    def queues(self) -> Any:
        v = self.virtual
        running = [v.row[request.request_id] for request in v.scheduler.running]
        waiting = [v.row[name] for name in v.live if v.row[name] not in running]
        return SimpleNamespace(running=np.array(running, np.int64), waiting=np.array(waiting, np.int64))

    def deliver(self, rows: Ints, at_ps: Ints) -> None:
        for row, ps in zip(rows.tolist(), at_ps.tolist(), strict=True):
            heapq.heappush(self.virtual.coming, (ps, row))
            self.rows.append(row)

    def advance(self, horizon_ps: int, *, measure: bool = False) -> None:
        v, r = self.virtual, self.requests
        while self.next_ps < horizon_ps:
            v.advance()
        for row in self.rows:
            r.first_ps[row], r.finish_ps[row] = v.first_ps[row], v.finish_ps[row]
            r.first_token_s[row] = v.first_ps[row] * 1e-12 if v.first_ps[row] >= 0 else np.nan
            r.generated[row] = v.generated[row]
            live = v.live.get(v.ids[row])
            r.computed[row] = live.num_computed_tokens if live is not None else 0


def real_fleet(workload: Workload, engines: list[Engine], chosen: str, policy: str) -> f._Fleet:
    """The fleet of the simulator with real schedulers for engines."""
    fleet = f._Fleet(workload, engines, router(chosen), policy, 0, DELAY_S, STATISTICS_S, False)
    real = [
        RealEngine(workload, fleet.columns, policy_of(policy, seed=i), engine)
        for i, engine in enumerate(engines)
    ]
    fleet.engines = real  # type: ignore[assignment]  # the part of its interface that a fleet uses
    fleet.run([], None)
    assert all(engine.idle for engine in real)
    return fleet


@pytest.mark.parametrize("policy", ["fcfs", "slosched"])
@pytest.mark.parametrize("chosen", ["power-of-two", "least-tokens", "polyserve", "slosched"])
def test_two_real_schedulers_do_what_two_simulated_engines_do(chosen: str, policy: str) -> None:
    """Every request goes to the same engine, and has its tokens at the same times, to the picosecond."""
    for seed, engines in ((0, [FAST, FAST]), (1, [SLOW, FAST])):
        model = simulate_fleet(
            busy(seed), engines, chosen, policy, delay_s=DELAY_S, statistics_s=STATISTICS_S
        )  # fmt: skip
        real = real_fleet(busy(seed), engines, chosen, policy)
        assert set(model.engine_of.tolist()) == {0, 1}
        assert real.engine_of.tolist() == model.engine_of.tolist()
        r = real.columns.requests
        for name, ps in (("first_token_s", r.first_ps), ("finish_s", r.finish_ps)):
            assert np.array_equal(np.where(ps >= 0, ps * 1e-12, np.nan), getattr(model.outcomes, name))
