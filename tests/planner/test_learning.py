"""What the planner learns while it serves: arrivals, lengths, and which rule leads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched import LengthForecast, Request, Slo, Snapshot
from slosched.core.table import RequestTable
from slosched.planner import rollout as r
from slosched.planner.beliefs import WORST_FACTOR, Beliefs
from slosched.planner.futures import WINDOW_S, Futures
from slosched.planner.rules import LEAD_MARGIN, Leader
from slosched.planner.thread import Background


def watched(arrival: list[float], seed: int = 0) -> tuple[Futures, Snapshot]:
    """Futures that have seen these arrivals, one request each."""
    forecast = LengthForecast.quantiles({0.1: 10, 0.9: 100})
    queue = [
        Request(request_id=str(i), prompt_tokens=10 + i, forecast=forecast, arrival_s=at, slo=Slo(ttft_s=1.0))
        for i, at in enumerate(arrival)
    ]
    snapshot, futures = Snapshot.of(queue, now_s=arrival[-1]), Futures(seed)
    futures.watch(snapshot)
    return futures, snapshot


def test_a_future_is_the_past_moved() -> None:
    """The latest stretch comes again with its gaps, prompts and limits."""
    arrival = [0.0, 1.0, 1.5, 4.0, 10.0]
    futures, snapshot = watched(arrival)
    jobs = futures.draw(10.0, 10.0, True, np.ones(1))
    assert (jobs[:, r.RELEASE] - 10.0).tolist() == arrival[:4]
    assert jobs[:, r.TODO].tolist() == [10.0, 11.0, 12.0, 13.0]
    assert (jobs[:, r.FIRST_DUE] - jobs[:, r.RELEASE]).tolist() == [1.0] * 4
    assert np.isnan(jobs[:, r.FIRST]).all()
    assert (jobs[:, r.TRUTH] >= 1).all()
    assert snapshot.table.arrival_s[0] == 0.0  # nothing of the table was changed


def test_a_short_past_is_repeated_and_none_gives_none() -> None:
    """Two seconds of the past serve for six; a moment of it serves for nothing."""
    futures, _ = watched([0.0, 1.0, 2.0])
    assert len(futures.draw(2.0, 6.0, True, np.ones(1))) == 6
    assert len(Futures().draw(5.0, 6.0, True, np.ones(1))) == 0
    assert len(watched([0.0, 0.5])[0].draw(0.5, 6.0, True, np.ones(1))) == 0


def test_futures_are_seeded_and_forget() -> None:
    """The same seed draws the same, and what is older than the window does not come again."""
    arrival = np.linspace(0.0, 3 * WINDOW_S, 900).tolist()
    draws = [watched(arrival, seed)[0].draw(arrival[-1], 5.0, False, np.ones(1)) for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1], equal_nan=True)
    assert not np.array_equal(draws[0], draws[2], equal_nan=True)
    assert draws[0][:, r.TODO].min() >= 10 + 900 * (1 - 1 / 3) - 2


def left(forecast: float, real: int, count: int) -> np.ndarray:
    """Factors after `count` answers that were forecast wrongly."""
    table, beliefs = RequestTable(4), Beliefs()
    empty = np.empty(0, dtype=np.int64)
    plain = Snapshot.of([])
    for i in range(count):
        row = table.add(Request(request_id=str(i), prompt_tokens=5, forecast=LengthForecast.point(forecast)))
        beliefs.watch(replace(plain, table=table, running=np.array([row]), waiting=empty))
        table.generated_tokens[row] = real
        table.release(row)
    return beliefs.watch(replace(plain, table=table, running=empty, waiting=empty))


@pytest.mark.parametrize(("forecast", "real", "factor"), [(100, 200, 2.0), (100, 50, 0.5), (70, 70, 1.0)])
def test_a_wrong_factor_is_learned(forecast: float, real: int, factor: float) -> None:
    """Forecasts of half or twice the truth are corrected within some hundred answers, right ones not."""
    assert left(forecast, real, 300)[0] == pytest.approx(factor, rel=0.15)
    assert abs(left(forecast, real, 3)[0] - 1.0) <= abs(factor - 1.0) * 0.2


def test_the_factor_is_bounded() -> None:
    """However wrong, the correction ends at its bound."""
    assert left(1.0, 10_000, 500)[0] == WORST_FACTOR


def test_the_better_rule_takes_over_and_noise_does_not() -> None:
    """A steady gain above the margin changes the leader; gains around zero, or below the margin, do not."""
    leader = Leader(0)
    rows = np.array([0, 5])
    for turn in range(50):
        leader.learn(rows, np.array([0.5, 0.5 + LEAD_MARGIN / 2]), turn * 0.5)
    assert leader.now == 0
    for turn in range(50):
        leader.learn(rows, np.array([0.5, 0.6]), 25 + turn * 0.5)
    assert leader.now == 5
    for turn in range(50):
        leader.learn(np.array([5, 0]), np.array([0.6, 0.6]), 50 + turn * 0.5)
    assert leader.now == 5


def test_candidates_begin_with_the_leader_and_hold_its_neighbours() -> None:
    """One part different each, nobody twice."""
    leader = Leader(3)
    found = leader.candidates().tolist()
    assert found[0] == leader.now
    assert len(set(found)) == len(found)
    assert len(found) >= 8


def test_the_background_does_the_latest_task_and_survives_a_failure() -> None:
    """An exception is kept, and the next task is done."""
    done: list[int] = []

    def work(task: int) -> None:
        if task < 0:
            raise ValueError("no")
        done.append(task)

    background = Background(work)
    background.submit(-1)
    background.wait()
    assert isinstance(background.error, ValueError)
    background.submit(4)
    background.wait()
    background.close()
    assert done == [4]
