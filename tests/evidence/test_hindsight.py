"""What hindsight finds can be reached, is no worse than its starts, and is optimal where that is easy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel
from slosched.lab.bound import attainment_bound
from slosched.lab.hindsight import ROUTERS, Hindsight, _whole, hindsight
from slosched.simulator import simulate, simulate_fleet
from slosched.workloads import Workload, generate, with_forecast

ENGINE = Engine(limits=EngineLimits(), step_time=StepTimeModel(base_s=0.0, prefill_token_s=1e-3))


def prompts(seconds: list[int], due_s: list[float], weight: list[float]) -> Workload:
    """Prompts that take so many seconds, all there at time 0."""
    n = len(seconds)
    work = Workload.plain(np.zeros(n), 1000 * np.array(seconds), np.ones(n, dtype=np.int64))
    return replace(work, ttft_s=np.array(due_s), weight=np.array(weight))


def heaviest(seconds: list[int], due_s: list[float], weight: list[float]) -> float:
    """Largest weight that is in time: brute force over sets, each in order of due dates."""
    best = 0.0
    for some in itertools.product([False, True], repeat=len(seconds)):
        line = sorted(i for i in range(len(seconds)) if some[i])
        line.sort(key=lambda i: due_s[i])
        ends = np.cumsum([seconds[i] for i in line])
        if all(end <= due_s[i] for end, i in zip(ends, line, strict=True)):
            best = max(best, sum(weight[i] for i in line))
    return best / sum(weight)


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_optimum_of_one_machine(seed: int) -> None:
    """Eight prompts one after another: which to give up is known."""
    rng = np.random.default_rng(seed)
    seconds, due_s = rng.integers(1, 5, 8).tolist(), (rng.integers(2, 14, 8) + 0.5).tolist()
    weight = rng.integers(1, 6, 8).astype(float).tolist()
    found = hindsight(prompts(seconds, due_s, weight), ENGINE, trials=20, seed=seed)
    assert found.value == pytest.approx(heaviest(seconds, due_s, weight))


@pytest.mark.parametrize("seed", range(3))
def test_is_near_the_optimum_of_two_machines(seed: int) -> None:
    """Eight prompts, two machines: near the best of all divisions in two, above what one machine can do."""
    rng = np.random.default_rng(seed)
    seconds, due_s = rng.integers(1, 5, 8).tolist(), (rng.integers(2, 8, 8) + 0.5).tolist()
    weight = rng.integers(1, 6, 8).astype(float).tolist()
    best = 0.0
    for side in itertools.product([False, True], repeat=7):
        met = 0.0
        for here in ((False, *side), (True, *(not x for x in side))):
            one = [i for i in range(8) if here[i]]
            if one:
                part = [[values[i] for i in one] for values in (seconds, due_s, weight)]
                met += heaviest(*part) * sum(part[2])
        best = max(best, met)
    work = prompts(seconds, due_s, weight)
    found = hindsight(work, [ENGINE, ENGINE], trials=40, seed=seed)
    assert 0.9 * best <= found.value * sum(weight) <= best + 1e-9
    assert found.value > hindsight(work, ENGINE, trials=20, seed=seed).value


def test_several_engines_are_no_worse_than_the_routers() -> None:
    """On traffic with sessions, a slow engine included: at least what the starts reach; the same twice."""
    slow = replace(ENGINE, step_time=StepTimeModel(base_s=0.04, prefill_token_s=2e-4, sequence_s=2e-3))
    fast = replace(ENGINE, step_time=StepTimeModel(base_s=0.02, prefill_token_s=1e-4, sequence_s=1e-3))
    work = generate("chat", rate_per_s=8.0, duration_s=12.0, seed=3)
    work = replace(work, session=np.arange(len(work)) // 3, think_s=np.full(len(work), 0.5))
    found = hindsight(work, [slow, fast], starts=("paced-edf",), trials=2, seed=1)
    assert found == hindsight(work, [slow, fast], starts=("paced-edf",), trials=2, seed=1)
    for chosen in ROUTERS:
        run = simulate_fleet(
            with_forecast(work, "oracle"), [slow, fast], chosen, "paced-edf", delay_s=0.0, statistics_s=0.0,
            seed=1,
        )  # fmt: skip
        assert found.value >= work.weight[run.outcomes.met].sum() / work.weight.sum() - 1e-9


def test_between_policies_and_bound() -> None:
    """On traffic: at least what the policies reach that it begins with, at most the bound; the same twice."""
    engine = Engine(limits=EngineLimits(max_num_seqs=16), step_time=ENGINE.step_time)
    engine = replace(engine, step_time=StepTimeModel(base_s=0.02, prefill_token_s=1e-4, sequence_s=1e-3))
    work = generate("chat", rate_per_s=8.0, duration_s=12.0, seed=3)
    starts = ("paced-edf", "paced-wspt")
    found = hindsight(work, engine, starts=starts, trials=3, seed=1)
    assert found == hindsight(work, engine, starts=starts, trials=3, seed=1)
    alone = [simulate(with_forecast(work, "oracle"), name, engine=engine).outcomes.met for name in starts]
    reached = [float(work.weight[met].sum() / work.weight.sum()) for met in alone]
    assert max(reached) <= found.value <= attainment_bound(work, engine)
    assert max(reached) < 1
    assert found.trials <= 2 + 3 * 11


def test_sessions_end_where_a_turn_is_given_up() -> None:
    """The second turn is hopeless: without its answer the third and fourth cannot be sent."""
    work = prompts([1, 6, 1, 1], [1.5, 1.5, 1.5, 1.5], [1.0, 1.0, 1.0, 1.0])
    session = replace(work, session=np.zeros(4, dtype=np.int64), think_s=np.zeros(4))
    # Served late, it lets the others be sent; turned away, only the first is.
    served = simulate(session, "fcfs", engine=ENGINE).outcomes.met
    assert served.tolist() == [True, False, True, True]
    assert hindsight(session, ENGINE, trials=3).value == 0.75
    assert _whole(np.array([True, False, True, True]), session.previous).tolist() == [True] + [False] * 3


def test_nothing_to_search() -> None:
    """Weights of 0 and trials below 0."""
    work = prompts([1], [0.5], [0.0])
    assert hindsight(work, ENGINE, starts=("fcfs",)) == Hindsight(value=1.0, found_by="fcfs", trials=0)
    with pytest.raises(InputError, match="trials"):
        hindsight(work, ENGINE, trials=-1)
