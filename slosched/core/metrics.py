"""Figures of merit of one run, and their spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import require
from slosched.core.outcome import Outcomes, Run, RunLog
from slosched.core.workload import Workload

CONFIDENCE = 0.95
"""Level of every interval in reports."""

LIMIT_KINDS = ("ttft", "tpot", "e2e", "ttfat")

NO_QUEUE = "No queue formed: every request was admitted as it came, so no policy can differ here."


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of requests with its confidence interval.

    Parameters
    ----------
    value
        The share, from 0 to 1; NaN where there was nobody.
    low, high
        Wilson interval at `CONFIDENCE`.
    met, count
        Requests counted, over requests asked about.
    """

    value: float
    low: float
    high: float
    met: int
    count: int

    @classmethod
    def of(cls, met: int, count: int) -> Share:
        """Share of `met` in `count`.

        Examples
        --------
        >>> share = Share.of(9, 10)
        >>> share.value, round(share.low, 3), round(share.high, 3)
        (0.9, 0.596, 0.982)
        """
        require(0 <= met <= count, "met", f"from 0 to {count}", met)
        low, high = wilson(met / count if count else math.nan, count)
        return cls(value=met / count if count else math.nan, low=low, high=high, met=met, count=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Mean and percentiles of a latency in seconds over the requests that have it; NaN where none has."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Floats) -> Latency:
        """Statistics of some latencies; NaN entries (unfinished requests) are left out."""
        values = seconds[np.isfinite(seconds)]
        if not len(values):
            return cls(mean=math.nan, p50=math.nan, p90=math.nan, p99=math.nan)
        p50, p90, p99 = np.percentile(values, (50, 90, 99))
        return cls(mean=float(values.mean()), p50=float(p50), p90=float(p90), p99=float(p99))


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The waiting line over a run, each sample holding until the next.

    Parameters
    ----------
    mean, max
        Waiting requests: mean over time, and most at once.
    time_share
        Share of the time with anybody waiting.
    """

    mean: float
    max: int
    time_share: float

    @classmethod
    def of(cls, log: RunLog) -> Queue:
        """Statistics of the depth samples of a run."""
        waiting = log.depth_waiting
        if not len(waiting):
            return cls(mean=0.0, max=0, time_share=0.0)
        held_s = np.diff(log.depth_time_s)
        total_s = float(held_s.sum())
        if total_s <= 0:
            return cls(mean=float(waiting.mean()), max=int(waiting.max()), time_share=float(waiting.any()))
        return cls(
            mean=float(held_s @ waiting[:-1]) / total_s,
            max=int(waiting.max()),
            time_share=float(held_s[waiting[:-1] > 0].sum()) / total_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What one policy achieved on one workload.

    Parameters
    ----------
    policy, engine, workload, seed
        What was run.
    requests, finished, rejected
        Requests asked, those whose whole answer came, and those the policy refused. Turns of a session that
        were never sent, since an answer before them did not come, count as asked and as missed.
    offered_rps
        Requests sent over the span of their arrivals.
    span_s
        From the first arrival to the last finish.
    attainment
        Requests that kept all their limits; a best-effort request has only to finish.
    weighted
        The same by weight; its interval takes the effective number of requests, (Σw)²/Σw².
    by_class
        Attainment by class, in the workload's order of classes.
    by_limit
        For each kind of limit, the requests that kept it among those that have it; ``ttfat`` only where
        requests think.
    goodput_rps
        Requests that kept all their limits, per second of the span.
    throughput_tps
        Output tokens of finished requests per second of the span.
    ttft_s, tpot_s, e2e_s
        Latencies of the requests that have them.
    ttfat_s
        Time to the first answer token, the first one after thinking; None where nobody thinks.
    max_wait_s
        Longest time from arrival to first admission; a request never admitted waits to the end of the run,
        a refused one does not count.
    best_effort_p99_e2e_s
        Latency that 99 % of the best-effort requests stay under; NaN if there are none.
    preemptions, recomputed_tokens
        Totals.
    queue
        Depth of the waiting line.
    plans, plan_p50_us, plan_p99_us
        Plans asked for, and wall time of one in microseconds; NaN if it was not measured.
    busy_share
        Share of the span in which a step was executing.
    steps, wall_s
        Engine steps, and wall time the run took.
    """

    policy: str
    engine: str
    workload: str
    seed: int
    requests: int
    finished: int
    rejected: int
    offered_rps: float
    span_s: float
    attainment: Share
    weighted: Share
    by_class: dict[str, Share]
    by_limit: dict[str, Share]
    goodput_rps: float
    throughput_tps: float
    ttft_s: Latency
    tpot_s: Latency
    e2e_s: Latency
    max_wait_s: float
    best_effort_p99_e2e_s: float
    preemptions: int
    recomputed_tokens: int
    queue: Queue
    plans: int
    plan_p50_us: float
    plan_p99_us: float
    busy_share: float
    steps: int
    wall_s: float
    ttfat_s: Latency | None = None

    @property
    def queued(self) -> bool:
        """Whether anybody ever had to wait; if not, no policy can differ (`NO_QUEUE`)."""
        return self.queue.max > 0

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values for JSON; NaN becomes None."""
        plain = asdict(self) | {"queued": self.queued}
        return {key: _plain(value) for key, value in plain.items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Metrics:
        """The figures that `to_dict` made plain."""
        plain = {k: v for k, v in content.items() if k != "queued"}
        for name in ("ttft_s", "tpot_s", "e2e_s", "ttfat_s"):
            if plain.get(name) is not None:
                plain[name] = Latency(**_numbers(plain[name]))
        ttfat_s = plain.pop("ttfat_s", None)
        for name in ("attainment", "weighted"):
            plain[name] = Share(**_numbers(plain[name]))
        for name in ("by_class", "by_limit"):
            plain[name] = {key: Share(**_numbers(share)) for key, share in plain[name].items()}
        plain["queue"] = Queue(**plain["queue"])
        return cls(**_numbers(plain), ttfat_s=ttfat_s)

    @classmethod
    def of(cls, run: Run) -> Metrics:
        """Figures of one run."""
        out, log = run.outcomes, run.log
        work = out.workload
        met = out.met
        span_s = _span_s(out)
        sent_s = out.arrival_s[np.isfinite(out.arrival_s)]
        arrivals_s = float(np.ptp(sent_s)) if len(sent_s) else 0.0
        plan_us = np.percentile(log.plan_s, (50, 99)) * 1e6 if len(log.plan_s) else (math.nan, math.nan)
        per_s = 1.0 / span_s if span_s > 0 else math.nan
        return cls(
            policy=run.policy,
            engine=run.engine,
            workload=work.name,
            seed=run.seed,
            requests=len(work),
            finished=int(out.finished.sum()),
            rejected=0 if out.rejected is None else int(out.rejected.sum()),
            offered_rps=(len(sent_s) - 1) / arrivals_s if arrivals_s > 0 else math.nan,
            span_s=span_s,
            attainment=Share.of(int(met.sum()), len(work)),
            weighted=_weighted(out),
            by_class=_by_class(out),
            by_limit=_by_limit(out),
            goodput_rps=float(met.sum()) * per_s,
            throughput_tps=float(work.output_tokens[out.finished].sum()) * per_s,
            ttft_s=Latency.of(out.ttft_s),
            tpot_s=Latency.of(out.tpot_s),
            e2e_s=Latency.of(out.e2e_s),
            ttfat_s=None if out.answer_s is None else Latency.of(out.ttfat_s),
            max_wait_s=_max_wait_s(out, span_s),
            best_effort_p99_e2e_s=Latency.of(out.e2e_s[_best_effort(work)]).p99,
            preemptions=int(out.preemptions.sum()),
            recomputed_tokens=int(out.recomputed_tokens.sum()),
            queue=Queue.of(log),
            plans=log.plans,
            plan_p50_us=float(plan_us[0]),
            plan_p99_us=float(plan_us[1]),
            busy_share=log.busy_s * per_s,
            steps=log.steps,
            wall_s=log.wall_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean of a figure over seeds with Student's t interval at `CONFIDENCE`.

    Parameters
    ----------
    mean, low, high
        Mean and interval; with one seed both ends equal the mean.
    seeds
        Number of values.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float], *, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Spread:
        """Spread of the finite values, the interval cut to `bounds`.

        Examples
        --------
        >>> spread = Spread.of([0.90, 0.92, 0.94], bounds=(0, 1))
        >>> round(spread.mean, 3), round(spread.low, 3), round(spread.high, 3)
        (0.92, 0.87, 0.97)
        """
        from scipy.special import stdtrit

        x = np.array([v for v in values if math.isfinite(v)], dtype=np.float64)
        if not len(x):
            return cls(mean=math.nan, low=math.nan, high=math.nan, seeds=0)
        mean = float(x.mean())
        half = 0.0
        if len(x) > 1:
            half = float(stdtrit(len(x) - 1, (1 + CONFIDENCE) / 2) * x.std(ddof=1) / math.sqrt(len(x)))
        return cls(mean=mean, low=max(bounds[0], mean - half), high=min(bounds[1], mean + half), seeds=len(x))


def attainment_spread(runs: Sequence[Metrics], *, weighted: bool = True) -> Spread:
    """Attainment over seeds: t interval over several seeds, Wilson's within a single one."""
    shares = [m.weighted if weighted else m.attainment for m in runs]
    if len(shares) == 1:
        return Spread(mean=shares[0].value, low=shares[0].low, high=shares[0].high, seeds=1)
    return Spread.of((s.value for s in shares), bounds=(0.0, 1.0))


def wilson(share: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a binomial share.

    Parameters
    ----------
    share
        Observed share, from 0 to 1.
    count
        Observations, at least 0; may be an effective, fractional number.
    confidence
        Level of the interval, above 0 and below 1.

    Returns
    -------
    tuple of float
        (low, high) within 0 and 1; (0, 1) if nothing was observed.

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Examples
    --------
    >>> low, high = wilson(0.5, 100)
    >>> round(low, 4), round(high, 4)
    (0.4038, 0.5962)
    """
    from scipy.special import ndtri

    require(0 < confidence < 1, "confidence", "above 0 and below 1", confidence)
    if not count > 0:
        return 0.0, 1.0
    z = float(ndtri((1 + confidence) / 2))
    scale = 1 / (1 + z * z / count)
    centre = (share + z * z / (2 * count)) * scale
    half = z * scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _best_effort(work: Workload) -> np.ndarray[Any, np.dtype[np.bool_]]:
    plain = np.isinf(work.ttft_s) & np.isinf(work.tpot_s) & np.isinf(work.e2e_s)
    return np.asarray(plain & np.isinf(work.ttfat_s))


def _span_s(out: Outcomes) -> float:
    finish_s = out.finish_s[out.finished]
    return float(finish_s.max() - np.nanmin(out.arrival_s)) if len(finish_s) else 0.0


def _max_wait_s(out: Outcomes, span_s: float) -> float:
    work = out.workload
    if not len(work):
        return math.nan
    end_s = float(np.nanmin(out.arrival_s)) + span_s
    until_s = np.where(np.isfinite(out.admitted_s), out.admitted_s, np.maximum(end_s, out.arrival_s))
    kept = np.isfinite(out.arrival_s)
    if out.rejected is not None:
        kept &= ~out.rejected
    return float((until_s - out.arrival_s)[kept].max(initial=0.0))


def _weighted(out: Outcomes) -> Share:
    weight, met = out.workload.weight, out.met
    total = float(weight.sum())
    if total <= 0:
        return Share.of(0, 0)
    value = float(weight[met].sum()) / total
    low, high = wilson(value, total * total / float(weight @ weight))
    return Share(value=value, low=low, high=high, met=int(met.sum()), count=len(met))


def _by_class(out: Outcomes) -> dict[str, Share]:
    work, met = out.workload, out.met
    shares = {}
    for index, name in enumerate(work.classes):
        members = work.class_index == index
        shares[name] = Share.of(int(met[members].sum()), int(members.sum()))
    return shares


def _by_limit(out: Outcomes) -> dict[str, Share]:
    work = out.workload
    shares = {}
    for kind in LIMIT_KINDS:
        limit_s, value_s = getattr(work, f"{kind}_s"), getattr(out, f"{kind}_s")
        asked = np.isfinite(limit_s)
        if kind == "ttfat" and work.thinking is None:
            continue
        # A first token that came in time counts as such even if the answer was cut off later.
        shares[kind] = Share.of(int((value_s[asked] <= limit_s[asked]).sum()), int(asked.sum()))
    return shares


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _numbers(content: dict[str, Any]) -> dict[str, Any]:
    """NaN again where `_plain` put None."""
    return {key: math.nan if value is None else value for key, value in content.items()}
