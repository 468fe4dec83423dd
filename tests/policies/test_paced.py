"""The paced policies do what their docstring says, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from slosched import EngineLimits, LengthForecast, Request, Slo, StepTimeModel
from slosched.core.engine import Engine
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.lab.named_cells import named
from slosched.policies.paced import LEAST_TOKENS, Paced, PacedEdf, PacedSrpt, PacedWspt
from slosched.simulator import simulate

MODEL = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3)
"""A prompt token takes 0.1 ms, a decoding request 1 ms."""


def request(name: str, prompt: int = 1000, **fields: object) -> Request:
    slo = Slo(**{k: fields.pop(k) for k in ("ttft_s", "tpot_s", "e2e_s") if k in fields})  # type: ignore[arg-type]
    tokens = fields.pop("tokens", 100)
    return Request(
        request_id=name, prompt_tokens=prompt, forecast=LengthForecast.point(tokens), slo=slo, **fields  # type: ignore[arg-type]
    )  # fmt: skip


def snapshot(
    waiting: list[Request], running: list[Request], *, now_s: float = 0.0, budget: int = 8192
) -> Snapshot:
    return Snapshot.of(
        waiting,
        running,
        now_s=now_s,
        engine=Engine(
            step_time=MODEL,
            limits=EngineLimits(max_num_seqs=64, max_num_batched_tokens=budget, kv_blocks=4000),
        ),
    )


def test_a_step_holds_what_the_tightest_pace_allows() -> None:
    """Pace 50 ms, of which 90 %: 45 ms = 10 + 1 for the answer + 34 for prompts, at 0.1 ms a token."""
    one = request("run", tpot_s=0.05, generated_tokens=1)
    plan = PacedEdf().plan(snapshot([request("wait")], [one]))
    assert plan.prefill_tokens == 340


def test_what_an_answer_has_saved_is_shared_among_its_tokens_to_come() -> None:
    """Ten tokens at once at time 0, one allowed each 50 ms: 0.45 s saved over 90 tokens, 5 ms each."""
    one = request("run", tpot_s=0.05, generated_tokens=10)
    plan = PacedEdf().plan(snapshot([request("wait")], [one]))
    assert plan.prefill_tokens == int((0.9 * (0.05 + 0.45 / 90) - 0.011) / 1e-4 + 1e-6)


@pytest.mark.parametrize("budget", [512, 8192, 16_384])
def test_a_pace_that_leaves_nothing_lets_prompts_go_on_slowly(budget: int) -> None:
    """The least share does not depend on the token budget."""
    one = request("run", tpot_s=0.0123, generated_tokens=1)
    plan = PacedEdf().plan(snapshot([request("wait")], [one], budget=budget))
    assert plan.prefill_tokens == LEAST_TOKENS


def test_an_answer_past_hope_slows_nobody_down() -> None:
    lost = request("lost", tpot_s=0.005, generated_tokens=1)
    late = request("late", ttft_s=1.0, tpot_s=0.02, generated_tokens=2, arrival_s=0.0)
    snap = snapshot([request("wait", 30)], [lost, late], now_s=5.0)
    snap.table.first_token_s[snap.running[1]] = 4.99
    plan = PacedEdf().plan(snap)
    assert plan.prefill_tokens is not None
    assert plan.prefill_tokens > 1000


def test_a_begun_prompt_is_passed_over_for_a_more_urgent_one() -> None:
    begun = request("begun", 4000, ttft_s=50.0)
    decoding = request("run", tpot_s=0.05, generated_tokens=1)
    snap = snapshot([request("urgent", 600, ttft_s=1.0)], [decoding, begun])
    snap.table.computed_tokens[snap.running[1]] = 100
    plan = PacedEdf().plan(snap)
    assert plan.skip.tolist() == [snap.running[1]]
    snap = snapshot([request("easy", 600, ttft_s=100.0)], [decoding, begun])
    snap.table.computed_tokens[snap.running[1]] = 100
    assert len(PacedEdf().plan(snap).skip) == 0


def test_hopeless_requests_go_last_or_are_refused() -> None:
    waiting = [request("lost", 5000, ttft_s=0.1), request("fine", 5000, ttft_s=9.0)]
    last = PacedEdf().plan(snapshot(waiting, []))
    assert last.request_ids == ["fine", "lost"]
    refusing = PacedEdf(hopeless="refuse")
    assert refusing.rejects
    plan = refusing.plan(snapshot(waiting, []))
    assert [plan.snapshot.table.request_ids[r] for r in plan.reject] == ["lost"]


def test_newcomers_wait_whose_decoding_would_break_the_pace() -> None:
    """With 24 answers a step takes 34 ms of 36; two more fit, the third would not."""
    running = [request(f"r{i}", 10, tpot_s=0.04, generated_tokens=1) for i in range(24)]
    waiting = [request(f"w{i}", 10, arrival_s=0.0) for i in range(4)]
    free = PacedEdf().plan(snapshot(waiting, running))
    held = PacedEdf(hold=True).plan(snapshot(waiting, running))
    assert len(free.hold) == 0
    assert [held.snapshot.table.request_ids[r] for r in held.hold] == ["w2", "w3"]
    assert len(PacedEdf(hold=True).plan(snapshot(waiting, [])).hold) == 0


def test_orders() -> None:
    waiting = [
        request("long", 4000, weight=10.0, ttft_s=90.0),
        request("short", 500, ttft_s=80.0),
        request("soon", 2000, ttft_s=70.0),
    ]
    snap = snapshot(waiting, [])
    assert PacedEdf().plan(snap).request_ids == ["soon", "short", "long"]
    assert PacedSrpt().plan(snap).request_ids == ["short", "soon", "long"]
    assert PacedWspt().plan(snap).request_ids == ["long", "short", "soon"]


@pytest.mark.parametrize(
    "fields", [{"hopeless": "later"}, {"share": 0.0}, {"least_chance": 2.0}, {"hold": 1}]
)
def test_bad_options_are_named(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(fields))):
        PacedEdf(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [PacedWspt(), PacedWspt(hold=True), PacedEdf(hopeless="refuse")])
def test_every_plan_of_a_run_is_valid(policy: Paced) -> None:
    """In overload with tight paces; nobody is lost, and refusals only where they are allowed."""
    scenario = named("heavy-minority").model_copy(update={"requests": 200})
    engine, work = scenario.engine, scenario.workload()
    checked = policy.plan

    def plan(snap: Snapshot):  # type: ignore[no-untyped-def]
        found = checked(snap)
        found.check()
        return found

    policy.plan = plan  # type: ignore[method-assign,assignment]
    run = simulate(work, policy, engine=engine)
    gone = np.zeros(len(work), dtype=bool) if run.outcomes.rejected is None else run.outcomes.rejected
    assert np.array_equal(run.outcomes.finished, ~gone)
    assert policy.rejects == bool(gone.any())
    assert run.outcomes.met.any()
