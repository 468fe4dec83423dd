"""The event model of continuous batching against its plain Python reference, and the search on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine, EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.planner import model as c
from slosched.planner import reference

CASES = 2000
Case = tuple[Floats, int, Ints, Floats, Floats, float]


def case(seed: int) -> Case:
    """A random queue; every seed gives another mixture."""
    return reference.random_case(np.random.default_rng(seed))


def value(case: Case, order: Ints | None = None) -> float:
    """Value of an order by the compiled evaluator."""
    jobs, running, given, engine, aim, cap = case
    order = given if order is None else order
    found: float = c.evaluate(jobs, running, order, len(order), engine, aim, cap, c.scratch_for(jobs))
    return found


def test_evaluator_agrees_with_the_reference() -> None:
    """On random queues both serve the same jobs, at the same times to 1e-9, with the same chances."""
    limited = 0
    for seed in range(CASES):
        jobs, running, order, engine, aim, cap = case(seed)
        scratch = c.scratch_for(jobs)
        found = c.evaluate(jobs, running, order, len(order), engine, aim, cap, scratch)
        truth = reference.evaluate(jobs, running, order.tolist(), engine, aim.tolist(), cap)
        assert sorted(truth.finish_s) == sorted([*range(running), *order.tolist()]), seed
        assert found == pytest.approx(truth.value, rel=1e-9, abs=1e-9), seed
        for i, finish_s in truth.finish_s.items():
            assert scratch.finish_s[i] == pytest.approx(finish_s, rel=1e-9), seed
            assert scratch.first_s[i] == pytest.approx(truth.first_s[i], rel=1e-9), seed
            chance = c.score(jobs, i, scratch.first_s[i], scratch.finish_s[i], engine[c.NOW], aim)
            assert chance == pytest.approx(truth.chance[i], abs=1e-6), seed
            limited += truth.chance[i] < 1.0
    assert limited > CASES  # the limits matter


def test_a_hand_computed_plan() -> None:
    """Two requests on one slot: prefill in two chunks, decode, then the other; times by hand."""
    jobs = np.zeros((2, c.ATOMS + 1))
    jobs[:, c.TODO], jobs[:, c.LEFT], jobs[:, c.ATOMS], jobs[:, c.ALIVE] = 20, 3, 3, c.ATOMS
    jobs[:, c.FIRST_DUE] = jobs[:, c.E2E_DUE] = jobs[:, c.TPOT] = np.inf
    jobs[:, c.FIRST], jobs[:, c.WEIGHT] = np.nan, 1.0
    engine = np.zeros(c.ENGINE_SIZE)
    engine[c.BASE], engine[c.PREFILL_TOKEN], engine[c.KV_TOKEN] = 1.0, 0.1, 0.01
    engine[c.BUDGET], engine[c.SLOTS], engine[c.KV_TOKENS], engine[c.STEP] = 10, 1, 1000, np.inf
    scratch = c.scratch_for(jobs)
    order = np.array([1, 0])
    found = c.evaluate(jobs, 0, order, 2, engine, np.array([0.25, 0.5, 0.1, 0.0, 0.0]), np.inf, scratch)
    # two steps of prefill at 1 + 10·0.1, half a step to its token; 2.5 steps at 1 + 0.01·(20 + 1.25) in all
    assert scratch.first_s[1] == pytest.approx(4 + 1)
    assert scratch.finish_s[1] == pytest.approx(4 + 3.03125)
    assert scratch.first_s[0] == pytest.approx(7.03125 + 5)
    assert scratch.finish_s[0] == pytest.approx(2 * 7.03125)
    assert found == 2.0


def test_kv_limit_holds_a_request_back() -> None:
    """A request that does not fit the KV cache beside the running one waits until it has left."""
    limits = EngineLimits(kv_blocks=20, block_tokens=16)  # 320 tokens
    running = Request(
        request_id="r", prompt_tokens=200, generated_tokens=1, forecast=LengthForecast.point(30)
    )
    first_s = {}
    for tokens in (100, 150):
        waiting = Request(request_id="w", prompt_tokens=tokens, forecast=LengthForecast.point(5))
        snapshot = Snapshot.of([waiting], [running], engine=Engine(limits=limits))
        jobs = c.jobs_of(snapshot)
        scratch = c.scratch_for(jobs)
        c.evaluate(jobs, 1, np.array([1]), 1, c.engine_of(snapshot), np.array(c.DEFAULT_AIM), np.inf, scratch)
        first_s[tokens] = scratch.first_s[1] - scratch.finish_s[0]
    assert first_s[100] < 0 < first_s[150]


def test_future_prompts_slow_decoding_down() -> None:
    """The larger the expected share of future prompts, the later everybody ends, up to full steps."""
    request = Request(request_id="r", prompt_tokens=50, generated_tokens=1, forecast=LengthForecast.point(40))
    snapshot = Snapshot.of([], [request])
    jobs, engine = c.jobs_of(snapshot), c.engine_of(snapshot)
    ends = []
    for share in (0.0, 0.2, 0.5, 0.9):
        engine[c.FUTURE] = share
        scratch = c.scratch_for(jobs)
        c.evaluate(jobs, 1, np.empty(0, np.int64), 0, engine, np.array(c.DEFAULT_AIM), np.inf, scratch)
        ends.append(float(scratch.finish_s[0]))
    assert ends == sorted(ends)
    assert ends[1] == pytest.approx(ends[0] / 0.8)
    assert ends[3] < ends[0] / 0.1  # a step holds no more than its token budget


def test_search_is_no_worse_deterministic_and_keeps_a_permutation() -> None:
    """Search returns a permutation worth what it says, at least its start, the same for the same seed."""
    better = 0
    for seed in range(300):
        jobs, running, start, engine, aim, cap = case(seed)
        orders = []
        for _ in range(2):
            order, rng = start.copy(), np.array([seed + 1], dtype=np.uint64)
            found = c.search(
                jobs, running, order, len(order), 6, engine, aim, cap, 60, rng, c.scratch_for(jobs)
            )
            orders.append(order.tolist())
            assert sorted(order.tolist()) == sorted(start.tolist())
            assert found == pytest.approx(value((jobs, running, order, engine, aim, cap)), abs=1e-12)
            assert found >= value((jobs, running, start, engine, aim, cap))
        assert orders[0] == orders[1]
        better += found > value((jobs, running, start, engine, aim, cap)) + 1e-9
    assert better > 100


def test_search_without_moves_or_choice_leaves_the_order() -> None:
    """No moves, one request or none: the order stays and the value is that of the order."""
    jobs, running, start, engine, aim, cap = case(11)
    rng = np.array([1], dtype=np.uint64)
    for count, moves in ((len(start), 0), (1, 50), (0, 50)):
        order = start.copy()
        found = c.search(jobs, running, order, count, 6, engine, aim, cap, moves, rng, c.scratch_for(jobs))
        assert order.tolist() == start.tolist()
        assert found == value((jobs, running, start[:count], engine, aim, cap))


def test_insert_is_no_worse_than_the_end() -> None:
    """Insertion keeps a permutation, moves the newcomer only, and is worth at least what the end is."""
    moved = 0
    for seed in range(300):
        jobs, running, start, engine, aim, cap = case(seed)
        if len(start) < 2:
            continue
        order = start.copy()
        newcomer = int(order[-1])
        found = c.insert(jobs, running, order, len(order) - 1, engine, aim, cap, c.scratch_for(jobs))
        assert [i for i in order.tolist() if i != newcomer] == start[:-1].tolist()
        assert found == pytest.approx(value((jobs, running, order, engine, aim, cap)), abs=1e-12)
        assert found >= value((jobs, running, start, engine, aim, cap))
        moved += order[-1] != newcomer
    assert moved > 30


def test_relabelling_jobs_changes_nothing() -> None:
    """The value does not depend on how the waiting jobs are numbered."""
    for seed in range(200):
        jobs, running, order, engine, aim, cap = case(seed)
        names = np.arange(len(jobs))
        names[running:] = running + np.random.default_rng(seed).permutation(len(jobs) - running)
        renamed = np.empty_like(jobs)
        renamed[names] = jobs
        assert value((renamed, running, names[order], engine, aim, cap)) == pytest.approx(
            value((jobs, running, order, engine, aim, cap)), abs=1e-9
        )


def test_jobs_of_a_snapshot() -> None:
    """Decoding, prefilling, preempted and outlived requests become jobs with the tokens still to come."""
    requests = [
        Request(
            request_id="decodes", prompt_tokens=100, generated_tokens=4, forecast=LengthForecast.point(10)
        ),
        Request(request_id="prefills", prompt_tokens=300, forecast=LengthForecast.point(7)),
        Request(
            request_id="outlived", prompt_tokens=50, generated_tokens=40, forecast=LengthForecast.point(9)
        ),
    ]
    waiting = Request(
        request_id="preempted", prompt_tokens=60, generated_tokens=6, forecast=LengthForecast.point(8),
        slo=Slo(ttft_s=1.0, e2e_s=5.0), arrival_s=2.0,
    )  # fmt: skip
    snapshot = Snapshot.of([waiting], requests)
    snapshot.table.computed_tokens[snapshot.running] = [103, 128, 89]  # the newest token is not in the cache
    snapshot.table.first_token_s[snapshot.running[1]] = np.nan
    jobs = c.jobs_of(snapshot)
    assert jobs[:, c.TODO].tolist() == [0, 172, 0, 66]
    assert jobs[:, c.LEFT].tolist() == [6, 7, 10, 2]
    assert jobs[3, [c.FIRST_DUE, c.E2E_DUE, c.GENERATED]].tolist() == [3, 7, 6]


def test_jobs_of_an_incomplete_snapshot_are_numbers() -> None:
    """A preempted request without a first-token time, and prompts said to be complete, give finite values."""
    requests = [
        Request(
            request_id=name, prompt_tokens=60, generated_tokens=made, forecast=LengthForecast.point(8),
            slo=Slo(ttft_s=1.0, tpot_s=0.1, e2e_s=5.0),
        )
        for name, made in (("preempted", 6), ("cached", 0), ("full", 0))
    ]  # fmt: skip
    snapshot = Snapshot.of(requests[:2], requests[2:])
    snapshot.table.cached_tokens[1] = 60
    snapshot.table.first_token_s[2] = np.nan
    jobs = c.jobs_of(snapshot)
    assert jobs[:, c.TODO].tolist() == [1, 66, 1]
    found = value((jobs, 1, np.array([1, 2]), c.engine_of(snapshot), np.array(c.DEFAULT_AIM), np.inf))
    assert 2.9 < found < 3.0


SCRIPT = """
import numpy as np
from slosched.planner import model as c
from slosched.planner.reference import random_case
for seed in range(12):
    jobs, running, order, engine, aim, cap = random_case(np.random.default_rng(seed))
    rng, scratch = np.array([seed + 1], dtype=np.uint64), c.scratch_for(jobs)
    if len(order) > 1:
        c.insert(jobs, running, order, len(order) - 1, engine, aim, cap, scratch)
    found = c.search(jobs, running, order, len(order), 6, engine, aim, cap, 25, rng, scratch)
    print(order.tolist(), round(found, 9), rng.tolist())
"""


def run_script(**environment: str) -> str:
    """Output of the script above in a fresh process, by default compiled."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", SCRIPT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout


def test_same_result_in_another_process_and_without_the_compiler() -> None:
    """A seed gives one result in two processes and in the interpreter."""
    plain = run_script()
    assert plain.count("\n") == 12
    assert run_script(NUMBA_DISABLE_JIT="1") == plain


@pytest.mark.slow
def test_kernels_keep_their_bounds(tmp_path: Path) -> None:
    """With numba's bounds checks on, the kernels raise nothing and give the same orders."""
    # A cache of its own: numba's key does not contain the flag.
    checked = run_script(NUMBA_BOUNDSCHECK="1", NUMBA_OPT="0", NUMBA_CACHE_DIR=str(tmp_path))
    assert checked == run_script()


def test_step_time_coefficients_reach_the_model() -> None:
    """Every coefficient of the step time model lengthens the modelled plan."""
    request = Request(request_id="a", prompt_tokens=3000, forecast=LengthForecast.point(20))
    plain = {"base_s": 0.01, "knee_tokens": 100}
    ends = []
    for extra in ({}, {"prefill_token_s": 1e-5}, {"attention_work_s": 1e-9}, {"sequence_s": 1e-3},
                  {"kv_token_s": 1e-6}, {"knee_token_s": 1e-5}):  # fmt: skip
        snapshot = Snapshot.of([request], engine=Engine(step_time=StepTimeModel(**{**plain, **extra})))  # type: ignore[arg-type]
        jobs = c.jobs_of(snapshot)
        scratch = c.scratch_for(jobs)
        c.evaluate(jobs, 0, np.array([0]), 1, c.engine_of(snapshot), np.array(c.DEFAULT_AIM), np.inf, scratch)
        ends.append(float(scratch.finish_s[0]))
    assert all(end > ends[0] for end in ends[1:])
