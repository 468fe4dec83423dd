"""slosched in vLLM: ``--scheduler-cls slosched.integrations.vllm.Scheduler``.

Importing this package imports neither vLLM nor PyTorch; making a scheduler does.
"""

from __future__ import annotations

from typing import Any


def Scheduler(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """Make the scheduler of a vLLM engine: vLLM's own class, sync or async as configured, plus slosched.

    vLLM calls this with the keywords it passes to its own classes. Settings come from the file that
    ``SLOSCHED_CONFIG`` names; none is needed.
    """
    from slosched.integrations.vllm.adapter import make

    return make(vllm_config, *args, **kwargs)
