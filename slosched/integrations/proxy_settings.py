"""Settings of the proxy."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from slosched.core.engine import find_engine
from slosched.core.errors import require
from slosched.routers import router as router_by_name

REFUSALS = (429, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """How the proxy routes and what it tolerates.

    Parameters
    ----------
    engines
        Roots of the servers, as ``http://host:port``; at least one, each once.
    data_parallel_size
        Ranks of each server, at least 1. Above 1 each rank is an engine of its own, chosen by vLLM's header
        ``X-data-parallel-rank``.
    router
        A router by name, see `slosched.routers`.
    profile
        Limits and step times of the engines: a preset's name or a JSON file.
    refuse_status
        Status of a refusal, 429 or 503.
    statistics_s
        Seconds from one look at an engine's ``/metrics`` to the next, above 0.
    hold_s
        Longest time a request may be held by a router that holds, above 0; after it the answer is a refusal.
    connect_s
        Seconds to connect to an engine, above 0.
    silence_s
        Longest silence of an engine before or within an answer, above 0. An answer that is not streamed is
        silent until it is whole.
    drain_s
        Seconds that answers have to end once the router is told to stop, above 0; then they are cut off.
    max_body_bytes
        Largest request body; beyond it the answer is 413.
    max_header_bytes
        Largest sum of the request's headers; beyond it the answer is 431.
    pass_slo
        Whether SLO headers are also written into the body as ``vllm_xargs``, where vLLM's scheduler sees
        them.
    seed
        Seed of a router that draws random numbers.
    """

    engines: tuple[str, ...]
    data_parallel_size: int = 1
    router: str = "slosched"
    profile: str = "h100-llama-3.1-8b"
    refuse_status: int = 429
    statistics_s: float = 0.25
    hold_s: float = 30.0
    connect_s: float = 5.0
    silence_s: float = 600.0
    drain_s: float = 30.0
    max_body_bytes: int = 64 * 1024 * 1024
    max_header_bytes: int = 32 * 1024
    pass_slo: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.engines) > 0, "server", "one or more URLs", self.engines)
        for url in self.engines:
            require(_root(url) is not None, "server", "a root like http://host:port, no more", url)
        roots = [_root(url) for url in self.engines]
        require(len(set(roots)) == len(roots), "server", "distinct URLs", self.engines)
        require(self.data_parallel_size >= 1, "data_parallel_size", "at least 1", self.data_parallel_size)
        require(self.refuse_status in REFUSALS, "refuse_status", "429 or 503", self.refuse_status)
        for name in ("statistics_s", "hold_s", "connect_s", "silence_s", "drain_s"):
            value = getattr(self, name)
            require(0 < value < float("inf"), name, "a finite number of seconds above 0", value)
        for name in ("max_body_bytes", "max_header_bytes"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        router_by_name(self.router, seed=self.seed)  # a wrong name shows now
        find_engine(self.profile)


def _root(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of a server; None if the address says anything else, or too little."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is none, half an IPv6 address
        return None
    more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc or "?" in url
    if parts.scheme not in ("http", "https") or not parts.hostname or more or port == 0:
        return None
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)
