"""Routers that most systems ship: in turn, at random, by load, by prefix, by session."""

from __future__ import annotations

import zlib
from typing import ClassVar

import numpy as np

from slosched.core.errors import require
from slosched.routers.base import FleetSnapshot, PickRouter


class RoundRobin(PickRouter):
    """The engines in turn."""

    name: ClassVar[str] = "round-robin"

    def __init__(self) -> None:
        self._last = -1

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """The next engine that accepts requests."""
        after = [i for i in fleet.open if i > self._last]
        self._last = after[0] if after else fleet.open[0]
        return self._last


class Random(PickRouter):
    """Any engine, uniformly."""

    name: ClassVar[str] = "random"

    def __init__(self, *, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """A draw."""
        return int(self._rng.choice(fleet.open))


class PowerOfTwo(PickRouter):
    """The less loaded of two engines drawn at random: Ray Serve's default (Mitzenmacher 2001).

    Load is the number of requests sent there whose end has not been seen; a tie goes to the first drawn.
    """

    name: ClassVar[str] = "power-of-two"

    def __init__(self, *, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """The less loaded of two."""
        two: list[int] = self._rng.permutation(fleet.open)[:2].tolist()
        return min(two, key=lambda i: len(fleet.engines[i].rows))


class LeastRequests(PickRouter):
    """The engine with the fewest requests whose end has not been seen; the first of equals."""

    name: ClassVar[str] = "least-requests"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """The engine with the fewest requests."""
        return min(fleet.open, key=lambda i: len(fleet.engines[i].rows))


class LeastTokens(PickRouter):
    """The engine with the fewest tokens still to compute, prompts and expected answers together."""

    name: ClassVar[str] = "least-tokens"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """The engine with the fewest tokens."""
        ahead = fleet.tokens_ahead()
        return min(fleet.open, key=lambda i: float(ahead[i]))


class PrefixAffinity(PickRouter):
    """The engine whose cache holds most of the prompt, unless loads are out of balance.

    As SGLang's gateway (``cache_aware``): where at least `share` of the prompt is cached, the engine with the
    longest match; else the one with the fewest requests. Loads are out of balance if the most
    loaded engine has `absolute` requests more and `relative` times as many as the least loaded one; then the
    fewest requests decide alone.
    """

    name: ClassVar[str] = "prefix-affinity"

    def __init__(self, *, share: float = 0.3, absolute: int = 64, relative: float = 1.5) -> None:
        require(0 <= share <= 1, "share", "a number from 0 to 1", share)
        self.share, self.absolute, self.relative = share, absolute, relative

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """The longest match, or the fewest requests."""
        load = [len(fleet.engines[i].rows) for i in fleet.open]
        least = fleet.open[load.index(min(load))]
        if max(load) - min(load) > self.absolute and max(load) > self.relative * min(load):
            return least
        hits = fleet.hits(row)
        best = max(fleet.open, key=lambda i: (int(hits[i]), -len(fleet.engines[i].rows)))
        return best if hits[best] >= self.share * fleet.table.prompt_tokens[row] and hits[best] > 0 else least


class SessionAffinity(PickRouter):
    """Always the same engine for one session: rendezvous hashing of what the prompt begins with.

    A request whose beginning is unknown is a session of its own. When an engine leaves, only its sessions
    move (Thaler and Ravishankar 1998).
    """

    name: ClassVar[str] = "session-affinity"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """The engine with the highest hash."""
        t = fleet.table
        begins = int(t.prefix_index[row])
        key = f"session {begins}" if begins >= 0 else f"request {int(t.serial[row])}"
        return max(fleet.open, key=lambda i: zlib.crc32(f"{key}|{i}".encode()))
