"""Counters of the proxy, for Prometheus."""

from __future__ import annotations

from importlib.util import find_spec

from slosched.core.errors import MissingExtraError

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DECISION_SECONDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)


class RouterMetrics:
    """What the proxy counts, its processor time and memory; names begin with ``slosched_router``."""

    def __init__(self) -> None:
        if find_spec("prometheus_client") is None:
            raise MissingExtraError("prometheus_client", "router")
        import prometheus_client as prometheus

        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(namespace="slosched_router", registry=self.registry)
        self.requests = prometheus.Counter(
            "slosched_router_requests", "Requests by how they ended.", ["outcome"], registry=self.registry
        )
        self.sent = prometheus.Counter(
            "slosched_router_sent", "Requests sent to an engine.", ["engine"], registry=self.registry
        )
        self.retried = prometheus.Counter(
            "slosched_router_retried",
            "Requests sent to another engine, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.overruled = prometheus.Counter(
            "slosched_router_overruled",
            "Decisions of the router that were unlawful or failed: the fewest requests decided.",
            registry=self.registry,
        )
        self.slo = prometheus.Counter(
            "slosched_router_slo",
            "Answered requests with an SLO.",
            ["slo_class", "met"],
            registry=self.registry,
        )
        self.first_token = prometheus.Histogram(
            "slosched_router_first_token_seconds",
            "Arrival to first token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.decision = prometheus.Histogram(
            "slosched_router_decision_seconds",
            "Routing decisions.",
            buckets=DECISION_SECONDS,
            registry=self.registry,
        )
        self.up = prometheus.Gauge(
            "slosched_router_engine_up", "Whether it is up.", ["engine"], registry=self.registry
        )
        self.outstanding = prometheus.Gauge(
            "slosched_router_outstanding", "Requests at an engine.", ["engine"], registry=self.registry
        )

    def page(self) -> bytes:
        """The page of ``/metrics``."""
        import prometheus_client as prometheus

        return prometheus.generate_latest(self.registry)
