"""Queue rules of gateways in front of engines: AIBrix and llm-d."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.estimate import decode_step_s, prefill_s
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies.base import KeyPolicy, Policy
from slosched.policies.departures import Departures

_BINS = 32


class AibrixSlo(KeyPolicy):
    """AIBrix's SLO queue: descending elapsed + expected - target; refused where that is above 0.

    Each limit of a request gives such an overdue time, and the largest counts: its prefill against the TTFT
    limit; prefill and decoding against the end-to-end limit and against TTFT + TPOT·(length - 1). Without
    limits it is -inf. AIBrix has one SLO per model profile, so this is its rule with limits per request. The
    expected length is, as there, a mean over finished requests with prompts of about the same length (same
    power of two); the forecast stands in before there are any.

    Parameters
    ----------
    reject
        Whether to refuse requests that are expected to be late and have no token yet, as AIBrix does; else
        they go first.
    """

    name: ClassVar[str] = "aibrix-slo"
    bounded: ClassVar[bool] = True
    rejects: bool = True

    def __init__(self, *, reject: bool = True) -> None:
        self.reject = reject
        self._left = Departures()
        self._tokens, self._count = np.zeros(_BINS), np.zeros(_BINS)

    def plan(self, snapshot: Snapshot) -> Plan:
        """Learn from finished requests, refuse the late, sort the rest."""
        t, waiting = snapshot.table, snapshot.waiting
        done = self._left.since(snapshot)
        done = done[t.generated_tokens[done] > 0]
        np.add.at(self._tokens, self._bin(snapshot, done), t.generated_tokens[done])
        np.add.at(self._count, self._bin(snapshot, done), 1.0)
        key = self.key(snapshot, waiting)
        late = self.reject & (key < 0) & (t.generated_tokens[waiting] == 0)
        kept = waiting[~late]
        order = kept[np.argsort(key[~late], kind="stable")]
        return Plan(snapshot=snapshot, policy=self.name, order=order, reject=waiting[late])

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        """Negated overdue time in seconds."""
        t = snapshot.table
        bins = self._bin(snapshot, rows)
        known = self._count[bins] > 0
        length = np.where(
            known, self._tokens[bins] / np.maximum(1.0, self._count[bins]), t.atoms[rows].mean(axis=1)
        )
        elapsed = snapshot.now_s - t.arrival_s[rows]
        first = elapsed + prefill_s(snapshot, rows)
        more = np.maximum(0.0, length - np.maximum(1, t.generated_tokens[rows]))
        whole = first + more * decode_step_s(snapshot)
        tpot = np.where(np.isfinite(t.tpot_s[rows]), t.tpot_s[rows], 0.0) * np.maximum(0.0, length - 1.0)
        paced = np.where(np.isfinite(t.tpot_s[rows]), t.ttft_s[rows] + tpot, np.inf)
        first_limit = np.where(t.generated_tokens[rows] == 0, t.ttft_s[rows], np.inf)
        overdue = np.maximum(first - first_limit, whole - np.minimum(paced, t.e2e_s[rows]))
        return np.asarray(-overdue)

    def _bin(self, snapshot: Snapshot, rows: Ints) -> Ints:
        prompt = snapshot.table.prompt_tokens[rows]
        return np.minimum(_BINS - 1, np.log2(prompt).astype(np.int64))


class LlmdDeadline(Policy):
    """llm-d's ``slo-deadline`` order: received + TTFT limit, far future without one, inside each flow.

    A flow is a tenant. Flows take turns, request by request, the one served longest ago first; a single flow
    is plain earliest deadline first on TTFT. llm-d leaves the choice among flows to a fairness plug-in;
    round robin is one of them.
    """

    name: ClassVar[str] = "llm-d-deadline"
    bounded: ClassVar[bool] = True

    def __init__(self) -> None:
        self._served: dict[int, int] = {}  # flow -> number of the turn it last had
        self._turn = 0
        self._waited: dict[int, int] = {}  # serial -> flow, of those who waited at the last plan

    def plan(self, snapshot: Snapshot) -> Plan:
        """Sort each flow and deal from them in turn."""
        t, waiting = snapshot.table, snapshot.waiting
        flow, serial = t.tenant_index[waiting].tolist(), t.serial[waiting].tolist()
        now = dict(zip(serial, flow, strict=True))
        for one, its_flow in self._waited.items():
            if one not in now:
                self._turn += 1
                self._served[its_flow] = self._turn
        self._waited = now
        deadline = t.arrival_s[waiting] + t.ttft_s[waiting]
        rank = np.zeros(len(waiting), dtype=np.int64)
        dealt: dict[int, int] = {}
        by_deadline = np.argsort(deadline, kind="stable")
        for place in by_deadline.tolist():
            rank[place] = dealt.get(flow[place], 0)
            dealt[flow[place]] = int(rank[place]) + 1
        turn = np.array([self._served.get(f, 0) for f in flow], dtype=np.int64)
        label = t.tenant_index[waiting]
        order = waiting[np.lexsort((deadline, label, turn, rank))]
        return Plan(snapshot=snapshot, policy=self.name, order=order)
