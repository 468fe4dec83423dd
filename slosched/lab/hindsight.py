"""What a schedule made in hindsight reaches: a lower bound beside `slosched.lab.bound`.

The optimum lies between the two. A gap between a policy and hindsight is real: some schedule closes it. A gap
between hindsight and the bound may be real or may be looseness of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import Engine
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.core.workload import Workload
from slosched.lab.bound import spans_of
from slosched.policies.base import KeyPolicy, Policy
from slosched.policies.paced import Paced
from slosched.policies.registry import PolicySpec
from slosched.simulator import simulate, simulate_fleet
from slosched.workloads.noise import with_forecast

Mask = NDArray[np.bool_]

STARTS = ("paced-edf", "paced-wspt", "paced-srpt", "paced-edf:hold=true", "qoserve:from_first=true")
"""Policies whose outcomes, with true lengths as forecasts, the search begins with."""
ROUTERS = ("slosched", "least-tokens", "lmetric")
"""Routers in front of each of them where there are several engines."""
MOVED = 0.5
"""Chance that a request tried again goes to an engine drawn uniformly; it decides only how fast the search
finds good schedules."""
FIRST_SHARE = 0.2
"""Share of the missed requests that the first trial adds again; it halves and doubles with failure and
success."""
SLACK_SPREAD = 0.3
"""Standard deviation of the change to the logarithm of a slack, in trials that change the order."""


FAST = 10
"""Fast trials for each paced one: they take a tenth to a hundredth of the time."""
BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16_384)
SHARES = (0.6, 0.75, 0.9, 1.0)
"""Token budgets of fast trials, and shares of the tightest pace of paced ones."""


class Due(KeyPolicy):
    """The order of latest first tokens, known beforehand; nothing else is decided, so runs are fast.

    Parameters
    ----------
    slack_s
        Seconds from arrival within which the first token must come, by row.
    """

    name: ClassVar[str] = "hindsight-due"
    static: ClassVar[bool] = True

    def __init__(self, slack_s: Floats) -> None:
        self.slack_s = slack_s

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """When the first token must be there."""
        return np.asarray(snapshot.table.arrival_s[rows] + self.slack_s[rows])


class DuePaced(Paced):
    """The same order with paced prefill: as many prompt tokens in a step as decoding answers can bear.

    Parameters
    ----------
    slack_s
        Seconds from arrival within which the first token must come, by row.
    hold, share
        As in `slosched.policies.paced.Paced`.
    """

    name: ClassVar[str] = "hindsight-paced"

    def __init__(self, slack_s: Floats, *, hold: bool = False, share: float = 0.9) -> None:
        super().__init__(hold=hold, share=share)
        self.slack_s = slack_s

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """When the first token must be there."""
        return np.asarray(snapshot.table.arrival_s[rows] + self.slack_s[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """The best schedule found.

    Parameters
    ----------
    value
        Share of the weight that keeps its limits, 0 to 1.
    found_by
        The policy that reached it, or ``search``.
    trials
        Runs of the simulator.
    """

    value: float
    found_by: str
    trials: int


@dataclass(frozen=True, slots=True)
class _Trial:
    """Who is served at all, in which order, and how much prefill a step holds.

    Prefill follows the pace of answers (`share` and `hold` as in `Paced`), or a constant token `budget`.
    """

    keep: Mask
    slack_s: Floats
    at: Ints  # index of the engine of each request
    hold: bool = False
    share: float = 0.9
    budget: int | None = None

    def met(self, work: Workload, engines: Sequence[Engine]) -> Mask:
        """Who keeps its limits; the others are turned away at once."""
        met = np.zeros(len(work), dtype=np.bool_)
        for i, engine in enumerate(engines):
            rows = np.flatnonzero(self.keep & (self.at == i))
            if len(rows):
                met[rows] = self._met_at(work, rows, engine)
        return met

    def _met_at(self, work: Workload, rows: Ints, engine: Engine) -> Mask:
        slack_s = self.slack_s[rows]
        policy: Policy = DuePaced(slack_s, hold=self.hold, share=self.share)
        if self.budget is not None:
            budget = min(engine.limits.max_num_batched_tokens, self.budget)
            engine = replace(engine, limits=replace(engine.limits, max_num_batched_tokens=budget))
            policy = Due(slack_s)
        return simulate(work.rows(rows), policy, engine=engine).outcomes.met


def hindsight(
    workload: Workload,
    engine: Engine | Sequence[Engine],
    *,
    starts: Sequence[str] = STARTS,
    trials: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Hindsight:
    """Search for a schedule that lets as much weight as possible keep its limits, knowing everything.

    Trials are runs of the simulator with true lengths. The best starting policy says who can be served;
    then, trial by trial, some who missed are served again, and whoever misses is turned away. A trial that
    reaches no less is where the next begins. In a session, turns after one turned away are not sent.

    Parameters
    ----------
    workload
        Requests with their true lengths.
    engine
        Limits and step times; of each engine where there are several. Then the search also says who goes to
        which, and a session stays at one.
    starts
        Policies to begin with, at least one. Before several engines each stands behind each of `ROUTERS`,
        which learn everything at once.
    trials
        Trials with paced prefill, at least 0. Ten times as many with a constant token budget follow, which
        are fast; they begin where the best starting policy is.
    seed
        Seed of the search.
    progress
        Called with (runs done, all runs).

    Returns
    -------
    Hindsight
        A local search of some tens of trials is no optimum: what it reaches is only a bound from below.

    Examples
    --------
    Two prompts of one second, due after 1.5 s: one can be in time, the heavier.

    >>> from slosched.core.engine import EngineLimits
    >>> from slosched.core.steptime import StepTimeModel
    >>> work = Workload.plain(np.zeros(2), np.full(2, 1000), np.ones(2, dtype=np.int64))
    >>> work = replace(work, ttft_s=np.full(2, 1.5), weight=np.array([1.0, 3.0]))
    >>> model = StepTimeModel(base_s=0.0, prefill_token_s=1e-3)
    >>> hindsight(work, Engine(limits=EngineLimits(), step_time=model), trials=5).value
    0.75
    """
    engines = (engine,) if isinstance(engine, Engine) else tuple(engine)
    require(len(engines) > 0, "engine", "an engine, or several", engines)
    require(len(starts) > 0, "starts", "one or more policies", starts)
    require(trials >= 0, "trials", "an integer of at least 0", trials)
    total = float(workload.weight.sum())
    if total <= 0:
        return Hindsight(value=1.0, found_by=starts[0], trials=0)
    work = with_forecast(workload, "oracle")
    begins = _begins(starts, len(engines))
    runs, all_runs = 0, len(begins) + trials * (1 + FAST)

    def weight(met: Mask) -> float:
        """Share of the weight that is kept; counts the run."""
        nonlocal runs
        runs += 1
        if progress is not None:
            progress(runs, all_runs)
        return float(work.weight[met].sum()) / total

    outcomes: list[tuple[float, str, Mask, Ints]] = []
    for router, policy in begins:
        met, at = _begin(work, engines, router, policy, seed)
        outcomes.append((weight(met), f"{policy}, router={router}" if router else policy, met, at))
    value, found_by, first, at = max(outcomes, key=lambda found: found[0])
    rng = np.random.default_rng(seed)
    for budgets, some in (((None,), trials), (BUDGETS, FAST * trials)):
        search = _Search(work, engines, first, at, budgets, rng)
        here = 0.0
        for _ in range(some):
            if value >= 1.0:
                break
            met = search.trial()
            reached = weight(met)
            search.learn(met, better=reached > here, accepted=reached >= here)
            here = max(here, reached)
            if reached > value:
                value, found_by = reached, "search"
    return Hindsight(value=value, found_by=found_by, trials=runs)


def _begins(starts: Sequence[str], engines: int) -> list[tuple[str, str]]:
    """Pairs (router, policy) to begin with; one engine needs no router."""
    return [(router, policy) for router in (ROUTERS if engines > 1 else ("",)) for policy in starts]


def _begin(
    work: Workload, engines: Sequence[Engine], router: str, policy: str, seed: int
) -> tuple[Mask, Ints]:
    """Who keeps its limits under a policy, and at which engine each request was."""
    if not router:
        run = simulate(work, PolicySpec.parse(policy).make(seed), engine=engines[0], seed=seed)
        return run.outcomes.met, np.zeros(len(work), dtype=np.int64)
    fleet = simulate_fleet(work, engines, router, policy, seed=seed, delay_s=0.0, statistics_s=0.0)
    return fleet.outcomes.met, np.maximum(0, fleet.engine_of)


class _Search:
    """Where the search is, and its next step; the first is to serve those who were met, in their order."""

    def __init__(
        self,
        work: Workload,
        engines: Sequence[Engine],
        met: Mask,
        at: Ints,
        budgets: Sequence[int | None],
        rng: np.random.Generator,
    ) -> None:
        self.work, self.engines, self.budgets, self.rng = work, engines, budgets, rng
        spans = spans_of(work, min(engines, key=lambda engine: engine.step_time.base_s))
        self.possible, self.previous = spans.possible, work.previous
        at = _with_its_session(at, self.previous)
        self.now = self.next = _Trial(_whole(met, self.previous), spans.first_s, at)
        self.untried = list(budgets)
        self.add_share = FIRST_SHARE
        effort = spans.prefill_s + spans.decode_s * engines[0].step_time.sequence_s
        self.price = work.weight / np.maximum(effort, np.finfo(float).tiny)

    def trial(self) -> Mask:
        """Serve some more, and perhaps change order or pace; who then keeps its limits."""
        rng, now = self.rng, self.now
        if self.untried:
            self.next = replace(now, budget=self.untried.pop())
            return self.next.met(self.work, self.engines)
        out = np.flatnonzero(~now.keep & self.possible & (self.work.weight > 0))
        keep = now.keep.copy()
        if len(out):
            some = max(1, round(self.add_share * len(out)))
            odds = self.price[out] / self.price[out].sum()
            if rng.random() < 0.5 and now.keep.any():  # in exchange for some that are served
                served = np.flatnonzero(now.keep)
                keep[rng.choice(served, size=min(some, len(served)), replace=False)] = False
            again = rng.choice(out, size=min(some, int(np.count_nonzero(odds))), replace=False, p=odds)
            keep[again] = True
            now = replace(now, at=self._moved(again, np.flatnonzero(keep)))
        other = replace(now, keep=_whole(keep, self.previous))
        kind = rng.random()
        if kind < 0.3:
            change = np.exp(SLACK_SPREAD * rng.standard_normal(len(keep)))
            other = replace(other, slack_s=now.slack_s * change)
        elif kind < 0.4 and now.budget is None:
            other = replace(other, hold=not now.hold)
        elif kind < 0.5:
            other = replace(
                other,
                share=float(rng.choice(SHARES)),
                budget=self.budgets[int(rng.integers(len(self.budgets)))],
            )
        self.next = other
        return self.next.met(self.work, self.engines)

    def _moved(self, again: Ints, served: Ints) -> Ints:
        """Engines of all requests if some of those tried again, and as many served, go to others."""
        if len(self.engines) == 1:
            return self.now.at
        rows = np.concatenate([again, self.rng.choice(served, size=min(len(again), len(served)))])
        at, some = self.now.at.copy(), rows[self.rng.random(len(rows)) < MOVED]
        at[some] = self.rng.integers(len(self.engines), size=len(some))
        return _with_its_session(at, self.previous)

    def learn(self, met: Mask, *, better: bool, accepted: bool) -> None:
        """Go there if it is no worse; serve only those who keep their limits, and fewer or more again."""
        if accepted:
            self.now = replace(self.next, keep=met)
        self.add_share = min(1.0, self.add_share * 2) if better else max(0.005, self.add_share / 1.5)


def _whole(keep: Mask, previous: Ints) -> Mask:
    """Those kept whose turns before are all kept: the others would never be sent."""
    kept = keep.copy()
    for row in np.flatnonzero(previous >= 0).tolist():  # a turn's row is above those before it
        kept[row] &= kept[previous[row]]
    return kept


def _with_its_session(at: Ints, previous: Ints) -> Ints:
    """Engines where every turn goes to that of the turn before it."""
    whole = at.copy()
    for row in np.flatnonzero(previous >= 0).tolist():
        whole[row] = whole[previous[row]]
    return whole
