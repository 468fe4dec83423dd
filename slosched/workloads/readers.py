"""Readers of request traces: every public format becomes a `Workload`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from slosched.core.errors import DataError, InputError
from slosched.core.table import Floats, Ints
from slosched.core.workload import PrefixBlocks, Workload
from slosched.workloads.agentic import AGENTIC_COLUMNS, read_agentic
from slosched.workloads.arrivals import first_arrivals, rescale
from slosched.workloads.files import (
    MOST_TOKENS,
    TOKEN_DOMAIN,
    csv_header,
    csv_rows,
    first_line,
    json_rows,
    moment,
    tokens,
    whole,
)
from slosched.workloads.generic import GENERIC_REQUIRED, read_generic

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
LENGTH_COLUMNS = ("input_tokens", "output_tokens")
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length", "hash_ids")
MOONCAKE_BLOCK_TOKENS = 512

FORMATS = ("azure", "mooncake", "burstgpt", "agentic", "lengths", "csv", "jsonl")
"""Names of the formats `read` knows."""


def read(
    path: str | Path,
    *,
    format: str = "auto",
    rate_per_s: float | None = None,
    cv: float = 1.0,
    seed: int = 0,
    open_loop: bool = False,
) -> Workload:
    """A workload from a file, plain or gzip.

    Parameters
    ----------
    path
        File.
    format
        ``azure`` (TIMESTAMP, ContextTokens, GeneratedTokens), ``mooncake`` (JSON lines with hash_ids),
        ``burstgpt``, ``agentic`` (kv-cache-tester, one row per request), ``lengths`` (input_tokens,
        output_tokens without arrivals), ``csv`` or ``jsonl`` (our own, see `read_generic`), or ``auto`` to
        tell it from the first line.
    rate_per_s
        Mean arrival rate: the trace's clock is stretched to it. Needed where a file has no arrivals.
    cv
        Burstiness of arrivals drawn for a file that has none.
    seed
        Seed of drawn arrivals and of the jitter of quantised time stamps.
    open_loop
        Send every request at its recorded time even where the file says which answer it waited for
        (``agentic``, and ``csv`` and ``jsonl`` with sessions). Other formats are open loop always.

    Returns
    -------
    Workload
        Best effort and with true lengths as forecasts, except where the file says otherwise.

    Raises
    ------
    DataError
        If the file is empty, damaged, not UTF-8, or has a missing column or a value outside its domain; the
        message names file, row, field, domain and value.
    InputError
        If the format is unknown or a file without arrivals is read without a rate.
    """
    file = Path(path)
    kind = sniff(file) if format == "auto" else format
    if kind == "lengths":
        if rate_per_s is None:
            raise InputError(f"rate_per_s must be given since {file} has no arrival times, got None.")
        return read_lengths(file, rate_per_s=rate_per_s, cv=cv, seed=seed)
    readers: dict[str, Callable[[Path], Workload]] = {
        "azure": read_azure,
        "mooncake": lambda p: read_mooncake(p, seed=seed),
        "burstgpt": read_burstgpt,
        "agentic": lambda p: read_agentic(p, seed=seed),
        "csv": read_generic,
        "jsonl": read_generic,
    }
    if kind not in readers:
        raise InputError(f"format must be one of auto, {', '.join(FORMATS)}, got {format!r}.")
    workload = readers[kind](file)
    if open_loop:
        workload = workload.open_loop()
    return workload if rate_per_s is None else rescale(workload, rate_per_s)


def sniff(path: str | Path) -> str:
    """Format of a file by its first line, one of `FORMATS`."""
    file = Path(path)
    line = first_line(file)
    if line.startswith("{"):
        _, row = next(json_rows(file))
        return "mooncake" if "input_length" in row else "jsonl"
    header = csv_header(line)
    for name, columns in (
        ("azure", AZURE_COLUMNS),
        ("burstgpt", BURSTGPT_COLUMNS),
        ("agentic", AGENTIC_COLUMNS),
    ):
        if all(column in header for column in columns):
            return name
    if "arrival_s" in header:
        return "csv"
    if all(column in header for column in LENGTH_COLUMNS):
        return "lengths"
    known = "; ".join(
        ", ".join(c)
        for c in (GENERIC_REQUIRED, AZURE_COLUMNS, BURSTGPT_COLUMNS, AGENTIC_COLUMNS, LENGTH_COLUMNS)
    )
    raise DataError(file, None, "header", f"the columns of a known format ({known})", line[:80])


def read_azure(path: str | Path) -> Workload:
    """Azure LLM inference trace as published: TIMESTAMP, ContextTokens, GeneratedTokens."""
    file = Path(path)
    times, prompts, outputs = array("d"), array("q"), array("q")
    start, before = None, 0.0
    for row, fields in csv_rows(file, AZURE_COLUMNS):
        stamp = _stamp(file, row, fields["TIMESTAMP"])
        start = stamp if start is None else start
        seconds = (stamp - start).total_seconds()
        if seconds < before:
            raise DataError(file, row, "TIMESTAMP", "not before the row above", fields["TIMESTAMP"])
        before = seconds
        times.append(seconds)
        prompts.append(tokens(file, row, "ContextTokens", fields["ContextTokens"]))
        outputs.append(tokens(file, row, "GeneratedTokens", fields["GeneratedTokens"]))
    return _plain(file, times, prompts, outputs, "Azure LLM inference trace")


def read_burstgpt(path: str | Path) -> Workload:
    """BurstGPT trace (arXiv 2401.17644); failed requests, which have 0 tokens, are left out and counted."""
    file = Path(path)
    times, prompts, outputs = array("d"), array("q"), array("q")
    before, failed = 0.0, 0
    for row, fields in csv_rows(file, BURSTGPT_COLUMNS):
        before = moment(file, row, "Timestamp", fields["Timestamp"], before)
        prompt = whole(file, row, "Request tokens", fields["Request tokens"], 0, MOST_TOKENS, TOKEN_DOMAIN)
        output = whole(file, row, "Response tokens", fields["Response tokens"], 0, MOST_TOKENS, TOKEN_DOMAIN)
        if prompt == 0 or output == 0:
            failed += 1
            continue
        times.append(before)
        prompts.append(prompt)
        outputs.append(output)
    if not times:
        raise DataError(file, None, "Response tokens", "above 0 in some row", 0)
    note = f" ({failed} failed requests left out)" if failed else ""
    first = times[0]
    return _plain(file, np.asarray(times) - first, prompts, outputs, f"BurstGPT trace{note}")


def read_lengths(path: str | Path, *, rate_per_s: float, cv: float = 1.0, seed: int = 0) -> Workload:
    """Lengths without arrivals (input_tokens, output_tokens), in the file's order at gamma arrivals."""
    file = Path(path)
    prompts, outputs = array("q"), array("q")
    for row, fields in csv_rows(file, LENGTH_COLUMNS):
        prompts.append(tokens(file, row, "input_tokens", fields["input_tokens"]))
        outputs.append(tokens(file, row, "output_tokens", fields["output_tokens"]))
    times = first_arrivals(len(prompts), rate_per_s, cv=cv, rng=np.random.default_rng(seed))
    return _plain(file, times, prompts, outputs, f"lengths of {file.name}, gamma arrivals of CV {cv:g}")


def read_mooncake(path: str | Path, *, jitter_s: float | None = None, seed: int = 0) -> Workload:
    """Mooncake trace (Qin et al., FAST 2025): JSON lines with the hash ids of 512-token blocks.

    Parameters
    ----------
    path
        File.
    jitter_s
        Seconds over which the requests of one time stamp are spread at random; None finds the step of the
        file's clock (3 s in two of the published traces, whose raw bursts are an artefact of it).
    seed
        Seed of the jitter.
    """
    file = Path(path)
    times, prompts, outputs = array("d"), array("q"), array("q")
    counts, ids = array("q", [0]), array("q")
    before = 0.0
    for row, fields in json_rows(file):
        for key in MOONCAKE_KEYS:
            if key not in fields:
                raise DataError(file, row, "keys", f"{', '.join(MOONCAKE_KEYS)}", ", ".join(fields)[:80])
        before = moment(file, row, "timestamp", fields["timestamp"], before, "milliseconds")
        times.append(before / 1000)
        prompts.append(tokens(file, row, "input_length", fields["input_length"]))
        outputs.append(tokens(file, row, "output_length", fields["output_length"]))
        blocks = fields["hash_ids"]
        if not isinstance(blocks, list) or len(blocks) > -(-prompts[-1] // MOONCAKE_BLOCK_TOKENS):
            raise DataError(
                file, row, "hash_ids", "a list of at most one id per 512 tokens", str(blocks)[:80]
            )
        ids.extend(whole(file, row, "hash_ids", b, 0, 2**53, "integers from 0 to 2**53") for b in blocks)
        counts.append(len(blocks))
    prefix = PrefixBlocks(
        offsets=np.cumsum(np.asarray(counts, dtype=np.int64)),
        ids=np.asarray(ids, dtype=np.int64),
        block_tokens=MOONCAKE_BLOCK_TOKENS,
    )
    raw = np.asarray(times) - times[0]
    spread = clock_step(raw) if jitter_s is None else jitter_s
    workload = _plain(file, raw, prompts, outputs, "Mooncake trace", prefix)
    if not spread:
        return workload
    moved = raw + np.random.default_rng(seed).random(len(raw)) * spread
    order = np.argsort(moved, kind="stable")
    return workload.rows(order, arrival_s=moved[order])


def clock_step(arrival_s: Floats) -> float:
    """Step in seconds of a quantised clock; 0 if fewer than half the requests share a time stamp."""
    distinct = np.unique(arrival_s)
    if len(distinct) < 2 or 2 * len(distinct) > len(arrival_s):
        return 0.0
    return float(np.median(np.diff(distinct)))


def _stamp(path: Path, row: int, text: str) -> datetime:
    try:
        stamp = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise DataError(path, row, "TIMESTAMP", "a time such as 2023-11-16 18:17:03.97", text) from error
    return stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)


def _ints(values: Sequence[int] | Ints) -> Ints:
    return np.asarray(values, dtype=np.int64)


def _plain(
    path: Path,
    times: Sequence[float] | Floats,
    prompts: Sequence[int] | Ints,
    outputs: Sequence[int] | Ints,
    source: str,
    prefix: PrefixBlocks | None = None,
) -> Workload:
    name = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    arrivals = np.asarray(times, dtype=np.float64)
    return Workload.plain(arrivals, _ints(prompts), _ints(outputs), name=name, prefix=prefix, source=source)
