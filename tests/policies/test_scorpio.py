"""SCORPIO: order, refusal, admission and credits, by hand."""

from __future__ import annotations

import pytest

from slosched.core.engine import Engine
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.policies import policy
from slosched.policies.rivals.scorpio import Scorpio

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)
# A full step of 2,048 tokens takes 0.2148 s, that is 0.1049 ms a token.


def request(name: str, prompt: int, ttft_s: float | None, tpot_s: float | None, **fields: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(20),
        slo=Slo(ttft_s=ttft_s, tpot_s=tpot_s),
        **fields,  # type: ignore[arg-type]
    )


def names(snapshot: Snapshot, rows: object) -> list[str]:
    return [snapshot.table.request_ids[row] for row in rows.tolist()]  # type: ignore[attr-defined]


def test_refuses_who_would_be_late_and_counts_on() -> None:
    """By deadline; the second would come at 0.57 s, not 0.5; without its tokens the third is in time."""
    queue = [
        request("third", 2000, 0.6, None),  # 3,000 tokens: 0.31 + 0.05 s
        request("first", 1000, 0.2, None),  # 0.105 + 0.05 s
        request("second", 4000, 0.5, None),
        request("best effort", 90_000, None, None),
    ]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    plan = Scorpio().plan(snapshot)
    assert plan.request_ids == ["first", "third", "best effort"]
    assert names(snapshot, plan.reject) == ["second"]
    plan.check()
    kept = Scorpio(reject=False).plan(snapshot)
    assert kept.request_ids == ["first", "second", "third", "best effort"]
    assert len(kept.reject) == 0


def test_prompts_begun_come_first_and_answers_begun_are_kept() -> None:
    """2,000 tokens still to compute for a running prompt make the newcomer late; a preempted one is kept."""
    queue = [request("new", 1000, 0.3, None), request("back", 4000, 0.1, None, generated_tokens=3)]
    running = [request("begun", 3000, 9.0, None)]
    snapshot = Snapshot.of(queue, running, now_s=0.0, engine=Engine(step_time=MODEL))
    snapshot.table.computed_tokens[2] = 1000
    snapshot.table.first_token_s[1] = 0.0
    assert names(snapshot, Scorpio().plan(snapshot).reject) == ["new"]


def test_admission_protects_the_tightest_pace() -> None:
    """T = 20 ms: a step of V requests takes 1.3 x (10 + V) ms, below 19.8 ms up to V = 5."""
    running = [request(f"r{i}", 10, 1.0, 0.02, generated_tokens=1) for i in range(4)]
    queue = [
        request("a", 10, 1.0, 0.02),  # V = 5: 19.5 ms
        request("b", 10, 2.0, 0.02),  # V = 6
        request("c", 10, 3.0, 0.2),  # V = 5.1: 19.63 ms
        request("d", 10, 4.0, 0.1),  # V = 5.3: 19.89 ms
    ]
    snapshot = Snapshot.of(queue, running, now_s=0.0, engine=Engine(step_time=MODEL))
    assert names(snapshot, Scorpio().plan(snapshot).hold) == ["b", "d"]
    assert len(Scorpio(admission=False).plan(snapshot).hold) == 0
    assert names(snapshot, Scorpio(factor=1.0).plan(snapshot).hold) == []


def test_somebody_is_let_in_when_nobody_runs() -> None:
    """A limit below the shortest step holds all but the first."""
    queue = [request("a", 10, 1.0, 0.001), request("b", 10, 2.0, 0.001)]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    assert names(snapshot, Scorpio().plan(snapshot).hold) == ["b"]


def test_credits_slow_down_loose_decodes() -> None:
    """T/TPOT of 1, 1/2 and the floor of 0.1: tokens at every, every second and every tenth step."""
    running = [
        request("tight", 10, 1.0, 0.02, generated_tokens=1),
        request("half", 10, 1.0, 0.04, generated_tokens=1),
        request("free", 10, 1.0, None, generated_tokens=1),
    ]
    snapshot = Snapshot.of([], running, now_s=0.0, engine=Engine(step_time=MODEL))
    rule, served = Scorpio(), dict.fromkeys(("tight", "half", "free"), 0)
    for _ in range(20):
        skipped = names(snapshot, rule.plan(snapshot).skip)
        for name in served:
            served[name] += name not in skipped
    assert served == {"tight": 20, "half": 10, "free": 2}
    assert len(Scorpio(credits=False).plan(snapshot).skip) == 0


@pytest.mark.parametrize("bad", [{"factor": 0.0}, {"ttft_margin_s": -1.0}, {"least_credit": 0.0}])
def test_bad_parameters(bad: dict[str, float]) -> None:
    """Named with their domain."""
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be"):
        policy("scorpio", seed=0, **bad)
