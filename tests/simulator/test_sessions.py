"""Turns of sessions in a closed loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.metrics import Metrics
from slosched.core.outcome import Outcomes
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.simulator import simulate
from slosched.workloads import fit_to_engine, generate, merge, resample, rescale

RandomCase = Callable[[int], tuple[Workload, EngineLimits]]


def with_sessions(work: Workload, seed: int) -> Workload:
    """The workload with most of its requests in three sessions."""
    rng = np.random.default_rng(seed)
    think = rng.choice([0.0, 0.01, 0.3], size=len(work))
    return replace(work, session=rng.integers(-1, 3, size=len(work)), think_s=think)


def talk(turns: int, think_s: float) -> Workload:
    """One session whose turns are all planned for the first instant."""
    n = np.zeros(turns)
    return Workload.plain(
        n, np.full(turns, 100), np.full(turns, 5), session=n.astype(np.int64), think_s=n + think_s
    )


def keeps_order(outcomes: Outcomes) -> None:
    """Every turn comes its think time after the answer before; the others come when planned."""
    work = outcomes.workload
    before = work.previous
    later = np.flatnonzero(before >= 0)
    sent = later[np.isfinite(outcomes.arrival_s[later])]
    gap = outcomes.arrival_s[sent] - outcomes.finish_s[before[sent]]
    assert np.allclose(gap, work.think_s[sent], rtol=0, atol=2e-12)
    unsent = later[np.isnan(outcomes.arrival_s[later])]
    assert not outcomes.finished[before[unsent]].any()
    assert not outcomes.finished[unsent].any()
    first = before < 0
    assert np.array_equal(outcomes.arrival_s[first], work.arrival_s[first])


@pytest.mark.parametrize("policy", ["fcfs", "priority", "sjf", "edf", "srpt", "slosched"])
def test_turns_follow_answers(policy: str, random_case: RandomCase, model: StepTimeModel) -> None:
    """Under every kind of policy: static, dynamic, preempting, planning."""
    for seed in range(12):
        work, limits = random_case(seed)
        work = with_sessions(work, seed)
        outcomes = simulate(work, policy, engine=Engine(limits=limits, step_time=model)).outcomes
        assert outcomes.finished.all()
        keeps_order(outcomes)
        assert (outcomes.admitted_s >= outcomes.arrival_s).all()


def test_limits_count_from_sending() -> None:
    """Latencies and the offered rate are those of the times of sending."""
    outcomes = simulate(run_of := talk(4, 2.0)).outcomes
    assert np.ptp(outcomes.ttft_s) < 1e-3
    assert np.all(np.diff(outcomes.arrival_s) > 2.0)
    metrics = Metrics.of(simulate(run_of))
    assert metrics.offered_rps == pytest.approx(3 / np.ptp(outcomes.arrival_s))
    assert metrics.max_wait_s < 0.1


def test_open_loop_sends_at_once() -> None:
    """The same turns without waiting for answers; the source says so."""
    work = talk(4, 2.0).open_loop()
    assert "open loop" in work.source
    assert np.array_equal(simulate(work).outcomes.arrival_s, work.arrival_s)
    assert work.open_loop() is work


class RefuseSecond(Policy):
    """Refuses the turn in row 1."""

    name: ClassVar[str] = "refuse-second"
    rejects: bool = True

    def plan(self, snapshot: Snapshot) -> Plan:
        """Refuse row 1 wherever it waits."""
        waiting = snapshot.waiting
        return Plan(
            snapshot=snapshot, policy=self.name, order=waiting[waiting != 1], reject=waiting[waiting == 1]
        )


def test_a_session_ends_with_a_refusal() -> None:
    """Turns after a refused one are never sent and count as missed."""
    run = simulate(talk(4, 0.5), RefuseSecond())
    assert run.outcomes.rejected is not None
    assert run.outcomes.rejected.tolist() == [False, True, False, False]
    assert np.isfinite(run.outcomes.arrival_s).tolist() == [True, True, False, False]
    assert run.outcomes.met.tolist() == [True, False, False, False]
    metrics = Metrics.of(run)
    assert (metrics.requests, metrics.rejected, metrics.attainment.value) == (4, 1, 0.25)
    assert np.isfinite(metrics.max_wait_s)


def test_slow_engines_slow_their_clients_down() -> None:
    """A closed loop never has more turns waiting than sessions; an open one piles them up."""
    closed = rescale(generate("agentic", rate_per_s=2.0, duration_s=60.0, seed=3), 20.0)
    closed, _ = fit_to_engine(closed, EngineLimits())
    opened = closed.open_loop()
    one, two = (simulate(work).log.depth_waiting.max() for work in (closed, opened))
    sessions = len(np.unique(closed.session))
    assert one <= sessions < two


def test_think_times_must_be_times() -> None:
    """A negative or infinite pause is refused by name."""
    for wrong in (-0.5, np.inf, np.nan):
        with pytest.raises(InputError, match="think_s"):
            talk(2, wrong)
    with pytest.raises(InputError, match="session"):
        replace(talk(2, 0.0), session=np.array([0, -2]))


def test_turn_and_previous() -> None:
    """Turns count within their session; what is left out is passed over."""
    work = replace(talk(5, 1.0), session=np.array([0, 7, 0, -1, 0]))
    assert work.turn.tolist() == [0, 0, 1, 0, 2]
    assert work.previous.tolist() == [-1, -1, 0, -1, 2]
    assert work.rows(np.array([0, 4])).previous.tolist() == [-1, 0]
    loose = replace(work, think_s=np.array([1.0, 1.0, -1.0, 1.0, 1.0]))
    assert loose.previous.tolist() == [-1, -1, -1, -1, 2]


def test_merging_and_resampling_keep_sessions_apart() -> None:
    """Turns never follow those of another workload or of another copy of their block."""
    both = merge([talk(3, 1.0), talk(3, 1.0)])
    assert np.sum(both.previous >= 0) == 4
    spread = replace(talk(6, 1.0), arrival_s=np.arange(6.0))
    again = resample(spread, 30, block_s=3.0, seed=1)
    before = again.previous
    later = np.flatnonzero(before >= 0)
    assert len(later) > 0
    assert np.all(again.arrival_s[later] - again.arrival_s[before[later]] < 3.0)
