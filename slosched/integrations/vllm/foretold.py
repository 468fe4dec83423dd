"""Takes up a probe's forecasts, which ride on the runner's output, into the scheduler's table."""

from __future__ import annotations

from typing import Any

import numpy as np

from slosched.forecast import FORECAST_ATOMS
from slosched.integrations.vllm.plugin import ATTRIBUTE


def foretold(controller: Any, output: Any = None, *_: Any) -> None:
    """Replace the forecasts of running requests by those that came with a step's output.

    Parameters
    ----------
    controller
        The scheduler's controller.
    output
        vLLM's runner output; most steps carry no forecasts.
    """
    found = getattr(output, ATTRIBUTE, None)
    if not found:
        return
    ledger = controller.ledger
    table = ledger.table
    for request_id, atoms in found.items():
        row = ledger.rows.get(request_id)
        if row is None:
            continue
        values = np.asarray(atoms, dtype=np.float64)
        if values.shape != (FORECAST_ATOMS,) or not np.isfinite(values).all():
            controller.stats.failure("probe", ValueError(f"forecast must be {FORECAST_ATOMS} lengths"))
            continue
        most = max(1, int(ledger.requests[row].max_tokens or 1))
        table.atoms[row] = np.clip(np.sort(values), 1.0, most)
