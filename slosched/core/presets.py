"""Measured engines by name: how long the steps of a model on a GPU take, and how much it holds."""

from __future__ import annotations

from pathlib import Path

from slosched.core.engine import Engine
from slosched.core.errors import InputError, require
from slosched.core.limits import EngineLimits
from slosched.core.steptime import StepTimeModel

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
    coefficients: tuple[float, float, float, float, float, int, float],
    limits: tuple[int, int, int],
    sources: tuple[str, str, str],
) -> Engine:
    """A preset from ms a step, us a prefill token, ps a unit of attention work, us a sequence, ns a context
    token, tokens of the knee, us a token above it; most sequences, KV blocks of 16 tokens, longest request;
    sources of the decode coefficients, of the prefill coefficients and of the blocks.
    """
    base_ms, prefill_us, attention_ps, sequence_us, kv_ns, knee_tokens, knee_us = coefficients
    max_num_seqs, kv_blocks, max_model_len = limits
    decode_source, prefill_source, limits_source = sources
    return Engine(
        name=name,
        step_time=StepTimeModel(
            base_s=base_ms / 1e3,
            prefill_token_s=prefill_us / 1e6,
            attention_work_s=attention_ps / 1e12,
            sequence_s=sequence_us / 1e6,
            kv_token_s=kv_ns / 1e9,
            knee_tokens=knee_tokens,
            knee_token_s=knee_us / 1e6,
        ),
        limits=EngineLimits(max_num_seqs=max_num_seqs, kv_blocks=kv_blocks, max_model_len=max_model_len),
        sources={"decode": decode_source, "prefill": prefill_source, "limits": limits_source},
    )


# Coefficients on A100, H100 and H200 come from benchmarks/presets.py, on RTX from benchmarks/fidelity.py.
_ROWS = (
    _row("h100-llama-3.1-8b",
         (7.75, 12.4, 831, 49.2, 58.1, 448, 10.5), (256, 27_000, 131_072),
         (ARGONNE.format(error="1.6 %"), KERNELS, FITS)),
    _row("h100-qwen2-7b",
         (7.82, 8.9, 645, 45.4, 37.3, 320, 10.9), (256, 64_000, 32_768),
         (ARGONNE.format(error="1.1 %"), KERNELS, FITS)),
    _row("h100x4-llama-3.1-70b",
         (19.25, 40.8, 1038, 87.3, 57.3, 320, 27.9), (256, 29_700, 131_072),
         (ARGONNE.format(error="2.9 %"), KERNELS, FITS)),
    _row("h100x4-qwen2-72b",
         (20.14, 40.9, 1038, 87.0, 60.6, 320, 28.8), (256, 28_900, 32_768),
         (ARGONNE.format(error="2.3 %"), KERNELS, FITS)),
    _row("h200-llama-3.1-8b",
         (6.36, 11.1, 848, 49.2, 41.7, 320, 9.9), (256, 55_700, 131_072),
         (MOVED, KERNELS, FITS)),
    _row("h200-llama-3.1-8b-fp8",
         (4.42, 14.8, 851, 36.7, 29.4, 0, 0.0), (256, 59_064, 131_072),
         (DYNAMO, DYNAMO, SEEN)),
    _row("h200x4-llama-3.1-70b",
         (15.97, 29.6, 1053, 87.3, 41.6, 192, 30.2), (256, 74_500, 131_072),
         (MOVED, KERNELS, FITS)),
    _row("a100-llama-3.1-8b",
         (14.02, 17.1, 3032, 84.0, 146.3, 64, 40.8), (256, 27_000, 131_072),
         (ARGONNE.format(error="2.6 %"), KERNELS, FITS)),
    _row("a100-mistral-7b",
         (13.33, 16.8, 3032, 88.6, 182.0, 64, 41.0), (256, 28_500, 32_768),
         (ARGONNE.format(error="2.7 %"), KERNELS, FITS)),
    _row("rtx4090-llama-3.1-8b",
         (17.966, 48.86, 4042, 35.72, 156.9, 160, 37.30), (256, 2_587, 32_768),
         (TABLES, TABLES, SEEN)),
    _row("rtxpro6000-llama-3.1-8b",
         (14.050, 7.47, 1023, 19.67, 86.5, 128, 29.77), (128, 35_000, 131_072),
         (TABLES, TABLES, FITS)),
    _row("rtxpro6000x2-qwen3-32b",
         (19.838, 38.03, 2312, 60.38, 182.0, 96, 139.45), (128, 27_000, 40_960),
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
