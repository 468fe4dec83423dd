"""Refused requests: they end as those that vLLM aborts itself, with an answer to the client."""

from __future__ import annotations

from typing import Any

from slosched.core.arrays import Ints
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.refusal_reason import REASON


class Refusals:
    """Ends waiting requests unanswered, and tells their clients with the next step's output.

    An abort from inside the engine is not told to the front end by itself, which would wait for ever.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._untold: dict[int, list[str]] = {}
        self._ending: dict[str, bool] = {}

    def __contains__(self, request_id: str) -> bool:
        """Whether this request is being refused at this moment."""
        return request_id in self._ending

    def refuse(self, scheduler: Any, rows: Ints) -> None:
        """End those of the waiting rows that are still unanswered."""
        from vllm.v1.request import RequestStatus

        ids = []
        for row in rows.tolist():
            request = self._ledger.requests[row]
            waits = self._ledger.queued[row] and request.status.name in ("WAITING", "PREEMPTED")
            if waits and not getattr(request, "resumable", False):
                ids.append(request.request_id)
                self._untold.setdefault(getattr(request, "client_index", 0), []).append(request.request_id)
        if ids:
            self._ending = dict.fromkeys(ids, True)
            scheduler.finish_requests(ids, RequestStatus.FINISHED_ABORTED)
            self._ending = {}

    def answer(self, outputs: Any) -> None:
        """Add the end of each refused request to what its client gets from this step."""
        if not self._untold:
            return
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

        refused, self._untold = self._untold, {}
        for client, ids in refused.items():
            if client not in outputs:
                outputs[client] = EngineCoreOutputs()
            outputs[client].outputs.extend(
                EngineCoreOutput(
                    request_id=request_id, new_token_ids=[], finish_reason=FinishReason.ABORT,
                    stop_reason=REASON,
                )
                for request_id in ids
            )  # fmt: skip
