"""How the probe is asked for: environment variables and the configuration file.

This module must import nothing heavy: vLLM 0.32 cannot start its CPU worker in a process with numba loaded.
"""

from __future__ import annotations

import os

PROBE = "SLOSCHED_PROBE"
STATES = "SLOSCHED_STATES"
LAYER = "SLOSCHED_STATES_LAYER"
EVERY = "SLOSCHED_STATES_EVERY"

ATTRIBUTE = "slosched_atoms"
"""Attribute of vLLM's runner output: forecast atoms of the whole output length by request id."""

SECONDS = "slosched_probe_s"
"""Attribute beside it: what the probe has taken up to now on the model runner's thread."""


def wanted() -> bool:
    """Whether environment or configuration ask for a probe or for training data."""
    return bool(os.environ.get(STATES) or probe_folder())


def probe_folder() -> str | None:
    """Folder of the probe to serve, from the environment or the configuration."""
    return os.environ.get(PROBE) or _configured()


def _configured() -> str | None:
    if not os.environ.get("SLOSCHED_CONFIG"):
        return None
    from slosched.integrations.vllm.config import load_config

    forecast = getattr(load_config(), "forecast", None)
    probe = getattr(forecast, "probe", None)
    return None if probe is None else str(probe)
