"""Requests over time, with the truth about their output lengths: what a simulator replays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.engine import EngineLimits
from slosched.core.errors import require
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.thinking import Thinking

COLUMNS = (
    "arrival_s", "prompt_tokens", "output_tokens", "ttft_s", "tpot_s", "e2e_s", "weight", "priority",
    "class_index", "tenant_index", "atoms", "session", "think_s",
)  # fmt: skip
"""Fields of a `Workload` with one row per request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixBlocks:
    """Content of the prompts as ids of blocks; equal id at the same place means equal prefix.

    Parameters
    ----------
    offsets
        Request i has the ids ``ids[offsets[i]:offsets[i + 1]]``, shape (n + 1,). Fewer ids than the prompt
        has blocks mean that the rest of the prompt is unique.
    ids
        Block ids, each standing for the content of this block and of all before it.
    block_tokens
        Tokens per block; a prompt's last block may be partly filled.
    """

    offsets: Ints
    ids: Ints
    block_tokens: int

    def __post_init__(self) -> None:
        require(self.block_tokens >= 1, "block_tokens", "an integer of at least 1", self.block_tokens)
        ok = len(self.offsets) > 0 and self.offsets[0] == 0 and self.offsets[-1] == len(self.ids)
        ok = ok and bool(np.all(np.diff(self.offsets) >= 0))
        require(ok, "offsets", "ascending from 0 to the number of ids", self.offsets[-1:].tolist())

    def rows(self, index: Ints) -> PrefixBlocks:
        """The blocks of some requests, in the order of `index`."""
        counts = np.diff(self.offsets)[index]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        at = np.repeat(self.offsets[:-1][index] - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(self, offsets=offsets, ids=self.ids[at])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Columns over n requests in ascending arrival order.

    Requests are independent, or turns of sessions. In a closed loop a turn is sent `think_s` after the answer
    before it has ended; its time of arrival is then an outcome (`Outcomes.arrival_s`), and `arrival_s` is
    only the time at which it was recorded or planned. In an open loop each request is sent at `arrival_s`
    whatever the engine does.

    Parameters
    ----------
    name
        For reports.
    arrival_s
        Arrival times in seconds, ascending, the first at least 0.
    prompt_tokens, output_tokens
        Lengths, each at least 1. The output length is the truth and is hidden from policies.
    ttft_s, tpot_s, e2e_s
        Limits, infinity for none.
    weight, priority, class_index, tenant_index
        As in `Request`; labels index `classes` and `tenants`.
    atoms
        Forecast of the output length, shape (n, FORECAST_ATOMS), what policies see.
    session
        Number of the session of a request, the same in all its turns, which come in the order of rows; -1 for
        an independent request.
    think_s
        Seconds at least 0 from the end of the answer before to the sending of this turn, closed loop; -1
        where the request is sent at `arrival_s`, open loop. The first turn of a session is always sent then.
    prefix
        Prompt contents for the prefix cache, or None when every prompt is unique.
    source
        Where lengths and arrivals come from, for reports.
    thinking
        How long each request thinks before its answer, and when that is due; None where nobody thinks.
    """

    name: str
    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    weight: Floats
    priority: Ints
    class_index: Ints
    tenant_index: Ints
    atoms: Floats
    session: Ints
    think_s: Floats
    classes: tuple[str, ...] = ("default",)
    tenants: tuple[str, ...] = ("default",)
    prefix: PrefixBlocks | None = None
    source: str = ""
    request_ids: tuple[str, ...] = field(default=())
    thinking: Thinking | None = None

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        for name in COLUMNS:
            shape = (n, FORECAST_ATOMS) if name == "atoms" else (n,)
            require(getattr(self, name).shape == shape, name, f"shape {shape}", getattr(self, name).shape)
        ok = n == 0 or bool(self.arrival_s[0] >= 0 and np.isfinite(self.arrival_s[-1]))
        require(
            ok, "arrival_s", "finite and at least 0", [float(t) for t in self.arrival_s[[0, -1]]] if n else []
        )
        require(bool(np.all(np.diff(self.arrival_s) >= 0)), "arrival_s", "ascending", "a decrease or NaN")
        for name in ("prompt_tokens", "output_tokens"):
            _at_least(getattr(self, name), name, 1)
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            values = getattr(self, name)
            require(
                bool(np.all(values > 0)),
                name,
                "above 0, infinity for none",
                float(values.min(initial=np.inf)),
            )
        ok = bool(np.all(np.isfinite(self.weight) & (self.weight >= 0)))
        require(ok, "weight", "finite and at least 0", "another value")
        require(bool(np.all(np.isfinite(self.atoms))), "atoms", "finite", "another value")
        _at_least(self.atoms, "atoms", 1)
        require(
            bool(np.all(np.diff(self.atoms, axis=1) >= 0)), "atoms", "ascending in each row", "a decrease"
        )
        for name, labels in (("class_index", self.classes), ("tenant_index", self.tenants)):
            values = getattr(self, name)
            ok = n == 0 or (values.min() >= 0 and values.max() < len(labels))
            require(ok, name, f"indices below {len(labels)}", int(values.max(initial=0)))
        _at_least(self.session, "session", -1)
        ok = bool(np.all(((self.think_s >= 0) | (self.think_s == -1)) & np.isfinite(self.think_s)))
        require(ok, "think_s", "finite and at least 0, or -1", "another value")
        ok = self.prefix is None or len(self.prefix.offsets) == n + 1
        require(ok, "prefix", f"blocks of {n} requests", "another number")
        ok = not self.request_ids or len(self.request_ids) == n
        require(ok, "request_ids", f"{n} names, or none", len(self.request_ids))
        if self.thinking is not None:
            count = len(self.thinking.tokens)
            require(count == n, "thinking", f"columns of {n} requests", count)
            ok = bool(np.all(self.thinking.tokens < self.output_tokens))
            require(ok, "thinking_tokens", "below output_tokens: an answer has a token", "another value")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def ttfat_s(self) -> Floats:
        """Limits on the time to the first answer token, infinity for none."""
        return np.full(len(self), np.inf) if self.thinking is None else self.thinking.ttfat_s

    @property
    def previous(self) -> Ints:
        """Row of the turn whose answer must end before this one is sent; -1 where it waits for none."""
        previous = np.full(len(self), -1, dtype=np.int64)
        order = np.argsort(self.session, kind="stable")
        follows = np.diff(self.session[order]) == 0
        previous[order[1:][follows]] = order[:-1][follows]
        previous[(self.session < 0) | (self.think_s < 0)] = -1
        return previous

    @property
    def turn(self) -> Ints:
        """Place of each request in its session, from 0; 0 for independent requests."""
        order = np.argsort(self.session, kind="stable")
        ordered = self.session[order]
        place = np.arange(len(self)) - np.searchsorted(ordered, ordered, side="left")
        turn = np.zeros(len(self), dtype=np.int64)
        turn[order] = np.where(ordered >= 0, place, 0)
        return turn

    def open_loop(self) -> Workload:
        """The same requests, each sent at `arrival_s` even if the answer before it is not there yet."""
        if not np.any(self.previous >= 0):
            return self
        source = f"{self.source}, replayed open loop" if self.source else "replayed open loop"
        return replace(self, think_s=np.full(len(self), -1.0), source=source)

    @classmethod
    def plain(
        cls,
        arrival_s: NDArray[np.float64],
        prompt_tokens: NDArray[np.int64],
        output_tokens: NDArray[np.int64],
        *,
        name: str = "workload",
        slo_class: str = "default",
        session: Ints | None = None,
        think_s: Floats | None = None,
        prefix: PrefixBlocks | None = None,
        source: str = "",
    ) -> Workload:
        """A best-effort workload of one class whose forecasts are the true lengths (an oracle)."""
        n = len(arrival_s)
        zeros = np.zeros(n, dtype=np.int64)
        output = np.asarray(output_tokens, dtype=np.int64)
        return cls(
            name=name,
            arrival_s=np.asarray(arrival_s, dtype=np.float64),
            prompt_tokens=np.asarray(prompt_tokens, dtype=np.int64),
            output_tokens=output,
            ttft_s=np.full(n, np.inf),
            tpot_s=np.full(n, np.inf),
            e2e_s=np.full(n, np.inf),
            weight=np.ones(n),
            priority=zeros,
            class_index=zeros,
            tenant_index=zeros,
            atoms=np.repeat(output.astype(np.float64)[:, None], FORECAST_ATOMS, axis=1),
            session=zeros - 1 if session is None else np.asarray(session, dtype=np.int64),
            think_s=np.full(n, -1.0) if think_s is None else np.asarray(think_s, dtype=np.float64),
            classes=(slo_class,),
            prefix=prefix,
            source=source,
        )

    def rows(self, keep: NDArray[np.bool_] | Ints, *, arrival_s: Floats | None = None) -> Workload:
        """Some rows as a workload of their own; a turn then follows the one before it among those kept.

        Parameters
        ----------
        keep
            A mask over the rows, or indices, which may repeat, and be out of order if `arrival_s` is given.
        arrival_s
            New arrival times of the rows kept; by default their own.
        """
        index: Ints = np.flatnonzero(keep) if keep.dtype == bool else np.asarray(keep, dtype=np.int64)
        columns = {name: getattr(self, name)[index] for name in COLUMNS}
        if arrival_s is not None:
            columns["arrival_s"] = arrival_s
        ids = tuple(self.request_ids[i] for i in index.tolist()) if self.request_ids else ()
        prefix = self.prefix.rows(index) if self.prefix is not None else None
        thinking = self.thinking.rows(index) if self.thinking is not None else None
        return replace(self, prefix=prefix, thinking=thinking, request_ids=ids, **columns)


def _at_least(values: NDArray[np.generic], name: str, least: int) -> None:
    ok = bool(np.all(values >= least))  # type: ignore[operator]
    require(ok, name, f"at least {least}", "" if ok else f"{values.min()} in one row")


def fit_to_engine(workload: Workload, limits: EngineLimits) -> tuple[Workload, int]:
    """The requests an engine can serve, and how many were left out.

    A request is left out if prompt and output together exceed the context length or the KV cache. The
    number is also noted in the result's `source`, so that no report can lose it.
    """
    total = workload.prompt_tokens + workload.output_tokens
    longest = min(limits.max_model_len, limits.kv_tokens)
    keep = total <= longest
    dropped = int(len(workload) - keep.sum())
    if dropped == 0:
        return workload, 0
    note = f"{dropped} of {len(workload)} requests over {longest} tokens left out"
    kept = workload.rows(keep)
    return replace(kept, source=f"{kept.source} ({note})" if kept.source else note), dropped
