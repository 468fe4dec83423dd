"""When requests arrive: gamma gaps, bursts, and rescaling or resampling of a given workload."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.workload import Workload

BURST_TRIES = 1000
"""Patterns of bursts drawn before one that misses its share of the window is accepted."""


def gamma_arrivals(
    rate_per_s: float, duration_s: float, *, cv: float = 1.0, rng: np.random.Generator
) -> Floats:
    """Arrival times of a stationary renewal process with gamma gaps.

    Parameters
    ----------
    rate_per_s
        Mean rate, above 0.
    duration_s
        Length of the window in seconds, above 0.
    cv
        Burstiness: coefficient of variation of the gaps, above 0; 1 is Poisson, below 1 more regular.
    rng
        Random stream.

    Returns
    -------
    ndarray
        Ascending times in [0, duration_s). The first gap follows the equilibrium distribution (a uniform
        share of a length-biased gap), so that the rate is right from the start even for high `cv`.

    Raises
    ------
    InputError
        If a parameter is outside its domain.

    Examples
    --------
    >>> times = gamma_arrivals(5.0, 1000.0, cv=2.0, rng=np.random.default_rng(1))
    >>> bool(4500 < len(times) < 5500)
    True
    """
    _check_window(rate_per_s, duration_s)
    require(0 < cv < math.inf, "cv", "a finite number above 0", cv)
    shape = 1 / cv**2
    scale = 1 / (rate_per_s * shape)
    pieces = [np.array([rng.random() * rng.gamma(shape + 1, scale)])]
    last = float(pieces[0][0])
    while last < duration_s:
        expected = (duration_s - last) * rate_per_s
        gaps = rng.gamma(shape, scale, size=int(expected + 4 * cv * math.sqrt(expected)) + 16)
        pieces.append(last + np.cumsum(gaps))
        last = float(pieces[-1][-1])
    times = np.concatenate(pieces)
    return np.asarray(times[times < duration_s])


def first_arrivals(n: int, rate_per_s: float, *, cv: float = 1.0, rng: np.random.Generator) -> Floats:
    """Exactly n arrivals of the process of `gamma_arrivals`, from time 0."""
    require(n >= 0, "n", "an integer of at least 0", n)
    times = np.empty(0)
    while len(times) < n:
        window = 1.5 * (n - len(times) + 1) / rate_per_s if rate_per_s > 0 else rate_per_s
        more = gamma_arrivals(rate_per_s, window, cv=cv, rng=rng)
        times = np.concatenate([times, (times[-1] if len(times) else 0.0) + more])
    return times[:n]


def shaped_arrivals(
    n: int,
    duration_s: float,
    *,
    profile: Sequence[tuple[float, float]] = ((0.0, 1.0), (1.0, 1.0)),
    cv: float = 1.0,
    rng: np.random.Generator,
) -> Floats:
    """Exactly n arrivals whose rate follows a profile: ramps, spikes, or overload that lasts.

    A stationary process with gamma gaps is drawn on a clock that runs with the rate; the gaps on the real
    clock are short where the rate is high (time rescaling).

    Parameters
    ----------
    n
        Arrivals, at least 0.
    duration_s
        Length of the window in seconds, above 0.
    profile
        Points (share of the window, relative rate): shares ascending from 0 to 1, rates at least 0 and not
        all 0, linear in between. Two points of equal share are a jump. Only ratios of rates matter.
    cv
        Burstiness of the gaps, above 0; 1 is Poisson.
    rng
        Random stream.

    Returns
    -------
    ndarray
        Ascending times in [0, duration_s), shape (n,).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> times = shaped_arrivals(1000, 10.0, profile=[(0, 1), (0.5, 1), (0.5, 3), (1, 3)], rng=rng)
    >>> bool(700 < np.sum(times > 5) < 800)
    True
    """
    require(n >= 0, "n", "an integer of at least 0", n)
    require(0 < duration_s < math.inf, "duration_s", "a finite number of seconds above 0", duration_s)
    share, rate = np.asarray(profile, dtype=np.float64).reshape(-1, 2).T
    ok = len(share) >= 2 and share[0] == 0 and share[-1] == 1 and bool(np.all(np.diff(share) >= 0))
    require(ok, "profile", "points of ascending share from 0 to 1", list(profile))
    ok = bool(np.all(np.isfinite(rate) & (rate >= 0)))
    area = np.concatenate([[0.0], np.cumsum(np.diff(share) * (rate[1:] + rate[:-1]) / 2)])
    require(ok and area[-1] > 0, "profile", "finite rates of at least 0, not all 0", list(profile))
    # One more than needed: the last gap reaches the end of the window, so that nobody sits on its edge.
    even = first_arrivals(n + 1, 1.0, cv=cv, rng=rng)
    at = even[:n] / even[n] * area[-1]
    piece = np.clip(np.searchsorted(area, at, side="right") - 1, 0, len(share) - 2)
    left, width, low = at - area[piece], np.diff(share)[piece], rate[piece]
    slope = np.divide(rate[piece + 1] - low, width, out=np.zeros(n), where=width > 0)
    # The time x into a piece with low·x + slope·x²/2 = left, in the form that is stable for small slopes.
    into = 2 * left / np.maximum(low + np.sqrt(np.maximum(low * low + 2 * slope * left, 0.0)), 1e-300)
    times = np.minimum((share[piece] + into) * duration_s, np.nextafter(duration_s, 0.0))
    return np.asarray(np.maximum.accumulate(times))  # rounding may put one a hair before another


def burst_arrivals(
    rate_per_s: float,
    duration_s: float,
    *,
    on_s: float,
    off_s: float,
    cv: float = 1.0,
    rng: np.random.Generator,
) -> Floats:
    """Arrival times that come in bursts: exponential on-times with gamma gaps, silence in between.

    Parameters
    ----------
    rate_per_s
        Mean rate over on and off times together, above 0.
    duration_s
        Length of the window in seconds, above 0.
    on_s, off_s
        Mean length of a burst and of a silence in seconds, above 0.
    cv
        Burstiness of the gaps inside bursts, above 0.
    rng
        Random stream.

    Returns
    -------
    ndarray
        Ascending times in [0, duration_s). Bursts cover between 2/3 and 3/2 of their long-run share of the
        window, so that windows of a few bursts are comparable in load.
    """
    _check_window(rate_per_s, duration_s)
    require(0 < on_s < math.inf, "on_s", "a finite number of seconds above 0", on_s)
    require(0 < off_s < math.inf, "off_s", "a finite number of seconds above 0", off_s)
    share = on_s / (on_s + off_s)
    starts, lengths = _bursts(duration_s, on_s, off_s, rng)
    for _ in range(BURST_TRIES):
        if 2 / 3 <= lengths.sum() / (share * duration_s) <= 3 / 2:
            break
        starts, lengths = _bursts(duration_s, on_s, off_s, rng)
    if len(starts) == 0:
        return np.empty(0)
    # Arrivals on the joined on-times, then every burst moved to where it belongs.
    busy = gamma_arrivals(rate_per_s / share, float(lengths.sum()), cv=cv, rng=rng)
    ends = np.cumsum(lengths)
    burst = np.minimum(np.searchsorted(ends, busy, side="right"), len(ends) - 1)
    return np.asarray(busy - (ends - lengths)[burst] + starts[burst])


def rescale(workload: Workload, rate_per_s: float) -> Workload:
    """The workload with its clock stretched or squeezed to a mean rate; the pattern of arrivals stays.

    The mean rate is the number of gaps between arrivals over the time from the first to the last. A workload
    whose requests all arrive at once is returned as it is. Think times stay: a closed loop starts its
    sessions faster or slower, and its rate of turns is up to the engine.

    Examples
    --------
    >>> ones = np.ones(3, dtype=np.int64)
    >>> rescale(Workload.plain(np.array([0.0, 1.0, 4.0]), ones, ones), 2.0).arrival_s.tolist()
    [0.0, 0.25, 1.0]
    """
    require(0 < rate_per_s < math.inf, "rate_per_s", "a finite number above 0", rate_per_s)
    span = float(workload.arrival_s[-1] - workload.arrival_s[0]) if len(workload) else 0.0
    if span == 0.0:
        return workload
    factor = (len(workload) - 1) / rate_per_s / span
    return replace(workload, arrival_s=workload.arrival_s * factor)


def resample(workload: Workload, requests: int, *, block_s: float = 60.0, seed: int = 0) -> Workload:
    """A workload of another length made of random blocks of time of the given one, with replacement.

    Parameters
    ----------
    workload
        Where blocks come from; must not be empty.
    requests
        Requests wanted, at least 1.
    block_s
        Length of a block in seconds, above 0: burstiness up to this scale is kept (moving-block bootstrap,
        Künsch 1989). Blocks start anywhere and wrap round the end; none is longer than the workload.
    seed
        Seed of the choice of blocks.

    Returns
    -------
    Workload
        Exactly `requests` requests; request ids are dropped since rows repeat. What falls into a block of a
        session is a session of its own.
    """
    require(len(workload) > 0, "workload", "not empty", len(workload))
    require(requests >= 1, "requests", "an integer of at least 1", requests)
    require(0 < block_s < math.inf, "block_s", "a finite number of seconds above 0", block_s)
    rng = np.random.default_rng(seed)
    times = workload.arrival_s - workload.arrival_s[0]
    n = len(times)
    # The trace ends one mean gap after its last arrival, so that wrapping does not glue two requests.
    span = float(times[-1]) * (1 + 1 / max(1, n - 1)) or block_s
    length_s = min(block_s, span)
    rows: list[Ints] = []
    blocks: list[Ints] = []
    arrivals: list[Floats] = []
    have, clock = 0, 0.0
    around = np.concatenate([times, times + span])
    while have < requests:
        start = rng.random() * span
        low, high = np.searchsorted(around, [start, start + length_s])
        index = np.arange(low, high)
        rows.append(index % n)
        blocks.append(2 * len(blocks) + index // n)
        arrivals.append(clock + around[index] - start)
        have += len(index)
        clock += length_s
    picked = np.concatenate(rows)[:requests]
    block = np.concatenate(blocks)[:requests]
    anonymous = replace(workload, request_ids=())
    longer = anonymous.rows(picked, arrival_s=np.concatenate(arrivals)[:requests])
    sessions = int(workload.session.max()) + 1
    return replace(longer, session=np.where(longer.session >= 0, longer.session + sessions * block, -1))


def _bursts(duration_s: float, on_s: float, off_s: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Starts and lengths of the bursts within the window, from the stationary on-off process."""
    starts, lengths = [], []
    clock = 0.0
    bursting = bool(rng.random() < on_s / (on_s + off_s))
    while clock < duration_s:
        stay = rng.exponential(on_s if bursting else off_s)
        if bursting:
            starts.append(clock)
            lengths.append(min(stay, duration_s - clock))
        clock += stay
        bursting = not bursting
    return np.asarray(starts), np.asarray(lengths)


def _check_window(rate_per_s: float, duration_s: float) -> None:
    require(0 < rate_per_s < math.inf, "rate_per_s", "a finite number above 0", rate_per_s)
    require(0 < duration_s < math.inf, "duration_s", "a finite number of seconds above 0", duration_s)
