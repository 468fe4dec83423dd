"""What the adapter counts: plain numbers, for Prometheus, a JSON file and the log."""

from __future__ import annotations

import bisect
import logging
import math
from typing import Any

logger = logging.getLogger("vllm.slosched")

KINDS = ("ttft", "tpot", "e2e", "ttfat")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 300.0)
PLAN_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.25, 1.0)
RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
PLACES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0)


TOTALS = {
    "plans": "Plans made.",
    "held": "Requests held back, summed over steps.",
    "preempted": "Requests preempted by the policy.",
    "rejected": "Requests refused by the policy.",
    "skipped": "Running requests passed over, summed over steps.",
    "aborted": "Requests that ended from outside: clients that hung up, and stop strings.",
    "aborted_late": "Those of them that had a limit which had passed by then.",
    "without_slo": "Finished requests to whom nothing was promised.",
    "starving": "Requests put first for having waited too long.",
    "bypassed": "Requests passed by others for not fitting in memory, summed over steps.",
}
"""Plain counters: attributes of `Stats` and metrics of the same name."""


class Histogram:
    """Counts of values in buckets with inclusive upper edges."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value; NaN is ignored."""
        if value == value:
            self.counts[bisect.bisect_left(self.edges, value)] += 1
            self.total += value if math.isfinite(value) else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Edges, counts and sum."""
        return {"le": list(self.edges), "counts": list(self.counts), "sum": self.total}


class Stats:
    """What the adapter counts; plain numbers, so that counting costs next to nothing.

    Attributes
    ----------
    attained, missed
        Finished requests that kept or broke a kind of limit, by (class, kind); kind "all" is every limit.
    fallbacks
        Steps in the engine's own order although a plan was wanted, by reason.
    malformed
        Request fields ignored for their value, by name.
    forecasts, forecast_s
        Length forecasts made and the time they took the engine, by source: ``ranker``, ``probe``.
    """

    def __init__(self) -> None:
        self.forecasts: dict[str, int] = {}
        self.forecast_s: dict[str, float] = {}
        self.attained: dict[tuple[str, str], int] = {}
        self.missed: dict[tuple[str, str], int] = {}
        self.fallbacks: dict[str, int] = {}
        self.malformed: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        self.plans = self.held = self.preempted = self.rejected = self.skipped = self.aborted = 0
        self.aborted_late = self.without_slo = self.starving = self.bypassed = self.stale_plans = 0
        self.waiting = self.running = 0
        self.level = "unknown"
        self.breaker_open = False
        self.plan_s = Histogram(PLAN_SECONDS)
        self.reorder = Histogram(PLACES)
        self.seconds = {kind: Histogram(SECONDS) for kind in KINDS}
        self.wait_ratio = Histogram(RATIOS)
        self.ratio = {kind: Histogram(RATIOS) for kind in ("ttft", "tpot", "e2e", "tokens")}

    def failure(
        self,
        reason: str,
        error: BaseException | None = None,
        consequence: str = "going on in the engine's own order",
    ) -> None:
        """Count something that failed, and log the first error of each kind with what follows from it."""
        self.fallbacks[reason] = self.fallbacks.get(reason, 0) + 1
        if error is not None and reason not in self.errors:
            self.errors[reason] = f"{type(error).__name__}: {error}"
            logger.warning(
                "slosched: %s failed, %s: %s: %s", reason, consequence, type(error).__name__, error
            )

    def finished(
        self,
        *,
        slo_class: str,
        natural: bool,
        refused: bool = False,
        limits_s: tuple[float, float, float, float],
        measured_s: tuple[float, float, float, float],
        predicted_s: tuple[float, float],
        tokens: int,
        predicted_tokens: float,
    ) -> None:
        """Count a request that has left.

        Attainment is over requests to whom something was promised. One that the policy refused has broken
        its limits. A client that hangs up counts as neither kept nor broken, but is counted apart if one of
        its limits had passed by then.
        """
        promised = min(limits_s) < math.inf
        if refused:
            self.rejected += 1
            if promised:
                self.missed[slo_class, "all"] = self.missed.get((slo_class, "all"), 0) + 1
            return
        if not natural:
            self.aborted += 1
            age_s, begun = measured_s[2], not math.isnan(measured_s[0])
            late = age_s > limits_s[2] or (measured_s[0] if begun else age_s) > limits_s[0]
            answering = not math.isnan(measured_s[3])
            late = late or (measured_s[3] if answering else age_s) > limits_s[3]
            self.aborted_late += promised and late
            return
        every = True
        for kind, limit, measured in zip(KINDS, limits_s, measured_s, strict=True):
            self.seconds[kind].observe(measured)
            if limit < math.inf:
                kept = measured <= limit
                every = every and kept
                counts = self.attained if kept else self.missed
                counts[slo_class, kind] = counts.get((slo_class, kind), 0) + 1
        if promised:
            counts = self.attained if every else self.missed
            counts[slo_class, "all"] = counts.get((slo_class, "all"), 0) + 1
        else:
            self.without_slo += 1
        ttft_s, tpot_s = predicted_s
        predicted = (ttft_s, tpot_s, ttft_s + tpot_s * max(0.0, predicted_tokens - 1))
        for kind, wanted, measured in zip(KINDS[:3], predicted, measured_s[:3], strict=True):
            self.ratio[kind].observe(measured / wanted if wanted > 0 else math.nan)
        self.ratio["tokens"].observe(tokens / predicted_tokens)

    def attainment(self) -> float:
        """Share of finished requests with limits that kept them all; NaN before any has finished."""
        kept = sum(n for (_, kind), n in self.attained.items() if kind == "all")
        broken = sum(n for (_, kind), n in self.missed.items() if kind == "all")
        return kept / (kept + broken) if kept + broken else math.nan

    def histograms(self) -> dict[str, tuple[str, Histogram]]:
        """Every distribution by its name in metrics, with what it is of."""
        found = {
            "plan_seconds": ("Time that a plan took.", self.plan_s),
            "reorder_places": ("Waiting requests that the first of a new order passes.", self.reorder),
            "wait_measured_over_stated": ("Time to the first token over what was stated.", self.wait_ratio),
        }
        names = {
            "ttft": "Time to the first token.",
            "tpot": "Time per further token.",
            "e2e": "Whole time.",
            "ttfat": "Time to the first answer token.",
        }
        for kind, text in names.items():
            found[f"{kind}_seconds"] = text, self.seconds[kind]
        for kind, histogram in self.ratio.items():
            found[f"{kind}_measured_over_predicted"] = f"Measured over predicted: {kind}.", histogram
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file; what is not known yet is missing."""
        flat = {
            name: {f"{c}/{kind}": n for (c, kind), n in sorted(getattr(self, name).copy().items())}
            for name in ("attained", "missed")
        }
        numbers = (
            *TOTALS, "stale_plans", "waiting", "running", "level", "breaker_open", "fallbacks", "malformed",
            "errors", "forecasts", "forecast_s",
        )  # fmt: skip
        attainment = self.attainment()
        return {
            **flat,
            **({} if math.isnan(attainment) else {"attainment": attainment}),
            **{name: getattr(self, name) for name in numbers},
            "plan_seconds": self.plan_s.as_dict(),
            "reorder_places": self.reorder.as_dict(),
            "wait_measured_over_stated": self.wait_ratio.as_dict(),
            "seconds": {kind: h.as_dict() for kind, h in self.seconds.items()},
            "measured_over_predicted": {kind: h.as_dict() for kind, h in self.ratio.items()},
        }

    def line(self) -> str:
        """One line for the log."""
        attainment = self.attainment()
        share = "-" if math.isnan(attainment) else f"{attainment:.3f}"
        return (
            f"slosched ({self.level}): attainment {share}, running {self.running}, waiting {self.waiting}, "
            f"plans {self.plans}, preempted {self.preempted}, held {self.held}, refused {self.rejected}, "
            f"fallbacks {sum(self.fallbacks.values())}, malformed fields {sum(self.malformed.values())}"
        )
