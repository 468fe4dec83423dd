"""A whole run as one file: what was asked, of which engine under which policy, and what happened."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.engine import Engine
from slosched.core.errors import DataError, InputError
from slosched.core.outcome import Run
from slosched.core.thinking import Thinking
from slosched.core.workload import COLUMNS, PrefixBlocks, Workload
from slosched.core.writing import write_file

SCHEMA = 2
LABELS = ("name", "source", "classes", "tenants", "request_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """A run that can be done again.

    Parameters
    ----------
    policy, seed
        Policy by name, with its default parameters.
    workload
        The requests, with their true lengths.
    engine
        The engine.
    finish_s
        When each request finished, NaN if it did not: shows whether doing it again gives the same.
    """

    policy: str
    seed: int
    workload: Workload
    engine: Engine
    finish_s: Floats


def write_run(path: Path, run: Run, engine: Engine) -> None:
    """Write a run as JSON, compressed if the name ends in .gz.

    Raises
    ------
    InputError
        If the run was not simulated (a live run cannot be done again), or the file cannot be written.
    """
    if run.engine != "simulator":
        raise InputError(f"engine of a saved run must be simulator, got {run.engine!r}.")
    work = run.outcomes.workload
    content = {
        "schema": SCHEMA,
        "policy": run.policy,
        "seed": run.seed,
        "engine": engine.to_dict(),
        "labels": {name: getattr(work, name) for name in LABELS},
        "columns": {name: _plain(getattr(work, name)) for name in COLUMNS},
        "prefix": None
        if work.prefix is None
        else {
            "offsets": work.prefix.offsets.tolist(),
            "ids": work.prefix.ids.tolist(),
            "block_tokens": work.prefix.block_tokens,
        },
        "thinking": None
        if work.thinking is None
        else {
            "tokens": work.thinking.tokens.tolist(),
            "ttfat_s": _plain(work.thinking.ttfat_s),
            "atoms": work.thinking.atoms.tolist(),
        },
        "finish_s": _plain(run.outcomes.finish_s),
    }
    text = json.dumps(content, allow_nan=False).encode()
    write_file(path, gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def read_run(path: Path) -> RunFile:
    """The run in a file that `write_run` wrote.

    Raises
    ------
    InputError
        If it is no such file; the message names file and field.
    """
    raw = path.read_bytes()
    try:
        content = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise DataError(
            path, None, "content", "JSON as `slosched simulate --save` writes it", str(error)
        ) from None
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise DataError(path, None, "schema", str(SCHEMA), found)
    try:
        labels, columns, prefix = content["labels"], content["columns"], content["prefix"]
        fields: dict[str, Any] = {name: _column(columns[name], name) for name in COLUMNS}
        fields |= {name: tuple(labels[name]) for name in LABELS[2:]}
        work = Workload(
            name=labels["name"],
            source=labels["source"],
            **fields,
            prefix=None
            if prefix is None
            else PrefixBlocks(
                offsets=np.array(prefix["offsets"], dtype=np.int64),
                ids=np.array(prefix["ids"], dtype=np.int64),
                block_tokens=prefix["block_tokens"],
            ),
            thinking=_thinking(content.get("thinking")),
        )
        return RunFile(
            policy=content["policy"],
            seed=content["seed"],
            workload=work,
            engine=Engine.parse(content["engine"], where="engine"),
            finish_s=_column(content["finish_s"], "finish_s", none=np.nan),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(path, None, "content", "a whole run", f"{type(error).__name__}: {error}") from None


def _thinking(found: dict[str, Any] | None) -> Thinking | None:
    if found is None:
        return None
    return Thinking(
        tokens=np.array(found["tokens"], dtype=np.int64),
        ttfat_s=_column(found["ttfat_s"], "ttfat_s"),
        atoms=np.array(found["atoms"], dtype=np.float64),
    )


INTEGERS = ("prompt_tokens", "output_tokens", "priority", "class_index", "tenant_index", "session")


def _plain(values: np.ndarray[Any, Any]) -> list[Any]:
    """A column for JSON: what is not finite (no limit, not finished) is null."""
    if values.dtype.kind == "i" or values.ndim > 1:
        plain: list[Any] = values.tolist()
        return plain
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _column(values: list[Any], name: str, none: float = np.inf) -> np.ndarray[Any, Any]:
    if name in INTEGERS:
        return np.array(values, dtype=np.int64)
    if name == "atoms":
        return np.array(values, dtype=np.float64)
    return np.array([none if value is None else value for value in values], dtype=np.float64)
