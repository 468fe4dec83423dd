"""CP-SAT bound for continuous batching with fixed durations: slots and KV tokens as cumulative resources.

A request that starts holds one slot and its KV tokens for a fixed time. With durations that no batch can beat
(the request alone in the engine), the bound holds for every order the engine could follow: what it does
beyond this, stalls by prefills, slower steps in company and admission in order, only delays.

Units are rounded as in `slosched.solvers.static.cpsat`: durations down, latest starts up. Plans are run
again with real numbers.
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.result import WEIGHT_TOLERANCE, Status
from slosched.solvers.static.cpsat import FINEST_S, cp_model, whole_weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContinuousBound:
    """What is attained and what could be at most.

    Parameters
    ----------
    status
        OPTIMAL if `weight` equals `bound`, else LIMIT.
    weight
        Weight of the requests that start in time in the schedule found.
    bound
        Proved limit on it.
    start_s
        Start of each request in seconds from now, shape (n,); infinity for those not started in time.
    seconds
        Wall time used.
    """

    status: Status
    weight: float
    bound: float
    start_s: Floats
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Queue:
    """The checked input: what waits, what runs, and the two capacities."""

    duration_s: Floats
    latest_s: Floats
    weight: Floats
    kv: Ints
    slots: int
    kv_capacity: int
    running_s: Floats
    running_kv: Ints

    @property
    def able(self) -> list[int]:
        """Requests that can start in time in an empty engine."""
        return np.flatnonzero((self.latest_s >= 0) & (self.kv <= self.kv_capacity)).tolist()

    @property
    def horizon_s(self) -> float:
        """No schedule without idle time starts anything later."""
        return float(self.duration_s.sum() + self.running_s.max(initial=0.0))

    def place(self, order: list[int]) -> Floats:
        """Admit in this order as early as slots and KV allow, leaving out what would start too late."""
        start = np.full(len(self.duration_s), math.inf)
        held = list(zip(self.running_s.tolist(), self.running_kv.tolist(), strict=True))
        heapq.heapify(held)
        kv, now = int(self.running_kv.sum()), 0.0
        for i in order:
            released: list[tuple[float, int]] = []
            free_at, kv_then, held_then = now, kv, len(held)
            while held and (held[0][0] <= free_at or self._full(i, kv_then, held_then)):
                released.append(heapq.heappop(held))
                free_at = max(free_at, released[-1][0])
                kv_then, held_then = kv_then - released[-1][1], held_then - 1
            if free_at > self.latest_s[i] or self._full(i, kv_then, held_then):
                for item in released:
                    heapq.heappush(held, item)
                continue
            start[i] = now = free_at
            kv = kv_then + int(self.kv[i])
            heapq.heappush(held, (now + float(self.duration_s[i]), int(self.kv[i])))
        return start

    def _full(self, i: int, kv: int, held: int) -> bool:
        return held >= self.slots or kv + int(self.kv[i]) > self.kv_capacity

    def value(self, start: Floats) -> float:
        """Weight of what starts."""
        return math.fsum(self.weight[np.isfinite(start)].tolist())

    def rounded(self, unit_s: float) -> _Queue:
        """The same queue in whole units, no harder than the real one."""
        latest = np.minimum(self.latest_s, self.horizon_s)
        return _Queue(
            np.floor(self.duration_s / unit_s), np.ceil(latest / unit_s), self.weight, self.kv,
            self.slots, self.kv_capacity, np.floor(self.running_s / unit_s), self.running_kv,
        )  # fmt: skip


def solve_continuous_fixed(
    durations_s: npt.ArrayLike,
    latest_start_s: npt.ArrayLike,
    weight: npt.ArrayLike,
    kv_tokens: npt.ArrayLike,
    slots: int,
    kv_capacity: int,
    *,
    running_s: npt.ArrayLike = (),
    running_kv_tokens: npt.ArrayLike = (),
    budget_s: float = 10.0,
    resolution_s: float = 1e-4,
    workers: int = 8,
    seed: int = 0,
) -> ContinuousBound:
    """Most weight that can start in time on `slots` slots and `kv_capacity` tokens, with fixed durations.

    Parameters
    ----------
    durations_s
        Seconds that each request holds its slot and its tokens, shape (n,), finite, at least 0.
    latest_start_s
        Latest start in seconds from now, shape (n,); negative: too late already; infinity: no limit.
    weight
        Worth of starting in time, shape (n,), finite, at least 0.
    kv_tokens
        Tokens held while running, shape (n,), whole, at least 0; beyond the capacity: never started. For a
        bound on an engine that allocates as it goes, give what is held from the start: the prompt.
    slots, kv_capacity
        Requests, and tokens, at once: at least 1.
    running_s, running_kv_tokens
        Seconds until what runs now ends, and what it holds, shape (m,) each.
    budget_s
        Wall time in seconds, at least 0, building the model included.
    resolution_s
        Unit of time, above 0.
    workers, seed
        Threads of CP-SAT and its seed.

    Returns
    -------
    ContinuousBound

    Raises
    ------
    InputError
        If an argument is off its domain.
    MissingExtraError
        If OR-Tools is not installed.

    References
    ----------
    .. [1] A. Aggoun, N. Beldiceanu, Extending CHIP in order to solve complex scheduling and placement
       problems, Mathematical and Computer Modelling 17 (1993): the cumulative constraint.

    Examples
    --------
    >>> result = solve_continuous_fixed([2.0, 2.0, 2.0], [0.0, 1.0, 2.5], [1.0] * 3, [10] * 3, 1, 100)
    >>> result.weight, result.bound, result.start_s.tolist()
    (2.0, 2.0, [0.0, inf, 2.0])
    """
    began = time.perf_counter()
    queue = _checked(
        durations_s, latest_start_s, weight, kv_tokens, slots, kv_capacity, running_s, running_kv_tokens
    )
    require(budget_s >= 0, "budget_s", "a number of at least 0", budget_s)
    require(0 < resolution_s < math.inf, "resolution_s", "a number of seconds above 0", resolution_s)
    require(workers >= 1, "workers", "an integer of at least 1", workers)
    require(seed >= 0, "seed", "an integer of at least 0", seed)
    able = queue.able
    rate = queue.duration_s / np.maximum(queue.weight, 1e-12)
    keys = (queue.latest_s, queue.duration_s, rate)
    best = max((queue.place(sorted(able, key=lambda i: (key[i], i))) for key in keys), key=queue.value)
    bound = math.fsum(queue.weight[able].tolist())
    deadline = began + budget_s
    while queue.value(best) < bound - WEIGHT_TOLERANCE:
        proved, ceiling, found = _solve(queue, best, resolution_s, deadline, workers, seed)
        bound = min(bound, ceiling)
        if found is not None and queue.value(found) > queue.value(best):
            best = found
        resolution_s /= 10
        if not proved or resolution_s < FINEST_S or time.perf_counter() >= deadline:
            break
    value = queue.value(best)
    return ContinuousBound(
        status=Status.OPTIMAL if value >= bound - WEIGHT_TOLERANCE else Status.LIMIT,
        weight=value,
        bound=max(value, bound),
        start_s=best,
        seconds=time.perf_counter() - began,
    )


def _solve(
    queue: _Queue, best: Floats, unit_s: float, deadline: float, workers: int, seed: int
) -> tuple[bool, float, Floats | None]:
    """Whether CP-SAT proved its optimum, its bound, and its schedule in real numbers."""
    cp, whole = cp_model(), queue.rounded(unit_s)
    model: Any = cp.CpModel()
    weights, factor = whole_weights(queue.weight)
    by_start = np.argsort(best, kind="stable").tolist()
    hinted = whole.place([i for i in by_start if math.isfinite(best[i])])
    starts, present, intervals = {}, {}, []
    for i in queue.able:
        length, last = int(whole.duration_s[i]), int(whole.latest_s[i])
        starts[i] = model.new_int_var(0, last, f"s{i}")
        present[i] = model.new_bool_var(f"x{i}")
        intervals.append(model.new_optional_fixed_size_interval_var(starts[i], length, present[i], f"i{i}"))
        model.add_hint(present[i], math.isfinite(hinted[i]))
        model.add_hint(starts[i], int(hinted[i]) if math.isfinite(hinted[i]) else 0)
    for k, end in enumerate(whole.running_s.tolist()):
        intervals.append(model.new_fixed_size_interval_var(0, int(end), f"r{k}"))
    kv = queue.kv[queue.able].tolist() + queue.running_kv.tolist()
    model.add_cumulative(intervals, [1] * len(intervals), queue.slots)
    model.add_cumulative(intervals, kv, queue.kv_capacity)
    model.maximize(sum(weights[i] * present[i] for i in present))
    solver = cp.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.01, deadline - time.perf_counter())
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    code = solver.solve(model)
    if code not in (cp.OPTIMAL, cp.FEASIBLE):
        return False, math.inf, None
    chosen = [i for i in present if solver.boolean_value(present[i])]
    chosen.sort(key=lambda i: (solver.value(starts[i]), queue.latest_s[i], i))
    rest = sorted(set(present) - set(chosen), key=lambda i: (queue.latest_s[i], i))
    ceiling = math.floor(float(solver.best_objective_bound) + 1e-6) / factor
    return code == cp.OPTIMAL, ceiling, queue.place(chosen + rest)


def _checked(
    durations_s: npt.ArrayLike,
    latest_start_s: npt.ArrayLike,
    weight: npt.ArrayLike,
    kv_tokens: npt.ArrayLike,
    slots: int,
    kv_capacity: int,
    running_s: npt.ArrayLike,
    running_kv_tokens: npt.ArrayLike,
) -> _Queue:
    """The queue, or `InputError` naming what is off its domain."""
    columns = {
        "durations_s": np.asarray(durations_s, dtype=np.float64),
        "weight": np.asarray(weight, dtype=np.float64),
        "kv_tokens": np.asarray(kv_tokens, dtype=np.float64),
        "running_s": np.asarray(running_s, dtype=np.float64),
        "running_kv_tokens": np.asarray(running_kv_tokens, dtype=np.float64),
    }
    latest = np.asarray(latest_start_s, dtype=np.float64)
    for name, values in columns.items():
        shape = columns["running_s" if name.startswith("running") else "durations_s"].shape
        require(values.shape == shape and len(shape) == 1, name, f"of shape {shape}", values.shape)
        ok = bool(np.all(np.isfinite(values) & (values >= 0)))
        require(ok, name, "finite numbers of at least 0", values.tolist())
    require(latest.shape == columns["weight"].shape, "latest_start_s", "one per request", latest.shape)
    require(not bool(np.isnan(latest).any()), "latest_start_s", "numbers", latest.tolist())
    for name in ("kv_tokens", "running_kv_tokens"):
        whole = bool(np.all(columns[name] == np.floor(columns[name])))
        require(whole, name, "whole numbers", columns[name].tolist())
    require(slots >= 1, "slots", "an integer of at least 1", slots)
    require(kv_capacity >= 1, "kv_capacity", "an integer of at least 1", kv_capacity)
    running_kv = columns["running_kv_tokens"].astype(np.int64)
    require(running_kv.size <= slots, "running_s", f"at most {slots} (the slots)", running_kv.size)
    fits = int(running_kv.sum()) <= kv_capacity
    require(fits, "running_kv_tokens", f"at most {kv_capacity} in sum", int(running_kv.sum()))
    return _Queue(
        columns["durations_s"], latest, columns["weight"], columns["kv_tokens"].astype(np.int64),
        slots, kv_capacity, columns["running_s"], running_kv,
    )  # fmt: skip
