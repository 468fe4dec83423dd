"""Random queues for policies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slosched.core.snapshot import Snapshot
from slosched.testing.policies import random_snapshot as make_snapshot


@pytest.fixture(scope="session")
def random_snapshot() -> Callable[..., Snapshot]:
    """Maker of a snapshot from a seed: waiting and running requests of every kind."""
    return make_snapshot
