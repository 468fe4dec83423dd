"""Limits on first answer tokens: what stands for them, and that every noun keeps them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slosched.cli.queue_file import read_queue
from slosched.core.engine import DEFAULT_ENGINE, Engine
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.outcome import Outcomes
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.table import RequestTable
from slosched.core.thinking import Thinking, aim_at_answers
from slosched.core.workload import Workload
from slosched.workloads import ClassSpec, read, with_slos, write
from slosched.workloads.mix import merge
from slosched.workloads.noise import with_forecast

NOW = np.array([0])


def table_of_one(**fields: object) -> RequestTable:
    """A request of 400 tokens of thinking and 100 of answer that arrived at 1 s."""
    given = {
        "forecast": LengthForecast.point(500), "thinking": LengthForecast.point(400), "arrival_s": 1.0,
        "prompt_tokens": 5, "request_id": "a", **fields,
    }  # fmt: skip
    return RequestTable.of([Request(**given)])  # type: ignore[arg-type]


def test_the_limit_that_stands_for_it_has_the_same_latest_start() -> None:
    """Evenly paced, an answer that starts in time for the one limit is in time for the other."""
    t = table_of_one(slo=Slo(ttfat_s=10.0))
    aim_at_answers(t, NOW, 1.0, 0.02)
    whole_s = float(t.e2e_s[0])
    assert whole_s == pytest.approx(10.0 + 99 * 0.02)
    for waited_s in (0.0, 1.0, 10.0 - 401 * 0.02):
        pace_s = (whole_s - waited_s) / 500  # as slow as the whole answer allows
        assert waited_s + 401 * pace_s <= 10.0 + 1e-9
        assert pace_s >= 0.02 - 1e-9
    assert waited_s + 401 * 0.02 == pytest.approx(10.0)  # the last one is the latest start


@pytest.mark.parametrize(
    ("slo", "now_s", "answer_s", "wanted_s"),
    [
        (Slo(ttfat_s=10.0, e2e_s=11.0), 2.0, math.nan, 11.0),  # its own limit is tighter
        (Slo(ttfat_s=10.0, e2e_s=50.0), 2.0, math.nan, 11.98),
        (Slo(ttfat_s=10.0, tpot_s=0.01), 2.0, math.nan, 10.99),  # a pace bounds the part after thinking
        (Slo(ttfat_s=10.0, e2e_s=50.0), 9.0, 8.0, 50.0),  # in time: its own limit returns
        (Slo(ttfat_s=10.0), 9.0, 8.0, math.inf),
        (Slo(ttfat_s=10.0, e2e_s=50.0), 14.0, 12.0, 10.0),  # late: lost
        (Slo(ttfat_s=10.0, e2e_s=50.0), 11.5, math.nan, 10.0),  # overdue: lost
        (Slo(e2e_s=50.0), 2.0, math.nan, 50.0),
    ],
)
def test_limits_while_thinking_and_after(slo: Slo, now_s: float, answer_s: float, wanted_s: float) -> None:
    """The tighter of both while it thinks; its own with the answer; one in the past when it is too late."""
    t = table_of_one(slo=slo)
    t.answer_s[0] = answer_s
    aim_at_answers(t, NOW, now_s, 0.02)
    assert float(t.e2e_s[0]) == pytest.approx(wanted_s)
    assert float(t.own_e2e_s[0]) == (slo.e2e_s or math.inf)


def test_slo_and_outcomes_judge_the_first_answer_token() -> None:
    """Without thinking the first token counts; a missed beginning is a missed SLO."""
    slo = Slo(ttfat_s=2.0)
    assert not slo.best_effort
    assert slo.met(ttft_s=1.0, tpot_s=0.1, e2e_s=9.0)
    assert slo.met(ttft_s=1.0, tpot_s=0.1, e2e_s=9.0, ttfat_s=2.0)
    assert not slo.met(ttft_s=1.0, tpot_s=0.1, e2e_s=9.0, ttfat_s=2.1)
    with pytest.raises(InputError, match="ttfat_s"):
        Slo(ttfat_s=0.0)
    work = replace(
        Workload.plain(np.zeros(3), np.full(3, 5), np.full(3, 50)),
        thinking=Thinking.of(np.full(3, 40), np.array([2.0, 2.0, np.inf])),
    )
    none = np.zeros(3, dtype=np.int64)
    out = Outcomes(
        workload=work, arrival_s=np.zeros(3), admitted_s=np.zeros(3), first_token_s=np.full(3, 0.1),
        finish_s=np.full(3, 3.0), preemptions=none, recomputed_tokens=none, cached_tokens=none,
        answer_s=np.array([2.0, 2.5, np.nan]),
    )  # fmt: skip
    assert out.met.tolist() == [True, False, True]


def test_thinking_is_checked() -> None:
    """Every field has its domain."""
    work = Workload.plain(np.zeros(1), np.array([5]), np.array([10]))
    with pytest.raises(InputError, match="thinking_tokens must be below output_tokens"):
        replace(work, thinking=Thinking.of(np.array([10])))
    with pytest.raises(InputError, match="columns of 1 requests"):
        replace(work, thinking=Thinking.of(np.array([1, 2])))
    with pytest.raises(InputError, match="at least 0"):
        Thinking.of(np.array([-1]))
    with pytest.raises(InputError, match="ttfat_s must be above 0"):
        Thinking.of(np.array([1]), np.array([0.0]))


def thinkers() -> Workload:
    """Four requests of which two think."""
    work = Workload.plain(np.arange(4.0), np.full(4, 7), np.full(4, 100), slo_class="reasoning")
    return replace(work, thinking=Thinking.of(np.array([0, 60, 0, 90]), np.array([np.inf, 3.0, 1.0, 4.0])))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_workloads_keep_thinking(tmp_path: Path, kind: str) -> None:
    """Written, read, merged, thinned and reordered."""
    work = thinkers()
    again = read(write(work, tmp_path / f"w.{kind}"))
    plain = Workload.plain(np.array([0.5]), np.array([3]), np.array([4]))
    both = merge([work, plain])
    for found, rows in (
        (again, [0, 1, 2, 3]),
        (both, [0, -1, 1, 2, 3]),
        (work.rows(np.array([1, 3])), [1, 3]),
    ):
        assert found.thinking is not None
        assert work.thinking is not None
        for place, row in enumerate(rows):
            true = 0 if row < 0 else int(work.thinking.tokens[row])
            limit = np.inf if row < 0 else float(work.thinking.ttfat_s[row])
            assert (found.thinking.tokens[place], found.thinking.ttfat_s[place]) == (true, limit)
            assert set(found.thinking.atoms[place]) == {float(true)}


def test_a_limit_in_a_file_needs_thinking_lengths(tmp_path: Path) -> None:
    """And so does one by class: nothing is promised that could not be judged."""
    path = tmp_path / "w.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,ttfat_s\n0,5,10,1\n")
    with pytest.raises(InputError, match="thinking_tokens"):
        read(path)
    path.write_text("arrival_s,prompt_tokens,output_tokens,thinking_tokens\n0,5,10,10\n")
    with pytest.raises(InputError, match="below output_tokens"):
        read(path)
    plain = Workload.plain(np.zeros(1), np.array([5]), np.array([10]), slo_class="chat")
    with pytest.raises(InputError, match="thinking_tokens are unknown"):
        with_slos(plain, {"chat": ClassSpec(ttfat_s=1.0)})


def test_forecasts_of_thinking_follow_those_of_the_whole() -> None:
    """The oracle knows it; others the share of the class."""
    work = thinkers()
    told = with_forecast(work, "oracle").thinking
    assert told is not None
    assert told.atoms[:, 0].tolist() == [0.0, 60.0, 0.0, 90.0]
    told = with_forecast(work, "class-mean").thinking
    assert told is not None
    assert told.atoms[:, 0].tolist() == [37.5] * 4


def test_a_snapshot_of_requests_holds_the_limit_that_stands_for_it() -> None:
    """`Snapshot.of` is what `slosched order` and kept policies use."""
    request = Request(
        request_id="a", prompt_tokens=5, forecast=LengthForecast.point(500), slo=Slo(ttfat_s=10.0),
        thinking=LengthForecast.point(400),
    )  # fmt: skip
    engine = Engine(limits=Snapshot.of([]).limits, step_time=StepTimeModel(base_s=0.02))
    t = Snapshot.of([request], engine=engine).table
    assert float(t.e2e_s[0]) == pytest.approx(11.98)
    begun = replace(request, generated_tokens=450)
    assert math.isinf(Snapshot.of([], [begun], engine=engine).table.e2e_s[0])


def test_a_queue_file_may_hold_it(tmp_path: Path) -> None:
    """As `slosched order` reads it: a limit on the first answer token, and how long the request thinks."""
    path = tmp_path / "queue.json"
    asked = {"request_id": "a", "prompt_tokens": 5, "forecast": 500, "thinking": {"0.5": 300, "0.9": 600}}
    path.write_text(json.dumps([asked | {"ttfat_s": 10.0}]))
    snapshot = read_queue(path, DEFAULT_ENGINE)
    t = snapshot.table
    assert 10.0 < float(t.e2e_s[0]) < 20.0
    assert float(t.thinking_tokens[0]) > 300
    path.write_text(json.dumps([asked | {"ttfat_s": -1}]))
    with pytest.raises(InputError, match="ttfat_s"):
        read_queue(path, DEFAULT_ENGINE)
