"""A router's own log: what it sent where, what it has seen come back, and what engines said."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.engine import Engine
from slosched.core.table import RequestTable
from slosched.routers.base import EngineStatus, EngineView, FleetSnapshot

_NO_IDS: Ints = np.empty(0, dtype=np.int64)


class PrefixIndex:
    """Which prompt prefixes each engine should have in its cache, by what was sent there.

    An engine is taken to keep what it was sent last, up to the size of its KV cache, as SGLang's and llm-d's
    gateways do without events from the engine.

    Examples
    --------
    >>> index = PrefixIndex([8, 8])
    >>> index.sent(1, np.array([5, 6, 7]))
    >>> index.leading(np.array([5, 6, 9])).tolist()
    [0, 2]
    """

    def __init__(self, capacity: Sequence[int]) -> None:
        self.capacity = list(capacity)
        self._kept: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacity]
        self._holders: dict[int, int] = {}  # id -> bits of the engines that hold it

    def add(self, capacity: int) -> None:
        """One more engine."""
        self.capacity.append(capacity)
        self._kept.append(OrderedDict())

    def leading(self, ids: Ints) -> Ints:
        """How many leading ids each engine holds, shape (engines,)."""
        hit = np.zeros(len(self.capacity), dtype=np.int64)
        alive = (1 << len(self.capacity)) - 1
        for place, one in enumerate(ids.tolist()):
            holders = self._holders.get(one, 0)
            gone = alive & ~holders
            while gone:
                low = gone & -gone
                hit[low.bit_length() - 1] = place
                gone ^= low
            alive &= holders
            if not alive:
                return hit
        for engine in range(len(self.capacity)):
            if alive >> engine & 1:
                hit[engine] = len(ids)
        return hit

    def sent(self, engine: int, ids: Ints) -> None:
        """A prompt with these ids has gone to `engine`."""
        kept, bit = self._kept[engine], 1 << engine
        for one in ids.tolist():
            if one in kept:
                kept.move_to_end(one)
            else:
                kept[one] = None
                self._holders[one] = self._holders.get(one, 0) | bit
        while len(kept) > self.capacity[engine]:
            self._drop(kept.popitem(last=False)[0], bit)

    def lost(self, engine: int) -> None:
        """The engine has lost its cache."""
        for one in self._kept[engine]:
            self._drop(one, 1 << engine)
        self._kept[engine].clear()

    def _drop(self, one: int, bit: int) -> None:
        left = self._holders[one] & ~bit
        if left:
            self._holders[one] = left
        else:
            del self._holders[one]


class _Rows:
    """Some rows in the order they came."""

    def __init__(self) -> None:
        self._rows: Ints = np.empty(64, dtype=np.int64)
        self._count = 0

    def append(self, row: int) -> None:
        """Add a row behind all others."""
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, self._rows])
        self._rows[self._count] = row
        self._count += 1

    def remove(self, row: int) -> None:
        """Take a row out; the others keep their order."""
        # A snapshot may still show the old array: the rest is copied, not moved.
        kept = self._rows[: self._count]
        kept = kept[kept != row]
        self._rows = np.concatenate([kept, np.empty(8, dtype=np.int64)])
        self._count = len(kept)

    @property
    def all(self) -> Ints:
        """The rows."""
        return self._rows[: self._count]


class FleetBooks:
    """What a router knows, kept up to date by whoever carries the requests.

    Parameters
    ----------
    engines
        The engines, by name; more may join later.
    table
        Where the requests' columns are.
    block_tokens
        Tokens per prompt block of the ids given to `sent`.
    """

    def __init__(self, engines: Sequence[Engine], table: RequestTable, *, block_tokens: int = 16) -> None:
        self.table, self.block_tokens = table, block_tokens
        self.engines: list[EngineView] = []
        self.place: dict[int, int] = {}  # row -> engine
        self.pending = _Rows()
        self.prefixes = PrefixIndex([])
        self._at: list[_Rows] = []
        self._ids: dict[int, Ints] = {}  # row -> ids of its prompt blocks
        for engine in engines:
            self.join(engine)

    def join(self, engine: Engine, *, accepts: bool = True) -> int:
        """One more engine; returns its index."""
        self.engines.append(EngineView(name=engine.name, engine=engine, rows=_NO_IDS, accepts=accepts))
        self._at.append(_Rows())
        blocks = engine.limits.kv_tokens // self.block_tokens if engine.limits.prefix_cache else 0
        self.prefixes.add(blocks)
        return len(self.engines) - 1

    def accept(self, engine: int, accepts: bool) -> None:
        """The engine takes requests from now on, or none."""
        self.engines[engine] = replace(self.engines[engine], accepts=accepts)

    def said(self, engine: int, status: EngineStatus) -> None:
        """An engine has published its statistics."""
        self.engines[engine] = replace(self.engines[engine], status=status)

    def arrived(self, row: int, ids: Ints = _NO_IDS) -> None:
        """A request has come; `ids` name its prompt's blocks."""
        self._ids[row] = ids
        self.pending.append(row)

    def sent(self, row: int, engine: int) -> None:
        """A pending request, or one taken back from another engine, has gone to `engine`."""
        if row in self.place:
            self._at[self.place[row]].remove(row)
            self._show(self.place[row])
        else:
            self.pending.remove(row)
        self.place[row] = engine
        self._at[engine].append(row)
        self._show(engine)
        self.prefixes.sent(engine, self._ids[row])

    def ended(self, row: int) -> None:
        """A request has left: answered, refused, lost or hung up."""
        if row in self.place:
            engine = self.place.pop(row)
            self._at[engine].remove(row)
            self._show(engine)
        else:
            self.pending.remove(row)
        del self._ids[row]

    def back(self, row: int) -> None:
        """A request has come back unanswered from an engine: it is pending again."""
        engine = self.place.pop(row)
        self._at[engine].remove(row)
        self._show(engine)
        self.pending.append(row)

    def died(self, engine: int) -> Ints:
        """The engine and its cache are gone; returns the rows that were there, for the caller to place."""
        self.accept(engine, False)
        self.engines[engine] = replace(self.engines[engine], status=None)
        self.prefixes.lost(engine)
        return self._at[engine].all.copy()

    def snapshot(self, now_s: float, *, rows: Sequence[int] | None = None) -> FleetSnapshot:
        """What the router may see; `rows` are the pending ones it is asked about, by default all."""
        pending = self.pending.all if rows is None else np.array(rows, dtype=np.int64)
        if len(pending) > 1:
            pending = pending[np.lexsort((self.table.serial[pending], self.table.arrival_s[pending]))]
        return FleetSnapshot(
            now_s=now_s, table=self.table, engines=tuple(self.engines), pending=pending, hits=self.hits
        )

    def hits(self, row: int) -> Ints:
        """Prompt tokens that each engine should have cached, shape (engines,); the last token never is."""
        ids = self._ids[row]
        most = int(self.table.prompt_tokens[row]) - 1
        return np.minimum(self.prefixes.leading(ids) * self.block_tokens, most)

    def _show(self, engine: int) -> None:
        view = self.engines[engine]
        self.engines[engine] = EngineView(
            name=view.name, engine=view.engine, rows=self._at[engine].all, status=view.status,
            accepts=view.accepts,
        )  # fmt: skip
