"""Counts and distributions with prefix ``slosched:``, for Prometheus, a JSON file and the log."""

from __future__ import annotations

import bisect
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger("vllm.slosched")

KINDS = ("ttft", "tpot", "e2e")
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
    "aborted": "Requests aborted.",
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
        self.starving = self.bypassed = self.stale_plans = 0
        self.waiting = self.running = 0
        self.level = "unknown"
        self.breaker_open = False
        self.plan_s = Histogram(PLAN_SECONDS)
        self.reorder = Histogram(PLACES)
        self.seconds = {kind: Histogram(SECONDS) for kind in KINDS}
        self.ratio = {kind: Histogram(RATIOS) for kind in ("ttft", "tpot", "e2e", "tokens")}

    def failure(self, reason: str, error: BaseException | None = None) -> None:
        """Count a fallback; the first error of each kind is logged."""
        self.fallbacks[reason] = self.fallbacks.get(reason, 0) + 1
        if error is not None and reason not in self.errors:
            self.errors[reason] = f"{type(error).__name__}: {error}"
            logger.warning("slosched: %s failed, going on in the engine's own order: %s", reason, error)

    def finished(
        self,
        *,
        slo_class: str,
        natural: bool,
        refused: bool = False,
        limits_s: tuple[float, float, float],
        measured_s: tuple[float, float, float],
        predicted_s: tuple[float, float],
        tokens: int,
        predicted_tokens: float,
    ) -> None:
        """Count a request that has left; a client's abort counts as neither kept nor broken.

        One that the policy refused has broken its limits.
        """
        if refused:
            self.rejected += 1
            self.missed[slo_class, "all"] = self.missed.get((slo_class, "all"), 0) + 1
            return
        if not natural:
            self.aborted += 1
            return
        every = True
        for kind, limit, measured in zip(KINDS, limits_s, measured_s, strict=True):
            self.seconds[kind].observe(measured)
            if limit < math.inf:
                kept = measured <= limit
                every = every and kept
                counts = self.attained if kept else self.missed
                counts[slo_class, kind] = counts.get((slo_class, kind), 0) + 1
        counts = self.attained if every else self.missed
        counts[slo_class, "all"] = counts.get((slo_class, "all"), 0) + 1
        ttft_s, tpot_s = predicted_s
        predicted = (ttft_s, tpot_s, ttft_s + tpot_s * max(0.0, predicted_tokens - 1))
        for kind, wanted, measured in zip(KINDS, predicted, measured_s, strict=True):
            self.ratio[kind].observe(measured / wanted if wanted > 0 else math.nan)
        self.ratio["tokens"].observe(tokens / predicted_tokens)

    def attainment(self) -> float:
        """Share of finished requests that kept every limit; NaN before any has finished."""
        kept = sum(n for (_, kind), n in self.attained.items() if kind == "all")
        broken = sum(n for (_, kind), n in self.missed.items() if kind == "all")
        return kept / (kept + broken) if kept + broken else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        flat = {
            name: {f"{c}/{kind}": n for (c, kind), n in sorted(getattr(self, name).items())}
            for name in ("attained", "missed")
        }
        numbers = (
            *TOTALS, "stale_plans", "waiting", "running", "level", "breaker_open", "fallbacks", "malformed",
            "errors", "forecasts", "forecast_s",
        )  # fmt: skip
        return {
            **flat,
            **{name: getattr(self, name) for name in numbers},
            "plan_seconds": self.plan_s.as_dict(),
            "reorder_places": self.reorder.as_dict(),
            "seconds": {kind: h.as_dict() for kind, h in self.seconds.items()},
            "measured_over_predicted": {kind: h.as_dict() for kind, h in self.ratio.items()},
        }

    def line(self) -> str:
        """One line for the log."""
        attainment = self.attainment()
        share = "-" if math.isnan(attainment) else f"{attainment:.3f}"
        return (
            f"slosched ({self.level}): attainment {share}, running {self.running}, waiting {self.waiting}, "
            f"plans {self.plans}, preempted {self.preempted}, held {self.held}, "
            f"fallbacks {sum(self.fallbacks.values())}, malformed fields {sum(self.malformed.values())}"
        )

    def write_json(self, path: Path) -> None:
        """Write `as_dict` in one move."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.as_dict()))
        partial.replace(path)


class PrometheusExport:
    """Publishes `Stats` as ``slosched:*`` through prometheus_client.

    Objects made in the engine's process appear on vLLM's own /metrics page if ``PROMETHEUS_MULTIPROC_DIR``
    is set; otherwise an own port serves them.
    """

    def __init__(self, stats: Stats, port: int | None, registry: Any = None) -> None:
        import prometheus_client as prometheus

        self._stats = stats
        self._last: dict[tuple[str, tuple[str, ...]], float] = {}
        if registry is None:
            registry = prometheus.REGISTRY if port is None else prometheus.CollectorRegistry()
        self.registry = registry

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Any:
            return prometheus.Counter(f"slosched:{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Any:
            return prometheus.Gauge(
                f"slosched:{name}", text, labels, registry=self.registry, multiprocess_mode="mostrecent"
            )

        self._counters = {
            "slo_requests": counter(
                "slo_requests", "Finished requests by outcome.", ("slo_class", "limit", "outcome")
            ),
            "fallbacks": counter("fallbacks", "Steps in the engine's own order.", ("reason",)),
            "malformed": counter("malformed_fields", "Request fields ignored.", ("field",)),
            "forecasts": counter("forecasts", "Length forecasts made.", ("source",)),
            "forecast_s": counter("forecast_seconds", "Time that forecasts took.", ("source",)),
        } | {name: counter(name, text) for name, text in TOTALS.items()}
        self._gauges = {
            "attainment": gauge("attainment", "Share of finished requests that kept all limits."),
            "capability": gauge("capability_level", "1 at the present level.", ("level",)),
            "breaker": gauge("breaker_open", "1 if the policy was turned off."),
        }
        buckets = counter("histogram_bucket_count", "Values by bucket.", ("name", "le"))
        sums = gauge("histogram_sum", "Sum of values.", ("name",))
        self._buckets, self._sums = buckets, sums
        if port is not None:
            prometheus.start_http_server(port, registry=self.registry)

    def publish(self) -> None:
        """Bring the exported values up to date."""
        s = self._stats
        for outcome, counts in (("attained", s.attained), ("missed", s.missed)):
            for (slo_class, kind), n in counts.items():
                self._raise("slo_requests", (slo_class, kind, outcome), n)
        for reason, n in s.fallbacks.items():
            self._raise("fallbacks", (reason,), n)
        for field, n in s.malformed.items():
            self._raise("malformed", (field,), n)
        for source, n in s.forecasts.items():
            self._raise("forecasts", (source,), n)
        for source, seconds in s.forecast_s.items():
            self._raise("forecast_s", (source,), seconds)
        for name in TOTALS:
            self._raise(name, (), getattr(s, name))
        attainment = s.attainment()
        if not math.isnan(attainment):
            self._gauges["attainment"].set(attainment)
        self._gauges["capability"].labels(s.level).set(1)
        self._gauges["breaker"].set(float(s.breaker_open))
        histograms = {"plan_seconds": s.plan_s, "reorder_places": s.reorder}
        histograms.update({f"{kind}_seconds": h for kind, h in s.seconds.items()})
        histograms.update({f"{kind}_measured_over_predicted": h for kind, h in s.ratio.items()})
        for name, histogram in histograms.items():
            total = 0
            for edge, n in zip([*map(str, histogram.edges), "+Inf"], histogram.counts, strict=True):
                total += n
                self._increase(self._buckets, "bucket", (name, edge), total)
            self._sums.labels(name).set(histogram.total)

    def _raise(self, name: str, labels: tuple[str, ...], value: float) -> None:
        self._increase(self._counters[name], name, labels, value)

    def _increase(self, metric: Any, name: str, labels: tuple[str, ...], value: float) -> None:
        more = value - self._last.get((name, labels), 0.0)
        if more > 0:
            (metric.labels(*labels) if labels else metric).inc(more)
            self._last[name, labels] = value


def exporter(stats: Stats, port: int | None) -> PrometheusExport | None:
    """The Prometheus export, if it is asked for and can be had; never raises."""
    if port is None and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return None
    try:
        return PrometheusExport(stats, port)
    except Exception as error:
        logger.warning("slosched: no Prometheus metrics: %s", error)
        return None
