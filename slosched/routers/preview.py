"""What a fleet would keep if some requests might not go everywhere: the recent past, played forward again.

The requests that are there, wherever they are, and those that came lately, moved to come from now on, are
dealt out anew among the engines that each may go to. Then every engine is rolled forward by the planner's
model (`slosched.planner.rollout`), and the weight within limits is added up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine
from slosched.core.forecast import FORECAST_ATOMS, OUTLIVED_GROWTH
from slosched.core.jit import njit
from slosched.planner import rollout as r
from slosched.planner.futures import MOST_REMEMBERED
from slosched.planner.planner import HORIZON_S, LIMITS_AHEAD
from slosched.planner.rules import family
from slosched.routers.base import EngineView, FleetSnapshot

LEAST_ARRIVALS = 16
"""Arrivals per engine that a horizon holds at least."""

MOST_WAITING = 256
"""Waiting requests of an engine that are played forward, the first by the rule: more than enter meanwhile."""

MOST_REPEATS = 4
"""A past shorter than the horizon is repeated so often at most."""

LEAST_FREE, SAFE = 0.05, 0.9
"""As in `slosched.routers.lane` and the planner, whose constants numba's cache would not see change here."""

SLOWER = 1.5
"""A decode step of a busy engine over an empty one, for the length of an answer in seconds."""

Bools = NDArray[np.bool_]


class Past:
    """The latest arrivals, as jobs of a rollout."""

    def __init__(self) -> None:
        self._jobs = np.zeros((MOST_REMEMBERED, r.COLUMNS))
        self._atoms = np.zeros((MOST_REMEMBERED, FORECAST_ATOMS))
        self.count = 0
        self.paced = False  # whether anybody had a limit on the pace

    def add(self, row: int, fleet: FleetSnapshot) -> None:
        """Remember a newcomer; the part of its prompt that some engine has cached is not computed again."""
        t, at = fleet.table, self.count % MOST_REMEMBERED
        job, atoms, prompt = self._jobs[at], t.atoms[row], float(t.prompt_tokens[row])
        self._atoms[at] = atoms
        job[r.TODO] = max(1.0, prompt - float(fleet.hits(row)[fleet.open].max()))
        job[r.HAVE] = prompt - job[r.TODO]
        job[r.LEFT] = job[r.TRUTH] = max(1.0, float(atoms.mean()))
        job[r.GENERATED], job[r.FIRST], job[r.DRIFT] = 0.0, np.nan, -1.0
        job[r.RELEASE] = job[r.ARRIVAL] = fleet.now_s
        job[r.FIRST_DUE], job[r.E2E_DUE] = fleet.now_s + t.ttft_s[row], fleet.now_s + t.e2e_s[row]
        job[r.TPOT], job[r.WEIGHT] = t.tpot_s[row], t.weight[row]
        self.count += 1
        self.paced |= bool(t.tpot_s[row] < np.inf)

    def latest(self) -> tuple[Floats, Floats]:
        """Jobs and the atoms of their forecasts, by arrival."""
        kept = min(self.count, MOST_REMEMBERED)
        rows = np.arange(self.count - kept, self.count) % MOST_REMEMBERED
        return self._jobs[rows], self._atoms[rows]


class Preview(NamedTuple):
    """A fleet and what may come, from now until a horizon.

    `jobs` are running requests, then waiting ones, then arrivals, of which `running` and `present` tell the
    numbers; `engines` are constants of the rollout, one row an engine; `memory` their KV tokens; `patience_s`
    is the median limit.
    """

    jobs: Floats
    running: int
    present: int
    engines: Floats
    memory: Floats
    patience_s: float
    now_s: float
    horizon_s: float

    def worth(self, allowed: Bools) -> float:
        """Share of the weight that keeps its limits if jobs go where they may, shape (jobs, engines)."""
        jobs, engines, total = self.jobs, self.engines, 0.0
        release, token_s = np.maximum(self.now_s, jobs[:, r.RELEASE]), _token_s(engines)
        steps = np.stack([engines[:, r.BASE], engines[:, r.BASE] + engines[:, r.BUDGET] * token_s], axis=1)
        work_s = np.stack([_work_s(jobs, engine) for engine in engines], axis=1)
        at = deal(work_s, jobs[:, r.LEFT], jobs[:, r.TPOT], release, allowed, steps, self.patience_s)
        for e, constants in enumerate(engines):
            mine = np.flatnonzero(at == e)
            running, present = np.searchsorted(mine, [self.running, self.present]).tolist()
            engine = constants.copy()
            engine[r.FREE] = self.memory[e] - jobs[mine[:running], r.HAVE].sum()
            room, until_s = r.work_for(len(mine)), self.now_s + self.horizon_s
            total += r.rollout(jobs[mine], running, present, engine, RULE, until_s, room)
        return float(total / max(1e-9, jobs[:, r.WEIGHT].sum()))


def _token_s(engines: Floats) -> Floats:
    """Seconds of a prompt token in a full step, without attention."""
    return np.asarray(engines[..., r.PREFILL_TOKEN] + engines[..., r.KNEE_TOKEN])


def _work_s(jobs: Floats, engine: Floats) -> Floats:
    """Seconds that each job adds to the steps of an engine, shape (jobs,)."""
    have, todo = jobs[:, r.HAVE], jobs[:, r.TODO]
    read_s = todo * (_token_s(engine) + engine[r.ATTENTION] * (have + 0.5 * todo))
    answer_s = jobs[:, r.LEFT] * (engine[r.SEQUENCE] + engine[r.KV_TOKEN] * (have + todo))
    return np.asarray(read_s + answer_s)


RULE: Floats = family()[0]
"""What every engine is taken to do: the rule that the planner starts with, least work per weight first."""


def preview(past: Past, fleet: FleetSnapshot, began_s: float, rng: np.random.Generator) -> Preview:
    """The fleet as it is, and the latest arrivals again, none of them from before `began_s`."""
    now_s, views = fleet.now_s, [fleet.engines[e] for e in fleet.open]
    jobs, atoms = past.latest()
    limit = np.minimum(jobs[:, r.FIRST_DUE], jobs[:, r.E2E_DUE]) - jobs[:, r.ARRIVAL]
    limit = limit[np.isfinite(limit)]
    patience_s = max(1e-3, float(np.median(limit))) if len(limit) else 1e-3
    step_s = SLOWER * min(view.engine.step_time.base_s for view in views)
    left = jobs[:, r.LEFT]
    answer_s = float((left * left).sum() / left.sum()) * step_s
    horizon_s = float(np.clip(LIMITS_AHEAD * (patience_s + answer_s), *HORIZON_S))
    enough = jobs[max(0, len(jobs) - LEAST_ARRIVALS * len(views)), r.ARRIVAL]
    horizon_s = max(horizon_s, now_s - float(enough))
    length_s = min(horizon_s, max(1e-3, now_s - began_s))
    horizon_s = min(horizon_s, MOST_REPEATS * length_s)
    recent = jobs[:, r.ARRIVAL] >= now_s - length_s
    repeats = int(np.ceil(horizon_s / length_s))
    later = np.tile(jobs[recent], (repeats, 1))
    shift = np.repeat(length_s * np.arange(1, repeats + 1), int(recent.sum()))
    for column in (r.RELEASE, r.ARRIVAL, r.FIRST_DUE, r.E2E_DUE):
        later[:, column] += shift
    soon = later[:, r.RELEASE] <= now_s + horizon_s
    later = later[soon]
    later[:, r.TRUTH] = _lengths(np.tile(atoms[recent], (repeats, 1))[soon], np.zeros(len(later)), rng)
    parts = [_present(view, fleet, rng) for view in views]
    running = np.concatenate([jobs[:n] for jobs, n in parts])
    waiting = np.concatenate([jobs[n:] for jobs, n in parts])
    return Preview(
        jobs=np.concatenate([running, waiting, later]), running=len(running),
        present=len(running) + len(waiting),
        engines=np.array([constants(view.engine, now_s) for view in views]),
        memory=np.array([float(view.engine.limits.kv_tokens) for view in views]), patience_s=patience_s,
        now_s=now_s, horizon_s=horizon_s,
    )  # fmt: skip


def constants(engine: Engine, now_s: float) -> Floats:
    """Constants of the rollout for an idle engine."""
    s, limits = engine.step_time, engine.limits
    row = np.zeros(r.ENGINE_SIZE)
    row[r.BASE], row[r.SEQUENCE], row[r.KV_TOKEN] = s.base_s, s.sequence_s, s.kv_token_s
    row[r.PREFILL_TOKEN], row[r.ATTENTION] = s.prefill_token_s, s.attention_work_s
    row[r.KNEE_TOKENS], row[r.KNEE_TOKEN] = s.knee_tokens, s.knee_token_s
    row[r.BUDGET], row[r.SLOTS] = limits.max_num_batched_tokens, limits.max_num_seqs
    row[r.NOW], row[r.STEP], row[r.SHARE] = now_s, SLOWER * s.base_s, s.sequence_s
    return row


def _present(view: EngineView, fleet: FleetSnapshot, rng: np.random.Generator) -> tuple[Floats, int]:
    """Jobs of one engine, running ones first, and how many run."""
    t, rows = fleet.table, view.rows
    begun = ~np.isnan(t.first_token_s[rows])
    rows = np.concatenate([rows[begun], rows[~begun]])
    jobs = np.empty((len(rows), r.COLUMNS))
    r.gather(r.columns_of(t), rows, 0, np.ones(len(rows)), OUTLIVED_GROWTH, jobs)
    n = int(begun.sum())
    jobs[:n, r.TODO] = 0.0
    jobs[:n, r.HAVE] = t.prompt_tokens[rows[:n]] + t.generated_tokens[rows[:n]]
    jobs[:n, r.GENERATED] = np.maximum(1, t.generated_tokens[rows[:n]])
    jobs[:, r.TRUTH] = _lengths(t.atoms[rows], jobs[:, r.GENERATED], rng)
    if len(jobs) - n > MOST_WAITING:
        keys = r.ranks(jobs[n:], constants(view.engine, fleet.now_s), RULE)
        first = n + np.sort(np.argpartition(keys, MOST_WAITING)[:MOST_WAITING])
        jobs = np.concatenate([jobs[:n], jobs[first]])
    return jobs, n


def _lengths(atoms: Floats, generated: Floats, rng: np.random.Generator) -> Floats:
    """Tokens still to come, drawn from the part of each forecast that is longer than the answer so far."""
    alive = (atoms > generated[:, None]).sum(axis=1)
    place = atoms.shape[1] - 1 - (rng.random(len(atoms)) * alive).astype(np.int64)
    drawn = atoms[np.arange(len(atoms)), np.maximum(0, place)] - generated
    return np.maximum(1.0, np.where(alive > 0, drawn, OUTLIVED_GROWTH * generated))


@njit(nogil=True, cache=True, error_model="numpy")
def _free(base_s: float, pace_s: float) -> float:
    """Share of an engine's time that the constant part of steps leaves at a pace."""
    return float(max(LEAST_FREE, 1.0 - base_s / (SAFE * pace_s)))


@njit(nogil=True, cache=True, error_model="numpy")
def deal(
    work_s: Floats,
    left: Floats,
    pace: Floats,
    release: Floats,
    allowed: Bools,
    steps: Floats,
    patience_s: float,
) -> Ints:
    """Index of the engine of each job: where it waits least, and makes others wait least.

    An engine is taken to work off what is before a job in the share of its time that the tightest pace
    leaves, for as long as that answer lasts. Nobody waits longer than `patience_s`.

    Parameters
    ----------
    work_s
        Seconds of work of each job at each engine, shape (jobs, engines).
    left, pace, release
        Tokens to come, seconds per token as promised, and ascending times of the jobs, shape (jobs,).
    allowed
        Who may go where, shape (jobs, engines), at least one engine for each job.
    steps
        Seconds of an empty step and of a full one, shape (engines, 2).
    """
    n, m = work_s.shape
    ahead, tight, until = np.zeros(m), np.zeros(m), np.full(m, -np.inf)
    out, before = np.empty(n, dtype=np.int64), release[0] if n else 0.0
    for j in range(n):
        gone_s, before = release[j] - before, release[j]
        best, least = 0, np.inf
        for e in range(m):
            base_s = steps[e, 0]
            if release[j] > until[e]:
                tight[e] = steps[e, 1]
            free = _free(base_s, tight[e])
            ahead[e] = max(0.0, (min(ahead[e] / free, patience_s) - gone_s) * free)
            if not allowed[j, e]:
                continue
            after = _free(base_s, min(tight[e], pace[j]))
            score = (2.0 * ahead[e] + work_s[j, e]) / after - ahead[e] / free
            if score < least:
                best, least = e, score
        ahead[best] += work_s[j, best]
        if pace[j] <= tight[best]:
            tight[best], until[best] = pace[j], release[j] + left[j] * pace[j]
        out[j] = best
    return out
