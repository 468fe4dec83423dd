"""What is expected to happen to each request under a plan, and why it stands where it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.planner import model as c


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Expected latencies of running and waiting requests, on the continuous-batching model.

    Parameters
    ----------
    rows
        Table rows: the running ones, then the waiting ones in planned order, shape (n,).
    ttft_s, tpot_s, e2e_s
        Expected latencies at the expected output length, shape (n,); a first token already out keeps its
        real time.
    chance
        Chance to keep all limits, 0 to 1, shape (n,): lengths as forecast, and a margin that grows with lead
        time (`slosched.planner.model.DEFAULT_AIM`).
    """

    rows: Ints
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    chance: Floats


def predict(snapshot: Snapshot, order: Ints, prefill_tokens: int | None = None) -> Prediction:
    """Predict the outcome of serving `order` (all waiting rows) after the running requests."""
    jobs = c.jobs_of(snapshot, order)
    scratch = c.scratch_for(jobs)
    running, n = len(snapshot.running), len(jobs)
    engine, aim = c.engine_of(snapshot), np.array(c.DEFAULT_AIM)
    cap = math.inf if prefill_tokens is None else float(prefill_tokens)
    places = np.arange(running, n, dtype=np.int64)
    c.evaluate(jobs, running, places, n - running, engine, aim, cap, scratch)
    chance = [
        c.score(jobs, i, scratch.first_s[i], scratch.finish_s[i], snapshot.now_s, aim) for i in range(n)
    ]
    arrival = jobs[:, c.ARRIVAL]
    tokens = np.maximum(1.0, jobs[:, c.GENERATED] + jobs[:, c.LEFT] - 1.0)
    return Prediction(
        rows=np.concatenate([snapshot.running, order]),
        ttft_s=scratch.first_s - arrival,
        tpot_s=(scratch.finish_s - scratch.first_s) / tokens,
        e2e_s=scratch.finish_s - arrival,
        chance=np.array(chance),
    )


def explain(snapshot: Snapshot, order: Ints, policy: str, prefill_tokens: int | None, request_id: str) -> str:
    """Why a request is where it is, what moving it first would cost others, and its chance; in words.

    Raises
    ------
    InputError
        If no waiting or running request has this name.
    """
    table = snapshot.table
    now = predict(snapshot, order, prefill_tokens)
    names = [table.request_ids[row] for row in now.rows.tolist()]
    if request_id not in names:
        raise InputError(f"request_id must be a waiting or running request, got {request_id!r}.")
    i = names.index(request_id)
    row, running = int(now.rows[i]), len(snapshot.running)
    expectation = _expectation(snapshot, now, i)
    if i < running:
        return f"{request_id} is running. {expectation}"
    place = i - running
    where = f"{request_id} is number {place + 1} of {len(order)} waiting, by policy {policy}. {expectation}"
    if place == 0:
        return where
    first = np.concatenate([order[place : place + 1], order[:place], order[place + 1 :]])
    moved = predict(snapshot, first, prefill_tokens)
    then = dict(zip(moved.rows.tolist(), moved.chance.tolist(), strict=True))
    gain = then[row] - now.chance[i]
    losses = sorted(
        (now.chance[j] - then[int(other)], names[j], now.chance[j], then[int(other)])
        for j, other in enumerate(now.rows.tolist())
        if j != i
    )
    lost = sum(loss for loss, *_ in losses)
    text = (
        f"{where} Moved first, its chance would be {then[row]:.0%}, and the others would lose {lost:.2f} "
        f"expected met requests (it would gain {gain:.2f})"
    )
    worst = losses[-1] if losses else None
    if worst is not None and worst[0] >= 0.005:
        text += f", most of all {worst[1]}, from {worst[2]:.0%} to {worst[3]:.0%}"
    return text + "."


def _expectation(snapshot: Snapshot, p: Prediction, i: int) -> str:
    table, row = snapshot.table, int(p.rows[i])
    parts = []
    for name, value, limit in (
        ("TTFT", p.ttft_s[i], table.ttft_s[row]),
        ("TPOT", p.tpot_s[i], table.tpot_s[row]),
        ("e2e", p.e2e_s[i], table.e2e_s[row]),
    ):
        bound = f" (limit {_seconds(limit)})" if math.isfinite(limit) else ""
        parts.append(f"{name} {_seconds(value)}{bound}")
    limits = (table.ttft_s[row], table.tpot_s[row], table.e2e_s[row])
    if not any(map(math.isfinite, limits)):
        return f"Expected: {', '.join(parts)}; best effort."
    return f"Expected: {', '.join(parts)}; chance to meet its SLO {p.chance[i]:.0%}."


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if abs(value) < 1 else f"{value:.2f} s"
