"""Putting workloads together and taking them apart: merge as classes, cut in time, thin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import InputError, require
from slosched.core.thinking import Thinking
from slosched.core.workload import COLUMNS, PrefixBlocks, Workload


def merge(workloads: Sequence[Workload], *, name: str = "mix") -> Workload:
    """Several workloads as one, by arrival time; classes of the same name become one class.

    Parameters
    ----------
    workloads
        At least one; those with prefix blocks must agree on the tokens per block. Block ids of different
        workloads are kept apart, so that nothing is shared between them.
    name
        Name of the result.

    Returns
    -------
    Workload
        Requests of equal arrival keep the order of `workloads`. Request ids are kept only if all have them.

    Examples
    --------
    >>> a = Workload.plain(np.array([0.0, 2.0]), np.array([5, 5]), np.array([1, 1]), slo_class="chat")
    >>> b = Workload.plain(np.array([1.0]), np.array([9]), np.array([1]), slo_class="code")
    >>> both = merge([a, b])
    >>> both.classes, both.class_index.tolist()
    (('chat', 'code'), [0, 1, 0])
    """
    require(len(workloads) > 0, "workloads", "at least one workload", list(workloads))
    columns = {c: np.concatenate([getattr(w, c) for w in workloads]) for c in COLUMNS}
    classes = _union([w.classes for w in workloads])
    tenants = _union([w.tenants for w in workloads])
    columns["class_index"] = _relabel([(w.class_index, w.classes) for w in workloads], classes)
    columns["tenant_index"] = _relabel([(w.tenant_index, w.tenants) for w in workloads], tenants)
    columns["session"] = _apart([w.session for w in workloads])
    order = np.argsort(columns["arrival_s"], kind="stable")
    ids: tuple[str, ...] = ()
    if all(w.request_ids for w in workloads):
        together = [i for w in workloads for i in w.request_ids]
        if len(dict.fromkeys(together)) != len(together):
            together = [f"{k}-{i}" for k, w in enumerate(workloads) for i in w.request_ids]
        ids = tuple(together[i] for i in order.tolist())
    prefix, thinking = _join_prefixes(workloads), _join_thinking(workloads)
    return Workload(
        name=name,
        classes=classes,
        tenants=tenants,
        prefix=prefix.rows(order) if prefix is not None else None,
        thinking=thinking.rows(order) if thinking is not None else None,
        source="; ".join(dict.fromkeys(w.source for w in workloads if w.source)),
        request_ids=ids,
        **{c: values[order] for c, values in columns.items()},
    )


def cut(workload: Workload, duration_s: float, *, start_s: float = 0.0) -> Workload:
    """The requests that arrive in [start_s, start_s + duration_s), on a clock that starts at 0."""
    require(0 < duration_s < math.inf, "duration_s", "a finite number of seconds above 0", duration_s)
    require(0 <= start_s < math.inf, "start_s", "a finite number of seconds of at least 0", start_s)
    times = workload.arrival_s
    keep = np.flatnonzero((times >= start_s) & (times < start_s + duration_s))
    return workload.rows(keep, arrival_s=times[keep] - start_s)


def thin(workload: Workload, share: float, *, seed: int = 0) -> Workload:
    """Each request kept with probability `share` (above 0, at most 1): less load, same pattern."""
    require(0 < share <= 1, "share", "above 0 and at most 1", share)
    return workload.rows(np.random.default_rng(seed).random(len(workload)) < share)


def relabel(workload: Workload, slo_class: str) -> Workload:
    """The workload with all requests in one class."""
    return replace(workload, classes=(slo_class,), class_index=np.zeros(len(workload), dtype=np.int64))


def _apart(sessions: Sequence[Ints]) -> Ints:
    """Session numbers of several workloads such that none is used by two."""
    shift, parts = 0, []
    for own in sessions:
        parts.append(np.where(own >= 0, own + shift, -1))
        shift += int(own.max(initial=-1)) + 1
    return np.concatenate(parts)


def _union(labels: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for some in labels for label in some))


def _relabel(parts: Sequence[tuple[Ints, tuple[str, ...]]], labels: tuple[str, ...]) -> Ints:
    maps = [
        np.array([labels.index(label) for label in names], dtype=np.int64)[index] for index, names in parts
    ]
    return np.concatenate(maps)


def _join_prefixes(workloads: Sequence[Workload]) -> PrefixBlocks | None:
    sizes = sorted({w.prefix.block_tokens for w in workloads if w.prefix is not None})
    if not sizes:
        return None
    if len(sizes) > 1:
        raise InputError(f"block_tokens must be the same in all workloads that are merged, got {sizes}.")
    counts, ids = [], []
    shift = 0
    for w in workloads:
        if w.prefix is None:
            counts.append(np.zeros(len(w), dtype=np.int64))
            continue
        counts.append(np.diff(w.prefix.offsets))
        lowest = int(w.prefix.ids.min(initial=0))
        ids.append(w.prefix.ids - lowest + shift)
        shift += int(w.prefix.ids.max(initial=0)) - lowest + 1
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return PrefixBlocks(offsets=offsets, ids=np.concatenate(ids).astype(np.int64), block_tokens=sizes[0])


def _join_thinking(workloads: Sequence[Workload]) -> Thinking | None:
    if all(w.thinking is None for w in workloads):
        return None
    parts = [w.thinking or Thinking.of(np.zeros(len(w), dtype=np.int64)) for w in workloads]
    return Thinking(
        tokens=np.concatenate([part.tokens for part in parts]),
        ttfat_s=np.concatenate([part.ttfat_s for part in parts]),
        atoms=np.concatenate([part.atoms for part in parts]),
    )
