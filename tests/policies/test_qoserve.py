"""QoServe: key, relegation and chunk, by hand."""

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
from slosched.policies.rivals.qoserve import QoServe

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)


def request(name: str, prompt: int, ttft_s: float | None = None, **fields: object) -> Request:
    slo = Slo(ttft_s=ttft_s, tpot_s=0.05) if ttft_s else Slo()
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(10),
        slo=slo,
        **fields,  # type: ignore[arg-type]
    )


def test_the_key_lies_between_deadline_and_prompt() -> None:
    """A + D + α·u: 2 + 0.8 against 1 + 2.4 and 4 + 0.08 s; α = 0 sorts by deadline."""
    queue = [
        request("short", 100, 2.0), request("long", 300, 1.0), request("late", 10, 4.0), request("best", 1),
    ]  # fmt: skip
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    assert QoServe().plan(snapshot).request_ids == ["short", "long", "late", "best"]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    assert QoServe(alpha_s_per_token=0.0).plan(snapshot).request_ids == ["long", "short", "late", "best"]
    assert QoServe(alpha_s_per_token=0.008).key(snapshot, np.array([0])) == pytest.approx([2.8])


def test_the_hopeless_are_relegated_for_good() -> None:
    """At 8,500 tokens/s, 17,000 tokens take 2 s: too long for a limit of 1 s; once behind, always behind."""
    queue = [request("huge", 17_000, 1.0), request("small", 10, 30.0)]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    rule = QoServe(alpha_s_per_token=0.0)
    assert rule.plan(snapshot).request_ids == ["small", "huge"]
    assert QoServe(alpha_s_per_token=0.0, throughput_tps=20_000.0).plan(
        Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    ).request_ids == ["huge", "small"]
    rule.throughput_tps = 1e9
    assert rule.plan(snapshot).request_ids == ["small", "huge"]


def test_the_chunk_fits_the_least_slack() -> None:
    """Due at max(0.2, 1.0) + 0.05 x 3 = 1.15 s; 1.2 x (11 ms + 0.1 ms a token) within what is left."""
    running = [request("run", 100, 1.0, generated_tokens=2)]
    snapshot = Snapshot.of([request("wait", 4000, 5.0)], running, now_s=1.1, engine=Engine(step_time=MODEL))
    snapshot.table.first_token_s[1] = 0.2
    rule = QoServe()
    assert rule.slack_s(snapshot, np.array([1])) == pytest.approx([0.05])
    # 50 ms / 1.2 = 41.7 ms: 256 tokens of which 255 are prefill take 36.5 ms, 512 take 62.1 ms.
    assert rule.plan(snapshot).prefill_tokens == 255
    assert rule.plan(replace(snapshot, now_s=0.5)).prefill_tokens == 2551
    assert rule.plan(replace(snapshot, now_s=2.0)).prefill_tokens == 127
    # Counted from the real first token it is overdue: 0.2 + 2 x 0.05 < 1.1.
    assert QoServe(from_first=True).plan(snapshot).prefill_tokens == 127


def test_steps_are_small_while_memory_is_short() -> None:
    """Fewer than 32,000 free KV tokens: 512 tokens a step at most."""
    queue = [request("wait", 4000, 5.0)]
    small = Snapshot.of(queue, engine=Engine(limits=EngineLimits(kv_blocks=1000), step_time=MODEL))
    assert QoServe().plan(small).prefill_tokens == 512
    assert QoServe().plan(Snapshot.of(queue, engine=Engine(step_time=MODEL))).prefill_tokens == 2552


def test_throughput_is_an_average_of_what_is_seen() -> None:
    """A step of 1,000 prompt tokens in 0.1 s moves the average by half a percent of the way."""
    snapshot = Snapshot.of([], [request("run", 2000, 5.0)], now_s=1.0, engine=Engine(step_time=MODEL))
    snapshot.table.computed_tokens[0] = 0
    rule = QoServe()
    rule.plan(snapshot)
    snapshot.table.served_tokens[0] = 1000
    rule.plan(replace(snapshot, now_s=1.1, step=1))
    assert rule.throughput_tps == pytest.approx(0.995 * 8500 + 0.005 * 10_000)


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha_s_per_token": -1.0},
        {"margin": 0.0},
        {"pace_s": 0.0},
        {"throughput_tps": 0.0},
        {"margin": float("nan")},
    ],
)
def test_bad_parameters(bad: dict[str, float]) -> None:
    """Named with their domain."""
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be"):
        policy("qoserve", seed=0, **bad)
