"""First answer tokens in the simulator: stamped at the right step, and what policies make of their limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.metrics import Metrics
from slosched.core.steptime import StepTimeModel
from slosched.core.thinking import Thinking
from slosched.core.workload import Workload
from slosched.lab.runfile import read_run, write_run
from slosched.simulator import simulate
from slosched.simulator.engine import StepRecord

MODEL = StepTimeModel(base_s=0.004, prefill_token_s=3e-5, sequence_s=4e-5, kv_token_s=3e-8)
Case = tuple[Workload, EngineLimits]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("policy", ["fcfs", "edf", "slosched"])
def test_runs_of_steps_stamp_what_single_steps_do(
    random_case: Callable[[int], Case], seed: int, policy: str
) -> None:
    """In closed form and step by step the first answer token comes at the same time."""
    work, limits = random_case(seed)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, work.output_tokens)
    work = replace(work, thinking=Thinking.of(tokens, rng.choice([0.3, 2.0, np.inf], len(work))))
    engine = Engine(limits=limits, step_time=MODEL)
    fast = simulate(work, policy, engine=engine).outcomes
    record: list[StepRecord] = []
    slow = simulate(work, policy, engine=engine, record=record).outcomes
    assert fast.answer_s is not None
    assert slow.answer_s is not None
    if policy == "fcfs":  # others may be asked at other steps
        np.testing.assert_array_equal(fast.answer_s, slow.answer_s)
    ok = fast.finished
    assert np.all(fast.answer_s[ok] >= fast.first_token_s[ok])
    assert np.all(fast.answer_s[ok] <= fast.finish_s[ok])
    same = ok & (tokens == 0)
    np.testing.assert_array_equal(fast.answer_s[same], fast.first_token_s[same])
    last = ok & (tokens == work.output_tokens - 1)
    np.testing.assert_array_equal(fast.answer_s[last], fast.finish_s[last])


def overload(seed: int) -> Workload:
    """Reasoning requests, some of which think long, at more than the engine can serve at once."""
    rng = np.random.default_rng(seed)
    n = 60
    tokens = np.where(rng.random(n) < 0.3, 800, 60) + rng.integers(0, 40, n)
    work = Workload.plain(np.sort(rng.random(n) * 4.0), np.full(n, 50), tokens + 80)
    return replace(work, thinking=Thinking.of(tokens, np.where(tokens > 500, 30.0, 2.0)))


@pytest.mark.parametrize("policy", ["edf", "slosched"])
def test_policies_that_know_limits_keep_those_on_answers(policy: str) -> None:
    """Deadlines on first answer tokens are seen: more are kept than first come first served keeps."""
    engine = Engine(limits=EngineLimits(max_num_seqs=8, kv_blocks=4000), step_time=MODEL)
    kept, blind = [], []
    for seed in range(3):
        work = overload(seed)
        kept.append(simulate(work, policy, engine=engine).outcomes.met.mean())
        blind.append(simulate(work, "fcfs", engine=engine).outcomes.met.mean())
    assert np.mean(kept) > np.mean(blind) + 0.1


def test_metrics_and_saved_runs_have_it(tmp_path: Path) -> None:
    """By kind of limit, as a latency, and again from a file."""
    engine = Engine(limits=EngineLimits(max_num_seqs=8, kv_blocks=4000), step_time=MODEL)
    run = simulate(overload(0), "fcfs", engine=engine)
    m = Metrics.of(run)
    assert m.by_limit["ttfat"].count == 60
    assert m.by_limit["ttfat"].met == int(run.outcomes.met.sum())
    assert m.ttfat_s is not None
    assert m.ttfat_s.mean > m.ttft_s.mean
    assert Metrics.from_dict(m.to_dict()) == m
    path = tmp_path / "run.json"
    write_run(path, run, engine)
    again = read_run(path).workload
    assert again.thinking is not None
    np.testing.assert_array_equal(again.thinking.tokens, overload(0).thinking.tokens)  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.ttfat_s, overload(0).ttfat_s)
    plain = replace(overload(0), thinking=None)
    assert "ttfat" not in Metrics.of(simulate(plain, "fcfs", engine=engine)).by_limit
