"""Readers of request traces: every public format becomes a `Workload`, and nothing is guessed in silence."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import DataError, InputError
from slosched.core.reading import Table, flat, open_table
from slosched.core.workload import Workload
from slosched.workloads.agentic import AGENTIC_COLUMNS, LOOP_COLUMNS, read_agentic
from slosched.workloads.arrivals import first_arrivals, rescale
from slosched.workloads.columns import Notes, left_out_words, recognise
from slosched.workloads.fields import MOST_TOKENS, TOKEN_DOMAIN, Clock, whole
from slosched.workloads.generic import (
    GENERIC_REQUIRED,
    MOONCAKE_KEYS,
    NO_TOKENS,
    plain_stem,
    read_generic,
    unused,
)
from slosched.workloads.hashed import BAILIAN_KEYS, read_hashed
from slosched.workloads.hashed import MOONCAKE_BLOCK_TOKENS as MOONCAKE_BLOCK_TOKENS
from slosched.workloads.hashed import clock_step as clock_step
from slosched.workloads.hashed import read_mooncake as read_mooncake
from slosched.workloads.toollogs import (
    AIPERF_KEYS,
    GUIDELLM_KEYS,
    VLLM_LISTS,
    openai_log,
    read_aiperf,
    read_guidellm,
    read_openai,
    read_vllm,
)

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
FORMATS = (
    "azure", "mooncake", "bailian", "burstgpt", "agentic", "vllm", "aiperf", "guidellm", "openai", "lengths",
    "csv", "jsonl",
)  # fmt: skip
"""Names of the formats `read` knows."""

Said = Callable[[str], None]


def read(
    path: str | Path,
    *,
    format: str = "auto",
    rate_per_s: float | None = None,
    cv: float = 1.0,
    seed: int = 0,
    open_loop: bool = False,
    time_unit: str | None = None,
    said: Said | None = None,
) -> Workload:
    """A workload from a file: CSV, JSON lines, JSON or Parquet, plain, gzip or Zstandard.

    Parameters
    ----------
    path
        File.
    format
        ``azure`` (TIMESTAMP, ContextTokens, GeneratedTokens), ``mooncake`` and ``bailian`` (records with
        hash_ids), ``burstgpt``, ``agentic`` (kv-cache-tester, one row per request), ``vllm`` (``vllm bench
        serve --save-detailed``), ``aiperf`` (profile_export.jsonl), ``guidellm`` (benchmarks.json),
        ``openai`` (answers with their usage), ``lengths`` (input and output tokens without arrivals), ``csv``
        or ``jsonl`` (any other table, see `read_generic`), or ``auto`` to tell it from the columns.
    rate_per_s
        Mean arrival rate: the trace's clock is stretched to it. Needed where a file has no arrivals.
    cv
        Burstiness of arrivals drawn for a file that has none.
    seed
        Seed of drawn arrivals and of the jitter of quantised time stamps.
    open_loop
        Send every request at its recorded time even where the file says which answer it waited for
        (``agentic``, and ``csv`` and ``jsonl`` with sessions). Other formats are open loop always.
    time_unit
        ``s``, ``ms``, ``us`` or ``ns`` for times whose column does not say it; by default told by evidence.
    said
        Called with one sentence on what was recognised, what was left out and which columns are not used.

    Returns
    -------
    Workload
        Best effort and with true lengths as forecasts, except where the file says otherwise. Times count from
        the first request, except in our own format, where a start after 0 is kept.

    Raises
    ------
    DataError
        If the file is empty, damaged, not UTF-8, or has a missing column or a value outside its domain; the
        message names file, row, field, domain and value.
    InputError
        If the format is unknown, the unit of times cannot be told, or a file without arrivals is read without
        a rate.
    """
    if format not in ("auto", *FORMATS):
        raise InputError(f"format must be one of auto, {', '.join(FORMATS)}, got {format!r}.")
    table = open_table(path)
    kind = format
    if format == "auto":
        table, kind = _told(table)
    if kind == "lengths":
        if rate_per_s is None:
            names = ", ".join(table.names)[:200]
            raise InputError(
                f"rate_per_s must be given since {path} has no column known as the time of arrival "
                f"({names}), got None."
            )
        workload, notes = _lengths(table, rate_per_s, cv, seed)
    else:
        workload, notes = _read(table, kind, seed, time_unit)
        if open_loop:
            workload = workload.open_loop()
        if rate_per_s is not None:
            workload = rescale(workload, rate_per_s)
    if said is not None:
        said(notes.sentence(workload, str(path)))
    return workload


def sniff(path: str | Path) -> str:
    """Format of a file by its columns, one of `FORMATS`."""
    return _told(open_table(path))[1]


def _told(table: Table) -> tuple[Table, str]:
    """A table and its format; what is told only from what records hold in objects is read from there."""
    try:
        return table, format_of(table)
    except DataError:
        within = flat(table)
        if within is None:
            raise
        return within, format_of(within)


def format_of(table: Table) -> str:
    """Format of a table by its columns, one of `FORMATS`."""
    names = table.names
    for kind, columns in (
        ("azure", AZURE_COLUMNS), ("burstgpt", BURSTGPT_COLUMNS), ("agentic", AGENTIC_COLUMNS),
        ("bailian", (*MOONCAKE_KEYS, *BAILIAN_KEYS)), ("vllm", VLLM_LISTS), ("aiperf", AIPERF_KEYS),
        ("guidellm", GUIDELLM_KEYS),
    ):  # fmt: skip
        if all(column in names for column in columns):
            return kind
    found = recognise(names)
    if table.kind != "CSV" and "arrival" in found and "hash_ids" in names:
        return "mooncake" if "arrival_s" not in names else "jsonl"
    logs = table.kind != "CSV" and ("usage" in names or "response" in names) and "prompt_tokens" not in found
    if logs and any(openai_log(record) for _, record in table.records()):
        return "openai"
    if "arrival" in found and ("prompt_tokens" in found or "arrival_s" in names):
        return "csv" if table.kind == "CSV" else "jsonl"
    if "prompt_tokens" in found and "output_tokens" in found:
        return "lengths"
    kinds = (GENERIC_REQUIRED, AZURE_COLUMNS, BURSTGPT_COLUMNS, AGENTIC_COLUMNS, MOONCAKE_KEYS)
    known = "; ".join(", ".join(columns) for columns in kinds)
    got = ", ".join(names)[:200]
    raise DataError(table.path, None, "header", f"the columns of a known format ({known})", got)


def _read(table: Table, kind: str, seed: int, time_unit: str | None) -> tuple[Workload, Notes]:
    if kind in ("mooncake", "bailian"):
        return read_hashed(table, seed=seed, time_unit=time_unit)
    if kind == "agentic":
        workload = read_agentic(table, seed=seed)
        names = [*AGENTIC_COLUMNS, *(name for name in LOOP_COLUMNS if name in table.names)]
        clock = "t_s: seconds (by its name), session starts drawn"
        notes = Notes(
            format=kind, holder=table.kind, clock=clock, used=tuple(names), unused=unused(table, names)
        )
        return workload, notes
    if kind == "aiperf":
        return read_aiperf(table)
    readers = {
        "azure": read_azure, "burstgpt": read_burstgpt, "vllm": read_vllm, "guidellm": read_guidellm,
        "openai": read_openai,
        "csv": read_generic, "jsonl": read_generic,
    }  # fmt: skip
    return readers[kind](table, time_unit=time_unit)


def read_azure(table: Table, *, time_unit: str | None = None) -> tuple[Workload, Notes]:
    """Azure LLM inference trace as published: TIMESTAMP, ContextTokens, GeneratedTokens."""
    return _published(table, AZURE_COLUMNS, "Azure LLM inference trace", "azure", None, time_unit)


def read_burstgpt(table: Table, *, time_unit: str | None = None) -> tuple[Workload, Notes]:
    """BurstGPT trace (arXiv 2401.17644); failed requests, which have 0 tokens, are left out and counted."""
    return _published(table, BURSTGPT_COLUMNS, "BurstGPT trace", "burstgpt", "s", time_unit)


def _published(
    table: Table, columns: Sequence[str], source: str, kind: str, documented: str | None, asked: str | None
) -> tuple[Workload, Notes]:
    """A trace of times and two lengths, in order of time; rows without tokens are left out and counted."""
    clock = Clock(table.path, columns[0])
    prompts, outputs = array("q"), array("q")
    left_out = 0
    for row, fields in table.rows(columns):
        prompt, output = (
            whole(table.path, row, name, fields[name], 0, MOST_TOKENS, TOKEN_DOMAIN) for name in columns[1:]
        )
        if prompt == 0 or output == 0:
            left_out += 1
            continue
        clock.add(row, fields[columns[0]])
        prompts.append(prompt)
        outputs.append(output)
    if not prompts:
        raise DataError(table.path, None, columns[2], "above 0 in some row", 0)
    times, words = clock.seconds(documented=documented, asked=asked)
    reasons = {NO_TOKENS: left_out} if left_out else {}
    order = np.argsort(times, kind="stable")
    prompts_, outputs_ = (np.asarray(values, dtype=np.int64)[order] for values in (prompts, outputs))
    times = times[order] - times.min()
    workload = _plain(table, times, prompts_, outputs_, source + left_out_words(reasons))
    return workload, Notes(
        format=kind, holder=table.kind, clock=words, used=tuple(columns[1:]), unused=unused(table, columns),
        left_out=reasons, remarks=() if clock.sorted else ("sorted by time",),
    )  # fmt: skip


def read_lengths(path: str | Path, *, rate_per_s: float, cv: float = 1.0, seed: int = 0) -> Workload:
    """Lengths without arrivals (input_tokens, output_tokens), in the file's order at gamma arrivals."""
    return _lengths(open_table(path), rate_per_s, cv, seed)[0]


def _lengths(table: Table, rate_per_s: float, cv: float, seed: int) -> tuple[Workload, Notes]:
    found = recognise(table.names)
    columns = [found.first("prompt_tokens", "input_tokens"), found.first("output_tokens", "output_tokens")]
    prompts, outputs = array("q"), array("q")
    for row, fields in table.rows(columns):
        for name, values in zip(columns, (prompts, outputs), strict=True):
            values.append(whole(table.path, row, name, fields.get(name), 1, MOST_TOKENS, TOKEN_DOMAIN))
    times = first_arrivals(len(prompts), rate_per_s, cv=cv, rng=np.random.default_rng(seed))
    source = f"lengths of {table.path.name}, gamma arrivals of CV {cv:g}"
    notes = Notes(
        format="lengths", holder=table.kind, clock=f"no column: drawn at {rate_per_s:g}/s, CV {cv:g}",
        used=tuple(columns), unused=unused(table, columns),
    )  # fmt: skip
    return _plain(table, times, prompts, outputs, source), notes


def _plain(
    table: Table,
    times: Iterable[float] | Floats,
    prompts: Sequence[int] | Ints,
    outputs: Sequence[int] | Ints,
    source: str,
) -> Workload:
    def ints(values: Sequence[int] | Ints) -> Ints:
        return np.asarray(values, dtype=np.int64)

    arrivals = np.asarray(times, dtype=np.float64)
    return Workload.plain(arrivals, ints(prompts), ints(outputs), name=plain_stem(table.path), source=source)
