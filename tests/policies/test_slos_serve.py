"""SLOs-Serve: admission against enumeration, order and chunk by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from slosched.core.engine import Engine
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.policies import policy
from slosched.policies.rivals.slos_serve import SlosServe, accept

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)


def request(name: str, prompt: int, slo: Slo | None = None, **fields: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(50),
        slo=slo or Slo(),
        **fields,  # type: ignore[arg-type]
    )


def on_time(chosen: tuple[int, ...], left: np.ndarray, tokens: np.ndarray, rate: np.ndarray) -> bool:
    """Whether all of the chosen meet their deadlines, the rate falling with each that is accepted."""
    spare, before, count = 0.0, 0.0, 0
    for i in range(len(left)):
        spare += rate[count] * (left[i] - before)
        before = left[i]
        if i in chosen:
            spare -= tokens[i]
            count += 1
            if spare < 0:
                return False
    return True


def test_accepts_the_most_worth_that_is_on_time() -> None:
    """Against all subsets: feasible, and of the largest worth where the rate is constant."""
    rng = np.random.default_rng(3)
    for trial in range(80):
        n = int(rng.integers(1, 9))
        left = np.sort(rng.random(n))
        tokens = rng.integers(1, 400, size=n)
        worth = rng.integers(1, 11, size=n)
        fall = 0.0 if trial % 2 else 30.0
        rate = 1000.0 - fall * np.arange(n + 1)
        accepted = accept(left, tokens, worth, np.zeros(n, dtype=np.bool_), rate, 0.0)
        chosen = tuple(np.flatnonzero(accepted).tolist())
        assert on_time(chosen, left, tokens, rate)
        best = max(
            int(worth[list(subset)].sum())
            for size in range(n + 1)
            for subset in itertools.combinations(range(n), size)
            if on_time(subset, left, tokens, rate)
        )
        # One state a worth: with a falling rate another set of equal worth may have been the better one.
        assert worth[accepted].sum() == best if fall == 0 else worth[accepted].sum() >= 0.8 * best


def test_the_accepted_stay_and_prompts_begun_count() -> None:
    """Somebody accepted is not dropped for more worth, but is if there is no time for it."""
    left, tokens, worth = np.array([1.0, 1.0]), np.array([600, 600]), np.array([1, 9])
    rate, kept = np.full(3, 1000.0), np.array([True, False])
    nobody = np.zeros(2, dtype=np.bool_)
    assert accept(left, tokens, worth, nobody, rate, 0.0).tolist() == [False, True]
    assert accept(left, tokens, worth, kept, rate, 0.0).tolist() == [True, False]
    assert accept(left, tokens, worth, nobody, rate, 500.0).tolist() == [False, False]
    assert accept(np.array([0.5, 1.0]), tokens, worth, kept, rate, 0.0).tolist() == [False, True]


def test_accepted_by_deadline_then_best_effort() -> None:
    """Two prompts of about 0.4 s each fit before 1 s; the light one of three is declined for good."""
    queue = [
        request("none", 10),
        request("light", 4000, Slo(ttft_s=0.9), weight=0.2),
        request("late", 4000, Slo(ttft_s=1.0)),
        request("soon", 4000, Slo(ttft_s=0.95)),
    ]
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    rule = SlosServe()
    assert rule.plan(snapshot).request_ids == ["soon", "late", "none", "light"]
    snapshot.table.ttft_s[1] = 90.0  # decided once
    assert rule.plan(snapshot).request_ids == ["soon", "late", "none", "light"]


def test_a_step_fits_the_tightest_pace() -> None:
    """50 ms less 10 ms and two decodes leave 380 prompt tokens; margin 2 leaves 130."""
    running = [
        request("a", 10, Slo(ttft_s=1.0, tpot_s=0.05), generated_tokens=2),
        request("b", 10, Slo(ttft_s=1.0, tpot_s=0.2), generated_tokens=2),
    ]
    snapshot = Snapshot.of([request("wait", 5000)], running, now_s=0.0, engine=Engine(step_time=MODEL))
    assert SlosServe().plan(snapshot).prefill_tokens in (379, 380)
    assert SlosServe(margin=2.0).plan(snapshot).prefill_tokens in (129, 130)
    assert (
        SlosServe().plan(Snapshot.of([request("wait", 5000)], engine=Engine(step_time=MODEL))).prefill_tokens
        == 2048
    )


@pytest.mark.parametrize("bad", [{"margin": 0.0}, {"most": 0}, {"units": 0}])
def test_bad_parameters(bad: dict[str, float]) -> None:
    """Named with their domain."""
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be"):
        policy("slos-serve", seed=0, **bad)
