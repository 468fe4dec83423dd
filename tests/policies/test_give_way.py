"""Answers with no limit left give way to requests that can still keep theirs, and come back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched import (
    Engine,
    EngineLimits,
    LengthForecast,
    Request,
    Slo,
    Snapshot,
    StepTimeModel,
    Workload,
    simulate,
)  # fmt: skip
from slosched.core.errors import InputError
from slosched.policies.give_way import give_way
from slosched.policies.slosched import Slosched

STEP_TIME = StepTimeModel(base_s=0.01, prefill_token_s=5e-5, sequence_s=1e-4, kv_token_s=1e-8)
FULL = Engine(limits=EngineLimits(max_num_seqs=2, max_num_batched_tokens=2048), step_time=STEP_TIME)


def asked(name: str, length: int, slo: Slo) -> Request:
    """A request of a hundred prompt tokens."""
    return Request(
        request_id=name, prompt_tokens=100, forecast=LengthForecast.point(length), slo=slo, arrival_s=0.0
    )


def full(first: Slo, second: Slo, waits: Slo) -> Snapshot:
    """Two running answers, a short and a long one, fill both slots; one request waits."""
    snapshot = Snapshot.of(
        [asked("waits", 10, waits)],
        [asked("short", 50, first), asked("long", 500, second)],
        now_s=0.5,
        engine=FULL,
    )
    snapshot.table.generated_tokens[snapshot.running] = 5
    snapshot.table.first_token_s[snapshot.running] = 0.1
    return snapshot


EARLY, PACED, WHOLE = Slo(ttft_s=1.0), Slo(ttft_s=1.0, tpot_s=0.1), Slo(e2e_s=60.0)


@pytest.mark.parametrize(
    ("first", "second", "waits", "who"),
    [
        (EARLY, EARLY, EARLY, ["long"]),  # the longest to come
        (PACED, Slo(ttft_s=0.05, tpot_s=0.1), EARLY, ["long"]),  # its first token was late
        (PACED, Slo(tpot_s=0.001), EARLY, ["long"]),  # no step is that short
        (WHOLE, Slo(e2e_s=1.0), EARLY, ["long"]),  # five hundred tokens take longer
        (PACED, Slo(e2e_s=8.0), EARLY, []),  # alone it would end in time
        (EARLY, PACED, EARLY, ["short"]),  # a paced one has something to lose
        (Slo(), PACED, EARLY, ["short"]),  # best effort gives way, too
        (WHOLE, PACED, EARLY, []),
        (EARLY, EARLY, Slo(), []),  # best effort displaces nobody
        (EARLY, EARLY, Slo(ttft_s=0.4), []),  # nor does who is late
    ],
)
def test_who_gives_way(first: Slo, second: Slo, waits: Slo, who: list[str]) -> None:
    """Only answers with nothing to lose stop, only for a request with something to win, and only one here."""
    snapshot = full(first, second, waits)
    way = give_way(snapshot, 0.05)
    assert [snapshot.table.request_ids[row] for row in way.preempt.tolist()] == who
    assert len(way.seen.running) == 2 - len(who)
    assert way.seen.free_blocks == snapshot.free_blocks + 7 * len(who)


def test_nobody_stops_where_there_is_room() -> None:
    """With a third slot the newcomer simply enters."""
    roomy = replace(FULL, limits=replace(FULL.limits, max_num_seqs=3))
    assert len(give_way(replace(full(EARLY, EARLY, EARLY), engine=roomy), 0.05).preempt) == 0


def test_first_tokens_come_in_time_and_everybody_is_served() -> None:
    """Long answers with a limit on the first token only, four slots: far more first tokens are in time."""
    rng = np.random.default_rng(0)
    n = 150
    work = replace(
        Workload.plain(
            np.cumsum(rng.exponential(0.3, n)), rng.integers(50, 300, n), rng.integers(50, 400, n)
        ),
        ttft_s=np.full(n, 2.0),
    )
    engine = replace(FULL, limits=replace(FULL.limits, max_num_seqs=4))
    plain, gives = (
        simulate(work, policy, engine=engine).outcomes for policy in (Slosched(preempt=False), Slosched())
    )
    kept = [float((done.ttft_s <= work.ttft_s).mean()) for done in (plain, gives)]
    assert kept[1] > 0.95
    assert kept[0] < 0.7
    assert gives.finished.all()


def test_preempt_is_true_or_false() -> None:
    """Anything else is refused."""
    with pytest.raises(InputError, match="preempt must be true or false, got 1"):
        Slosched(preempt=1)  # type: ignore[arg-type]


def test_who_stopped_does_not_starve() -> None:
    """In lasting overload by newcomers with limits, an answer that stopped goes on within its bound."""
    n = 1200
    work = replace(
        Workload.plain(np.linspace(0.0, 60.0, n), np.full(n, 900), np.full(n, 40)),
        ttft_s=np.full(n, 3.0),
    )
    engine = replace(FULL, limits=replace(FULL.limits, max_num_seqs=4))
    policy = Slosched(starvation_s=5.0, rescue_share=0.2)
    done = simulate(work, policy, engine=engine).outcomes
    assert done.finished.all()
    during = done.finish_s < work.arrival_s[-1]
    first = done.first_token_s < work.arrival_s[-1]
    assert (during & first & (done.e2e_s > 6.0)).sum() > 20  # they stopped, and went on while others came


@pytest.mark.parametrize("seed", range(6))
def test_the_smallest_prompts_say_as_much_as_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a long queue few are looked at; who gives way is the same."""
    rng = np.random.default_rng(seed)
    queue = [
        replace(
            asked(str(i), 10, Slo(ttft_s=float(rng.uniform(0.2, 3.0)))),
            prompt_tokens=int(rng.integers(1, 60 if seed % 2 else 6000)),
        )
        for i in range(700)
    ]
    running = [asked(f"r{i}", 50 + i, EARLY) for i in range(64)]
    engine = replace(FULL, limits=EngineLimits(max_num_seqs=64, max_num_batched_tokens=2048))
    snapshot = Snapshot.of(queue, running, now_s=0.5, engine=engine)
    snapshot.table.generated_tokens[snapshot.running] = 5
    snapshot.table.first_token_s[snapshot.running] = 0.1
    quick = give_way(snapshot, 0.05)
    monkeypatch.setattr("slosched.policies.give_way.FEW", 10_000)
    whole = give_way(snapshot, 0.05)
    assert len(whole.preempt) > 0
    assert np.array_equal(quick.preempt, whole.preempt)
    assert np.array_equal(quick.aside, whole.aside)
