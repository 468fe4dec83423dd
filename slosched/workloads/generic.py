"""Tables of requests, ours and those of public traces and tools, in CSV, JSON lines, JSON or Parquet.

Our own columns hold everything a `Workload` has: ``arrival_s`` [s, ascending], ``prompt_tokens`` (or
``input_tokens``), ``output_tokens``. Optional: ``request_id``; ``ttft_s``, ``tpot_s``, ``e2e_s`` [s; empty or
null: no limit]; ``slo_class``; ``tenant``; ``weight`` (1); ``priority`` (0); ``predicted_output_tokens`` (one
number, or ascending ones, as many as a forecast has atoms; the true length if absent); ``prefix_ids`` (ids of
the prompt's blocks) with ``prefix_block_tokens`` (the same in all rows); ``session`` (whose turn it is) with
``think_s`` [s from the end of the session's answer before; empty: sent at arrival_s whatever happens];
``thinking_tokens`` (before the first answer token, below ``output_tokens``) with ``ttfat_s`` [s] and
``predicted_thinking_tokens`` (as for outputs). Lists are JSON arrays, or numbers with spaces in CSV.

Other names for the same things, and other units, are those of `slosched.workloads.columns`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.errors import DataError
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.reading import Table, open_table
from slosched.core.thinking import Thinking
from slosched.core.workload import PrefixBlocks, Workload
from slosched.workloads.columns import Columns, Notes, left_out_words, recognise
from slosched.workloads.fields import (
    MOST_SECONDS,
    MOST_TOKENS,
    UNIT_WORDS,
    Clock,
    nothing,
    number,
    tokens,
    whole,
)

GENERIC_REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length", "hash_ids")
"""Mooncake's keys, whose times are in milliseconds; without the last one such a trace is read like others."""
LIMITS = ("ttft_s", "tpot_s", "e2e_s")
NO_TOKENS = "no prompt or no answer tokens"


def read_generic(source: str | Path | Table, *, time_unit: str | None = None) -> tuple[Workload, Notes]:
    """A workload from a table, and what was recognised; see this module for the columns.

    In our own columns times must ascend and lengths be at least 1. In others' files rows without tokens are
    requests that failed: they are left out and counted; and rows out of order are sorted.

    Parameters
    ----------
    source
        A file, or a table that is open.
    time_unit
        Unit of times whose column does not say it; by default told by evidence.

    Raises
    ------
    DataError
        If a column is missing or a value outside its domain.
    InputError
        If the unit of the times cannot be told.
    """
    table = source if isinstance(source, Table) else open_table(source)
    found = recognise(table.names)
    reader = _Rows(table, found)
    names = [column.name for column in found.columns]
    for row, fields in table.rows(reader.required, names, everywhere=False):
        reader.add(row, fields)
    return reader.workload(time_unit)


class _Rows:
    """Collects checked rows; every value goes straight into a typed array."""

    def __init__(self, table: Table, found: Columns) -> None:
        self.table, self.found, self.path = table, found, table.path
        self.own = found.first("arrival", "arrival_s") == "arrival_s"
        self.required = [
            found.first(meaning, own)
            for meaning, own in zip(("arrival", *GENERIC_REQUIRED[1:]), GENERIC_REQUIRED, strict=True)
        ]
        self.clock = Clock(self.path, self.required[0], ascending=self.own)
        self.real = {
            name: array("d") for name in (*LIMITS, "weight", "atoms", "think_s", "ttfat_s", "thoughts")
        }
        self.integer = {
            name: array("q")
            for name in (
                "prompt_tokens", "output_tokens", "priority", "class_index", "tenant_index", "session", "ids",
                "counts", "thinking",
            )
        }  # fmt: skip
        self.classes: dict[str, int] = {}
        self.tenants: dict[str, int] = {}
        self.sessions: dict[str, int] = {}
        self.request_ids: dict[str, int] = {}
        self.block_tokens = 0
        self.left_out = 0

    def add(self, row: int, record: dict[str, Any]) -> None:
        """Check one row and append it."""
        fields = self._fields(record)
        if not self.own and any(_none(fields.get(name)) for name in ("prompt_tokens", "output_tokens")):
            self.left_out += 1
            return
        path = self.path
        self.clock.add(row, fields.get("arrival"))
        for name, column in zip(("prompt_tokens", "output_tokens"), self.required[1:], strict=True):
            self.integer[name].append(tokens(path, row, column, fields.get(name)))
        for name in LIMITS:
            limit = self._duration(row, name.removesuffix("_s"), record, least=1e-12)
            self.real[name].append(math.inf if limit is None else limit)
        weight = fields.get("weight", 1.0)
        domain = "a finite number of at least 0"
        self.real["weight"].append(number(path, row, "weight", weight, 0, MOST_SECONDS, domain))
        domain = "an integer between -2**31 and 2**31"
        self.integer["priority"].append(
            whole(path, row, "priority", fields.get("priority", 0), -(2**31), 2**31, domain)
        )
        for column, numbers, label in (
            ("class_index", self.classes, "slo_class"),
            ("tenant_index", self.tenants, "tenant"),
        ):
            text = self._text(row, label, fields[label]) if label in fields else "default"
            self.integer[column].append(numbers.setdefault(text, len(numbers)))
        self._add_atoms(row, fields.get("predicted_output_tokens"))
        self._add_thinking(row, fields, record)
        self._add_prefix(row, fields)
        self._add_turn(row, fields.get("session"), record)
        if fields.get("request_id") is not None:
            name = self._text(row, "request_id", fields["request_id"])
            if name in self.request_ids:
                raise DataError(path, row, "request_id", "unique", name)
            self.request_ids[name] = row

    def _fields(self, record: dict[str, Any]) -> dict[str, Any]:
        """The values of a row by meaning, without empty ones."""
        fields = {}
        for meaning, columns in self.found.known.items():
            for column in columns:
                value = record.get(column.name)
                if value is not None and value != "":
                    fields[meaning] = value
                    break
        return fields

    def _add_turn(self, row: int, session: object, record: dict[str, Any]) -> None:
        name = None if session is None else self._text(row, "session", session)
        self.integer["session"].append(
            -1 if name is None else self.sessions.setdefault(name, len(self.sessions))
        )
        think = self._duration(row, "think", record, least=0.0)
        self.real["think_s"].append(-1.0 if think is None else think)

    def _duration(self, row: int, meaning: str, record: dict[str, Any], *, least: float) -> float | None:
        """A duration in seconds, at least `least`; None where the row has none."""
        for column in self.found.known.get(meaning, ()):
            value = record.get(column.name)
            if value is None or value == "":
                continue
            bound = "of at least 0" if least == 0 else "above 0"
            domain = f"a number of {UNIT_WORDS[column.unit or 's']} {bound}, or empty"
            low, high = least / column.scale, MOST_SECONDS / column.scale
            given = number(self.path, row, column.name, value, low, high, domain)
            return given if column.scale == 1.0 else given * column.scale
        return None

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
        truth = self.integer["output_tokens"][-1]
        self.real["atoms"].extend(self._atoms(row, "predicted_output_tokens", value, truth, 1))

    def _add_thinking(self, row: int, fields: dict[str, Any], record: dict[str, Any]) -> None:
        most = self.integer["output_tokens"][-1] - 1
        domain = f"an integer from 0 to {most}, below output_tokens"
        tokens = whole(self.path, row, "thinking_tokens", fields.get("thinking_tokens", 0), 0, most, domain)
        self.integer["thinking"].append(tokens)
        limit = self._duration(row, "ttfat", record, least=1e-12)
        if limit is not None and "thinking_tokens" not in self.found:
            raise DataError(self.path, row, "thinking_tokens", "given where ttfat_s is", None)
        self.real["ttfat_s"].append(math.inf if limit is None else limit)
        said = fields.get("predicted_thinking_tokens")
        self.real["thoughts"].extend(self._atoms(row, "predicted_thinking_tokens", said, tokens, 0))

    def _atoms(self, row: int, name: str, value: object, truth: int, least: int) -> list[float]:
        """A forecast, as one number or as many as it has atoms; the truth where it is absent."""
        if value is None:
            return [float(truth)] * FORECAST_ATOMS
        domain = f"one number from {least} to {MOST_TOKENS}, or {FORECAST_ATOMS} ascending ones"
        parts = self._list(row, name, value)
        atoms = [number(self.path, row, name, p, least, MOST_TOKENS * 1000, domain) for p in parts]
        if len(atoms) not in (1, FORECAST_ATOMS) or atoms != sorted(atoms):
            raise DataError(self.path, row, name, domain, str(value)[:80])
        return atoms * (FORECAST_ATOMS // len(atoms))

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

    def workload(self, time_unit: str | None) -> tuple[Workload, Notes]:
        """Everything collected, in order of time."""
        n = len(self.clock.raw)
        if n == 0:
            raise DataError(self.path, None, self.required[2], "above 0 in some row", 0)
        if self.request_ids and len(self.request_ids) != n:
            raise DataError(
                self.path, None, "request_id", f"given in all {n} rows or none", len(self.request_ids)
            )
        named = self.found.known["arrival"][0].unit
        published = "ms" if all(name in self.table.names for name in MOONCAKE_KEYS[:3]) else None
        times, clock = self.clock.seconds(asked=time_unit, named=named, documented=published)
        columns: dict[str, Any] = {k: np.asarray(v, dtype=np.float64) for k, v in self.real.items()}
        columns |= {k: np.asarray(v, dtype=np.int64) for k, v in self.integer.items()}
        ids, counts = columns.pop("ids"), columns.pop("counts")
        prefix = None
        if self.block_tokens:
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            prefix = PrefixBlocks(offsets=offsets, ids=ids, block_tokens=self.block_tokens)
        columns["atoms"] = columns["atoms"].reshape(n, FORECAST_ATOMS)
        thoughts, thinking = columns.pop("thoughts"), None
        limits, lengths = columns.pop("ttfat_s"), columns.pop("thinking")
        if "thinking_tokens" in self.found:
            atoms = thoughts.reshape(n, FORECAST_ATOMS)
            thinking = Thinking(tokens=lengths, ttfat_s=limits, atoms=atoms)
        left_out = {NO_TOKENS: self.left_out} if self.left_out else {}
        order = np.argsort(times, kind="stable")
        workload = Workload(
            name=plain_stem(self.path),
            arrival_s=np.zeros(n),
            classes=tuple(self.classes),
            tenants=tuple(self.tenants),
            prefix=prefix,
            thinking=thinking,
            source=self.path.name + left_out_words(left_out),
            request_ids=tuple(self.request_ids),
            **columns,
        ).rows(order, arrival_s=times[order] if self.own else times[order] - times.min())
        return workload, self._notes(clock, left_out)

    def _notes(self, clock: str, left_out: dict[str, int]) -> Notes:
        columns = self.found.columns
        return Notes(
            format="csv" if self.table.kind == "CSV" else "jsonl",
            holder=self.table.kind,
            clock=clock,
            used=tuple(column.words for column in columns if column.name != self.required[0]),
            unused=unused(self.table, [column.name for column in columns], self.found.doubtful),
            left_out=left_out,
            remarks=() if self.clock.sorted else ("sorted by time",),
        )


def unused(table: Table, known: Iterable[str], doubtful: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Columns that occurred and were not read, each with the reason if there is one."""
    names = set(known)
    reasons = doubtful or {}
    left = [name for name in table.seen if name not in names]
    return tuple(f"{name} ({reasons[name]})" if name in reasons else name for name in left)


def plain_stem(path: Path) -> str:
    """Name of a file without its endings for packing and kind."""
    return path.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[0]


def _none(value: object) -> bool:
    """Whether a length says that there was none."""
    return nothing(value) or value == 0 or (isinstance(value, str) and value.strip() in ("0", "0.0"))
