"""Plans each step by the rule that does best on sampled futures.

Every plan is one step of the leading rule (`slosched.planner.rules`). Now and then the leader and its rivals
are rolled forward from the engine's present state against what may arrive (`slosched.planner.futures`), with
answer lengths drawn from the forecasts; the one that has kept most weight within limits leads from then on.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.core.table import Floats, Ints
from slosched.planner import rollout as r
from slosched.planner.beliefs import Beliefs
from slosched.planner.chances import Chances
from slosched.planner.clock import Clock
from slosched.planner.futures import Futures, engine_of, gather
from slosched.planner.plan import Certificate
from slosched.planner.rules import FADE_S, Leader
from slosched.planner.thread import Background

LIMITS_AHEAD = 2.0
"""Horizon in median limits: those who wait now are decided, and those who come while they wait."""

ANSWERS_AHEAD = 1.0
"""And at least so many mean answers, since those who enter fill slots and memory until they end."""

HORIZON_S = (5.0, 300.0)
"""Least and most seconds of a horizon."""

MOST_PLANNED = 512
"""Waiting requests that a step is planned with: more than enter in any step, few enough to be quick."""

KEY_TURNS = 16
"""Steps until the key of a request in a long queue is computed again: it changes as its limit runs out."""

MOST_ORDERED = 256
"""Waiting requests that are listed in order beside those that enter: the next steps' worth of them."""

TOGETHER_FADE = 0.02
"""Weight of a plan in the average of how many run together."""

SETTLED = 0.999
"""Share of the weight that the leader keeps on all futures from which on nobody else is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerParams:
    """How much the planner looks ahead.

    Parameters
    ----------
    futures
        Sampled futures of each comparison, at least 1.
    comparisons
        Comparisons of rules while a horizon goes by, at least 0; with 0 the first rule leads for ever.
    """

    futures: int = 2
    comparisons: float = 10.0

    def __post_init__(self) -> None:
        require(self.futures >= 1, "futures", "an integer of at least 1", self.futures)
        require(0 <= self.comparisons < np.inf, "comparisons", "at least 0", self.comparisons)


class Planned(NamedTuple):
    """What a step should do.

    Parameters
    ----------
    order
        Waiting rows: those that enter now, then others that could be met by the rule's key, then parked ones;
        at most `MOST_ORDERED` beside those that enter.
    prefill_tokens
        Prompt tokens of the step; None where the engine's own budget is what limits it.
    hold
        Waiting rows that must not enter, though there may be room: parked ones, or all of them.
    running_order
        All running rows: those that decode, then those in prefill, as planned.
    skip
        Running rows in prefill that let another go first.
    """

    order: Ints
    prefill_tokens: int | None
    hold: Ints
    running_order: Ints
    skip: Ints


class Planner:
    """Keeps what it has seen between steps, and decides the next one.

    Parameters
    ----------
    params
        How much it looks ahead.
    seed
        Seed of futures and of the choice of rules to try.
    background
        Whether rules are compared in a thread beside the engine: the engine's thread then only takes over
        who leads. Plans then depend on timing.
    """

    def __init__(
        self, params: PlannerParams | None = None, *, seed: int = 0, background: bool = False
    ) -> None:
        self.params = params or PlannerParams()
        self.leader = Leader(seed)
        self.certificate: Certificate | None = None
        self._futures, self._beliefs = Futures(seed), Beliefs()
        self._clock, self.chances = Clock(), Chances()
        self._words: Words | None = None  # chances that the last comparison found
        self._last = (0, 0.0, 0.0)  # step, time and length of a decode step at the last plan
        self._rng = np.random.default_rng([seed, 0x7A11])
        self._together = 1.0
        self._keys: Floats = np.empty(0)  # sort keys of waiting rows in a long queue
        self._keyed: Ints = np.empty(0, dtype=np.int64)  # serials of the requests they are of
        self._next_s = -np.inf
        self._background = Background(self._compare) if background else None

    def plan(self, snapshot: Snapshot) -> Planned:
        """One step of the leading rule."""
        self._futures.watch(snapshot)
        running = len(snapshot.running)
        self._learn(snapshot)
        self._together += TOGETHER_FADE * (running - self._together)
        engine = engine_of(snapshot, self._together)
        engine[list(r.TIMES)] *= self._clock.watch(snapshot)
        self._last = (snapshot.step, snapshot.now_s, float(engine[r.STEP]))
        rows = np.concatenate([snapshot.running, self._head(snapshot, engine)])
        scale = self._scale(snapshot, rows)
        jobs = gather(snapshot, rows, running, scale)
        if self.params.comparisons > 0 and (
            snapshot.now_s >= self._next_s or self._next_s > snapshot.now_s + HORIZON_S[1]
        ):
            self._look_ahead(snapshot, rows, jobs, running, engine, scale)
        work = r.work_for(len(rows))
        count, tokens = r.decide(jobs, running, engine, self.leader.rule, work)
        planned = _carried_out(rows, running, jobs, engine, work, count, tokens)
        # A step that holds no prompt admits nobody, not even from behind the head of a long queue.
        return planned._replace(hold=snapshot.waiting) if tokens < 1.0 else planned

    def _learn(self, snapshot: Snapshot) -> None:
        """Take in what became of those who have left, and what the last comparison said of the others."""
        gone = self._beliefs.watch(snapshot)
        words, self._words = self._words, None
        if words is not None:
            self.chances.say(snapshot.table, *words)
        if len(gone):
            # They ended with the last step; if nobody has run since, the engine may have been idle.
            busy = len(snapshot.running) > 0 and snapshot.step == self._last[0] + 1
            ended_s = snapshot.now_s if busy else min(snapshot.now_s, self._last[1] + self._last[2])
            self.chances.learn(snapshot, gone, ended_s)

    def close(self) -> None:
        """End the background thread, if there is one."""
        if self._background is not None:
            self._background.close()

    def _scale(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Corrections of the forecasts of table rows."""
        t = snapshot.table
        return self._beliefs.factors(t.class_index[rows], t.atoms[rows].mean(axis=1), t.e2e_s[rows])

    def _head(self, snapshot: Snapshot, engine: Floats) -> Ints:
        """The waiting rows to plan with: all, or the `MOST_PLANNED` first by the leading rule.

        Keys are kept from step to step; newcomers get theirs at once, of the others an equal part each step.
        """
        waiting, table = snapshot.waiting, snapshot.table
        if len(waiting) <= MOST_PLANNED:
            self._keys = self._keys[:0]
            return waiting
        if len(self._keys) != table.capacity:
            self._keys, self._keyed = np.full(table.capacity, np.nan), np.full(table.capacity, -1)
        fresh = self._keyed[waiting] != table.serial[waiting]
        part = np.arange(len(waiting)) % KEY_TURNS == snapshot.step % KEY_TURNS
        rows = waiting[fresh | part]
        jobs = gather(snapshot, rows, 0, self._scale(snapshot, rows))
        self._keys[rows] = r.ranks(jobs, engine, self.leader.rule)
        self._keyed[rows] = table.serial[rows]
        first = np.argpartition(self._keys[waiting], MOST_PLANNED)[:MOST_PLANNED]
        return np.asarray(waiting[np.sort(first)])

    def _look_ahead(
        self, snapshot: Snapshot, rows: Ints, jobs: Floats, running: int, engine: Floats, scale: Floats
    ) -> None:
        """Compare the rules on futures from here, now or in the background."""
        horizon_s = self._horizon_s(float(engine[r.STEP]))
        self._next_s = snapshot.now_s + horizon_s / self.params.comparisons
        t = snapshot.table
        present = Present(
            rows=rows, serials=t.serial[rows], running=running, jobs=jobs, engine=engine,
            label=t.class_index[rows], generated=t.generated_tokens[rows].astype(np.float64),
            atoms=t.atoms[rows] * scale[:, None], now_s=snapshot.now_s, horizon_s=horizon_s,
            arrivals=copy(self._futures), beliefs=self._beliefs.frozen(),
        )  # fmt: skip
        if self._background is not None:
            self._background.submit(present)
        else:
            self._compare(present)

    def _horizon_s(self, step_s: float) -> float:
        """Seconds to look ahead, with decode steps of `step_s`."""
        seen = self._futures.remembered
        if len(seen) == 0:
            return HORIZON_S[0]
        limit = np.minimum(seen[:, r.FIRST_DUE], seen[:, r.E2E_DUE]) - seen[:, r.ARRIVAL]
        limit = limit[np.isfinite(limit)]
        typical = float(np.median(limit)) if len(limit) else 0.0
        left = seen[:, r.LEFT]
        answer_s = float((left * left).sum() / left.sum()) * step_s
        return float(np.clip(max(LIMITS_AHEAD * typical, ANSWERS_AHEAD * answer_s), *HORIZON_S))

    def _compare(self, present: Present) -> None:
        """Roll the candidates forward on the same futures; the best one leads from now on."""
        starts = [_future(present, turn % 2 == 0, self._rng) for turn in range(self.params.futures)]
        works = [r.work_for(len(start)) for start in starts]
        e2e, tpot = (any(np.isfinite(s[:, c]).any() for s in starts) for c in (r.E2E_DUE, r.TPOT))
        candidates, until_s = self.leader.candidates(e2e=e2e, tpot=tpot), present.now_s + present.horizon_s
        value, stake, raw = np.zeros(len(candidates)), 0.0, np.zeros(len(present.rows))
        for place, rule in enumerate(candidates):
            for start, work in zip(starts, works, strict=True):
                value[place] += r.rollout(
                    start, present.running, len(raw), present.engine, self.leader.rules[rule], until_s, work
                )
                if place == 0:
                    stake += float(start[:, r.WEIGHT].sum())
                    raw += work.met[: len(raw)] / len(starts)
            if rule == 0 and value[0] >= SETTLED * stake:
                value = value[: place + 1]
                break
        self._words = Words(present.rows, present.serials, present.running, raw)
        candidates = candidates[: len(value)]
        if stake > 0:
            value = value / stake
            rival = float(value[1:].max(initial=-np.inf))
            first = float(value[candidates == 0][0])
            self.certificate = Certificate(float(value[0]), rival, first, len(candidates), len(starts))
            self.leader.learn(candidates, value, present.now_s, max(FADE_S, present.horizon_s))


class Present(NamedTuple):
    """All that futures are drawn from, as it was at one step: nothing of it changes afterwards."""

    rows: Ints
    serials: Ints
    running: int
    jobs: Floats
    engine: Floats
    label: Ints
    generated: Floats
    atoms: Floats
    now_s: float
    horizon_s: float
    arrivals: Futures
    beliefs: Beliefs


def _future(present: Present, latest: bool, rng: np.random.Generator) -> Floats:
    """Jobs of one possible future: those that are there, then those that may arrive."""
    later, at = present.arrivals.draw(present.now_s, present.horizon_s, latest)
    label, atoms = present.arrivals.labels[at], present.arrivals.atoms[at]
    factor = present.beliefs.factors(label, atoms.mean(axis=1), later[:, r.E2E_DUE] - later[:, r.ARRIVAL])
    later[:, r.LEFT] *= factor
    start = np.concatenate([present.jobs, later])
    atoms = np.concatenate([present.atoms, atoms * factor[:, None]])
    start[:, r.TRUTH] = present.beliefs.draw(
        np.concatenate([present.label, label]), atoms.mean(axis=1), atoms,
        np.concatenate([present.generated, np.zeros(len(at))]), start[:, r.LEFT], rng,
    )  # fmt: skip
    return start


class Words(NamedTuple):
    """Raw chances of requests, see `slosched.planner.chances.Chances.say`."""

    rows: Ints
    serials: Ints
    running: int
    raw: Floats


def _carried_out(
    rows: Ints, running: int, jobs: Floats, engine: Floats, work: r.Work, count: int, tokens: float
) -> Planned:
    """What was decided, in table rows and in the engine's terms.

    The engine serves running requests first, as far as they go: a begun prompt that others overtake and that
    gets only a part is passed over instead.
    """
    chosen, given = work.chosen[:count], work.tokens[:count]
    fresh = chosen >= running
    part = ~fresh & (np.cumsum(fresh) > 0) & (given < jobs[chosen, r.TODO])
    decodes = jobs[:running, r.TODO] == 0.0
    served = chosen[~fresh & ~part]
    passed = np.ones(running, dtype=np.bool_)
    passed[served] = False
    passed &= ~decodes
    order = np.concatenate([np.flatnonzero(decodes), served, np.flatnonzero(passed)])
    behind = np.arange(running, len(rows))
    if len(behind) > MOST_ORDERED:
        behind = running + np.argpartition(work.key[running : len(rows)], MOST_ORDERED)[:MOST_ORDERED]
    behind = behind[np.lexsort((behind, work.key[behind], work.met[behind]))]
    entering = chosen[fresh]
    enters = np.zeros(len(rows), dtype=np.bool_)
    enters[entering] = True
    behind = behind[~enters[behind]]
    budget = float(engine[r.BUDGET]) - float(decodes.sum())
    complete = len(entering) + int(served.size) == len(rows) - int(decodes.sum()) and bool(
        np.all(given >= jobs[chosen, r.TODO])
    )
    natural = tokens >= budget or complete
    # A step without a prompt still holds a token for one: nobody may take it.
    held = rows[:0]
    if tokens < 1.0:
        held = rows[running:]
    elif natural:
        held = rows[running:][(work.met[running : len(rows)] > 0.0) & ~enters[running:]]
    return Planned(
        order=rows[np.concatenate([entering, behind])],
        prefill_tokens=None if natural else max(1, int(tokens)),
        hold=held,
        running_order=rows[order],
        skip=rows[np.flatnonzero(passed)],
    )
