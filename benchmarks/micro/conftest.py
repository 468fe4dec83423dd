"""Queues that the micro benchmarks share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from slosched.solvers.continuous_problem import ContinuousProblem


def _queue(waiting: int, running: int = 64, seed: int = 0) -> ContinuousProblem:
    """A seeded queue behind running requests, on the default engine.

    Parameters
    ----------
    waiting, running
        How many wait and run.
    seed
        Seed of lengths, waits and limits.
    """
    rng = np.random.default_rng(seed)
    n = waiting + running
    runs = np.arange(n) < running
    prompt = np.clip(rng.lognormal(5.5, 1.0, n), 4, 4000).round()
    generated = np.where(runs, rng.integers(1, 100, n), 0)
    chat = rng.random(n) < 0.5
    elapsed = np.where(runs, 5.0, np.sort(rng.uniform(0, 5, n))[::-1])
    return ContinuousProblem.build(
        prompt_tokens=prompt,
        output_tokens=generated + np.clip(rng.lognormal(4.8, 0.8, n), 2, 1000).round(),
        elapsed_s=elapsed,
        ttft_s=np.where(chat, elapsed + rng.uniform(0.1, 20, n), math.inf),
        tpot_s=np.where(chat, 0.05, math.inf),
        e2e_s=np.where(chat, math.inf, elapsed + rng.uniform(1, 60, n)),
        weight=rng.choice([0.5, 1.0, 2.0], n),
        running=running,
        generated_tokens=generated,
        computed_tokens=np.where(runs, prompt + generated - 1, 0),
        first_token_s=np.where(runs, -3.0, math.nan),
    )


@pytest.fixture
def queue() -> Callable[..., ContinuousProblem]:
    """Makes a queue of that many waiting and, if given, running requests."""
    return _queue
