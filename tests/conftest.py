"""What holds for every test: no verdict depends on how busy the machine is or how the shell was started."""

from __future__ import annotations

import signal
from importlib.util import find_spec

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if find_spec("hypothesis") is not None:
        from hypothesis import HealthCheck, settings

        # An example that a busy machine makes slow is no fault; the same examples in every run.
        # `--hypothesis-profile=explore` looks for new ones.
        calm = [HealthCheck.too_slow]
        settings.register_profile("steady", deadline=None, suppress_health_check=calm, derandomize=True)
        settings.register_profile("explore", deadline=None, suppress_health_check=calm)
        if not config.getoption("--hypothesis-profile", None):
            settings.load_profile("steady")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job ignores Ctrl-C, and so would the processes that tests start and interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
