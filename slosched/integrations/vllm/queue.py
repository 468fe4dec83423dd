"""The waiting queue handed to vLLM: planned order first, held requests counted but not offered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Ints
from slosched.core.jit import BORROWED, njit
from slosched.integrations.vllm.decision import NOBODY, Offers, plain
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.waiting_rows import ArrivalLine, smallest

Entry = tuple[float, float, int, int]
"""Key, arrival, serial and row of a waiting request."""

OFFERED, HELD, FENCED = 0, 1, 2
"""Whether a row may be admitted: it may; not in this step, unless it starves; not at all in this step."""

NO_OFFERS = Offers.of(NOBODY, NOBODY)

CHUNK = 64
"""Requests of the order turned into Python objects at a time: more than one step usually admits."""


class SloQueue:
    """A vLLM ``RequestQueue`` over rows of a ledger.

    ``bool`` asks whether anyone may be admitted, ``len`` counts everyone: vLLM's loop tests truthiness
    before it admits and uses the length for its counts, so a held request waits without further ado.

    Requests come out in the planned order (`set_order`), or by keys given once (`set_keys`), then, when that
    is used up, in the native order, which is exactly that of vLLM's first-come-first-served queue: newcomers
    at the tail, preempted and skipped requests at the head.

    Parameters
    ----------
    ledger
        Gives each request its row.

    Attributes
    ----------
    line
        Everybody in it, by arrival.
    preempted
        Rows of those that came back preempted, by request id.
    admitted, joined
        Rows that were taken out, and that joined, since the adapter last cleared these lists.
    keyed
        Whether requests come out by their keys; the adapter's choice.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.line = ArrivalLine(ledger.table)
        self._length = 0
        self.preempted: dict[str, int] = {}
        self._barred: NDArray[np.int8] = np.zeros(len(ledger.queued), dtype=np.int8)  # by row
        _bar(self._barred, ledger.queued, plain(NOBODY))  # loaded now, not while an engine waits
        self._bars = 0  # rows that are not `OFFERED`
        self._offers = NO_OFFERS
        self._cursor = 0
        self._front: list[int] = []
        self._planned = False
        self._head_rank, self._tail_rank = -1, 0
        self.keyed = False
        self._heap: list[Entry] = []
        self._entry: dict[int, Entry] = {}
        self._aside: list[Entry] = []
        self.admitted: list[int] = []
        self.joined: list[int] = []
        self._adapters: dict[int, int] = {}
        self._present: set[int] | None = None
        self._most_adapters = 0

    # vLLM's interface -------------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Put a request at the native tail."""
        row = self._ledger.row(request)
        self._ledger.rank[row] = self._tail_rank
        self._tail_rank += 1
        self._join(row)

    def prepend_request(self, request: Any) -> None:
        """Put a request at the native head: it was preempted, or skipped in this step."""
        row = self._ledger.row(request)
        if self._ledger.returned(row, request):
            self.preempted[request.request_id] = row
        self._ledger.rank[row] = self._head_rank
        self._head_rank -= 1
        self._join(row)
        if not self._planned:
            self._front.clear()
            self._cursor = len(self._offers.rows)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Put requests at the native head, the last one first, as vLLM's own queue does."""
        for request in requests:
            self.prepend_request(request)

    def peek_request(self) -> Any:
        """The request to admit next."""
        return self._ledger.requests[self._next()]

    def pop_request(self) -> Any:
        """Take out the request to admit next."""
        row = self._next()
        self._front.pop()
        if self._present is not None and row in self._adapters:
            self._present.add(self._adapters[row])
        self._leave(row)
        if self._present is not None:
            self._block_adapters()
        self.admitted.append(row)
        return self._ledger.requests[row]

    def remove_request(self, request: Any) -> None:
        """Take out a request wherever it stands."""
        row = self._ledger.rows.get(request.request_id)
        if row is None or not self._ledger.queued[row]:
            raise ValueError(f"request {request.request_id} is not in the queue.")
        self._leave(row)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Take out those of the requests that are in the queue."""
        for request in requests:
            row = self._ledger.rows.get(request.request_id)
            if row is not None and self._ledger.queued[row]:
                self._leave(row)

    def __bool__(self) -> bool:
        return self._length > self._bars

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        """Everybody, held ones too, in the order last planned and then in the native one."""
        rows = self.line.rows
        order = rows[np.argsort(self._ledger.rank[rows], kind="stable")]
        if self._planned or self.keyed:
            first = np.array(self._ahead(), dtype=np.int64)
            order = np.concatenate([first, order[~np.isin(order, first)]])
        return iter([self._ledger.requests[row] for row in order.tolist()])

    def __getitem__(self, place: int) -> Any:
        """The request at a place of that order; for inspection, not for the loop."""
        return list(self)[place]

    def __contains__(self, request: Any) -> bool:
        row = self._ledger.rows.get(request.request_id)
        return row is not None and bool(self._ledger.queued[row])

    # the adapter's side -----------------------------------------------------------------------------------

    def set_order(self, offers: Offers) -> None:
        """Offer these rows first, in this order; those whose serial number is another now are passed over."""
        self._offers = offers
        self._cursor, self._planned = 0, True
        self._front.clear()

    def set_keys(self, rows: Sequence[int], keys: Sequence[float]) -> None:
        """While `keyed`, offer these rows by (key, arrival, serial); each keeps its key until it leaves."""
        t = self._ledger.table
        for row, key in zip(rows, keys, strict=True):
            if self._ledger.queued[row]:
                entry = (key, float(t.arrival_s[row]), int(t.serial[row]), row)
                self._entry[row] = entry
                heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entry) + CHUNK:
            self._heap = list(self._entry.values())
            heapify(self._heap)
            self._aside.clear()
        self._front.clear()

    def put_first(self, row: int) -> bool:
        """Offer this row before all others, even if it is held; False if it is fenced."""
        if self._bars:
            if self._barred[row] == FENCED:
                return False
            self._offer(row)
        if not self._front:
            self._refill()
        self._front.append(row)
        return True

    def clear_order(self) -> None:
        """Go back to the native order."""
        if self._planned:
            self._offers = NO_OFFERS
            self._cursor, self._planned = 0, False
            self._front.clear()

    def block(self, fenced: Sequence[int], held: Ints = NOBODY) -> None:
        """Offer none of these rows, until the next call."""
        self._present = None
        if self.keyed:
            self._front.clear()
        if not (fenced or len(held) or self._bars or self._aside):
            return
        while self._aside:
            heappush(self._heap, self._aside.pop())
        if self._bars or len(held):
            self._bars = _bar(self._barred, self._ledger.queued, plain(held))
        self._fence(fenced)
        self._begin_anew()

    def block_all(self, fenced: Sequence[int]) -> None:
        """Offer nobody, until the next call of `block`; those who are not fenced could still be put first."""
        self.block(())
        self._barred[:] = self._waits
        self._bars = self._length
        self._fence(fenced)
        self._begin_anew()

    @property
    def _waits(self) -> NDArray[np.int8]:
        """Whether a row stands in the queue, as `HELD` or `OFFERED`."""
        return self._ledger.queued[: len(self._barred)].view(np.int8)

    def _fence(self, rows: Sequence[int]) -> None:
        barred, queued = self._barred, self._ledger.queued
        for row in rows:
            if queued[row]:
                self._bars += int(barred[row] == OFFERED)
                barred[row] = FENCED

    def hold(self, row: int) -> None:
        """Offer this row no more, besides those blocked, until the next call of `block`."""
        if self._barred[row] == OFFERED:
            self._barred[row] = HELD
            self._bars += 1
        self._begin_anew()

    def _offer(self, row: int) -> None:
        """Offer this row again."""
        if self._barred[row] != OFFERED:
            self._barred[row] = OFFERED
            self._bars -= 1

    def _begin_anew(self) -> None:
        """Go through the order from its beginning: who is offered has changed."""
        self._front.clear()
        self._cursor = 0 if self._planned else len(self._offers.rows)

    def limit_adapters(self, present: set[int], most: int) -> None:
        """Offer nobody with whom more than `most` adapters would run, until the next `block`.

        Parameters
        ----------
        present
            Adapters of all running requests; those of requests admitted meanwhile are added.
        most
            Adapters that may run at once.
        """
        self._present, self._most_adapters = present, most
        self._block_adapters()

    def _block_adapters(self) -> None:
        present = self._present
        if present is None or not self._adapters or len(present) < self._most_adapters:
            return
        self._barred[[row for row, adapter in self._adapters.items() if adapter not in present]] = FENCED
        self._bars = int(np.count_nonzero(self._barred))

    @property
    def native(self) -> bool:
        """Whether requests come out first come, first served, nobody held or fenced."""
        return not self._planned and not self._bars and not self.keyed

    @property
    def calm(self) -> bool:
        """Whether nobody is preempted, barred or new, so that `block` with nobody would change nothing."""
        return not (self.preempted or self._bars or self._aside or self.joined) and self._present is None

    def _join(self, row: int) -> None:
        self.line.insert(row)
        self._length += 1
        self.joined.append(row)
        self._ledger.queued[row] = True
        if row >= len(self._barred):
            more = len(self._ledger.queued) - len(self._barred)
            self._barred = np.concatenate([self._barred, np.zeros(more, dtype=np.int8)])
        adapter = adapter_of(self._ledger.requests[row])
        if adapter:
            self._adapters[row] = adapter

    def _leave(self, row: int) -> None:
        self.line.remove(row)
        self._length -= 1
        self._ledger.queued[row] = False
        if self._adapters:
            self._adapters.pop(row, None)
        if self._entry:
            self._entry.pop(row, None)
        if self._bars:
            self._offer(row)
        if self.preempted:
            self.preempted.pop(self._ledger.table.request_ids[row], None)

    def _ahead(self) -> list[int]:
        """Rows that come before the native order, in their order."""
        if self.keyed:
            return [entry[3] for entry in sorted(self._entry.values())]
        return self._alive(0, len(self._offers.rows)).tolist()  # type: ignore[no-any-return]

    def _alive(self, begin: int, end: int) -> Ints:
        """Those of this part of the order who still wait."""
        rows, serial = self._offers.rows[begin:end], self._offers.serial[begin:end]
        alive: Ints = rows[self._ledger.queued[rows] & (self._ledger.table.serial[rows] == serial)]
        return alive

    def _smallest(self) -> int | None:
        """The row of the smallest key that may be admitted; entries of rows that have left are dropped."""
        heap = self._heap
        while heap:
            entry = heap[0]
            row = entry[3]
            if self._entry.get(row) is not entry:
                heappop(heap)
            elif self._bars and self._barred[row]:
                self._aside.append(heappop(heap))
            else:
                return row
        return None

    def _next(self) -> int:
        queued = self._ledger.queued
        while True:
            while self._front:
                row = self._front[-1]
                if queued[row] and not (self._bars and self._barred[row]):
                    return row
                self._front.pop()
            if not self._refill():
                raise IndexError("no request can be admitted.")

    def _refill(self) -> bool:
        """Turn the next chunk of the order into the front; False if nobody is left."""
        if self.keyed:
            row = self._smallest()
            if row is not None:
                self._front = [row]
                return True
        if self._cursor == 0 and self._offers.first:
            offered, queued, serial = self._offers.first, self._ledger.queued, self._ledger.table.serial
            self._cursor = len(offered)
            self._front = [row for row, own in reversed(offered) if queued[row] and serial[row] == own]
            return True
        if self._cursor < len(self._offers.rows):
            begin, self._cursor = self._cursor, self._cursor + CHUNK
            self._front = self._alive(begin, self._cursor)[::-1].tolist()
            return True
        if not self:
            return False
        rows = self.line.rows
        if self._bars:
            rows = rows[self._barred[rows] == OFFERED]
        rank = self._ledger.rank[rows]
        first = smallest(rank, CHUNK)
        self._front = rows[first][::-1].tolist()
        return True


@njit(**BORROWED)
def _bar(barred: NDArray[np.int8], queued: NDArray[np.bool_], held: Ints) -> int:
    """Bar those of the rows that stand in the queue, and nobody else; returns how many."""
    barred[:] = OFFERED
    count = 0
    for row in held:
        if queued[row] and barred[row] == OFFERED:
            barred[row] = HELD
            count += 1
    return count


class Handover:
    """Puts slosched's queue into a scheduler: at once, or when the first request with an SLO comes.

    Parameters
    ----------
    queue, ledger
        slosched's queue, and the rows of the requests in it.
    patient
        Whether vLLM's queue may stay until then, since the policy would not change its order. It stays only
        if it is the first-come-first-served one.

    Attributes
    ----------
    stock
        vLLM's queue while requests wait there, else None.
    """

    def __init__(self, queue: SloQueue, ledger: Ledger, *, patient: bool) -> None:
        self._queue, self._ledger, self._patient = queue, ledger, patient
        self.stock: Any = None

    def begin(self, scheduler: Any) -> None:
        """Take a scheduler whose queue is empty."""
        stock = scheduler.waiting
        if self._patient and isinstance(stock, deque) and len(stock) == 0:
            self.stock = stock
        else:
            scheduler.waiting = self._queue

    def arriving(self, scheduler: Any, request: Any) -> None:
        """A request is about to be handed to vLLM: move everybody if it has an SLO."""
        if self.stock is None:
            return
        if request.request_id not in self._ledger.rows:
            self._ledger.row(request)
        if self._ledger.with_slo or getattr(request, "resumable", False):
            self._queue.prepend_requests(list(reversed(self.stock)))
            scheduler.waiting = self._queue
            self.stock.clear()
            self.stock = None


def adapter_of(request: Any) -> int:
    """Number of the LoRA adapter that a request asks for; 0 for none."""
    adapter = getattr(request, "lora_request", None)
    return 0 if adapter is None else int(adapter.lora_int_id)
