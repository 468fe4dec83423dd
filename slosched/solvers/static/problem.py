"""Static batches: requests that wait together, in batches that hold the engine until the longest member ends.

The formulation of Huang et al., "SLO-Aware Scheduling for Large Language Model Inferences", arXiv 2504.14966:
members of a batch start together, the next batch starts when the longest member ends, and execution depends
on the size of the batch. With their linear cost one request is a handful of constants, derived here once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError, require
from slosched.core.remaining import remaining_tokens
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCost:
    """Seconds of prefill and of decode in a batch of size B: four coefficients each.

    prefill(B, L) = prefill_batch_token·B·L + prefill_batch·B + prefill_token·L + prefill_base, and one decode
    step at context C = decode_batch_token·B·C + decode_batch·B + decode_token·C + decode_base.

    The defaults are placeholders of the order published for a 7B model on a V100: fit your own.

    Parameters
    ----------
    prefill_batch_token, prefill_batch, prefill_token, prefill_base
        Seconds per (request·token), per request, per token and per batch; finite, at least 0.
    decode_batch_token, decode_batch, decode_token, decode_base
        The same for one decode step, tokens being those of the context.

    Examples
    --------
    >>> round(BatchCost().prefill_s(batch=4, tokens=100), 5)
    0.10747
    """

    prefill_batch_token: float = 1e-4
    prefill_batch: float = 5.7e-3
    prefill_token: float = 1e-5
    prefill_base: float = 43.67e-3
    decode_batch_token: float = 2e-7
    decode_batch: float = 2.75e-4
    decode_token: float = 8.8e-7
    decode_base: float = 15.85e-3

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            require(ok, name, "a finite number of seconds of at least 0", value)

    def prefill_s(self, *, batch: int, tokens: float) -> float:
        """Seconds of the prefill of `tokens` in a batch of size `batch`."""
        return (self.prefill_batch_token * batch + self.prefill_token) * tokens + (
            self.prefill_batch * batch + self.prefill_base
        )

    def decode_s(self, *, batch: int, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds of `output_tokens` decode steps, the context growing by one token each."""
        context = output_tokens * prompt_tokens + output_tokens * (output_tokens + 1) / 2
        return (self.decode_batch_token * batch + self.decode_token) * context + (
            self.decode_batch * batch + self.decode_base
        ) * output_tokens

    @classmethod
    def of(cls, step_time: StepTimeModel) -> BatchCost:
        """The batch cost that a step time model implies (attention work and knee left out)."""
        return cls(
            prefill_batch_token=step_time.prefill_token_s,
            prefill_batch=0.0,
            prefill_token=0.0,
            prefill_base=step_time.base_s,
            decode_batch_token=step_time.kv_token_s,
            decode_batch=step_time.sequence_s,
            decode_token=0.0,
            decode_base=step_time.base_s,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StaticProblem:
    """Requests to be ordered and cut into batches of at most `max_batch`.

    A request that starts at S in a batch of size B takes ``u·B + v`` seconds and is on time iff
    ``S <= min(c - a·B, c2 - a2·B)`` and ``B <= bmax``. The arrays u, v, c, a, c2, a2, bmax are derived from
    the fields below and read-only.

    Parameters
    ----------
    prompt_tokens, output_tokens
        Lengths, shape (n,), finite and at least 1; output is a prediction and may be fractional.
    elapsed_s
        Seconds already waited, shape (n,), finite and at least 0.
    ttft_s, tpot_s, e2e_s
        Limits in seconds, shape (n,), above 0, infinity for none. TPOT is decode time over output tokens, as
        in the paper.
    weight
        Worth of meeting the limits, shape (n,), finite and at least 0.
    max_batch
        Largest batch, at least 1.
    cost
        Seconds of a batch.

    Raises
    ------
    InputError
        If an array has another shape than `prompt_tokens` or a value outside its domain.

    Examples
    --------
    >>> p = StaticProblem.build(prompt_tokens=[100, 200], output_tokens=[50, 20], e2e_s=[3.0, 1.0])
    >>> p.n, p.max_batch
    (2, 1)
    >>> bool(p.latest_start_s(1)[1] < p.latest_start_s(1)[0])
    True
    """

    prompt_tokens: Floats
    output_tokens: Floats
    elapsed_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    weight: Floats
    max_batch: int
    cost: BatchCost

    def __post_init__(self) -> None:
        shape = np.shape(self.prompt_tokens)
        require(len(shape) == 1, "prompt_tokens", "one value per request", shape)
        domains = {
            "prompt_tokens": (1.0, False),
            "output_tokens": (1.0, False),
            "elapsed_s": (0.0, False),
            "weight": (0.0, False),
            "ttft_s": (None, True),
            "tpot_s": (None, True),
            "e2e_s": (None, True),
        }
        for name, (least, endless) in domains.items():
            # + 0.0 copies, so that the caller's array is neither shared nor frozen
            values = np.asarray(getattr(self, name), dtype=np.float64) + 0.0
            require(values.shape == shape, name, f"an array of shape {shape}", values.shape)
            inside = (values > 0) if least is None else (values >= least)
            if not endless:
                inside &= values < math.inf
            domain = "numbers above 0" if least is None else f"finite numbers of at least {least:g}"
            bad = values[~inside].tolist()
            require(not bad, name, domain, bad[:1])
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        is_int = isinstance(self.max_batch, int) and not isinstance(self.max_batch, bool)
        require(is_int and self.max_batch >= 1, "max_batch", "an integer of at least 1", self.max_batch)
        require(isinstance(self.cost, BatchCost), "cost", "a BatchCost", self.cost)

    @classmethod
    def build(
        cls,
        *,
        prompt_tokens: ArrayLike,
        output_tokens: ArrayLike,
        elapsed_s: ArrayLike = 0.0,
        ttft_s: ArrayLike = math.inf,
        tpot_s: ArrayLike = math.inf,
        e2e_s: ArrayLike = math.inf,
        weight: ArrayLike = 1.0,
        max_batch: int = 1,
        cost: BatchCost | None = None,
    ) -> StaticProblem:
        """Like the constructor, but takes sequences and fills scalars up to one value per request."""
        shape = np.shape(prompt_tokens)

        def full(value: ArrayLike) -> Floats:
            array = np.asarray(value, dtype=np.float64)
            return np.full(shape, array) if array.ndim == 0 else array

        return cls(
            prompt_tokens=full(prompt_tokens),
            output_tokens=full(output_tokens),
            elapsed_s=full(elapsed_s),
            ttft_s=full(ttft_s),
            tpot_s=full(tpot_s),
            e2e_s=full(e2e_s),
            weight=full(weight),
            max_batch=max_batch,
            cost=cost or BatchCost(),
        )

    @classmethod
    def of(
        cls, snapshot: Snapshot, max_batch: int | None = None, cost: BatchCost | None = None
    ) -> StaticProblem:
        """The waiting requests of a snapshot, request i being row ``snapshot.waiting[i]``.

        Tokens that a preempted request has already produced count as prompt; its TTFT limit, once met, is
        dropped. `max_batch` and `cost` default to the snapshot's own limit and step time.
        """
        table, rows = snapshot.table, snapshot.waiting
        names = [table.request_ids[row] for row in rows.tolist()]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"request_id must be unique, got {twice!r} twice.")
        first_token_wait = table.first_token_s[rows] - table.arrival_s[rows]
        kept = first_token_wait <= table.ttft_s[rows]  # False where NaN: no token yet
        return cls(
            prompt_tokens=(table.prompt_tokens + table.generated_tokens)[rows].astype(np.float64),
            output_tokens=remaining_tokens(table.atoms, rows, table.generated_tokens),
            elapsed_s=np.maximum(0.0, snapshot.now_s - table.arrival_s[rows]),
            ttft_s=np.where(kept, math.inf, table.ttft_s[rows]),
            tpot_s=table.tpot_s[rows],
            e2e_s=table.e2e_s[rows],
            weight=table.weight[rows],
            max_batch=snapshot.limits.max_num_seqs if max_batch is None else max_batch,
            cost=BatchCost.of(snapshot.step_time) if cost is None else cost,
        )

    @property
    def n(self) -> int:
        """Number of requests."""
        return len(self.prompt_tokens)

    @cached_property
    def _prefill(self) -> tuple[Floats, Floats]:
        cost, length = self.cost, self.prompt_tokens
        per_size = cost.prefill_batch_token * length + cost.prefill_batch
        return _frozen(per_size), _frozen(cost.prefill_token * length + cost.prefill_base)

    @cached_property
    def decode_terms(self) -> tuple[Floats, Floats]:
        """Seconds of decode per member of the batch, and beside, shape (n,) each."""
        cost, out = self.cost, self.output_tokens
        context = out * self.prompt_tokens + out * (out + 1) / 2
        per_size = cost.decode_batch_token * context + cost.decode_batch * out
        return _frozen(per_size), _frozen(cost.decode_token * context + cost.decode_base * out)

    @cached_property
    def u(self) -> Floats:
        """Seconds of execution per member of the batch."""
        return _frozen(self._prefill[0] + self.decode_terms[0])

    @cached_property
    def v(self) -> Floats:
        """Seconds of execution that do not depend on the batch."""
        return _frozen(self._prefill[1] + self.decode_terms[1])

    @cached_property
    def _lines(self) -> tuple[Floats, Floats, Floats, Floats]:
        # The end-to-end line comes first; without one the TTFT line takes its place.
        end = self.e2e_s < math.inf
        first = self.ttft_s < math.inf
        prefill_u, prefill_v = self._prefill
        end_c, first_c = self.e2e_s - self.elapsed_s - self.v, self.ttft_s - self.elapsed_s - prefill_v
        c = np.where(end, end_c, np.where(first, first_c, math.inf))
        a = np.where(end, self.u, np.where(first, prefill_u, 0.0))
        both = end & first
        c2, a2 = np.where(both, first_c, math.inf), np.where(both, prefill_u, 0.0)
        return _frozen(c), _frozen(a), _frozen(c2), _frozen(a2)

    @property
    def c(self) -> Floats:
        """Latest start in seconds at batch size 0, first line; infinity without a limit."""
        return self._lines[0]

    @property
    def a(self) -> Floats:
        """Seconds by which each member of the batch moves the latest start forward, first line."""
        return self._lines[1]

    @property
    def c2(self) -> Floats:
        """As `c` for the second line: only requests with both a TTFT and an e2e limit have one."""
        return self._lines[2]

    @property
    def a2(self) -> Floats:
        """As `a` for the second line; 0 without one."""
        return self._lines[3]

    @cached_property
    def bmax(self) -> Ints:
        """Largest batch in which the TPOT limit holds, 0 (never) to the smaller of `max_batch` and n."""
        decode_u, decode_v = self.decode_terms
        allowed = np.zeros(self.n, dtype=np.int64)
        limit = self.tpot_s * self.output_tokens
        for size in range(1, min(self.max_batch, self.n) + 1):
            allowed += decode_u * size + decode_v <= limit
        return _frozen_ints(allowed)

    def exec_s(self, size: int) -> Floats:
        """Seconds of execution of every request in a batch of `size`, shape (n,)."""
        return self.u * size + self.v

    def latest_start_s(self, size: int) -> Floats:
        """Latest start that is on time in a batch of `size`, shape (n,); minus infinity if never."""
        latest = np.minimum(self.c - self.a * size, self.c2 - self.a2 * size)
        return np.where(size <= self.bmax, latest, -math.inf)

    @property
    def elapsed_total_s(self) -> float:
        """Sum of the seconds already waited: the constant part of total latency."""
        return math.fsum(self.elapsed_s.tolist())


def _frozen(values: Floats) -> Floats:
    out = np.ascontiguousarray(values, dtype=np.float64)
    out.flags.writeable = False
    return out


def _frozen_ints(values: Ints) -> Ints:
    values.flags.writeable = False
    return values
