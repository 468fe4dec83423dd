"""Random queues for policies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from slosched.core.engine import Engine
from slosched.core.forecast import LengthForecast
from slosched.core.limits import EngineLimits
from slosched.core.request import Request
from slosched.core.slo import Slo
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel

MODEL = StepTimeModel(base_s=0.005, prefill_token_s=4e-5, sequence_s=5e-5, kv_token_s=3e-8)
NOW_S = 100.0


@pytest.fixture(scope="session")
def random_snapshot() -> Callable[..., Snapshot]:
    """Maker of a snapshot from a seed: waiting and running requests of every kind."""
    return make_snapshot


def random_request(rng: np.random.Generator, name: str, running: bool) -> Request:
    """A request with any subset of limits, perhaps hopeless, perhaps preempted before, perhaps outlived."""

    def limit(scale: float) -> float | None:
        return float(scale * rng.lognormal(0, 1.5)) if rng.random() < 0.5 else None

    age = float(rng.choice([0.01, 1.0, 80.0]) * rng.random()) + 0.001
    started = running or rng.random() < 0.2
    return Request(
        request_id=name,
        prompt_tokens=int(rng.integers(1, 1500)),
        forecast=LengthForecast.lognormal(float(rng.integers(2, 400)), float(rng.random())),
        slo=Slo(ttft_s=limit(1.0), tpot_s=limit(0.02), e2e_s=limit(20.0)),
        arrival_s=NOW_S - age,
        weight=float(rng.choice([0.0, 0.5, 1.0, 4.0])),
        priority=int(rng.integers(0, 3)),
        slo_class=str(rng.choice(["a", "b"])),
        generated_tokens=int(rng.integers(1, 600)) if started else 0,
    )


def make_snapshot(
    seed: int,
    *,
    waiting: int | None = None,
    running: int | None = None,
    label: str = "r",
    shuffle: bool = False,
    step: int = 40,
) -> Snapshot:
    """Up to 30 waiting and 12 running requests; `label` and `shuffle` change names and row numbers only."""
    rng = np.random.default_rng(seed)
    n_waiting = int(rng.integers(0, 31)) if waiting is None else waiting
    n_running = int(rng.integers(0, 13)) if running is None else running
    limits = EngineLimits(
        max_num_seqs=max(1, n_running + int(rng.choice([0, 0, 1, 10]))),
        max_num_batched_tokens=int(rng.choice([8, 100, 2048])),
        kv_blocks=max(1, 140 * n_running + int(rng.choice([0, 20, 2000]))),
    )
    queue = [random_request(rng, f"{label}{i}", False) for i in range(n_waiting)]
    active = [random_request(rng, f"{label}{n_waiting + i}", True) for i in range(n_running)]
    if shuffle:
        queue = [queue[i] for i in np.random.default_rng(seed + 1).permutation(n_waiting)]
    snapshot = Snapshot.of(queue, active, now_s=NOW_S, engine=Engine(limits=limits, step_time=MODEL))
    t = snapshot.table
    everyone = np.concatenate([snapshot.waiting, snapshot.running])
    t.prefix_index[everyone] = t.prompt_tokens[everyone] % 5 - 1  # some begin alike, some are not known
    for row in snapshot.waiting.tolist():
        if t.generated_tokens[row] > 0:
            t.preemptions[row] = 1
            t.first_token_s[row] = t.arrival_s[row] + (NOW_S - t.arrival_s[row]) / 2
    for row in snapshot.running.tolist():
        t.first_token_s[row] = t.arrival_s[row] + (NOW_S - t.arrival_s[row]) / 3
        if t.prompt_tokens[row] % 4 == 0:  # still in prefill
            t.generated_tokens[row], t.first_token_s[row] = 0, np.nan
            t.computed_tokens[row] = t.prompt_tokens[row] // 2
    return Snapshot(
        now_s=NOW_S, table=t, waiting=snapshot.waiting, running=snapshot.running,
        engine=snapshot.engine, free_blocks=snapshot.free_blocks, step=step,
    )  # fmt: skip
