"""Queue instances taken from a simulated engine in overload on the trace mixes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from slosched.core.engine import DEFAULT_ENGINE, Engine, find_engine
from slosched.core.errors import InputError, require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy
from slosched.policies.orders import Edf
from slosched.simulator import simulate
from slosched.solvers.continuous_problem import ContinuousProblem
from slosched.solvers.instances import Instance
from slosched.solvers.static.problem import StaticProblem
from slosched.workloads.mixes import MIXES, mix

DEFAULT_MAX_BATCH = 16
PROBE_REQUESTS = 300
"""Requests that arrive at once to find out how many a second the engine serves."""
PROBE_RATE = 1e4
LOAD_PER_REQUEST = 0.01414
"""So that a long queue has come together within seconds, with limits that can still be met."""
STEEPER = 1.5
TRIES = 6
"""Where the queue does not get long enough, the load is raised by this factor, so many times at most."""
AZURE = "Azure LLM inference traces 2023 (Patel et al., ISCA 2024, arXiv 2311.18677; CC BY 4.0)"
CHAT_AND_PAPERS = (
    "ShareGPT lengths, validation set of vidur_opt_scheduler (MIT, Copyright (c) Microsoft Corporation); "
    "arXiv summarization lengths, vidur (MIT, Copyright (c) Microsoft Corporation)"
)
TRACES = {
    "azure": AZURE,
    "sharegpt-batch": CHAT_AND_PAPERS,
    "mooncake": "Mooncake conversation trace (Qin et al., FAST 2025; Apache-2.0)",
    "agentic": "kv-cache-tester agentic coding traces (Apache-2.0)",
    "bursty": f"{AZURE}; {CHAT_AND_PAPERS}",
    "tiers": "ShareGPT lengths, sarathi-serve (Apache-2.0)",
}
"""Where the requests of a mix come from, and under which licence, when taken from the public traces."""


class _Reached(Exception):
    """The queue is as long as asked for."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__("reached")
        self.snapshot = snapshot


class _Capture(Policy):
    """Earliest deadline first until `n` requests wait; then the simulation ends."""

    name: ClassVar[str] = "capture"

    def __init__(self, n: int) -> None:
        self.n, self.inner = n, Edf()

    def plan(self, snapshot: Snapshot) -> Plan:
        """Leave with the snapshot, or go on."""
        if len(snapshot.waiting) >= self.n:
            raise _Reached(replace(snapshot, waiting=snapshot.waiting[: self.n]))
        return self.inner.plan(snapshot)


def usual_load(n: int) -> float:
    """Load at which a queue of `n` is taken: 1.5, more for long ones, of which little could be met else.

    Examples
    --------
    >>> usual_load(20), usual_load(200), usual_load(1000)
    (1.5, 2.828, 14.14)
    """
    return round(max(1.5, n * LOAD_PER_REQUEST), 3)


def capture(
    mix_name: str,
    n: int,
    *,
    seed: int = 0,
    engine: Engine,
    load: float,
    data_dir: str | Path | None = None,
) -> tuple[Snapshot, float, str]:
    """The engine when `n` requests wait for the first time, under earliest deadline first.

    The engine's capacity is what it serves per second of `PROBE_REQUESTS` that come at once in order of
    arrival; requests then come at `load` times that, more if the queue does not get there.

    Parameters
    ----------
    mix_name
        One of `slosched.workloads.mixes.MIXES`.
    n
        Waiting requests, at least 1; if more arrive in one step, the first `n`.
    seed, engine, data_dir
        Seed of the mix, the simulated engine, and the folder of public traces, if any.
    load
        Above 0.

    Returns
    -------
    tuple
        The snapshot, the load at which it was reached, and the source of the requests in words.

    Raises
    ------
    InputError
        If a value is off its domain, or the queue does not get that long.
    """
    require(n >= 1, "n", "an integer of at least 1", n)
    require(0 < load < math.inf, "load", "a finite number above 0", load)
    require(mix_name in MIXES, "mix", f"one of {', '.join(MIXES)}", mix_name)
    common: dict[str, Any] = {"data_dir": data_dir, "model": engine.step_time, "limits": engine.limits}
    probe = mix(mix_name, rate_per_s=PROBE_RATE, requests=PROBE_REQUESTS, seed=seed, **common)
    outcomes = simulate(probe, "fcfs", engine=engine).outcomes
    per_s = len(probe) / float(np.nanmax(outcomes.finish_s) - probe.arrival_s[0])
    for k in range(TRIES):
        rate = per_s * load * STEEPER**k
        work = mix(mix_name, rate_per_s=rate, requests=4 * n + 600, seed=seed, **common)
        try:
            simulate(work, _Capture(n), engine=engine)
        except _Reached as reached:
            return reached.snapshot, round(load * STEEPER**k, 6), work.source
    raise InputError(
        f"n must be a length that the queue of mix {mix_name!r} on {engine.name} reaches at load "
        f"{load * STEEPER ** (TRIES - 1):g}, got {n}."
    )


def overload(
    mix_name: str,
    n: int,
    *,
    kind: str = "static",
    seed: int = 0,
    weighted: bool = True,
    max_batch: int = DEFAULT_MAX_BATCH,
    engine: Engine | str = DEFAULT_ENGINE,
    load: float | None = None,
    data_dir: str | Path | None = None,
) -> Instance:
    """An instance without stored plans from a snapshot of `capture`.

    Lengths of answers are the expectation of the forecasts, rounded; times are whole microseconds: the
    instance is what the file says, not the snapshot it came from.

    Parameters
    ----------
    mix_name, n, seed, data_dir
        As in `capture`.
    kind
        "static": the waiting requests, in batches of at most `max_batch`, at the batch cost that the engine's
        step time implies. "continuous": the running requests, too, with slots and KV cache.
    weighted
        Whether requests keep the weights of their classes; else all weigh 1.
    max_batch
        Largest static batch, at least 1.
    engine
        The engine, or the name of a preset or of a JSON file.
    load
        Arrivals over capacity, by default `usual_load`.

    Examples
    --------
    >>> instance = overload("azure", 8, seed=1)
    >>> instance.name, instance.problem().n
    ('overload-azure-n8-b16-w-h100-llama-3.1-8b-s1', 8)
    """
    engine = find_engine(engine)
    require(kind in ("static", "continuous"), "kind", "static or continuous", kind)
    snapshot, reached, source = capture(
        mix_name,
        n,
        seed=seed,
        engine=engine,
        load=usual_load(n) if load is None else load,
        data_dir=data_dir,
    )
    size = f"b{max_batch}" if kind == "static" else "continuous"
    name = f"overload-{mix_name}-n{n}-{size}-{'w' if weighted else 'u'}-{engine.name}-s{seed}"
    about = {
        "generator": "slosched.lab.overload",
        "mix": mix_name,
        "seed": seed,
        "load": reached,
        "engine": engine.name,
        "policy": Edf.name,
        "workload": source,
    }
    if data_dir is not None:
        name += "-traces"
        about["traces"] = TRACES[mix_name]
    if not weighted:
        snapshot.table.weight[:] = 1.0
    if kind == "continuous":
        return Instance.of_continuous(ContinuousProblem(snapshot=snapshot), name, about)
    exact = StaticProblem.of(snapshot, max_batch=max_batch)
    rounded = replace(
        exact,
        output_tokens=np.maximum(1.0, exact.output_tokens.round()),
        **{field: getattr(exact, field).round(6) for field in ("elapsed_s", "ttft_s", "tpot_s", "e2e_s")},
    )
    return Instance.of(rounded, name, about)
