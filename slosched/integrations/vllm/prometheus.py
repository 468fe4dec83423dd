"""``slosched:*`` for Prometheus: on an own port, or on vLLM's own page where that is shared by processes."""

from __future__ import annotations

import ipaddress
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slosched.core.errors import InputError
from slosched.integrations.vllm.metrics import TOTALS, Stats

LABEL = "engine"
"""Label with the number of the data-parallel rank, as in vLLM's own metrics."""


class StatsCollector:
    """Turns `Stats` into metrics at the moment they are asked for.

    Parameters
    ----------
    stats
        What was counted; read without a lock, since every value is one number.
    rank
        Number of the data-parallel rank.
    refresh
        Called first, to bring up to date what is not counted as it happens.
    """

    def __init__(self, stats: Stats, rank: int = 0, refresh: Callable[[], None] | None = None) -> None:
        self._stats, self._rank, self._refresh = stats, str(rank), refresh

    def collect(self) -> Iterator[Any]:
        """Every metric; a gauge whose value is not known yet is missing rather than 0."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        if self._refresh is not None:
            self._refresh()
        s, rank = self._stats, self._rank

        def counter(name: str, text: str, labels: Sequence[str], values: dict[Any, float]) -> Any:
            """A family of counters, one for each key of `values`."""
            family = CounterMetricFamily(f"slosched:{name}", text, labels=[LABEL, *labels])
            for key, value in values.items():
                family.add_metric([rank, *([key] if isinstance(key, str) else key)], value)
            return family

        outcomes = {(c, kind, "attained"): float(n) for (c, kind), n in s.attained.copy().items()}
        outcomes |= {(c, kind, "missed"): float(n) for (c, kind), n in s.missed.copy().items()}
        yield counter(
            "slo_requests", "Finished requests by outcome.", ("slo_class", "limit", "outcome"), outcomes
        )
        for name, text, label, values in (
            ("fallbacks", "What failed and was gone on without.", "reason", s.fallbacks),
            ("malformed_fields", "Request fields ignored.", "field", s.malformed),
            ("forecasts", "Length forecasts made.", "source", s.forecasts),
            ("forecast_seconds", "Time that forecasts took.", "source", s.forecast_s),
        ):
            yield counter(name, text, (label,), {(key,): float(n) for key, n in values.copy().items()})
        for name, text in TOTALS.items():
            yield counter(name, text, (), {(): float(getattr(s, name))})
        gauges: list[tuple[str, str, float]] = [
            ("running", "Requests running.", s.running),
            ("waiting", "Requests waiting.", s.waiting),
            ("breaker_open", "1 if the policy was turned off.", float(s.breaker_open)),
            ("attainment", "Share of finished requests with limits that kept them all.", s.attainment()),
        ]
        for name, text, value in gauges:
            if not math.isnan(value):
                family = GaugeMetricFamily(f"slosched:{name}", text, labels=[LABEL])
                family.add_metric([rank], value)
                yield family
        level = GaugeMetricFamily(
            "slosched:capability_level", "1 at the present level.", labels=[LABEL, "level"]
        )
        level.add_metric([rank, s.level], 1)
        yield level
        for name, (text, histogram) in s.histograms().items():
            shape = HistogramMetricFamily(f"slosched:{name}", text, labels=[LABEL])
            total, buckets = 0, []
            for edge, n in zip([*map(repr, histogram.edges), "+Inf"], list(histogram.counts), strict=True):
                total += n
                buckets.append((edge, total))
            shape.add_metric([rank], buckets, histogram.total)
            yield shape


class SharedPage:
    """Puts what a collector says on a page that several processes share (``PROMETHEUS_MULTIPROC_DIR``).

    prometheus_client asks no collector there: its own objects write to files that the page is made from. So
    for each metric one is made, and its values are set.
    """

    def __init__(self, collector: StatsCollector, registry: Any = None) -> None:
        self._collector = collector
        self._registry = registry
        self._made: dict[str, Any] = {}

    def publish(self) -> None:
        """Bring the page up to date."""
        for family in self._collector.collect():
            for sample in family.samples:
                self._set(family, sample)

    def _set(self, family: Any, sample: Any) -> None:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        child = self._metric(family, tuple(labels)).labels(**labels)
        if family.type == "gauge":
            child.set(sample.value)
        elif family.type == "counter":
            child._value.set(sample.value)
        elif sample.name.endswith("_sum"):
            child._sum.set(sample.value)
        elif sample.name.endswith("_bucket"):
            place = child._upper_bounds.index(float(sample.labels["le"]))
            below = sum(bucket.get() for bucket in child._buckets[:place])
            child._buckets[place].set(sample.value - below)

    def _metric(self, family: Any, labels: tuple[str, ...]) -> Any:
        made = self._made.get(family.name)
        if made is None:
            import prometheus_client as prometheus

            registry = self._registry or prometheus.REGISTRY
            if family.type == "counter":
                made = prometheus.Counter(family.name, family.documentation, labels, registry=registry)
            elif family.type == "gauge":
                made = prometheus.Gauge(
                    family.name, family.documentation, labels, registry=registry,
                    multiprocess_mode="mostrecent",
                )  # fmt: skip
            else:
                edges = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
                made = prometheus.Histogram(
                    family.name, family.documentation, labels, registry=registry, buckets=edges
                )
            self._made[family.name] = made
        return made


def serve(collector: StatsCollector, port: int, address: str) -> Any:
    """Serve a collector's metrics on an own port; returns the server.

    Raises
    ------
    InputError
        If nobody may listen there; the message names port and address.
    """
    import prometheus_client as prometheus

    registry = prometheus.CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        server, _ = prometheus.start_http_server(port, addr=address, registry=registry)
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(
            f"metrics.port must be a free port of metrics.address, got {port} of {address}: {error}."
        ) from error
    return server


def bind_address(configured: str | None, arguments: Sequence[str] | None = None) -> str:
    """Where metrics are served: as configured, else on loopback if the API server is, else everywhere.

    vLLM's engine process starts with the server's command line, which says where that listens, or names the
    file (``--config``) that does. A server on a Unix socket (``--uds``) is on no network.

    Examples
    --------
    >>> bind_address(None, ["serve", "m", "--host", "127.0.0.1"]), bind_address(None, ["serve", "m"])
    ('127.0.0.1', '0.0.0.0')
    >>> bind_address("10.0.0.7", ["serve", "m", "--host=localhost"])
    '10.0.0.7'
    """
    if configured is not None:
        return configured
    words = list(sys.argv if arguments is None else arguments)
    if _option(words, "uds") is not None:
        return "127.0.0.1"
    host = _option(words, "host")
    if host is None:
        return "0.0.0.0"
    if host == "localhost":
        return "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host
    return host if loopback else "0.0.0.0"


def _option(words: Sequence[str], name: str) -> str | None:
    """An option of the server's command line; else of the file of options it names, if that can be read."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == f"--{name}":
            found = following
        elif word.startswith(f"--{name}="):
            found = word.removeprefix(f"--{name}=")
    if found is not None or name == "config":
        return found
    file = _option(words, "config")
    if file is None:
        return None
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    value = content.get(name) if isinstance(content, dict) else None
    return None if value is None else str(value)


def on_shared_page() -> bool:
    """Whether vLLM's page is made from files of several processes, so that ours can be on it."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ
