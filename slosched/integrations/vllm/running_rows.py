"""Rows of the running requests, kept current by what has changed in vLLM's running list."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np

from slosched.core.arrays import Ints
from slosched.integrations.vllm.decision import NOBODY
from slosched.integrations.vllm.ledger import Ledger

MOST_GONE = 8
"""Requests that may have left since the last look; where it was more, all rows are looked up anew."""

FAR = 2**62
"""Number of a row that a list of rows does not name: behind all others."""


class RunningRows:
    """Row by place in the running list.

    Between two steps a few requests end, a few enter, and the others stay in their order. So the list is
    compared with the one last seen, which looks at addresses only, and rows are looked up for newcomers.

    Parameters
    ----------
    ledger
        Knows everybody's row.

    Attributes
    ----------
    requests, rows
        The running list as last seen, and its rows. Neither is ever changed in place.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.requests: list[Any] = []
        self.rows: Ints = NOBODY
        self._number: Ints = NOBODY  # by row, `FAR` between two uses

    def of(self, running: list[Any]) -> Ints:
        """Rows of these requests in their order."""
        if running != self.requests:
            rows = self._followed(running)
            self.set(running, self._ledger.rows_of(running) if rows is None else rows)
        return self.rows

    def set(self, running: list[Any], rows: Ints) -> None:
        """Take these requests, whose rows are known, for the ones last seen."""
        self.requests, self.rows = running.copy(), rows

    def wanted(self, running: list[Any], order: Ints) -> Ints | None:
        """Places of the running requests in the order of these rows, others behind; None if they stand so."""
        places = self._numbers(running, order)
        return np.argsort(places, kind="stable") if (places[1:] < places[:-1]).any() else None

    def places(self, running: list[Any], rows: Ints) -> list[int]:
        """Places in the running list, ascending, of those of the rows that run."""
        return np.flatnonzero(self._numbers(running, rows) < FAR).tolist()

    def _numbers(self, running: list[Any], rows: Ints) -> Ints:
        """Number of each running request among these rows, `FAR` if it is none of them."""
        capacity = self._ledger.table.capacity
        if len(self._number) < capacity:
            self._number = np.full(capacity, FAR, dtype=np.int64)
        number = self._number
        number[rows] = np.arange(len(rows))
        found = number[self.of(running)]
        number[rows] = FAR
        return found

    def rearrange(self, running: list[Any], places: Ints) -> None:
        """Put the running list, of more than one, in the order of these places."""
        rows = self.of(running)[places]
        running[:] = itemgetter(*places.tolist())(running)
        self.set(running, rows)

    def _followed(self, running: list[Any]) -> Ints | None:
        """Rows of a list that a few have left and joined at its end; None if it differs in another way."""
        old, rows = self.requests, self.rows
        kept: list[Ints] = []
        at = now = 0
        while at < len(old):
            same = _alike(old, at, running, now)
            if same:
                kept.append(rows[at : at + same])
                at, now = at + same, now + same
            if at < len(old):
                if at - now >= MOST_GONE:
                    return None
                at += 1
        if now < len(running):
            kept.append(self._ledger.rows_of(running[now:]))
        return np.concatenate(kept) if kept else NOBODY


def _alike(old: list[Any], at: int, new: list[Any], now: int) -> int:
    """How many requests are the same, one after the other, from these places on.

    Examples
    --------
    >>> _alike(list("abcdef"), 1, list("bcdxf"), 0), _alike(list("ab"), 0, list("abc"), 0)
    (3, 2)
    """
    least, most = 0, min(len(old) - at, len(new) - now)
    if old[at : at + most] == new[now : now + most]:
        return most
    while most - least > 1:  # the first `least` are the same, the first `most` are not
        middle = (least + most) // 2
        if old[at + least : at + middle] == new[now + least : now + middle]:
            least = middle
        else:
            most = middle
    return least
