"""The random population of scenarios: a seed draws an engine, its traffic, its promises and its load.

Seeds below 10,000 are for tuning policies and constants, 10,000 to 19,999 for reporting. What is reported is
never tuned on.
"""

from __future__ import annotations

import numpy as np

from slosched.core.engine import PRESETS
from slosched.core.errors import require
from slosched.lab.scenarios import STEADY, Range, Scenario, Traffic, limits_of

FIRST_REPORTING_SEED, LAST_SEED = 10_000, 19_999
"""Seeds from the first to the last are for reporting, those below for tuning."""
LEAST_REQUESTS, LEAST_S, LEAST_LIMITS = 1000, 60.0, 20.0
"""A draw has at least so many requests, seconds, and times its tightest TTFT or e2e limit."""
LONG_S, LONG_SHARE = 600.0, 0.05
"""Some draws last ten minutes."""
BURST_SHARE, BURST_REQUESTS, BURST_S = 0.08, (250, 400), 40.0
"""Some are short bursts: so many requests within so many seconds at most."""
MOST_REQUESTS, MOST_S = 4000, 1000.0
"""Draws beyond are drawn again: one run should take seconds, not minutes."""
MOST_STEPS, STEP = 6000, 2.0
"""And those with more engine steps, each taken to last twice the base of the step-time model."""
SLOW_FAMILIES, SLOWER = ("agents", "reasoning", "documents"), 3
"""Families of which an engine serves few a second: such draws may have three times as many steps, or there
would be none of them."""
TRIES = 1000

SEQS = (64, 128, 256, 512, 1024)
BUDGETS = (1024, 2048, 4096, 8192, 16_384)
VLLM_LARGE, VLLM_SMALL = (1024, 8192), (256, 2048)
"""vLLM 0.19's defaults for its server: slots and token budget on GPUs of at least 70 GiB other than A100,
and on all others (``vllm/engine/arg_utils.py``)."""
DEFAULT_SHARE = 0.35
"""Share of engines left at vLLM's defaults."""
KV_SHARES = (1.0, 1.0, 0.5, 0.25)
"""KV cache as a share of the preset's: the rest of the memory is taken by something else."""
LEAST_KV_TOKENS = 32_768

KINDS = {
    "chat": ("chat", "conversation", "dialog"),
    "code": ("code",),
    "summaries": ("summaries", "documents"),
    "reasoning": ("reasoning",),
    "agents": ("agents",),
    "multi-turn": ("multi-turn",),
}
"""Kinds of classes, and the families of lengths of each."""
CLASS_COUNTS = ((1, 2, 3, 4), (0.35, 0.3, 0.2, 0.15))
LIMIT_KINDS = (("ttft", "ttft+tpot", "e2e", "ttft+e2e"), (0.2, 0.45, 0.25, 0.1))
LATENCY_X, PACE_X = (2.0, 10.0), (1.5, 5.0)
"""TTFT and e2e limits in unloaded latencies, TPOT limits in bare decode steps."""
BEST_EFFORT_CHANCE = 0.15
"""Chance that the last of several classes has no limits."""
LOADS = (0.4, 2.5)
FORECAST_KINDS = (
    ("oracle", "predictor-5", "predictor-3", "class-mean", "biased:0.5", "biased:2", "hints:0.3"),
    (0.15, 0.3, 0.1, 0.15, 0.08, 0.07, 0.15),
)


def draw(seed: int) -> Scenario:
    """A random scenario of the population.

    Parameters
    ----------
    seed
        From 0 to 19,999; below 10,000 for tuning, the others for reporting.

    Returns
    -------
    Scenario
        With at least 1,000 requests over at least 60 s and 20 times its tightest limit, unless it is a short
        burst. Draws that would cost minutes to simulate are drawn again.

    Raises
    ------
    InputError
        If the seed is outside its domain.

    Examples
    --------
    >>> scenario = draw(3)
    >>> scenario.requests >= 1000 or scenario.burst
    True
    """
    require(0 <= seed <= LAST_SEED, "seed", f"an integer from 0 to {LAST_SEED}", seed)
    rng = np.random.default_rng((seed, 2024))
    # Once for all tries: what takes long, or little, would be drawn again too often, or too seldom.
    load, burst, long = _log_uniform(*LOADS, rng), rng.random() < BURST_SHARE, rng.random() < LONG_SHARE
    for _ in range(TRIES):
        plain = _once(seed, load, rng)
        found = _burst(plain, rng) if burst else _sized(plain, long)
        if found is not None:
            return found
    raise AssertionError(f"no affordable scenario of seed {seed} in {TRIES} tries")


def _once(seed: int, load: float, rng: np.random.Generator) -> Scenario:
    """A scenario of 1,000 requests."""
    name = str(rng.choice(list(PRESETS)))
    seqs, budget, kv = _engine(name, rng)
    classes, load = _classes(load, rng)
    tenants = int(rng.choice([1, 4, 20]))
    weights = rng.choice(["equal", "classes", "heavy"], p=[0.45, 0.25, 0.3])
    if weights == "classes":
        classes = [t.model_copy(update={"weight": _log_uniform(1.0, 10.0, rng)}) for t in classes]
    return Scenario(
        name=f"draw-{seed}",
        seed=seed,
        preset=name,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        kv_tokens=kv,
        classes=tuple(classes),
        load=load,
        requests=LEAST_REQUESTS,
        forecast=_choice(FORECAST_KINDS, rng),
        tenants=tenants,
        greedy_share=_round(rng.uniform(0.5, 0.8)) if tenants > 1 and rng.random() < 0.4 else 0.0,
        heavy_share=_round(rng.uniform(0.05, 0.15)) if weights == "heavy" else 0.0,
    )


def _burst(plain: Scenario, rng: np.random.Generator) -> Scenario | None:
    """The scenario as a short burst, or None if its requests come too slowly for one."""
    burst = plain.model_copy(update={"requests": int(rng.integers(*BURST_REQUESTS)), "burst": True})
    return burst if burst.traffic().window_s <= BURST_S else None


def _sized(plain: Scenario, long: bool) -> Scenario | None:
    """The scenario with as many requests as it must have, or None if that costs too much."""
    real = plain.traffic()
    promised = limits_of(real.workload)
    tightest_s = float(np.minimum(real.workload.ttft_s, real.workload.e2e_s)[promised].min(initial=np.inf))
    least_s = max(LEAST_S, LONG_S if long else 0.0, LEAST_LIMITS * tightest_s if len(promised) else 0.0)
    if any(len(t.profile) > 2 and t.profile[0][1] == OVERLOAD_EDGE for t in plain.classes):
        least_s = max(least_s, OVERLOAD_S)
    rate = len(real.workload) / real.window_s
    # A few more than needed: the mean of other lengths differs a little.
    requests = max(LEAST_REQUESTS, int(np.ceil(1.05 * least_s * rate)))
    window_s = requests / rate
    steps = window_s / (STEP * plain.engine.step_time.base_s)
    slow = any(t.family in SLOW_FAMILIES for t in plain.classes) or long
    ok = requests <= MOST_REQUESTS and window_s <= MOST_S
    ok = ok and steps <= MOST_STEPS * (SLOWER if slow else 1)
    return plain.model_copy(update={"requests": requests}) if ok else None


def _engine(name: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """Slots, token budget and KV tokens."""
    large = not name.startswith(("a100", "rtx4090"))
    if rng.random() < DEFAULT_SHARE:
        seqs, budget = VLLM_LARGE if large else VLLM_SMALL
    else:
        seqs, budget = int(rng.choice(SEQS)), int(rng.choice(BUDGETS))
    whole = PRESETS[name].limits.kv_tokens
    kv = max(min(LEAST_KV_TOKENS, whole), int(whole * rng.choice(KV_SHARES)))
    return seqs, budget, kv


def _classes(load: float, rng: np.random.Generator) -> tuple[list[Traffic], float]:
    """Classes with their arrivals and limits, and the load, which lasting overload may raise."""
    count = int(rng.choice(CLASS_COUNTS[0], p=CLASS_COUNTS[1]))
    tiers = count > 1 and rng.random() < 0.25
    kinds = list(KINDS)
    chosen = [str(rng.choice(kinds))] * count if tiers else rng.choice(kinds, count, replace=False).tolist()
    families = [str(rng.choice(KINDS[kind])) for kind in chosen]
    if tiers:
        families = families[:1] * count
    together = rng.random() < 0.6
    common, load = _arrivals(rng, load)
    same_limits = rng.random() < 0.4
    limits = _choice(LIMIT_KINDS, rng)
    per_request = bool(rng.random() < 0.5)
    classes = []
    for place, family in enumerate(families):
        kind = limits if same_limits else _choice(LIMIT_KINDS, rng)
        if place == count - 1 and count > 1 and rng.random() < BEST_EFFORT_CHANCE:
            kind = ""
        cv, profile = common if together else _arrivals(rng, load)[0]
        classes.append(
            Traffic(
                name=f"{chr(ord('a') + place)}-{family}",
                family=family,
                share=_round(rng.uniform(0.5, 2.0)),
                answer_scale=_log_uniform(0.5, 2.0, rng),
                cv=cv,
                profile=profile,
                ttft_x=_multiples(LATENCY_X, per_request, rng) if "ttft" in kind else None,
                tpot_x=_multiples(PACE_X, per_request, rng) if "tpot" in kind else None,
                e2e_x=_multiples(LATENCY_X, per_request, rng) if "e2e" in kind else None,
                per_request=per_request,
            )
        )
    return classes, load


OVERLOAD_EDGE, OVERLOAD_PEAK, OVERLOAD_S = 0.4, 1.4, 240.0
"""Lasting overload: for the middle six tenths of at least four minutes the rate is 3.5 times that around."""


def _arrivals(rng: np.random.Generator, load: float) -> tuple[tuple[float, tuple[Range, ...]], float]:
    """CV and profile of arrivals, and the load, which lasting overload raises."""
    kind = rng.choice(["poisson", "gamma", "spikes", "ramp", "overload"], p=[0.3, 0.25, 0.18, 0.12, 0.15])
    if kind == "gamma":
        return (_round(rng.uniform(1.2, 4.0)), STEADY), load
    if kind == "spikes":
        return (1.0, _spikes(rng)), load
    if kind == "ramp":
        low = _round(rng.uniform(0.2, 0.8))
        ends = (low, 2.0 - low)
        first, last = ends if rng.random() < 0.5 else ends[::-1]
        return (1.0, ((0.0, first), (1.0, last))), load
    if kind == "overload":
        edge, peak = OVERLOAD_EDGE, OVERLOAD_PEAK
        profile = ((0.0, edge), (0.2, edge), (0.2, peak), (0.8, peak), (0.8, edge), (1.0, edge))
        return (1.0, profile), max(load, _log_uniform(0.9, 1.8, rng))
    return (1.0, STEADY), load


def _spikes(rng: np.random.Generator) -> tuple[Range, ...]:
    """One to four spikes of 4 to 8 times the rate, each 2 to 6 % of the window."""
    count = int(rng.integers(1, 5))
    points: list[Range] = [(0.0, 1.0)]
    for place in range(count):
        start = _round((place + rng.uniform(0.1, 0.8)) / count)
        end = round(start + _round(rng.uniform(0.02, 0.06)) / max(1, count - 1), 4)
        height = _round(rng.uniform(4.0, 8.0))
        points += [(start, 1.0), (start, height), (end, height), (end, 1.0)]
    return (*points, (1.0, 1.0))


def _multiples(between: Range, per_request: bool, rng: np.random.Generator) -> Range:
    """One multiple for the class, or the range that its requests draw from."""
    one, other = _log_uniform(*between, rng), _log_uniform(*between, rng)
    return (min(one, other), max(one, other)) if per_request else (one, one)


def _choice(options: tuple[tuple[str, ...], tuple[float, ...]], rng: np.random.Generator) -> str:
    return str(rng.choice(options[0], p=options[1]))


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return _round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def _round(value: float) -> float:
    """Three significant digits: enough, readable, and equal on every machine."""
    return float(f"{value:.3g}")
