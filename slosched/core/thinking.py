"""Answers that begin with thinking, and what is promised of the first token after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slosched.core.errors import require
from slosched.core.forecast import FORECAST_ATOMS

if TYPE_CHECKING:
    from slosched.core.arrays import Floats, Ints
    from slosched.core.snapshot import Snapshot
    from slosched.core.table import RequestTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """Columns over the requests of a workload: how long each thinks, and when its answer is due.

    Parameters
    ----------
    tokens
        Output tokens before the first answer token, the mark included, at least 0. The truth, hidden from
        policies; 0 for an answer without thinking, whose first token is its first answer token.
    ttfat_s
        Limits on the time from arrival to the first answer token in seconds, infinity for none.
    atoms
        Forecast of `tokens`, shape (n, FORECAST_ATOMS), ascending within a row, at least 0.
    """

    tokens: Ints
    ttfat_s: Floats
    atoms: Floats

    def __post_init__(self) -> None:
        n = len(self.tokens)
        require(self.ttfat_s.shape == (n,), "ttfat_s", f"shape ({n},)", self.ttfat_s.shape)
        shape = (n, FORECAST_ATOMS)
        require(self.atoms.shape == shape, "thinking atoms", f"shape {shape}", self.atoms.shape)
        require(
            bool(np.all(self.tokens >= 0)), "thinking_tokens", "at least 0", int(self.tokens.min(initial=0))
        )
        ok = bool(np.all(self.ttfat_s > 0))
        require(ok, "ttfat_s", "above 0, infinity for none", float(self.ttfat_s.min(initial=np.inf)))
        ok = bool(np.all(np.isfinite(self.atoms)) and np.all(self.atoms >= 0))
        ok = ok and bool(np.all(np.diff(self.atoms, axis=1) >= 0))
        require(ok, "thinking atoms", "finite, ascending, at least 0", "another value")

    @classmethod
    def of(cls, tokens: Ints, ttfat_s: Floats | None = None) -> Thinking:
        """Thinking of known length, forecast exactly.

        Examples
        --------
        >>> Thinking.of(np.array([0, 300])).atoms[:, 0].tolist()
        [0.0, 300.0]
        """
        known = np.asarray(tokens, dtype=np.int64)
        limits = np.full(len(known), np.inf) if ttfat_s is None else np.asarray(ttfat_s, dtype=np.float64)
        atoms = np.repeat(known.astype(np.float64)[:, None], FORECAST_ATOMS, axis=1)
        return cls(tokens=known, ttfat_s=limits, atoms=atoms)

    def rows(self, index: Ints) -> Thinking:
        """The columns of some requests, in the order of `index`."""
        return Thinking(tokens=self.tokens[index], ttfat_s=self.ttfat_s[index], atoms=self.atoms[index])


def aim_at_answers(table: RequestTable, rows: Ints, now_s: float, step_s: float) -> None:
    """Let the limit on the whole answer of requests that think stand for the one on its beginning.

    Policies know limits on the first token, on the pace and on the whole answer. An answer whose last token
    comes by ``ttfat_s`` plus the time that the part after thinking takes, and that is paced evenly, begins
    by ``ttfat_s``: both limits have the same latest start. So `e2e_s` of a request that thinks becomes that
    sum, if it is tighter than its own. With the first answer token its own limit returns. A beginning that
    has come too late, or is overdue, leaves a limit that has passed: the request is lost.

    Parameters
    ----------
    table
        Its `e2e_s` is changed.
    rows
        Requests to bring up to date; those without a limit on the first answer token stay as they are.
    now_s
        The engine's clock.
    step_s
        Seconds a token is expected to take after thinking, at least 0; a TPOT limit bounds it.

    Examples
    --------
    >>> from slosched.core.forecast import LengthForecast
    >>> from slosched.core.request import Request
    >>> from slosched.core.request import Slo
    >>> from slosched.core.table import RequestTable
    >>> table = RequestTable.of([Request(request_id="a", prompt_tokens=9, forecast=LengthForecast.point(500),
    ...                                  thinking=LengthForecast.point(400), slo=Slo(ttfat_s=10.0))])
    >>> aim_at_answers(table, np.array([0]), 0.0, 0.02)
    >>> round(float(table.e2e_s[0]), 2)  # 10 s, then 99 more tokens
    11.98
    """
    t = table
    rows = rows[np.isfinite(t.ttfat_s[rows])]
    if not len(rows):
        return
    own, due = t.own_e2e_s[rows], t.ttfat_s[rows]
    begun = np.isfinite(t.answer_s[rows])
    late = np.where(begun, t.answer_s[rows], now_s) - t.arrival_s[rows] > due
    after = np.maximum(0.0, t.atoms[rows].mean(axis=1) - t.thinking_tokens[rows] - 1.0)
    pace_s = np.minimum(step_s, t.tpot_s[rows])
    aimed = np.where(late, due, np.where(begun, np.inf, due + after * pace_s))
    t.e2e_s[rows] = np.minimum(own, aimed)


def aim_now(snapshot: Snapshot, rows: Ints) -> None:
    """`aim_at_answers` for requests of a snapshot, a token after thinking lasting a decode step of now."""
    t, running = snapshot.table, snapshot.running
    rows = rows[np.isfinite(t.ttfat_s[rows])]
    if len(rows):
        kv_tokens = int(t.computed_tokens[running].sum())
        step_s = float(snapshot.step_time.predict(sequences=max(1, len(running)), kv_tokens=kv_tokens))
        aim_at_answers(t, rows, snapshot.now_s, step_s)
