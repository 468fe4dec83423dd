"""A prompt whose last chunk is one token long."""

import numpy as np

from slosched.core.engine import Engine, EngineLimits
from slosched.core.workload import Workload
from slosched.simulator import simulate


def test_single_last_prompt_token_is_prefill() -> None:
    """A chunk of one prompt token ends in a first token, also while others decode."""
    work = Workload.plain(np.array([0.0, 0.5]), np.array([10, 64]), np.array([500, 3]))
    limits = EngineLimits(max_num_batched_tokens=64)
    outcomes = simulate(work, "fcfs", engine=Engine(limits=limits)).outcomes
    assert np.all(outcomes.first_token_s <= outcomes.finish_s)
    recorded = simulate(work, "fcfs", engine=Engine(limits=limits), record=[]).outcomes
    assert np.array_equal(outcomes.first_token_s, recorded.first_token_s)
    assert np.array_equal(outcomes.finish_s, recorded.finish_s)
