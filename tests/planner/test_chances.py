"""Chances to keep limits: what is said comes true as often as it is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched import (
    Engine,
    EngineLimits,
    LengthForecast,
    Request,
    Slo,
    Snapshot,
    StepTimeModel,
    Workload,
    simulate,
)
from slosched.core.table import RequestTable
from slosched.planner.chances import PRIOR, RUNS, WAITS, Chances
from slosched.planner.planner import PlannerParams
from slosched.policies.slosched import Slosched

NOBODY = np.empty(0, dtype=np.int64)


def ask(slo: Slo, arrival_s: float = 0.0) -> Request:
    """A request that is to give some ten tokens."""
    return Request(
        request_id="a", prompt_tokens=5, forecast=LengthForecast.point(10), slo=slo, arrival_s=arrival_s
    )


def heard(chances: Chances, kind: int, word: float, kept: bool) -> None:
    """One request of which `word` was said, and what became of it."""
    table = RequestTable(2)
    row = table.add(ask(Slo(ttft_s=1.0)))
    rows = np.array([row])
    chances.say(table, rows, table.serial[rows], int(kind == RUNS), np.array([word]))
    table.first_token_s[row], table.generated_tokens[row] = (0.5 if kept else 1.5), 10
    chances.learn(replace(Snapshot.of([]), table=table), rows, 2.0)


def test_words_that_are_too_sure_are_corrected_each_kind_apart() -> None:
    """Of waiting requests with .85 every third is kept: they are said to have a third; others keep theirs."""
    chances = Chances()
    for i in range(600):
        chances._serial[:] = -1  # each is another request
        heard(chances, WAITS, 0.85, i % 3 == 0)
    word = np.array([0.85])
    share = (200 + 0.85 * PRIOR) / (600 + PRIOR)
    assert chances.corrected(WAITS, word)[0] == pytest.approx(share, abs=0.05)
    assert chances.corrected(RUNS, word)[0] == pytest.approx(0.85, abs=0.01)
    ladder = chances.corrected(WAITS, np.linspace(0, 1, 101))
    assert (np.diff(ladder) >= 0).all()


@pytest.mark.parametrize(
    ("slo", "kept"),
    [
        (Slo(ttft_s=0.5), True), (Slo(ttft_s=0.3), False), (Slo(e2e_s=3.0), True), (Slo(e2e_s=2.0), False),
        (Slo(tpot_s=0.2), True), (Slo(tpot_s=0.1), False),
    ],
)  # fmt: skip
def test_what_became_of_a_request(slo: Slo, kept: bool) -> None:
    """First token .4 s after arrival, eleven tokens, the end 2 s after the first."""
    table, chances = RequestTable(2), Chances()
    rows = np.array([table.add(ask(slo, arrival_s=1.0))])
    chances.say(table, rows, table.serial[rows], 0, np.array([0.5]))
    table.first_token_s[rows], table.generated_tokens[rows] = 1.4, 11
    chances.learn(replace(Snapshot.of([]), table=table), rows, 3.4)
    found = chances.reliability(WAITS)
    assert (found.requests.sum(), np.nansum(found.met)) == (1.0, float(kept))
    assert found.gap == pytest.approx(0.5)
    assert np.isnan(chances.reliability(RUNS).gap)


def test_words_belong_to_one_request() -> None:
    """A row that is used again starts without a word, and a late word on who has left is dropped."""
    table, chances = RequestTable(1), Chances()
    rows = np.array([table.add(ask(Slo(ttft_s=1.0)))])
    gone = table.serial[rows].copy()
    table.release(int(rows[0]))
    table.add(ask(Slo(ttft_s=1.0)))
    chances.say(table, rows, gone, 0, np.array([0.9]))
    table.first_token_s[rows], table.generated_tokens[rows] = 0.5, 10
    chances.learn(replace(Snapshot.of([]), table=table), rows, 2.0)
    assert chances.reliability(WAITS).requests.sum() == 0.0


def crowd(seed: int) -> Workload:
    """Requests of two lengths, half as many again as the engine can serve."""
    rng = np.random.default_rng(seed)
    n = 800
    plain = Workload.plain(
        np.cumsum(rng.exponential(0.1, n)), rng.integers(200, 3000, n), rng.integers(5, 300, n)
    )
    return replace(plain, ttft_s=np.full(n, 2.0), tpot_s=np.where(rng.random(n) < 0.5, 0.05, np.inf))


def test_what_is_said_in_overload_comes_true() -> None:
    """Corrected chances of a whole run lie near what became of them, and the first rule is in the books."""
    engine = Engine(
        limits=EngineLimits(max_num_seqs=64, max_num_batched_tokens=2048),
        step_time=StepTimeModel(base_s=0.01, prefill_token_s=5e-5, sequence_s=1e-4, kv_token_s=1e-8),
    )
    policy = Slosched(PlannerParams())
    run = simulate(crowd(3), policy, engine=engine)
    assert 0.2 < np.mean(run.outcomes.ttft_s <= 2.0) < 0.95  # neither easy nor hopeless
    for kind in (WAITS, RUNS):
        found = policy.planner.chances.reliability(kind)
        assert found.requests.sum() > 100
        assert found.gap < 0.12
    certificate = policy.planner.certificate
    assert certificate is not None
    assert certificate.rules >= 1
    assert certificate.start <= 1.0
