"""Names of tenants: bounded in number, forgotten when nobody uses them."""

from __future__ import annotations

from collections import OrderedDict

from slosched.core.table import RequestTable

OTHER_TENANTS = "other"
"""Whom a name counts as while too many others have requests in the engine."""

FORGOTTEN_S = 600.0
"""Seconds after a tenant's last request until its name may be forgotten though there is room: as long as a
fair policy's memory of its service should last."""


class Tenants:
    """The tenants of one engine, at most `most` at once.

    A name takes a place in the table for as long as it has requests, and keeps it afterwards until it is
    forgotten or another needs it. Whoever sends under many names drives out none that has requests.

    Parameters
    ----------
    table
        The table whose ``tenants`` are kept.
    most
        Places, at least 1; `OTHER_TENANTS` has one more.
    """

    def __init__(self, table: RequestTable, most: int) -> None:
        self._table, self._most = table, most
        self._live: dict[str, int] = {}
        self._idle: OrderedDict[str, float] = OrderedDict()
        self._free: list[int] = []

    def __len__(self) -> int:
        """Names besides `OTHER_TENANTS`."""
        return len(self._live) - (OTHER_TENANTS in self._live) + len(self._idle)

    def joins(self, name: str) -> str:
        """A request of this tenant has come; returns the name it counts under."""
        known = name in self._live or name in self._idle or name == OTHER_TENANTS
        if not known and not self._make_room():
            name = OTHER_TENANTS
        if self._free and name not in self._table.tenants:
            self._table.tenants[self._free.pop()] = name
        self._idle.pop(name, None)
        self._live[name] = self._live.get(name, 0) + 1
        return name

    def leaves(self, name: str, now_s: float) -> None:
        """A request of this tenant has left."""
        left = self._live.get(name, 0) - 1
        if left > 0:
            self._live[name] = left
        elif self._live.pop(name, None) is not None and name != OTHER_TENANTS:
            self._idle[name] = now_s

    def forget(self, now_s: float) -> None:
        """Forget who has had no request for `FORGOTTEN_S` seconds."""
        while self._idle and now_s - next(iter(self._idle.values())) > FORGOTTEN_S:
            self._drop()

    def _make_room(self) -> bool:
        if len(self) >= self._most:
            if not self._idle:
                return False
            self._drop()
        return True

    def _drop(self) -> None:
        """Forget the tenant that has been idle longest; its place in the table is the next newcomer's."""
        name, _ = self._idle.popitem(last=False)
        if name in self._table.tenants:
            place = self._table.tenants.index(name)
            self._table.tenants[place] = ""
            self._free.append(place)
