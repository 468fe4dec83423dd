"""Sizes of a run of benchmarks/gpu.py, and the decoder that its parts share."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch  # noqa: TID253
from gpu_parts.decoder import BACKENDS, HEAD, Decoder, Work, seconds_of
from presets import LLAMA_8B, LLAMA_70B, QWEN2_7B, QWEN2_72B, Shape

MODELS: dict[str, tuple[Shape, int]] = {
    "llama-3.1-8b": (LLAMA_8B, 1),
    "qwen2-7b": (QWEN2_7B, 1),
    "x4-llama-3.1-70b": (LLAMA_70B, 4),
    "x4-qwen2-72b": (QWEN2_72B, 4),
}
"""Models behind the presets, and the GPUs of each; on one GPU runs one GPU's share."""

TINY = Shape(2, 256, 2, 1, 512, 1000)


class Settings:
    """Sizes of a run: the real ones, or some that a processor goes through in seconds."""

    def __init__(self, *, tiny: bool) -> None:
        self.tiny = tiny
        self.device = "cpu" if tiny or not torch.cuda.is_available() else "cuda"
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self.kv_tokens = 2048 if tiny else 524_288
        self.batches = [1, 2, 4, 8] if tiny else [1, 8, 32, 64, 128, 256]
        self.contexts = [16, 64, 128] if tiny else [256, 1024, 2048, 4096]
        self.chunks = (
            [8, 16, 64, 128] if tiny else [16, 64, 128, 256, 320, 448, 512, 768, 1024, 2048, 4096, 8192]
        )
        self.mixed = [(2, 16), (8, 64)] if tiny else [(n, t) for n in (32, 128) for t in (128, 512, 2048)]
        self.later = [(128, 16)] if tiny else [(c, t) for c in (4096, 16_384) for t in (512, 2048)]
        self.context, self.running = (64, 8) if tiny else (1024, 128)
        self.steps = 12 if tiny else 300
        self.waiting = [20, 50] if tiny else [100, 1_000, 10_000]
        name = torch.cuda.get_device_name().lower() if self.device == "cuda" else ""
        self.gpu = next((gpu for gpu in ("a100", "h200") if gpu in name), "h100")
        self.models = {"llama-3.1-8b": (TINY, 1)} if tiny else MODELS

    def decoder(self, shape: Shape, gpus: int) -> Any:
        """A decoder with the quickest attention that torch has here."""
        made = Decoder(
            shape, gpus, device=self.device, dtype=self.dtype, kv_tokens=self.kv_tokens, fused=not self.tiny
        )
        made.decode_backend, made.prefill_backend = fastest(made, self)[1:]
        try:
            made.step(Work(sequences=2, context=16))()
        except Exception as error:  # a torch without a compiler that works: slower, and noted as such
            say(f"nothing is fused: {type(error).__name__}: {error}"[:500])
            made.fuse(None)
        return made


def fastest(decoder: Any, settings: Settings) -> tuple[dict[str, Any], str, str]:
    """Each attention kernel that torch has: ps per pair and layer in prefill, ns per token of context and
    layer in decoding; and the quickest for decoding and for prefill.
    """
    tokens, n, context = (64, 4, 64) if settings.tiny else (8192, 64, 2048)
    queries, cache = decoder.normal(tokens, decoder.heads, HEAD), decoder.caches[0]
    found: dict[str, Any] = {}
    for name in BACKENDS if settings.device == "cuda" else ("math",):
        decoder.decode_backend = decoder.prefill_backend = name
        if name == "math" and settings.device == "cuda":
            continue  # it writes down every pair
        row: dict[str, Any] = {}
        warnings.filterwarnings("ignore", ".*(kernel not used|num_heads|runtime disabled)")
        try:
            prefill = seconds_of(lambda: decoder.chunk_attention(queries, cache[:tokens]), settings.device)
            row["prefill_pair_ps"] = prefill / (tokens**2 / 2) * 1e12
        except RuntimeError as error:
            row["prefill_error"] = str(error).splitlines()[0][:160]
        try:
            decode = seconds_of(
                lambda: decoder.decode_attention(queries[:n], cache, context), settings.device
            )
            row["decode_token_ns"] = decode / (n * context) * 1e9
        except RuntimeError as error:
            row["decode_error"] = str(error).splitlines()[0][:160]
        found[name] = row
    if settings.device == "cuda":
        torch.cuda.synchronize()

    def best(of: str) -> str:
        return min((name for name in found if of in found[name]), key=lambda name: found[name][of])

    return found, best("decode_token_ns"), best("prefill_pair_ps")


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)
