"""JITServe in both forms, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.policies import policy
from slosched.policies.rivals.jitserve import JitServe, JitServeCode

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)  # a decode step alone: 11 ms


def request(name: str, prompt: int = 100, output: float = 11, **fields: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(output),
        **fields,  # type: ignore[arg-type]
    )


def test_priority_is_weight_over_bandwidth() -> None:
    """20 ms of prefill and ten steps, 0.13 s, over the time left; nothing for the lost and the unpromised."""
    queue = [
        request("whole", slo=Slo(e2e_s=1.3)),
        request("first", slo=Slo(ttft_s=0.2), weight=0.5),
        request("both", slo=Slo(ttft_s=0.1, e2e_s=1.3)),
        request("paced", slo=Slo(ttft_s=0.2, tpot_s=0.03)),  # the last token at 0.2 + 10 x 0.03
        request("lost", slo=Slo(e2e_s=0.1)),
        request("none"),
    ]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    assert JitServe().priority(snapshot, np.arange(6)) == pytest.approx(
        [10.0, 5.0, 5.0, 0.5 / 0.13, 0.0, 0.0]
    )
    assert JitServe().plan(snapshot).request_ids == ["whole", "first", "both", "paced", "lost", "none"]


def test_lengths_are_refined_now_and_then() -> None:
    """The 0.9 quantile of what is left: from 8 atoms the last, from those above 50 only after 50 tokens."""
    lengths = LengthForecast((10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 200.0))
    queue = [
        Request(request_id=str(g), prompt_tokens=10, forecast=lengths, generated_tokens=g)
        for g in (0, 45, 65, 250)
    ]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    assert JitServe()._upper_tokens(snapshot, np.arange(4)) == pytest.approx([200, 155, 135, 62.5])
    # Half way: of eight the fifth, 50; of 60, 70, 200 the second.
    assert JitServe(quantile=0.5)._upper_tokens(snapshot, np.arange(3)) == pytest.approx([50, 5, 5])


def test_the_window_holds_prompts_of_like_length() -> None:
    """Of windows of two neighbours by prompt length, the one with the largest sum of priorities."""
    queue = [
        request("a", 100, slo=Slo(e2e_s=1.0)),
        request("b", 5000, slo=Slo(e2e_s=1.0), weight=8.0),
        request("c", 120, slo=Slo(e2e_s=1.0)),
        request("d", 4000, slo=Slo(e2e_s=1.0), weight=0.1),
    ]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    # Priorities about 7.7, 12.5, 7.6 and 0.19; with factor 0 all are candidates.
    assert JitServe(batch=2, factor=0.0).plan(snapshot).request_ids == ["a", "c", "b", "d"]
    # Half of the second largest leaves a, b and c: now b stands next to c.
    assert JitServe(batch=2, factor=0.5).plan(snapshot).request_ids == ["b", "c", "a", "d"]


def test_preempts_only_for_gain() -> None:
    """A running request that cannot be saved gives way; one of equal priority does not."""
    limits = EngineLimits(max_num_seqs=1)

    def victims(limit_s: float) -> list[int]:
        running = [request("run", slo=Slo(e2e_s=limit_s), generated_tokens=1)]
        queue = [request("wait", slo=Slo(e2e_s=1.3))]
        snapshot = Snapshot.of(queue, running, now_s=0.0, engine=Engine(limits=limits, step_time=MODEL))
        return [int(row) for row in JitServe().plan(snapshot).preempt]

    assert victims(0.01) == [1]
    assert victims(1.3) == []


def test_the_lost_are_dropped_after_their_wait() -> None:
    """Who cannot be saved and has waited long enough is refused; best effort is not."""
    queue = [request("lost", slo=Slo(e2e_s=0.1)), request("none"), request("fine", slo=Slo(e2e_s=90.0))]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    assert len(JitServe(drop_s=5.0).plan(replace(snapshot, now_s=4.9)).reject) == 0
    plan = JitServe(drop_s=5.0).plan(replace(snapshot, now_s=5.1))
    plan.check()
    assert plan.reject.tolist() == [0]
    assert plan.request_ids == ["fine", "none"]


def test_the_released_form_divides_reward_by_time() -> None:
    """(100 + 8 x 11) / 0.13 s; half of it with a limit at half the predicted time, a quarter with square."""
    queue = [request("free"), request("late", slo=Slo(e2e_s=0.065)), request("long", output=101)]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    key = JitServeCode().key(snapshot, np.arange(3))
    assert key == pytest.approx([-188 / 0.13, -94 / 0.13, -(100 + 808) / (0.02 + 1.1)])
    square = JitServeCode(penalty=2.0).key(
        Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL)), np.arange(3)
    )
    assert square[1] == pytest.approx(-47 / 0.13)


def test_the_released_form_recomputes_every_50_steps() -> None:
    """A key grows stale until then; a newcomer's is computed when it comes."""
    queue = [request("old", slo=Slo(e2e_s=1.0)), request("new", arrival_s=0.5)]
    snapshot = Snapshot.of(queue, now_s=0.5, engine=Engine(step_time=MODEL))
    rule = JitServeCode()
    first = rule.key(replace(snapshot, waiting=np.array([0])), np.array([0]))[0]
    later = replace(snapshot, now_s=3.0, step=49)
    assert rule.key(later, np.array([0, 1]))[0] == first
    assert np.isfinite(rule.key(later, np.array([0, 1]))[1])
    assert rule.key(replace(later, step=50), np.array([0]))[0] > first


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("jitserve", {"batch": -1}),
        ("jitserve", {"factor": 1.5}),
        ("jitserve", {"quantile": 1.0}),
        ("jitserve", {"refine_tokens": 0}),
        ("jitserve", {"drop_s": 0.0}),
        ("jitserve-code", {"penalty": -1.0}),
        ("jitserve-code", {"refresh_steps": 0}),
    ],
)
def test_bad_parameters(name: str, bad: dict[str, float]) -> None:
    """Named with their domain."""
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be"):
        policy(name, seed=0, **bad)
