"""Writing a workload to our own format."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.errors import DataError
from slosched.core.workload import Workload
from slosched.core.writing import atomic_text
from slosched.workloads.generic import LIMITS


def write(workload: Workload, path: str | Path) -> Path:
    """Write a workload as CSV or JSON lines, whole or not at all; `read` gives every number back exactly.

    Name, source and the numbering of labels and sessions are not kept.

    Parameters
    ----------
    workload
        What to write.
    path
        Target; its name ends in ``.csv`` or ``.jsonl``, and ``.gz`` or ``.zst`` after that to pack it. An
        existing file is replaced only once the new one is complete.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    InputError
        If the name ends otherwise, the folder is absent or not writable, or the workload is empty.
    """
    target = Path(path)
    kind = target.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[-1]
    if kind not in ("csv", "jsonl"):
        domain = "one that ends in .csv or .jsonl, with .gz or .zst if packed"
        raise DataError(target, None, "file name", domain, target.name)
    if len(workload) == 0:
        raise DataError(target, None, "workload", "not empty", 0)
    with atomic_text(target) as file:
        if kind == "jsonl":
            for record in _records(workload):
                file.write(json.dumps({k: v for k, v in record.items() if v is not None}) + "\n")
        else:
            writer = csv.writer(file, lineterminator="\n")
            for index, record in enumerate(_records(workload)):
                if index == 0:
                    writer.writerow(record)
                writer.writerow(_cell(value) for value in record.values())
    return target


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _records(w: Workload) -> Iterator[dict[str, Any]]:
    """Rows as plain values; None for no limit; optional columns only where the workload uses them."""
    turns = bool(np.any((w.session >= 0) | (w.think_s >= 0)))
    point = bool(np.all(w.atoms == w.atoms[:, :1]))
    for i in range(len(w)):
        record: dict[str, Any] = {
            "arrival_s": float(w.arrival_s[i]),
            "prompt_tokens": int(w.prompt_tokens[i]),
            "output_tokens": int(w.output_tokens[i]),
        }
        for name in LIMITS:
            limit = float(getattr(w, name)[i])
            record[name] = limit if math.isfinite(limit) else None
        if w.thinking is not None:
            limit = float(w.thinking.ttfat_s[i])
            thoughts: list[float] = w.thinking.atoms[i].tolist()
            record["ttfat_s"] = limit if math.isfinite(limit) else None
            record["thinking_tokens"] = int(w.thinking.tokens[i])
            record["predicted_thinking_tokens"] = thoughts
        record["slo_class"] = w.classes[w.class_index[i]]
        record["tenant"] = w.tenants[w.tenant_index[i]]
        record["weight"] = float(w.weight[i])
        record["priority"] = int(w.priority[i])
        atoms: list[float] = w.atoms[i].tolist()
        record["predicted_output_tokens"] = atoms[0] if point else atoms
        if w.prefix is not None:
            ids = w.prefix.ids[w.prefix.offsets[i] : w.prefix.offsets[i + 1]]
            record["prefix_ids"] = ids.tolist()
            record["prefix_block_tokens"] = w.prefix.block_tokens
        if turns:
            record["session"] = int(w.session[i]) if w.session[i] >= 0 else None
            record["think_s"] = float(w.think_s[i]) if w.think_s[i] >= 0 else None
        if w.request_ids:
            record["request_id"] = w.request_ids[i]
        yield record
