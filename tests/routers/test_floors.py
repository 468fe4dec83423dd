"""Floors: which engines take tight paces, and that this is decided by what it is worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.steptime import StepTimeModel
from slosched.core.table import RequestTable
from slosched.core.workload import Workload
from slosched.routers import FleetSnapshot
from slosched.routers.books import FleetBooks
from slosched.routers.floors import NO_PACE, NONE, Floors, Setting, slowest, steps_of
from slosched.routers.preview import Past, deal, preview
from slosched.routers.slosched import Slosched
from slosched.simulator import simulate_fleet

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=3e-5, sequence_s=5e-5, kv_token_s=6e-8)
ENGINE = Engine(name="one", limits=EngineLimits(max_num_batched_tokens=4096), step_time=MODEL)


def mixed(seed: int = 0, n: int = 500, rate: float = 7.0) -> Workload:
    """Chat with a pace of 1.5 empty steps, and long prompts with a loose one, in turn at random."""
    rng = np.random.default_rng(seed)
    chat = rng.random(n) < 0.5
    plain = Workload.plain(
        np.cumsum(rng.exponential(1 / rate, n)), np.where(chat, 200, 12_000), np.where(chat, 300, 40)
    )
    return replace(plain, ttft_s=np.where(chat, 0.5, 4.0), tpot_s=np.where(chat, 0.015, 0.1))


def fleet_of(engines: list[Engine], newcomers: list[Request], now_s: float = 1.0) -> FleetSnapshot:
    table = RequestTable(64)
    books = FleetBooks(engines, table)
    for request in newcomers:
        books.arrived(table.add(request))
    return books.snapshot(now_s)


def request(name: str, tpot_s: float | None) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=100,
        slo=Slo(ttft_s=1.0, tpot_s=tpot_s),
        arrival_s=0.0,
        forecast=LengthForecast.point(50),
    )


def test_steps_are_ordered_and_finite() -> None:
    """Tighter paces have lower steps; nobody without a pace is below any floor."""
    steps = steps_of(np.array([0.01, 0.02, 0.021, 0.5, np.inf]))
    assert steps[-1] == NO_PACE
    assert (np.diff(steps) >= 0).all()
    assert steps[0] < steps[1]


def test_the_slowest_engines_have_the_floor() -> None:
    """Tight paces go elsewhere, others anywhere; with too few engines left, the floor is not kept."""
    slow = Engine(name="slow", limits=ENGINE.limits, step_time=StepTimeModel(base_s=0.02))
    fleet = fleet_of([ENGINE, slow, ENGINE], [request("tight", 0.015), request("loose", None)])
    floors = Floors()
    floors.now = Setting(int(steps_of(np.array([0.05]))[0]), 2)
    assert slowest(fleet) == [1, 2, 0]
    assert floors.allowed(0, fleet).tolist() == [True, False, False]
    assert floors.allowed(1, fleet).all()
    floors.now = floors.now._replace(engines=3)
    assert floors.allowed(0, fleet).all()


def test_deal_keeps_to_what_is_allowed_and_takes_the_idle_engine() -> None:
    n = 40
    rng = np.random.default_rng(1)
    allowed = rng.random((n, 3)) < 0.5
    allowed[:, 0] |= ~allowed.any(axis=1)
    work, release = np.ones((n, 3)), np.zeros(n)
    steps = np.tile([0.01, 0.2], (3, 1))
    at = deal(work, np.ones(n), np.full(n, np.inf), release, allowed, steps, 100.0)
    assert allowed[np.arange(n), at].all()
    free = deal(work, np.ones(n), np.full(n, np.inf), release, np.ones((n, 3), dtype=np.bool_), steps, 100.0)
    assert np.bincount(free, minlength=3).tolist() == [14, 13, 13]


def test_a_preview_replays_the_past_from_now_on() -> None:
    """Arrivals of the last seconds come again, with their own limits, until the horizon."""
    past, rng = Past(), np.random.default_rng(0)
    for i in range(64):
        fleet = fleet_of([ENGINE, ENGINE], [request(f"r{i}", 0.05)], now_s=10.0 + i / 8)
        past.add(0, fleet)
    seen = preview(past, fleet, 10.0, rng)
    release = seen.jobs[seen.present :, 0]
    assert seen.running == seen.present == 0
    assert (np.diff(release) >= 0).all()
    assert release[0] >= fleet.now_s
    assert release[-1] <= fleet.now_s + seen.horizon_s
    assert len(release) == pytest.approx(8 * seen.horizon_s, abs=10)
    assert seen.worth(np.ones((len(seen.jobs), 2), dtype=np.bool_)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("policy", ["paced-wspt@2048"])
def test_floors_pay_where_tight_paces_and_long_prompts_meet(policy: str) -> None:
    """Chat and long prompts on four engines: with floors clearly more of both is kept."""
    work, kept = mixed(seed=2), {}
    for floors in (False, True):
        run = simulate_fleet(work, [ENGINE] * 4, Slosched(floors=floors), policy)
        kept[floors] = float(run.outcomes.met.mean())
    assert kept[True] > kept[False] + 0.03


def test_no_floors_without_paces() -> None:
    """Where nobody has a pace nothing is compared, and decisions are those without floors."""
    work = mixed(n=150)
    work = replace(work, tpot_s=np.full(len(work), np.inf))
    router = Slosched()
    run = simulate_fleet(work, [ENGINE] * 2, router, "fcfs")
    plain = simulate_fleet(work, [ENGINE] * 2, Slosched(floors=False), "fcfs")
    assert router._floors is not None
    assert router._floors.now == NONE
    assert (run.engine_of == plain.engine_of).all()


def test_comparing_in_a_thread() -> None:
    """Decisions stay lawful while settings are compared beside them; the thread ends."""
    router = Slosched()
    router.live()
    run = simulate_fleet(mixed(n=200), [ENGINE] * 2, router, "fcfs")
    assert run.outcomes.finished.all()
    router.close()
    assert router._floors is not None
    assert router._floors._background is not None
    assert router._floors._background.error is None
