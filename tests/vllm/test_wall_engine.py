"""The real-time engine serves everybody, keeps time, and lets slosched learn what a step takes."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.integrations.vllm import guarded_policy
from slosched.integrations.vllm.config import Config, GuardsConfig
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy
from slosched.testing.wall_engine import Shared, serve_in_real_time

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ENGINE = Engine(
    limits=EngineLimits(
        max_num_seqs=4, max_num_batched_tokens=128, kv_blocks=500, block_tokens=16, max_model_len=512,
        prefix_cache=False,
    ),
    step_time=StepTimeModel(base_s=0.03, prefill_token_s=1e-4, sequence_s=1e-3),
)  # fmt: skip


def work() -> Workload:
    rng = np.random.default_rng(0)
    n = 16
    made = Workload.plain(np.sort(rng.uniform(0, 1, n)), rng.integers(20, 80, n), rng.integers(8, 16, n))
    return replace(made, ttft_s=np.full(n, 2.0), tpot_s=np.full(n, 0.2))


@pytest.mark.parametrize("stock", ["fcfs", None])
def test_steps_last_at_least_as_long_as_the_model_says(stock: str | None) -> None:
    run, controller = serve_in_real_time(work(), Config(policy="edf"), engine=ENGINE, stock=stock)
    out = run.outcomes
    assert out.finished.all()
    assert np.nanmin(out.tpot_s) >= 0.03
    assert run.log.wall_s > 1.0
    assert (controller is None) == (stock is not None)


def test_slosched_learns_the_step_time_of_an_engine_it_was_not_told_of() -> None:
    """The preset has steps of 6 ms, these have 30 ms, or more on a busy machine, but never less."""
    run, controller = serve_in_real_time(work(), Config(), engine=ENGINE)
    assert run.outcomes.finished.all()
    assert controller.watch.decode_s > 0.02
    assert not controller.stats.errors


def test_a_shared_machine_is_slower_every_other_while() -> None:
    shared = Shared(0, spread=0.0, stall=0.0, slow=3.0, every_s=10.0)
    assert [shared(t) for t in (1.0, 11.0, 21.0)] == [1.0, 3.0, 1.0]
    noisy = Shared(0)
    factors = np.array([noisy(1.0) for _ in range(2000)])
    assert 0.01 < (factors > 4.0).mean() < 0.04
    assert abs(np.median(factors) - 1.0) < 0.05


class Stuck(Policy):
    """Never returns from one of its plans."""

    name: ClassVar[str] = "stuck"
    paces: ClassVar[bool] = True
    at = 0

    def __init__(self) -> None:
        self.plans = 0

    def plan(self, snapshot: Snapshot) -> Plan:
        self.plans += 1
        if self.plans > self.at:
            threading.Event().wait()
        return Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting[::-1])


class StuckLater(Stuck):
    """Never returns from its tenth plan."""

    at = 9


class StuckKey(KeyPolicy):
    """Never returns from a key."""

    name: ClassVar[str] = "stuck-key"

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        threading.Event().wait()
        return np.zeros(len(rows))


@pytest.mark.parametrize("stuck", [Stuck, StuckLater, StuckKey])
def test_a_policy_that_never_returns_is_turned_off(
    stuck: type[Policy], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Everybody is served, first come, first served; the log says why."""
    monkeypatch.setattr(guarded_policy, "FIRST_PLAN_S", 0.3)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    config = Config(
        policy=f"{__name__}:{stuck.__name__}",
        guards=GuardsConfig(plan_limit_ms=100.0, breaker_failures=3),
    )
    with pytest.raises(InputError, match=r"must not fail, got .*TimeoutError: no "):  # said at the end
        serve_in_real_time(work(), config, engine=ENGINE)
    assert f"{stuck.__name__}' failed 3 times in a row and is turned off" in caplog.text


class Elsewhere(Policy):
    """Notes which thread plans."""

    name: ClassVar[str] = "elsewhere"
    paces: ClassVar[bool] = True
    threads: ClassVar[set[str]] = set()

    def plan(self, snapshot: Snapshot) -> Plan:
        self.threads.add(threading.current_thread().name)
        return Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting)


class Here(Elsewhere):
    """The same, and its word that plans end."""

    bounded: ClassVar[bool] = True


class Heir(Here):
    """A word holds for the class that gives it."""


@pytest.mark.parametrize(
    ("kind", "thread"), [(Elsewhere, "slosched-plan"), (Here, "MainThread"), (Heir, "slosched-plan")]
)
def test_only_who_says_that_plans_end_plans_on_the_engines_thread(kind: type[Policy], thread: str) -> None:
    """By the attribute, wherever the class lives."""
    Elsewhere.threads.clear()
    guards = GuardsConfig(time_box_us=1e6)
    run, _ = serve_in_real_time(
        work(), Config(policy=f"{__name__}:{kind.__name__}", guards=guards), engine=ENGINE
    )
    assert run.outcomes.finished.all()
    assert Elsewhere.threads == {thread}


class Youngest(KeyPolicy):
    """Last come, first served."""

    name: ClassVar[str] = "youngest"

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        return -snapshot.table.arrival_s[rows]


class Reversed(Policy):
    """The same as a plan."""

    name: ClassVar[str] = "reversed"

    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting[::-1])


@pytest.mark.parametrize("kind", [Youngest, Reversed])
def test_plans_beside_the_engine_are_there_when_a_place_is_free(kind: type[Policy]) -> None:
    """All slots are taken while they are made: the place that an answer leaves goes to whom they say."""
    n = 14
    crowd = Workload.plain(np.arange(n) / 1000, np.full(n, 30), np.tile([6, 9, 12, 15], 4)[:n])
    run, controller = serve_in_real_time(
        crowd, Config(policy=f"{__name__}:{kind.__name__}"), engine=ENGINE, depth=1
    )
    first_s = run.outcomes.first_token_s[6:]  # the first few have found free places
    assert (np.diff(first_s) <= 0).all()
    assert controller.stats.plans < 3 * n  # not at every step
