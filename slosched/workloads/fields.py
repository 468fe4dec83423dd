"""Fields of workload files, checked; whatever is wrong becomes one clear error. Times by their unit, which is
told by evidence.
"""

from __future__ import annotations

import math
import re
from array import array
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import DataError, InputError, require
from slosched.core.reading import MOST_SHOWN

MOST_TOKENS = 10_000_000
"""Longest believable prompt or answer; more is taken for a damaged file."""
MOST_SECONDS = 1e10
"""Latest believable time: three centuries."""
MOST_DIGITS = 18
"""Longer digits are no length; this also keeps `int` fast."""
TOKEN_DOMAIN = f"an integer from 1 to {MOST_TOKENS}"

NOTHING = ("", "nan", "null", "none", "na", "n/a", "-")
"""Words, in lower case, that tools write where there is no value."""

GROUPS = re.compile(r"[0-9]{1,3}(?:([, \u00a0\u202f'])[0-9]{3})(?:\1[0-9]{3})*")
"""A whole number with its thousands apart, as spreadsheets write it. A point is none of these: it may be one
of fractions.
"""

EITHER = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3})*\.000")
"""A whole number with zeros for its fractions, or one of thousands: some countries write these so."""

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds in each unit of time that can be named."""

UNIT_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

EPOCH_S = (946_684_800.0, 4_102_444_800.0)
"""Seconds since 1970 of the years 2000 and 2100: a first time in between is a date, in whatever unit."""

FAST_PER_S = 500.0
"""Mean rates from here on are not believed of one trace: then a larger unit is meant. Azure's has 73/s."""

SLOW_PER_S = 0.02
"""Mean rates below this, one request in 50 s, are not believed: then the smaller unit is meant."""


def whole(path: Path, row: int, field: str, value: object, low: int, high: int, domain: str) -> int:
    """An integer field from `low` to `high`, from text or JSON; 12.0 counts as 12, and 1,200 as 1200; 1.000
    is refused, since it may be either.
    """
    if isinstance(value, str) and len(value) < MOST_DIGITS and value.isascii() and value.isdigit():
        exact = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        exact = value
    elif isinstance(value, str) and len(value) < MOST_DIGITS and GROUPS.fullmatch(value.strip()):
        exact = int(re.sub("[^0-9]", "", value))
    elif isinstance(value, str) and EITHER.fullmatch(value.strip()):
        raise DataError(path, row, field, f"{domain}, its thousands not apart by points", shown(value))
    else:
        real = real_number(value)
        if not (math.isfinite(real) and real == int(real)):
            raise DataError(path, row, field, domain, shown(value))
        exact = int(real)
    if not low <= exact <= high:
        raise DataError(path, row, field, domain, shown(value))
    return exact


def tokens(path: Path, row: int, field: str, value: object) -> int:
    """A length field: an integer from 1 to `MOST_TOKENS`."""
    return whole(path, row, field, value, 1, MOST_TOKENS, TOKEN_DOMAIN)


def number(path: Path, row: int, field: str, value: object, low: float, high: float, domain: str) -> float:
    """A finite number field from `low` to `high`, from text or JSON."""
    answer = real_number(value)
    if not low <= answer <= high:
        raise DataError(path, row, field, domain, shown(value))
    return answer


def moment(path: Path, row: int, field: str, value: object, before: float, unit: str = "seconds") -> float:
    """A time field that must not fall below `before`, the one of the row above (0 at first)."""
    answer = real_number(value)
    if not before <= answer <= MOST_SECONDS:
        domain = f"{unit} of at least {before:g}" + (", the one before" if before else "")
        raise DataError(path, row, field, domain, shown(value))
    return answer


def shown(value: object) -> object:
    """The value for an error message: a long one is cut."""
    text = str(value)
    return value if len(text) <= MOST_SHOWN else text[:MOST_SHOWN]


def real_number(value: object) -> float:
    """A number from text or JSON; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def nothing(value: object) -> bool:
    """Whether a cell says that there is no value.

    Examples
    --------
    >>> [nothing(cell) for cell in (None, "", "NaN", "NULL", float("nan"), "0", 0)]
    [True, True, True, True, True, False, False]
    """
    if isinstance(value, str):
        return value.strip().lower() in NOTHING
    return value is None or value != value


def is_number(text: str) -> bool:
    """Whether a text is a number as Python reads it, be it NaN or infinite."""
    try:
        float(text)
    except ValueError:
        return False
    return True


class Clock:
    """Collects the raw times of a file, row by row, and tells their unit at the end.

    Parameters
    ----------
    path, field
        For error messages.
    ascending
        Whether a time before the one above is an error; else rows are sorted, and that is said.
    """

    def __init__(self, path: Path, field: str, *, ascending: bool = False) -> None:
        self.path, self.field, self.ascending = path, field, ascending
        self.raw = array("d")
        self.zero: datetime | None = None
        self.before = -math.inf
        self.sorted = True

    def add(self, row: int, value: object) -> None:
        """Append the time of one row: a number, or a date as ISO 8601 has it."""
        number = real_number(value)
        if isinstance(value, datetime) or (isinstance(value, str) and not is_number(value)):
            number = self._date(row, value)
        elif self.zero is not None:
            raise DataError(self.path, row, self.field, "a date as above", shown(value))
        if not (math.isfinite(number) and (number >= 0 or self.zero is not None)):
            raise DataError(self.path, row, self.field, self._domain(), shown(value))
        if number < self.before:
            if self.ascending:
                domain = f"{self._domain()[:-1]}{self.before:g}, the one before"
                domain = domain if self.zero is None else "not before the row above"
                raise DataError(self.path, row, self.field, domain, shown(value))
            self.sorted = False
        self.before = number
        self.raw.append(number)

    def seconds(
        self, *, asked: str | None = None, named: str | None = None, documented: str | None = None
    ) -> tuple[Floats, str]:
        """Times in seconds, not yet sorted, and the sentence that says how they were read.

        Parameters
        ----------
        asked
            Unit that the user named, one of `UNITS`; beats everything.
        named
            Unit in the column's name.
        documented
            Unit that the format's publisher states; counts where the times do not speak against it.

        Raises
        ------
        InputError
            If the unit cannot be told.
        """
        raw = np.asarray(self.raw, dtype=np.float64)
        if self.zero is not None:
            return raw - raw.min(), f"{self.field}: dates"
        unit, why = self._unit(raw, asked, named, documented)
        times = raw * UNITS[unit]
        epoch = len(times) > 0 and EPOCH_S[0] <= times.min() < EPOCH_S[1]
        if len(times) and times.max() > MOST_SECONDS:
            domain = f"at most {MOST_SECONDS:g} seconds"
            raise DataError(self.path, None, self.field, domain, float(times.max()))
        if epoch:
            times = (raw - raw.min()) * UNITS[unit]
            why += "; since 1970, counted from the first"
        return times, f"{self.field}: {UNIT_WORDS[unit]} ({why})"

    def _unit(
        self, raw: Floats, asked: str | None, named: str | None, documented: str | None
    ) -> tuple[str, str]:
        if asked is not None:
            require(asked in UNITS, "time_unit", f"one of {', '.join(UNITS)}", asked)
            return asked, "as asked"
        if named is not None:
            return named, "by its name"
        if not len(raw):
            return documented or "s", "no times"
        for unit, size in UNITS.items():
            if EPOCH_S[0] <= raw.min() * size < EPOCH_S[1]:
                return unit, "a date"
        span = float(raw.max() - raw.min())
        if span == 0:
            return documented or "s", "all at once"
        per_s = (len(raw) - 1) / span
        whole = bool(np.all(raw == np.floor(raw)))
        if per_s * 1000 >= FAST_PER_S:
            return "s", f"{per_s:.3g}/s; as milliseconds {per_s * 1000:.3g}/s"
        if not whole and per_s >= SLOW_PER_S and documented != "ms":
            return "s", f"fractions, {per_s:.3g}/s"
        if whole and per_s < SLOW_PER_S:
            return self._short(per_s, documented)
        if documented is not None:
            return documented, "as published"
        raise InputError(
            f"{self.path}: the unit of {self.field} must be named, since both could be meant: "
            f"{per_s:.3g} requests/s in seconds, {per_s * 1000:.3g}/s in milliseconds. "
            "Name it: FILE@s or FILE@ms on the command line, time_unit in Python."
        )

    def _short(self, per_s: float, documented: str | None) -> tuple[str, str]:
        """The unit of whole numbers that would be too slow a trace in seconds."""
        if documented is not None:
            return documented, "as published"
        for unit in ("ms", "us", "ns"):
            rate = per_s / UNITS[unit]
            if SLOW_PER_S <= rate < FAST_PER_S:
                return unit, f"whole numbers, {rate:.3g}/s; as seconds {per_s:.3g}/s"
        return "ms", f"whole numbers, {per_s * 1000:.3g}/s"

    def _date(self, row: int, given: str | datetime) -> float:
        if self.raw and self.zero is None:
            raise DataError(self.path, row, self.field, "a number as above", shown(given))
        try:
            stamp = given if isinstance(given, datetime) else datetime.fromisoformat(given.strip())
        except ValueError:
            domain = "a time such as 2023-11-16 18:17:03.97, or a number"
            raise DataError(self.path, row, self.field, domain, shown(given)) from None
        stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
        if self.zero is None:
            self.zero = stamp
        return (stamp - self.zero).total_seconds()

    def _domain(self) -> str:
        return "seconds of at least 0" if self.field.endswith("_s") else "a time of at least 0"
