"""How many prompt tokens a step may hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.engine import Engine
from slosched.core.forecast import LengthForecast
from slosched.core.limits import EngineLimits
from slosched.core.request import Request
from slosched.simulator import simulate
from slosched.core.slo import Slo
from slosched.core.snapshot import Snapshot
from slosched.planner import model as c
from slosched.planner.pacing import PATIENCE, SAFE_SHARE, next_step, safe_step_s
from slosched.planner.planner import Planner
from slosched.workloads import Workload


def engine_with(
    tpot_s: float | None, *, generated: int = 1, took_s: float = 0.0, alone: bool = False
) -> Snapshot:
    """One request decodes, `took_s` since its first token; another waits with 4000 tokens unless `alone`."""
    decodes = Request(
        request_id="decodes", prompt_tokens=700, generated_tokens=generated, slo=Slo(tpot_s=tpot_s),
        forecast=LengthForecast.point(generated + 40),
    )  # fmt: skip
    waits = Request(request_id="waits", prompt_tokens=4000, forecast=LengthForecast.point(10))
    return Snapshot.of([] if alone else [waits], [decodes], now_s=took_s)


def step_of(snapshot: Snapshot) -> tuple[float, list[int]]:
    """What a safe step holds: prompt tokens and who sits it out, waiting rows by arrival."""
    jobs, running, engine = c.jobs_of(snapshot), len(snapshot.running), c.engine_of(snapshot)
    order = np.arange(running, len(jobs), dtype=np.int64)
    tokens, idle = next_step(jobs, running, order, engine, safe_step_s(jobs, running, engine), True)
    return float(tokens), idle.tolist()


def room_of(snapshot: Snapshot) -> float:
    """Its prompt tokens."""
    return step_of(snapshot)[0]


@pytest.mark.parametrize("tpot_s", [0.015, 0.02, 0.03, 0.05])
def test_a_step_with_that_many_tokens_takes_the_share_of_the_limit(tpot_s: float) -> None:
    """Below and above the knee: the step-time model gives back `SAFE_SHARE` of the limit."""
    snapshot = engine_with(tpot_s)
    room = room_of(snapshot)
    pairs = room * 4000 / 2  # on average over the waiting prompt
    assert room < snapshot.limits.max_num_batched_tokens
    step_s = snapshot.step_time.predict(room, pairs, 1, 700)
    assert room > 0
    assert float(step_s) == pytest.approx(SAFE_SHARE * tpot_s, rel=0.01)


def test_saved_time_allows_larger_steps_and_lost_time_smaller_ones() -> None:
    """The limit is on the mean over the answer."""
    saved, even, lost = (engine_with(0.03, generated=11, took_s=t) for t in (0.1, 0.3, 0.5))
    assert room_of(saved) > room_of(even) > room_of(lost) > 0


def test_who_has_missed_another_limit_slows_nobody() -> None:
    """The first token came too late: the TPOT limit is not worth keeping."""
    snapshot = engine_with(0.03)
    snapshot.table.ttft_s[snapshot.running] = 0.1
    assert room_of(snapshot) < np.inf
    snapshot.table.first_token_s[snapshot.running] = 0.2
    assert room_of(snapshot) == np.inf


@pytest.mark.parametrize(("ahead", "sits"), [(PATIENCE - 0.2, False), (PATIENCE + 0.2, True)])
def test_an_answer_ahead_of_its_pace_sits_a_step_out(ahead: float, sits: bool) -> None:
    """One answer has a tight limit, one a loose one; the loose one's next token is due in `ahead` steps."""
    forecast = LengthForecast.point(60)
    tight = Request(request_id="tight", prompt_tokens=700, generated_tokens=11, slo=Slo(tpot_s=0.03),
                    forecast=forecast)  # fmt: skip
    loose = Request(request_id="loose", prompt_tokens=700, generated_tokens=11, slo=Slo(tpot_s=0.1),
                    forecast=forecast)  # fmt: skip
    waits = Request(request_id="waits", prompt_tokens=4000, forecast=forecast)
    snapshot = Snapshot.of([waits], [tight, loose], now_s=0.3)
    snapshot.table.first_token_s[snapshot.running] = [
        0.0, 0.3 + SAFE_SHARE * (ahead * 0.03 - 0.1 * 11),
    ]  # fmt: skip
    tokens, idle = step_of(snapshot)
    assert idle == ([1] if sits else [])
    alone = replace(snapshot, running=snapshot.running[:1])
    assert (tokens == room_of(alone)) is sits
    snapshot.table.e2e_s[snapshot.running] = 2.0  # the answer would end too late at that pace
    assert step_of(snapshot)[1] == []


def test_no_limit_no_bound() -> None:
    """Nobody with a TPOT limit, nobody whose limit can be kept, or no prompt: no bound."""
    assert room_of(engine_with(None)) == np.inf
    assert room_of(engine_with(0.001)) == np.inf
    assert room_of(engine_with(0.03, alone=True)) == np.inf


def test_the_planner_paces_where_nothing_is_lost_by_it() -> None:
    """A best-effort prompt does not stall an answer; without answers it gets whole steps."""
    snapshot = engine_with(0.03)
    _, cap, *_ = Planner().plan(snapshot)
    assert cap == int(room_of(snapshot))
    _, cap, *_ = Planner().plan(replace(snapshot, running=snapshot.running[:0]))
    assert cap == np.inf


def test_short_answers_keep_their_pace_under_a_stream_of_prompts() -> None:
    """Short chat answers beside a burst of best-effort prompts: by EDF most miss TPOT, by ours none."""
    arrival = np.concatenate([np.linspace(0, 4, 40), np.full(12, 0.2)])
    prompt = np.concatenate([np.full(40, 30), np.full(12, 9000)])
    output = np.concatenate([np.full(40, 12), np.full(12, 30)])
    tpot = np.where(prompt == 30, 0.04, np.inf)
    by_time = np.argsort(arrival, kind="stable")
    plain = Workload.plain(arrival[by_time], prompt[by_time], output[by_time])
    work = replace(plain, ttft_s=25 * tpot[by_time], tpot_s=tpot[by_time])
    missed = {}
    for policy in ("edf", "slosched"):
        o = simulate(work, policy, engine=Engine(limits=EngineLimits())).outcomes
        pace = (o.finish_s - o.first_token_s) / (work.output_tokens - 1)
        missed[policy] = int(np.sum(pace > work.tpot_s))
    assert missed["edf"] > 15
    assert missed["slosched"] == 0
