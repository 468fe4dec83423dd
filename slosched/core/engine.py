"""An engine as a scheduler sees it: what it can hold, and how long its steps take."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from slosched.core.errors import InputError, require
from slosched.core.files import write_file
from slosched.core.limits import EngineLimits
from slosched.core.steptime import StepTimeModel

DEFAULT_NAME = "h100-llama-3.1-8b"
"""Name of the engine that stands in where nobody names one."""

_DEFAULT_STEP_TIME = StepTimeModel(
    base_s=7.75 / 1e3,
    prefill_token_s=12.4 / 1e6,
    attention_work_s=831 / 1e12,
    sequence_s=49.2 / 1e6,
    kv_token_s=58.1 / 1e9,
    knee_tokens=448,
    knee_token_s=10.5 / 1e6,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A model on a GPU, or on several in tensor parallel: one noun for limits and step times.

    Parts that are not given are those of Llama-3.1-8B on one H100.

    Parameters
    ----------
    name
        Name in reports, not empty.
    limits
        What it can hold at once.
    step_time
        Seconds of one step.
    sources
        Where each part comes from, in words, by name of the part; for readers only.

    Examples
    --------
    >>> engine = Engine(name="a", limits=EngineLimits(kv_blocks=9), step_time=StepTimeModel(base_s=0.01))
    >>> engine.with_limits(max_num_seqs=8, kv_tokens=3200).limits.kv_blocks
    200
    """

    name: str = DEFAULT_NAME
    limits: EngineLimits = field(default_factory=EngineLimits)
    step_time: StepTimeModel = _DEFAULT_STEP_TIME
    sources: dict[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and bool(self.name), "name", "a name", self.name)

    @property
    def source(self) -> str:
        """Where the decode coefficients come from, in short; empty where nobody said."""
        return self.sources.get("decode", "").split(";")[0]

    def with_limits(
        self,
        *,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        kv_tokens: int | None = None,
    ) -> Engine:
        """The same engine with other limits; None keeps what it has. KV tokens are rounded down to blocks."""
        changes: dict[str, Any] = {}
        if max_num_seqs is not None:
            changes["max_num_seqs"] = max_num_seqs
        if max_num_batched_tokens is not None:
            changes["max_num_batched_tokens"] = max_num_batched_tokens
        if kv_tokens is not None:
            block = self.limits.block_tokens
            require(kv_tokens >= block, "kv_tokens", f"at least one block of {block} tokens", kv_tokens)
            changes["kv_blocks"] = kv_tokens // block
        return replace(self, limits=replace(self.limits, **changes)) if changes else self

    def save(self, path: str | Path) -> None:
        """Write the engine as JSON."""
        write_file(Path(path), (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def to_dict(self) -> dict[str, Any]:
        """The engine as plain data, which `parse` reads."""
        return asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> Engine:
        """Read an engine from a JSON file as `save` writes it.

        Raises
        ------
        InputError
            If the file is missing, is no JSON, or a field is unknown or out of its domain.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise InputError(f"engine must be a readable JSON file, got {str(path)!r}: {error}.") from None
        return cls.parse(content, where=str(path))

    @classmethod
    def parse(cls, content: Any, *, where: str = "engine") -> Engine:
        """An engine from plain data: ``{"name": …, "limits": {…}, "step_time": {…}}``."""
        if not isinstance(content, dict):
            raise InputError(
                f"{where}: engine must be an object with name, limits and step_time, got {content!r}."
            )
        unknown = sorted(set(content) - {"name", "limits", "step_time", "sources"})
        if unknown:
            raise InputError(
                f"{where}: fields must be name, limits, step_time and sources, got {unknown[0]!r}."
            )
        parts: dict[str, Any] = {}
        for key, kind in (("limits", EngineLimits), ("step_time", StepTimeModel)):
            if not isinstance(content.get(key), dict):
                raise InputError(f"{where}: {key} must be an object, got {content.get(key)!r}.")
            known = sorted(kind.__dataclass_fields__)
            for name in content[key]:
                if name not in known:
                    raise InputError(f"{where}: {key} must have fields of {', '.join(known)}, got {name!r}.")
            try:
                parts[key] = kind(**content[key])
            except TypeError as error:
                raise InputError(f"{where}: {key} is not complete: {error}.") from None
            except InputError as error:
                raise InputError(f"{where}: {key}: {error}") from None
        sources = content.get("sources") or {}
        return cls(name=str(content.get("name") or Path(where).stem), sources=dict(sources), **parts)


DEFAULT_ENGINE = Engine()
"""What stands in where nobody names an engine: the preset of this name (`slosched.core.presets`)."""
