"""Results of studies by key, in a file of JSON lines that is only ever appended to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slosched.core.outcome import Run

Plain = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One result.

    Parameters
    ----------
    key
        All that the result depends on: plain values.
    result
        The figures.
    provenance
        Where it was made: commit, versions, machine. The result does not depend on it.
    run
        The whole run where it was asked for, in memory only.
    """

    key: Plain
    result: Plain
    provenance: Plain
    run: Run | None = field(default=None, repr=False, compare=False)


class Store:
    """Results by key. Two processes may read one file, but only one may add to it.

    A line carries a digest of itself. Lines that do not parse or do not match theirs are named in
    `complaints` and count as not there; of two lines with one key the first counts.

    Parameters
    ----------
    path
        The file, made with the first result; None keeps results in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.complaints: list[str] = []
        self._found: dict[str, Record] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                content = json.loads(line)
                record = Record(**{name: content[name] for name in ("key", "result", "provenance")})
                if content["digest"] != digest_of(record.key, record.result):
                    raise ValueError("digest")
            except (ValueError, KeyError, TypeError):
                self.complaints.append(f"{path}, row {number}: not a whole result; it is run again.")
                continue
            self._found.setdefault(digest_of(record.key), record)
        # A crash can leave half a line at the end: what follows must start on a line of its own.
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def __contains__(self, key: Plain) -> bool:
        return digest_of(key) in self._found

    def __getitem__(self, key: Plain) -> Record:
        return self._found[digest_of(key)]

    def __len__(self) -> int:
        return len(self._found)

    def records(self) -> list[Record]:
        """All results, in the order they came."""
        return list(self._found.values())

    def add(self, record: Record) -> None:
        """Keep a result, in the file before anywhere else; one that the file has is not written again."""
        if self.path is not None and record.key not in self:
            line = {
                "key": record.key,
                "result": record.result,
                "provenance": record.provenance,
                "digest": digest_of(record.key, record.result),
            }
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        self._found[digest_of(record.key)] = record


def digest_of(*values: Any) -> str:
    """Sixteen hexadecimal digits that stand for plain values, whatever the order of their keys.

    Examples
    --------
    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
