"""Derive the coefficients of `slosched.core.engine` from public measurements.

Prints one line per preset on a data centre GPU, in the units of the table in
`slosched/core/engine.py`. Prefill comes
from NVIDIA AIConfigurator's kernel tables (matrix products and context attention, summed over the
layers), plus a time per token for all that is neither, measured as what an engine profile (NVIDIA Dynamo,
Llama-3.1-8B in FP8 on H200) takes beyond the same kernels in FP8 and scaled by layers·width and by memory
bandwidth; decode comes from whole-batch latencies of vLLM published by Argonne's LLM-Inference-Bench, less
the prefill these contain. H200 has no such latencies: H100's are scaled by the ratio of the two GPUs' kernel
tables. The engine profile of NVIDIA Dynamo gives the FP8 preset.

Run: SLOSCHED_DATA=../shared/data python benchmarks/presets.py
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import data_folder
from scipy.optimize import nnls

from slosched.core.arrays import Floats
from slosched.core.fitting import fit
from slosched.core.steptime import StepTimeModel

BUDGET = 2048
BANDWIDTH_TB_S = {"a100": 2.04, "h100": 3.35, "h200": 4.8}


@dataclass(frozen=True)
class Shape:
    """A dense decoder: what its matrix products and its attention look like."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int


LLAMA_8B = Shape(32, 4096, 32, 8, 14336, 128256)
LLAMA_70B = Shape(80, 8192, 64, 8, 28672, 128256)
MISTRAL_7B = Shape(32, 4096, 32, 8, 14336, 32000)
QWEN2_7B = Shape(28, 3584, 28, 4, 18944, 152064)
QWEN2_72B = Shape(80, 8192, 64, 8, 29568, 152064)


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with gzip.open(folder / "latency" / name, "rt") as stream:
        return list(csv.DictReader(stream))


class Kernels:
    """Kernel times of one GPU: matrix products by tokens, attention by context."""

    def __init__(self, folder: Path, gpu: str, dtype: str = "bfloat16") -> None:
        self.dtype = dtype
        self.products: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for row in rows(folder, f"aic_{gpu}_sxm_vllm_gemm.csv.gz"):
            if row["gemm_dtype"] == dtype:
                cell = (int(row["m"]), float(row["latency_ms"]) / 1e3)
                self.products.setdefault((int(row["n"]), int(row["k"])), []).append(cell)
        self.context = rows(folder, f"aic_{gpu}_sxm_vllm_context_attention.csv.gz")
        self.generation = rows(folder, f"aic_{gpu}_sxm_vllm_generation_attention.csv.gz")

    def product_s(self, tokens: Floats, n: float, k: float) -> Floats:
        """Seconds of a matrix product, from the table's nearest shape scaled by its area."""
        # Wider products than the table has are split, as a grid of tiles is anyway.
        parts = int(np.ceil(max(n, k) / 16384))
        n, k = (n / parts, k) if n >= k else (n, k / parts)
        near = min(
            self.products, key=lambda shape: (abs(np.log(shape[0] / n)) + abs(np.log(shape[1] / k)), shape)
        )
        m, seconds = np.array(sorted(self.products[near])).T
        return np.asarray(parts * np.interp(tokens, m, seconds) * (n * k) / (near[0] * near[1]))

    def matrices_s(self, shape: Shape, gpus: int, tokens: Floats, sampled: Floats) -> Floats:
        """Seconds of all matrix products of a step on one of `gpus` tensor-parallel GPUs."""
        width = 128 * (shape.heads + 2 * shape.kv_heads) / gpus
        layer = (
            self.product_s(tokens, width, shape.hidden)
            + self.product_s(tokens, shape.hidden, 128 * shape.heads / gpus)
            + self.product_s(tokens, 2 * shape.inner / gpus, shape.hidden)
            + self.product_s(tokens, shape.hidden, shape.inner / gpus)
        )
        return np.asarray(
            shape.layers * layer + self.product_s(sampled, shape.vocabulary / gpus, shape.hidden)
        )

    def attention_work_s(self, shape: Shape, gpus: int) -> float:
        """Seconds per pair of tokens in context attention: slope over prompts of 2,048 tokens and more."""
        heads, kv_heads = near_heads(shape, gpus)
        cells = [
            (float(row["isl"]) ** 2 / 2, float(row["latency_ms"]) / 1e3)
            for row in self.context
            if row["kv_cache_dtype"] == self.dtype
            and row["batch_size"] == "1"
            and int(row["isl"]) >= 2048
            and (int(row["num_heads"]), int(row["num_key_value_heads"])) == (heads, kv_heads)
        ]  # fmt: skip
        work, seconds = np.array(cells).T
        slope = float(np.sum(work) / np.sum(work**2 / seconds))
        return slope * shape.layers * (shape.heads / gpus) / heads

    def decode_attention(self, shape: Shape, gpus: int) -> tuple[float, float]:
        """Seconds per sequence and per token of context in generation attention, by least squares."""
        heads, kv_heads = near_heads(shape, gpus)
        cells = np.array([
            (1.0, float(row["batch_size"]), float(row["batch_size"]) * float(row["ctx"]),
             float(row["latency_ms"]) / 1e3)
            for row in self.generation
            if row["kv_cache_dtype"] == "bfloat16" and 256 <= int(row["ctx"]) <= 8192
            and 4 <= int(row["batch_size"]) <= 256
            and (int(row["num_heads"]), int(row["num_key_value_heads"])) == (heads, kv_heads)
        ])  # fmt: skip
        solution, _ = nnls(cells[:, :3] / cells[:, 3:], np.ones(len(cells)))
        return shape.layers * float(solution[1]), shape.layers * float(solution[2])


def near_heads(shape: Shape, gpus: int) -> tuple[int, int]:
    """Heads per GPU, rounded up to the powers of two that the attention tables have."""
    heads = 2 ** int(np.ceil(np.log2(shape.heads / gpus)))
    return max(8, heads), max(1, shape.kv_heads // gpus)


def token_rest_s(folder: Path) -> float:
    """Seconds per prefill token of an 8B model that an engine on H200 takes beyond its kernels."""
    kernels = Kernels(folder, "h200", "fp8")
    profile = rows(folder, "dynamo_h200_llama8bfp8_prefill.csv.gz")
    prompt = np.array([float(row["isl"]) for row in profile])
    measured = np.array([float(row["ttft_ms"]) / 1e3 for row in profile])
    rest = measured - kernels.matrices_s(LLAMA_8B, 1, prompt, np.ones_like(prompt))
    rest -= kernels.attention_work_s(LLAMA_8B, 1) * prompt**2 / 2
    return float(np.polyfit(prompt, rest, 1)[0])


def kernel_model(kernels: Kernels, shape: Shape, gpus: int, rest_s: float) -> StepTimeModel:
    """Step-time model of the kernels, with `rest_s` more seconds per token."""
    tokens = np.array([1, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384, 512, 768, 1024, 1536, 2048.0])
    tokens = np.repeat(tokens, 3)
    seconds = kernels.matrices_s(shape, gpus, tokens, np.minimum(tokens, 64.0))
    zeros = np.zeros_like(tokens)
    products, _ = fit(tokens, zeros, zeros, zeros, seconds)
    sequence, kv = kernels.decode_attention(shape, gpus)
    return StepTimeModel(
        base_s=products.base_s,
        prefill_token_s=products.prefill_token_s + rest_s,
        attention_work_s=kernels.attention_work_s(shape, gpus),
        sequence_s=products.prefill_token_s + sequence,
        kv_token_s=kv,
        knee_tokens=products.knee_tokens,
        knee_token_s=products.knee_token_s,
    )


def engine_model(
    folder: Path, kernel: StepTimeModel, hardware: str, gpus: int, model: str
) -> tuple[StepTimeModel, float]:
    """Decode coefficients from whole-batch latencies of vLLM, prefill from the kernels; and the error."""
    found = [
        (int(row["in_len_eq_out_len"]), int(row["batch"]), float(row["latency_s"]))
        for row in rows(folder, "argonne_llm_inference_bench_nvidia.csv.gz")
        if row["Hardware"] == f"Nvidia {hardware} GPU" and row["gpus"] == str(gpus)
        and row["Framework"] == "vLLM" and row["Model"] == model
    ]  # fmt: skip
    length, batch, measured = np.array(found, dtype=np.float64).T
    prompt = length * batch
    steps = np.ceil(prompt / BUDGET)
    prefill = kernel.prefill_token_s * prompt + kernel.attention_work_s * batch * length**2 / 2
    prefill += kernel.knee_token_s * np.maximum(0.0, prompt - steps * kernel.knee_tokens)
    # All decode steps of a batch: length of them, each reading 1.5 lengths a request on average.
    design = np.column_stack([steps + length, length * batch, 1.5 * length * length * batch])
    target = np.maximum(measured - prefill, 0.2 * measured)
    solution, _ = nnls(design / measured[:, None], target / measured)
    base, sequence, kv = solution.tolist()
    error = float(np.mean(np.abs((design @ solution + prefill) / measured - 1.0)))
    fitted = StepTimeModel(
        base_s=base, prefill_token_s=kernel.prefill_token_s, attention_work_s=kernel.attention_work_s,
        sequence_s=sequence, kv_token_s=kv, knee_tokens=kernel.knee_tokens, knee_token_s=kernel.knee_token_s,
    )  # fmt: skip
    return fitted, error


def moved(engine: StepTimeModel, here: StepTimeModel, there: StepTimeModel) -> StepTimeModel:
    """An engine's model carried from the GPU of kernels `here` to that of kernels `there`."""
    return StepTimeModel(
        base_s=engine.base_s - here.base_s + there.base_s,
        prefill_token_s=there.prefill_token_s,
        attention_work_s=there.attention_work_s,
        sequence_s=engine.sequence_s,
        kv_token_s=engine.kv_token_s * there.kv_token_s / here.kv_token_s,
        knee_tokens=there.knee_tokens,
        knee_token_s=there.knee_token_s,
    )


def dynamo_model(folder: Path) -> tuple[StepTimeModel, float]:
    """Llama-3.1-8B in FP8 on one H200, decode and prefill profiled through the engine."""
    decode = [
        (0.0, 0.0, float(row["batch_est"]), float(row["kv_tokens"]), float(row["itl_ms"]) / 1e3)
        for row in rows(folder, "dynamo_h200_llama8bfp8_decode.csv.gz")
        if float(row["batch_est"]) <= 1000
    ]
    prefill = [
        (float(row["isl"]), float(row["isl"]) ** 2 / 2, 0.0, 0.0, float(row["ttft_ms"]) / 1e3)
        for row in rows(folder, "dynamo_h200_llama8bfp8_prefill.csv.gz")
        if float(row["isl"]) <= 16384
    ]
    first, first_report = fit(*np.array(decode).T, knee=0)
    second, _ = fit(*np.array(prefill).T, knee=0)
    merged = StepTimeModel(
        base_s=first.base_s, prefill_token_s=second.prefill_token_s, attention_work_s=second.attention_work_s,
        sequence_s=first.sequence_s, kv_token_s=first.kv_token_s,
    )  # fmt: skip
    return merged, first_report.mape


def line(name: str, model: StepTimeModel, error: float | None) -> str:
    """The coefficients in the units of the table in `slosched/core/engine.py`."""
    values = (
        f"{model.base_s * 1e3:6.2f} ms, {model.prefill_token_s * 1e6:5.1f} us, "
        f"{model.attention_work_s * 1e12:6.0f} ps, {model.sequence_s * 1e6:5.1f} us, "
        f"{model.kv_token_s * 1e9:5.1f} ns, {model.knee_tokens:4d}, {model.knee_token_s * 1e6:5.1f} us"
    )
    return f"{name:26s} {values}" + (f"   error {100 * error:.1f} %" if error is not None else "")


def main() -> None:
    folder = data_folder()
    if folder is None:
        raise SystemExit("needs the public data: set SLOSCHED_DATA")
    tables = {gpu: Kernels(folder, gpu) for gpu in ("a100", "h100", "h200")}
    cases = (
        ("a100-llama-3.1-8b", "A100", 1, "meta-llama/Meta-Llama-3-8B", LLAMA_8B, ""),
        ("a100-mistral-7b", "A100", 1, "mistralai/Mistral-7B-v0.1", MISTRAL_7B, ""),
        ("h100-llama-3.1-8b", "H100", 1, "meta-llama/Meta-Llama-3-8B", LLAMA_8B, "h200-llama-3.1-8b"),
        ("h100-qwen2-7b", "H100", 1, "Qwen/Qwen2-7B", QWEN2_7B, ""),
        ("h100x4-llama-3.1-70b", "H100", 4, "meta-llama/Meta-Llama-3-70B", LLAMA_70B, "h200x4-llama-3.1-70b"),
        ("h100x4-qwen2-72b", "H100", 4, "Qwen/Qwen2-72B", QWEN2_72B, ""),
    )
    rest_8b_s = token_rest_s(folder)
    print(f"beyond the kernels: {rest_8b_s * 1e6:.2f} us per token of Llama-3.1-8B on H200")

    def kernel(gpu: str, shape: Shape, gpus: int) -> StepTimeModel:
        size = shape.layers * shape.hidden / (LLAMA_8B.layers * LLAMA_8B.hidden)
        rest_s = rest_8b_s * size * BANDWIDTH_TB_S["h200"] / BANDWIDTH_TB_S[gpu]
        return kernel_model(tables[gpu], shape, gpus, rest_s)

    for name, hardware, gpus, model, shape, sibling in cases:
        kernels = kernel(hardware.lower(), shape, gpus)
        engine, error = engine_model(folder, kernels, hardware, gpus, model)
        print(line(name, engine, error))
        print(line("  (kernels alone)", kernels, None))
        if sibling:
            there = kernel("h200", shape, gpus)
            print(line(sibling, moved(engine, kernels, there), None))
            print(line("  (kernels alone)", there, None))
    print(line("h200-llama-3.1-8b-fp8", *dynamo_model(folder)))


if __name__ == "__main__":
    main()
