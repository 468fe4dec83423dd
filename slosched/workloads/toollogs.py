"""What other tools and servers write about their requests: vLLM's benchmark, aiperf, OpenAI-style logs."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import DataError
from slosched.core.reading import MOST_SHOWN, Table
from slosched.core.workload import Workload
from slosched.workloads.columns import ALIASES, Notes, left_out_words, plain_name
from slosched.workloads.fields import MOST_TOKENS, TOKEN_DOMAIN, UNITS, Clock, real_number, whole
from slosched.workloads.generic import NO_TOKENS, plain_stem, unused

FAILED = "failed requests"
WARM_UP = "not of the profiling phase"
VLLM_LISTS = ("input_lens", "output_lens")
VLLM_READ = (*VLLM_LISTS, "start_times", "errors")
AIPERF_KEYS = ("metadata", "metrics")
GUIDELLM_KEYS = ("benchmarks",)
GUIDELLM_TIMES = ("start_time", "request_start_time", "request_start")
GUIDELLM_LENGTHS = (("prompt_tokens", "input_metrics"), ("output_tokens", "output_metrics"))
"""Names of both lengths in a request, and of what holds them in newer releases."""

PROMPT = ("prompt_tokens", "input_tokens", "input")
OUTPUT = ("completion_tokens", "output_tokens", "output")
"""Names of lengths in a ``usage``; the last ones are Langfuse's."""
CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Parts of a prompt that Anthropic's usage counts beside ``input_tokens``."""
MEASURED = dict.fromkeys(("ttfts", "itls", "latencies"), "measured, not a limit")


def read_vllm(table: Table, *, time_unit: str | None = None) -> tuple[Workload, Notes]:
    """Result of ``vllm bench serve --save-result --save-detailed``: requests as they were sent.

    Raises
    ------
    DataError
        If the lists differ in length, hold no times (old releases wrote none), or every request failed.
    """
    collected = _Requests(table, "start_times")
    result: dict[str, Any] = {}
    for number, result in table.rows(VLLM_LISTS, VLLM_READ):
        given = {name: result.get(name) for name in VLLM_READ}
        count = len(result["input_lens"]) if isinstance(result["input_lens"], list) else -1
        if given["start_times"] is None:
            domain = "given, as new releases of vLLM write them"
            raise DataError(table.path, number, "start_times", domain, "no times")
        for name, values in given.items():
            absent = values is None and name == "errors"
            if not absent and not (isinstance(values, list) and len(values) == count):
                domain = f"a list of {count}" if count >= 0 else "a list"
                raise DataError(table.path, number, name, domain, str(values)[:MOST_SHOWN])
        errors = given["errors"] or [""] * count
        for i in range(count):
            collected.add(
                i + 1, given["start_times"][i], result["input_lens"][i], result["output_lens"][i],
                FAILED if errors[i] else None,
            )  # fmt: skip
    # The file holds sums beside its lists: only lists have a value for each request.
    sums = [name for name in table.seen if not isinstance(result.get(name), list)]
    left = unused(table, (*VLLM_READ, *sums), MEASURED)
    return collected.workload(
        "vllm", "vllm bench serve", documented="s", asked=time_unit, read=VLLM_READ, left=left
    )


def read_aiperf(table: Table) -> tuple[Workload, Notes]:
    """``profile_export.jsonl`` of aiperf: requests as they were sent.

    Turns of one session are a closed loop: the pause between an answer and the next turn is its think time.
    """
    collected = _Requests(table, "request_start_ns")
    names = (*AIPERF_KEYS, "error")
    for row, record in table.rows(AIPERF_KEYS, names):
        metadata, metrics = _object(record.get("metadata")), _object(record.get("metrics"))
        lengths = [
            _object(metrics.get(name)).get("value")
            for name in ("input_sequence_length", "output_sequence_length")
        ]
        reason = FAILED if record.get("error") or metadata.get("was_cancelled") else None
        if metadata.get("benchmark_phase", "profiling") != "profiling":
            reason = WARM_UP
        session, end = metadata.get("x_correlation_id"), metadata.get("request_end_ns")
        collected.add(row, metadata.get("request_start_ns"), lengths[0], lengths[1], reason)
        if reason is None:
            collected.turn(session, end)
    read = (
        "request_start_ns", "request_end_ns", "x_correlation_id", "input_sequence_length",
        "output_sequence_length", "error",
    )  # fmt: skip
    left = unused(table, names)
    return collected.workload("aiperf", "aiperf export", named="ns", read=read, left=left)


def read_guidellm(table: Table, *, time_unit: str | None = None) -> tuple[Workload, Notes]:
    """``benchmarks.json`` of GuideLLM: the requests of all its benchmarks, as they were sent."""
    collected = _Requests(table, "start_time")
    runs = 0
    for row, record in table.rows(GUIDELLM_KEYS):
        benchmarks = record["benchmarks"]
        if not isinstance(benchmarks, list):
            raise DataError(table.path, row, "benchmarks", "a list", str(benchmarks)[:MOST_SHOWN])
        runs += len(benchmarks)
        for benchmark in benchmarks:
            for kind, requests in _object(_object(benchmark).get("requests")).items():
                for number, request in enumerate(requests if isinstance(requests, list) else (), start=1):
                    one = _object(request)
                    reason = FAILED if kind in ("errored", "incomplete") else None
                    prompt, output = _guidellm_lengths(one)
                    collected.add(number, _guidellm_time(one), prompt, output, reason)
    return collected.workload(
        "guidellm", "GuideLLM report", documented="s", asked=time_unit,
        read=("start_time", "prompt_tokens", "output_tokens"), left=unused(table, GUIDELLM_KEYS),
        remarks=(f"{runs} benchmarks, one after the other",) if runs > 1 else (),
    )  # fmt: skip


def _guidellm_time(request: dict[str, Any]) -> object:
    """When a request was sent, wherever the release puts it."""
    places = (request, _object(_object(request.get("info")).get("timings")))
    found = (place.get(name) for place in places for name in GUIDELLM_TIMES)
    return next((moment for moment in found if moment is not None), None)


def _guidellm_lengths(request: dict[str, Any]) -> list[object]:
    """Tokens of prompt and answer, wherever the release puts them."""
    lengths: list[object] = []
    for name, holder in GUIDELLM_LENGTHS:
        metrics = _object(request.get(holder))
        found = (request.get(name), metrics.get("total_tokens"), metrics.get("text_tokens"))
        lengths.append(next((length for length in found if length is not None), None))
    return lengths


def read_openai(table: Table, *, time_unit: str | None = None) -> tuple[Workload, Notes]:
    """Answers of an OpenAI-compatible server with their ``usage``, or records that hold such answers.

    A record is the answer itself; or has it under ``response``, as proxies log it; or under
    ``response.body``, as OpenAI's batch files have it. The time is that of the record, if it has one, else
    the answer's ``created``. Anthropic's answers are read as well: their cached tokens are of the prompt.
    """
    places = [_openai_times(record) for _, record in table.records()]
    times = next((name for name in ALIASES["arrival"] if any(name in place for place in places)), "created")
    collected = _Requests(table, times)
    used = {"usage": None, "response": None}
    used |= dict.fromkeys(name for name in table.names if plain_name(name)[0] == times)
    for row, record in table.rows():
        answer = openai_answer(record)
        usage = _object(answer.get("usage"))
        failed = record.get("error") or _object(record.get("response")).get("status_code", 200) != 200
        moment = _openai_times(record).get(times)
        prompt, output = (
            next((usage[name] for name in names if usage.get(name) is not None), None)
            for names in (PROMPT, OUTPUT)
        )
        cached = [usage.get(name) for name in CACHED]
        if isinstance(prompt, int) and "prompt_tokens" not in usage:
            prompt += sum(part for part in cached if isinstance(part, int))
        collected.add(row, moment, prompt, output, FAILED if failed or moment is None else None)
    left = unused(table, used)
    read = (times, "usage")
    return collected.workload("openai", "OpenAI-style log", asked=time_unit, read=read, left=left)


def openai_log(record: dict[str, Any]) -> bool:
    """Whether a record of an OpenAI-style log says when a request came and how long it was."""
    usage = _object(openai_answer(record).get("usage"))
    return any(name in usage for name in PROMPT) and bool(_openai_times(record))


def openai_answer(record: dict[str, Any]) -> dict[str, Any]:
    """The answer within a record of an OpenAI-style log; {} if there is none."""
    response = _object(record.get("response"))
    for answer in (record, response, _object(response.get("body"))):
        if isinstance(answer.get("usage"), dict):
            return answer
    return {}


def _openai_times(record: dict[str, Any]) -> dict[str, Any]:
    """Every time of a record or its answer, by its plain name; those of the record go first."""
    found: dict[str, Any] = {}
    for part in (record, _object(record.get("request")), openai_answer(record)):
        for name, value in part.items():
            plain = plain_name(name)[0]
            if plain in ALIASES["arrival"] and value is not None:
                found.setdefault(plain, value)
    return found


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class _Requests:
    """Times and lengths of requests, those that failed counted apart."""

    def __init__(self, table: Table, clock: str) -> None:
        self.table = table
        self.clock = Clock(table.path, clock)
        self.prompts, self.outputs = array("q"), array("q")
        self.left_out: dict[str, int] = {}
        self.sessions: dict[str, int] = {}
        self.session, self.ends = array("q"), array("d")

    def turn(self, session: object, end: object) -> None:
        """Note whose turn the request was that was taken last, and when its answer ended."""
        if len(self.session) < len(self.prompts):
            name = str(session)
            self.session.append(-1 if session is None else self.sessions.setdefault(name, len(self.sessions)))
            self.ends.append(real_number(end))

    def _loop(self, times: Floats, unit_s: float) -> dict[str, Any]:
        """Sessions of more than one turn, and the pauses before their later turns."""
        if len(self.session) < len(times):
            return {}
        order = np.lexsort((times, np.asarray(self.session)))
        session = np.asarray(self.session, dtype=np.int64)
        start, end = np.asarray(self.clock.raw), np.asarray(self.ends)
        think = np.full(len(times), -1.0)
        for before, after in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
            if session[before] == session[after] >= 0 and math.isfinite(end[before]):
                think[after] = max(0.0, (start[after] - end[before]) * unit_s)
        numbers, counts = np.unique(session, return_counts=True)
        alone = np.isin(session, numbers[counts == 1])
        return {"session": np.where(alone, -1, session), "think_s": think}

    def add(self, row: int, moment: object, prompt: object, output: object, reason: str | None) -> None:
        """Take one request, or count why it is left out."""
        if reason is None and any(length in (None, 0) for length in (prompt, output)):
            reason = NO_TOKENS
        if reason is not None:
            self.left_out[reason] = self.left_out.get(reason, 0) + 1
            return
        path = self.table.path
        self.clock.add(row, moment)
        self.prompts.append(whole(path, row, "prompt tokens", prompt, 1, MOST_TOKENS, TOKEN_DOMAIN))
        self.outputs.append(whole(path, row, "output tokens", output, 1, MOST_TOKENS, TOKEN_DOMAIN))

    def workload(
        self, format: str, source: str, *, read: Iterator[str] | tuple[str, ...], left: tuple[str, ...],
        named: str | None = None, documented: str | None = None, asked: str | None = None,
        remarks: tuple[str, ...] = (),
    ) -> tuple[Workload, Notes]:  # fmt: skip
        """Everything taken, in order of time from the first request on."""
        if not self.clock.raw:
            raise DataError(self.table.path, None, "requests", "some that did not fail", self.left_out)
        times, clock = self.clock.seconds(named=named, documented=documented, asked=asked)
        order = np.argsort(times, kind="stable")
        loop = self._loop(times, UNITS[named or "s"])
        workload = Workload.plain(
            (times - times.min())[order],
            np.asarray(self.prompts, dtype=np.int64)[order],
            np.asarray(self.outputs, dtype=np.int64)[order],
            name=plain_stem(self.table.path),
            source=source + left_out_words(self.left_out),
            **{name: values[order] for name, values in loop.items()},
        )
        if not self.clock.sorted:
            remarks = (*remarks, "sorted by time")
        if np.any(workload.previous >= 0):
            remarks = (*remarks, "turns of sessions in a closed loop")
        return workload, Notes(
            format=format, holder=self.table.kind, clock=clock, used=tuple(read), unused=left,
            left_out=self.left_out, remarks=remarks,
        )  # fmt: skip
