"""FairBatching and SlidingServe: how they form a step, by hand and against enumeration."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from slosched.core.engine import Engine
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.policies import policy
from slosched.policies.rivals.fairbatching import FairBatching
from slosched.policies.rivals.slidingserve import CELLS, SlidingServe, protect

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)


def request(name: str, prompt: int = 10, output: float = 100, **fields: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(output),
        **fields,  # type: ignore[arg-type]
    )


def answering(name: str, first_s: float, tokens: int, snapshot_at: float = 0.0) -> Request:
    """A chat request that has `tokens`, its first token due at 0.2 s, the others 50 ms apart."""
    return request(name, slo=Slo(ttft_s=0.2, tpot_s=0.05), generated_tokens=tokens, arrival_s=snapshot_at)


def fair_snapshot(now_s: float) -> Snapshot:
    running = [answering("urgent", 0.1, 2), answering("ahead", 0.1, 8)]
    queue = [
        request("later", prompt=900, slo=Slo(ttft_s=5.0)),
        request("sooner", prompt=100, slo=Slo(ttft_s=1.0)),
        request("none"),
    ]
    snapshot = Snapshot.of(queue, running, now_s=now_s, engine=Engine(step_time=MODEL))
    snapshot.table.first_token_s[[3, 4]] = 0.1
    return snapshot


def test_three_groups_by_slack() -> None:
    """At 0.22 s the next tokens are due in 80 and 380 ms: a budget of 80 ms, urgent below 130 ms."""
    snapshot = fair_snapshot(0.22)
    slack, _ = FairBatching().slack_s(snapshot, np.array([3, 4, 1, 0, 2]))
    assert slack == pytest.approx([0.08, 0.38, 0.78, 4.78, math.inf])
    plan = FairBatching().plan(snapshot)
    assert plan.request_ids == ["sooner", "later", "none"]
    # 10 ms + 1 ms + 69 ms of prefill: sooner and 590 tokens of later; nothing is left for the other decode.
    assert plan.prefill_tokens == 690 - 1 or plan.prefill_tokens == 690
    assert plan.skip.tolist() == [4]
    assert plan.running_order is not None
    assert plan.running_order.tolist() == [3, 4]


def test_a_late_decode_gets_a_step_of_its_pace() -> None:
    """Overdue decodes do not shrink the budget below the tightest limit of 50 ms."""
    plan = FairBatching().plan(fair_snapshot(0.4))
    assert plan.prefill_tokens in (389, 390)
    # The slack of 10 ms is below the pace; half of 50 ms hold 10 + 1 ms and 140 tokens.
    assert FairBatching(share=0.5).plan(fair_snapshot(0.29)).prefill_tokens in (139, 140)


def test_pace_from_the_real_first_token() -> None:
    """The first token came 100 ms early: measured as TPOT is, both are due 100 ms sooner."""
    snapshot = fair_snapshot(0.12)
    slack, _ = FairBatching(from_first=True).slack_s(snapshot, np.array([3, 4]))
    assert slack == pytest.approx([0.08, 0.38])


def test_urgency_then_work() -> None:
    """Latest starts in units of 0.1 s; within a unit the shorter prompt first, best effort last."""
    queue = [
        request("long", prompt=1000, slo=Slo(ttft_s=5.0)),
        request("short", prompt=990, slo=Slo(ttft_s=5.02)),
        request("soon", prompt=1000, slo=Slo(ttft_s=2.0)),
        request("none"),
    ]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    assert SlidingServe(urgency_s=1.0).plan(snapshot).request_ids == ["soon", "short", "long", "none"]
    assert SlidingServe(urgency_s=0.001).plan(snapshot).request_ids == ["soon", "long", "short", "none"]


def test_two_steps_are_planned_together() -> None:
    """Two tokens due in 60 and 110 ms: the pair of chunks with most tokens, by trying all."""
    running = [request("run", slo=Slo(ttft_s=1.0, tpot_s=0.05), generated_tokens=1)]
    model = StepTimeModel(
        base_s=0.01, prefill_token_s=5e-5, sequence_s=1e-3, knee_tokens=300, knee_token_s=1e-4
    )
    snapshot = Snapshot.of(
        [request("wait", prompt=9000)], running, now_s=0.99, engine=Engine(step_time=model)
    )
    snapshot.table.first_token_s[1] = 0.5
    chunk, rate = SlidingServe(least_tokens=1).chunk(snapshot, np.array([1]), np.array([0]))

    seconds_of = model.predict(np.arange(600), 0, 1, 0).tolist()
    pairs = [
        (x, y)
        for x, y in itertools.product(range(1, 600), range(1, 600))
        if seconds_of[x] <= 0.06 and seconds_of[x] + seconds_of[y] <= 0.11
    ]
    best = max(x + y for x, y in pairs)
    largest = max(x for x, y in pairs if x + y >= best - 2)
    assert chunk == largest
    y = max(y for x, y in pairs if x == chunk)
    assert rate == pytest.approx((chunk + y) / (seconds_of[chunk] + seconds_of[y]))
    late = replace(snapshot, now_s=2.0)
    assert SlidingServe(least_tokens=40).chunk(late, np.array([1]), np.array([0]))[0] == 40


def test_protection_is_the_best_choice_at_each_miss() -> None:
    """Against all subsets: everybody protected is on time; with equal deadlines nothing is worth more."""
    rng = np.random.default_rng(5)
    for _ in range(60):
        n = int(rng.integers(1, 9))
        tokens = rng.integers(1, 60, size=n).astype(np.float64)
        value = rng.choice([0.5, 1.0, 3.0], size=n)
        allowed = np.sort(rng.integers(0, 200, size=n)).astype(np.float64)
        kept = protect(allowed, tokens, value)
        done = np.cumsum(np.where(kept, tokens, 0.0))
        assert np.all(done[kept] <= allowed[kept])
        capacity = float(rng.integers(1, CELLS))
        same = protect(np.full(n, capacity), tokens, value)
        best = max(
            sum(value[i] for i in chosen)
            for size in range(n + 1)
            for chosen in itertools.combinations(range(n), size)
            if sum(tokens[i] for i in chosen) <= capacity
        )
        rounding = sum(np.ceil(tokens / capacity * CELLS - 1e-9)) * capacity / CELLS - tokens.sum()
        assert value[same].sum() <= best + 1e-9
        assert value[same].sum() == pytest.approx(best) or rounding > 0
    assert protect(np.array([100.0, 100.0]), np.array([80.0, 60.0]), np.array([1.0, 1.5])).tolist() == [0, 1]


def test_who_cannot_all_be_on_time_is_chosen_by_weight() -> None:
    """Three prompts of 0.25 s with one second to go for two of them: the light one goes behind."""
    queue = [
        request("light", prompt=2000, slo=Slo(ttft_s=0.5), weight=0.1),
        request("heavy", prompt=2000, slo=Slo(ttft_s=0.51)),
        request("other", prompt=2000, slo=Slo(ttft_s=0.52)),
    ]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    assert SlidingServe().plan(snapshot).request_ids == ["heavy", "other", "light"]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("fairbatching", {"share": 0.0}),
        ("slidingserve", {"urgency_s": 0.0}),
        ("slidingserve", {"least_tokens": 0}),
        ("slidingserve", {"most": 0}),
    ],
)
def test_bad_parameters(name: str, bad: dict[str, float]) -> None:
    """Named with their domain."""
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be"):
        policy(name, seed=0, **bad)
