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
    jobs = futures.draw(10.0, 10.0, True)[0]
    assert (jobs[:, r.RELEASE] - 10.0).tolist() == arrival[:4]
    assert jobs[:, r.TODO].tolist() == [10.0, 11.0, 12.0, 13.0]
    assert (jobs[:, r.FIRST_DUE] - jobs[:, r.RELEASE]).tolist() == [1.0] * 4
    assert np.isnan(jobs[:, r.FIRST]).all()
    assert snapshot.table.arrival_s[0] == 0.0  # nothing of the table was changed


def test_a_short_past_is_repeated_and_none_gives_none() -> None:
    """Two seconds of the past serve for six; a moment of it serves for nothing."""
    futures, _ = watched([0.0, 1.0, 2.0])
    assert len(futures.draw(2.0, 6.0, True)[0]) == 6
    assert len(Futures().draw(5.0, 6.0, True)[0]) == 0
    assert len(watched([0.0, 0.5])[0].draw(0.5, 6.0, True)[0]) == 0


def test_futures_are_seeded_and_forget() -> None:
    """The same seed draws the same, and what is older than the window does not come again."""
    arrival = np.linspace(0.0, 3 * WINDOW_S, 900).tolist()
    draws = [watched(arrival, seed)[0].draw(arrival[-1], 5.0, False)[0] for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1], equal_nan=True)
    assert not np.array_equal(draws[0], draws[2], equal_nan=True)
    assert draws[0][:, r.TODO].min() >= 10 + 900 * (1 - 1 / 3) - 2


def after(answers: list[tuple[float, int, float | None]]) -> Beliefs:
    """What is believed after answers of one class: forecast, real length, e2e limit of each."""
    table, beliefs = RequestTable(4), Beliefs()
    empty = np.empty(0, dtype=np.int64)
    plain = Snapshot.of([])
    for i, (said, real, limit) in enumerate(answers):
        asked = Request(
            request_id=str(i), prompt_tokens=5, forecast=LengthForecast.point(said), slo=Slo(e2e_s=limit)
        )
        row = table.add(asked)
        beliefs.watch(replace(plain, table=table, running=np.array([row]), waiting=empty))
        table.generated_tokens[row] = real
        table.release(row)
    beliefs.watch(replace(plain, table=table, running=empty, waiting=empty))
    return beliefs


def factors(beliefs: Beliefs, said: list[float], limit: list[float] | None = None) -> list[float]:
    """Corrections of forecasts of that class."""
    e2e_s = np.full(len(said), np.inf) if limit is None else np.array(limit)
    found = beliefs.factors(np.zeros(len(said), dtype=np.int64), np.array(said), e2e_s)
    return [float(factor) for factor in found]


@pytest.mark.parametrize(("said", "real", "factor"), [(100, 200, 2.0), (100, 50, 0.5), (70, 70, 1.0)])
def test_a_wrong_factor_is_learned(said: float, real: int, factor: float) -> None:
    """Forecasts of half or twice the truth are corrected within some hundred answers, right ones not."""
    assert factors(after([(said, real, None)] * 300), [said])[0] == pytest.approx(factor, rel=0.05)
    assert factors(after([(said, real, None)] * 16), [said])[0] == 1.0  # a few answers say little


def test_the_factor_is_bounded() -> None:
    """However wrong, the correction ends at its bound."""
    assert factors(after([(1.0, 10_000, None)] * 200), [1.0])[0] == pytest.approx(WORST_FACTOR)


def test_a_minority_of_lies_moves_little() -> None:
    """Three in ten clients state a tenth of their length: honest hints stay what they are."""
    rng = np.random.default_rng(1)
    real = np.exp(rng.normal(5.0, 1.0, 400)).astype(int) + 1
    said = np.where(rng.random(400) < 0.3, real / 10, real * np.exp(0.2 * rng.standard_normal(400)))
    beliefs = after([(float(s), int(n), None) for s, n in zip(said, real, strict=True)])
    assert all(0.75 < f < 1.35 for f in factors(beliefs, [60.0, 150.0, 400.0]))


def test_a_limit_tells_the_length() -> None:
    """Where clients choose their e2e limit by the length, a class mean becomes a forecast."""
    rng = np.random.default_rng(2)
    real = np.exp(rng.normal(5.0, 0.7, 300)).astype(int) + 1
    limit = real * 0.02 * rng.uniform(2.0, 4.0, 300)
    beliefs = after([(190.0, int(n), float(x)) for n, x in zip(real, limit, strict=True)])
    short, long = factors(beliefs, [190.0, 190.0], [3.0, 30.0])
    assert long > 2.5 * short


def test_lengths_are_drawn_as_wrong_as_forecasts_were() -> None:
    """Half the answers had three times their forecast: so have half the draws, and all that run on."""
    beliefs = after([(100.0, 300 if i % 2 else 100, None) for i in range(200)])
    n, rng = 4000, np.random.default_rng(0)
    mean = 100.0 * np.array(factors(beliefs, [100.0] * n))
    atoms = np.repeat(mean[:, None], 8, axis=1)
    new = beliefs.draw(np.zeros(n, dtype=np.int64), mean, atoms, np.zeros(n), mean, rng)
    assert 0.35 < np.mean(np.abs(new - 300.0) < 30.0) < 0.6
    runs = beliefs.draw(np.zeros(n, dtype=np.int64), mean, atoms, np.full(n, 150.0), np.full(n, 40.0), rng)
    assert np.mean(np.abs(runs - 150.0) < 20.0) > 0.8


def test_a_surely_better_rule_takes_over_and_luck_does_not() -> None:
    """A steady gain above the margin changes the leader; one below it, or gains that vary as much, do not."""
    leader, rows = Leader(0), np.array([0, 5])
    for turn in range(50):
        leader.learn(rows, np.array([0.5, 0.5 + LEAD_MARGIN / 2]), turn * 0.5)
    assert leader.now == 0
    lucky = Leader(0)
    for turn in range(50):
        lucky.learn(rows, np.array([0.5, 0.51 if turn % 2 else 0.48]), turn * 0.5)
    assert lucky.now == 0
    for turn in range(50):
        leader.learn(rows, np.array([0.5, 0.6]), 25 + turn * 0.5)
    assert leader.now == 5
    for turn in range(400):
        leader.learn(rows, np.array([0.6, 0.5]), 50 + turn * 0.5)
    assert leader.now == 0  # it steps aside


def test_the_walk_climbs_and_also_goes_down() -> None:
    """Better rules are always moved to; worse ones by luck that grows with the noise of gains."""
    leader = Leader(1)
    worth = -0.01 * np.abs(np.arange(len(leader.rules)) - 40.0)
    went_down = 0
    for turn in range(400):
        rows = leader.candidates()
        before = leader._walker
        noise = np.random.default_rng(turn).normal(0.0, 0.05, len(rows))
        leader.learn(rows, worth[rows] + noise, turn * 0.5)
        went_down += worth[leader._walker] < worth[before]
    assert went_down > 10
    assert leader.now != 0
    assert worth[leader.now] > worth[0]


def test_candidates_begin_with_the_leader_and_hold_its_neighbours() -> None:
    """One part different each, nobody twice."""
    leader = Leader(3)
    found = leader.candidates().tolist()
    assert found[0] == leader.now
    assert len(set(found)) == len(found)
    assert len(found) >= 8
    leader.learn(np.array([0, 7]), np.array([0.1, 0.5]), 0.0)
    leader.learn(np.array([0, 7]), np.array([0.1, 0.5]), 1.0)
    assert leader.candidates()[:2].tolist() == [7, 0]  # the first rule stays a rival


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


def test_arrivals_are_remembered_whatever_their_number() -> None:
    """Turns of a session have numbers of their own, not in the order of arrival."""
    queue = [
        Request(request_id=str(i), prompt_tokens=10, forecast=LengthForecast.point(5), arrival_s=2.0 - i)
        for i in range(3)
    ]
    snapshot, futures = Snapshot.of(queue, now_s=2.0), Futures()
    late, early = snapshot.waiting[-1:], snapshot.waiting[:2]  # numbers 0 and 1, 2
    for rows in (early, early, late, snapshot.waiting):
        futures.watch(replace(snapshot, waiting=np.sort(rows)))
    assert futures.remembered[:, r.ARRIVAL].tolist() == [0.0, 1.0, 2.0]


def test_rules_that_do_the_same_count_once() -> None:
    """Without e2e limits neither the pace of whole answers nor their lateness tells two rules apart."""
    all_, no_e2e, neither = (
        Leader(0).candidates(e2e=e2e, tpot=tpot)
        for e2e, tpot in ((True, True), (False, True), (False, False))
    )
    assert len(all_) > len(no_e2e) > len(neither)
    acts = Leader(0).rules[no_e2e]
    acts[:, [r.WHOLE, r.SLOW]] = 0.0
    acts[:, r.URGENCY] = np.minimum(acts[:, r.URGENCY], 1.0)
    assert len(np.unique(acts, axis=0)) == len(acts)


def test_a_leader_that_does_as_the_first_rule_is_the_first_rule() -> None:
    """The gain of every rule is measured against the first one: it is always there."""
    leader = Leader(0)
    other = leader.rules[0].copy()
    other[r.SLOW] = 2.0
    leader.now = int(np.flatnonzero((leader.rules == other).all(axis=1))[0])
    rows = leader.candidates(e2e=False)
    assert leader.now == 0
    assert rows[0] == 0
    leader.learn(rows, np.zeros(len(rows)), 1.0)
