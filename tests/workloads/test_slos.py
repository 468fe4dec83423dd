"""Limits by class are what the specification says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.steptime import StepTimeModel
from slosched.core.thinking import Thinking
from slosched.workloads import ClassSpec, Workload, generate, merge, with_slos
from slosched.workloads.slos import unloaded_latency

MODEL = StepTimeModel(
    base_s=0.01, prefill_token_s=1e-5, attention_work_s=1e-9, sequence_s=1e-4, kv_token_s=1e-7
)


def two_classes() -> Workload:
    """One request of class a and one of class b."""
    one = Workload.plain(np.zeros(1), np.array([1000]), np.array([11]), slo_class="a")
    two = Workload.plain(np.ones(1), np.array([5000]), np.array([1]), slo_class="b")
    return merge([one, two])


def test_unloaded_latency_step_by_step() -> None:
    """The unloaded latency equals a sum over the steps of a request alone."""
    w = generate("mixed", rate_per_s=1.0, duration_s=30.0, seed=4)
    alone = unloaded_latency(w, MODEL, chunk_tokens=512)
    for i in range(len(w)):
        prompt, output = int(w.prompt_tokens[i]), int(w.output_tokens[i])
        ttft = sum(
            float(
                MODEL.predict(min(512, prompt - at), min(512, prompt - at) * (at + min(512, prompt - at) / 2))
            )
            for at in range(0, prompt, 512)
        )
        decode = float(np.sum(MODEL.predict(0, 0, 1, prompt + np.arange(1, output))))
        assert alone.ttft_s[i] == pytest.approx(ttft)
        assert alone.e2e_s[i] == pytest.approx(ttft + decode)
        if output > 1:
            assert alone.tpot_s[i] == pytest.approx(decode / (output - 1))


def test_absolute_and_relative_limits() -> None:
    """A limit is the larger of the absolute one and the multiple; classes not named stay as they are."""
    w = two_classes()
    alone = unloaded_latency(w, MODEL)
    spec = ClassSpec(ttft_s=0.05, ttft_x=2.0, tpot_x=1.5, e2e_s=9.0, weight=3.0, priority=-1)
    got = with_slos(w, {"b": spec}, model=MODEL)
    assert got.ttft_s.tolist() == [np.inf, pytest.approx(2 * alone.ttft_s[1])]
    assert got.tpot_s.tolist() == [np.inf, pytest.approx(1.5 * alone.tpot_s[1])]
    assert got.e2e_s.tolist() == [np.inf, 9.0]
    assert got.weight.tolist() == [1.0, 3.0]
    assert got.priority.tolist() == [0, -1]
    floor = with_slos(w, {"a": ClassSpec(ttft_s=5.0, ttft_x=2.0)}, model=MODEL)
    assert floor.ttft_s[0] == 5.0


def test_best_effort_removes_limits() -> None:
    """An empty specification makes a class best effort again."""
    w = with_slos(two_classes(), {"a": ClassSpec(e2e_s=1.0)})
    assert with_slos(w, {"a": ClassSpec(weight=0.0)}).e2e_s.tolist() == [np.inf, np.inf]
    assert ClassSpec().best_effort
    assert not ClassSpec(tpot_x=2.0).best_effort


def test_unknown_class_and_missing_model() -> None:
    """A class that is not there and a multiple without a model are refused by name."""
    with pytest.raises(InputError, match=r"class must be one of a, b, got 'chat'"):
        with_slos(two_classes(), {"chat": ClassSpec(e2e_s=1.0)})
    with pytest.raises(InputError, match="model must be a StepTimeModel"):
        with_slos(two_classes(), {"a": ClassSpec(e2e_x=2.0)})


@pytest.mark.parametrize("field", ["ttft_s", "tpot_s", "e2e_s", "ttft_x", "tpot_x", "e2e_x"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_domains_of_limits(field: str, value: object) -> None:
    """A limit that is not a finite number above 0 is refused by name."""
    with pytest.raises(InputError, match=f"{field} must be a finite number above 0"):
        ClassSpec(**{field: value})  # type: ignore[arg-type]


def test_domains_of_weight_and_priority() -> None:
    """Weight and priority have domains too."""
    with pytest.raises(InputError, match="weight"):
        ClassSpec(weight=-1.0)
    with pytest.raises(InputError, match="priority"):
        ClassSpec(priority=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="priority"):
        ClassSpec(priority=True)
    for weight in (True, float("inf"), float("nan"), "1"):
        with pytest.raises(InputError, match="weight"):
            ClassSpec(weight=weight)  # type: ignore[arg-type]
    assert ClassSpec(weight=0).best_effort


@pytest.mark.parametrize("field", ["ttft", "tpot", "e2e"])
def test_one_limit_of_any_kind_is_a_promise(field: str) -> None:
    """Absolute or relative, alone."""
    absolute, relative = ClassSpec(**{f"{field}_s": 1.0}), ClassSpec(**{f"{field}_x": 1.0})  # type: ignore[arg-type]
    assert (absolute.relative, relative.relative) == (False, True)
    assert not absolute.best_effort
    assert not relative.best_effort
    assert not ClassSpec(ttfat_s=1.0).best_effort


def test_prompts_take_as_many_steps_as_their_chunks() -> None:
    """Of one token at least; a multiple is taken of the engine's own chunks."""
    w = two_classes()
    steps = StepTimeModel(base_s=0.01, prefill_token_s=0.0)
    assert unloaded_latency(w, steps, chunk_tokens=1).ttft_s.tolist() == pytest.approx([10.0, 50.0])
    assert unloaded_latency(w, steps).ttft_s.tolist() == pytest.approx([0.01, 0.03])
    with pytest.raises(InputError, match="chunk_tokens must be an integer of at least 1, got 0"):
        unloaded_latency(w, steps, chunk_tokens=0)
    got = with_slos(w, {"b": ClassSpec(ttft_x=2.0)}, model=steps, chunk_tokens=500)
    assert got.ttft_s[1] == pytest.approx(0.2)


def test_limits_on_the_first_answer_token_are_by_class() -> None:
    """For requests that think; others are refused by name."""
    w = two_classes()
    thinking = Thinking(
        tokens=np.array([5, 0]), ttfat_s=np.array([np.inf, 3.0]), atoms=np.zeros((2, FORECAST_ATOMS))
    )
    think = replace(w, thinking=thinking)
    assert with_slos(think, {"a": ClassSpec(ttfat_s=1.5)}).ttfat_s.tolist() == [1.5, 3.0]
    assert with_slos(think, {"b": ClassSpec(e2e_s=1.0)}).ttfat_s.tolist() == [np.inf, np.inf]
    with pytest.raises(InputError, match="ttfat_s must be absent"):
        with_slos(w, {"a": ClassSpec(ttfat_s=1.5)})
    assert with_slos(w, {"a": ClassSpec(ttft_s=1.5)}).ttft_s.tolist() == [1.5, np.inf]
