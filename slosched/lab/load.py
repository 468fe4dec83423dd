"""Load on a live OpenAI-compatible server: every request with its own SLO, sessions in a closed loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from slosched.core.errors import InputError, require
from slosched.core.outcome import Outcomes, Run, RunLog
from slosched.core.workload import Workload
from slosched.integrations.openai_client import Client, RequestError
from slosched.integrations.openai_stream import FAILED, FINISHED, REFUSED, Answer, EndOfThinking
from slosched.lab.loadbody import NONSENSE as NONSENSE
from slosched.lab.loadbody import LoadSettings as LoadSettings
from slosched.lab.loadbody import Prompts
from slosched.lab.loadbody import body as body
from slosched.lab.loadcounts import HUNG_UP, INTERRUPTED, NOT_SENT, TIMED_OUT
from slosched.lab.loadcounts import LoadCounts as LoadCounts

TICK_S = 0.02
"""The client's clock is checked this often: short beside latencies, long beside the work of a check."""

WARM_UP_TOKENS = 16, 4
"""Prompt and answer of a warm-up request: short, but more than one step of each kind."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; `run` and `counts` hold what was done until then."""

    def __init__(self, run: Run, counts: LoadCounts) -> None:
        super().__init__("interrupted")
        self.run, self.counts = run, counts


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

    Requests leave at their arrival times whatever the server does (open loop); a turn of a session leaves
    `think_s` after the answer before it (closed loop). Latencies count from the planned time, not from when
    the client got round to sending: a client that falls behind cannot make the server look better (no
    coordinated omission).

    Parameters
    ----------
    url
        Root of the server, such as ``http://localhost:8000``; with ``/v1`` it is taken, too.
    workload
        What to send; the answer's length is forced with ``max_tokens`` and ``ignore_eos``.
    settings
        How to send it.
    prompts
        Texts to send in place of random tokens, one a request. The model then ends its answers itself, at
        the latest after the workload's output tokens, sampled at temperature 1, by default with a seed for
        each request, so that another server gives the same answers.
    policy
        Label of the run in reports.
    progress
        Called with (requests done, all requests).
    counts
        Filled with what happened at the client.

    Returns
    -------
    Run
        Lengths are those that came, where an answer finished. Unfinished requests have NaN times. The queue's
        depth is what the client sees: requests without a first token, and requests receiving tokens. How busy
        the server was is not known: `RunLog.busy_s` is NaN.

    Raises
    ------
    MissingExtraError
        If aiohttp is not installed.
    InputError
        If the server cannot be reached, or refuses or does not answer warm-up requests.
    Interrupted
        At Ctrl-C; it holds the requests that had ended by then.
    """
    if prompts is not None:
        require(len(prompts) == len(workload), "prompts", f"one for each of {len(workload)}", len(prompts))
    counts = counts if counts is not None else LoadCounts()
    sender = _Sender(url, workload, settings or LoadSettings(), counts, progress, prompts)
    begin = time.perf_counter()
    asyncio.run(sender.run())
    run = sender.result(policy, time.perf_counter() - begin)
    if sender.stopped:
        raise Interrupted(run, counts)
    return run


class _Sender:
    """One run: when which request leaves, and what came back."""

    def __init__(
        self,
        url: str,
        workload: Workload,
        settings: LoadSettings,
        counts: LoadCounts,
        progress: Callable[[int, int], None] | None,
        prompts: Sequence[str] | None,
    ) -> None:
        self.workload, self.settings, self.counts, self.progress = workload, settings, counts, progress
        self.forced = prompts is None
        self.prompts = Prompts(workload, settings, prompts)
        self.client = Client(
            url,
            api_key=settings.api_key,
            timeout_s=settings.timeout_s,
            retries=settings.retries,
            clock=self.now,
        )
        n = counts.requests = len(workload)
        previous = workload.previous
        self.next_turn = np.full(n, -1, dtype=np.int64)
        later = np.flatnonzero(previous >= 0)
        self.next_turn[previous[later]] = later
        self.due_s = np.where(previous >= 0, np.nan, workload.arrival_s / settings.speed)
        self.late_s = np.full(n, np.nan)
        self.answers = [Answer() for _ in range(n)]
        rng = np.random.default_rng(settings.seed)
        self.hang_up_s = np.where(
            rng.random(n) < settings.abort_share, rng.uniform(0.0, settings.abort_within_s, n), math.inf
        )
        self.nonsense_rng = np.random.default_rng([settings.seed, 1])
        self.malformed = self.nonsense_rng.random(n) < settings.malformed_share
        self.model = settings.model
        self.waiting = self.streaming = self.done = 0
        self.depths: list[tuple[float, int, int]] = []
        self.stalls_s: list[float] = []
        self.begin = 0.0
        self.stopped = False

    def now(self) -> float:
        """Seconds since the first arrival was due."""
        return time.perf_counter() - self.begin

    async def run(self) -> None:
        """Warm up, then send every request at its time and wait for all ends."""
        async with self.client as client:
            if self.model is None:
                self.model = await client.first_model()
            await self.warm_up()
            self.begin = time.perf_counter()
            watch = asyncio.create_task(self.watch())
            try:
                async with asyncio.TaskGroup() as group:
                    for i in np.flatnonzero(~np.isnan(self.due_s)).tolist():
                        # Made before its time, since making it takes some.
                        content = self.content(i)
                        await asyncio.sleep(float(self.due_s[i]) - self.now())
                        group.create_task(self.one(i, content, group))
            except asyncio.CancelledError:
                # Ctrl-C: what is done is kept.
                self.stopped = True
            finally:
                watch.cancel()
        for i, answer in enumerate(self.answers):
            if not answer.outcome:
                answer.end(NOT_SENT, "the run was stopped")
                self.counts.add(answer, int(self.workload.output_tokens[i]))
        self.counts.clocks(self.late_s[~np.isnan(self.late_s)], np.asarray(self.stalls_s))

    async def warm_up(self) -> None:
        """Send short requests that do not count; complain if the server refuses them or does not answer."""
        prompt, output = WARM_UP_TOKENS
        for _ in range(min(self.settings.warm_up, len(self.workload))):
            words = self.prompts.short(prompt)
            asked: dict[str, Any] = {"model": self.model, "max_tokens": output, "ignore_eos": True}
            message = {"messages": [{"role": "user", "content": words}]}
            try:
                await self.client.text(asked | (message if self.settings.chat else {"prompt": words}))
            except RequestError as error:
                got = ": ".join(str(part) for part in error.args if part)
                raise InputError(f"the server at {self.client.url} refuses requests: {got}") from error
            except TimeoutError:
                raise InputError(
                    f"the server at {self.client.url} must answer a warm-up request within the timeout, "
                    f"got nothing in {self.settings.timeout_s:g} s."
                ) from None

    async def watch(self) -> None:
        """Measure how long the event loop is held up."""
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.stalls_s.append(time.perf_counter() - begin - TICK_S)

    def content(self, i: int) -> dict[str, Any]:
        """Body of request `i`."""
        content = body(self.workload, i, self.prompts[i], self.settings, forced=self.forced)
        content["model"] = self.model
        if self.malformed[i]:
            content["vllm_xargs"] = {
                name: values[int(self.nonsense_rng.integers(len(values)))]
                for name, values in NONSENSE.items()
            }
        return content

    async def one(self, i: int, content: dict[str, Any], group: asyncio.TaskGroup) -> None:
        """Send one request, wait for its end, and plan the turn after it."""
        self.late_s[i] = self.now() - float(self.due_s[i])
        self.waiting += 1
        self.note_depth()
        answer = self.answers[i]
        limit = min(self.settings.timeout_s, float(self.hang_up_s[i]))
        try:
            async with asyncio.timeout(limit):
                await self.client.stream(
                    content, answer, patience_s=limit, on_first=self.first_token, end=self.end_of(i)
                )
        except TimeoutError:
            answer.end(HUNG_UP if limit < self.settings.timeout_s else TIMED_OUT)
        except asyncio.CancelledError:
            answer.end(INTERRUPTED)
            raise
        except Exception as error:  # whatever one answer holds, the run goes on
            answer.end(FAILED, type(error).__name__, str(error)[:100])
        finally:
            self.ended(i, answer)
        self.plan_next(i, group)

    def end_of(self, i: int) -> EndOfThinking:
        """How the end of a request's thinking is told: random tokens of a forced length have no mark."""
        thinking = self.workload.thinking
        forced = self.forced and thinking is not None
        tokens = int(thinking.tokens[i]) if forced and thinking is not None else None
        return EndOfThinking(self.settings.thinking_end, tokens)

    def first_token(self) -> None:
        """A request that waited has got its first token."""
        self.waiting -= 1
        self.streaming += 1
        self.note_depth()

    def ended(self, i: int, answer: Answer) -> None:
        """Count the end of a request."""
        if math.isnan(answer.first_s):
            self.waiting -= 1
        else:
            self.streaming -= 1
        self.done += 1
        self.note_depth()
        self.counts.add(answer, int(self.workload.output_tokens[i]))
        if self.progress is not None:
            self.progress(self.done, len(self.workload))

    def plan_next(self, i: int, group: asyncio.TaskGroup) -> None:
        """Send the next turn of the session after its think time; none if the answer before did not end."""
        turn = int(self.next_turn[i])
        if turn < 0:
            return
        if self.answers[i].outcome == FINISHED:
            self.due_s[turn] = self.now() + float(self.workload.think_s[turn])
            group.create_task(self.later(turn, group))
            return
        while turn >= 0:
            self.answers[turn].end(NOT_SENT, "the answer before it did not end")
            self.counts.add(self.answers[turn], int(self.workload.output_tokens[turn]))
            self.done += 1
            turn = int(self.next_turn[turn])

    async def later(self, i: int, group: asyncio.TaskGroup) -> None:
        """Send request `i` when it is due."""
        content = self.content(i)
        await asyncio.sleep(float(self.due_s[i]) - self.now())
        await self.one(i, content, group)

    def note_depth(self) -> None:
        """Record how many requests wait for a first token and how many receive tokens."""
        self.depths.append((self.now(), self.waiting, self.streaming))

    def result(self, policy: str, wall_s: float) -> Run:
        """What happened, as every engine tells it; of a stopped run, the requests that had ended."""
        rows = np.arange(len(self.workload))
        if self.stopped:
            known = [a.outcome != INTERRUPTED and a.reason != "the run was stopped" for a in self.answers]
            rows = np.flatnonzero(known)
        answers = [self.answers[i] for i in rows.tolist()]
        finished = np.array([a.outcome == FINISHED for a in answers], dtype=np.bool_)
        given = replace(self.workload, arrival_s=self.workload.arrival_s / self.settings.speed).rows(rows)
        came = np.array([a.tokens for a in answers], dtype=np.int64)
        prompt = np.array([a.prompt_tokens or 0 for a in answers], dtype=np.int64)
        output = np.where(finished, np.maximum(1, came), given.output_tokens)
        thinking = given.thinking
        if thinking is not None:
            thinking = replace(thinking, tokens=np.minimum(thinking.tokens, output - 1))
        work = replace(
            given,
            thinking=thinking,
            output_tokens=output,
            prompt_tokens=np.where(prompt > 0, prompt, given.prompt_tokens),
        )
        first_s = np.array([a.first_s for a in answers], dtype=np.float64)
        last_s = np.array([a.last_s for a in answers], dtype=np.float64)
        nothing = np.zeros(len(rows), dtype=np.int64)
        answer_s = None
        if work.thinking is not None:
            # Without a sign of thinking the first token is the first answer token, if it was to think none.
            begun = [
                a.first_s if not a.thought and tokens == 0 else a.answer_s
                for a, tokens in zip(answers, work.thinking.tokens.tolist(), strict=True)
            ]
            answer_s = np.array(begun, dtype=np.float64)
        outcomes = Outcomes(
            workload=work,
            arrival_s=self.due_s[rows],
            admitted_s=first_s,
            first_token_s=first_s,
            finish_s=np.where(finished, last_s, np.nan),
            preemptions=nothing,
            recomputed_tokens=nothing.copy(),
            cached_tokens=nothing.copy(),
            answer_s=answer_s,
            rejected=np.array([a.outcome == REFUSED for a in answers], dtype=np.bool_),
            first_tokens=np.array([max(1, a.first_tokens) for a in answers], dtype=np.int64),
        )
        depths = np.array(self.depths, dtype=np.float64).reshape(-1, 3)
        log = RunLog(
            steps=0,
            plans=0,
            plan_s=np.empty(0),
            depth_time_s=np.asarray(depths[:, 0]),
            depth_waiting=depths[:, 1].astype(np.int64),
            depth_running=depths[:, 2].astype(np.int64),
            busy_s=math.nan,
            wall_s=wall_s,
        )
        return Run(policy=policy, engine=self.client.url, outcomes=outcomes, log=log, seed=self.settings.seed)
