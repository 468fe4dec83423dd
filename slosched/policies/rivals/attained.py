"""Policies without predictions: whoever has had the least service goes first."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import require
from slosched.core.estimate import prefill_s
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.departures import Departures
from slosched.policies.ranked import RankedPolicy


class Las(RankedPolicy):
    """Least attained service: fewest output tokens so far first, preemptive.

    Key floor(g / quantum). The textbook rule (foreground-background) is a quantum of 1; where preemption
    costs the computation of the whole context, equals then take turns token by token and the engine hardly
    gets on. The default is that of the LAS in JITServe's released code.

    Parameters
    ----------
    quantum_tokens
        Output tokens a request gets before it counts as served more, at least 1; 400 in JITServe's code.
    preempt
        Whether running requests give way; if not, those are ordered only that memory ran short for.
    """

    name: ClassVar[str] = "las"
    bounded: ClassVar[bool] = True

    def __init__(self, *, quantum_tokens: int = 400, preempt: bool = True) -> None:
        require(quantum_tokens >= 1, "quantum_tokens", "at least 1", quantum_tokens)
        self.quantum_tokens, self.preempt = quantum_tokens, preempt

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Whole quanta of output tokens received."""
        return np.asarray(np.floor(snapshot.table.generated_tokens[rows] / self.quantum_tokens))


class Mlfq(RankedPolicy):
    """Skip-join multi-level feedback queue, as in FastServe (arXiv 2305.05920), preemptive.

    Level l has a quantum of `quantum_s` · `growth`^l seconds on the engine. A newcomer joins the highest
    level whose quantum holds its predicted prefill. A request that has used up its quantum sinks one level.
    One that has waited `promote_s` goes to the top, with the quantum of the level that holds what it has to
    compute again. Lower levels first, by arrival within a level; preemption between any two steps.

    FastServe swaps caches to the host ahead of need; here a preempted request computes its cache again, which
    counts as service.

    Parameters
    ----------
    quantum_s
        Quantum of the top level, above 0; 0.03 s and 0.02 s in the runs of Fu et al. 2024.
    growth
        Ratio of the quanta of neighbouring levels, above 1; 2 there, and 10 in others of their runs.
    levels
        Number of levels, at least 1; the last is served to the end. Ours: quanta up to 61 s.
    promote_s
        Wait after which a request is promoted, above 0. Ours: no published value is known to us.
    """

    name: ClassVar[str] = "mlfq"
    bounded: ClassVar[bool] = True

    def __init__(
        self, *, quantum_s: float = 0.03, growth: float = 2.0, levels: int = 12, promote_s: float = 30.0
    ) -> None:
        require(quantum_s > 0, "quantum_s", "a number of seconds above 0", quantum_s)
        require(1 < growth < np.inf, "growth", "a finite number above 1", growth)
        require(levels >= 1, "levels", "at least 1", levels)
        require(promote_s > 0, "promote_s", "a number of seconds above 0", promote_s)
        self.promote_s = promote_s
        self.quanta_s = quantum_s * growth ** np.arange(levels)
        self._now_s = -np.inf

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Level, 0 at the top."""
        return snapshot.table.extra("mlfq.level", fill=-1.0)[rows]

    def plan(self, snapshot: Snapshot) -> Plan:
        """Move requests between levels, then rank everybody."""
        self._settle(snapshot)
        return super().plan(snapshot)

    def _settle(self, snapshot: Snapshot) -> None:
        level = snapshot.table.extra("mlfq.level", fill=-1.0)
        left_s = snapshot.table.extra("mlfq.left_s")
        since_s = snapshot.table.extra("mlfq.since_s", fill=np.nan)
        waiting, running, now_s = snapshot.waiting, snapshot.running, snapshot.now_s
        everyone = np.concatenate([waiting, running])
        new = everyone[level[everyone] < 0]
        elapsed_s = now_s - self._now_s if np.isfinite(self._now_s) else 0.0
        self._now_s = now_s
        last = len(self.quanta_s) - 1
        old = running[level[running] >= 0]
        left_s[old] -= elapsed_s
        while len(spent := old[(left_s[old] <= 0) & (level[old] < last)]):
            level[spent] += 1
            left_s[spent] += self.quanta_s[level[spent].astype(np.int64)]
        level[new] = self._holding(snapshot, new)
        left_s[new] = self.quanta_s[level[new].astype(np.int64)]
        since_s[running] = np.nan
        since_s[waiting] = np.where(np.isnan(since_s[waiting]), now_s, since_s[waiting])
        starved = waiting[now_s - since_s[waiting] >= self.promote_s]
        left_s[starved] = self.quanta_s[self._holding(snapshot, starved)]
        level[starved] = 0
        since_s[starved] = now_s

    def _holding(self, snapshot: Snapshot, rows: Ints) -> Ints:
        """Highest level whose quantum holds the prefill; the last if none does."""
        level = np.searchsorted(self.quanta_s, prefill_s(snapshot, rows))
        return np.minimum(level, len(self.quanta_s) - 1)


class _Program(RankedPolicy):
    """Ranks calls by the service of the program they belong to; see `Plas` and `Atlas`."""

    def __init__(
        self, *, quantum_tokens: int = 400, promote_ratio: float = 10.0, preempt: bool = True
    ) -> None:
        require(quantum_tokens >= 1, "quantum_tokens", "at least 1", quantum_tokens)
        require(promote_ratio > 0, "promote_ratio", "a number above 0", promote_ratio)
        self.quantum_tokens, self.promote_ratio, self.preempt = quantum_tokens, promote_ratio, preempt
        self._left = Departures()
        self._ids: dict[int, int] = {}
        self._programs = 0
        self._now_s = np.inf
        # By program: tokens of finished calls (their sum, or the longest path), seconds waited and run.
        self._done, self._wait_s, self._run_s = (np.zeros(64) for _ in range(3))

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Whole quanta of service since the last promotion."""
        forgiven = snapshot.table.extra(f"{self.name}.forgiven")[rows]
        return np.asarray(np.floor((self._service(snapshot, rows) - forgiven) / self.quantum_tokens))

    def plan(self, snapshot: Snapshot) -> Plan:
        """Account for the time since the last plan, then rank everybody."""
        waiting, running = snapshot.waiting, snapshot.running
        self._leave(snapshot, self._left.since(snapshot))
        self._join(snapshot, np.concatenate([waiting, running]))
        elapsed_s = max(0.0, snapshot.now_s - self._now_s)
        self._now_s = snapshot.now_s
        np.add.at(self._wait_s, self._program(snapshot, waiting), elapsed_s)
        np.add.at(self._run_s, self._program(snapshot, running), elapsed_s)
        self._promote(snapshot, np.concatenate([waiting, running]))
        return super().plan(snapshot)

    def _promote(self, snapshot: Snapshot, rows: Ints) -> None:
        """Send the calls of starved programs to the top, and begin to count anew."""
        program = self._program(snapshot, rows)
        starved = self._wait_s[program] > self.promote_ratio * self._run_s[program]
        forgiven = snapshot.table.extra(f"{self.name}.forgiven")
        forgiven[rows[starved]] = self._service(snapshot, rows[starved])
        self._wait_s[program[starved]] = 0.0
        self._run_s[program[starved]] = 0.0

    def _program(self, snapshot: Snapshot, rows: Ints) -> Ints:
        return snapshot.table.extra(f"{self.name}.program", fill=-1.0)[rows].astype(np.int64)

    def _join(self, snapshot: Snapshot, rows: Ints) -> None:
        """Number the programs of newcomers."""
        program = snapshot.table.extra(f"{self.name}.program", fill=-1.0)
        for row in rows[program[rows] < 0].tolist():
            begin = int(snapshot.table.program_index[row])
            number = self._ids.get(begin, self._programs) if begin >= 0 else self._programs
            if number == self._programs:
                self._programs += 1
                if begin >= 0:
                    self._ids[begin] = number
                if number == len(self._done):
                    self._done, self._wait_s, self._run_s = (
                        np.concatenate([a, np.zeros_like(a)]) for a in (self._done, self._wait_s, self._run_s)
                    )
            program[row] = number
            self._began(snapshot, row, number)

    def _began(self, snapshot: Snapshot, row: int, program: int) -> None:
        """A call has come."""

    def _leave(self, snapshot: Snapshot, rows: Ints) -> None:
        """Calls have left."""
        raise NotImplementedError

    def _service(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Tokens that count for these calls."""
        raise NotImplementedError


class Plas(_Program):
    """Program-level attained service of Autellix (arXiv 2502.13965): least served program first, preemptive.

    A call counts the output tokens of all calls of its program, finished and live, in whole quanta as in
    JITServe's version. When the calls of a program have waited more than `promote_ratio` times as long as
    they ran, those that are there go to the top and the count of seconds begins anew. Autellix counts service
    in seconds, too, and has a few levels of growing width.

    A program here is the set of requests with one `program_index`, as the
    turns of a session do; a request whose prompt is not known is a program of its own, and then this is LAS.

    Parameters
    ----------
    quantum_tokens
        Output tokens a level is wide, at least 1; 400 in JITServe's code.
    promote_ratio
        Above 0. Ours: no published value is known to us.
    preempt
        Whether running requests give way.
    """

    name: ClassVar[str] = "plas"
    bounded: ClassVar[bool] = True

    def _leave(self, snapshot: Snapshot, rows: Ints) -> None:
        np.add.at(self._done, self._program(snapshot, rows), snapshot.table.generated_tokens[rows])

    def _service(self, snapshot: Snapshot, rows: Ints) -> Floats:
        everyone = np.concatenate([snapshot.waiting, snapshot.running])
        program, place = np.unique(self._program(snapshot, everyone), return_inverse=True)
        live = np.bincount(place, weights=snapshot.table.generated_tokens[everyone], minlength=1)
        mine = self._program(snapshot, rows)
        return np.asarray(self._done[mine] + live[np.searchsorted(program, mine)])


class Atlas(_Program):
    """Autellix's rule for programs with parallel calls (arXiv 2502.13965): shortest observed path first.

    A call starts with the longest path of its program so far, in output tokens, and adds its own; calls that
    run side by side do not add up. All else, parameters included, as in `Plas`.

    Parameters
    ----------
    quantum_tokens, promote_ratio, preempt
        As in `Plas`.
    """

    name: ClassVar[str] = "atlas"
    bounded: ClassVar[bool] = True

    def _began(self, snapshot: Snapshot, row: int, program: int) -> None:
        snapshot.table.extra("atlas.path")[row] = self._done[program]

    def _leave(self, snapshot: Snapshot, rows: Ints) -> None:
        np.maximum.at(self._done, self._program(snapshot, rows), self._service(snapshot, rows))

    def _service(self, snapshot: Snapshot, rows: Ints) -> Floats:
        path = snapshot.table.extra("atlas.path")
        return np.asarray(path[rows] + snapshot.table.generated_tokens[rows])
