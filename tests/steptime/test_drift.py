"""Online correction: follows drift, shrugs off outliers, costs next to nothing."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from slosched.core.drift import OnlineStepTime
from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel

START = StepTimeModel(
    base_s=0.008, prefill_token_s=2e-5, attention_work_s=8e-10, sequence_s=7e-5, kv_token_s=6e-8,
    knee_tokens=256, knee_token_s=1e-5,
)  # fmt: skip


def feed(online: OnlineStepTime, truth: StepTimeModel, n: int, seed: int, *, stalls: float = 0.0) -> None:
    """Report n steps of an engine that follows `truth` with 3 % noise and some steps ten times as long."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        chunk = int(rng.integers(64, 2048)) if rng.random() < 0.3 else 0
        sequences = int(rng.integers(1, 128))
        work = (chunk, chunk * chunk / 2, sequences, sequences * int(rng.integers(200, 2000)))
        seconds = float(truth.predict(*work)) * float(rng.normal(1.0, 0.03))
        online.observe(*work, seconds * (10.0 if rng.random() < stalls else 1.0))


def worst_miss(model: StepTimeModel, truth: StepTimeModel) -> float:
    """Largest relative error over an idle, a decode, a mixed and a prefill step."""
    steps = (np.array([0, 0, 512, 2048]), np.array([0, 0, 131_072, 2_097_152]),
             np.array([1, 100, 50, 0]), np.array([500, 100_000, 50_000, 0]))  # fmt: skip
    return float(np.max(np.abs(model.predict(*steps) / truth.predict(*steps) - 1.0)))


def test_a_right_model_stays_right() -> None:
    """Noise alone does not drive a right model off by more than its own size."""
    online = OnlineStepTime(START)
    feed(online, START, 3000, seed=1)
    assert worst_miss(online.model, START) < 0.04


@pytest.mark.parametrize("factor", [0.5, 1.3, 3.0])
def test_overall_drift_is_followed(factor: float) -> None:
    """An engine that becomes slower or faster as a whole is followed to within 5 %."""
    truth = StepTimeModel(
        base_s=START.base_s * factor, prefill_token_s=START.prefill_token_s * factor,
        attention_work_s=START.attention_work_s * factor, sequence_s=START.sequence_s * factor,
        kv_token_s=START.kv_token_s * factor, knee_tokens=256, knee_token_s=START.knee_token_s * factor,
    )  # fmt: skip
    online = OnlineStepTime(START)
    feed(online, truth, 1500, seed=2)
    assert worst_miss(online.model, truth) < 0.05


def test_drift_of_one_term_is_told_apart() -> None:
    """When only decodes become dearer, idle and prefill steps are not mispredicted for it."""
    truth = replace(START, sequence_s=START.sequence_s * 2, kv_token_s=START.kv_token_s * 2)
    online = OnlineStepTime(START)
    feed(online, truth, 4000, seed=3)
    assert worst_miss(online.model, truth) < 0.06
    assert worst_miss(START, truth) > 0.3


@pytest.mark.parametrize("seconds", [1e-9, 0.1, 1e3, 1e300])
def test_one_bad_sample_cannot_wreck_the_model(seconds: float) -> None:
    """A single absurd duration moves no prediction by more than twice gain times clip."""
    online = OnlineStepTime(START)
    online.observe(0, 0, 10, 10_000, seconds)
    assert worst_miss(online.model, START) <= 2 * 0.05 * 0.25


def test_stalls_are_shrugged_off() -> None:
    """With one step in twenty taking ten times as long, predictions stay within 6 %."""
    online = OnlineStepTime(START)
    feed(online, START, 3000, seed=4, stalls=0.05)
    assert worst_miss(online.model, START) < 0.06


def test_impossible_reports_are_counted_and_ignored() -> None:
    """NaN, infinite, zero and negative reports leave the model as it was."""
    online = OnlineStepTime(START)
    for seconds in (math.nan, math.inf, 0.0, -1.0):
        online.observe(0, 0, 1, 100, seconds)
    for tokens in (math.nan, math.inf, -1.0):
        online.observe(tokens, 0, 1, 100, 0.01)
        online.observe(0, 0, 1, tokens, 0.01)
    assert online.rejected == 10
    assert online.observations == 0
    assert online.model is START


def test_multipliers_stay_in_bounds() -> None:
    """Even a log of pure nonsense leaves a valid model within the bound."""
    online = OnlineStepTime(START, bound=4.0)
    for _ in range(5000):
        online.observe(100, 5000, 10, 10_000, 1e6)
    assert online.model.base_s <= 4.0 * START.base_s
    assert online.error == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("arguments", [{"gain": 0.0}, {"gain": math.nan}, {"clip": -1.0}, {"bound": 0.5}])
def test_bad_settings_are_named(arguments: dict[str, float]) -> None:
    """Settings out of their domain are refused by name."""
    with pytest.raises(InputError, match=f"{next(iter(arguments))} must be"):
        OnlineStepTime(START, **arguments)


@pytest.mark.speed
def test_an_observation_costs_microseconds() -> None:
    """The best of several batches takes under 5 microseconds a step."""
    online = OnlineStepTime(START)
    best = math.inf
    for _ in range(20):
        began = time.thread_time()
        for _ in range(500):
            online.observe(0, 0.0, 64, 64_000, 0.0163)
        best = min(best, (time.thread_time() - began) / 500)
    assert best < 5e-6
