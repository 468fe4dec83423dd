"""What this vLLM's scheduler offers: probed, not looked up by version."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from slosched.integrations.vllm.queue import SloQueue

FULL, ORDER_ONLY, OBSERVE_ONLY = "full", "order-only", "observe-only"
CONTAINERS = ("waiting", "running", "requests", "finished_req_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """How far slosched may go with a scheduler, and why no further.

    Levels: ``full`` orders, holds and preempts; ``order-only`` orders and holds; ``observe-only`` leaves the
    engine as it is and measures.
    """

    level: str
    reasons: tuple[str, ...] = ()
    preempt_keyword: bool = False


def probe(scheduler: Any, vllm_config: Any, queue_class: Any) -> Capability:
    """Probe a scheduler that has just been made.

    Parameters
    ----------
    scheduler
        The scheduler object.
    vllm_config
        Its configuration.
    queue_class
        vLLM's ``RequestQueue``.
    """
    unsafe = list(_unsafe(scheduler, vllm_config, queue_class))
    if unsafe:
        return Capability(level=OBSERVE_ONLY, reasons=tuple(unsafe))
    reasons = list(_no_preemption(scheduler))
    if reasons:
        return Capability(level=ORDER_ONLY, reasons=tuple(reasons))
    parameters = inspect.signature(scheduler._preempt_request).parameters
    return Capability(level=FULL, preempt_keyword="drop_stale_output" in parameters)


def _unsafe(scheduler: Any, vllm_config: Any, queue_class: Any) -> list[str]:
    found = []
    wanted: frozenset[str] = getattr(queue_class, "__abstractmethods__", frozenset())
    missing = sorted(wanted - set(dir(SloQueue)))
    if missing:
        found.append(f"this vLLM's queue has methods unknown to slosched: {', '.join(missing)}")
    missing = [name for name in CONTAINERS if not hasattr(scheduler, name)]
    if missing:
        found.append(f"this vLLM's scheduler lacks {', '.join(missing)}")
    elif len(scheduler.waiting) > 0:
        found.append("requests are waiting already")
    parallel = getattr(vllm_config, "parallel_config", None)
    if getattr(parallel, "distributed_executor_backend", None) == "external_launcher":
        found.append("external_launcher runs one scheduler per rank, which must not depend on clocks")
    return found


def _no_preemption(scheduler: Any) -> list[str]:
    preempt = getattr(scheduler, "_preempt_request", None)
    if preempt is None:
        return ["this vLLM has no way to preempt one request"]
    required = [
        p
        for p in inspect.signature(preempt).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if len(required) != 2:
        return ["this vLLM preempts in a way unknown to slosched"]
    found = []
    if getattr(scheduler, "connector", None) is not None:
        if not hasattr(scheduler, "reset_preempted_req_ids"):
            found.append("with a KV connector this vLLM does not tell the workers of preemptions in time")
        transfer = getattr(scheduler.vllm_config, "kv_transfer_config", None)
        if getattr(transfer, "is_kv_consumer", False) and not getattr(transfer, "is_kv_producer", False):
            found.append("a decode instance would recompute prefills done elsewhere")
    if getattr(scheduler, "defer_block_free", False):
        found.append("blocks of preempted requests would not be free at once")
    return found
