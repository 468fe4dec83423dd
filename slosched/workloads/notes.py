"""What a reader recognised in a file, so that nothing is guessed in silence."""

from __future__ import annotations

from dataclasses import dataclass, field

from slosched.core.workload import Workload


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
        parts = [f"{path}: {len(workload)} requests{rate}, read as {self.format} ({self.holder})"]
        if self.clock:
            parts.append(f"time from {self.clock}")
        if self.used:
            parts.append(f"read {', '.join(self.used)}")
        parts += [_rows(count, reason) for reason, count in self.left_out.items()]
        parts += self.remarks
        parts.append(f"not used: {', '.join(self.unused)}" if self.unused else "every column used")
        return "; ".join(parts) + "."


def left_out_words(left_out: dict[str, int]) -> str:
    """The rows left out in brackets, for a workload's `source`; nothing if there are none."""
    words = ", ".join(_rows(count, reason) for reason, count in left_out.items() if count)
    return f" ({words})" if words else ""


def _rows(count: int, reason: str) -> str:
    return f"{count} row{'s' if count != 1 else ''} left out: {reason}"
