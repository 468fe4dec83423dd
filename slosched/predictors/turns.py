"""What the past answers of a session or program say of its next one."""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.forecast import LengthForecast

KEPT = 4096
"""Programs remembered; beyond it the one longest silent is forgotten."""

FADE = 0.7
"""Weight of an answer over that of the next one: a program's latest answers tell most. On Claude Code's turns
this lowers the pinball loss by 6.3 %, the plain mean of four by 5.8 %, the last answer alone by 2.3 %."""

SIGMA = 0.8
"""Spread of the logarithm that is told; the blend finds the right one from the answers."""


class PastTurns:
    """Forecasts a program's next answer from its latest ones.

    Examples
    --------
    >>> turns = PastTurns()
    >>> turns.of(7) is None
    True
    >>> for tokens in (100, 900, 900, 900):
    ...     turns.observe(7, tokens)
    >>> bool(500 < turns.of(7)[3:5].mean() < 900)
    True
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def observe(self, program: int, tokens: int) -> None:
        """Learn from an answer of a program, named by a number; a cut one counts as it is."""
        total, weight = self._seen.pop(program, (0.0, 0.0))
        self._seen[program] = (FADE * total + math.log(max(1, tokens)), FADE * weight + 1.0)
        if len(self._seen) > KEPT:
            self._seen.popitem(last=False)

    def of(self, program: int) -> Floats | None:
        """Atoms of its next answer, shape (FORECAST_ATOMS,); None before its first."""
        if program not in self._seen:
            return None
        total, weight = self._seen[program]
        return np.asarray(LengthForecast.lognormal(math.exp(total / weight), SIGMA).atoms)
