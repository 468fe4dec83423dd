"""The named mixes that benchmarks compare policies on.

Each is built from the public traces where their folder is given, else from the built-in generators, and
always has limits and weights by class and forecasts with the errors of a named model. Arrivals of a real
trace are those of consecutive requests from a random place, stretched to the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.engine import EngineLimits, preset
from slosched.core.errors import InputError, require
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload, fit_to_engine
from slosched.workloads.agentic import Turns, read_turns, sample_turns
from slosched.workloads.arrivals import first_arrivals, resample
from slosched.workloads.builtin import (
    AGENT_BLOCK_TOKENS,
    AGENT_LONGEST_GAP_S,
    AGENT_SLO,
    BATCH_SLO,
    CHAT_SLO,
    CODE_SLO,
    DEFAULT_FORECAST,
    DEFAULT_MODEL,
    KINDS,
)
from slosched.workloads.fetch import command
from slosched.workloads.lengths import LengthTable
from slosched.workloads.mix import merge, relabel
from slosched.workloads.noise import with_forecast
from slosched.workloads.prefix import shared_prefix
from slosched.workloads.readers import MOONCAKE_BLOCK_TOKENS, read, read_lengths
from slosched.workloads.slos import ClassSpec, with_slos

FEWEST_REQUESTS = 10
"""So that every class of a mix has some."""
CODE_FILE = "azure2023_code.csv.gz"
CHAT_FILE = "lengths_sharegpt_val10k.csv.gz"
PAPERS_FILE = "lengths_arxiv_summarization_vidur.csv.gz"
DIALOG_FILE = "lengths_sharegpt8k_sarathi.csv.gz"

DOCUMENT_SLO = ClassSpec(ttft_s=2.0, ttft_x=5.0, tpot_s=0.05, weight=1.0, priority=1)
"""Chat over long documents: the first token may take as long as the document needs."""
GOLD_SLO = ClassSpec(ttft_s=1.0, ttft_x=3.0, tpot_s=0.04, weight=4.0, priority=0)
FREE_SLO = ClassSpec(ttft_s=5.0, ttft_x=5.0, tpot_s=0.1, weight=1.0, priority=1)
"""Two tiers of the same chat: paid for, and not."""
BEST_EFFORT = ClassSpec(weight=0.1, priority=2)
"""Work nobody promised anything for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a mix is asked to build: requests, seconds, random stream, data and the longest request."""

    requests: int
    duration_s: float
    rng: np.random.Generator
    data: Path | None
    longest_tokens: int

    def split(self, *shares: float) -> list[Part]:
        """Parts with shares of the requests (the last takes what is left) and streams of their own."""
        counts = [round(self.requests * share) for share in shares[:-1]]
        counts.append(self.requests - sum(counts))
        return [
            replace(self, requests=count, rng=rng)
            for count, rng in zip(counts, self.rng.spawn(len(counts)), strict=True)
        ]

    def file(self, name: str) -> Path | None:
        """A trace file of the data folder, compressed or not; None without a folder.

        Raises
        ------
        InputError
            If the folder lacks it: generated requests in its place would be other data under the same name.
        """
        return None if self.data is None else trace_file(self.data, name)


def trace_file(folder: str | Path, name: str) -> Path:
    """A file of a folder of public traces, compressed as it is named or not.

    Raises
    ------
    InputError
        If it is not there; the message says how to get it.
    """
    traces = Path(folder) / "traces"
    for path in (traces / name, traces / name.removesuffix(".gz")):
        if path.is_file():
            return path
    raise InputError(
        f"data folder must have traces/{name} (or without .gz), got none in {str(folder)!r}. "
        f"`{command(traces)}` fetches what the mixes azure and mooncake and the demonstration replay; "
        "without a folder (SLOSCHED_DATA not set) requests come from the built-in generators."
    )


def mix(
    name: str,
    *,
    rate_per_s: float,
    duration_s: float | None = None,
    requests: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    model: StepTimeModel | None = None,
    limits: EngineLimits | None = None,
    forecast: str = DEFAULT_FORECAST,
) -> Workload:
    """A benchmark workload.

    Parameters
    ----------
    name
        One of `MIXES`.
    rate_per_s
        Requests per second, above 0.
    duration_s, requests
        Length in seconds or in requests (at least 10); exactly one of them. A mix has that many requests
        (the rate times the duration), but for those left out; the built-in ``agentic`` one only on average.
    seed
        Same seed, same workload.
    data_dir
        Folder of public traces; None for the built-in generators.
    model
        Step time behind limits that are multiples of the unloaded latency; an 8B model on an H100 by default.
    limits
        Engine to fit: longer requests are left out, and `Workload.source` says how many.
    forecast
        Forecast model, see `slosched.workloads.noise.with_forecast`.

    Raises
    ------
    InputError
        If there is no such mix or a number is outside its domain.

    Examples
    --------
    >>> w = mix("azure", rate_per_s=5.0, requests=200, seed=1)
    >>> len(w), w.classes
    (200, ('code', 'chat'))
    """
    if name not in MIXES:
        raise InputError(f"mix must be one of {', '.join(MIXES)}, got {name!r}.")
    require(0 < rate_per_s < math.inf, "rate_per_s", "a finite number above 0", rate_per_s)
    if (duration_s is None) == (requests is None):
        raise InputError(f"duration_s or requests must be given, not both, got {duration_s} and {requests}.")
    count = requests if requests is not None else max(1, round(rate_per_s * (duration_s or 0.0)))
    require(count >= FEWEST_REQUESTS, "requests", f"at least {FEWEST_REQUESTS}", count)
    data = Path(data_dir) if data_dir is not None else None
    if data is not None and not data.is_dir():
        raise InputError(f"data_dir must be a folder, got {str(data)!r}.")
    build, specs, _ = MIXES[name]
    engine = limits or EngineLimits()
    part = Part(
        requests=count,
        duration_s=count / rate_per_s,
        rng=np.random.default_rng(seed),
        data=data,
        longest_tokens=min(engine.max_model_len, engine.kv_tokens),
    )
    fitting, _ = fit_to_engine(replace(build(part), name=name), engine)
    promised = with_slos(fitting, specs, model=model or preset(DEFAULT_MODEL).step_time)
    return with_forecast(promised, forecast, seed=seed)


def _azure(part: Part) -> Workload:
    code, conversation = part.file(CODE_FILE), part.file("azure2023_conv.csv.gz")
    if code and conversation:
        return _window(merge([_trace(code, "code"), _trace(conversation, "chat")]), part)
    some, most = part.split(0.31, 0.69)
    return merge([_generated("code", some), _generated("chat", most)])


def _sharegpt(part: Part) -> Workload:
    talk, papers = part.split(0.7, 0.3)
    return merge(
        [
            _lengths(CHAT_FILE, "chat", talk, slo_class="chat"),
            _lengths(PAPERS_FILE, "summarization", papers, slo_class="batch"),
        ]
    )


def _mooncake(part: Part) -> Workload:
    """Four in five requests of the trace are taken for chat, the others, at random, for batch work."""
    file = part.file("mooncake_conversation.jsonl.gz")
    if file:
        plain = _window(_trace(file, "chat"), part)
    else:
        plain = _documents(part)
    return replace(
        plain,
        classes=("chat", "batch"),
        class_index=(part.rng.random(len(plain)) < 0.2).astype(np.int64),
    )


def _documents(part: Part) -> Workload:
    """Long prompts in sessions of about four, each prompt beginning with the one before it.

    An endless prefix cache holds about a third of the blocks; 37 % in the Mooncake conversation trace.
    """
    plain = _lengths(None, "documents", part, slo_class="chat")
    session = part.rng.integers(max(1, len(plain) // 4), size=len(plain))
    prefix = shared_prefix(session, plain.prompt_tokens, plain.prompt_tokens, MOONCAKE_BLOCK_TOKENS)
    return replace(plain, prefix=prefix)


def _agentic(part: Part) -> Workload:
    file = part.file("agentic_claudecode_wekatester.csv.gz")
    if not file:
        return KINDS["agentic"](part.requests / part.duration_s, part.duration_s, part.rng)
    turns = _turns(file)
    sample = sample_turns(
        turns,
        requests=part.requests,
        duration_s=part.duration_s,
        longest_gap_s=AGENT_LONGEST_GAP_S,
        longest_tokens=part.longest_tokens,
        seed=int(part.rng.integers(2**31)),
    )
    plain = turns.replay(sample.rows, sample.clock_s, block_tokens=AGENT_BLOCK_TOKENS, name="agentic",
        longest_think_s=AGENT_LONGEST_GAP_S)  # fmt: skip
    note = f" ({sample.dropped} turns over {part.longest_tokens} tokens left out)" if sample.dropped else ""
    return replace(relabel(plain, "agentic"), source=plain.source + note)


def _bursty(part: Part) -> Workload:
    code, talk, papers = part.split(0.4, 0.3, 0.3)
    file = part.file(CODE_FILE)
    return merge(
        [
            _window(_trace(file, "code"), code) if file else _generated("code", code),
            _lengths(CHAT_FILE, "chat", talk, slo_class="chat", cv=3.0),
            _lengths(PAPERS_FILE, "summarization", papers, slo_class="batch"),
        ]
    )


def _tiers(part: Part) -> Workload:
    shares = {"gold": 0.3, "free": 0.5, "batch": 0.2}
    parts = part.split(*shares.values())
    return merge(
        [_lengths(DIALOG_FILE, "dialog", p, slo_class=tier) for tier, p in zip(shares, parts, strict=True)]
    )


MIXES: dict[str, tuple[Callable[[Part], Workload], dict[str, ClassSpec], str]] = {
    "azure": (
        _azure,
        {"code": CODE_SLO, "chat": CHAT_SLO},
        "Azure 2023 code and conversation, one hour of both",
    ),
    "sharegpt-batch": (
        _sharegpt,
        {"chat": CHAT_SLO, "batch": BATCH_SLO},
        "70 % ShareGPT chat, 30 % arXiv summaries, Poisson arrivals",
    ),
    "mooncake": (
        _mooncake,
        {"chat": DOCUMENT_SLO, "batch": BATCH_SLO},
        "Mooncake conversation with prefix blocks: 80 % chat over documents, 20 % batch",
    ),
    "agentic": (_agentic, {"agentic": AGENT_SLO}, "coding agents that reuse their prefix, closed loop"),
    "bursty": (
        _bursty,
        {"code": CODE_SLO, "chat": CHAT_SLO, "batch": BEST_EFFORT},
        "40 % Azure code in its bursts, 30 % ShareGPT chat with gaps of CV 3, 30 % best-effort summaries",
    ),
    "tiers": (
        _tiers,
        {"gold": GOLD_SLO, "free": FREE_SLO, "batch": BATCH_SLO},
        "one kind of work, ShareGPT conversations, sold in three tiers; Poisson arrivals",
    ),
}
"""Benchmark mixes: how to build them, what each class is promised, and what they are."""


@lru_cache(maxsize=4)
def _trace(path: Path, slo_class: str) -> Workload:
    return relabel(read(path), slo_class)


@lru_cache(maxsize=1)
def _turns(path: Path) -> Turns:
    return read_turns(path)


@lru_cache(maxsize=4)
def _length_file(path: Path) -> Workload:
    return read_lengths(path, rate_per_s=1.0)


def _window(trace: Workload, part: Part) -> Workload:
    """Consecutive requests of a trace from a random place, wrapping, stretched to the part's duration."""
    n = part.requests
    if n > len(trace):
        longer = resample(trace, n, seed=int(part.rng.integers(2**31)))
        return replace(longer, arrival_s=longer.arrival_s * (_stretch(longer.arrival_s, part.duration_s)))
    rows = int(part.rng.integers(len(trace))) + np.arange(n)
    lap = float(trace.arrival_s[-1]) * (1 + 1 / len(trace))
    clock = trace.arrival_s[rows % len(trace)] + lap * (rows // len(trace))
    clock = clock - clock[0]
    return trace.rows(rows % len(trace), arrival_s=clock * _stretch(clock, part.duration_s))


def _stretch(clock: Floats, duration_s: float) -> float:
    """Factor that brings the last arrival to one mean gap before the end."""
    return duration_s * (1 - 1 / len(clock)) / float(clock[-1]) if clock[-1] > 0 else 1.0


def _generated(kind: str, part: Part) -> Workload:
    """Exactly the part's number of requests of a built-in class: a random choice among more."""
    rate = part.requests / part.duration_s
    plain = KINDS[kind](2 * rate, part.duration_s, part.rng)
    while len(plain) < part.requests:
        rate *= 2
        plain = KINDS[kind](2 * rate, part.duration_s, part.rng)
    return plain.rows(np.sort(part.rng.choice(len(plain), part.requests, replace=False)))


def _lengths(file_name: str | None, table: str, part: Part, *, slo_class: str, cv: float = 1.0) -> Workload:
    """Lengths drawn from a file if there is one, else from a table, at gamma arrivals."""
    n = part.requests
    times = first_arrivals(n, n / part.duration_s, cv=cv, rng=part.rng)
    file = part.file(file_name) if file_name else None
    if file:
        known = _length_file(file)
        rows = part.rng.choice(len(known), n, replace=n > len(known))
        return relabel(known.rows(rows, arrival_s=times), slo_class)
    law = LengthTable.named(table)
    prompt, output = law.draw(n, part.rng)
    source = f"generated; {law.source}"
    return Workload.plain(times, prompt, output, name=slo_class, slo_class=slo_class, source=source)
