"""One GPU's share of a dense decoder with random weights, in torch: what it computes in an engine step.

The matrix products, the attention over a KV cache, the small operators between them (fused by torch.compile)
and the choice of the likeliest token are there. What an engine adds is not: its scheduler, its sampler, the
pages of its cache, and the exchange between the GPUs of a tensor-parallel group.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253
from presets import Shape
from torch.nn import functional  # noqa: TID253
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: TID253

HEAD = 128
"""Numbers in a head, the same in all shapes of `presets`."""

ROTARY_BASE = 500_000.0
"""Of Llama 3; it costs the same whatever it is."""

CACHES = 4
"""KV caches that the layers use in turn, so that none is found in the L2 cache."""

MOST_S = 0.25
"""Seconds of one measurement, beyond its least repeats."""

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Attention kernels that torch may have, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a step does.

    Parameters
    ----------
    sequences, context
        Decoding requests, and tokens of context that each reads.
    chunk, before
        Prompt tokens of one request, and those of it computed before.
    """

    sequences: int = 0
    context: int = 0
    chunk: int = 0
    before: int = 0

    def row(self) -> tuple[int, float, int, int]:
        """T, A, B and K of `slosched.StepTimeModel`."""
        attention = self.chunk * (self.before + self.chunk / 2)
        return self.chunk, attention, self.sequences, self.sequences * self.context


def _normed(x: Any, residual: Any, weight: Any) -> tuple[Any, Any]:
    """Root-mean-square normalisation of the sum, and the sum."""
    total = x + residual
    wide = total.float()
    scale = (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return (wide * scale).to(total.dtype) * weight, total


def _gated(both: Any) -> Any:
    """SiLU of the first half times the second."""
    gate, up = both.float().chunk(2, -1)
    return (gate * gate.sigmoid() * up).to(both.dtype)


def _rotated(states: Any, heads: int, kv_heads: int, cos: Any, sin: Any) -> tuple[Any, Any]:
    """Rotary embedding: queries (n, heads, HEAD), and keys beside values (n, 2, kv_heads, HEAD)."""
    parts = states.view(states.shape[0], heads + 2 * kv_heads, HEAD)
    turned, values = parts.split([heads + kv_heads, kv_heads], 1)
    a, b = turned.float().chunk(2, -1)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(states.dtype)
    queries, keys = turned.split([heads, kv_heads], 1)
    return queries.contiguous(), torch.stack([keys, values], 1)


class Decoder:
    """Weights and caches, made on the device.

    Parameters
    ----------
    shape, gpus
        The model, and among how many GPUs its heads and inner width are split.
    device, dtype
        Where and in what numbers.
    kv_tokens
        Tokens that each cache holds.
    fused
        Whether torch.compile fuses the small operators.
    """

    def __init__(
        self, shape: Shape, gpus: int, *, device: str, dtype: Any, kv_tokens: int, fused: bool, seed: int = 0
    ) -> None:
        self.shape, self.device, self.dtype, self.kv_tokens = shape, device, dtype, kv_tokens
        self.heads, self.kv_heads = shape.heads // gpus, max(1, shape.kv_heads // gpus)
        torch.manual_seed(seed)
        hidden, inner = shape.hidden, shape.inner // gpus
        sizes = {
            "qkv": ((self.heads + 2 * self.kv_heads) * HEAD, hidden),
            "out": (hidden, self.heads * HEAD),
            "up": (2 * inner, hidden),
            "down": (hidden, inner),
        }
        self.layers = [{k: self.weight(*size) for k, size in sizes.items()} for _ in range(shape.layers)]
        self.embedding = self.weight(shape.vocabulary // gpus, hidden)
        self.head = self.weight(shape.vocabulary // gpus, hidden)
        self.ones = torch.ones(hidden, device=device, dtype=dtype)
        self.caches = [self.normal(kv_tokens, 2, self.kv_heads, HEAD) for _ in range(CACHES)]
        self.decode_backend, self.prefill_backend = "math", "math"
        torch._dynamo.reset()
        self.fuse(torch.compile if fused else None)

    def fuse(self, compiler: Callable[..., Any] | None) -> None:
        """Let a compiler fuse the small operators, or none."""
        self.fused = compiler is not None
        with_it = compiler or (lambda function: function)
        self._normed, self._gated, self._rotated = map(with_it, (_normed, _gated, _rotated))

    def normal(self, *size: int) -> Any:
        """Normal random numbers."""
        return torch.randn(size, device=self.device, dtype=self.dtype)

    def weight(self, n: int, k: int) -> Any:
        """A matrix that keeps the size of what it is applied to."""
        return self.normal(n, k).mul_(k**-0.5)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads."""
        matrices = [w for layer in self.layers for w in layer.values()]
        return sum(w.numel() * w.element_size() for w in [*matrices, self.head])

    def step(self, work: Work) -> Callable[[], Any]:
        """A function that computes such a step and returns the tokens chosen, and the middle layer's states.

        Decoding requests come first, then the chunk; all that depends on the work alone is made here.
        """
        n, tokens = work.sequences, work.sequences + work.chunk
        known = max(n * work.context, work.before + work.chunk)
        if known > self.kv_tokens or tokens == 0:
            raise ValueError(f"work must be some, of at most {self.kv_tokens} tokens of context, got {work}")
        device = self.device
        ids = torch.randint(len(self.embedding), (tokens,), device=device)
        newest = torch.arange(1, n + 1, device=device) * work.context - 1
        chunk = torch.arange(work.before, work.before + work.chunk, device=device)
        slots = torch.cat([newest, chunk])
        places = torch.cat([torch.full((n,), work.context, device=device), chunk]).float()
        turns = torch.arange(0, HEAD, 2, device=device) * (-math.log(ROTARY_BASE) / HEAD)
        angle = places[:, None] * turns.exp()
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        sampled = torch.arange(n + (work.chunk > 0), device=device)
        if work.chunk:
            sampled[-1] = tokens - 1

        def compute() -> tuple[Any, Any]:
            residual = functional.embedding(ids, self.embedding)
            x, middle = torch.zeros_like(residual), residual
            for i, layer in enumerate(self.layers):
                cache = self.caches[i % CACHES]
                x, residual = self._normed(x, residual, self.ones)
                x = functional.linear(x, layer["qkv"])
                queries, pairs = self._rotated(x, self.heads, self.kv_heads, cos, sin)
                cache.index_copy_(0, slots, pairs)
                x = functional.linear(self._attention(work, queries, cache), layer["out"])
                x, residual = self._normed(x, residual, self.ones)
                x = functional.linear(self._gated(functional.linear(x, layer["up"])), layer["down"])
                if i == len(self.layers) // 2 - 1:
                    middle = x + residual
            x, _ = self._normed(x[sampled], residual[sampled], self.ones)
            return functional.linear(x, self.head).argmax(-1), middle

        return compute

    def _attention(self, work: Work, queries: Any, cache: Any) -> Any:
        """Attention of the decoding requests, then of the chunk; shape (tokens, heads * HEAD)."""
        n, parts = work.sequences, []
        if n:
            parts.append(self.decode_attention(queries[:n], cache, work.context).flatten(1))
        if work.chunk:
            parts.append(self.chunk_attention(queries[n:], cache[: work.before + work.chunk]).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def decode_attention(self, queries: Any, cache: Any, context: int) -> Any:
        """One query for each request, over as much context for each: shape (n, heads, HEAD)."""
        n = len(queries)
        known = cache[: n * context].view(n, context, 2, self.kv_heads, HEAD).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(BACKENDS[self.decode_backend]):
            return functional.scaled_dot_product_attention(
                queries[:, :, None], known[0], known[1], enable_gqa=True
            )[:, :, 0]

    def chunk_attention(self, queries: Any, cache: Any) -> Any:
        """The last tokens of one prompt over all of it: shape (tokens, heads, HEAD)."""
        before = len(cache) - len(queries)
        q, known = queries.transpose(0, 1)[None], cache.permute(1, 2, 0, 3)[:, None]
        if before == 0:
            with sdpa_kernel(BACKENDS[self.prefill_backend]):
                out = functional.scaled_dot_product_attention(
                    q, known[0], known[1], is_causal=True, enable_gqa=True
                )
        elif self.device != "cpu":
            # Flash attention's own mask is aligned to the last token, which torch's `is_causal` is not.
            out = torch.ops.aten._scaled_dot_product_flash_attention(q, known[0], known[1], 0.0, True)[0]
        else:
            mask = torch.ones(len(queries), len(cache), dtype=torch.bool).tril(before)
            out = functional.scaled_dot_product_attention(q, known[0], known[1], mask, enable_gqa=True)
        return out[0].transpose(0, 1)


def captured(call: Callable[[], Any], device: str) -> tuple[Callable[[], Any], Any]:
    """The call as a CUDA graph to replay, and what it writes to; the call itself elsewhere."""
    found = call()
    if device != "cuda":
        return call, found
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    return graph.replay, found


def seconds_of(call: Callable[[], Any], device: str, *, least: int = 5, most: int = 100) -> float:
    """Median seconds of a call on the device, by its own clock."""
    taken: list[float] = []
    begun = time.perf_counter()
    for k in range(most + 2):
        if device == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            last.synchronize()
            seconds = first.elapsed_time(last) / 1e3
        else:
            begin = time.perf_counter()
            call()
            seconds = time.perf_counter() - begin
        if k >= 2:  # to warm up
            taken.append(seconds)
        if len(taken) >= least and time.perf_counter() - begun > MOST_S:
            break
    return statistics.median(taken)
