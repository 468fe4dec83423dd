"""The servers behind the proxy: who is up, and what they say about themselves."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slosched.routers.base import EngineStatus

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

FAILURES = 2
"""Looks in a row that must fail before a server counts as down; a refused connection does at once."""

LOOKS_FROM = "x-slosched-router"
"""Header of looks with the router's own mark: one that looks at itself would send requests in circles."""

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

SAMPLE = re.compile(r'([A-Za-z_:][\w:]*)(\{(?:[^"}]|"(?:\\.|[^"\\])*")*\})?[ \t]+(\S+)')
"""Name, labels and value of one line of a Prometheus page; a time may follow."""

RANK = re.compile(r'[{,]\s*engine="([0-9]{1,6})"')
"""The label with which vLLM names a data-parallel rank."""

MOST = 10**9
"""Requests or tokens that an engine may claim to have; more is a mistake."""

LONGEST_PAGE = 8 * 1024 * 1024
"""Bytes that are read of a metrics page; vLLM's has about a tenth of one MiB."""


@dataclass(slots=True)
class Upstream:
    """One engine: a server, or a data-parallel rank of one.

    `rank` is None for a server that is one engine. `failures` counts looks that failed in a row; `up` says
    whether it takes requests, `looked` whether it was ever looked at.
    """

    url: str
    rank: int | None = None
    up: bool = False
    failures: int = 0
    looked: bool = False

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
        sample = SAMPLE.match(line) if line.startswith(STARTS) else None
        if sample is None or sample[1] not in GAUGES:
            continue
        try:
            value = float(sample[3])
        except ValueError:
            continue
        label = RANK.search(sample[2] or "")
        if math.isfinite(value):
            its = found.setdefault(int(label[1]) if label else 0, {})
            its[GAUGES[sample[1]]] = its.get(GAUGES[sample[1]], 0.0) + value
    return {rank: _status(its, now_s) for rank, its in found.items()}


STARTS = tuple({name.split(":")[0] + ":" for name in GAUGES})
"""How lines begin that may say something: pages have thousands of others."""


def _status(its: dict[str, float], now_s: float) -> EngineStatus:
    def count(name: str) -> int:
        return int(min(MOST, max(0.0, its.get(name, 0.0))))

    return EngineStatus(
        at_s=now_s,
        waiting=count("waiting"),
        running=count("running"),
        kv_used=min(1.0, max(0.0, its.get("kv_used", 0.0))),
        prompt_tokens=count("prompt_tokens") if "prompt_tokens" in its else -1,
    )


def together(ranks: Mapping[int, EngineStatus]) -> EngineStatus | None:
    """What all ranks of a server say, as one engine's word; None where none says anything."""
    if len(ranks) < 2:
        return next(iter(ranks.values()), None)
    said = [status.prompt_tokens for status in ranks.values()]
    return EngineStatus(
        at_s=min(status.at_s for status in ranks.values()),
        waiting=sum(status.waiting for status in ranks.values()),
        running=sum(status.running for status in ranks.values()),
        kv_used=sum(status.kv_used for status in ranks.values()) / len(ranks),
        prompt_tokens=-1 if min(said) < 0 else sum(said),
    )


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
    mark
        What tells this router from others, in the header `LOOKS_FROM` of its looks.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        upstreams: list[Upstream],
        period_s: float,
        clock: Callable[[], float],
        changed: Callable[[int, EngineStatus | None], None],
        mark: str = "",
    ) -> None:
        self.session, self.upstreams, self.period_s = session, upstreams, period_s
        self.clock, self.changed = clock, changed
        self._headers = {LOOKS_FROM: mark}
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
            try:
                await self._look(url)
            except Exception:  # whatever an engine says, it is looked at again
                logger.exception("slosched router: the look at %s failed", url)

    async def _look(self, url: str) -> None:
        import aiohttp

        alive, refused, status, why = False, False, dict[int, EngineStatus](), ""
        timeout = aiohttp.ClientTimeout(total=LOOK_S)
        try:
            path = "/health" if url in self._without else "/metrics"
            look = self.session.get(url + path, headers=self._headers, timeout=timeout, allow_redirects=False)
            async with look as answer:
                alive, why = answer.status < 500, f"status {answer.status} {answer.reason}"
                if path == "/metrics":
                    status = read_gauges(await _page(answer), self.clock()) if answer.status == 200 else {}
                    if answer.status == 404:
                        self._without.add(url)
        except aiohttp.ClientConnectorError as error:
            refused, why = True, str(error)
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            why = str(error) or f"no answer within {LOOK_S:g} s"
        if not alive:
            self._without.discard(url)  # another server may come back
        for i, upstream in enumerate(self.upstreams):
            if upstream.url == url:
                said = together(status) if upstream.rank is None else status.get(upstream.rank)
                self._seen(i, upstream, alive, refused, said, why)

    def _seen(
        self, i: int, upstream: Upstream, alive: bool, refused: bool, status: EngineStatus | None, why: str
    ) -> None:
        first = not (upstream.looked or alive)
        upstream.looked = True
        upstream.failures = 0 if alive else upstream.failures + 1
        was = upstream.up
        if alive:
            upstream.up = True
        elif refused or upstream.failures >= FAILURES:
            upstream.up = False
        if upstream.up and not was:
            logger.warning("slosched router: engine %s is up", upstream.name)
        elif first or (was and not upstream.up):
            logger.warning("slosched router: engine %s is down: %s", upstream.name, why)
        self.changed(i, status)


async def _page(answer: aiohttp.ClientResponse) -> str:
    """A page as text, as much of it as can be one of statistics."""
    parts: list[bytes] = []
    size = 0
    while size < LONGEST_PAGE and not answer.content.at_eof():
        parts.append(await answer.content.read(LONGEST_PAGE - size))
        size += len(parts[-1])
    return b"".join(parts).decode(errors="replace")
