"""What an engine can hold at once."""

from __future__ import annotations

from dataclasses import dataclass

from slosched.core.errors import require

LOOPS = ("0.32", "0.33")
"""Releases of vLLM whose scheduling loops are known, oldest first; each stands for those until the next."""


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
