"""Small random workloads on small engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from slosched.core.engine import EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import PrefixBlocks, Workload

MODEL = StepTimeModel(base_s=0.004, prefill_token_s=3e-5, sequence_s=4e-5, kv_token_s=3e-8)
Case = tuple[Workload, EngineLimits]


@pytest.fixture(scope="session")
def model() -> StepTimeModel:
    """A step time whose parts all matter."""
    return MODEL


@pytest.fixture(scope="session")
def random_case() -> Callable[[int], Case]:
    """Maker of an overloaded workload with limits, and of an engine with little memory, from a seed."""
    return make_case


def make_case(seed: int) -> Case:
    """Up to 40 requests in bursts, with limits, weights, noisy forecasts and shared prefixes."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    limits = EngineLimits(
        max_num_seqs=int(rng.integers(1, 9)),
        max_num_batched_tokens=int(rng.integers(8, 200)),
        kv_blocks=int(rng.integers(30, 120)),
        block_tokens=int(rng.choice([2, 4])),
        prefix_cache=bool(rng.random() < 0.5),
        long_prefill_token_threshold=int(rng.choice([0, 16])),
    )
    room = limits.kv_tokens
    prompt = rng.integers(1, room // 2, size=n)
    output = np.maximum(1, rng.integers(1, room - prompt) // rng.integers(1, 5, size=n))
    work = Workload.plain(np.sort(rng.random(n) * rng.choice([0.0, 0.5, 3.0])), prompt, output)
    counts = rng.integers(0, 8, size=n)
    prefix = PrefixBlocks(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=np.concatenate([np.arange(c) + 100 * int(rng.integers(3)) for c in counts]).astype(np.int64),
        block_tokens=4,
    )
    return (
        replace(
            work,
            prefix=prefix,
            ttft_s=np.where(rng.random(n) < 0.5, rng.random(n) + 0.01, np.inf),
            tpot_s=np.where(rng.random(n) < 0.3, 0.003 + 0.01 * rng.random(n), np.inf),
            e2e_s=np.where(rng.random(n) < 0.3, 4 * rng.random(n) + 0.05, np.inf),
            weight=rng.choice([0.0, 0.5, 1.0, 3.0], size=n),
            priority=rng.integers(0, 3, size=n),
            atoms=np.sort(np.maximum(1.0, work.atoms * rng.lognormal(0, 0.7, work.atoms.shape)), axis=1),
        ),
        limits,
    )
