"""Floors: engines that are kept free of tight paces, where that surely keeps more weight within limits.

One answer with a tight limit on its pace keeps every step of its engine short, so that prompts come in slowly
there. A few engines for tight paces and others free of them serve more of both. No single request shows that:
where every engine has a tight answer already, one more costs nothing. So whole *settings* of floors are
compared now and then on the recent past (`slosched.routers.preview`), as the planner compares rules.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.planner import rollout as r
from slosched.planner.thread import Background
from slosched.routers.base import FleetSnapshot
from slosched.routers.preview import Bools, Past, Preview, preview

NO_PACE = 10_000
"""Step of requests without a pace."""

WIDTH = 1.2
"""Paces are told apart in steps of this factor."""

COMPARISONS = 16.0
"""Comparisons while a horizon goes by."""

LIVE_S = 2.0
"""Least seconds between comparisons beside live traffic: copying what 16,000 requests ask takes 5 ms."""

LEAST_SEEN = 10
"""Arrivals per engine before the first comparison."""

LEAST_SHARE = 0.03
"""Share of the jobs on either side of a floor that is worth trying."""

CUTS, SIZES = 4, (0.25, 0.5, 0.75)
"""Steps that are tried as floors in one comparison, and the shares of engines that have it."""

TRIED = 8
"""Settings of a comparison: none, the leader and its neighbours, and others drawn at random."""

FADE = 0.9
"""What a comparison counts when the next one comes."""

DOUBT, ERRORS, MARGIN = 1.0, 1.0, 0.015
"""Comparisons without a difference that each setting starts with; standard errors that are taken off its mean
gain; share of the weight by which it must be ahead of no floors at all to lead."""

SPREAD = 0.02
"""Standard deviation of gains as long as nothing is known of it, as a share of the weight."""

LEAST_TRIED = 0.3
"""Faded comparisons that a setting must have been in to lead."""


class Setting(NamedTuple):
    """The `engines` with the slowest steps, so many, take no request whose pace is of a step below `step`."""

    step: int = -NO_PACE
    engines: int = 0


NONE = Setting()


class Floors:
    """Which engines take which paces.

    Parameters
    ----------
    seed
        Seed of what is drawn.

    Attributes
    ----------
    now
        The setting that leads.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.now = NONE
        self._past = Past()
        self._rng, self._lengths = (np.random.default_rng([seed, 0xF1005, part]) for part in range(2))
        self._began_s = self._next_s = np.nan
        self._records: dict[Setting, Floats] = {}  # comparisons, sum of gains, sum of their squares
        self._background: Background[tuple[Preview, list[int]]] | None = None

    def live(self) -> None:
        """Compare in a thread from now on; decisions then depend on timing."""
        self._background = Background(lambda task: self._compare(*task), name="slosched-floors")

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._background is not None:
            with suppress(RuntimeError):  # a router may be collected, and so closed, within the thread itself
                self._background.close()

    def watch(self, row: int, fleet: FleetSnapshot) -> None:
        """Remember a newcomer, and compare settings if it is time to."""
        self._past.add(row, fleet)
        now_s, engines = fleet.now_s, fleet.open
        if np.isnan(self._began_s):
            self._began_s = self._next_s = now_s
        enough = self._past.paced and self._past.count >= LEAST_SEEN * len(engines)
        if now_s < self._next_s or len(engines) < 2 or not enough:
            return
        seen = preview(self._past, fleet, self._began_s, self._lengths)
        least_s = 0.0 if self._background is None else LIVE_S
        self._next_s = now_s + max(least_s, seen.horizon_s / COMPARISONS)
        ranks = [slowest(fleet).index(e) for e in engines]
        if self._background is not None:
            self._background.submit((seen, ranks))
        else:
            self._compare(seen, ranks)

    def allowed(self, row: int, fleet: FleetSnapshot) -> Bools:
        """Which open engines a request may go to, at least one, shape (open engines,)."""
        engines, setting = fleet.open, self.now
        ok = np.ones(len(engines), dtype=np.bool_)
        tight = steps_of(fleet.table.tpot_s[row : row + 1])[0] < setting.step
        if tight and setting.engines < len(engines):
            ok[[engines.index(e) for e in slowest(fleet)[: setting.engines]]] = False
        return ok

    def _compare(self, seen: Preview, ranks: list[int]) -> None:
        """What each setting is worth on the same preview; `ranks` are the engines', the slowest being 0."""
        steps = steps_of(seen.jobs[:, r.TPOT])
        settings = self._settings(steps, len(ranks))
        if len(settings) < 2:
            return
        worth = np.empty(len(settings))
        for i, setting in enumerate(settings):
            floored = np.array(ranks) < setting.engines
            worth[i] = seen.worth(~((steps < setting.step)[:, None] & floored[None, :]))
        self._learn(settings, worth - worth[0])

    def _settings(self, steps: Ints, engines: int) -> list[Setting]:
        """Settings to compare; the first has no floors."""
        values, counts = np.unique(steps, return_counts=True)
        below = np.cumsum(counts)[:-1] / len(steps)
        cuts = values[1:][(below >= LEAST_SHARE) & (below <= 1 - LEAST_SHARE)]
        if len(cuts) > CUTS:
            cuts = cuts[np.linspace(0, len(cuts) - 1, CUTS).round().astype(np.int64)]
        found = [NONE]
        if self.now.engines:
            near = max(1, engines // 8)
            counts_near = (self.now.engines, self.now.engines - near, self.now.engines + near)
            found += [Setting(self.now.step, count) for count in counts_near if 0 < count < engines]
        sizes = sorted({min(engines - 1, max(1, round(engines * share))) for share in SIZES})
        others = [Setting(cut, size) for cut in cuts.tolist() for size in sizes]
        others = [setting for setting in others if setting not in found]
        room = max(0, TRIED - len(found))
        return found + [others[i] for i in sorted(self._rng.permutation(len(others))[:room].tolist())]

    def _learn(self, settings: list[Setting], gains: Floats) -> None:
        """Take in what settings gain over no floors, as shares of the weight; the surely best one leads."""
        for record in self._records.values():
            record *= FADE
        for setting, gain in zip(settings[1:], gains[1:].tolist(), strict=True):
            self._records.setdefault(setting, np.zeros(3))[:] += (1.0, gain, gain * gain)
        self._records = {s: record for s, record in self._records.items() if record[0] > LEAST_TRIED}
        known = [max(0.0, q / n - (g / n) ** 2) for n, g, q in self._records.values() if n > 1.5]
        variance = float(np.mean(known)) if known else SPREAD**2
        best, most = NONE, 0.0
        for setting, (n, gain, _) in self._records.items():
            sure = (
                gain / (n + DOUBT) - ERRORS * np.sqrt(variance / n) - (MARGIN if setting != self.now else 0.0)
            )
            if sure > most:
                best, most = setting, sure
        self.now = best


def steps_of(pace_s: Floats) -> Ints:
    """Step of each pace: how often `WIDTH` goes into it."""
    finite = np.isfinite(pace_s)
    steps = np.floor(np.log(np.where(finite, np.maximum(pace_s, 1e-9), 1.0)) / np.log(WIDTH))
    return np.where(finite, steps, NO_PACE).astype(np.int64)


def slowest(fleet: FleetSnapshot) -> list[int]:
    """Open engines, that with the longest step first; of equals the last one."""
    return sorted(fleet.open, key=lambda e: (-fleet.engines[e].engine.step_time.base_s, -e))
