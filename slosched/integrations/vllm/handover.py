"""Whose queue requests wait in: vLLM's own while nobody has an SLO, slosched's from then on."""

from __future__ import annotations

from collections import deque
from typing import Any

from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.queue import SloQueue


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
