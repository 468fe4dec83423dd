"""Workloads of the live comparison, with limits in units of what the server at hand can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.workload import Workload

SPREAD = 0.5
"""Log-normal spread of lengths within a class."""
QUANTILES = np.array([-1.53, -0.89, -0.49, -0.16, 0.16, 0.49, 0.89, 1.53])
"""Standard normal quantiles of a forecast's atoms."""
assert len(QUANTILES) == FORECAST_ATOMS


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a server does, measured: all limits are multiples of it.

    Parameters
    ----------
    step_s
        Seconds of a step with one running request: its TPOT alone.
    full_step_s
        TPOT with every slot taken.
    rates_rps
        Requests per second that it finishes of each mix, all sent at once.
    """

    step_s: float
    full_step_s: float
    rates_rps: dict[str, float]

    def plain(self) -> dict[str, object]:
        """For a file."""
        return asdict(self)


Make = Callable[[Ints, Floats, np.random.Generator, float], Workload]


def _work(
    kind: Ints, times: Floats, rng: np.random.Generator, prompt: list[float], output: list[float],
    classes: tuple[str, str, str],
) -> Workload:  # fmt: skip
    """Requests of some kinds with log-normal lengths, and forecasts that know the kind only."""
    n = len(kind)
    lengths = [np.array(mean)[kind] * rng.lognormal(-(SPREAD**2) / 2, SPREAD, n) for mean in (prompt, output)]
    plain = Workload.plain(
        times,
        np.clip(lengths[0], 4, 1200).astype(np.int64),
        np.clip(lengths[1], 2, 300).astype(np.int64),
        source="log-normal lengths made for a CPU",
    )
    median = np.array(output)[kind] * np.exp(-(SPREAD**2) / 2)
    return replace(
        plain,
        atoms=np.maximum(1.0, median[:, None] * np.exp(SPREAD * QUANTILES)),
        class_index=kind.astype(np.int64),
        classes=classes,
        priority=kind.astype(np.int64),
    )


def _tiers(kind: Ints, times: Floats, rng: np.random.Generator, step_s: float) -> Workload:
    """Three tiers of the same work: only what they were promised differs."""
    work = _work(kind, times, rng, [90.0] * 3, [40.0] * 3, ("gold", "silver", "bronze"))
    return replace(
        work,
        ttft_s=np.array([20.0, 60.0, 240.0])[kind] * step_s,
        tpot_s=np.array([1.5, 3.0, np.inf])[kind] * step_s,
    )


def _lengths(kind: Ints, times: Floats, rng: np.random.Generator, step_s: float) -> Workload:
    """Long beside short prompts, all with the same limits."""
    work = _work(kind, times, rng, [40.0, 60.0, 700.0], [32.0] * 3, ("short", "medium", "long"))
    n = len(work)
    return replace(
        work,
        ttft_s=np.full(n, 60.0 * step_s),
        tpot_s=np.full(n, 2.0 * step_s),
    )


def _today(kind: Ints, times: Floats, rng: np.random.Generator, step_s: float) -> Workload:
    """Chat with tight limits, longer answers with looser ones, batch with an end-to-end limit."""
    work = _work(kind, times, rng, [45.0, 100.0, 180.0], [28.0, 56.0, 94.0], ("chat", "assist", "batch"))
    return replace(
        work,
        ttft_s=np.array([20.0, 60.0, np.inf])[kind] * step_s,
        tpot_s=np.array([2.0, 3.5, np.inf])[kind] * step_s,
        e2e_s=np.array([np.inf, np.inf, 800.0])[kind] * step_s,
        weight=np.array([2.0, 1.0, 1.0])[kind],
    )


MIXES: dict[str, tuple[Make, tuple[float, float, float]]] = {
    "tiers": (_tiers, (1 / 3, 1 / 3, 1 / 3)),
    "lengths": (_lengths, (0.5, 0.3, 0.2)),
    "today": (_today, (0.5, 0.3, 0.2)),
}
"""How each mix is made, and the shares of its three classes."""


def live_mix(name: str, seconds: float, rate_rps: float, seed: int, full_step_s: float) -> Workload:
    """One workload: Poisson arrivals over so many seconds, limits as multiples of a full step.

    Parameters
    ----------
    name
        One of `MIXES`.
    seconds, rate_rps
        Window and mean rate.
    seed
        Seed of everything.
    full_step_s
        TPOT of the server with every slot taken, in seconds.
    """
    make, shares = MIXES[name]
    rng = np.random.default_rng(seed)
    n = max(1, int(rng.poisson(rate_rps * seconds)))
    kind = rng.choice(3, n, p=shares)
    return replace(make(kind, np.sort(rng.uniform(0.0, seconds, n)), rng, full_step_s), name=name)


def random_priority(work: Workload, seed: int) -> Workload:
    """The same requests with priorities that say nothing, as where nobody knows the right order."""
    rng = np.random.default_rng([seed, 7])
    return replace(work, priority=rng.permutation(work.priority))
