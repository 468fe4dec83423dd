"""What happened to each request of a run, wherever it ran: simulator, virtual-clock vLLM or a live server."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Columns over the requests of `workload`, same rows.

    Parameters
    ----------
    workload
        What was asked for.
    arrival_s
        Clock time at which it was sent, from which its limits count. For a turn in a closed loop that is
        think time after the answer before; NaN if that answer never ended, so that it was never sent: such
        a turn has missed its SLO.
    admitted_s
        Clock time of the step that first scheduled it; NaN if never.
    first_token_s
        Clock time of its first output token; NaN if none came.
    finish_s
        Clock time of its last output token; NaN if it did not finish (aborted, rejected or timed out): such
        a request has missed its SLO.
    preemptions
        Times it was preempted.
    recomputed_tokens
        Tokens computed again after preemptions.
    cached_tokens
        Prompt tokens served from the prefix cache at its first admission.
    rejected
        Which requests the policy refused, or None where no engine could refuse any.
    answer_s
        Clock time of the first token after thinking; NaN if none came. None where nobody thinks: the first
        token is the first answer token.
    first_tokens
        Tokens that came together with the first one, itself included, where a server sends several at once;
        None where each comes by itself.
    """

    workload: Workload
    arrival_s: Floats
    admitted_s: Floats
    first_token_s: Floats
    finish_s: Floats
    preemptions: Ints
    recomputed_tokens: Ints
    cached_tokens: Ints
    rejected: NDArray[np.bool_] | None = None
    answer_s: Floats | None = None
    first_tokens: Ints | None = None

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which requests delivered their whole answer."""
        return np.isfinite(self.finish_s)

    @property
    def ttft_s(self) -> Floats:
        """Time to first token; NaN where none came."""
        return np.asarray(self.first_token_s - self.arrival_s)

    @property
    def ttfat_s(self) -> Floats:
        """Time to the first answer token; NaN where none came."""
        return self.ttft_s if self.answer_s is None else np.asarray(self.answer_s - self.arrival_s)

    @property
    def tpot_s(self) -> Floats:
        """Mean time per output token after those that came first; 0 if none did, NaN where unfinished."""
        first = 1 if self.first_tokens is None else self.first_tokens
        later = np.maximum(1, self.workload.output_tokens - first)
        return np.asarray((self.finish_s - self.first_token_s) / later)

    @property
    def e2e_s(self) -> Floats:
        """End-to-end latency; NaN where unfinished."""
        return np.asarray(self.finish_s - self.arrival_s)

    @property
    def met(self) -> NDArray[np.bool_]:
        """Which requests kept all their limits; a best-effort request has only to finish."""
        w = self.workload
        kept = (self.ttft_s <= w.ttft_s) & (self.tpot_s <= w.tpot_s) & (self.e2e_s <= w.e2e_s)
        begun = np.isinf(w.ttfat_s) | (self.ttfat_s <= w.ttfat_s)
        return np.asarray(self.finished & kept & begun)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLog:
    """How the engine fared during a run.

    Parameters
    ----------
    steps
        Engine steps executed.
    plans
        Times the policy was asked for a plan.
    plan_s
        Wall time of each plan in seconds, shape (plans,); empty if not measured.
    depth_time_s, depth_waiting, depth_running
        Samples of the queue: clock time, waiting and running requests.
    busy_s
        Clock time during which a step was executing; NaN where that is not known, as of a live server.
    wall_s
        Wall time of the whole simulation.
    """

    steps: int
    plans: int
    plan_s: Floats
    depth_time_s: Floats
    depth_waiting: Ints
    depth_running: Ints
    busy_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy on one workload: outcomes and log, with the names a report needs."""

    policy: str
    engine: str
    outcomes: Outcomes
    log: RunLog
    seed: int = 0
