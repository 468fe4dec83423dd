"""Limits split into a first token and a pace, and steps filled within a time budget, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.policies.fill import fill, todo_tokens
from slosched.policies.pace import (
    answer_due_s,
    first_and_pace_s,
    in_decode,
    next_due_s,
    paced_due_s,
)

RandomSnapshot = Callable[..., Snapshot]
MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)  # a decode step alone: 11 ms


def request(name: str, prompt: int = 10, output: float = 10, **fields: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(output),
        **fields,  # type: ignore[arg-type]
    )


def test_an_end_to_end_limit_is_split() -> None:
    """E - n·P, at least E / 2; without P, twice a decode step; a first token that is there is known."""
    queue = [
        request("both", slo=Slo(ttft_s=1.0, tpot_s=0.05, e2e_s=9.0)),  # 9 - 10 x 0.05 > 1; 8 s left for 10
        request("pace", slo=Slo(tpot_s=0.05, e2e_s=2.0)),  # 2 - 0.5
        request("long", output=100, slo=Slo(e2e_s=2.4)),  # 2.4 - 100 x 0.022 < 1.2
        request("there", slo=Slo(e2e_s=2.0), generated_tokens=4),  # first token after 0.5 s; 1.5 s for 10
        request("lost", output=1000, slo=Slo(e2e_s=1.0)),  # 0.5 ms a token: nobody can
        request("none"),
    ]
    snapshot = Snapshot.of(queue, engine=Engine(step_time=MODEL))
    snapshot.table.first_token_s[3] = 0.5
    first, pace = first_and_pace_s(snapshot, np.arange(6))
    assert first == pytest.approx([1.0, 1.5, 1.2, 0.5, 0.5, math.inf])
    assert pace == pytest.approx([0.05, 0.05, 0.012, 0.15, math.inf, math.inf])
    first, pace = first_and_pace_s(snapshot, np.arange(6), pace_s=0.1)
    assert first == pytest.approx([1.0, 1.5, 1.2, 0.5, 0.5, math.inf])
    assert pace == pytest.approx([0.05, 0.05, 0.012, 0.1, 0.1, math.inf])


def test_when_tokens_and_answers_are_due() -> None:
    """On the envelope the first token's slack stays; by the measured pace it does not."""
    chat = Slo(ttft_s=2.0, tpot_s=0.1)
    queue = [
        request("old", slo=chat, arrival_s=1.0, generated_tokens=5),
        request("new", slo=chat, arrival_s=1.0),
        request("whole", slo=Slo(e2e_s=4.0), arrival_s=1.0),
        request("none", arrival_s=1.0),
    ]
    snapshot = Snapshot.of(queue, now_s=3.0, engine=Engine(step_time=MODEL))
    snapshot.table.first_token_s[0] = 1.5
    rows = np.arange(4)
    first, pace = first_and_pace_s(snapshot, rows)
    assert next_due_s(snapshot, rows, first, pace)[:2] == pytest.approx([3.5, 3.0])
    assert paced_due_s(snapshot, rows, first, pace)[:2] == pytest.approx([2.0, 3.0])
    assert np.isinf(next_due_s(snapshot, rows, first, pace)[3])
    # The tenth token: nine paces after the first, which is late or at the limit.
    assert answer_due_s(snapshot, rows) == pytest.approx([2.4, 3.9, 5.0, math.inf])


def test_a_step_is_filled_to_its_time() -> None:
    """Decodes and prompts in turn; the first that does not fit is cut, by hand."""
    running = [request(f"d{i}", generated_tokens=3) for i in range(2)]
    queue = [request("a", prompt=100), request("b", prompt=300), request("c", prompt=50)]
    snapshot = Snapshot.of(queue, running, engine=Engine(step_time=MODEL))
    line = np.array([3, 0, 4, 1, 2])
    assert in_decode(snapshot, line).tolist() == [True, False, True, False, False]
    # 10 ms + 2 decodes + 10 ms for a: 22 ms; 8.05 ms left are 80 tokens of b.
    filled = fill(snapshot, line, 0.03005)
    assert filled.tokens.tolist() == [1, 100, 1, 80, 0]
    assert filled.prefill_tokens == 180
    assert filled.skip.tolist() == []
    # 21.5 ms hold one decode and a, not the other decode, which is passed over.
    filled = fill(snapshot, line, 0.0215)
    assert filled.tokens.tolist() == [1, 100, 0, 0, 0]
    assert filled.skip.tolist() == [4]
    assert fill(snapshot, line, 0.0).tokens.tolist() == [1, 0, 0, 0, 0]
    small = Snapshot.of(
        queue, running, engine=Engine(limits=EngineLimits(max_num_batched_tokens=150), step_time=MODEL)
    )
    assert fill(small, line, math.inf).tokens.tolist() == [1, 100, 1, 48, 0]


def test_a_running_prompt_waits_for_a_more_urgent_newcomer() -> None:
    """The engine serves running requests first: a prompt begun that gets a part only is passed over."""
    snapshot = Snapshot.of(
        [request("new", prompt=100)], [request("begun", prompt=400)], engine=Engine(step_time=MODEL)
    )
    snapshot.table.computed_tokens[1] = 100
    assert todo_tokens(snapshot, np.array([0, 1])).tolist() == [100, 300]
    assert fill(snapshot, np.array([0, 1]), 0.03005).skip.tolist() == [1]
    assert fill(snapshot, np.array([0, 1]), 0.3).skip.tolist() == []
    assert fill(snapshot, np.array([1, 0]), 0.03005).skip.tolist() == []


def test_a_filled_step_keeps_its_time(random_snapshot: RandomSnapshot) -> None:
    """Whatever the queue: the predicted time is within the budget, and the next token would not be."""
    for seed in range(40):
        snapshot = random_snapshot(seed)
        t, model = snapshot.table, snapshot.step_time
        line = np.concatenate([snapshot.running, snapshot.admissible(snapshot.waiting)])
        if len(line) == 0:
            continue
        budget_s = 0.02
        tokens = fill(snapshot, line, budget_s).tokens
        decode = in_decode(snapshot, line)

        def seconds(
            tokens: np.ndarray[tuple[int], np.dtype[np.int64]],
            decode: np.ndarray[tuple[int], np.dtype[np.bool_]] = decode,
            kv: np.ndarray[tuple[int], np.dtype[np.int64]] = t.computed_tokens[line],
            model: StepTimeModel = model,
        ) -> float:
            served = decode & (tokens > 0)
            return float(model.predict(tokens[~decode].sum(), 0, served.sum(), kv[served].sum()))

        assert tokens.sum() <= snapshot.limits.max_num_batched_tokens
        assert seconds(tokens) <= budget_s or tokens.sum() == 1
        want = np.where(decode, 1, todo_tokens(snapshot, line))
        more = tokens.copy()
        if (tokens < want).any():
            more[int(np.argmax(tokens < want))] += 1
            assert seconds(more) > budget_s or more.sum() > snapshot.limits.max_num_batched_tokens


def test_only_who_fits_is_admissible() -> None:
    """Head of line: slots and blocks are used up in order."""
    queue = [request(f"q{i}", prompt=p) for i, p in enumerate((160, 320, 16))]
    slots = Snapshot.of(queue, engine=Engine(limits=EngineLimits(max_num_seqs=2), step_time=MODEL))
    assert slots.admissible(np.arange(3)).tolist() == [0, 1]
    memory = Snapshot.of(queue, engine=Engine(limits=EngineLimits(kv_blocks=25), step_time=MODEL))
    assert memory.admissible(np.arange(3)).tolist() == [0]
