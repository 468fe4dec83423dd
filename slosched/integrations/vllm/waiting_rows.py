"""Rows of waiting requests, sorted by arrival, with cheap changes at both ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.table import RequestTable

MOST_LEFT = 256
"""Rows that have left before all of them are dropped at once."""

FEW_LEFT = 4
"""Rows that are dropped one by one, each where it stands: at more, looking at everybody costs no more."""


class ArrivalLine:
    """The waiting rows in ascending (arrival, serial): what `Snapshot.waiting` asks for, kept incrementally.

    Two parallel arrays with room at both ends. An insertion moves the shorter side, so newcomers (at the
    tail) cost a microsecond at any length. Rows that leave from the middle are only marked, and dropped
    together when the rows are next asked for: who sorts by keys hardly ever asks.

    Examples
    --------
    >>> from slosched.core.forecast import LengthForecast
    >>> from slosched.core.request import Request
    >>> table = RequestTable.of([Request(request_id=str(i), prompt_tokens=1, arrival_s=3.0 - i,
    ...                                  forecast=LengthForecast.point(1)) for i in range(3)])
    >>> line = ArrivalLine(table)
    >>> for row in range(3):
    ...     line.insert(row)
    >>> line.rows.tolist()
    [2, 1, 0]
    >>> line.remove(1)
    True
    >>> line.rows.tolist()
    [2, 0]
    """

    def __init__(self, table: RequestTable, capacity: int = 64) -> None:
        self._table = table
        self._rows: Ints = np.zeros(capacity, dtype=np.int64)
        self._arrival_s: Floats = np.zeros(capacity)
        self._head = self._tail = capacity // 2
        self._here: dict[int, bool] = {}
        self._left: dict[int, float] = {}  # arrival by row, which may have changed hands since
        self._gone = np.zeros(table.capacity, dtype=np.bool_)  # by table row: whether it is in `_left`

    def __len__(self) -> int:
        return len(self._here)

    @property
    def rows(self) -> Ints:
        """The rows, first arrived first: a view that the next change invalidates."""
        if self._left:
            self._drop_left()
        return self._rows[self._head : self._tail]

    @property
    def oldest_s(self) -> float:
        """When the first of a line that is not empty arrived."""
        self._drop_head()
        return float(self._arrival_s[self._head])

    def place(self, row: int) -> int:
        """How many arrived before this row, about: who has left lately counts as well."""
        keys = self._arrival_s[self._head : self._tail]
        return int(keys.searchsorted(self._table.arrival_s[row], side="left"))

    def insert(self, row: int) -> None:
        """Add a row that is not in the line."""
        if row >= len(self._gone):
            more = self._table.capacity - len(self._gone)
            self._gone = np.concatenate([self._gone, np.zeros(more, dtype=np.bool_)])
        if row in self._left:
            self._drop_left()
        if self._head == 0 or self._tail == len(self._rows):
            self._make_room()
        arrival, serial = self._table.arrival_s[row], self._table.serial
        keys = self._arrival_s[self._head : self._tail]
        at = int(keys.searchsorted(arrival, side="right"))
        if self._left and at > 0 and keys[at - 1] == arrival:  # a tie with somebody who may have left
            self._drop_left()
            keys = self._arrival_s[self._head : self._tail]
            at = int(keys.searchsorted(arrival, side="right"))
        while at > 0 and keys[at - 1] == arrival and serial[self._rows[self._head + at - 1]] > serial[row]:
            at -= 1
        head, tail = self._head, self._tail
        if at > (tail - head) // 2:
            for column in (self._rows, self._arrival_s):
                column[head + at + 1 : tail + 1] = column[head + at : tail]
            self._tail += 1
        else:
            for column in (self._rows, self._arrival_s):
                column[head - 1 : head + at - 1] = column[head : head + at]
            self._head = head = head - 1
        self._rows[head + at] = row
        self._arrival_s[head + at] = arrival
        self._here[row] = True

    def remove(self, row: int) -> bool:
        """Take a row out; False if it is not in the line."""
        if self._here.pop(row, None) is None:
            return False
        self._left[row] = float(self._table.arrival_s[row])
        self._gone[row] = True
        if self._rows[self._head] == row:
            self._drop_head()
        elif len(self._left) > MOST_LEFT:
            self._drop_left()
        return True

    def _drop_head(self) -> None:
        """Drop rows at the head that have left."""
        left, rows = self._left, self._rows
        while left and self._head < self._tail:
            row = int(rows[self._head])
            if left.pop(row, None) is None:
                return
            self._gone[row] = False
            self._head += 1

    def _drop_left(self) -> None:
        """Drop all rows that have left."""
        if len(self._left) <= FEW_LEFT:
            for row, arrival_s in self._left.items():
                self._drop(row, arrival_s)
            self._left.clear()
            return
        head, tail = self._head, self._tail
        stays = np.flatnonzero(~self._gone[self._rows[head:tail]])
        self._head = at = tail - len(stays)
        self._rows[at:tail] = self._rows[head:tail][stays]
        self._arrival_s[at:tail] = self._arrival_s[head:tail][stays]
        self._gone[list(self._left)] = False
        self._left.clear()

    def _drop(self, row: int, arrival_s: float) -> None:
        """Drop one row that has left; the shorter side moves up."""
        head, tail, rows = self._head, self._tail, self._rows
        at = head + int(self._arrival_s[head:tail].searchsorted(arrival_s, side="left"))
        while rows[at] != row:  # a tie
            at += 1
        self._gone[row] = False
        if at - head < tail - at:
            for column in (rows, self._arrival_s):
                column[head + 1 : at + 1] = column[head:at]
            self._head = head + 1
        else:
            for column in (rows, self._arrival_s):
                column[at : tail - 1] = column[at + 1 : tail]
            self._tail = tail - 1

    def _make_room(self) -> None:
        if self._left:
            self._drop_left()
        n = self._tail - self._head
        capacity = max(64, 3 * n)
        head = (capacity - n) // 2
        for name in ("_rows", "_arrival_s"):
            column = getattr(self, name)
            wider = np.zeros(capacity, dtype=column.dtype)
            wider[head : head + n] = column[self._head : self._tail]
            setattr(self, name, wider)
        self._head, self._tail = head, head + n


def smallest(key: np.ndarray[Any, np.dtype[Any]], count: int) -> Ints:
    """Indices of the `count` smallest keys, ascending, ties by index: a stable sort cut short.

    Examples
    --------
    >>> smallest(np.array([3.0, 1.0, 2.0, 1.0, 9.0]), 3).tolist()
    [1, 3, 2]
    """
    if len(key) <= 2 * count:
        return np.argsort(key, kind="stable")[:count].astype(np.int64, copy=False)
    bound = np.partition(key, count - 1)[count - 1]
    below = np.flatnonzero(key < bound)
    ties = np.flatnonzero(key == bound)[: count - len(below)]
    chosen = np.sort(np.concatenate([below, ties]))
    return chosen[np.argsort(key[chosen], kind="stable")].astype(np.int64, copy=False)
