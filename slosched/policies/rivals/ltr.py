"""The ranking scheduler of Fu et al. 2024 (arXiv 2408.15792, section 4.2 and Algorithm 1)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import Policy


class Ltr(Policy):
    """Shortest predicted answer first, preemptive, with starvation control.

    All requests, waiting and running, are ranked by (not prioritized, score), the score being the predicted
    output length, fixed at arrival. A request that has not been scheduled for `starvation_steps` steps in a
    row becomes prioritized for a quantum of `quantum_steps` scheduled steps. Running requests that rank
    behind waiting ones give way to them while slots or memory are short.

    The authors' engine swaps a preempted request's cache to host memory; this one computes it again. Steps in
    which a request computes its prompt, or anew what it lost, are therefore not taken from its quantum: a
    prompt longer than the quantum would else lose all its work each time, and nobody would ever end. Their
    head-of-line stop (filling ends at the first request that does not fit) is the engine's own here.

    Parameters
    ----------
    starvation_steps, quantum_steps
        T = 200 and Q = 10 as in the paper's fairness runs, each at least 1.
    most_preemptions
        Most requests preempted per step, at least 0; the paper has no such bound.
    """

    name: ClassVar[str] = "ltr"
    bounded: ClassVar[bool] = True
    preempts: bool = True

    def __init__(
        self, *, starvation_steps: int = 200, quantum_steps: int = 10, most_preemptions: int = 8
    ) -> None:
        require(starvation_steps >= 1, "starvation_steps", "at least 1", starvation_steps)
        require(quantum_steps >= 1, "quantum_steps", "at least 1", quantum_steps)
        require(most_preemptions >= 0, "most_preemptions", "at least 0", most_preemptions)
        self.starvation_steps, self.quantum_steps = starvation_steps, quantum_steps
        self.most_preemptions = most_preemptions
        self._step = 0

    def _score(self, snapshot: Snapshot, rows: Ints, quantum: Floats) -> Floats:
        length = snapshot.table.atoms[rows].mean(axis=1)
        return np.asarray(np.where(quantum[rows] > 0, length - 1e12, length))

    def plan(self, snapshot: Snapshot) -> Plan:
        """Update the starvation counters, rank everybody, preempt those who rank too low."""
        idle = snapshot.table.extra("ltr.idle")
        quantum = snapshot.table.extra("ltr.quantum")
        waiting, running = snapshot.waiting, snapshot.running
        elapsed = snapshot.step - self._step  # steps since the last plan, in which nobody's turn came
        self._step = snapshot.step
        idle[waiting] += elapsed
        idle[running] = 0.0
        t = snapshot.table
        decoding = t.computed_tokens[running] >= t.prompt_tokens[running] + t.generated_tokens[running] - 1
        spent = running[decoding]
        quantum[spent] = np.maximum(0.0, quantum[spent] - elapsed)
        starved = waiting[idle[waiting] >= self.starvation_steps]
        quantum[starved] = self.quantum_steps
        idle[starved] = 0.0
        score = self._score(snapshot, waiting, quantum)
        order = waiting[np.argsort(score, kind="stable")]
        return Plan(
            snapshot=snapshot,
            policy=self.name,
            order=order,
            preempt=self._victims(snapshot, np.sort(score), order, quantum),
        )

    def _victims(self, snapshot: Snapshot, score: Floats, order: Ints, quantum: Floats) -> Ints:
        running = snapshot.running
        theirs = self._score(snapshot, running, quantum)
        worst = running[np.argsort(-theirs, kind="stable")]
        theirs = -np.sort(-theirs)
        needed, held = snapshot.needed_blocks(order), snapshot.held_blocks(worst)
        slots, blocks = snapshot.free_seqs, snapshot.free_blocks
        victims: list[int] = []
        for mine, need in zip(score.tolist(), needed.tolist(), strict=True):
            while (slots <= 0 or blocks < need) and len(victims) < min(self.most_preemptions, len(worst)):
                if theirs[len(victims)] <= mine:
                    return np.array(victims, dtype=np.int64)
                slots += 1
                blocks += int(held[len(victims)])
                victims.append(int(worst[len(victims)]))
            if slots <= 0 or blocks < need:
                break
            slots -= 1
            blocks -= need
        return np.array(victims, dtype=np.int64)
