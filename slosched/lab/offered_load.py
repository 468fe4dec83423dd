"""An absolute unit of load: offered work over what the engine can sustain.

Load 1 is the traffic that keeps the engine busy all the time with batches as full as its slots, its KV cache
and its token budget allow. It follows from lengths and from the step-time model. It does not depend on any
policy, on any limit, or on when requests come.

Per request let P be prompt tokens, C those of them that an endless prefix cache has, O output tokens, and

- work = prefill_token·(P - C) + attention·(P - C)·(C + (P - C)/2) + sequence·(O - 1)
  + kv_token·Σ(P + k), k = 1 … O - 1: the part of the step time that grows with what is done;
- residence = ceil((P - C) / token budget) + O - 1: steps in which the request holds a slot and memory.

At most N requests run together: the slots, or the KV tokens over the mean tokens held per step of residence,
whichever is less. A request then costs s = max(mean residence / N, mean tokens / token budget) steps of its
own. Each step costs its base, and what exceeds the knee costs more:

    seconds per request = mean work + s·base + knee_token·max(0, mean tokens - s·knee_tokens)

and load = seconds per request · requests per second. Above 1 no policy can keep up; the queue grows as long
as it lasts. (Closed loops send less when answers come late; their load is that of turns sent as planned.)
Limits on TPOT forbid full batches, so a tight pace may overload an engine far below 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.engine import Engine
from slosched.core.errors import require
from slosched.core.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What requests of given lengths ask of an engine with full batches.

    Parameters
    ----------
    seconds
        Engine seconds per request, on average.
    running
        Requests that run together at most: slots or memory.
    step_s
        Seconds of a step of such a batch.
    """

    seconds: float
    running: float
    step_s: float

    @property
    def sustained_rps(self) -> float:
        """Requests per second that the engine can sustain: load 1."""
        return 1.0 / self.seconds


def demand(prompt_tokens: Ints, output_tokens: Ints, cached_tokens: Ints, engine: Engine) -> Demand:
    """What requests ask of an engine with full batches, see the module's docstring.

    Parameters
    ----------
    prompt_tokens, output_tokens
        Lengths, each at least 1, shape (n,) with n of at least 1.
    cached_tokens
        Prompt tokens that need not be computed, at least 0, below the prompt.
    engine
        Limits and step times.

    Examples
    --------
    >>> from slosched.core.engine import preset
    >>> one = demand(np.array([1000]), np.array([200]), np.array([0]), preset("h100-llama-3.1-8b"))
    >>> round(one.sustained_rps, 1), one.running
    (19.9, 256.0)
    """
    require(len(prompt_tokens) > 0, "prompt_tokens", "not empty", len(prompt_tokens))
    model, limits = engine.step_time, engine.limits
    prompt, later = prompt_tokens.astype(np.float64), output_tokens - 1.0
    new = np.maximum(1.0, prompt - cached_tokens)
    read = later * prompt + later * (later + 1) / 2
    work = (
        model.prefill_token_s * new
        + model.attention_work_s * new * (prompt - new + new / 2)
        + model.sequence_s * later
        + model.kv_token_s * read
    )
    prefill_steps = np.ceil(new / limits.max_num_batched_tokens)
    residence = float((prefill_steps + later).mean())
    held = float((prefill_steps * prompt + read).mean()) / residence
    running = max(1.0, min(float(limits.max_num_seqs), limits.kv_tokens / held))
    tokens = float((new + later).mean())
    steps = max(residence / running, tokens / limits.max_num_batched_tokens)
    seconds = float(work.mean()) + steps * model.base_s
    seconds += model.knee_token_s * max(0.0, tokens - steps * model.knee_tokens)
    return Demand(seconds=seconds, running=running, step_s=seconds / steps)


def cached_tokens(workload: Workload) -> Ints:
    """Prompt tokens of each request that an endless prefix cache would have, shape (n,).

    At least one token is always computed.
    """
    if workload.prefix is None:
        return np.zeros(len(workload), dtype=np.int64)
    ids, offsets = workload.prefix.ids, workload.prefix.offsets
    row = np.repeat(np.arange(len(workload)), np.diff(offsets))
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    seen = row[first][which] < row
    blocks = np.bincount(row, weights=seen, minlength=len(workload)).astype(np.int64)
    return np.asarray(np.minimum(blocks * workload.prefix.block_tokens, workload.prompt_tokens - 1))


def offered_load(workload: Workload, engine: Engine, *, duration_s: float | None = None) -> float:
    """Load of a workload on an engine: 1 is what full batches can sustain.

    Parameters
    ----------
    workload
        Requests.
    engine
        Limits and step times; without a prefix cache all prompt tokens count.
    duration_s
        Window in which the requests come, above 0; by default up to one mean gap after the last arrival.

    Examples
    --------
    >>> from slosched.core.engine import preset
    >>> from slosched.workloads import generate
    >>> work = generate("chat", rate_per_s=10.0, duration_s=60.0, seed=1)
    >>> 0.4 < offered_load(work, preset("h100-llama-3.1-8b")) < 0.8
    True
    """
    n = len(workload)
    if duration_s is None:
        duration_s = float(workload.arrival_s[-1]) * (1 + 1 / max(1, n - 1)) if n else 0.0
    require(duration_s > 0, "duration_s", "a number of seconds above 0", duration_s)
    cached = cached_tokens(workload) if engine.limits.prefix_cache else np.zeros(n, dtype=np.int64)
    asked = demand(workload.prompt_tokens, workload.output_tokens, cached, engine)
    return asked.seconds * n / duration_s
