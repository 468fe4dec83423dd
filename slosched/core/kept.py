"""Requests known by name over snapshots that are made afresh at every step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.snapshot import Snapshot
from slosched.core.table import RequestTable

_OWN = ("serial", "first_token_s", "served_tokens", "preemptions", "class_index", "tenant_index")
"""Columns that are not copied as they are."""


class KeptTable:
    """One table for a queue whose snapshots come from `Snapshot.of`, each with a table of its own.

    A request keeps its row, its serial and what policies noted in `extra` columns for as long as it is in
    every snapshot. It is known by its name, arrival and prompt length: the same name with others of these is
    a newcomer. What a fresh table cannot know is counted here: preemptions, tokens served, and the time at
    which the first token was seen.

    Examples
    --------
    >>> from slosched import LengthForecast, Request
    >>> a, b = (Request(request_id=i, prompt_tokens=9, forecast=LengthForecast.point(5)) for i in "ab")
    >>> kept = KeptTable()
    >>> first, _ = kept.adopt(Snapshot.of([a, b]))
    >>> later, _ = kept.adopt(Snapshot.of([b]))
    >>> int(first.waiting[1]) == int(later.waiting[0])
    True
    """

    def __init__(self) -> None:
        self._table = RequestTable()
        self._rows: dict[str, int] = {}
        self._ran: set[int] = set()

    def adopt(self, snapshot: Snapshot) -> tuple[Snapshot, Ints]:
        """The snapshot on the kept table.

        Returns
        -------
        tuple
            The snapshot, and the row in the given snapshot's table of every kept row, -1 for none.
        """
        theirs = np.concatenate([snapshot.waiting, snapshot.running])
        mine = self._seat(snapshot.table, theirs)
        kept = self._table
        self._copy(snapshot, theirs, mine)
        n = len(snapshot.waiting)
        waiting, running = mine[:n], mine[n:]
        order = np.lexsort((kept.serial[waiting], kept.arrival_s[waiting]))
        self._ran = set(running.tolist())
        back = np.full(kept.capacity, -1, dtype=np.int64)
        back[mine] = theirs
        return replace(snapshot, table=kept, waiting=waiting[order], running=running), back

    def _seat(self, given: RequestTable, rows: Ints) -> Ints:
        """The kept rows of requests, made where there are none; requests that are gone leave theirs."""
        kept, seats = self._table, np.empty(len(rows), dtype=np.int64)
        names = [given.request_ids[row] for row in rows.tolist()]
        present = set(names)
        for name in [name for name in self._rows if name not in present]:
            kept.release(self._rows.pop(name))
        for i, (name, row) in enumerate(zip(names, rows.tolist(), strict=True)):
            seat = self._rows.get(name)
            if seat is not None and not (
                kept.arrival_s[seat] == given.arrival_s[row]
                and kept.prompt_tokens[seat] == given.prompt_tokens[row]
            ):
                kept.release(self._rows.pop(name))
                seat = None
            if seat is None:
                seat = self._rows[name] = kept.add_row(name)
                self._ran.discard(seat)
            seats[i] = seat
        return seats

    def _copy(self, snapshot: Snapshot, theirs: Ints, mine: Ints) -> None:
        """Bring the kept columns up to date."""
        given, kept = snapshot.table, self._table
        was_begun = ~np.isnan(kept.first_token_s[mine])
        seen_before = kept.prompt_tokens[mine] > 0
        # A fresh table says that the first token came at arrival where nobody knows.
        unknown = given.first_token_s[theirs] == given.arrival_s[theirs]
        first_s = np.where(unknown & seen_before, snapshot.now_s, given.first_token_s[theirs])
        kept.first_token_s[mine] = np.where(was_begun & (unknown | np.isnan(first_s)),
                                            kept.first_token_s[mine], first_s)  # fmt: skip
        computed = given.computed_tokens[theirs]
        more = np.maximum(0, computed - kept.computed_tokens[mine])
        kept.served_tokens[mine] = np.maximum(kept.served_tokens[mine] + more, given.served_tokens[theirs])
        waits = np.arange(len(mine)) < len(snapshot.waiting)
        lost = waits & np.isin(mine, list(self._ran))
        kept.preemptions[mine] = np.maximum(kept.preemptions[mine] + lost, given.preemptions[theirs])
        for name, column in vars(given).items():
            if isinstance(column, np.ndarray) and name not in _OWN:
                getattr(kept, name)[mine] = column[theirs]
        for labels, index in (("classes", "class_index"), ("tenants", "tenant_index")):
            places = kept.places_of(labels, getattr(given, labels))
            getattr(kept, index)[mine] = places[getattr(given, index)[theirs]]
