"""The step-time model: domains, integer clock, closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel

SECONDS = ("base_s", "prefill_token_s", "attention_work_s", "sequence_s", "kv_token_s", "knee_token_s")
coefficient = st.floats(0.0, 1e-3)
models = st.builds(
    StepTimeModel,
    base_s=st.floats(0.0, 1.0),
    prefill_token_s=coefficient,
    attention_work_s=st.floats(0.0, 1e-7),
    sequence_s=coefficient,
    kv_token_s=st.floats(0.0, 1e-5),
    knee_tokens=st.integers(0, 4096),
    knee_token_s=coefficient,
)


@pytest.mark.parametrize("field", SECONDS)
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, 1e9])
def test_bad_coefficient_is_named(field: str, value: float) -> None:
    """A negative, infinite, absent or absurd coefficient is refused by name."""
    arguments = {"base_s": 0.01} | {field: value}
    with pytest.raises(InputError, match=f"{field} must be"):
        StepTimeModel(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, 1.5, 2**40])
def test_bad_knee_is_named(value: float) -> None:
    """The knee is a whole, bounded number of tokens."""
    with pytest.raises(InputError, match="knee_tokens must be"):
        StepTimeModel(base_s=0.01, knee_tokens=value)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(model=models, steps=st.integers(0, 300), sequences=st.integers(0, 1024), kv=st.integers(0, 2_000_000))
def test_decode_run_is_the_sum_of_its_steps(
    model: StepTimeModel, steps: int, sequences: int, kv: int
) -> None:
    """A run in closed form lasts exactly as long as its steps one by one."""
    context = kv + sequences * np.arange(steps)
    total = int(model.predict_ps(sequences=sequences, kv_tokens=context).sum())
    assert int(model.decode_run_ps(steps, sequences, kv)) == total
    assert float(model.decode_run(steps, sequences, kv)) == total / 1e12


@settings(max_examples=200, deadline=None)
@given(
    model=models,
    chunk=st.integers(0, 16_384),
    before=st.integers(0, 100_000),
    sequences=st.integers(0, 1024),
    kv=st.integers(0, 2_000_000),
)
def test_integer_form_follows_float_form(
    model: StepTimeModel, chunk: int, before: int, sequences: int, kv: int
) -> None:
    """The clock's integer step differs from the float step by no more than its rounding."""
    twice = chunk * (2 * before + chunk)
    exact = float(model.predict(chunk, twice / 2, sequences, kv))
    integer = int(model.predict_ps(chunk, twice, sequences, kv))
    rounding_ps = 0.5 * (1 + chunk + sequences + kv + chunk + sequences) + 0.5e-3 * twice / 2 + 1
    assert abs(integer - exact * 1e12) <= rounding_ps + 1e-9 * exact * 1e12


def test_coefficients_drive_the_documented_formula() -> None:
    """The seven integers, in the documented order, give the step by the documented formula."""
    model = StepTimeModel(
        base_s=0.003, prefill_token_s=2e-5, attention_work_s=7e-10, sequence_s=4e-5, kv_token_s=3e-8,
        knee_tokens=100, knee_token_s=1e-5,
    )  # fmt: skip
    base, prefill, sequence, kv, knee_tokens, knee, attention = model.coefficients_ps().tolist()
    chunk, before, b, k = 333, 1000, 20, 30_000
    twice = chunk * (2 * before + chunk)
    step = base + prefill * chunk + sequence * b + kv * k
    step += knee * max(0, chunk + b - knee_tokens) + attention * twice // 2000
    assert int(model.predict_ps(chunk, twice, b, k)) == step


def test_predict_broadcasts() -> None:
    """Arrays of steps are predicted at once."""
    model = StepTimeModel(base_s=0.01, sequence_s=1e-4)
    assert model.predict(sequences=np.arange(6).reshape(2, 3)).shape == (2, 3)
    assert model.decode_run_ps([1, 2], [3, 4], [5, 6]).shape == (2,)
