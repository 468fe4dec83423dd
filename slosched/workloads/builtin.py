"""The package's own workloads: seeded generators whose lengths and arrivals follow public traces.

Every `Workload.source` names the trace behind it; the numbers live in ``fitted.json`` and are derived by
``benchmarks/fit_workloads.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.engine import preset
from slosched.core.errors import InputError, require
from slosched.core.steptime import StepTimeModel
from slosched.core.thinking import Thinking
from slosched.core.workload import Workload
from slosched.workloads.arrivals import burst_arrivals, gamma_arrivals
from slosched.workloads.lengths import LengthTable, fitted, from_quantiles
from slosched.workloads.mix import merge
from slosched.workloads.noise import with_forecast
from slosched.workloads.prefix import shared_prefix
from slosched.workloads.slos import ClassSpec, with_slos

CHAT_SLO = ClassSpec(ttft_s=1.0, ttft_x=5.0, tpot_s=0.05, weight=1.0, priority=1)
"""Somebody reads along: a prompt start, then faster than reading speed."""
CODE_SLO = ClassSpec(e2e_s=2.0, e2e_x=5.0, weight=1.0, priority=0)
"""A completion is useful only whole, and soon."""
BATCH_SLO = ClassSpec(e2e_s=120.0, e2e_x=10.0, weight=0.5, priority=2)
"""Nobody waits at a screen."""
AGENT_SLO = ClassSpec(ttft_s=2.0, ttft_x=5.0, e2e_s=15.0, e2e_x=5.0, weight=1.0, priority=1)
"""A tool loop waits for the whole answer; its user watches the first token."""
DEFAULT_SLOS = {
    "chat": CHAT_SLO,
    "code": CODE_SLO,
    "batch": BATCH_SLO,
    "agentic": AGENT_SLO,
    "reasoning": CHAT_SLO,
}
"""Limits of the built-in classes."""

DEMO_SHARES = {"chat": 0.5, "code": 0.35, "batch": 0.15}
"""Shares of requests in `mixed`."""
DEFAULT_MODEL = "h100-llama-3.1-8b"
"""Step time behind limits that are multiples of the unloaded latency, unless a model is given."""
DEFAULT_FORECAST = "predictor-5"
"""Forecast model of generated workloads: the errors of a real predictor."""

REASONING_MEDIAN_TOKENS, REASONING_SIGMA, REASONING_MOST_TOKENS = 2000.0, 0.9, 32_768
THINKING_SHARE = 8.0, 2.0
"""Beta distribution of the share of thinking in an answer with reasoning: an assumption, mean 0.8."""
AGENT_BLOCK_TOKENS = 64
"""Grain of prefix reuse in the agentic traces."""
AGENT_LONGEST_CONTEXT_TOKENS = 160_000
"""Agents compact their context before the 200,000 tokens of the models in the trace."""
AGENT_LONGEST_GAP_S = 60.0
"""Longer pauses mean that the user went away; 83 % of the gaps in the trace are shorter."""


def chat(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Workload:
    """Chat: lengths and near-Poisson arrivals of the Azure conversation trace (gaps of CV 1.09)."""
    cv = fitted()["arrivals"]["conversation"]["cv"]
    return _drawn("chat", "conversation", gamma_arrivals(rate_per_s, duration_s, cv=cv, rng=rng), rng)


def code(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Workload:
    """Code completion: long prompts, short answers and bursts as in the Azure code trace."""
    on, off = (fitted()["arrivals"]["code"][key] for key in ("on_s", "off_s"))
    return _drawn("code", "code", burst_arrivals(rate_per_s, duration_s, on_s=on, off_s=off, rng=rng), rng)


def batch(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Workload:
    """Summaries of papers: lengths of the arXiv summarization set, Poisson arrivals."""
    return _drawn("batch", "summarization", gamma_arrivals(rate_per_s, duration_s, rng=rng), rng)


def reasoning(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Workload:
    """Chat with long chains of thought.

    Prompts as in ShareGPT; answers lognormal with median 2,000 tokens and sigma 0.9, at most 32,768. The
    answer lengths are an assumption, not fitted: no public trace of them is among our data. So is the share
    of thinking in them, drawn from a beta distribution with mean 0.8.
    """
    times = gamma_arrivals(rate_per_s, duration_s, rng=rng)
    prompt, _ = LengthTable.named("chat").draw(len(times), rng)
    answer = REASONING_MEDIAN_TOKENS * np.exp(REASONING_SIGMA * rng.standard_normal(len(times)))
    output = np.clip(np.rint(answer), 1, REASONING_MOST_TOKENS).astype(np.int64)
    source = f"generated; prompts: {LengthTable.named('chat').source}; answers: assumed lognormal"
    work = Workload.plain(times, prompt, output, name="reasoning", slo_class="reasoning", source=source)
    share = rng.spawn(1)[0].beta(*THINKING_SHARE, len(times))
    return replace(work, thinking=Thinking.of(np.floor(share * output).astype(np.int64)))


def agentic(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Workload:
    """Coding agents: sessions whose context grows turn by turn, each turn reusing all before it.

    First prompts, growth, answers, gaps and turns follow the kv-cache-tester traces, each drawn on its own.
    Sessions start at random times; pauses are cut at 60 s, and a session ends when its context passes
    160,000 tokens. Replay is closed loop: a turn comes its think time after the answer before.
    """
    law = fitted()["agentic"]
    wanted = int(rng.poisson(rate_per_s * duration_s))
    turns: list[tuple[float, int, int, int, float]] = []
    session = 0
    while len(turns) < wanted:
        turns.extend(_session(session, duration_s, law, rng))
        session += 1
    turns = sorted(turns[:wanted])
    time = np.array([turn[0] for turn in turns], dtype=np.float64)
    rest = np.array([turn[1:4] for turn in turns], dtype=np.int64).reshape(-1, 3)
    session_of, prompt, reused = rest.T
    output = np.rint(from_quantiles(rng.random(len(time)), law["output_tokens"])).astype(np.int64)
    return Workload.plain(
        time,
        prompt,
        output,
        name="agentic",
        slo_class="agentic",
        session=session_of,
        think_s=np.array([turn[4] for turn in turns], dtype=np.float64),
        prefix=shared_prefix(session_of, prompt, reused, AGENT_BLOCK_TOKENS),
        source=f"generated, closed loop; {law['source']}",
    )


KINDS: dict[str, Callable[[float, float, np.random.Generator], Workload]] = {
    "chat": chat,
    "code": code,
    "batch": batch,
    "reasoning": reasoning,
    "agentic": agentic,
}
"""Built-in generators of one class, by name."""


LONGEST_S = 8e6
"""Seconds of traffic, at most: what the simulator's clock holds."""

MOST_REQUESTS = 1e9
"""Requests of generated traffic, at most: the columns of more take hundreds of gigabytes."""


def room_for(rate_per_s: float, duration_s: float) -> None:
    """Raise `InputError` if no clock or memory holds so much traffic.

    Examples
    --------
    >>> room_for(5.0, 300.0)
    >>> room_for(5.0, 1e308)
    Traceback (most recent call last):
    slosched.core.errors.InputError: duration_s must be at most 8e+06, which is 93 days, got 1e+308.
    """
    require(not duration_s > LONGEST_S, "duration_s", f"at most {LONGEST_S:g}, which is 93 days", duration_s)
    ok = not rate_per_s * duration_s > MOST_REQUESTS
    require(ok, "rate", f"one at which at most {MOST_REQUESTS:g} requests arrive", rate_per_s)


def generate(
    kind: str,
    *,
    rate_per_s: float,
    duration_s: float,
    seed: int = 0,
    model: StepTimeModel | None = None,
    forecast: str = DEFAULT_FORECAST,
) -> Workload:
    """A seeded workload with limits and forecasts.

    Parameters
    ----------
    kind
        One of `KINDS`, or ``mixed`` for the demonstration mix.
    rate_per_s
        Mean arrival rate, above 0.
    duration_s
        Length in seconds, above 0.
    seed
        Same seed, same workload.
    model
        Step time behind limits that are multiples of the unloaded latency; by default an 8B model on an H100.
    forecast
        Forecast model, see `slosched.workloads.noise.with_forecast`.

    Raises
    ------
    InputError
        If the kind is unknown or a number is outside its domain.

    Examples
    --------
    >>> w = generate("mixed", rate_per_s=4.0, duration_s=60.0, seed=1)
    >>> w.classes
    ('chat', 'code', 'batch')
    """
    room_for(rate_per_s, duration_s)
    if kind == "mixed":
        return mixed(rate_per_s, duration_s, seed, model=model, forecast=forecast)
    if kind not in KINDS:
        raise InputError(f"workload must be one of {', '.join((*KINDS, 'mixed'))}, got {kind!r}.")
    _check(rate_per_s, duration_s, seed)
    plain = KINDS[kind](rate_per_s, duration_s, np.random.default_rng(seed))
    return _promised(plain, seed, model, forecast)


def mixed(
    rate_per_s: float,
    duration_s: float,
    seed: int = 0,
    *,
    model: StepTimeModel | None = None,
    forecast: str = DEFAULT_FORECAST,
) -> Workload:
    """The demonstration mix: half chat (TTFT and TPOT), 35 % code (e2e), 15 % batch (a loose e2e).

    Parameters and errors as in `generate`.
    """
    _check(rate_per_s, duration_s, seed)
    streams = np.random.default_rng(seed).spawn(len(DEMO_SHARES))
    parts = [
        KINDS[kind](rate_per_s * share, duration_s, stream)
        for (kind, share), stream in zip(DEMO_SHARES.items(), streams, strict=True)
    ]
    return _promised(merge(parts, name="mixed"), seed, model, forecast)


def _promised(plain: Workload, seed: int, model: StepTimeModel | None, forecast: str) -> Workload:
    specs = {name: DEFAULT_SLOS[name] for name in plain.classes}
    timed = with_slos(plain, specs, model=model or preset(DEFAULT_MODEL).step_time)
    return with_forecast(timed, forecast, seed=seed)


def _drawn(name: str, lengths: str, times: Floats, rng: np.random.Generator) -> Workload:
    table = LengthTable.named(lengths)
    prompt, output = table.draw(len(times), rng)
    source = f"generated; {table.source}"
    return Workload.plain(times, prompt, output, name=name, slo_class=name, source=source)


def _session(
    session: int, duration_s: float, law: dict[str, list[float]], rng: np.random.Generator
) -> list[tuple[float, int, int, int, float]]:
    """Turns of one agent within the window: (time, session, prompt tokens, reused tokens, think time)."""
    start = float(rng.random() * duration_s)
    count = round(float(from_quantiles(rng.random(), law["turns"])))
    pause = rng.random(count - 1)
    gaps = np.minimum(from_quantiles(pause, law["gap_s"]), AGENT_LONGEST_GAP_S)
    # The same quantile: a long gap between turns is a long pause of the user.
    think = np.minimum(from_quantiles(pause, law["think_s"]), gaps)
    grown = np.rint(from_quantiles(rng.random(count - 1), law["new_tokens"]))
    first = np.rint(from_quantiles(rng.random(), law["first_prompt_tokens"]))
    clock = start + np.concatenate([[0.0], np.cumsum(gaps)])
    context = first + np.concatenate([[0.0], np.cumsum(grown)])
    keep = int(np.sum((clock < duration_s) & (context <= AGENT_LONGEST_CONTEXT_TOKENS)))
    prompts = [int(c) for c in context[:keep]]
    reused = [0, *prompts][:keep]
    thinks = [0.0, *think.tolist()][:keep]
    return [
        (float(t), session, p, r, s) for t, p, r, s in zip(clock[:keep], prompts, reused, thinks, strict=True)
    ]


def _check(rate_per_s: float, duration_s: float, seed: int) -> None:
    require(0 < rate_per_s < math.inf, "rate_per_s", "a finite number above 0", rate_per_s)
    require(0 < duration_s < math.inf, "duration_s", "a finite number of seconds above 0", duration_s)
    require(isinstance(seed, int) and seed >= 0, "seed", "an integer of at least 0", seed)
