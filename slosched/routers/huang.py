"""Huang et al. (arXiv 2504.14966): requests to instances by memory, or annealed over assignment and order.

All functions that are compiled call each other, hence one file.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.jit import njit
from slosched.routers.base import FleetSnapshot, Router, Routing

LEVELS, MOVES, COOLING = 63, 100, 0.95
"""Temperatures, proposals at each, and the factor between them: 500 down to 20 as published, 6,300 in all."""

LITERAL_T = 500.0
"""First temperature as published; the objective is below 1, so that nearly every move is accepted."""

SCALED_T, SCALED_COOLING = 0.05, 0.88
"""First temperature as a share of the start's objective, and a factor that ends at 3e-4 of it."""

TEMPERATURES = ("literal", "scaled")


class Jobs(NamedTuple):
    """Requests that wait, for engines that serve in static batches."""

    prefill_s: Floats  # (engines, jobs)
    decode_s: Floats
    ttft_s: Floats  # what is left of each limit now; infinity for none
    e2e_s: Floats
    tpot_s: Floats
    tokens: Floats
    waited_s: Floats
    busy_s: Floats  # (engines,): until it takes the first
    batch: int


@njit(nogil=True, cache=True)
def evaluate(jobs: Jobs, line: Ints, count: Ints, lexicographic: bool) -> float:
    """Met requests over the sum of latencies; or met requests first, then the least sum.

    Parameters
    ----------
    jobs
        The requests.
    line, count
        Jobs of each engine in order, shape (engines, jobs), and how many.
    lexicographic
        Which of the two.
    """
    met, total = 0.0, 0.0
    for e in range(len(count)):
        start = jobs.busy_s[e]
        longest = 0.0
        for k in range(count[e]):
            if k > 0 and k % jobs.batch == 0:
                start += longest
                longest = 0.0
            i = line[e, k]
            first = start + jobs.prefill_s[e, i]
            last = first + jobs.decode_s[e, i]
            longest = max(longest, last - start)
            total += last + jobs.waited_s[i]
            paced = jobs.decode_s[e, i] <= jobs.tpot_s[i] * jobs.tokens[i]
            if first <= jobs.ttft_s[i] and last <= jobs.e2e_s[i] and paced:
                met += 1.0
    if lexicographic:
        return met - 1e-3 * total / (1.0 + total)
    return met / max(1e-9, total)


@njit(nogil=True, cache=True)
def _insert(line: Ints, count: Ints, e: int, k: int, job: int) -> None:
    for j in range(count[e], k, -1):
        line[e, j] = line[e, j - 1]
    line[e, k] = job
    count[e] += 1


@njit(nogil=True, cache=True)
def _remove(line: Ints, count: Ints, e: int, k: int) -> int:
    job = int(line[e, k])
    for j in range(k, count[e] - 1):
        line[e, j] = line[e, j + 1]
    count[e] -= 1
    return job


@njit(nogil=True, cache=True)
def anneal(
    jobs: Jobs, line: Ints, count: Ints, draws: Floats, first_t: float, cooling: float, lexicographic: bool
) -> float:
    """Anneal assignment and order together in place; returns the best value, and leaves the best plan.

    Parameters
    ----------
    jobs, lexicographic
        As in `evaluate`.
    line, count
        The start, and afterwards the best plan seen.
    draws
        Uniform numbers, shape (proposals, 6); as many proposals are made.
    first_t, cooling
        Temperature at first, and its factor every `MOVES` proposals.
    """
    value: float = evaluate(jobs, line, count, lexicographic)
    best, best_line, best_count = value, line.copy(), count.copy()
    engines, n, t = len(count), int(count.sum()), first_t
    if n == 0:
        return value
    for step in range(len(draws)):
        u = draws[step]
        if step > 0 and step % MOVES == 0:
            t *= cooling
        # The job drawn: its engine and place.
        at = int(u[0] * n)
        e = 0
        while at >= count[e]:
            at -= count[e]
            e += 1
        if u[5] < 0.5:  # swap with another
            other = int(u[1] * n)
            f = 0
            while other >= count[f]:
                other -= count[f]
                f += 1
            line[e, at], line[f, other] = line[f, other], line[e, at]
            candidate = evaluate(jobs, line, count, lexicographic)
            if candidate > value or u[4] < np.exp(min(0.0, (candidate - value) / t)):
                value = candidate
            else:
                line[e, at], line[f, other] = line[f, other], line[e, at]
        else:  # squeeze or delay: to another place, of another engine perhaps
            job = _remove(line, count, e, at)
            f = int(u[2] * engines)
            to = int(u[3] * (count[f] + 1))
            _insert(line, count, f, to, job)
            candidate = evaluate(jobs, line, count, lexicographic)
            if candidate > value or u[4] < np.exp(min(0.0, (candidate - value) / t)):
                value = candidate
            else:
                _remove(line, count, f, to)
                _insert(line, count, e, at, job)
        if value > best:
            best = value
            best_line[:] = line
            best_count[:] = count
    line[:] = best_line
    count[:] = best_count
    return best


def shortest_first(jobs: Jobs, kv_tokens: Floats, need: Floats) -> tuple[Ints, Ints]:
    """The published start: shortest first, each to the engine with the most memory left.

    `kv_tokens` are the tokens free at each engine and `need` those of each job; an engine's count begins anew
    where all are full.
    """
    engines, n = jobs.prefill_s.shape
    left = kv_tokens.astype(np.float64).copy()
    line, count = np.zeros((engines, n + 1), dtype=np.int64), np.zeros(engines, dtype=np.int64)
    for i in np.argsort((jobs.prefill_s + jobs.decode_s).min(axis=0), kind="stable").tolist():
        if left.max() < need[i]:
            left = kv_tokens.astype(np.float64).copy()
        e = int(np.argmax(left))
        line[e, count[e]] = i
        count[e] += 1
        left[e] -= need[i]
    return line, count


class Huang(Router):
    """The published assignment: the instance with the most memory left; or annealed with the order.

    A newcomer goes to the engine with the most KV tokens left, where a request takes its prompt and expected
    answer. With `joint`, assignment and order of all requests that wait are annealed together every
    `tick_s`, on the published model of static batches, and requests that are better off elsewhere are taken
    back and sent there; each engine's own policy sees to the order.

    Parameters
    ----------
    joint
        Whether to anneal.
    temperature
        "literal", 500 to 20 as published, or "scaled" to the objective.
    batch
        Batch size of the model, at least 1.
    most
        Most requests in one search, at least 1, the oldest first.
    tick_s
        Seconds from search to search, above 0.
    seed
        Seed of the search.
    """

    name: ClassVar[str] = "huang"

    def __init__(
        self, *, joint: bool = False, temperature: str = "scaled", batch: int = 4, most: int = 128,
        tick_s: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        require(isinstance(joint, bool), "joint", "true or false", joint)
        require(temperature in TEMPERATURES, "temperature", "literal or scaled", temperature)
        require(batch >= 1, "batch", "at least 1", batch)
        require(most >= 1, "most", "at least 1", most)
        require(tick_s > 0, "tick_s", "a number of seconds above 0", tick_s)
        self.joint, self.temperature, self.batch, self.most = joint, temperature, batch, most
        self.holds, self.tick_s = joint, tick_s if joint else np.inf
        self._rng = np.random.default_rng(seed)

    def route(self, fleet: FleetSnapshot) -> Routing:
        """By memory; between arrivals, anneal what waits."""
        t = fleet.table
        if len(fleet.pending) == 0:
            return self._annealed(fleet) if self.joint else Routing()
        left = self._left(fleet)
        send: list[tuple[int, int]] = []
        for row in fleet.pending.tolist():
            best = max(fleet.open, key=lambda i: float(left[i]))
            left[best] -= t.prompt_tokens[row] + t.atoms[row].mean()
            send.append((row, best))
        return Routing(send=tuple(send))

    def _left(self, fleet: FleetSnapshot) -> Floats:
        """KV tokens left at each engine once everybody there has all of its answer."""
        t = fleet.table
        return np.array(
            [
                view.engine.limits.kv_tokens
                - float((t.prompt_tokens[view.rows] + t.atoms[view.rows].mean(axis=1)).sum())
                for view in fleet.engines
            ]
        )

    def _annealed(self, fleet: FleetSnapshot) -> Routing:
        t, open_ = fleet.table, fleet.open
        rows: list[int] = []
        place: dict[int, int] = {}
        for i in open_:
            its = fleet.engines[i].rows
            for row in its[np.isnan(t.first_token_s[its]) & (t.computed_tokens[its] == 0)].tolist():
                rows.append(row)
                place[row] = i
        rows = sorted(rows, key=lambda row: (float(t.arrival_s[row]), row))[: self.most]
        if len(rows) < 2 or len(open_) < 2:
            return Routing()
        jobs = self._jobs(fleet, np.array(rows), open_)
        line = np.zeros((len(open_), len(rows) + 1), dtype=np.int64)
        count = np.zeros(len(open_), dtype=np.int64)
        for j, row in enumerate(rows):  # as they are
            e = open_.index(place[row])
            line[e, count[e]] = j
            count[e] += 1
        start = float(evaluate(jobs, line, count, False))
        literal = self.temperature == "literal"
        first_t = LITERAL_T if literal else max(1e-9, SCALED_T * start)
        draws = self._rng.random((LEVELS * MOVES, 6))
        anneal(jobs, line, count, draws, first_t, COOLING if literal else SCALED_COOLING, False)
        send = [
            (rows[int(j)], open_[e]) for e in range(len(open_)) for j in line[e, : count[e]]
            if place[rows[int(j)]] != open_[e]
        ]  # fmt: skip
        return Routing(send=tuple(send))

    def _jobs(self, fleet: FleetSnapshot, rows: Ints, open_: list[int]) -> Jobs:
        t, n = fleet.table, len(rows)
        length, prompt = t.atoms[rows].mean(axis=1), t.prompt_tokens[rows].astype(np.float64)
        prefill, decode, busy = np.zeros((len(open_), n)), np.zeros((len(open_), n)), np.zeros(len(open_))
        for e, i in enumerate(open_):
            view = fleet.engines[i]
            model = view.engine.step_time
            prefill[e] = model.base_s + prompt * (model.prefill_token_s + model.knee_token_s)
            kv = self.batch * (prompt + length / 2)
            decode[e] = length * model.predict(sequences=self.batch, kv_tokens=kv.astype(np.int64))
            running = view.rows[~np.isnan(t.first_token_s[view.rows])]
            left = np.maximum(1.0, t.atoms[running].mean(axis=1) - t.generated_tokens[running])
            step = float(model.predict(sequences=max(1, len(running))))
            busy[e] = float(left.sum()) * step / max(1, min(view.engine.limits.max_num_seqs, len(running)))
        waited = fleet.now_s - t.arrival_s[rows]
        return Jobs(
            prefill_s=prefill, decode_s=decode, ttft_s=t.ttft_s[rows] - waited,
            e2e_s=t.e2e_s[rows] - waited, tpot_s=t.tpot_s[rows].copy(), tokens=np.maximum(1.0, length),
            waited_s=waited, busy_s=busy, batch=self.batch,
        )  # fmt: skip
