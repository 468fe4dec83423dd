"""Real requests' features beside preemption, holds and passing over: every limit of vLLM's stays kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.policies import policy
from slosched.testing.chaos import never_happened, run_chaos
from slosched.testing.chaos_features import FEATURES, Feature, features_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

TOGETHER = ("lora", "multimodal", "structured", "siblings", "priority")
CASES = [
    *(((name,), False, 1) for name in FEATURES),
    *(((name,), True, 2) for name, kind in FEATURES.items() if kind.asynchronous),
    (("lora", "structured", "speculation"), False, 1),
    (("lora", "structured", "speculation"), True, 2),
    (TOGETHER, False, 3),
    (TOGETHER, True, 2),
    (("lora", "kv_connector"), False, 1),
]


@pytest.mark.parametrize(("features", "asynchronous", "depth"), CASES)
def test_features_survive_chaos(features: tuple[str, ...], asynchronous: bool, depth: int) -> None:
    """Every token right and nothing left behind; preemptions, holds and passing over really happen."""
    counts: Counter[str] = Counter()
    for seed in range(2 if "pooling" in features else 1):
        counts.update(
            run_chaos(
                90, seed, asynchronous=asynchronous, depth=depth, prefix_cache=depth > 1,
                worst_victim="priority" in features, features=features,
            )
        )  # fmt: skip
    assert set(never_happened(counts)) <= {"rejected", "resets"}


class OneAdapter(Feature):
    """Two adapters with room for one, beside requests without."""

    name = "one-adapter"

    def prepare(self, engine: Any) -> None:
        from types import SimpleNamespace

        engine.scheduler.lora_config = SimpleNamespace(max_loras=1)

    def dress(self, engine: Any, i: int, keywords: dict[str, Any]) -> None:
        from vllm.lora.request import LoRARequest

        if i % 3:
            keywords["lora_request"] = LoRARequest(f"a{i % 3}", i % 3, "/nowhere")


@pytest.mark.parametrize(("asynchronous", "depth"), [(False, 1), (True, 2)])
def test_adapters_of_requests_passed_over_count(asynchronous: bool, depth: int) -> None:
    """The policy passes over running requests, and vLLM's own assertion on adapters holds."""
    from slosched.testing.chaos import ChaosEngine

    n = 120
    rng = np.random.default_rng(0)
    work = Workload.plain(np.sort(rng.uniform(0, n / 50, n)), rng.integers(1, 200, n), rng.integers(1, 40, n))
    work = replace(work, ttft_s=np.full(n, 1.0), tpot_s=np.full(n, 0.05))
    limits = EngineLimits(
        max_num_seqs=8, max_num_batched_tokens=128, kv_blocks=60, block_tokens=16, max_model_len=512,
        prefix_cache=False,
    )  # fmt: skip
    step_time = StepTimeModel(base_s=0.01, prefill_token_s=2e-5)
    model = Engine(limits=limits, step_time=step_time)
    engine = ChaosEngine(work, model, depth=depth, asynchronous=asynchronous)
    engine.use_policy(policy("slosched", seed=0))
    engine.use_features([OneAdapter(0)])
    engine.disturb(0, abort=0.0, reset=0.0)
    engine.run()
    assert engine.result(0.0).outcomes.finished.all()
    assert engine.scheduler.slosched.stats.skipped > 0


def test_a_feature_is_refused_where_vllm_has_it_not() -> None:
    with pytest.raises(InputError, match="'pooling' must run synchronously, 8 steps"):
        features_of(["pooling"], 0, asynchronous=True, depth=1)
    with pytest.raises(InputError, match="'speculation' must run synchronously or not, 2 steps"):
        features_of(["speculation"], 0, asynchronous=True, depth=4)
    with pytest.raises(InputError, match=r"feature must be one of lora, .*, got 'telepathy'"):
        features_of(["telepathy"], 0, asynchronous=False, depth=1)


def test_schedule_reads_nothing_that_was_not_looked_at() -> None:
    """Fails on a release whose loop counts on a new state: look at it, then add it to the list."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from slosched.testing.schedule_reads import reads, unknown

    assert unknown(Scheduler) == []
    own, requests = reads(Scheduler.schedule)
    assert {"running", "waiting", "max_num_scheduled_tokens"} <= own
    assert {"num_output_placeholders", "num_tokens_with_spec", "lora_request"} <= requests


def test_a_new_state_is_found() -> None:
    class Scheduler:
        def schedule(self) -> None:
            for request in self.running:  # type: ignore[attr-defined]
                self.telepathy -= request.thoughts  # type: ignore[attr-defined]

    from slosched.testing.schedule_reads import unknown

    assert unknown(Scheduler) == ["request.thoughts", "telepathy"]
