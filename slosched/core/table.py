"""All live requests of one engine as a structure of arrays.

Every engine (simulator, vLLM under a virtual clock, live vLLM) keeps one `RequestTable` and policies read its
columns by row. Rows are reused after `release`; `serial` never is, so a policy that remembers something about
a request either keeps it in an `extra` column, which is reset for each newcomer, or checks the serial.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from slosched.core.arrays import Floats as Floats
from slosched.core.arrays import Ints as Ints
from slosched.core.errors import InputError, require
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.request import Request


class RequestTable:
    """Columns over rows of requests; a policy must not write to them (its `extra` columns excepted).

    Parameters
    ----------
    capacity
        Rows to allocate; `add` doubles it when full.

    Attributes
    ----------
    serial
        Running number of the request, unique for ever; -1 in a free row.
    arrival_s
        Arrival on the engine's clock.
    prompt_tokens
        Prompt length.
    computed_tokens
        Tokens whose KV entries are in the cache now; 0 while waiting, and again after a preemption.
    cached_tokens
        Prompt tokens a prefix cache would provide if admitted now, as far as known; else 0.
    generated_tokens
        Output tokens produced so far; kept over a preemption.
    served_tokens
        Tokens of computation received so far, prefill and decode, recomputation included.
    ttft_s, tpot_s, e2e_s
        Limits of its SLO, infinity where there is none. While a request thinks that has a limit on its first
        answer token, `e2e_s` stands for it (`slosched.core.thinking.aim_at_answers`).
    ttfat_s
        Limit on the time to the first answer token, infinity where there is none.
    own_e2e_s
        Limit on the whole answer as it was promised.
    thinking_tokens
        Predicted output tokens before the first answer token; 0 for an answer without thinking.
    answer_s
        Clock time of the first answer token; NaN before.
    weight, priority, class_index, tenant_index
        As in `Request`, labels as indices into `classes` and `tenants`.
    prefix_index
        What the prompt begins with: equal in requests whose first prompt blocks are the same, as those of
        the turns of one session are; -1 where unknown.
    program_index
        The program it belongs to: equal in the calls of one agent's task or the turns of one conversation,
        whatever their prompts begin with; -1 for none.
    first_token_s
        Clock time of the first output token; NaN before.
    preemptions
        Times it was preempted.
    atoms
        Forecast of the output length, shape (capacity, FORECAST_ATOMS).
    request_ids
        Name by row.
    detached
        Whether the table stands for one instant only, so that its rows and serials mean nothing later: the
        next one made by `of` has others for the same requests.
    """

    detached = False

    def __init__(self, capacity: int = 64) -> None:
        n = max(1, capacity)
        self.serial: Ints = np.full(n, -1, dtype=np.int64)
        self.arrival_s: Floats = np.zeros(n)
        self.prompt_tokens: Ints = np.zeros(n, dtype=np.int64)
        self.computed_tokens: Ints = np.zeros(n, dtype=np.int64)
        self.cached_tokens: Ints = np.zeros(n, dtype=np.int64)
        self.generated_tokens: Ints = np.zeros(n, dtype=np.int64)
        self.served_tokens: Ints = np.zeros(n, dtype=np.int64)
        self.ttft_s: Floats = np.full(n, math.inf)
        self.tpot_s: Floats = np.full(n, math.inf)
        self.e2e_s: Floats = np.full(n, math.inf)
        self.ttfat_s: Floats = np.full(n, math.inf)
        self.own_e2e_s: Floats = np.full(n, math.inf)
        self.thinking_tokens: Floats = np.zeros(n)
        self.answer_s: Floats = np.full(n, math.nan)
        self.weight: Floats = np.ones(n)
        self.priority: Ints = np.zeros(n, dtype=np.int64)
        self.class_index: Ints = np.zeros(n, dtype=np.int64)
        self.tenant_index: Ints = np.zeros(n, dtype=np.int64)
        self.prefix_index: Ints = np.full(n, -1, dtype=np.int64)
        self.program_index: Ints = np.full(n, -1, dtype=np.int64)
        self.first_token_s: Floats = np.full(n, math.nan)
        self.preemptions: Ints = np.zeros(n, dtype=np.int64)
        self.atoms: Floats = np.ones((n, FORECAST_ATOMS))
        self.request_ids: list[str] = [""] * n
        self.classes: list[str] = []
        self.tenants: list[str] = []
        self._extras: dict[str, tuple[Floats, float]] = {}
        self._free = deque(range(n))
        self._next_serial = 0

    @property
    def capacity(self) -> int:
        """Rows allocated."""
        return len(self.serial)

    def extra(self, name: str, fill: float = 0.0) -> Floats:
        """A policy's own column, made on first use; a newcomer's row starts at `fill`.

        The array is replaced when the table grows: ask for it at every plan, do not keep it.
        """
        if name not in self._extras:
            self._extras[name] = (np.full(self.capacity, fill), fill)
        return self._extras[name][0]

    def add(self, request: Request) -> int:
        """Store a newcomer and return its row: the one that was freed first, so that others stay readable."""
        if not self._free:
            self._grow()
        row = self._free.popleft()
        self.fill(row, request)
        return row

    def add_row(self, request_id: str) -> int:
        """A row of its own for a newcomer whose columns the caller then fills."""
        if not self._free:
            self._grow()
        row = self._free.popleft()
        self.prompt_tokens[row] = 0
        self._begin(row, request_id)
        return row

    def places_of(self, kind: str, labels: Sequence[str]) -> Ints:
        """Places of labels among this table's own `classes` or `tenants`, which get those they lack."""
        own: list[str] = getattr(self, kind)
        return np.array([_index(own, label) for label in labels] or [0], dtype=np.int64)

    def _begin(self, row: int, request_id: str) -> None:
        """What is the same in every newcomer's row."""
        self.serial[row] = self._next_serial
        self._next_serial += 1
        for count in (self.computed_tokens, self.cached_tokens, self.served_tokens, self.preemptions):
            count[row] = 0
        self.prefix_index[row] = self.program_index[row] = -1
        self.first_token_s[row] = self.answer_s[row] = math.nan
        self.request_ids[row] = request_id
        for column, fill in self._extras.values():
            column[row] = fill

    def fill(self, row: int, request: Request) -> None:
        """Store a newcomer in the row of another."""
        self._begin(row, request.request_id)
        self.arrival_s[row] = request.arrival_s
        self.prompt_tokens[row] = request.prompt_tokens
        self.generated_tokens[row] = request.generated_tokens
        slo = request.slo
        self.ttft_s[row], self.tpot_s[row], self.e2e_s[row] = slo.limits_s()
        self.ttfat_s[row] = math.inf if slo.ttfat_s is None else slo.ttfat_s
        self.own_e2e_s[row] = self.e2e_s[row]
        self.thinking_tokens[row] = 0.0 if request.thinking is None else request.thinking.mean_tokens
        self.weight[row] = request.weight
        self.priority[row] = request.priority
        self.class_index[row] = _index(self.classes, request.slo_class)
        self.tenant_index[row] = _index(self.tenants, request.tenant)
        self.atoms[row] = request.forecast.atoms

    def promised(self, row: int) -> bool:
        """Whether the request of this row has any limit of its own."""
        return bool(
            min(self.ttft_s[row], self.tpot_s[row], self.own_e2e_s[row], self.ttfat_s[row]) < math.inf
        )

    def missing_tokens(self, rows: Ints) -> Ints:
        """Tokens that waiting rows would add to the cache: prompt and answer so far, less what is there."""
        return self.prompt_tokens[rows] + self.generated_tokens[rows] - self.cached_tokens[rows]

    def with_columns(self, **columns: Floats | Ints) -> RequestTable:
        """A view on which some columns are others, of the same shape; all else is shared, `extra` included.

        For a policy that plans as if limits or weights were different. It ends with the next change of rows.
        """
        view = copy.copy(self)
        for name, values in columns.items():
            old = getattr(self, name, None)
            ok = isinstance(old, np.ndarray) and old.shape == values.shape
            require(ok, name, "a column with an entry for every row", values.shape)
            setattr(view, name, values)
        return view

    def shared(self) -> RequestTable:
        """A view on the same columns with `extra` columns of its own: for another policy, of another engine.

        It ends with the next change of rows.
        """
        view = copy.copy(self)
        view._extras = {}
        return view

    def release(self, row: int) -> None:
        """Free the row of a request that has left."""
        if self.serial[row] < 0:
            raise InputError(f"row must be a row in use, got {row}.")
        self.serial[row] = -1
        self._free.append(row)

    def _grow(self) -> None:
        n = self.capacity
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, np.concatenate([value, np.zeros_like(value)]))
        self.serial[n:] = -1
        self.request_ids.extend([""] * n)
        for name, (column, fill) in self._extras.items():
            self._extras[name] = (np.concatenate([column, np.full(n, fill)]), fill)
        self._free = deque(range(n, 2 * n))

    def copy_from(self, live: RequestTable) -> None:
        """Become a copy of another table, for a reader in another thread.

        Own `extra` columns are kept for requests that are still in their row and reset for all others.
        """
        while self.capacity < live.capacity:
            self._grow()
        n = live.capacity
        changed = np.ones(self.capacity, dtype=np.bool_)
        changed[:n] = self.serial[:n] != live.serial
        for name, value in list(vars(live).items()):
            if isinstance(value, np.ndarray):
                getattr(self, name)[:n] = value
        self.serial[n:] = -1
        for column, fill in self._extras.values():
            column[changed] = fill
        self.classes, self.tenants, self.request_ids = live.classes, live.tenants, live.request_ids

    @classmethod
    def all_in_use(cls, rows: int) -> RequestTable:
        """A table of exactly `rows` requests, serial i in row i, whose columns the caller then fills."""
        table = cls(rows)
        table.serial[:rows] = np.arange(rows)
        table._free.clear()
        table._next_serial = rows
        return table

    @classmethod
    def of(cls, requests: Sequence[Request]) -> RequestTable:
        """A table whose rows 0..n-1 hold the given requests in their order."""
        seen: dict[str, int] = {}
        for request in requests:
            if request.request_id in seen:
                raise InputError(f"request_id must be unique, got {request.request_id!r} twice.")
            seen[request.request_id] = 1
        table = cls(len(requests))
        table.detached = True
        for request in requests:
            table.add(request)
        return table


def _index(names: list[str], name: str) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)
