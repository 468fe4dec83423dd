"""Routers that score every engine for one request: LMetric, PolyServe, llm-d."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.errors import require
from slosched.routers.base import FleetSnapshot, PickRouter
from slosched.routers.estimate import expected


class LMetric(PickRouter):
    """LMetric (arXiv 2603.15202): the least product of prompt tokens to compute and requests in the batch.

    Prompt tokens are the newcomer's, less what the engine has cached, and those queued before it. One is
    added to the requests, so that an idle engine is judged by the tokens.
    """

    name: ClassVar[str] = "lmetric"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """The least product."""
        seen = expected(row, fleet)
        score = (seen.prompt_tokens + seen.queued_tokens) * (fleet.outstanding() + 1.0)
        return min(fleet.open, key=lambda i: float(score[i]))


class PolyServe(PickRouter):
    """After PolyServe (arXiv 2507.17769): engines by tier of TPOT limit, the most loaded that still attains.

    A request's tier is its TPOT limit rounded down to a power of `ratio`. Engines whose requests are of the
    same tier come first, then idle ones, then the rest; among them the most loaded engine that is expected to
    keep the TTFT limit, and the TPOT limit for all. If none does: the least expected TTFT.

    Parameters
    ----------
    ratio
        Width of a tier, above 1.
    """

    name: ClassVar[str] = "polyserve"

    def __init__(self, *, ratio: float = 2.0) -> None:
        require(1 < ratio < np.inf, "ratio", "a finite number above 1", ratio)
        self.ratio = ratio

    def _tier(self, tpot_s: float) -> float:
        return float(np.floor(np.log(tpot_s) / np.log(self.ratio))) if np.isfinite(tpot_s) else np.inf

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """The most loaded engine of the tier that still attains."""
        t, seen = fleet.table, expected(row, fleet)
        tier = self._tier(float(t.tpot_s[row]))
        found: list[tuple[int, int, int]] = []
        for i in fleet.open:
            rows = fleet.engines[i].rows
            tightest = min(float(t.tpot_s[rows].min(initial=np.inf)), float(t.tpot_s[row]))
            if seen.ttft_s[i] > t.ttft_s[row] or seen.tpot_s[i] > tightest:
                continue
            theirs = self._tier(float(t.tpot_s[rows].min(initial=np.inf)))
            group = 0 if len(rows) and theirs == tier else 1 if not len(rows) else 2
            found.append((group, -len(rows), i))
        if found:
            return min(found)[2]
        return min(fleet.open, key=lambda i: float(seen.ttft_s[i]))


class LlmdHeadroom(PickRouter):
    """llm-d's SLO scorer: the engine with the least headroom that is not negative (best fit), or with most.

    Headroom is what a limit leaves over the prediction, weighed `ttft_share` for TTFT and the rest for TPOT;
    a limit that was not given leaves none. Where no engine has room: the least lack. Predictions are of the
    router's own model here; llm-d trains one online.

    Parameters
    ----------
    ttft_share
        Weight of TTFT, from 0 to 1; llm-d's default is .8.
    most
        Whether to take the engine with the most headroom instead, llm-d's other strategy.
    """

    name: ClassVar[str] = "llm-d-headroom"

    def __init__(self, *, ttft_share: float = 0.8, most: bool = False) -> None:
        require(0 <= ttft_share <= 1, "ttft_share", "a number from 0 to 1", ttft_share)
        require(isinstance(most, bool), "most", "true or false", most)
        self.ttft_share, self.most = ttft_share, most

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """Best fit, or least lack."""
        t, seen = fleet.table, expected(row, fleet)
        ttft = t.ttft_s[row] if np.isfinite(t.ttft_s[row]) else t.e2e_s[row]
        room = np.zeros((2, len(fleet.engines)))
        if np.isfinite(ttft):
            room[0] = ttft - seen.ttft_s
        if np.isfinite(t.tpot_s[row]):
            room[1] = t.tpot_s[row] - seen.tpot_s
        score = self.ttft_share * room[0] + (1 - self.ttft_share) * room[1]
        fits = [i for i in fleet.open if room[0, i] >= 0 and room[1, i] >= 0]
        if fits and not self.most:
            return min(fits, key=lambda i: (float(score[i]), len(fleet.engines[i].rows)))
        return max(fleet.open, key=lambda i: (float(score[i]), -len(fleet.engines[i].rows)))
