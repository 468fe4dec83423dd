"""Many runs side by side: policies by loads by seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from slosched.core.metrics import Metrics, Spread, attainment_spread
from slosched.core.outcome import Run
from slosched.core.words import between

OURS = "slosched"
REFERENCE = "fcfs"
FEWEST_SEEDS = 3
"""With fewer seeds no policy is called ahead: an interval of two differences says next to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run of a comparison.

    Parameters
    ----------
    policy
        Name of the policy.
    load
        Offered work over what the engine sustains (`slosched.lab.offered_load`); NaN if that is not known.
    rate_rps
        Offered rate in requests per second.
    seed
        Seed of workload and policy.
    metrics
        What was achieved.
    """

    policy: str
    load: float
    rate_rps: float
    seed: int
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Results of a study, with the words a report needs.

    Parameters
    ----------
    points
        One per run.
    workload, source
        Name of the workload, and where its lengths and arrivals come from.
    about
        Sentences on workload, engine and method.
    sustained_rps
        Rate of load 1: what the engine sustains with full batches; NaN if not asked.
    details
        Whole runs at `detail_rate_rps` and the first seed, one per policy, for the pictures that need every
        request.
    detail_rate_rps
        Rate of `details`; NaN if there are none.
    provenance
        Commits, machines, digests of code, and sources of data with their digests; empty where not known.
    """

    points: tuple[Point, ...]
    workload: str
    source: str = ""
    about: tuple[str, ...] = ()
    sustained_rps: float = math.nan
    details: tuple[Run, ...] = field(default=(), repr=False)
    detail_rate_rps: float = math.nan
    provenance: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def relative(self) -> bool:
        """Whether loads are known."""
        return all(math.isfinite(p.load) for p in self.points)

    @property
    def rates_rps(self) -> list[float]:
        """Offered rates, ascending."""
        return sorted(set(p.rate_rps for p in self.points))

    @property
    def seeds(self) -> list[int]:
        """Seeds, ascending."""
        return sorted(set(p.seed for p in self.points))

    @property
    def classes(self) -> list[str]:
        """Request classes in the workload's order."""
        return list(dict.fromkeys(name for p in self.points for name in p.metrics.by_class))

    def label(self, rate_rps: float) -> str:
        """How a rate is called: by its load if that is known."""
        if self.relative:
            return f"{rate_rps / self.sustained_rps:.2f}x"
        return f"{rate_rps:.3g}/s"

    def where(self, rate_rps: float) -> str:
        """A rate in a sentence: as a load if that is known."""
        return f"{self.label(rate_rps)} load" if self.relative else f"{rate_rps:.3g} requests/s"

    def at(self, policy: str, rate_rps: float) -> list[Metrics]:
        """Metrics of one policy at one rate, by seed."""
        found = [p for p in self.points if p.policy == policy and p.rate_rps == rate_rps]
        return [p.metrics for p in sorted(found, key=lambda p: p.seed)]

    def attainment(self, policy: str, rate_rps: float) -> Spread:
        """Weighted attainment of one policy at one rate over the seeds."""
        return attainment_spread(self.at(policy, rate_rps))

    def spread(self, policy: str, rate_rps: float, figure: Callable[[Metrics], float]) -> Spread:
        """Any figure of one policy at one rate over the seeds."""
        return Spread.of(figure(m) for m in self.at(policy, rate_rps))

    def queued(self, rate_rps: float) -> bool:
        """Whether anybody waited at this rate, under any policy and seed; if not, no policy can differ."""
        return any(p.metrics.queued for p in self.points if p.rate_rps == rate_rps)

    @property
    def crowded_rates_rps(self) -> list[float]:
        """Rates that tell policies apart: from load 1 on if loads are known, else those with a queue."""
        rates = self.rates_rps
        if self.relative:
            beyond = [r for r in rates if r >= 0.999 * self.sustained_rps]
        else:
            beyond = [r for r in rates if self.queued(r)]
        return beyond or rates[-1:]

    @property
    def policies(self) -> list[str]:
        """Policies, best mean weighted attainment at the crowded rates first; ties by name."""
        rates = self.crowded_rates_rps

        def misses(policy: str) -> float:
            return 1 - _mean(self.attainment(policy, rate).mean for rate in rates)

        return sorted(set(p.policy for p in self.points), key=lambda name: (round(misses(name), 12), name))

    def misses_beside(self, policy: str, other: str, rate_rps: float) -> float:
        """Weighted misses of `policy` over those of `other` at one rate; NaN if the other missed none."""
        ours = 1 - self.attainment(policy, rate_rps).mean
        theirs = 1 - self.attainment(other, rate_rps).mean
        return ours / theirs if theirs > 0 else math.nan

    @property
    def headline(self) -> str | None:
        """The result in a sentence: ours against the best other policy, paired by seed; None without both."""
        best, rates = self.best_baseline, self.crowded_rates_rps
        if best is None or OURS not in self.policies or not rates:
            return None
        ours, theirs = self._paired(best)
        ends = dict.fromkeys((min(rates), max(rates)))
        where = " and ".join([*map(self.label, list(ends)[:-1]), self.where(max(rates))])
        others = len(self.policies) - 1
        rival = f"the best of {others} rivals, {best}," if others > 1 else best
        verdict = {1: "ahead", -1: "behind", 0: "no clear difference"}[self.verdict]
        if len(self.seeds) < FEWEST_SEEDS:
            few = "one seed is" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds are"
            verdict = f"{few} too few for a verdict"
        return (
            f"At {where} {OURS} keeps {100 * _mean(ours):.0f} % of SLOs; {rival} keeps "
            f"{100 * _mean(theirs):.0f} %. Difference in points: {self._gain_words(ours, theirs)}; {verdict}."
        )

    @staticmethod
    def _gain_words(ours: Sequence[float], theirs: Sequence[float]) -> str:
        gain = Spread.of((a - b for a, b in zip(ours, theirs, strict=True)), bounds=(-1.0, 1.0))
        return f"{100 * gain.mean:+.1f}" if gain.seeds < 2 else between(gain, sign="+")

    @property
    def verdict(self) -> int:
        """1 if ours is ahead of the best other policy, -1 if behind, 0 if it cannot be told.

        By the 95 % interval of the paired difference over the seeds, of which there must be `FEWEST_SEEDS`.
        """
        best = self.best_baseline
        if best is None or OURS not in self.policies or len(self.seeds) < FEWEST_SEEDS:
            return 0
        ours, theirs = self._paired(best)
        gain = Spread.of(a - b for a, b in zip(ours, theirs, strict=True))
        return 1 if gain.low > 0 else -1 if gain.high < 0 else 0

    def _paired(self, rival: str) -> tuple[list[float], list[float]]:
        """Mean attainment over the crowded rates, by seed: ours and a rival's."""
        rates = self.crowded_rates_rps
        ours, theirs = (
            [
                _mean(self.at(p, rate)[place].weighted.value for rate in rates)
                for place in range(len(self.seeds))
            ]
            for p in (OURS, rival)
        )
        return ours, theirs

    @property
    def best_baseline(self) -> str | None:
        """The best policy other than ours that does not know the true lengths; None if there is none."""
        return next((p for p in self.policies if not p.startswith(OURS) and "oracle" not in p), None)


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan
