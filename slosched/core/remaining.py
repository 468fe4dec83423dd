"""Expected tokens still to come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slosched.core.forecast import OUTLIVED_GROWTH
from slosched.core.jit import njit


def remaining_tokens(
    atoms: NDArray[np.float64], rows: NDArray[np.int64], generated_tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Expected tokens still to come for some rows of a forecast table, at least 1 each.

    Parameters
    ----------
    atoms
        Forecast table, shape (capacity, atoms), ascending within a row. Not changed.
    rows
        Rows asked for, shape (n,).
    generated_tokens
        Tokens already generated, indexed by row, shape (capacity,).

    Returns
    -------
    ndarray
        Shape (n,): mean of (atom - generated) over the atoms above what was generated; for a request that
        has outlived all its atoms, `OUTLIVED_GROWTH` of its present length.
    """
    # The constant is handed over: a kernel's cache would not notice that another file changed.
    return np.asarray(_remaining_tokens(atoms, rows, generated_tokens, OUTLIVED_GROWTH))


@njit(nogil=True, cache=True)
def _remaining_tokens(
    atoms: NDArray[np.float64],
    rows: NDArray[np.int64],
    generated_tokens: NDArray[np.int64],
    growth: float,
) -> NDArray[np.float64]:
    out = np.empty(rows.shape[0])
    for i in range(rows.shape[0]):
        row = rows[i]
        generated = generated_tokens[row]
        total = 0.0
        alive = 0
        for k in range(atoms.shape[1] - 1, -1, -1):
            if atoms[row, k] <= generated:
                break
            total += atoms[row, k] - generated
            alive += 1
        out[i] = total / alive if alive > 0 else generated * growth
        if out[i] < 1.0:
            out[i] = 1.0
    return out
