"""Service-level objectives by class: what each request of a workload is promised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import InputError, require
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload

DEFAULT_PREFILL_CHUNK_TOKENS = 2048
"""Prefill tokens per step when nothing else runs; vLLM's default token budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSpec:
    """Limits, weight and priority of one class of requests.

    A limit may be absolute, a multiple of the request's own unloaded latency, or both: then the larger
    counts, so that long prompts get more time and short ones a floor. Without any limit: best effort.

    Parameters
    ----------
    ttft_s, tpot_s, e2e_s
        Absolute limits in seconds, above 0; None for none.
    ttfat_s
        Limit on the time to the first answer token in seconds, above 0; None for none. The requests' thinking
        lengths must be known.
    ttft_x, tpot_x, e2e_x
        Limits as multiples of the unloaded latency, above 0; None for none.
    weight
        What meeting the SLO of a request is worth, at least 0.
    priority
        vLLM's priority: lower goes first.

    Raises
    ------
    InputError
        If a value is outside its domain.

    Examples
    --------
    >>> ClassSpec(ttft_s=1.0, ttft_x=5.0, tpot_s=0.05).best_effort
    False
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    ttfat_s: float | None = None
    ttft_x: float | None = None
    tpot_x: float | None = None
    e2e_x: float | None = None
    weight: float = 1.0
    priority: int = 0

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s", "ttfat_s", "ttft_x", "tpot_x", "e2e_x"):
            value = getattr(self, name)
            ok = value is None or (_is_number(value) and 0 < value < math.inf)
            require(ok, name, "a finite number above 0, or None", value)
        ok = _is_number(self.weight) and 0 <= self.weight < math.inf
        require(ok, "weight", "a finite number of at least 0", self.weight)
        ok = isinstance(self.priority, int) and not isinstance(self.priority, bool)
        require(ok, "priority", "an integer", self.priority)

    @property
    def relative(self) -> bool:
        """Whether some limit is a multiple of the unloaded latency."""
        return not (self.ttft_x is None and self.tpot_x is None and self.e2e_x is None)

    @property
    def best_effort(self) -> bool:
        """Whether the class has no limit at all."""
        limits = (self.ttft_s, self.tpot_s, self.e2e_s, self.ttfat_s)
        return not self.relative and all(limit is None for limit in limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadedLatency:
    """Latencies of each request alone on an idle engine, seconds, shape (n,) each."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats


def unloaded_latency(
    workload: Workload, model: StepTimeModel, *, chunk_tokens: int = DEFAULT_PREFILL_CHUNK_TOKENS
) -> UnloadedLatency:
    """Latencies of each request alone on an idle engine with an empty prefix cache.

    Parameters
    ----------
    workload
        Requests; their true output lengths are used.
    model
        Step time.
    chunk_tokens
        Prefill tokens per step, at least 1.

    Returns
    -------
    UnloadedLatency
        `tpot_s` of a one-token answer is the time its next token would take.

    Examples
    --------
    >>> one = Workload.plain(np.zeros(1), np.array([1000]), np.array([11]))
    >>> alone = unloaded_latency(one, StepTimeModel(base_s=0.01, prefill_token_s=1e-5))
    >>> [round(float(x[0]), 6) for x in (alone.ttft_s, alone.tpot_s, alone.e2e_s)]
    [0.02, 0.01, 0.12]
    """
    require(chunk_tokens >= 1, "chunk_tokens", "an integer of at least 1", chunk_tokens)
    prompt = workload.prompt_tokens
    ttft = np.zeros(len(workload))
    done = np.zeros(len(workload), dtype=np.int64)
    busy = np.flatnonzero(done < prompt)
    while len(busy):
        chunk = np.minimum(chunk_tokens, prompt[busy] - done[busy])
        ttft[busy] += model.predict(chunk, chunk * (done[busy] + chunk / 2))
        done[busy] += chunk
        busy = busy[done[busy] < prompt[busy]]
    # The k-th further token reads prompt + k tokens; the step time is linear in them, so take their mean.
    later = np.maximum(1, workload.output_tokens - 1)
    tpot = model.predict(0, 0, 1, prompt + (later + 1) / 2)
    return UnloadedLatency(ttft_s=ttft, tpot_s=tpot, e2e_s=ttft + tpot * (workload.output_tokens - 1))


def with_slos(
    workload: Workload,
    specs: Mapping[str, ClassSpec],
    *,
    model: StepTimeModel | None = None,
    chunk_tokens: int = DEFAULT_PREFILL_CHUNK_TOKENS,
) -> Workload:
    """The workload with limits, weights and priorities by class.

    Parameters
    ----------
    workload
        Requests with class labels.
    specs
        {class: spec}; classes that are not named stay as they are.
    model
        Step time, needed where a limit is a multiple of the unloaded latency.
    chunk_tokens
        Prefill tokens per step of the unloaded engine.

    Raises
    ------
    InputError
        If a class does not exist in the workload, a multiple is given without a model, or a limit on the
        first answer token for requests whose thinking lengths are not known.
    """
    unknown = sorted(set(specs) - set(workload.classes))
    require(not unknown, "class", f"one of {', '.join(workload.classes)}", ", ".join(unknown))
    alone = None
    if any(spec.relative for spec in specs.values()):
        if model is None:
            raise InputError("model must be a StepTimeModel where a limit is a multiple, got None.")
        alone = unloaded_latency(workload, model, chunk_tokens=chunk_tokens)
    columns = {
        name: getattr(workload, name).copy() for name in ("ttft_s", "tpot_s", "e2e_s", "weight", "priority")
    }
    thinking = workload.thinking
    for name, spec in specs.items():
        rows = workload.class_index == workload.classes.index(name)
        if thinking is None:
            require(spec.ttfat_s is None, "ttfat_s", "absent where thinking_tokens are unknown", spec.ttfat_s)
        else:
            limits = np.where(rows, math.inf if spec.ttfat_s is None else spec.ttfat_s, thinking.ttfat_s)
            thinking = replace(thinking, ttfat_s=limits)
        for kind in ("ttft", "tpot", "e2e"):
            columns[f"{kind}_s"][rows] = _limits(spec, kind, alone, rows)
        columns["weight"][rows] = spec.weight
        columns["priority"][rows] = spec.priority
    return replace(workload, thinking=thinking, **columns)


def _limits(spec: ClassSpec, kind: str, alone: UnloadedLatency | None, rows: np.ndarray) -> Floats | float:
    absolute: float | None = getattr(spec, f"{kind}_s")
    multiple: float | None = getattr(spec, f"{kind}_x")
    if multiple is None or alone is None:
        return math.inf if absolute is None else absolute
    scaled: Floats = multiple * getattr(alone, f"{kind}_s")[rows]
    return np.maximum(scaled, 0.0 if absolute is None else absolute)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
