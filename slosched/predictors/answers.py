"""Prompts with the lengths of their answers: what rankers are trained and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Ints
from slosched.core.errors import DataError, InputError, require
from slosched.core.reading import Table, open_table
from slosched.predictors.base import Prompt

LEAST_PROMPTS = 20
"""Different prompts that training needs."""

MOST_OUTPUT_TOKENS = 10**9
"""Longer answers are mistakes of whoever wrote them down."""

_ALIASES = {
    "prompt": ("prompt", "text"),
    "output_tokens": ("output_tokens", "completion_tokens", "out_tok", "lens", "length"),
    "prompt_tokens": ("prompt_tokens", "in_tok", "input_tokens"),
    "slo_class": ("slo_class", "class", "set"),
    "cut": ("cut", "truncated", "capped"),
}

CUT_REASONS = ("length", "abort", "content_filter")
"""Finish reasons of an OpenAI-compatible server that do not mean that the model ended its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Prompts, and for each one or more answers.

    Parameters
    ----------
    prompts
        P prompts.
    prompt
        Prompt of each answer, as an index into `prompts`, shape (n,).
    output_tokens
        Length of each answer, shape (n,), at least 1.
    cut
        Whether it was cut off, so that its length is only a lower bound, shape (n,).
    """

    prompts: list[Prompt] = field(repr=False)
    prompt: Ints
    output_tokens: Ints
    cut: NDArray[np.bool_]

    def __post_init__(self) -> None:
        n = len(self.output_tokens)
        shapes = self.prompt.shape, self.output_tokens.shape, self.cut.shape
        require(shapes == ((n,),) * 3, "answers", "columns of one length", shapes)
        kinds = {"prompt": "iu", "output_tokens": "iuf", "cut": "b"}
        for name, kind in kinds.items():
            column = getattr(self, name)
            domain = "true or false" if kind == "b" else "integers" if kind == "iu" else "numbers"
            require(column.dtype.kind in kind, name, domain, str(column.dtype))
        if n == 0:
            return
        tokens = self.output_tokens
        wrong = tokens[~((tokens >= 1) & (tokens <= MOST_OUTPUT_TOKENS))].tolist()
        require(not wrong, "output_tokens", f"from 1 to {MOST_OUTPUT_TOKENS}", next(iter(wrong), None))
        ok = self.prompt.min() >= 0 and self.prompt.max() < len(self.prompts)
        require(bool(ok), "prompt", f"below {len(self.prompts)}, as prompts are", int(self.prompt.max()))

    @classmethod
    def single(cls, texts: Sequence[str], output_tokens: Sequence[int] | Ints) -> Answers:
        """One whole answer a prompt.

        Examples
        --------
        >>> len(Answers.single(["one", "two"], [5, 9]).prompts)
        2
        """
        n = len(texts)
        return cls(
            prompts=[Prompt(text, max(1, len(text) // 4) if isinstance(text, str) else 1) for text in texts],
            prompt=np.arange(n, dtype=np.int64),
            output_tokens=np.asarray(output_tokens, dtype=np.int64),
            cut=np.zeros(n, dtype=np.bool_),
        )

    def select(self, prompts: Ints) -> Answers:
        """The answers of some prompts, given by index."""
        place = np.full(len(self.prompts), -1, dtype=np.int64)
        place[prompts] = np.arange(len(prompts))
        keep = place[self.prompt] >= 0
        return Answers(
            prompts=[self.prompts[i] for i in prompts.tolist()],
            prompt=place[self.prompt[keep]],
            output_tokens=self.output_tokens[keep],
            cut=self.cut[keep],
        )

    def require_enough(self, what: str = "answers") -> None:
        """Raise `InputError` unless there are `LEAST_PROMPTS` different prompts."""
        different = len({prompt.text for prompt in self.prompts})
        domain = f"those of at least {LEAST_PROMPTS} different prompts"
        require(different >= LEAST_PROMPTS, what, domain, different)

    def split(self, share: float, seed: int) -> tuple[Answers, Answers]:
        """By prompt, at random: the first part has `share` of the prompts; equal texts stay together."""
        first, second = self.parts(share, seed)
        return self.select(first), self.select(second)

    def parts(self, share: float, seed: int) -> tuple[Ints, Ints]:
        """The prompts of the two parts of `split`, by index, ascending."""
        texts = {prompt.text: i for i, prompt in enumerate(self.prompts)}
        group = np.array([texts[prompt.text] for prompt in self.prompts], dtype=np.int64)
        rank = np.random.default_rng(seed).permutation(len(self.prompts))[group]
        first = rank < share * len(self.prompts)
        return np.flatnonzero(first), np.flatnonzero(~first)

    def capped(self, most_tokens: int) -> Answers:
        """The same answers had the engine cut them off at `most_tokens`."""
        return replace(
            self,
            output_tokens=np.minimum(self.output_tokens, most_tokens),
            cut=self.cut | (self.output_tokens > most_tokens),
        )


def read_answers(path: str | Path, *, slo_class: str | None = None) -> Answers:
    """Read JSON lines, JSON, CSV or Parquet, perhaps packed.

    Columns: ``prompt``; ``output_tokens``, a count, a list of counts (several samples) or an object of counts
    (several models), where 0, an answer that ended at once, counts as 1; and if there, ``prompt_tokens``,
    ``slo_class`` and ``cut`` (true where the answer was cut off; a list where there are several), or else a
    server's ``finish_reason``. `slo_class` keeps one class only.

    Raises
    ------
    InputError
        If the file is missing, is not UTF-8, lacks a column, a value is out of its domain, it has fewer than
        `LEAST_PROMPTS` different prompts, or all lengths are equal, or all answers cut off.
    """
    path = Path(path)
    table = open_table(path)
    _require_columns(table)
    prompts: list[Prompt] = []
    of: list[int] = []
    lengths: list[int] = []
    cut: list[bool] = []
    classes: set[str] = set()
    for number, row in table.rows():
        text = _get(row, "prompt")
        if not isinstance(text, str):
            raise DataError(path, number, "prompt", "a text", text)
        name = str(_get(row, "slo_class") or "default")
        classes.add(name)
        if slo_class is not None and name != slo_class:
            continue
        tokens = _counts(path, number, "output_tokens", _get(row, "output_tokens"))
        flags = _flags(_cut(row), len(tokens))
        if flags is None:
            raise DataError(path, number, "cut", "true or false, one for each length", _cut(row))
        given = _get(row, "prompt_tokens")
        known = max(1, len(text) // 4) if given in (None, "") else given
        prompt_tokens = _counts(path, number, "prompt_tokens", known)[0]
        of += [len(prompts)] * len(tokens)
        prompts.append(Prompt(text, prompt_tokens, name))
        lengths += tokens
        cut += flags
    if slo_class is not None and slo_class not in classes:
        found = ", ".join(sorted(classes))[:80]
        raise InputError(f"{path}: slo_class must be one of the file's ({found}), got {slo_class!r}.")
    different = len({prompt.text for prompt in prompts})
    domain = f"a file of at least {LEAST_PROMPTS} prompts with answers"
    require(different >= LEAST_PROMPTS, f"{path}", domain, different)
    if all(cut):
        raise InputError(f"{path}: cut must be false for some answers, got true in all {len(cut)}.")
    if min(lengths) == max(lengths):
        raise InputError(
            f"{path}: output_tokens must differ, got {lengths[0]} in all {len(lengths)} answers."
        )
    return Answers(
        prompts=prompts,
        prompt=np.array(of, dtype=np.int64),
        output_tokens=np.array(lengths, dtype=np.int64),
        cut=np.array(cut, dtype=np.bool_),
    )


def _require_columns(table: Table) -> None:
    """Raise `DataError` unless prompts and lengths stand in the file, under one of their names."""
    for column in ("prompt", "output_tokens"):
        names = _ALIASES[column]
        if not any(name in table.names for name in names):
            domain = f"{names[0]} (or {', '.join(names[1:])}) and others"
            raise DataError(table.path, None, "columns", domain, ", ".join(table.names)[:80])


def _cut(row: dict[str, Any]) -> Any:
    """Whether an answer was cut off, as the row says it: by itself, or by why the answer ended."""
    said = _get(row, "cut")
    return row["finish_reason"] in CUT_REASONS if said is None and row.get("finish_reason") else said


def _get(row: dict[str, Any], column: str) -> Any:
    return next((row[name] for name in _ALIASES[column] if name in row), None)


def _counts(path: Path, number: int, column: str, value: Any) -> list[int]:
    values = (
        list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    )
    try:
        counts = [int(v) for v in values]
        ok = bool(counts) and all(
            0 <= c <= MOST_OUTPUT_TOKENS and float(v) == c and not isinstance(v, bool)
            for c, v in zip(counts, values, strict=True)
        )
    except (TypeError, ValueError, OverflowError):
        ok = False
    if not ok:
        raise DataError(path, number, column, f"one or more integers from 0 to {MOST_OUTPUT_TOKENS}", value)
    return [max(1, c) for c in counts]


def _flags(value: Any, count: int) -> list[bool] | None:
    words = {None: False, "": False, "true": True, "1": True, "false": False, "0": False}
    values = value if isinstance(value, list) else [value] * count
    flags = [v if isinstance(v, bool) else words.get(v if v is None else str(v).lower()) for v in values]
    return [bool(f) for f in flags] if len(flags) == count and None not in flags else None
