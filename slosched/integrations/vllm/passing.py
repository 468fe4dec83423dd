"""Lets a step go by running requests: they stay in vLLM's running list, so that every limit counts them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class PassedOver:
    """Running requests that get no token in one step; they keep their memory and their place.

    vLLM asks how many tokens each running request has to compute: those it has, plus placeholders for
    tokens still on their way, less those computed. It goes on to the next one where the answer is none.
    For the step the placeholders are set so that it is none. The request stays in ``scheduler.running``,
    where vLLM counts it for slots, adapters and every other limit.

    Where memory runs short, vLLM takes it from the end of the running list. So these requests stand at its
    beginning meanwhile, and lose nothing to a step that they take no part in.

    Parameters
    ----------
    scheduler
        vLLM's scheduler.
    ids
        Names of the requests to pass over; those that do not run are left out.
    """

    def __init__(self, scheduler: Any, ids: Collection[str]) -> None:
        running = scheduler.running
        passed = [request for request in running if request.request_id in ids]
        self.count = len(passed)
        self._before = list(running)
        self._placeholders: list[tuple[Any, int, int]] = []
        for request in passed:
            known, own = request.num_tokens_with_spec, request.num_output_placeholders
            disguise = request.num_computed_tokens - known
            request.num_output_placeholders = disguise
            self._placeholders.append((request, own, disguise))
        running[:] = [*passed, *(request for request in running if request.request_id not in ids)]

    def put_back(self, scheduler: Any) -> None:
        """Give back placeholders and places; whom vLLM has preempted in the meantime stays as he is."""
        if not self._placeholders:
            return
        for request, own, disguise in self._placeholders:
            if request.status.name == "RUNNING" and request.num_output_placeholders == disguise:
                request.num_output_placeholders = own
        here = {request.request_id: request for request in scheduler.running}
        old = [request for request in self._before if here.pop(request.request_id, None) is not None]
        scheduler.running[:] = [*old, *here.values()]
        self._placeholders = []


def adapter_of(request: Any) -> int:
    """Number of the LoRA adapter that a request asks for; 0 for none."""
    adapter = getattr(request, "lora_request", None)
    return 0 if adapter is None else int(adapter.lora_int_id)


def can_pass_over(scheduler: Any) -> bool:
    """Whether requests of this scheduler may be passed over.

    An encoder-cache connector is asked for every running request and would fetch for those passed over. A
    model with Mamba states aligned to blocks has its chunks cut by a rule that expects tokens to cut.
    """
    aligned = getattr(scheduler, "need_mamba_block_aligned_split", False)
    return getattr(scheduler, "ec_connector", None) is None and not aligned
