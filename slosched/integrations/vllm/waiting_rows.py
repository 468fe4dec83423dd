"""Rows of waiting requests, sorted by arrival, with cheap changes at both ends."""

from __future__ import annotations

import numpy as np

from slosched.core.table import Floats, Ints, RequestTable


class ArrivalLine:
    """The waiting rows in ascending (arrival, serial): what `Snapshot.waiting` asks for, kept incrementally.

    Two parallel arrays with room at both ends. A change moves the shorter side, so newcomers (at the tail)
    and first-come-first-served admissions (at the head) cost a microsecond at any length.

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

    def __len__(self) -> int:
        return self._tail - self._head

    @property
    def rows(self) -> Ints:
        """The rows, first arrived first: a view that the next change invalidates."""
        return self._rows[self._head : self._tail]

    @property
    def oldest_s(self) -> float:
        """When the first of a line that is not empty arrived."""
        return float(self._arrival_s[self._head])

    def place(self, row: int) -> int:
        """How many arrived before this row."""
        keys = self._arrival_s[self._head : self._tail]
        return int(keys.searchsorted(self._table.arrival_s[row], side="left"))

    def insert(self, row: int) -> None:
        """Add a row that is not in the line."""
        if self._head == 0 or self._tail == len(self._rows):
            self._make_room()
        arrival, serial = self._table.arrival_s[row], self._table.serial
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

    def remove(self, row: int) -> bool:
        """Take a row out; False if it is not in the line."""
        head, tail = self._head, self._tail
        if head < tail and self._rows[head] == row:
            self._head += 1
            return True
        arrival = self._table.arrival_s[row]
        at = head + int(self._arrival_s[head:tail].searchsorted(arrival, side="left"))
        while at < tail and self._arrival_s[at] == arrival and self._rows[at] != row:
            at += 1
        if at == tail or self._rows[at] != row:
            return False
        if at - head > (tail - head) // 2:
            for column in (self._rows, self._arrival_s):
                column[at : tail - 1] = column[at + 1 : tail]
            self._tail -= 1
        else:
            for column in (self._rows, self._arrival_s):
                column[head + 1 : at + 1] = column[head:at]
            self._head += 1
        return True

    def _make_room(self) -> None:
        n = len(self)
        capacity = max(64, 3 * n)
        head = (capacity - n) // 2
        for name in ("_rows", "_arrival_s"):
            column = getattr(self, name)
            wider = np.zeros(capacity, dtype=column.dtype)
            wider[head : head + n] = column[self._head : self._tail]
            setattr(self, name, wider)
        self._head, self._tail = head, head + n
