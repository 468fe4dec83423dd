"""How a refused request ends: as vLLM ends those it aborts itself, with an answer to the client."""

from __future__ import annotations

from typing import Any

REASON = "rejected by slosched"
"""``stop_reason`` of a refused request; its ``finish_reason`` is "abort"."""


def refused_status() -> Any:
    """Status in vLLM of a request that was refused."""
    from vllm.v1.request import RequestStatus

    return RequestStatus.FINISHED_ABORTED


def add_refusals(outputs: Any, client: int, request_ids: list[str]) -> None:
    """Add the end of each request to what a client gets from this step.

    An abort from inside the engine is not told to the front end by itself, which would wait for ever.
    """
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    if client not in outputs:
        outputs[client] = EngineCoreOutputs()
    outputs[client].outputs.extend(
        EngineCoreOutput(
            request_id=request_id, new_token_ids=[], finish_reason=FinishReason.ABORT, stop_reason=REASON
        )
        for request_id in request_ids
    )
