"""Forecasts corrected by what became of them.

Forecasts of a class may be wrong by a factor; short ones may be wronger than long ones; and a limit on the
whole answer says something about its length, too. So for each class a line is fitted to the latest answers:

    log(length / forecast) = shift + slope · log(forecast) + hint · log(e2e limit)

by least absolute deviations, so that a minority of clients with nonsense for a hint moves little. What is
left over, the residuals, tells how wrong a corrected forecast still is: possible lengths are drawn from it.
Fitting given the forecast and the limit also means that it matters little which requests were served.
"""

from __future__ import annotations

from collections import deque
from copy import copy

import numpy as np

from slosched.core.snapshot import Snapshot
from slosched.core.table import Floats, Ints

PRIOR_ANSWERS = 20
"""Right forecasts that every class starts with: a few answers say little."""

LATEST_ANSWERS = 200
"""Answers of a class that are remembered."""

WORST_FACTOR = 10.0
"""Largest correction, up or down."""

ROUNDS, SMALLEST = 4, 0.1
"""Rounds of reweighting for least absolute deviations, and the deviation below which all count alike."""

FIT_ANSWERS = 8
"""New answers of a class from one fit to the next."""


class Beliefs:
    """Watches who leaves the engine, and corrects the forecasts of those to come."""

    def __init__(self) -> None:
        self._rows: Ints = np.empty(0, dtype=np.int64)
        self._serials: Ints = self._rows
        self._live = np.zeros(0, dtype=np.bool_)  # by table row: scratch, False between calls
        self._seen: list[deque[tuple[float, float, float]]] = []  # by class: log forecast, limit, ratio
        self._fresh: list[int] = []
        self._line: Floats = np.zeros((0, 3))  # by class: shift, slope, hint
        self._residuals: list[Floats] = []

    def watch(self, snapshot: Snapshot) -> Ints:
        """Learn from those who have left since the last call; returns their rows, still readable."""
        t, running = snapshot.table, snapshot.running
        while len(self._seen) <= int(t.class_index.max(initial=0)):
            self._seen.append(deque(maxlen=LATEST_ANSWERS))
            self._fresh.append(0)
            self._line = np.concatenate([self._line, np.zeros((1, 3))])
            self._residuals.append(np.empty(0))
        gone = self._left(snapshot)
        for row in gone.tolist():
            label, said = int(t.class_index[row]), max(1.0, float(t.atoms[row].mean()))
            limit = float(t.e2e_s[row])
            hint = float(np.log(limit)) if 0 < limit < np.inf else 0.0
            ratio = float(np.log(t.generated_tokens[row] / said))
            self._seen[label].append((float(np.log(said)), hint, ratio))
            self._fresh[label] += 1
            if self._fresh[label] >= FIT_ANSWERS:
                self._fit(label)
        self._rows, self._serials = running.copy(), t.serial[running].copy()
        return gone

    def frozen(self) -> Beliefs:
        """The same beliefs, which learn no more: for another thread."""
        view = copy(self)
        view._line, view._residuals = self._line.copy(), list(self._residuals)
        return view

    def factors(self, label: Ints, said: Floats, e2e_s: Floats) -> Floats:
        """Corrections of forecasts.

        Parameters
        ----------
        label, said, e2e_s
            Class, mean forecast in tokens, and limit in seconds of each request, shape (n,).

        Returns
        -------
        ndarray
            Shape (n,), each at least 1 / `WORST_FACTOR` and at most `WORST_FACTOR`.
        """
        line = self._line[label]
        limited = np.isfinite(e2e_s) & (e2e_s > 0)
        log = line[:, 0] + line[:, 1] * np.log(np.maximum(1.0, said))
        log += line[:, 2] * np.log(np.where(limited, e2e_s, 1.0))
        return np.asarray(np.exp(np.clip(log, -np.log(WORST_FACTOR), np.log(WORST_FACTOR))))

    def draw(
        self, label: Ints, mean: Floats, atoms: Floats, generated: Floats, otherwise: Floats,
        rng: np.random.Generator,
    ) -> Floats:  # fmt: skip
        """Lengths still to come, as wrong as corrected forecasts of these classes were lately.

        Parameters
        ----------
        label
            Class of each request, shape (n,).
        mean, atoms
            Its corrected forecast in tokens: mean, shape (n,), and lengths, shape (n, atoms), ascending.
        generated
            Tokens that it has, shape (n,).
        otherwise
            What is left for those that have outlived all, shape (n,).
        rng
            Source of the draws.

        Returns
        -------
        ndarray
            At least 1, shape (n,).
        """
        chance, learnt = rng.random(len(label)), rng.random(len(label))
        alive = (atoms > generated[:, None]).sum(axis=1)
        pick = atoms.shape[1] - 1 - (chance * np.maximum(1, alive)).astype(np.int64)
        out = np.where(alive > 0, atoms[np.arange(len(label)), pick] - generated, otherwise)
        for index, residual in enumerate(self._residuals):
            known = len(residual)
            mine = np.flatnonzero((label == index) & (learnt * (known + PRIOR_ANSWERS) < known))
            least = np.log(np.maximum(1.0, generated[mine]) / np.maximum(1.0, mean[mine]))
            least[generated[mine] == 0.0] = -np.inf
            first = np.searchsorted(residual, least, side="right")
            some = first < known
            mine, first = mine[some], first[some]
            place = first + (chance[mine] * (known - first)).astype(np.int64)
            out[mine] = mean[mine] * np.exp(residual[place]) - generated[mine]
        return np.asarray(np.maximum(1.0, np.rint(out)))

    def _fit(self, label: int) -> None:
        """Least absolute deviations by reweighted least squares; slopes are drawn to 0, as the shift is."""
        self._fresh[label] = 0
        said, limit, ratio = np.array(self._seen[label]).T
        features = np.stack([said - said.mean(), limit - limit.mean()], axis=1)
        slopes, shift = np.zeros(2), 0.0
        for _ in range(ROUNDS):
            left = ratio - features @ slopes
            shift = float(np.median(np.concatenate([left, np.zeros(PRIOR_ANSWERS)])))
            weight = 1.0 / np.maximum(SMALLEST, np.abs(left - shift))
            weighted = features * weight[:, None]
            square = weighted.T @ features + PRIOR_ANSWERS * weight.mean() * np.eye(2)
            slopes = np.linalg.solve(square, weighted.T @ (ratio - shift))
        left = ratio - features @ slopes
        shift = float(np.median(np.concatenate([left, np.zeros(PRIOR_ANSWERS)])))
        self._residuals[label] = np.sort(left - shift)
        self._line[label] = shift - slopes @ [said.mean(), limit.mean()], *slopes

    def _left(self, snapshot: Snapshot) -> Ints:
        """Rows, still readable, of answers that ran at the last call and have left the engine."""
        t = snapshot.table
        known = self._rows < t.capacity
        rows, was = self._rows[known], self._serials[known]
        if len(self._live) < t.capacity:
            self._live = np.zeros(t.capacity, dtype=np.bool_)
        live = self._live
        live[snapshot.running] = True
        gone = ~live[rows]
        live[snapshot.running] = False
        rows, was = rows[gone], was[gone]
        if len(rows) == 0:
            return np.asarray(rows)
        live[snapshot.waiting] = True
        serial = t.serial[rows]
        over = ((serial == was) & ~live[rows]) | (serial < 0)
        live[snapshot.waiting] = False
        return np.asarray(rows[over & (t.generated_tokens[rows] > 0)])
