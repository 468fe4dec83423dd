"""Plans made beside the engine, on the state after one step for the next, are as good as those before it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.table import RequestTable
from slosched.core.workload import Workload
from slosched.integrations.vllm.background import PlansAhead
from slosched.integrations.vllm.carrying import Carrying, Step
from slosched.integrations.vllm.clock import VirtualClock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.decision import NOBODY, Decision
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.queue import SloQueue
from slosched.integrations.vllm.running_rows import RunningRows
from slosched.integrations.vllm.state import Learned
from slosched.policies import policy
from slosched.testing.virtual_clock import VirtualEngine

from .conftest import fake_request

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

LIMITS = EngineLimits(
    max_num_seqs=8, max_num_batched_tokens=256, kv_blocks=2000, block_tokens=16, max_model_len=2048,
    prefix_cache=False,
)  # fmt: skip
ENGINE = Engine(limits=LIMITS, step_time=StepTimeModel(base_s=0.016, prefill_token_s=3.6e-4, sequence_s=2e-3))


def tiers(n: int, seed: int, rate_rps: float) -> Workload:
    """The same work for all; what they were promised differs."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    work = Workload.plain(
        np.sort(rng.uniform(0, n / rate_rps, n)), rng.integers(30, 200, n), rng.integers(10, 80, n)
    )
    return replace(
        work,
        ttft_s=np.array([0.6, 2.0, 8.0])[kind],
        tpot_s=np.array([0.048, 0.1, np.inf])[kind],
        atoms=np.full((n, work.atoms.shape[1]), 40.0),
    )


class Beside(VirtualEngine):
    """Plans are made by the background thread, each done in time for the next step."""

    late = 0
    """Plans that come a step late, of which one in `late` does; 0 for none."""

    def use_policy(self, *args: Any, **kwargs: Any) -> None:
        super().use_policy(*args, **kwargs)
        planner = self.scheduler.slosched.planner
        planner.background = PlansAhead(planner._decide)

    def schedule(self) -> Any:
        background = self.scheduler.slosched.planner.background
        while not background.idle:
            time.sleep(0.0002)
        if self.late and self.steps % self.late == 0:  # as if the thread had not been given the processor
            newest, background.latest = background.latest, self.last
            output = super().schedule()
            if background.idle and background.latest is self.last:
                background.latest = newest
        else:
            output = super().schedule()
        self.last = background.latest
        return output

    last: Any = None


def attained(kind: type[VirtualEngine], work: Workload, *, late: int = 0) -> tuple[float, Any]:
    engine = kind(work, ENGINE)
    if isinstance(engine, Beside):
        engine.late = late
    engine.use_policy(policy("slosched", seed=0))
    engine.run()
    engine.scheduler.slosched.close()
    return float(engine.result(0.0).outcomes.met.mean()), engine.scheduler.slosched.stats


@pytest.mark.parametrize("late", [0, 2])
def test_planning_beside_the_engine_costs_next_to_nothing(late: int) -> None:
    """In overload, on time or every other one a step late: carried out twice, a plan lets in twice as many as
    it meant to, which cost 5 points here.
    """
    here, beside = [], []
    for seed in range(3):
        work = tiers(150, seed, 7.0)
        here.append(attained(VirtualEngine, work)[0])
        found, stats = attained(Beside, work, late=late)
        assert stats.plans > 100
        assert not stats.fallbacks
        beside.append(found)
    assert np.mean(beside) > np.mean(here) - 0.025, (here, beside)


class OnADevice(Beside):
    """A device that computes by itself: vLLM asks for the grammar of a step while it does."""

    begun: list[int]
    """Plans begun within ``schedule``, while the device computed, and when it was done."""
    place = 0

    def use_policy(self, *args: Any, **kwargs: Any) -> None:
        super().use_policy(*args, **kwargs)
        self.scheduler.slosched.beside, self.begun = True, [0, 0, 0]
        ahead = self.scheduler.slosched.planner.background
        submit = ahead.submit

        def counted(*task: Any) -> None:
            self.begun[self.place] += 1
            submit(*task)

        ahead.submit = counted

    def schedule(self) -> Any:
        self.place = 0
        output = super().schedule()
        if self.steps % 3:  # vLLM does not ask where tokens that a grammar needs are still on their way
            self.place = 1
            self.scheduler.get_grammar_bitmask(output)
        self.place = 2
        return output


def test_on_a_device_plans_are_begun_while_it_computes() -> None:
    """Not within ``schedule``, for which the device waits; and at the latest when the step is done."""
    work = tiers(100, 5, 7.0)
    engine = OnADevice(work, ENGINE)
    engine.use_policy(policy("slosched", seed=0))
    engine.run()
    engine.scheduler.slosched.close()
    assert engine.begun[0] == 0
    assert min(engine.begun[1:]) > 50
    assert not set(engine.scheduler.slosched.stats.fallbacks) - {"overrun"}  # the machine may be busy
    assert float(engine.result(0.0).outcomes.met.mean()) > attained(VirtualEngine, work)[0] - 0.05


def test_the_running_list_keeps_its_order_unless_the_plan_or_an_older_one_changes_it() -> None:
    """A plan that wants the order it saw is carried out again if another order came in between."""
    config, stats, clock = Config(), Stats(), VirtualClock()
    ledger = Ledger(config, clock, Learned("h100-llama-3.1-8b"), stats)
    running = [fake_request(str(i), float(i)) for i in range(4)]
    rows = ledger.rows_of(running)
    none: Any = None
    carrying = Carrying(SloQueue(ledger), ledger, none, none, none, RunningRows(ledger), config, clock, stats)
    scheduler = SimpleNamespace(running=list(running), waiting=[])

    def names(number: int, order: list[int], made_after: int, *, same: bool) -> str:
        decision = Decision(
            order=NOBODY, running_order=rows[order], step=made_after, same_order=same,
        )  # fmt: skip
        carrying.carry_out(scheduler, Step(number, []), decision, decode_s=0.01, busy=True, whole=False)
        return "".join(r.request_id for r in scheduler.running)

    assert names(1, [0, 1, 2, 3], 0, same=True) == "0123"
    assert names(2, [2, 0, 1, 3], 1, same=False) == "2013"
    assert names(3, [0, 1, 2, 3], 1, same=True) == "0123"  # made before the order changed
    assert names(4, [0, 1, 2, 3], 3, same=True) == "0123"


def test_a_table_that_grows_while_it_is_copied() -> None:
    """The engine gives all its columns more rows just when the thread has begun to copy them."""

    class Growing(RequestTable):
        asked = 0

        @property
        def capacity(self) -> int:
            now = len(self.serial)
            if threading.current_thread() is not threading.main_thread():
                Growing.asked += 1
                if Growing.asked == 3:  # the copy knows how many rows there are
                    Growing.asked += 1
                    RequestTable._grow(live)
            return now

    live = Growing(4)
    requests = [
        Request(request_id=str(i), prompt_tokens=8, forecast=LengthForecast.point(4), arrival_s=0.0)
        for i in range(3)
    ]
    rows = np.array([live.add(request) for request in requests])
    snapshot = Snapshot(
        now_s=0.0, table=live, waiting=rows, running=NOBODY, engine=ENGINE, free_blocks=100, step=0
    )
    planner = PlansAhead(lambda given: Decision(order=given.waiting, step=given.step))
    planner.submit(snapshot)
    assert planner.wait(60.0)
    planner.close()
    assert len(live.serial) == 8
    assert planner.error is None
    assert planner.latest is not None
    assert planner.latest.order.tolist() == rows.tolist()
