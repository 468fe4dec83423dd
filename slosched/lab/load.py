"""Load on a live OpenAI-compatible server: open loop, streaming, every request with its own SLO."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from slosched.core.errors import InputError, MissingExtraError, require
from slosched.core.outcome import Outcomes, Run, RunLog
from slosched.core.workload import Workload

FIRST_TOKEN_ID = 5

NONSENSE: dict[str, tuple[Any, ...]] = {
    "slo_ttft_ms": ("soon", -1, 0, 1e300, "NaN", [1.0, 2.0]),
    "slo_tpot_ms": ("", -0.5, "Infinity", 1e-300, ["x"]),
    "slo_e2e_ms": (-1e9, "1e400", 0, "\x00"),
    "slo_class": (7, "no such class", "", ["chat"]),
    "slo_weight": (1e12, -3, "heavy", "NaN"),
    "predicted_output_tokens": (-5, 1e18, "many", 0),
}
"""Values that a server must take without an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """How requests are sent.

    Parameters
    ----------
    model
        Name of the model at the server; None asks the server for its first one.
    timeout_s
        A request that takes longer is given up and counts as unfinished.
    warm_up
        Requests sent one after another beforehand and not counted.
    abort_share
        Share of requests whose client hangs up at a random time within the first `abort_within_s` seconds.
    abort_within_s
        See above.
    malformed_share
        Share of requests whose SLO fields are nonsense, to try how a server takes it.
    vocabulary
        Prompts are random token numbers below this.
    speed
        Arrivals come this many times as fast as the workload says.
    send_slo, send_priority, send_forecast
        Whether the body carries SLO fields, vLLM's priority, and the forecast's median and 90 % quantile.
    send_seed
        Whether answers that end by themselves are sampled with a seed for each request. vLLM 0.32 on CPU ends
        with an error when such a request's prompt does not fit in one step.
    prompt_text
        Send words instead of token numbers, for servers that take text only: token counts are then about
        right, not exact.
    api_key
        Sent as a bearer token.
    seed
        Of prompts and aborts.
    """

    model: str | None = None
    timeout_s: float = 600.0
    warm_up: int = 2
    abort_share: float = 0.0
    abort_within_s: float = 5.0
    malformed_share: float = 0.0
    vocabulary: int = 500
    speed: float = 1.0
    send_slo: bool = True
    send_priority: bool = True
    send_forecast: bool = True
    send_seed: bool = True
    prompt_text: bool = False
    api_key: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("timeout_s", "abort_within_s", "speed"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, "a finite number above 0", value)
        for name in ("abort_share", "malformed_share"):
            require(0 <= getattr(self, name) <= 1, name, "from 0 to 1", getattr(self, name))
        require(self.warm_up >= 0, "warm_up", "at least 0", self.warm_up)
        require(self.vocabulary > FIRST_TOKEN_ID, "vocabulary", f"above {FIRST_TOKEN_ID}", self.vocabulary)


@dataclass(slots=True)
class LoadCounts:
    """What went wrong at the client, and how late requests were sent."""

    finished: int = 0
    aborted: int = 0
    timeouts: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    latest_send_s: float = 0.0


def load(
    url: str,
    workload: Workload,
    settings: LoadSettings | None = None,
    *,
    prompts: Sequence[str] | None = None,
    policy: str = "server",
    progress: Callable[[int, int], None] | None = None,
    counts: LoadCounts | None = None,
) -> Run:
    """Send a workload to a server and measure at the client.

    Requests leave at their arrival times whatever the server does (open loop), and latencies count from the
    planned arrival, not from when the client got round to sending: a client that falls behind cannot make
    the server look better (no coordinated omission).

    Parameters
    ----------
    url
        Root of the server, such as ``http://localhost:8000``.
    workload
        What to send; the answer's length is forced with ``max_tokens`` and ``ignore_eos``.
    settings
        How to send it.
    prompts
        Texts to send in place of random tokens, one a request. The model then ends its answers itself, at
        the latest after the workload's output tokens, sampled at temperature 1, by default with a seed for
        each request, so that another server gives the same answers; the outcomes hold the lengths that came.
    policy
        Label of the run in reports.
    progress
        Called with (requests done, all requests).
    counts
        Filled with what happened at the client.

    Returns
    -------
    Run
        Unfinished requests have NaN times. The queue's depth is what the client sees: requests without a
        first token, and requests receiving tokens.

    Raises
    ------
    MissingExtraError
        If aiohttp is not installed.
    InputError
        If the server cannot be reached.
    """
    if find_spec("aiohttp") is None:
        raise MissingExtraError("aiohttp", "load")
    if prompts is not None:
        require(len(prompts) == len(workload), "prompts", f"one for each of {len(workload)}", len(prompts))
    client = _Client(
        url.rstrip("/"), workload, settings or LoadSettings(), counts or LoadCounts(), progress, prompts
    )
    begin = time.perf_counter()
    asyncio.run(client.run())
    return client.result(policy, time.perf_counter() - begin)


def body(
    workload: Workload, i: int, prompt: list[int] | str, settings: LoadSettings, *, forced: bool = True
) -> dict[str, Any]:
    """The completion request for row `i`, with its SLO in ``vllm_xargs``; `forced` to its length, or not."""
    tokens = int(workload.output_tokens[i])
    content: dict[str, Any] = {
        "model": settings.model,
        "prompt": prompt,
        "max_tokens": tokens,
        "stream": True,
    }
    if forced:
        content |= {"min_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
    else:
        content |= {"temperature": 1.0, "stream_options": {"include_usage": True}}
        if settings.send_seed:
            content["seed"] = settings.seed + i
    extra: dict[str, Any] = {}
    if settings.send_slo:
        for name, column in (
            ("slo_ttft_ms", workload.ttft_s), ("slo_tpot_ms", workload.tpot_s), ("slo_e2e_ms", workload.e2e_s)
        ):  # fmt: skip
            if np.isfinite(column[i]):
                extra[name] = float(column[i]) * 1000.0
        extra["slo_weight"] = float(workload.weight[i])
        extra["slo_class"] = workload.classes[workload.class_index[i]]
        extra["slo_tenant"] = workload.tenants[workload.tenant_index[i]]
    if settings.send_forecast:
        extra["predicted_output_tokens"] = float(np.median(workload.atoms[i]))
        extra["predicted_output_tokens_p90"] = float(workload.atoms[i][-1])
    if extra:
        content["vllm_xargs"] = extra
    if settings.send_priority:
        content["priority"] = int(workload.priority[i])
    return content


class _Client:
    def __init__(
        self,
        url: str,
        workload: Workload,
        settings: LoadSettings,
        counts: LoadCounts,
        progress: Callable[[int, int], None] | None,
        prompts: Sequence[str] | None,
    ) -> None:
        self.url, self.workload, self.settings = url, workload, settings
        self.counts, self.progress, self.prompts = counts, progress, prompts
        n = len(workload)
        self.output_tokens = workload.output_tokens.copy()
        self.arrival_s = workload.arrival_s / settings.speed
        self.first_s, self.finish_s, self.sent_s = (np.full(n, np.nan) for _ in range(3))
        rng = np.random.default_rng(settings.seed)
        self.hang_up_s = np.where(
            rng.random(n) < settings.abort_share, rng.uniform(0.0, settings.abort_within_s, n), math.inf
        )
        self.nonsense_rng = np.random.default_rng([settings.seed, 1])
        self.malformed = self.nonsense_rng.random(n) < settings.malformed_share
        self.rng = rng
        self.model = settings.model
        self.waiting = self.streaming = self.done = 0
        self.depths: list[tuple[float, int, int]] = []
        self.begin = 0.0

    def now(self) -> float:
        """Seconds since the first arrival was due."""
        return time.perf_counter() - self.begin

    def prompt(self, tokens: int) -> list[int] | str:
        """A random prompt of so many tokens."""
        ids: list[int] = self.rng.integers(FIRST_TOKEN_ID, self.settings.vocabulary, tokens).tolist()
        return " ".join(f"w{i}" for i in ids) if self.settings.prompt_text else ids

    async def run(self) -> None:
        """Warm up, then send every request at its time and wait for all ends."""
        import aiohttp

        headers = {"Authorization": f"Bearer {self.settings.api_key}"} if self.settings.api_key else {}
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            try:
                if self.model is None:
                    async with session.get(f"{self.url}/v1/models") as answer:
                        self.model = (await answer.json())["data"][0]["id"]
            except (aiohttp.ClientError, KeyError, IndexError, ValueError) as error:
                raise InputError(
                    f"url must be that of an OpenAI-compatible server, got {self.url!r}: {error}"
                ) from error
            for _ in range(min(self.settings.warm_up, len(self.workload))):
                await self.warm(session)
            self.begin = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for i in range(len(self.workload)):
                    given = self.prompts
                    prompt = given[i] if given else self.prompt(int(self.workload.prompt_tokens[i]))
                    delay = float(self.arrival_s[i]) - self.now()
                    if delay > 0:
                        await asyncio.sleep(delay)
                    late = self.now() - float(self.arrival_s[i])
                    self.counts.latest_send_s = max(self.counts.latest_send_s, late)
                    group.create_task(self.one(session, i, prompt))

    async def warm(self, session: Any) -> None:
        """Send one short request that does not count; complain if the server refuses it."""
        prompt = self.prompts[0] if self.prompts else self.prompt(16)
        content = {"model": self.model, "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
        async with session.post(f"{self.url}/v1/completions", json=content) as answer:
            if answer.status != 200:
                raise InputError(f"the server at {self.url} refuses requests: {(await answer.text())[:300]}")

    async def one(self, session: Any, i: int, prompt: list[int] | str) -> None:
        """Send one request, stamp its tokens, count its end."""
        import aiohttp

        self.waiting += 1
        self.note_depth()
        limit = min(self.settings.timeout_s, float(self.hang_up_s[i]))
        try:
            async with asyncio.timeout(limit):
                await self.stream(session, i, prompt)
        except TimeoutError:
            if limit < self.settings.timeout_s:
                self.counts.aborted += 1
            else:
                self.counts.timeouts += 1
        except (aiohttp.ClientError, ValueError, ConnectionError) as error:
            name = type(error).__name__
            self.counts.errors[name] = self.counts.errors.get(name, 0) + 1
        if math.isnan(self.first_s[i]):
            self.waiting -= 1
        else:
            self.streaming -= 1
        self.done += 1
        self.note_depth()
        if self.progress is not None:
            self.progress(self.done, len(self.workload))

    async def stream(self, session: Any, i: int, prompt: list[int] | str) -> None:
        """Post request `i` and stamp its chunks as they come."""
        content = body(self.workload, i, prompt, self.settings, forced=self.prompts is None)
        content["model"] = self.model
        if self.malformed[i]:
            content["vllm_xargs"] = {
                name: values[int(self.nonsense_rng.integers(len(values)))]
                for name, values in NONSENSE.items()
            }
        async with session.post(f"{self.url}/v1/completions", json=content) as answer:
            if answer.status != 200:
                status = str(answer.status)
                self.counts.refused[status] = self.counts.refused.get(status, 0) + 1
                return
            last = math.nan
            ended = False
            async for line in answer.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    break
                chunk = json.loads(data)
                choices = chunk.get("choices")
                if not choices:
                    if usage := chunk.get("usage"):
                        self.output_tokens[i] = max(1, usage["completion_tokens"])
                    continue
                last = self.now()
                if math.isnan(self.first_s[i]):
                    self.first_s[i] = last
                    self.waiting -= 1
                    self.streaming += 1
                ended = ended or choices[0].get("finish_reason") in ("length", "stop")
            if ended:
                self.finish_s[i] = last
                self.counts.finished += 1

    def note_depth(self) -> None:
        """Record how many requests wait for a first token and how many receive tokens."""
        self.depths.append((self.now(), self.waiting, self.streaming))

    def result(self, policy: str, wall_s: float) -> Run:
        """What happened, as every engine tells it."""
        n = len(self.workload)
        nothing = np.zeros(n, dtype=np.int64)
        depths = np.array(self.depths, dtype=np.float64).reshape(-1, 3)
        outcomes = Outcomes(
            workload=replace(self.workload, arrival_s=self.arrival_s, output_tokens=self.output_tokens),
            arrival_s=self.arrival_s,
            admitted_s=np.where(np.isnan(self.first_s), np.nan, self.first_s),
            first_token_s=self.first_s,
            finish_s=self.finish_s,
            preemptions=nothing,
            recomputed_tokens=nothing.copy(),
            cached_tokens=nothing.copy(),
        )
        log = RunLog(
            steps=0,
            plans=0,
            plan_s=np.empty(0),
            depth_time_s=np.asarray(depths[:, 0]),
            depth_waiting=depths[:, 1].astype(np.int64),
            depth_running=depths[:, 2].astype(np.int64),
            busy_s=wall_s,
            wall_s=wall_s,
        )
        return Run(policy=policy, engine=self.url, outcomes=outcomes, log=log, seed=self.settings.seed)
