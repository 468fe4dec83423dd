"""An engine as a scheduler sees it: what it can hold, how long its steps take, and measured ones by name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from slosched.core.errors import InputError, require
from slosched.core.steptime import StepTimeModel
from slosched.core.writing import write_file

LOOPS = ("0.32", "0.33")
"""Releases of vLLM whose scheduling loops are known, oldest first; each stands for those until the next."""


DEFAULT_NAME = "h100-llama-3.1-8b"
"""Name of the engine that stands in where nobody names one."""


def _step_time(
    base_ms: float,
    prefill_us: float,
    attention_ps: float,
    sequence_us: float,
    kv_ns: float,
    knee_tokens: int,
    knee_us: float,
) -> StepTimeModel:
    """A model from ms a step, us a prefill token, ps a unit of attention work, us a sequence, ns a context
    token, tokens of the knee, us a token above it.
    """
    return StepTimeModel(
        base_s=base_ms / 1e3,
        prefill_token_s=prefill_us / 1e6,
        attention_work_s=attention_ps / 1e12,
        sequence_s=sequence_us / 1e6,
        kv_token_s=kv_ns / 1e9,
        knee_tokens=knee_tokens,
        knee_token_s=knee_us / 1e6,
    )


_LLAMA_8B_ON_H100 = _step_time(7.75, 12.4, 831, 49.2, 58.1, 448, 10.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Capacity limits, named as in vLLM's V1 scheduler.

    Parameters
    ----------
    max_num_seqs
        Most requests running together, at least 1.
    max_num_batched_tokens
        Token budget of one step, prefill and decode together, at least 1.
    kv_blocks
        KV cache blocks that requests can use, at least 1.
    block_tokens
        Tokens per KV block, at least 1.
    max_model_len
        Longest prompt plus output in tokens, at least 1.
    chunked_prefill
        Whether a prompt may be spread over several steps.
    prefix_cache
        Whether full blocks are kept and shared by content.
    long_prefill_token_threshold
        Most prompt tokens of one request per step; 0 for no such limit.
    loop
        Release of vLLM whose scheduling loop the engine follows, one of `LOOPS`. Since 0.33 a running request
        that gives up its own memory under vLLM's priority order does not end the step for those behind it.
    prefill_schedule_interval
        Steps from one that computes prompts to the next that may, at least 1. Meanwhile answers have the
        engine to themselves, unless nobody decodes or the queue is longer than one step admits. More than 1
        needs a loop of 0.33: before, vLLM had it with data parallel only.

    Examples
    --------
    >>> EngineLimits(kv_blocks=1000).kv_tokens
    16000
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    kv_blocks: int = 27_000
    block_tokens: int = 16
    max_model_len: int = 131_072
    chunked_prefill: bool = True
    prefix_cache: bool = False
    long_prefill_token_threshold: int = 0
    loop: str = "0.32"
    prefill_schedule_interval: int = 1

    def __post_init__(self) -> None:
        counts = ("max_num_seqs", "max_num_batched_tokens", "kv_blocks", "block_tokens", "max_model_len")
        for name in (*counts, "prefill_schedule_interval"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, name, "an integer of at least 1", value)
        value = self.long_prefill_token_threshold
        require(isinstance(value, int) and value >= 0, "long_prefill_token_threshold", "at least 0", value)
        require(self.loop in LOOPS, "loop", f"one of {', '.join(LOOPS)}", self.loop)
        value = self.prefill_schedule_interval
        require(value == 1 or self.loop != LOOPS[0], "prefill_schedule_interval", "1 with loop 0.32", value)

    @property
    def kv_tokens(self) -> int:
        """Tokens that fit in the KV cache."""
        return self.kv_blocks * self.block_tokens


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
    step_time: StepTimeModel = _LLAMA_8B_ON_H100
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
"""What stands in where nobody names an engine: the preset of this name."""

ARGONNE = (
    "whole-batch latencies of vLLM in Argonne's LLM-Inference-Bench (4211f5d), less their prefill; "
    "non-negative least squares on 20 measurements, mean error {error}"
)
KERNELS = (
    "NVIDIA AIConfigurator (095f58a) kernel tables of vLLM, summed over the layers; plus, scaled by layers, "
    "width and bandwidth, 4.3 us a token that NVIDIA Dynamo's engine profile takes beyond them (8B, H200)"
)
MOVED = "the same model's on H100 (Argonne), corrected by the ratio of the two GPUs' kernel tables"
DYNAMO = "engine profile in NVIDIA Dynamo (2a6da14), planner test data; mean error 3.0 % (decode)"
TABLES = (
    "LLMServingSim (5daddb2) operator tables of vLLM on this GPU, scale and offset fitted to the first 60 "
    "requests of a real vLLM 0.19 run (benchmarks/fidelity.py)"
)
ONE_FOR_TWO = "; tables of one GPU, run on two"
FITS = "KV tokens that fit in 90 % of the memory less weights and 2 GiB of activations per GPU (computed)"
SEEN = "KV tokens as the engine reported them"


def _row(
    name: str,
    step_time: StepTimeModel,
    limits: tuple[int, int, int],
    sources: tuple[str, str, str],
) -> Engine:
    """A preset; limits are most sequences, KV blocks of 16 tokens and the longest request, sources those of
    the decode coefficients, of the prefill coefficients and of the blocks.
    """
    max_num_seqs, kv_blocks, max_model_len = limits
    decode_source, prefill_source, limits_source = sources
    return Engine(
        name=name,
        step_time=step_time,
        limits=EngineLimits(max_num_seqs=max_num_seqs, kv_blocks=kv_blocks, max_model_len=max_model_len),
        sources={"decode": decode_source, "prefill": prefill_source, "limits": limits_source},
    )


# Coefficients on A100, H100 and H200 come from benchmarks/presets.py, on RTX from benchmarks/fidelity.py.
_ROWS = (
    _row(DEFAULT_NAME,
         _LLAMA_8B_ON_H100, (256, 27_000, 131_072),
         (ARGONNE.format(error="1.6 %"), KERNELS, FITS)),
    _row("h100-qwen2-7b",
         _step_time(7.82, 8.9, 645, 45.4, 37.3, 320, 10.9), (256, 64_000, 32_768),
         (ARGONNE.format(error="1.1 %"), KERNELS, FITS)),
    _row("h100x4-llama-3.1-70b",
         _step_time(19.25, 40.8, 1038, 87.3, 57.3, 320, 27.9), (256, 29_700, 131_072),
         (ARGONNE.format(error="2.9 %"), KERNELS, FITS)),
    _row("h100x4-qwen2-72b",
         _step_time(20.14, 40.9, 1038, 87.0, 60.6, 320, 28.8), (256, 28_900, 32_768),
         (ARGONNE.format(error="2.3 %"), KERNELS, FITS)),
    _row("h200-llama-3.1-8b",
         _step_time(6.36, 11.1, 848, 49.2, 41.7, 320, 9.9), (256, 55_700, 131_072),
         (MOVED, KERNELS, FITS)),
    _row("h200-llama-3.1-8b-fp8",
         _step_time(4.42, 14.8, 851, 36.7, 29.4, 0, 0.0), (256, 59_064, 131_072),
         (DYNAMO, DYNAMO, SEEN)),
    _row("h200x4-llama-3.1-70b",
         _step_time(15.97, 29.6, 1053, 87.3, 41.6, 192, 30.2), (256, 74_500, 131_072),
         (MOVED, KERNELS, FITS)),
    _row("a100-llama-3.1-8b",
         _step_time(14.02, 17.1, 3032, 84.0, 146.3, 64, 40.8), (256, 27_000, 131_072),
         (ARGONNE.format(error="2.6 %"), KERNELS, FITS)),
    _row("a100-mistral-7b",
         _step_time(13.33, 16.8, 3032, 88.6, 182.0, 64, 41.0), (256, 28_500, 32_768),
         (ARGONNE.format(error="2.7 %"), KERNELS, FITS)),
    _row("rtx4090-llama-3.1-8b",
         _step_time(17.966, 48.86, 4042, 35.72, 156.9, 160, 37.30), (256, 2_587, 32_768),
         (TABLES, TABLES, SEEN)),
    _row("rtxpro6000-llama-3.1-8b",
         _step_time(14.050, 7.47, 1023, 19.67, 86.5, 128, 29.77), (128, 35_000, 131_072),
         (TABLES, TABLES, FITS)),
    _row("rtxpro6000x2-qwen3-32b",
         _step_time(19.838, 38.03, 2312, 60.38, 182.0, 96, 139.45), (128, 27_000, 40_960),
         (TABLES + ONE_FOR_TWO, TABLES + ONE_FOR_TWO, FITS)),
)  # fmt: skip

PRESETS = {row.name: row for row in _ROWS}
"""All presets by name."""


def find_engine(engine: Engine | str) -> Engine:
    """The engine of a name, or in a JSON file as `Engine.save` writes it; an engine is itself.

    Raises
    ------
    InputError
        If it is neither a preset nor a readable file; the message lists the presets.

    Examples
    --------
    >>> find_engine("a100-mistral-7b").limits.max_model_len
    32768
    """
    if isinstance(engine, Engine):
        return engine
    if engine in PRESETS:
        return PRESETS[engine]
    if engine.endswith(".json") or Path(engine).exists():
        return Engine.load(engine)
    raise InputError(f"engine must be a JSON file or one of {', '.join(PRESETS)}, got {engine!r}.")


def preset(name: str) -> Engine:
    """The preset of this name.

    Raises
    ------
    InputError
        If there is none; the message lists the known names.

    Examples
    --------
    >>> a100 = preset("a100-llama-3.1-8b")
    >>> a100.step_time.base_s, a100.limits.kv_tokens
    (0.01402, 432000)
    """
    require(name in PRESETS, "preset", "one of " + ", ".join(PRESETS), name)
    return PRESETS[name]
