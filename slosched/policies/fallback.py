"""An order that needs no compiled code, for the first moments of a cold process."""

from __future__ import annotations

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.estimate import deadline_s, decode_step_s, hopeless, prefill_s
from slosched.core.forecast import OUTLIVED_GROWTH
from slosched.core.snapshot import Snapshot


def edf_demoted(snapshot: Snapshot) -> Ints:
    """Waiting rows by earliest deadline, hopeless ones last, shortest prefill first: policy edf+d in numpy.

    Examples
    --------
    >>> from slosched import LengthForecast, Request, Slo
    >>> queue = [Request(request_id=str(i), prompt_tokens=100, forecast=LengthForecast.point(9),
    ...                  slo=Slo(ttft_s=limit)) for i, limit in enumerate((9.0, 1e-6, 2.0))]
    >>> edf_demoted(Snapshot.of(queue)).tolist()
    [2, 0, 1]
    """
    rows = snapshot.waiting
    lost = hopeless(snapshot, rows, decode_step_s(snapshot), _remaining_tokens(snapshot, rows))
    key = np.where(lost, prefill_s(snapshot, rows), deadline_s(snapshot, rows))
    order: Ints = rows[np.lexsort((key, lost))]
    return order


def _remaining_tokens(snapshot: Snapshot, rows: Ints) -> Floats:
    """As `slosched.core.remaining.remaining_tokens`."""
    generated = snapshot.table.generated_tokens[rows]
    ahead = snapshot.table.atoms[rows] - generated[:, None]
    alive = ahead > 0
    count = alive.sum(axis=1)
    expected = np.where(alive, ahead, 0.0).sum(axis=1) / np.maximum(1, count)
    return np.maximum(1.0, np.where(count > 0, expected, generated * OUTLIVED_GROWTH))
