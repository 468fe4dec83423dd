"""Every live request's row, kept in step with vLLM's own objects."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Ints
from slosched.core.forecast import FORECAST_ATOMS, LengthForecast
from slosched.core.request import Request
from slosched.core.table import RequestTable
from slosched.integrations.vllm.clock import Clock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.forecaster import Forecaster, running_of
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.slo_fields import Tenants, read_claim
from slosched.integrations.vllm.state import Learned
from slosched.integrations.vllm.thinking import ThinkingWatch
from slosched.integrations.vllm.waits import Outlook, Waits

_FAR = 2**62

LATEST = 512
"""Newcomers remembered in order: far more than come in a step."""


class Ledger:
    """Rows of a `RequestTable` for the requests a vLLM scheduler knows.

    A request gets its row when it first joins the queue and keeps it until it has left the engine. What
    changes during service is copied from vLLM's objects when a plan needs it (`sync`), not at every step.

    Attributes
    ----------
    rows
        Row by request id.
    requests
        vLLM's request object by row.
    with_slo, newcomers
        How many requests in the engine have an SLO; how many have ever come.
    queued
        Whether the row stands in the waiting queue.
    describe
        Says what is known of a newcomer: the request in slosched's terms, the number of its program, and what
        its prompt begins with (`program_index` and `prefix_index` of `RequestTable`). Another engine than the
        live one may have its own.
    rank
        Place in the engine's own first-come-first-served order, smaller first.
    since_s
        When the request arrived, or was last preempted, seconds.
    """

    def __init__(self, config: Config, clock: Clock, learned: Learned, stats: Stats) -> None:
        self.table = RequestTable(256)
        self.rows: dict[str, int] = {}
        self.requests: list[Any] = [None] * self.table.capacity
        self.with_slo = self.newcomers = 0
        self._config, self._clock, self._learned, self._stats = config, clock, learned, stats
        self.forecaster = Forecaster(config, learned, stats)
        self.thinking = ThinkingWatch(config, self.table, learned.thinking)
        learned.lengths.running = lambda: running_of(self)
        n = self.table.capacity
        self.queued: NDArray[np.bool_] = np.zeros(n, dtype=np.bool_)
        self.rank: Ints = np.zeros(n, dtype=np.int64)
        self.since_s = np.full(n, math.nan)
        self.admitted_s = np.full(n, math.nan)
        self.predicted_ttft_s = np.full(n, math.nan)
        self.predicted_tpot_s = np.full(n, math.nan)
        self._lost: Ints = np.zeros(n, dtype=np.int64)
        self._hit: Ints = np.zeros(n, dtype=np.int64)
        self._params: list[Any] = [None] * n
        self._tokenless: dict[str, int] = {}
        self._latest: deque[int] = deque(maxlen=LATEST)
        self._silent = read_claim(None, config)  # what a request claims that says nothing
        self.tenants = Tenants(self.table, config.bounds.max_tenants)
        self.waits = Waits()
        self.outlook: Callable[[], Outlook] = Outlook
        self.describe: Callable[[Any], tuple[Request, int, int]] = self._described

    # arrival ----------------------------------------------------------------------------------------------

    def row(self, request: Any) -> int:
        """The request's row; a new one for a newcomer, re-read if a streaming session has new parameters."""
        row = self.rows.get(request.request_id)
        if row is None:
            return self._add(request)
        if self._params[row] is not request.sampling_params:
            self._reread(row, request)
        return row

    def since(self, serial: int) -> list[int]:
        """Rows of requests that came after the one of this serial number; some may have left."""
        now = self.table.serial
        newer = list(takewhile(lambda row: not 0 <= now[row] <= serial, reversed(self._latest)))
        if len(newer) == LATEST:  # there may be more of them
            return np.flatnonzero(now > serial).tolist()
        return newer

    def follow(self, request: Any) -> None:
        """Give a row to a request that goes around slosched's queue, and await its first token."""
        self._tokenless[request.request_id] = self.row(request)

    def _add(self, request: Any) -> int:
        described, program, prefix = self.describe(request)
        row = self.table.add(described)
        self.table.program_index[row], self.table.prefix_index[row] = program, prefix
        self.newcomers += 1
        self._latest.append(row)
        if self.table.capacity > len(self.queued):
            self._grow()
        self.rows[request.request_id] = row
        self.requests[row] = request
        self._params[row] = request.sampling_params
        self.queued[row] = False
        self.since_s[row] = self.table.arrival_s[row]
        self.admitted_s[row] = self.predicted_ttft_s[row] = self.predicted_tpot_s[row] = math.nan
        self._lost[row] = self._hit[row] = 0
        self.with_slo += not described.slo.best_effort
        outlook = self.outlook()
        if self.thinking.on:
            self.thinking.began(row, request, self._clock.now_s(), outlook.decode_s)
        self._foretell(row, described, outlook)
        return row

    def _foretell(self, row: int, described: Request, outlook: Outlook) -> None:
        """State the wait of a newcomer."""
        tpot_s, e2e_s = float(self.table.tpot_s[row]), float(self.table.e2e_s[row])
        limit_s = float(self.table.ttft_s[row])
        if e2e_s < math.inf:
            left_s = described.forecast.mean_tokens * min(outlook.decode_s, tpot_s)
            limit_s = min(limit_s, max(0.0, e2e_s - left_s))
        self.waits.arrived(
            row, described.slo_class, described.arrival_s, described.prompt_tokens, limit_s, outlook
        )

    def _described(self, request: Any) -> tuple[Request, int, int]:
        """The request in slosched's terms; a plain best-effort one if anything about it is odd."""
        arrival_s = self._clock.arrival_s(request.arrival_time)
        tenant = None
        try:
            params = request.sampling_params
            extra = params.extra_args if params is not None else None
            claim = read_claim(extra, self._config) if extra else self._silent
            for field in claim.malformed:
                self._stats.malformed[field] = self._stats.malformed.get(field, 0) + 1
            tenant = self.tenants.joins(claim.tenant)
            described = Request(
                request_id=request.request_id,
                prompt_tokens=max(1, request.num_prompt_tokens),
                forecast=self.forecaster.of(claim, request),
                thinking=self.thinking.forecast(claim) if self.thinking.on else None,
                slo=claim.slo,
                arrival_s=arrival_s,
                weight=claim.weight,
                priority=min(max(int(request.priority), -_FAR), _FAR),
                slo_class=claim.slo_class,
                tenant=tenant,
                generated_tokens=request.num_output_tokens,
            )
            return described, claim.program, _first_block(request)
        except Exception as error:
            self._stats.failure("describe", error, "going on as if nothing had been promised")
            if tenant is not None:
                self.tenants.leaves(tenant, self._clock.now_s())
            plain = Request(
                request_id=request.request_id,
                prompt_tokens=1,
                forecast=LengthForecast.point(1),
                arrival_s=arrival_s if math.isfinite(arrival_s) else self._clock.now_s(),
                tenant=self.tenants.joins("default"),
            )
            return plain, -1, -1

    def _reread(self, row: int, request: Any) -> None:
        """A streaming session's next input replaced its parameters and arrival: the row starts anew."""
        rank, queued = int(self.rank[row]), bool(self.queued[row])
        if queued:
            return  # the line is sorted by arrival: take up changes when it next joins
        old_tenant = self.table.tenants[self.table.tenant_index[row]]
        described, program, prefix = self.describe(request)
        self.tenants.leaves(old_tenant, self._clock.now_s())
        described = replace(described, generated_tokens=0)
        self.with_slo -= self.table.promised(row)
        self.table.fill(row, described)
        self._latest.append(row)
        self.table.program_index[row], self.table.prefix_index[row] = program, prefix
        self.rank[row] = rank
        self._params[row] = request.sampling_params
        self.admitted_s[row], self.since_s[row] = math.nan, self.table.arrival_s[row]
        self.with_slo += self.table.promised(row)
        if self.thinking.on:
            self.thinking.began(row, request, self._clock.now_s(), self.outlook().decode_s)

    def _grow(self) -> None:
        more = self.table.capacity - len(self.queued)
        for name, value in list(vars(self).items()):
            if isinstance(value, np.ndarray):
                setattr(self, name, np.concatenate([value, np.zeros(more, dtype=value.dtype)]))
        self.requests.extend([None] * more)
        self._params.extend([None] * more)

    # service ----------------------------------------------------------------------------------------------

    def admitted(self, rows: Iterable[int], now_s: float, decode_s: float) -> None:
        """Rows that began or resumed to run in the step just scheduled."""
        t = self.table
        model = self._learned.step_time.model
        for row in rows:
            request = self.requests[row]
            if request is None or self.queued[row]:
                continue
            computed = int(request.num_computed_tokens)
            t.computed_tokens[row] = computed
            if math.isnan(self.admitted_s[row]) and math.isnan(t.first_token_s[row]):
                prompt = int(t.prompt_tokens[row])
                ahead = model.base_s + model.prefill_token_s * prompt
                self.predicted_ttft_s[row] = now_s - t.arrival_s[row] + ahead
                self.predicted_tpot_s[row] = decode_s
                self._tokenless[request.request_id] = row
            self.admitted_s[row] = now_s

    def note_hits(self, rows: Iterable[int], tokens: dict[str, int]) -> None:
        """Note what the prefix cache held of rows that were just admitted, given what the step computes."""
        for row in rows:
            request = self.requests[row]
            given = 0 if request is None else tokens.get(request.request_id, 0)
            if given:
                hit = max(0, request.num_computed_tokens - given)
                self._hit[row] = self.table.cached_tokens[row] = hit

    def returned(self, row: int, request: Any) -> bool:
        """Note that a request came back to the queue; True if it was preempted."""
        if request.status.name != "PREEMPTED":
            return False
        t = self.table
        if request.num_preemptions > t.preemptions[row]:
            self._lost[row] += max(0, self._computed(row, request) - self._hit[row])
            self._hit[row] = 0
            t.preemptions[row] = request.num_preemptions
            self.since_s[row] = self._clock.now_s()
        t.computed_tokens[row] = 0
        t.generated_tokens[row] = request.num_output_tokens
        t.served_tokens[row] = self._lost[row]
        return True

    def _computed(self, row: int, request: Any) -> int:
        """What a request had computed when it was preempted: vLLM forgets, and `sync` was some steps ago."""
        t = self.table
        known, before = int(t.computed_tokens[row]), int(t.prompt_tokens[row] + t.generated_tokens[row]) - 1
        decoding = known >= before or request.num_output_tokens > t.generated_tokens[row]
        return max(known, request.num_tokens - 1) if decoding else known

    def rows_of(self, running: list[Any]) -> Ints:
        """Rows of the running requests in the engine's order."""
        get = self.rows.get
        found = [get(r.request_id, -1) for r in running]
        if -1 in found:
            found = [self.row(r) for r in running]
        return np.array(found, dtype=np.int64)

    def sync(self, running: list[Any], rows: Ints, table: RequestTable) -> None:
        """Copy what changes while requests run into `table`, this ledger's own or a planner's copy."""
        computed = np.array([r.num_computed_tokens for r in running], dtype=np.int64)
        table.computed_tokens[rows] = computed
        table.generated_tokens[rows] = [r.num_output_tokens for r in running]
        table.served_tokens[rows] = self._lost[rows] + computed - self._hit[rows]

    def tokens_seen(self, now_s: float) -> None:
        """Stamp the first token of those that have just got it."""
        if not self._tokenless:
            return
        for request_id, row in list(self._tokenless.items()):
            request = self.requests[row]
            if request is None or request.request_id != request_id:
                del self._tokenless[request_id]
            elif request.num_output_tokens > 0:
                self.table.first_token_s[row] = now_s
                del self._tokenless[request_id]
                self._stats.wait_ratio.observe(self.waits.began(row, now_s, self.outlook().waiting))

    def take_up(self) -> None:
        """Take up better forecasts of requests of which no probe has told more."""
        for request_id, atoms in self.forecaster.news():
            row = self.rows.get(request_id)
            if row is not None:
                self.table.atoms[row] = atoms

    # departure --------------------------------------------------------------------------------------------

    def finish(self, request_id: str, now_s: float, *, refused: bool = False) -> None:
        """A request has left the engine: count what became of it and free its row."""
        row = self.rows.pop(request_id, None)
        if row is None:
            return
        request, t = self.requests[row], self.table
        self._tokenless.pop(request_id, None)
        self.waits.left(row, now_s)
        self.tenants.leaves(t.tenants[t.tenant_index[row]], now_s)
        status = request.status.name
        natural = status in ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED")
        tokens = request.num_output_tokens
        slo_class = t.classes[t.class_index[row]]
        newest = self.forecaster.newest(request_id)
        self.forecaster.learn(
            request_id,
            slo_class,
            tokens,
            prompt_tokens=int(t.prompt_tokens[row]),
            cut=status != "FINISHED_STOPPED",
        )
        answer_s = self.thinking.ended(row, request, slo_class, whole=status == "FINISHED_STOPPED")
        first_s, arrival_s = float(t.first_token_s[row]), float(t.arrival_s[row])
        self._stats.finished(
            slo_class=slo_class,
            natural=natural,
            refused=refused,
            limits_s=(
                float(t.ttft_s[row]),
                float(t.tpot_s[row]),
                float(t.own_e2e_s[row]),
                float(t.ttfat_s[row]),
            ),
            measured_s=(
                first_s - arrival_s,
                (now_s - first_s) / max(1, tokens - 1),
                now_s - arrival_s,
                answer_s - arrival_s,
            ),
            predicted_s=(float(self.predicted_ttft_s[row]), float(self.predicted_tpot_s[row])),
            tokens=tokens,
            predicted_tokens=sum(t.atoms[row].tolist()) / FORECAST_ATOMS,
        )
        self.with_slo -= self.table.promised(row)
        if newest is not None:
            # A policy that corrects forecasts by what became of them must see those of now: what was wrong
            # with older ones, the forecaster has learned by itself.
            t.atoms[row] = newest
        if not self.queued[row]:  # a policy may look at who has left
            computed = request.num_computed_tokens
            t.computed_tokens[row], t.generated_tokens[row] = computed, tokens
            t.served_tokens[row] = self._lost[row] + computed - self._hit[row]
        self.queued[row] = False
        self.requests[row] = self._params[row] = None
        t.release(row)


def _first_block(request: Any) -> int:
    """Number of what the prompt begins with, from vLLM's hash of its first block; -1 where it has none."""
    hashes = getattr(request, "block_hashes", None)
    if not hashes or not isinstance(hashes[0], bytes):
        return -1
    return int.from_bytes(hashes[0][:8], "big") >> 1
