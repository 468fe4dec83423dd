"""A scheduler for trials: first come, first served, default settings, whatever is configured."""

from __future__ import annotations

from typing import Any

from slosched.integrations.vllm.adapter import adapted, attach, base_class
from slosched.integrations.vllm.clock import WallClock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.state import Learned
from slosched.policies import policy


def trial_factory(vllm_config: Any, **keywords: Any) -> Any:
    """Make the scheduler as vLLM would call its own class."""
    scheduler = adapted(base_class(vllm_config))(vllm_config=vllm_config, **keywords)
    config = Config(policy="fcfs")
    learned = Learned(config.engine)
    attach(scheduler, vllm_config, config, WallClock(), policy("fcfs"), learned)
    return scheduler
