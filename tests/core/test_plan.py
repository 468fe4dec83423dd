"""Plans: their rows, what they predict, and how they say it."""

from __future__ import annotations

import doctest
import math
import re

import numpy as np
import pytest

from slosched import LengthForecast, Request, Slo, order, ordering
from slosched.core.arrays import Ints
from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.planner.plan import Plan
from slosched.simulator import simulate

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-4)


def request(name: str, prompt: int = 100, output: float = 20, **fields: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(output),
        **fields,  # type: ignore[arg-type]
    )


def rows(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


@pytest.fixture
def snapshot() -> Snapshot:
    """Rows 0 to 2 wait, rows 3 and 4 run."""
    waiting = [request("a"), request("b", slo=Slo(ttft_s=1.0)), request("c", prompt=9000)]
    running = [request(name, generated_tokens=2, slo=Slo(tpot_s=0.1)) for name in ("x", "y")]
    return Snapshot.of(waiting, running, engine=Engine(step_time=MODEL))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("order", rows(0, 0)),
        ("order", rows(3)),
        ("order", rows(-1)),
        ("hold", rows(4)),
        ("hold", rows(1, 1)),
        ("preempt", rows(0)),
        ("preempt", rows(3, 3)),
        ("running_order", rows(3)),
        ("running_order", rows(3, 3)),
        ("running_order", rows(3, 4, 0)),
        ("reject", rows(3)),
        ("reject", rows(1, 1)),
        ("skip", rows(2)),
        ("skip", rows(4, 4)),
    ],
)
def test_unlawful_rows_are_named(snapshot: Snapshot, field: str, value: Ints) -> None:
    """A plan whose rows are not where it says names the field and the rows."""
    parts: dict[str, Ints] = {"order": rows(), field: value}
    plan = Plan(snapshot=snapshot, policy="test", **parts)  # type: ignore[arg-type]
    message = f"{field} must be .* rows.*, got {re.escape(str(value.tolist()))}"
    with pytest.raises(InputError, match=message):
        plan.check()


def test_lawful_plans_pass(snapshot: Snapshot) -> None:
    """Any choice of waiting and running rows is a plan; who is left out follows by arrival."""
    plan = Plan(
        snapshot=snapshot,
        policy="test",
        order=rows(2),
        hold=rows(0),
        preempt=rows(4),
        running_order=rows(4, 3),
    )
    plan.check()
    assert plan.sequence.tolist() == [2, 0, 1]
    assert plan.request_ids == ["c", "a", "b"]


def test_refused_requests_are_out_of_line(snapshot: Snapshot) -> None:
    """A refused request stands in no order, is in no prediction, and is told so."""
    plan = Plan(snapshot=snapshot, policy="test", order=rows(2, 1), reject=rows(2), skip=rows(3))
    plan.check()
    assert plan.request_ids == ["b", "a"]
    assert plan.prediction.rows.tolist() == [3, 4, 1, 0]
    assert plan.explain("c") == "c is refused by policy test: it gets no answer."
    assert plan.explain("a").startswith("a is number 2 of 2 waiting")


def test_prediction_is_near_the_simulator() -> None:
    """On a static queue, predicted latencies are within a step or two of simulated ones."""
    n = 6
    prompt, output = np.array([300, 50, 900, 20, 400, 100]), np.array([30, 10, 50, 5, 80, 20])
    limits = EngineLimits(max_num_seqs=3, max_num_batched_tokens=512)
    queue = [request(str(i), prompt=int(prompt[i]), output=int(output[i])) for i in range(n)]
    plan = order(Snapshot.of(queue, engine=Engine(limits=limits, step_time=MODEL)), policy="fcfs")
    work = Workload.plain(np.zeros(n), prompt, output)
    real = simulate(work, "fcfs", engine=Engine(limits=limits, step_time=MODEL)).outcomes
    p = plan.prediction
    assert p.rows.tolist() == list(range(n))
    assert p.ttft_s == pytest.approx(real.ttft_s, abs=0.12)
    assert p.e2e_s == pytest.approx(real.e2e_s, rel=0.15, abs=0.05)
    assert np.all((p.chance >= 0) & (p.chance <= 1))
    assert np.all(p.tpot_s >= 0)


def test_prediction_of_chances(snapshot: Snapshot) -> None:
    """A loose limit is surely met, a hopeless one surely not, and running requests come first."""
    queue = [request("easy", slo=Slo(ttft_s=60.0)), request("lost", prompt=20_000, slo=Slo(ttft_s=0.01))]
    p = order(Snapshot.of(queue, engine=Engine(step_time=MODEL)), policy="fcfs").prediction
    assert p.chance.tolist() == [1.0, 0.0]
    assert order(snapshot, policy="fcfs").prediction.rows.tolist() == [3, 4, 0, 1, 2]


def test_explanation_of_a_waiting_request() -> None:
    """In words: its place, the policy, latencies with limits, its chance, and what moving it first costs."""
    # Three long prompts ahead of a short one that then misses its limit.
    queue = [request(f"long{i}", prompt=8000, slo=Slo(ttft_s=4.0)) for i in range(3)]
    queue.append(request("short", prompt=10, output=5, slo=Slo(ttft_s=0.5, tpot_s=1.0, e2e_s=30.0)))
    plan = order(Snapshot.of(queue, engine=Engine(step_time=MODEL)), policy="fcfs")
    text = plan.explain("short")
    assert text.startswith("short is number 4 of 4 waiting, by policy fcfs. Expected: TTFT ")
    assert "(limit 500 ms)" in text
    assert "TPOT" in text
    assert "(limit 30.00 s)" in text
    assert "chance to meet its SLO 0%" in text
    moved = re.search(r"Moved first, its chance would be (\d+)%, and the others would lose (-?[\d.]+)", text)
    assert moved is not None
    assert int(moved[1]) > 80
    assert float(moved[2]) < 0.5


def test_explanation_names_the_worst_hit() -> None:
    """Moving a long request first is explained with whom it would hurt most."""
    queue = [request("tight", prompt=50, slo=Slo(ttft_s=0.4)), request("huge", prompt=40_000)]
    text = order(Snapshot.of(queue, engine=Engine(step_time=MODEL)), policy="fcfs").explain("huge")
    assert "best effort" in text
    assert re.search(r"most of all tight, from \d+% to 0%\.$", text)


def test_explanation_of_others(snapshot: Snapshot) -> None:
    """The first has nobody to overtake, a running request is running, and a stranger is an error."""
    plan = order(snapshot, policy="fcfs")
    assert "Moved first" not in plan.explain("a")
    assert plan.explain("a").startswith("a is number 1 of 3 waiting")
    assert plan.explain("x").startswith("x is running. Expected: TTFT ")
    with pytest.raises(InputError, match="request_id must be a waiting or running request, got 'nobody'"):
        plan.explain("nobody")


def test_order_takes_queues_snapshots_and_policies(snapshot: Snapshot) -> None:
    """A list, a snapshot, a name and an object all work; an unknown name and double names do not."""
    assert order([]).request_ids == []
    assert sorted(order(snapshot).request_ids) == ["a", "b", "c"]
    assert order([request("a", arrival_s=2.0), request("b")], policy="fcfs").request_ids == ["b", "a"]
    with pytest.raises(InputError, match="policy must be one of"):
        order([request("a")], policy="best")
    with pytest.raises(InputError, match="request_id must be unique"):
        order([request("a"), request("a")])


def test_order_keeps_who_can_be_kept() -> None:
    """Ours puts a tight short request before long ones that can wait, and knows everybody will be met."""
    queue = [request(f"long{i}", prompt=8000, slo=Slo(ttft_s=8.0)) for i in range(3)]
    queue.append(request("short", prompt=10, output=5, slo=Slo(ttft_s=0.7)))
    plan = order(Snapshot.of(queue, engine=Engine(step_time=MODEL)))
    assert plan.request_ids[0] == "short"
    assert plan.prediction.chance.min() > 0.9
    assert math.isfinite(plan.prediction.e2e_s.max())


def test_examples() -> None:
    """The examples in the docstring of `order` run."""
    result = doctest.testmod(ordering)
    assert result.attempted >= 4
    assert result.failed == 0
