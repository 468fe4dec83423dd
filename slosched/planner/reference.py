"""The model of `slosched.planner.model` in plain Python, token by token: it defines the truth.

Time is integrated one unit of the virtual clock at a time, one decode token for everybody, or less where a
prompt ends or a request of fractional expected length leaves. No closed forms, no heap, no shared code.
Between two events (a prompt ends, a request leaves) two things are settled for the stretch as a whole: the
time that prompts of future requests take, which is capped by what a full step could hold, and the mean step,
half of which passes between the end of a prompt and its first token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.planner import model as c


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an order leads to.

    Parameters
    ----------
    value
        Sum of weight times chance, less the prices of latency and of backlog.
    first_s, finish_s, chance
        By job served: time of the first token, of the last, and the chance to keep all limits.
    """

    value: float
    first_s: dict[int, float]
    finish_s: dict[int, float]
    chance: dict[int, float]


def evaluate(
    jobs: Floats,
    running: int,
    order: Sequence[int],
    engine: Floats,
    aim: Sequence[float],
    prefill_tokens: float = math.inf,
) -> Evaluation:
    """Serve `order` after the running jobs.

    Parameters
    ----------
    jobs, running, engine, aim, prefill_tokens
        As in `slosched.planner.model.evaluate`.
    order
        Indices of waiting jobs, each at most once.

    Examples
    --------
    >>> import numpy as np
    >>> from slosched import LengthForecast, Request, Slo, Snapshot
    >>> queue = [Request(request_id="a", prompt_tokens=100, forecast=LengthForecast.point(5),
    ...                  slo=Slo(e2e_s=2.0))]
    >>> snapshot = Snapshot.of(queue)
    >>> found = evaluate(c.jobs_of(snapshot), 0, [0], c.engine_of(snapshot), c.DEFAULT_AIM)
    >>> found.chance[0], bool(found.first_s[0] < found.finish_s[0])
    (1.0, True)
    """
    first: dict[int, float] = {}
    finish: dict[int, float] = {}
    left: dict[int, float] = {}  # decoding jobs and the tokens they still need
    context: dict[int, float] = {}
    for i in range(running):
        if jobs[i, c.TODO] == 0:
            left[i], context[i], first[i] = jobs[i, c.LEFT], jobs[i, c.HAVE], jobs[i, c.FIRST]
    line = [i for i in range(running) if jobs[i, c.TODO] > 0]
    queue = list(order)
    prompt, todo = -1, 0.0
    event_s = clear_s = float(engine[c.NOW])
    while True:
        if prompt < 0:
            if line:
                prompt = line.pop(0)
            elif queue and _enters(jobs[queue[0]], context, engine):
                prompt = queue.pop(0)
            if prompt >= 0:
                todo = float(jobs[prompt, c.TODO])
            elif not left:
                break
        room = min(engine[c.BUDGET] - len(left), prefill_tokens)
        token_s = _token_s(jobs[prompt], engine) if prompt >= 0 else 0.0
        if prompt >= 0 and engine[c.STEP] < math.inf:
            room = min(room, _room(len(left), sum(context.values()), token_s, engine))
        room = max(1.0, room)
        units, alone_s, todo, ended = _stretch(prompt, todo, room, left, context, engine)
        step_s = _step_s(alone_s, prompt >= 0, room, token_s, len(left), engine)
        event_s += units * step_s
        if ended:
            if not line and (
                not queue or len(left) + 1 >= engine[c.SLOTS]
            ):  # no other prompt follows at once
                filled = min(room, float(jobs[prompt, c.TODO]))
                step_s = _step_s(alone_s, True, filled, token_s, len(left), engine)
            if jobs[prompt, c.GENERATED] == 0:
                first[prompt] = event_s + 0.5 * step_s
            else:
                first[prompt] = float(jobs[prompt, c.FIRST])
            context[prompt] = float(jobs[prompt, c.HAVE] + jobs[prompt, c.TODO])
            left[prompt] = float(jobs[prompt, c.LEFT]) - 0.5
            prompt, clear_s = -1, event_s
        for i in sorted(left):
            if left[i] <= 0:
                finish[i] = max(event_s, first[i])
                del left[i], context[i]
    return _valued(jobs, first, finish, clear_s, engine, aim)


def _stretch(
    prompt: int, todo: float, room: float, left: dict[int, float], context: dict[int, float], engine: Floats
) -> tuple[float, float, float, bool]:
    """Go on, a unit of the clock at a time, until the prompt ends or a request may leave.

    Returns
    -------
    tuple
        (units gone, mean seconds of a step without prompts, prompt tokens left, whether the prompt ended).
    """
    units = alone = 0.0
    while True:
        to_end = todo / room if prompt >= 0 else math.inf
        unit = min(1.0, to_end, min(left.values(), default=math.inf))
        # the context grows within the unit: its mean counts
        kv = sum(context.values()) + 0.5 * unit * len(left)
        rate = engine[c.BASE] + engine[c.SEQUENCE] * len(left) + engine[c.KV_TOKEN] * kv
        alone += unit * rate
        units += unit
        for i in left:
            left[i] -= unit
            context[i] += unit
        ended = to_end == unit
        if not ended and prompt >= 0:
            todo -= unit * room
        if ended or any(tokens <= 0 for tokens in left.values()):
            return units, float(alone / units if units > 0 else rate), todo, ended


def _valued(
    jobs: Floats, first: dict[int, float], finish: dict[int, float], clear_s: float, engine: Floats,
    aim: Sequence[float],
) -> Evaluation:  # fmt: skip
    """What these times are worth."""
    now_s = float(engine[c.NOW])
    chances = {i: chance(jobs[i], first[i], finish[i], now_s, aim) for i in sorted(finish)}
    worth = math.fsum(float(jobs[i, c.WEIGHT]) * p for i, p in chances.items())
    latency_s = math.fsum(finish[i] - float(jobs[i, c.ARRIVAL]) for i in chances)
    backlog = aim[c.BACKLOG] * engine[c.FUTURE] * (clear_s - now_s)
    return Evaluation(
        value=worth - aim[c.LATENCY] * latency_s - backlog, first_s=first, finish_s=finish, chance=chances
    )


def _enters(job: Floats, context: dict[int, float], engine: Floats) -> bool:
    """Whether a waiting job gets a slot and its KV cache now; an idle engine takes anything."""
    if len(context) >= engine[c.SLOTS]:
        return False
    needed = sum(context.values()) + job[c.HAVE] + job[c.TODO]
    return not context or bool(needed <= engine[c.KV_TOKENS])


def _room(decoding: int, kv: float, token_s: float, engine: Floats) -> float:
    """Prompt tokens with which a step takes the time it may, within the bounds of the model."""
    alone_s = engine[c.BASE] + engine[c.SEQUENCE] * decoding + engine[c.KV_TOKEN] * kv

    def late(tokens: float) -> bool:
        return bool(_step_s(alone_s, True, tokens, token_s, decoding, engine) > engine[c.STEP])

    low, high = float(c.LEAST_SHARE * engine[c.BUDGET]), float(engine[c.BUDGET])
    if late(low) or not late(high):
        return low if late(low) else high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if late(middle) else (middle, high)
    return low


def _token_s(job: Floats, engine: Floats) -> float:
    """Seconds per prompt token: the linear part and, on average over the prompt, the attention."""
    pairs = job[c.HAVE] + 0.5 * job[c.TODO]
    return float(engine[c.PREFILL_TOKEN] + engine[c.ATTENTION] * pairs)


def _step_s(
    alone_s: float, prefills: bool, room: float, token_s: float, decoding: int, engine: Floats
) -> float:
    """Seconds of a step whose decoding alone takes `alone_s`."""
    if prefills:
        above = max(0.0, room + decoding - engine[c.KNEE_TOKENS])
        return float(alone_s + room * token_s + engine[c.KNEE_TOKEN] * above)
    future = engine[c.FUTURE]
    return float(min(alone_s / (1.0 - future), alone_s + room * engine[c.PREFILL_TOKEN]))


def chance(job: Floats, first_s: float, finish_s: float, now_s: float, aim: Sequence[float]) -> float:
    """Chance that a job keeps its limits, given its first token and its expected last one.

    Every limit has a margin with a uniform error; the end-to-end limit is taken for each length that the
    forecast leaves possible, at the pace of the expected one.
    """
    soft_s, soft_lead, soft_tpot = aim[c.SOFT_S], aim[c.SOFT_LEAD], aim[c.SOFT_TPOT]
    old = job[c.GENERATED] > 0
    chances = []
    if job[c.FIRST_DUE] < math.inf:
        margin = job[c.FIRST_DUE] - first_s
        width = 0.0 if old else soft_s + soft_lead * max(0.0, first_s - now_s)
        chances.append(_holds(margin, width))
    if job[c.TPOT] < math.inf:
        allowed_s = job[c.TPOT] * max(1.0, job[c.GENERATED] + job[c.LEFT] - 1)
        chances.append(_holds(allowed_s - (finish_s - first_s), soft_tpot * allowed_s))
    if job[c.E2E_DUE] < math.inf:
        start_s = max(first_s, now_s)
        before = 0.0 if old else 1.0  # the first token is out at start_s
        pace_s = (finish_s - start_s) / max(1.0, job[c.LEFT] - before)
        width = soft_s + soft_lead * max(0.0, finish_s - now_s)
        ends = [start_s + (atom - before) * pace_s for atom in job[int(job[c.ALIVE]) :]]
        chances.append(math.fsum(_holds(job[c.E2E_DUE] - end, width) for end in ends) / len(ends))
    return math.prod(chances)


def _holds(margin_s: float, width_s: float) -> float:
    """Chance that a margin survives a uniform error of half-width `width_s`."""
    if width_s == 0:
        return 1.0 if margin_s >= 0 else 0.0
    return min(1.0, max(0.0, 0.5 + 0.5 * margin_s / width_s))


def random_case(rng: np.random.Generator) -> tuple[Floats, int, Ints, Floats, Floats, float]:
    """A small random queue with everything the model knows: for checks of `continuous.evaluate`.

    Requests that decode, that are in prefill, that were preempted, that have outlived their forecast; limits
    of all kinds; full slots and full KV caches; prefill limits; prompts of future requests. Numbers are such
    that no prompt ends just when somebody leaves, and nothing fits exactly: rounding would decide.

    Returns
    -------
    tuple
        (jobs, running, order, engine, aim, prefill_tokens), arguments of `evaluate`.
    """
    waiting, atoms = int(rng.integers(0, 9)), 3
    decoding, entering = int(rng.integers(0, 5)), int(rng.integers(0, 3))
    n, running, now_s = decoding + entering + waiting, decoding + entering, 100.0
    jobs = np.empty((n, c.ATOMS + atoms))
    # Places of the running ones are mixed: the engine keeps them in order of admission.
    decodes = np.zeros(n, dtype=np.bool_)
    decodes[rng.permutation(running)[:decoding]] = True
    old = decodes | (rng.random(n) < 0.2)
    jobs[:, c.TODO] = np.where(decodes, 0, rng.integers(1, 900, n))
    jobs[:, c.HAVE] = np.where(
        decodes, rng.integers(1, 900, n), rng.integers(0, 2, n) * rng.integers(0, 200, n)
    )
    lengths = np.sort(rng.integers(1, 40, (n, atoms)), axis=1) * rng.choice([1.0, 0.7])
    alive = np.where(old, rng.integers(0, atoms, n), 0)
    jobs[:, c.ATOMS :], jobs[:, c.ALIVE] = lengths, c.ATOMS + alive
    kept = np.arange(atoms) >= alive[:, None]
    jobs[:, c.LEFT] = np.maximum(1.0, (lengths * kept).sum(axis=1) / kept.sum(axis=1))
    jobs[:, c.GENERATED] = np.where(old, rng.integers(1, 50, n), 0)
    jobs[:, c.ARRIVAL] = now_s - rng.uniform(0, 3, n)
    jobs[:, c.FIRST] = np.where(old, rng.uniform(jobs[:, c.ARRIVAL], now_s), np.nan)
    for column, longest in ((c.FIRST_DUE, 4.0), (c.E2E_DUE, 6.0)):
        limited = rng.random(n) < 0.5
        jobs[:, column] = np.where(limited, jobs[:, c.ARRIVAL] + rng.uniform(0.1, longest, n), np.inf)
    jobs[:, c.TPOT] = np.where(rng.random(n) < 0.4, rng.uniform(0.01, 0.2, n), np.inf)
    jobs[:, c.WEIGHT] = rng.choice([0.0, 1.0, 2.5], n, p=[0.1, 0.6, 0.3])
    engine = np.zeros(c.ENGINE_SIZE)
    engine[c.BASE], engine[c.SEQUENCE] = rng.uniform(0.004, 0.03), rng.uniform(0, 1e-3)
    engine[c.KV_TOKEN], engine[c.PREFILL_TOKEN] = rng.uniform(0, 1e-5), rng.uniform(1e-5, 2e-4)
    engine[c.ATTENTION] = rng.choice([0.0, 1e-8])
    engine[c.KNEE_TOKENS], engine[c.KNEE_TOKEN] = rng.integers(0, 400), rng.choice([0.0, 1e-5])
    engine[c.BUDGET], engine[c.SLOTS] = rng.integers(4, 700), max(1, decoding) + rng.integers(0, 4)
    engine[c.KV_TOKENS] = rng.choice([1e9, 1500 + 1 / 3, 3000 + 1 / 3])
    engine[c.NOW], engine[c.FUTURE] = now_s, rng.choice([0.0, 0.3, 0.9])
    engine[c.STEP] = rng.choice([np.inf, 0.02, 0.05])
    aim = np.array(
        [
            rng.choice([1e-9, 0.25]),
            rng.choice([0.0, 0.5]),
            rng.choice([1e-9, 0.1]),
            1e-3,
            rng.choice([0.0, 0.15]),
        ]
    )
    order = (
        running
        + rng.permutation(waiting)[: int(rng.integers(0, waiting + 1)) if rng.random() < 0.2 else None]
    )
    return jobs, running, order.astype(np.int64), engine, aim, float(rng.choice([np.inf, 1.1, 37.3, 256.7]))
