"""Whether the simulator schedules as the installed vLLM does, step by step."""

from __future__ import annotations

import numpy as np

from slosched.core.engine import Engine
from slosched.core.workload import Workload
from slosched.simulator import StepRecord, simulate
from slosched.testing.virtual_clock import simulate_vllm

OUTCOMES = (
    "admitted_s", "first_token_s", "finish_s", "preemptions", "recomputed_tokens", "cached_tokens",
)  # fmt: skip
"""Fields of `Outcomes` that are compared, each to the last bit."""


def differences(workload: Workload, engine: Engine, policy: str) -> list[str]:
    """Replay a workload under a policy of vLLM's own, in vLLM and in the simulator, and name what differs.

    Parameters
    ----------
    workload
        Requests to replay; each must fit the context and the KV cache.
    engine
        The engine; its limits name the loop to simulate, see `slosched.testing.harness.installed_loop`.
    policy
        ``"fcfs"`` or ``"priority"``.

    Returns
    -------
    list of str
        ``"steps"`` where some request got other tokens in some step, and the fields of `OUTCOMES` that are
        not equal; nothing where both did the same.

    Raises
    ------
    MissingExtraError
        If vLLM is not installed.
    InputError
        If a request can never fit.
    """
    logs: list[StepRecord] = []
    real = simulate_vllm(workload, stock=policy, engine=engine, record=logs).outcomes
    model = simulate(workload, policy, engine=engine, record=logs).outcomes
    found = [] if tokens_by_step(logs[0]) == tokens_by_step(logs[1]) else ["steps"]
    for name in OUTCOMES:
        if not np.array_equal(getattr(real, name), getattr(model, name), equal_nan=True):
            found.append(name)
    return found


def tokens_by_step(record: StepRecord) -> list[tuple[int, int, int]]:
    """A log as sorted triples of step, row and tokens: within a step the order does not matter."""
    return sorted(zip(record.step.tolist(), record.row.tolist(), record.tokens.tolist(), strict=True))
