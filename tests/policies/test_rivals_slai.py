"""SLAI's groups of a step, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.policies.rivals.slai import Slai
from slosched.simulator import StepRecord, simulate

MODEL = StepTimeModel(base_s=0.01)


def request(name: str, prompt: int = 10, tpot_s: float | None = None, **fields: object) -> Request:
    return Request(
        request_id=name, prompt_tokens=prompt, forecast=LengthForecast.point(50), slo=Slo(tpot_s=tpot_s),
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def busy(budget: int = 100, kv_blocks: int = 27_000) -> Snapshot:
    """Rows 0 and 1 wait with 30 and 20 prompt tokens, 2 is in prefill with 40 to go, 3 to 6 decode."""
    waiting = [request("w30", 30), request("w20", 20)]
    running = [
        request("prefill", 90),
        request("loose", tpot_s=1.0, generated_tokens=3),
        request("tight", tpot_s=0.06, generated_tokens=3),
        request("none", generated_tokens=3),
        request("middle", tpot_s=0.08, generated_tokens=3),
    ]
    snapshot = Snapshot.of(
        waiting, running, now_s=1.0,
        engine=Engine(step_time=MODEL).with_limits(max_num_batched_tokens=budget, kv_tokens=16 * kv_blocks),
    )  # fmt: skip
    t = snapshot.table
    t.computed_tokens[2] = 50
    t.computed_tokens[3:7] -= 1
    return replace(snapshot, step=10)


def later(snapshot: Snapshot, now_s: float) -> Snapshot:
    return replace(snapshot, now_s=now_s, step=snapshot.step + 1)


def names(snapshot: Snapshot, rows: np.ndarray[tuple[int], np.dtype[np.int64]] | None) -> list[str]:
    assert rows is not None
    return [snapshot.table.request_ids[row] for row in rows.tolist()]


def test_groups_of_a_step() -> None:
    """Urgent decodes by time, then others as far as prefills leave room, then the prefill, then newcomers."""
    slai, snapshot = Slai(), busy(budget=93)
    plan = slai.plan(snapshot)  # all got their last token now; steps of .01 s expected
    plan.check()
    # Last schedulable: tight 1.06 - .05, middle 1.08 - .05, loose 2 - .05, none never.
    assert names(snapshot, plan.running_order) == ["tight", "middle", "loose", "none", "prefill"]
    # 93 - 40 - 30 - 20 leaves 3.
    assert names(snapshot, plan.skip) == ["none"]
    then = later(snapshot, 1.011)
    # tight is urgent: it takes no part of the room.
    plan = slai.plan(then)
    assert names(then, plan.running_order)[0] == "tight"
    assert names(then, plan.skip) == ["none"]
    assert names(later(snapshot, 1.011), slai.plan(later(then, 1.031)).skip) == ["none"]


def test_no_room_passes_over_all_that_can_wait() -> None:
    """When prompts take the whole budget only urgent decodes go."""
    slai, snapshot = Slai(), busy(budget=80)
    assert names(snapshot, slai.plan(snapshot).skip) == ["tight", "middle", "loose", "none"]
    assert names(snapshot, slai.plan(later(snapshot, 1.011)).skip) == ["middle", "loose", "none"]
    # A step observed to take .02 s makes the offset of 5 steps .1 s: middle is urgent, too.
    slow = Slai()
    slow.plan(snapshot)
    assert names(snapshot, slow.plan(later(snapshot, 1.02)).skip) == ["loose", "none"]


def test_decodes_are_capped() -> None:
    """Beyond `most` decodes only urgent ones are added."""
    snapshot = busy(budget=2048)
    assert names(snapshot, Slai(most=2).plan(snapshot).skip) == ["loose", "none"]
    assert len(Slai().plan(snapshot).skip) == 0


def test_tight_memory_looks_further_ahead() -> None:
    """Above 96 % of memory the offset is 10 steps instead of 5."""
    # 4 running blocks and those of 50 tokens: 8 of 8 in use.
    slai = Slai()
    snapshot = replace(busy(budget=80, kv_blocks=12), free_blocks=0)
    plan = slai.plan(snapshot)
    # tight 1.06 - .1 and middle 1.08 - .1 are due at 1.0 already; nobody can enter, which leaves room.
    assert names(snapshot, plan.running_order)[:2] == ["tight", "middle"]
    assert slai._due_s(snapshot)[[2, 4]] == pytest.approx([0.96, 0.98])


@pytest.mark.parametrize(("shortest", "first"), [(False, "w30"), (True, "w20")])
def test_newcomers(shortest: bool, first: str) -> None:
    """First come, first served, or shortest prompt first."""
    assert Slai(shortest=shortest).plan(busy()).request_ids[0] == first


def test_prefills_overtake_decodes_in_the_engine() -> None:
    """With loose TPOT limits a newcomer's prompt is computed at once; decodes go on before they are late."""
    limits = EngineLimits(max_num_batched_tokens=50)
    plain = Workload.plain(np.array([0.0, 0.055]), np.array([50, 200]), np.array([40, 2]))
    work = replace(plain, tpot_s=np.array([0.08, np.inf]))
    logs: list[StepRecord] = []
    run = simulate(work, Slai(), engine=Engine(limits=limits, step_time=MODEL), record=logs)
    log = logs[0]
    late = log.row == 1
    assert log.tokens[late][:3].tolist() == [50, 50, 50]
    assert run.outcomes.tpot_s[0] < 0.08
    fcfs: list[StepRecord] = []
    simulate(work, "fcfs", engine=Engine(limits=limits, step_time=MODEL), record=fcfs)
    assert fcfs[0].tokens[fcfs[0].row == 1].max() == 49
