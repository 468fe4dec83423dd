"""Step-time logs: one row per engine step, with its work and its duration."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import DataError
from slosched.core.reading import open_table

logger = logging.getLogger("slosched")

FLUSH_ROWS = 64
"""Rows after which a writer flushes: at most this many are lost when the engine is killed."""

COLUMNS = ("prefill_tokens", "attention_work", "sequences", "kv_tokens", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepLog:
    """Work and duration of n engine steps, each array of shape (n,).

    Parameters
    ----------
    prefill_tokens, attention_work, sequences, kv_tokens
        T, A, B and K as `slosched.core.steptime.StepTimeModel` defines them.
    seconds
        Measured duration of each step, above 0.
    """

    prefill_tokens: Floats
    attention_work: Floats
    sequences: Floats
    kv_tokens: Floats
    seconds: Floats

    def __len__(self) -> int:
        return len(self.seconds)


def read_step_log(path: str | Path) -> StepLog:
    """Read a step-time log in CSV (with a header) or JSONL, plain or packed, both told by content.

    Parameters
    ----------
    path
        File with the columns or keys prefill_tokens, attention_work, sequences, kv_tokens and seconds;
        others are ignored.

    Raises
    ------
    DataError
        If the file cannot be read or is empty or cut off, lacks a column, or has a value that is not a finite
        number of at least 0 (seconds: above 0).
    """
    rows = [_checked(path, index, row) for index, row in open_table(path).rows(COLUMNS)]
    table = np.array(rows, dtype=np.float64)
    return StepLog(**{name: table[:, column].copy() for column, name in enumerate(COLUMNS)})


class StepLogWriter:
    """Appends rows to a CSV step-time log, for `read_step_log`; an error ends the log, never the caller.

    Parameters
    ----------
    path
        File to append to; a new one gets a header.

    Attributes
    ----------
    error
        Why nothing is written any more, or None.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     writer = StepLogWriter(Path(folder) / "steps.csv")
    ...     writer.add(0, 0, 8, 4000, 0.011)
    ...     writer.close()
    ...     log = read_step_log(Path(folder) / "steps.csv")
    >>> log.sequences.tolist(), log.seconds.tolist()
    ([8.0], [0.011])
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._rows = 0
        self._file: TextIO | None = None
        try:
            new = not path.exists() or path.stat().st_size == 0
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", newline="")
            if new:
                self._file.write(",".join(COLUMNS) + "\n")
        except OSError as error:
            self._end(error)

    def add(
        self, prefill_tokens: float, attention_work: float, sequences: float, kv_tokens: float, seconds: float
    ) -> None:
        """Note one step; rows reach the disk `FLUSH_ROWS` at a time."""
        if self._file is None:
            return
        self._rows += 1
        try:
            self._file.write(
                f"{prefill_tokens:g},{attention_work:.10g},{sequences:g},{kv_tokens:.10g},{seconds:.9g}\n"
            )
            if self._rows % FLUSH_ROWS == 0:
                self._file.flush()
        except OSError as error:
            self._end(error)

    def close(self) -> None:
        """Write what is left."""
        self._end(None)

    def _end(self, error: OSError | None) -> None:
        file, self._file = self._file, None
        if error is not None and self.error is None:
            logger.warning("slosched: no step is logged any more: %s", error)
        self.error = self.error or error
        if file is not None:
            try:
                file.close()
            except OSError as last:
                self.error = self.error or last


def _checked(path: str | Path, index: int, row: Mapping[str, object]) -> list[float]:
    """The five numbers of a row, or the error that names the first bad one."""
    values = []
    for name in COLUMNS:
        if name not in row:
            raise DataError(path, index, "keys", f"an object with the key {name}", ",".join(row))
        cell = row[name]
        domain = "a finite number above 0" if name == "seconds" else "a finite number of at least 0"
        try:
            value = float(cell) if isinstance(cell, str | int | float) else math.nan
        except (ValueError, OverflowError):
            value = math.nan
        if not (0 <= value < math.inf) or isinstance(cell, bool) or (name == "seconds" and value == 0):
            raise DataError(path, index, name, domain, cell)
        values.append(value)
    return values
