"""Takes up forecasts that come late into the scheduler's table: a slow ranker's, and a probe's, which ride on
the runner's output.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from slosched.core.forecast import FORECAST_ATOMS
from slosched.integrations.vllm.probe_settings import ATTRIBUTE, SECONDS


def foretold(controller: Any, output: Any = None, *_: Any) -> None:
    """Replace forecasts by better ones; those of running requests by what came with a step's output.

    Parameters
    ----------
    controller
        The scheduler's controller.
    output
        vLLM's runner output; most steps carry no forecasts.
    """
    ledger, stats = controller.ledger, controller.stats
    ledger.take_up()
    found = getattr(output, ATTRIBUTE, None)
    if not found:
        return
    stats.forecasts["probe"] = stats.forecasts.get("probe", 0) + len(found)
    stats.forecast_s["probe"] = getattr(output, SECONDS, 0.0)
    known = {ledger.rows[name]: atoms for name, atoms in found.items() if name in ledger.rows}
    good = {row: atoms for row, atoms in known.items() if _sound(atoms)}
    for _row in (row for row in known if row not in good):
        stats.failure("probe", ValueError(f"forecast must be {FORECAST_ATOMS} lengths"))
    if good:
        most = np.array([[max(1, int(ledger.requests[row].max_tokens or 1))] for row in good])
        values = np.sort(np.array(list(good.values()), dtype=np.float64), axis=1)
        ledger.table.atoms[list(good)] = np.clip(values, 1.0, most)
        ledger.forecaster.probed(ledger.requests[row].request_id for row in good)


def _sound(atoms: Any) -> bool:
    values = np.asarray(atoms, dtype=np.float64)
    return values.shape == (FORECAST_ATOMS,) and bool(np.isfinite(values).all())
