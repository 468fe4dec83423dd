"""The rules that compete, and which of them leads."""

from __future__ import annotations

import itertools

import numpy as np

from slosched.core.table import Floats, Ints
from slosched.planner import rollout as r

ORDERS = ((1.0, 0.0), (1.0, 1.0), (1.0, 4.0), (1.0, 16.0), (0.0, 1.0))
CAUTIONS = (1.0, 2.0)


def family() -> Floats:
    """All rules, shape (rules, RULE_SIZE)."""
    rows = []
    for (urgency, price), hold, sit, whole, caution, answer, least in itertools.product(
        ORDERS, (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), CAUTIONS, (0.0, 1.0), (16.0, 128.0)
    ):
        rows.append((urgency, price, np.inf, hold, sit, whole, caution, answer, least))
    return np.array(rows)
