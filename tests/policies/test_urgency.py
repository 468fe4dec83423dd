"""ProServe's urgency and density, Cascade's budgets, by hand."""

from __future__ import annotations

import math
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
from slosched.policies.rivals.cascade import Cascade
from slosched.policies.rivals.proserve import ProServe

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)


def request(name: str, prompt: int = 10, output: float = 10, **fields: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(output),
        **fields,  # type: ignore[arg-type]
    )


def test_light_load_is_deadline_first() -> None:
    """Prompts of 0.1 and 0.2 s and a constant of 10 ms: a load of 0.31 s makes nobody urgent."""
    queue = [
        request("heavy", 1000, slo=Slo(ttft_s=2.0), weight=9.0), request("soon", 2000, slo=Slo(ttft_s=1.0))
    ]  # fmt: skip
    snapshot = Snapshot.of(queue, now_s=0.0, engine=Engine(step_time=MODEL))
    assert ProServe().plan(snapshot).request_ids == ["soon", "heavy"]
    # λ = 7 makes both urgent: weight over seconds, 9 / 0.1 against 1 / 0.2.
    assert ProServe(urgency=7.0).plan(snapshot).request_ids == ["heavy", "soon"]
    # λ = 4 makes one of them urgent.
    assert ProServe(urgency=4.0).plan(snapshot).request_ids == ["soon", "heavy"]


def test_overload_is_density_first_but_for_the_starved() -> None:
    """All urgent: overdue by more than S first, then by weight over seconds; best effort last."""
    queue = [
        request("best effort", 10),
        request("long", 9000, slo=Slo(ttft_s=1.0), arrival_s=2.5),
        request("short", 100, slo=Slo(ttft_s=1.0), arrival_s=2.5),
        request("starved", 9000, slo=Slo(ttft_s=1.0), arrival_s=0.9),
        request("overdue", 1000, slo=Slo(ttft_s=1.0), arrival_s=1.5),
    ]
    snapshot = Snapshot.of(queue, now_s=3.0, engine=Engine(step_time=MODEL))
    assert ProServe().plan(snapshot).request_ids == ["starved", "short", "overdue", "long", "best effort"]


def test_the_step_is_cut_at_the_time_budget() -> None:
    """The decode is due in 40 ms, above 0.65 x 50 ms: 10 + 1 ms and 290 tokens of the prompt."""
    running = [request("run", slo=Slo(ttft_s=1.0, tpot_s=0.05), generated_tokens=3)]
    queue = [request("wait", 5000, slo=Slo(ttft_s=9.0))]
    snapshot = Snapshot.of(queue, running, now_s=0.31, engine=Engine(step_time=MODEL))
    snapshot.table.first_token_s[1] = 0.2 + 1e-9
    line, budget_s = ProServe().line(snapshot, np.array([1, 0]))
    assert budget_s == pytest.approx(0.04)
    assert line.tolist() == [1, 0]
    assert ProServe().plan(snapshot).prefill_tokens == 290
    # Overdue, it limits the step no more: 0.65 x 50 ms leave 215 tokens after it.
    late = replace(snapshot, now_s=0.5)
    assert ProServe().line(late, np.array([1, 0]))[1] == pytest.approx(min(9.0 - 0.5, 8.5))
    slow = Snapshot.of([], running, now_s=0.5, engine=Engine(step_time=MODEL))
    slow.table.first_token_s[0] = 0.2
    assert ProServe().line(slow, np.array([0]))[1] == pytest.approx(0.0325)


def test_decodes_give_way_to_urgent_prompts() -> None:
    """A decode with time to spare is passed over while an urgent prompt fills the step."""
    running = [request("run", slo=Slo(ttft_s=1.0, tpot_s=0.5), generated_tokens=1)]
    queue = [request("now", 3000, slo=Slo(ttft_s=0.32))]
    snapshot = Snapshot.of(queue, running, now_s=0.0, engine=Engine(step_time=MODEL))
    snapshot.table.first_token_s[1] = 0.0
    # Load (0.3 + 0.001) / (1 - 0.01 / 0.325): 0.3106 s; 0.32 s are more, 0.31 s less.
    assert ProServe().line(snapshot, np.array([1, 0]))[0].tolist() == [0, 1]
    assert ProServe(urgency=1.2).plan(snapshot).skip.tolist() == [1]


def test_least_budget_first() -> None:
    """Budget = limit less 1.2 times the service by the expected and the longest length, by hand."""
    uneven = LengthForecast((10.0,) * 7 + (90.0,))  # mean 20
    queue = [
        Request(request_id="risk", prompt_tokens=100, forecast=uneven, slo=Slo(e2e_s=2.0)),
        request("sure", 100, 20, slo=Slo(e2e_s=1.5)),
        request("first", 100, 20, slo=Slo(ttft_s=1.0)),
        request("none", 100, 20),
    ]
    snapshot = Snapshot.of(queue, now_s=0.5, engine=Engine(step_time=MODEL))
    snapshot.table.arrival_s[:4] = 0.0
    prefill, step = 0.01 + 0.01, 0.011
    budget = Cascade().budget_s(snapshot, np.arange(4))
    assert budget == pytest.approx(
        [
            1.5 - 1.2 * (prefill + (19 + 89) / 2 * step),
            1.0 - 1.2 * (prefill + 19 * step),
            0.5 - 1.2 * prefill,
            math.inf,
        ]
    )
    assert Cascade().plan(snapshot).request_ids == ["first", "sure", "risk", "none"]


def test_the_largest_budget_gives_way() -> None:
    """On a full engine, if recomputing it leaves it a budget above the newcomer's."""
    limits = EngineLimits(max_num_seqs=2)
    running = [
        request("tight", 10, 20, slo=Slo(e2e_s=1.0), generated_tokens=2),
        request("loose", 3000, 20, slo=Slo(e2e_s=9.0), generated_tokens=2),
    ]

    def plan(limit_s: float, loose_s: float) -> list[str]:
        fields = {"engine": Engine(limits=limits, step_time=MODEL), "now_s": 0.0}
        queue = [request("new", slo=Slo(e2e_s=limit_s))]
        active = [running[0], replace(running[1], slo=Slo(e2e_s=loose_s))]
        snapshot = Snapshot.of(queue, active, **fields)  # type: ignore[arg-type]
        plan = Cascade().plan(snapshot)
        assert plan.running_order is not None
        assert plan.running_order.tolist() == [1, 2]
        return [snapshot.table.request_ids[row] for row in plan.preempt.tolist()]

    assert plan(2.0, 9.0) == ["loose"]
    assert plan(9.9, 9.0) == []  # the newcomer has more time
    # Loose has 1.1 - 1.2 x 0.214 = 0.843 s, of which recomputing takes 0.3; the newcomer needs 1.2 x 0.119.
    assert plan(0.6, 1.1) == ["loose"]  # 0.457 < 0.543
    assert plan(0.9, 1.1) == []  # 0.757 > 0.543


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("cascade", {"gamma": 1.0}),
        ("proserve", {"urgency": 0.0}),
        ("proserve", {"prefill_weight": -1.0}),
        ("proserve", {"decode_weight": math.nan}),
    ],
)
def test_bad_parameters(name: str, bad: dict[str, float]) -> None:
    """Named with their domain."""
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be"):
        policy(name, seed=0, **bad)
