"""Which column of a file means what: names that public traces and tools use, with their units; and what a
reader recognised, so that nothing is guessed in silence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from slosched.core.workload import Workload
from slosched.workloads.fields import UNIT_WORDS, UNITS

ALIASES: dict[str, tuple[str, ...]] = {
    "arrival": (
        "arrival", "arrival_time", "arrived_at", "arrival_timestamp", "timestamp", "time_stamp", "time", "ts",
        "request_time", "request_timestamp", "request_start", "request_start_time", "start_time", "start",
        "sent_at", "send_time", "submit_time", "submitted_at", "request_created_at", "received_at",
        "enqueued_at", "event_time", "created_at", "created", "datetime", "date",
        "start_time_unix", "time_unix",
    ),
    "prompt_tokens": (
        "prompt_tokens", "input_tokens", "context_tokens", "request_tokens", "prompt_length", "input_length",
        "prompt_len", "input_len", "num_prompt_tokens", "num_input_tokens", "num_prefill_tokens",
        "number_input_tokens", "number_prompt_tokens", "n_prompt_tokens", "n_input_tokens", "prefill_tokens",
        "prompt_size", "prompt_eval_count", "tokens_evaluated", "native_tokens_prompt",
        "prompt_token_count", "input_token_count", "input_sequence_length", "isl", "tokens_prompt",
        "tokens_input", "tokens_in", "usage_input",
        "gen_ai_usage_input_tokens", "gen_ai_usage_prompt_tokens",
    ),
    "output_tokens": (
        "output_tokens", "completion_tokens", "generated_tokens", "response_tokens", "output_length",
        "output_len", "response_length", "num_output_tokens", "num_completion_tokens",
        "num_generated_tokens", "num_decode_tokens", "number_output_tokens", "number_completion_tokens",
        "n_output_tokens", "n_completion_tokens", "n_generated_tokens", "decode_tokens", "token_size",
        "eval_count", "tokens_predicted", "native_tokens_completion", "output_token_count",
        "completion_token_count",
        "output_sequence_length", "osl", "candidates_token_count", "tokens_completion", "tokens_output",
        "tokens_out", "usage_output", "gen_ai_usage_output_tokens", "gen_ai_usage_completion_tokens",
    ),
    "ttft": ("ttft", "ttft_slo", "slo_ttft", "ttft_limit"),
    "tpot": ("tpot", "tpot_slo", "slo_tpot", "tpot_limit"),
    "e2e": ("e2e", "e2e_slo", "slo_e2e", "e2e_limit"),
    "ttfat": ("ttfat", "ttfat_slo", "slo_ttfat", "ttfat_limit"),
    "thinking_tokens": ("thinking_tokens", "reasoning_tokens", "num_reasoning_tokens"),
    "slo_class": ("slo_class", "class"),
    "tenant": ("tenant", "tenant_id", "user", "user_id"),
    "weight": ("weight", "slo_weight"),
    "priority": ("priority",),
    "request_id": ("request_id",),
    "session": ("session", "session_id", "conversation_id"),
    "think": ("think",),
    "predicted_output_tokens": ("predicted_output_tokens",),
    "predicted_thinking_tokens": ("predicted_thinking_tokens",),
    "prefix_ids": ("prefix_ids",),
    "prefix_block_tokens": ("prefix_block_tokens",),
}  # fmt: skip
"""Names of each field without their unit, the surest first."""

TIMES = ("arrival", "ttft", "tpot", "e2e", "ttfat", "think")
"""Fields in seconds, whose names may end in a unit."""

UNIT_ENDINGS = {
    "s": "s", "sec": "s", "secs": "s", "seconds": "s", "ms": "ms", "msec": "ms", "millis": "ms",
    "milliseconds": "ms", "us": "us", "microseconds": "us", "ns": "ns", "nano": "ns", "nanos": "ns",
    "nanoseconds": "ns",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the file: its name there, and the unit that the name says, if it does."""

    name: str
    unit: str | None = None

    @property
    def scale(self) -> float:
        """Seconds in the unit; 1 where none is said."""
        return UNITS[self.unit] if self.unit else 1.0

    @property
    def words(self) -> str:
        """Name and unit for a message."""
        return f"{self.name} ({UNIT_WORDS[self.unit]})" if self.unit else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the columns of a file mean.

    Parameters
    ----------
    known
        Columns of each field that was found, the surest first: in each row the first that has a value counts.
    doubtful
        Why a column that looks like a field is not read, by its name.
    """

    known: dict[str, tuple[Column, ...]]
    doubtful: dict[str, str] = field(default_factory=dict)

    def __contains__(self, meaning: str) -> bool:
        return meaning in self.known

    def first(self, meaning: str, default: str) -> str:
        """Name of the surest column of a field; `default` if there is none."""
        return self.known[meaning][0].name if meaning in self.known else default

    @property
    def columns(self) -> list[Column]:
        """Every column that is read."""
        return [column for found in self.known.values() for column in found]


def plain_name(name: str) -> tuple[str, str | None]:
    """A column's name in lower case with underscores, without its unit, and the unit.

    Examples
    --------
    >>> plain_name("ContextTokens"), plain_name("Request Latency (ms)"), plain_name("arrival_s")
    (('context_tokens', None), ('request_latency', 'ms'), ('arrival', 's'))
    """
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = [word for word in re.split(r"[^a-z0-9]+", split.lower()) if word]
    if len(words) > 1 and words[-1] in UNIT_ENDINGS:
        return "_".join(words[:-1]), UNIT_ENDINGS[words[-1]]
    return "_".join(words), None


def recognise(names: Sequence[str]) -> Columns:
    """What each column means; the time of arrival comes from one column only, the one named most clearly.

    Examples
    --------
    >>> found = recognise(["request_id", "timestamp", "input_tokens", "output_tokens", "ttft_ms", "note"])
    >>> found.first("ttft", ""), sorted(found.known)
    ('ttft_ms', ['arrival', 'output_tokens', 'prompt_tokens', 'request_id', 'ttft'])
    """
    plain: dict[str, list[Column]] = {}
    for name in names:
        base, unit = plain_name(name)
        plain.setdefault(base, []).append(Column(name=name, unit=unit))
    known: dict[str, tuple[Column, ...]] = {}
    doubtful: dict[str, str] = {}
    for meaning, aliases in ALIASES.items():
        found: list[Column] = []
        for column in (column for alias in aliases for column in plain.get(alias, ())):
            if column.unit is not None and meaning not in TIMES:
                continue
            if meaning in TIMES[1:] and column.unit is None:
                doubtful[column.name] = f"its name must end in a unit, {column.name}_s or {column.name}_ms"
                continue
            found.append(column)
        if found:
            known[meaning] = tuple(found[:1] if meaning == "arrival" else found)
    return Columns(known=known, doubtful=doubtful)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What a reader made of one file.

    Parameters
    ----------
    format
        Name of the format, one of `slosched.workloads.readers.FORMATS`.
    holder
        What holds the rows: CSV, JSON lines, JSON or Parquet.
    clock
        How the times were read: column, unit, and the evidence for it.
    used
        Columns that were read, as the file names them, with their units.
    unused
        Columns that were not read, with the reason where there is one.
    left_out
        Rows left out, by reason.
    remarks
        Further sentences.
    """

    format: str
    holder: str
    clock: str = ""
    used: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def sentence(self, workload: Workload, path: str) -> str:
        """One line for a user."""
        span = float(workload.arrival_s[-1] - workload.arrival_s[0]) if len(workload) else 0.0
        rate = f" over {span:.4g} s, {(len(workload) - 1) / span:.3g}/s" if span > 0 else ""
        if span == 0 and len(workload) > 1:
            rate = ", all at the same time"
        parts = [f"{path}: {len(workload)} requests{rate}, read as {self.format} ({self.holder})"]
        if self.clock:
            parts.append(f"time from {self.clock}")
        if self.used:
            parts.append(f"read {', '.join(self.used)}")
        parts += [_rows(count, reason) for reason, count in self.left_out.items()]
        parts += self.remarks
        parts.append(
            f"not used: {', '.join(name or 'a column without a name' for name in self.unused)}"
            if self.unused
            else "every column used"
        )
        return "; ".join(parts) + "."


def left_out_words(left_out: dict[str, int]) -> str:
    """The rows left out in brackets, for a workload's `source`; nothing if there are none."""
    words = ", ".join(_rows(count, reason) for reason, count in left_out.items() if count)
    return f" ({words})" if words else ""


def _rows(count: int, reason: str) -> str:
    return f"{count} row{'s' if count != 1 else ''} left out: {reason}"
