"""TRAIL's policy against theory: SPRPT with limited preemption in the M/G/1 queue.

Two links: the policy in the simulator, serving one request at a time, gives each request the finish time of a
few lines of queueing code; and on a million jobs that code gives the mean response time of the closed form.
"""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.policies.rivals.trail import Trail
from slosched.simulator import simulate

CLOSED_FORM = {
    (0.0, 0.5): 1.712686, (0.2, 0.5): 1.585058, (0.5, 0.5): 1.470173, (0.8, 0.5): 1.428779,
    (0.5, 0.8): 2.428863, (0.8, 0.8): 2.358303,
}  # fmt: skip
"""Mean response time for Exp(1) sizes known exactly, by (C, load): the lemma of Shahout et al. 2024 (arXiv
2410.01035) by quadrature. C = 0 is non-preemptive SJF; C = 1, SRPT, would be 1.425373 at load 0.5."""


@numba.njit(cache=True)
def queue(arrival_s: NDArray[np.float64], size: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """Finish times when one job gets a token a second: the one with least to come, but a job whose age
    has reached `share` of its size keeps the server.
    """
    n = len(size)
    left = size.copy()
    finish = np.zeros(n)
    present = np.empty(n, dtype=np.int64)  # by arrival
    waiting = 0
    following = 0
    current = -1
    now = 0.0
    for _ in range(size.sum()):
        if current < 0 and waiting == 0 and arrival_s[following] > now:
            now = arrival_s[following]
        while following < n and arrival_s[following] <= now:
            present[waiting] = following
            waiting += 1
            following += 1
        free = current < 0 or size[current] - left[current] < share * size[current]
        if free and waiting > 0:
            best = 0
            for k in range(1, waiting):
                if left[present[k]] < left[present[best]]:
                    best = k
            if current < 0 or left[present[best]] < left[current]:
                chosen = present[best]
                for k in range(best, waiting - 1):
                    present[k] = present[k + 1]
                waiting -= 1
                if current >= 0:  # back to its place by arrival
                    k = waiting
                    while k > 0 and present[k - 1] > current:
                        present[k] = present[k - 1]
                        k -= 1
                    present[k] = current
                    waiting += 1
                current = chosen
        now += 1.0
        left[current] -= 1
        if left[current] == 0:
            finish[current] = now
            current = -1
    return finish


def _jobs(n: int, mean: float, load: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    size = np.ceil(rng.exponential(mean, n)).astype(np.int64)
    return np.cumsum(rng.exponential(size.mean() / load, n)), size


@pytest.mark.parametrize(("share", "load"), CLOSED_FORM)
def test_the_policy_is_the_queue(share: float, load: float) -> None:
    """Every request of the simulator finishes when the queue says."""
    arrival_s, size = _jobs(800, 12.0, load, seed=3)
    work = Workload.plain(arrival_s, np.ones(len(size), dtype=np.int64), size)
    run = simulate(
        work,
        Trail(preemptible_share=share),
        engine=Engine(
            limits=EngineLimits(max_num_seqs=1, max_num_batched_tokens=100_000),
            step_time=StepTimeModel(base_s=1.0, prefill_token_s=0.0, sequence_s=0.0, kv_token_s=0.0),
        ),
    )
    np.testing.assert_allclose(run.outcomes.finish_s, queue(arrival_s, size, share), rtol=1e-9)
    assert (run.outcomes.preemptions.sum() > 10) == (share > 0)


@pytest.mark.parametrize(("share", "load"), CLOSED_FORM)
def test_the_queue_is_the_closed_form(share: float, load: float) -> None:
    """A million jobs, within 1.5 %, about what such runs spread between seeds."""
    arrival_s, size = _jobs(1_000_000, 100.0, load, seed=5)
    response = (queue(arrival_s, size, share) - arrival_s).mean() / size.mean()
    assert response == pytest.approx(CLOSED_FORM[share, load], rel=0.015)
