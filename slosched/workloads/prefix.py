"""Prompt contents as block ids, where only lengths and reused prefixes are known."""

from __future__ import annotations

import numpy as np

from slosched.core.arrays import Ints
from slosched.core.errors import require
from slosched.core.workload import PrefixBlocks


def shared_prefix(
    session: Ints, prompt_tokens: Ints, reused_tokens: Ints, block_tokens: int, *, common_tokens: int = 0
) -> PrefixBlocks:
    """Blocks such that each prompt shares its reused prefix with the one before it in the same session.

    Parameters
    ----------
    session
        Session of each request, shape (n,); requests in order of time.
    prompt_tokens
        Prompt lengths, at least 1, shape (n,).
    reused_tokens
        Tokens at the start of each prompt that the previous prompt of the session had too, shape (n,);
        rounded down to whole blocks, and to the whole blocks of the previous prompt.
    block_tokens
        Tokens per block, at least 1.
    common_tokens
        Tokens that all first prompts of sessions begin with, such as a system prompt; at least 0, rounded
        down to whole blocks.

    Examples
    --------
    >>> blocks = shared_prefix(np.array([0, 0]), np.array([100, 130]), np.array([0, 90]), 32)
    >>> blocks.ids.tolist()
    [0, 1, 2, 3, 0, 1, 4, 5, 6]
    """
    require(block_tokens >= 1, "block_tokens", "an integer of at least 1", block_tokens)
    require(common_tokens >= 0, "common_tokens", "an integer of at least 0", common_tokens)
    counts = -(-np.asarray(prompt_tokens, dtype=np.int64) // block_tokens)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    ids = np.empty(int(offsets[-1]), dtype=np.int64)
    before: dict[int, int] = {}
    common = common_tokens // block_tokens
    fresh = common
    for row, (name, reused) in enumerate(zip(session.tolist(), reused_tokens.tolist(), strict=True)):
        start, end = int(offsets[row]), int(offsets[row + 1])
        last = before.get(name)
        shared = 0
        if last is not None:
            shared = min(reused, int(prompt_tokens[last]), int(prompt_tokens[row])) // block_tokens
            ids[start : start + shared] = ids[offsets[last] : offsets[last] + shared]
        else:
            shared = min(common, int(prompt_tokens[row]) // block_tokens)
            ids[start : start + shared] = np.arange(shared)
        new = end - start - shared
        ids[start + shared : end] = np.arange(fresh, fresh + new)
        fresh += new
        before[name] = row
    return PrefixBlocks(offsets=offsets, ids=ids, block_tokens=block_tokens)
