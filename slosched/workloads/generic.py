"""Our own workload format, CSV or JSON lines: everything a `Workload` holds, readable by anyone.

Columns (CSV header or JSON keys): ``arrival_s`` [s, ascending], ``prompt_tokens`` (or ``input_tokens``),
``output_tokens``. Optional: ``request_id``; ``ttft_s``, ``tpot_s``, ``e2e_s`` [s; empty or null: no limit];
``slo_class``; ``tenant``; ``weight`` (1); ``priority`` (0); ``predicted_output_tokens`` (one number, or
ascending ones, as many as a forecast has atoms; the true length if absent); ``prefix_ids`` (ids of the
prompt's blocks) with ``prefix_block_tokens`` (the same in all rows); ``session`` (whose turn it is) with
``think_s`` [s from the end of the session's answer before; empty: sent at arrival_s whatever happens]. Lists
are JSON arrays, or numbers with spaces in CSV. Other columns are ignored.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.errors import DataError
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.workload import PrefixBlocks, Workload
from slosched.workloads.files import (
    MOST_SECONDS,
    MOST_TOKENS,
    csv_header,
    csv_rows,
    first_line,
    json_rows,
    moment,
    number,
    tokens,
    whole,
)

GENERIC_REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
LIMITS = ("ttft_s", "tpot_s", "e2e_s")
OPTIONAL = (
    "request_id", *LIMITS, "slo_class", "tenant", "weight", "priority", "predicted_output_tokens",
    "prefix_ids", "prefix_block_tokens", "session", "think_s",
)  # fmt: skip


def read_generic(path: str | Path) -> Workload:
    """A workload from our own CSV or JSON-lines format; see this module for the columns.

    Raises
    ------
    DataError
        If a column is missing or a value outside its domain.
    """
    file = Path(path)
    columns = _Columns(file)
    for row, fields in _rows(file):
        columns.add(row, fields)
    return columns.workload()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of either form without empty values; `input_tokens` is another name of `prompt_tokens`."""
    line = first_line(path)
    source: Iterator[tuple[int, dict[str, Any]]]
    if line.startswith("{"):
        source = json_rows(path)
    else:
        own = "input_tokens" not in csv_header(line) or "prompt_tokens" in csv_header(line)
        required = GENERIC_REQUIRED if own else ("arrival_s", "input_tokens", "output_tokens")
        source = csv_rows(path, required, OPTIONAL)
    for row, fields in source:
        given = {name: value for name, value in fields.items() if value is not None and value != ""}
        if "input_tokens" in given:
            given.setdefault("prompt_tokens", given["input_tokens"])
        yield row, given


class _Columns:
    """Collects checked rows; every value goes straight into a typed array."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.real = {name: array("d") for name in ("arrival_s", *LIMITS, "weight", "atoms", "think_s")}
        self.integer = {
            name: array("q")
            for name in (
                "prompt_tokens",
                "output_tokens",
                "priority",
                "class_index",
                "tenant_index",
                "session",
                "ids",
                "counts",
            )
        }
        self.classes: dict[str, int] = {}
        self.tenants: dict[str, int] = {}
        self.sessions: dict[str, int] = {}
        self.request_ids: dict[str, int] = {}
        self.block_tokens = 0
        self.before = 0.0

    def add(self, row: int, fields: dict[str, Any]) -> None:
        """Check one row and append it."""
        path = self.path
        self.before = moment(path, row, "arrival_s", fields.get("arrival_s"), self.before)
        self.real["arrival_s"].append(self.before)
        for name in ("prompt_tokens", "output_tokens"):
            self.integer[name].append(tokens(path, row, name, fields.get(name)))
        for name in LIMITS:
            self.real[name].append(self._limit(row, name, fields.get(name)))
        weight = fields.get("weight", 1.0)
        domain = "a finite number of at least 0"
        self.real["weight"].append(number(path, row, "weight", weight, 0, MOST_SECONDS, domain))
        domain = "an integer between -2**31 and 2**31"
        self.integer["priority"].append(
            whole(path, row, "priority", fields.get("priority", 0), -(2**31), 2**31, domain)
        )
        for column, names, field in (
            ("class_index", self.classes, "slo_class"),
            ("tenant_index", self.tenants, "tenant"),
        ):
            label = fields.get(field)
            text = "default" if label is None else self._text(row, field, label)
            self.integer[column].append(names.setdefault(text, len(names)))
        self._add_atoms(row, fields.get("predicted_output_tokens"))
        self._add_prefix(row, fields)
        self._add_turn(row, fields.get("session"), fields.get("think_s"))
        if fields.get("request_id") is not None:
            name = self._text(row, "request_id", fields["request_id"])
            if name in self.request_ids:
                raise DataError(path, row, "request_id", "unique", name)
            self.request_ids[name] = row

    def _limit(self, row: int, name: str, value: object) -> float:
        if value is None:
            return math.inf
        domain = "a number of seconds above 0, or empty"
        return number(self.path, row, name, value, 1e-12, MOST_SECONDS, domain)

    def _text(self, row: int, name: str, value: object) -> str:
        text = value.strip() if isinstance(value, str) else str(value) if isinstance(value, int) else ""
        if not text or len(text) > 200:
            raise DataError(self.path, row, name, "a text of 1 to 200 characters", str(value)[:80])
        return text

    def _list(self, row: int, name: str, value: object) -> list[object]:
        if isinstance(value, list):
            return value
        return list(value.split()) if isinstance(value, str) else [value]

    def _add_atoms(self, row: int, value: object) -> None:
        if value is None:
            self.real["atoms"].extend([float(self.integer["output_tokens"][-1])] * FORECAST_ATOMS)
            return
        domain = f"one number from 1 to {MOST_TOKENS}, or {FORECAST_ATOMS} ascending ones"
        parts = self._list(row, "predicted_output_tokens", value)
        atoms = [
            number(self.path, row, "predicted_output_tokens", p, 1, MOST_TOKENS * 1000, domain) for p in parts
        ]
        if len(atoms) not in (1, FORECAST_ATOMS) or atoms != sorted(atoms):
            raise DataError(self.path, row, "predicted_output_tokens", domain, str(value)[:80])
        self.real["atoms"].extend(atoms * (FORECAST_ATOMS // len(atoms)))

    def _add_turn(self, row: int, session: object, think: object) -> None:
        name = None if session is None else self._text(row, "session", session)
        self.integer["session"].append(
            -1 if name is None else self.sessions.setdefault(name, len(self.sessions))
        )
        domain = "a number of seconds of at least 0, or empty"
        self.real["think_s"].append(
            -1.0 if think is None else number(self.path, row, "think_s", think, 0, MOST_SECONDS, domain)
        )

    def _add_prefix(self, row: int, fields: dict[str, Any]) -> None:
        value, size = fields.get("prefix_ids"), fields.get("prefix_block_tokens")
        if value is None or size is None:
            if value is not None:
                raise DataError(self.path, row, "prefix_block_tokens", "given where prefix_ids are", None)
            self.integer["counts"].append(0)
            return
        block = whole(self.path, row, "prefix_block_tokens", size, 1, MOST_TOKENS, "an integer of at least 1")
        if self.block_tokens not in (0, block):
            raise DataError(self.path, row, "prefix_block_tokens", f"{self.block_tokens} as above", size)
        self.block_tokens = block
        ids = self._list(row, "prefix_ids", value)
        most = -(-self.integer["prompt_tokens"][-1] // block)
        if len(ids) > most:
            raise DataError(
                self.path, row, "prefix_ids", f"at most {most} ids, one per block", f"{len(ids)} ids"
            )
        domain = "integers from 0 to 2**53"
        self.integer["ids"].extend(whole(self.path, row, "prefix_ids", i, 0, 2**53, domain) for i in ids)
        self.integer["counts"].append(len(ids))

    def workload(self) -> Workload:
        """Everything collected."""
        n = len(self.real["arrival_s"])
        if self.request_ids and len(self.request_ids) != n:
            raise DataError(
                self.path, None, "request_id", f"given in all {n} rows or none", len(self.request_ids)
            )
        columns: dict[str, Any] = {k: np.asarray(v, dtype=np.float64) for k, v in self.real.items()}
        columns |= {k: np.asarray(v, dtype=np.int64) for k, v in self.integer.items()}
        ids, counts = columns.pop("ids"), columns.pop("counts")
        prefix = None
        if self.block_tokens:
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            prefix = PrefixBlocks(offsets=offsets, ids=ids, block_tokens=self.block_tokens)
        columns["atoms"] = columns["atoms"].reshape(n, FORECAST_ATOMS)
        return Workload(
            name=self.path.name.removesuffix(".gz").rsplit(".", 1)[0],
            classes=tuple(self.classes),
            tenants=tuple(self.tenants),
            prefix=prefix,
            source=self.path.name,
            request_ids=tuple(self.request_ids),
            **columns,
        )
