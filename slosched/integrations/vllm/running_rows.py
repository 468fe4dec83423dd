"""Rows of the running requests, kept current by what has changed in vLLM's running list."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.jit import BORROWED, njit
from slosched.integrations.vllm.decision import NOBODY, plain
from slosched.integrations.vllm.ledger import Ledger

MOST_GONE = 8
"""Requests that may have left since the last look; where it was more, all rows are looked up anew."""

NOWHERE = -1
"""Place of a row that does not run."""


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
        self._place: Ints = np.full(1, NOWHERE)  # by row, `NOWHERE` between two uses
        nobody = NOBODY.copy()  # compiled code is loaded now, not while an engine waits
        _arranged(nobody, nobody, self._place, nobody)
        _placed(nobody, nobody, self._place, nobody)

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
        rows = self.of(running)
        places = np.empty_like(rows)
        return None if _arranged(rows, plain(order), self._scratch(), places) else places

    def places(self, running: list[Any], rows: Ints) -> list[int]:
        """Places in the running list, ascending, of those of the rows that run."""
        here = self.of(running)
        places = np.empty_like(here)
        found: list[int] = places[: _placed(here, plain(rows), self._scratch(), places)].tolist()
        return found

    def _scratch(self) -> Ints:
        if len(self._place) < self._ledger.table.capacity:
            self._place = np.full(self._ledger.table.capacity, NOWHERE, dtype=np.int64)
        return self._place

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


@njit(**BORROWED)
def _arranged(running: Ints, order: Ints, place: Ints, places: Ints) -> bool:
    """Fill in the places of the running rows: those of the order first, others as they stand. Was it so?"""
    count = 0
    for i in range(len(running)):
        place[running[i]] = i
    for row in order:
        if place[row] != NOWHERE:
            places[count] = place[row]
            place[row] = NOWHERE
            count += 1
    for i in range(len(running)):
        if place[running[i]] != NOWHERE:
            places[count] = i
            place[running[i]] = NOWHERE
            count += 1
    moved = 0
    for i in range(count):
        moved += places[i] != i
    return moved == 0


@njit(**BORROWED)
def _placed(running: Ints, rows: Ints, place: Ints, places: Ints) -> int:
    """Fill in the places, ascending, of the running rows that are among the others; returns how many."""
    count = 0
    for row in rows:
        place[row] = 0
    for i in range(len(running)):
        if place[running[i]] != NOWHERE:
            places[count] = i
            count += 1
    for row in rows:
        place[row] = NOWHERE
    return count


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
