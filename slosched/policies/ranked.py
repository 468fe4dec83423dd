"""Policies that rank waiting and running requests together and preempt whoever ranks too low."""

from __future__ import annotations

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy


class RankedPolicy(KeyPolicy):
    """Orders waiting and running requests by one key, smaller first; running ones give way while it is tight.

    Token budget goes to running requests by the same key, and the last of them loses its memory first. A
    preempted request computes its cache again; the systems these policies come from swap it to the host.
    Without `preempt` only the waiting queue is sorted.
    """

    preempts: bool = True
    preempt = True

    def plan(self, snapshot: Snapshot) -> Plan:
        """Sort both queues; preempt running requests behind waiting ones that do not fit."""
        waiting, running = snapshot.waiting, snapshot.running
        mine, theirs = self.key(snapshot, waiting), self.key(snapshot, running)
        by_key = np.argsort(mine, kind="stable")
        if not self.preempt:
            return Plan(snapshot=snapshot, policy=self.name, order=waiting[by_key])
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=waiting[by_key],
            preempt=giving_way(snapshot, waiting[by_key], mine[by_key], running, theirs),
            running_order=running[np.argsort(theirs, kind="stable")],
        )


def giving_way(snapshot: Snapshot, order: Ints, mine: Floats, running: Ints, theirs: Floats) -> Ints:
    """Running rows that give way to waiting ones, the worst first and no more than needed.

    Parameters
    ----------
    snapshot
        The engine.
    order, mine
        Waiting rows in their order and their keys, ascending.
    running, theirs
        Running rows that may be preempted and their keys. One gives way only to a smaller key, and only if
        that request fits then.
    """
    slots, blocks = snapshot.free_seqs, snapshot.free_blocks
    by_worst = np.argsort(-theirs, kind="stable")
    worst, keys = running[by_worst], theirs[by_worst]
    held, need = snapshot.held_blocks(worst), snapshot.needed_blocks(order)
    victims = 0
    for key, blocks_needed in zip(mine.tolist(), need.tolist(), strict=True):
        more = victims
        while (slots <= 0 or blocks < blocks_needed) and more < len(worst) and keys[more] > key:
            slots += 1
            blocks += int(held[more])
            more += 1
        if slots <= 0 or blocks < blocks_needed:
            break
        victims = more
        slots -= 1
        blocks -= blocks_needed
    return worst[:victims]
