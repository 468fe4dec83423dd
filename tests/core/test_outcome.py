"""What counts as a latency, and as a promise kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.outcome import Outcomes
from slosched.core.thinking import Thinking
from slosched.core.workload import Workload

NOT = np.nan


def outcomes(first_s: list[float], finish_s: list[float], **limits: list[float]) -> Outcomes:
    """Four requests that arrive at 1 s, with 1, 2, 11 and 11 output tokens."""
    n = 4
    work = Workload.plain(np.ones(n), np.full(n, 5), np.array([1, 2, 11, 11]))
    columns = {name: np.array(values) for name, values in limits.items()}
    work = replace(work, **columns)  # type: ignore[arg-type]
    none = np.zeros(n, dtype=np.int64)
    return Outcomes(
        workload=work, arrival_s=work.arrival_s, admitted_s=np.ones(n), first_token_s=np.array(first_s),
        finish_s=np.array(finish_s), preemptions=none, recomputed_tokens=none, cached_tokens=none,
    )  # fmt: skip


def test_latencies() -> None:
    """TTFT and e2e count from arrival; TPOT is the mean after the first token, 0 for one-token answers."""
    o = outcomes([1.5, 2.0, 2.0, NOT], [1.5, 2.5, 4.0, NOT])
    assert o.ttft_s.tolist()[:3] == [0.5, 1.0, 1.0]
    assert o.tpot_s.tolist()[:3] == [0.0, 0.5, 0.2]
    assert o.e2e_s.tolist()[:3] == [0.5, 1.5, 3.0]
    assert np.isnan([o.ttft_s[3], o.tpot_s[3], o.e2e_s[3]]).all()
    assert o.finished.tolist() == [True, True, True, False]


def test_best_effort_has_only_to_finish() -> None:
    """Without limits every finished request is met, an unfinished one is not."""
    assert outcomes([1.5, 2.0, 2.0, 2.0], [9.0, 9.0, 9.0, NOT]).met.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        ({"ttft_s": [0.5, 0.9, 1.0, 9.0]}, [True, False, True, False]),
        ({"tpot_s": [1e-9, 0.5, 0.19, 9.0]}, [True, True, False, False]),
        ({"e2e_s": [0.4, 1.5, 3.0, 9.0]}, [False, True, True, False]),
    ],
)
def test_limits_are_kept_at_equality(limits: dict[str, list[float]], met: list[bool]) -> None:
    """Each kind of limit is kept at equality and lost beyond; the unfinished keeps none."""
    assert outcomes([1.5, 2.0, 2.0, NOT], [1.5, 2.5, 4.0, NOT], **limits).met.tolist() == met


def test_the_first_answer_token_counts_from_arrival() -> None:
    """After thinking; where nobody thinks it is the first token. The limit on it holds at equality."""
    o = outcomes([1.5, 2.0, 2.0, NOT], [1.5, 2.5, 4.0, NOT])
    assert o.ttfat_s.tolist()[:3] == o.ttft_s.tolist()[:3]
    o = replace(o, answer_s=np.array([1.5, 2.25, NOT, NOT]))
    assert o.ttfat_s.tolist()[:2] == [0.5, 1.25]
    assert np.isnan(o.ttfat_s[2:]).all()
    for limit_s, met in ((1.25, [True, True, False, False]), (1.2, [True, False, False, False])):
        thinking = Thinking(
            tokens=np.array([0, 1, 5, 5]), ttfat_s=np.full(4, limit_s), atoms=np.zeros((4, FORECAST_ATOMS))
        )
        assert replace(o, workload=replace(o.workload, thinking=thinking)).met.tolist() == met
    # Without a limit on it nobody need answer: a request may think to its end.
    assert o.met.tolist() == [True, True, True, False]


def test_tokens_that_came_together_are_no_pace() -> None:
    """The mean is over those that came after; 0 where all came at once."""
    o = outcomes([1.5, 2.0, 2.0, 2.0], [1.5, 2.5, 4.0, 4.0])
    o = replace(o, first_tokens=np.array([1, 2, 3, 11]), finish_s=np.array([1.5, 2.0, 4.0, 2.0]))
    assert o.tpot_s.tolist() == [0.0, 0.0, 0.25, 0.0]
