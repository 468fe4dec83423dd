"""The servers behind the proxy: who is up, and what they say about themselves."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slosched.routers.base import EngineStatus

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

FAILURES = 2
"""Looks in a row that must fail before a server counts as down; a refused connection does at once."""

LOOK_S = 5.0
"""Seconds that a server has to answer a look: its own page is served between steps of seconds, too."""

GAUGES = {
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_requests_running": "running",
    "vllm:kv_cache_usage_perc": "kv_used",
    "vllm:gpu_cache_usage_perc": "kv_used",
    "slosched:prompt_tokens_waiting": "prompt_tokens",
    "sglang:num_queue_reqs": "waiting",
    "sglang:num_running_reqs": "running",
    "sglang:token_usage": "kv_used",
}
"""What is read of ``/metrics``, by name."""


@dataclass(slots=True)
class Upstream:
    """One engine: a server, or a data-parallel rank of one.

    `rank` is None for a server that is one engine. `failures` counts looks that failed in a row; `up` says
    whether it takes requests.
    """

    url: str
    rank: int | None = None
    up: bool = False
    failures: int = 0

    @property
    def name(self) -> str:
        """Name in metrics and messages."""
        return self.url if self.rank is None else f"{self.url}#{self.rank}"


def read_gauges(text: str, now_s: float) -> dict[int, EngineStatus]:
    """Statistics by rank from a Prometheus page; empty where it has none of the gauges.

    Examples
    --------
    >>> page = 'vllm:num_requests_waiting{engine="1",model_name="m"} 3.0'
    >>> read_gauges(page, 7.0)[1].waiting
    3
    """
    found: dict[int, dict[str, float]] = {}
    for line in text.splitlines():
        name = line.split("{", 1)[0].split(" ", 1)[0]
        if name not in GAUGES:
            continue
        try:
            value = float(line.rsplit(" ", 1)[1])
        except (ValueError, IndexError):
            continue
        rank = 0
        if 'engine="' in line:
            label = line.split('engine="', 1)[1].split('"', 1)[0]
            rank = int(label) if label.isdigit() else 0
        if math.isfinite(value):
            its = found.setdefault(rank, {})
            its[GAUGES[name]] = its.get(GAUGES[name], 0.0) + value
    return {
        rank: EngineStatus(
            at_s=now_s,
            waiting=int(its.get("waiting", 0)),
            running=int(its.get("running", 0)),
            kv_used=min(1.0, max(0.0, its.get("kv_used", 0.0))),
            prompt_tokens=int(its.get("prompt_tokens", -1)),
        )
        for rank, its in found.items()
    }


class Poller:
    """Looks at every server in turn and tells who is up and what it says.

    Parameters
    ----------
    session
        HTTP client.
    upstreams
        The engines, whose `up` and `failures` it keeps.
    period_s
        Seconds between two looks.
    clock
        The router's clock.
    changed
        Called with (index, status or None) after each look at an engine.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        upstreams: list[Upstream],
        period_s: float,
        clock: Callable[[], float],
        changed: Callable[[int, EngineStatus | None], None],
    ) -> None:
        self.session, self.upstreams, self.period_s = session, upstreams, period_s
        self.clock, self.changed = clock, changed
        self._without: set[str] = set()  # servers without a metrics page

    @property
    def urls(self) -> list[str]:
        """The servers, each once."""
        return list(dict.fromkeys(upstream.url for upstream in self.upstreams))

    async def run(self) -> None:
        """Look until cancelled; a server that does not answer delays no look at another."""
        async with asyncio.TaskGroup() as group:
            for url in self.urls:
                group.create_task(self._watch(url))

    async def look(self) -> None:
        """One look at every server, all at once."""
        await asyncio.gather(*(self._look(url) for url in self.urls))

    async def _watch(self, url: str) -> None:
        while True:
            await asyncio.sleep(self.period_s)
            await self._look(url)

    async def _look(self, url: str) -> None:
        import aiohttp

        alive, refused, status = False, False, dict[int, EngineStatus]()
        timeout = aiohttp.ClientTimeout(total=LOOK_S)
        try:
            path = "/health" if url in self._without else "/metrics"
            async with self.session.get(url + path, timeout=timeout) as answer:
                alive = answer.status < 500
                if path == "/metrics":
                    status = read_gauges(await answer.text(), self.clock()) if answer.status == 200 else {}
                    if answer.status == 404:
                        self._without.add(url)
        except aiohttp.ClientConnectorError:
            refused = True
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError, OSError):
            pass
        for i, upstream in enumerate(self.upstreams):
            if upstream.url == url:
                self._seen(i, upstream, alive, refused, status.get(upstream.rank or 0))

    def _seen(
        self, i: int, upstream: Upstream, alive: bool, refused: bool, status: EngineStatus | None
    ) -> None:
        upstream.failures = 0 if alive else upstream.failures + 1
        was = upstream.up
        if alive:
            upstream.up = True
        elif refused or upstream.failures >= FAILURES:
            upstream.up = False
        if was != upstream.up:
            logger.warning("slosched router: engine %s is %s", upstream.name, "up" if upstream.up else "down")
        self.changed(i, status)
