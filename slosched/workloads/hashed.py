"""Traces whose prompts are known as hashes of blocks: Mooncake's, and Alibaba's Bailian."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import DataError
from slosched.core.reading import Table, open_table
from slosched.core.workload import PrefixBlocks, Workload
from slosched.workloads.columns import Notes, left_out_words
from slosched.workloads.fields import MOST_TOKENS, TOKEN_DOMAIN, Clock, whole
from slosched.workloads.generic import MOONCAKE_KEYS, NO_TOKENS, plain_stem, unused

MOONCAKE_BLOCK_TOKENS = 512
"""As published. Tools that write such traces from other engines hash smaller blocks."""
BAILIAN_KEYS = ("chat_id", "parent_chat_id")
"""Keys that only Alibaba's Bailian traces have beside Mooncake's; their clock counts seconds."""
BAILIAN_BLOCK_TOKENS = 16


def read_mooncake(
    path: str | Path, *, jitter_s: float | None = None, seed: int = 0, time_unit: str | None = None
) -> Workload:
    """Mooncake trace (Qin et al., FAST 2025): records with the hash ids of blocks of the prompt.

    Parameters
    ----------
    path
        File. Keys beside Mooncake's tell Alibaba's Bailian traces, with blocks of 16 tokens in place of 512.
        Where a prompt has more ids than blocks of 512, blocks are the largest power of two that holds them;
        where ids are fewer, up to 16 times as many tokens, if every prompt has just its ids then.
        Rows without ``hash_ids`` share nothing.
    jitter_s
        Seconds over which the requests of one time stamp are spread at random; None finds the step of the
        file's clock (3 s in two of the published traces, whose raw bursts are an artefact of it).
    seed
        Seed of the jitter.
    time_unit
        Unit of the time stamps; by default told by evidence, milliseconds as published where that is open.
    """
    return read_hashed(open_table(path), jitter_s=jitter_s, seed=seed, time_unit=time_unit)[0]


def read_hashed(
    table: Table, *, jitter_s: float | None = None, seed: int = 0, time_unit: str | None = None
) -> tuple[Workload, Notes]:
    """The trace in a table, and what was recognised; see `read_mooncake`."""
    file, bailian = table.path, all(name in table.names for name in BAILIAN_KEYS)
    block = published = BAILIAN_BLOCK_TOKENS if bailian else MOONCAKE_BLOCK_TOKENS
    beyond: DataError | None = None  # of the first prompt with more ids than published blocks
    clock = Clock(file, "timestamp")
    prompts, outputs = array("q"), array("q")
    counts, ids = array("q", [0]), array("q")
    sessions: dict[int, int] = {}
    session, left_out = array("q"), 0
    for row, fields in table.rows():
        for key in (*MOONCAKE_KEYS[:3], *(BAILIAN_KEYS if bailian else ())):
            if key not in fields:
                raise DataError(file, row, "keys", ", ".join(MOONCAKE_KEYS), ", ".join(fields)[:80])
        prompt, output = (
            whole(file, row, name, fields[name], 0, MOST_TOKENS, TOKEN_DOMAIN) for name in MOONCAKE_KEYS[1:3]
        )
        if prompt == 0 or output == 0:
            left_out += 1
            continue
        clock.add(row, fields["timestamp"])
        if bailian:
            domain = "an integer from -1 to 2**53"
            chat, parent = (whole(file, row, key, fields[key], -1, 2**53, domain) for key in BAILIAN_KEYS)
            sessions[chat] = sessions.get(parent, max(0, chat))
            session.append(sessions[chat])
        prompts.append(prompt)
        outputs.append(output)
        blocks = fields.get("hash_ids")
        blocks = [] if blocks is None else blocks
        if not isinstance(blocks, list) or len(blocks) > -(-prompt // block):
            domain = f"a list of at most one id per {published} tokens"
            beyond = beyond or DataError(file, row, "hash_ids", domain, str(blocks)[:80])
            if not isinstance(blocks, list) or len(blocks) > prompt:
                raise beyond
            while len(blocks) > -(-prompt // block):
                block //= 2
        ids.extend(whole(file, row, "hash_ids", b, 0, 2**53, "integers from 0 to 2**53") for b in blocks)
        counts.append(len(blocks))
    if not prompts:
        raise DataError(file, None, "output_length", "above 0 in some row", 0)
    fits = _whole_blocks(prompts, counts, block)
    if beyond is not None and not fits:
        raise beyond
    for larger in () if fits else (2 * block, 4 * block, 8 * block, 16 * block):
        if _whole_blocks(prompts, counts, larger):
            block, fits = larger, True
            break
    prefix = PrefixBlocks(
        offsets=np.cumsum(np.asarray(counts, dtype=np.int64)),
        ids=np.asarray(ids, dtype=np.int64),
        block_tokens=block,
    )
    times, words = clock.seconds(documented="s" if bailian else "ms", asked=time_unit)
    raw = times - times.min()
    spread = clock_step(np.sort(raw)) if jitter_s is None else jitter_s
    remarks = () if clock.sorted else ("sorted by time",)
    if block != published:
        remarks = (*remarks, f"blocks of {block} tokens, told by how many ids a prompt has")
    if not fits:
        remarks = (*remarks, f"some prompts have ids for a part only, if blocks have {block} tokens")
    if spread:
        raw = raw + np.random.default_rng(seed).random(len(raw)) * spread
        remarks = (*remarks, f"requests of one time stamp spread over {spread:g} s")
    reasons = {NO_TOKENS: left_out} if left_out else {}
    source = ("Bailian trace" if bailian else "Mooncake trace") + left_out_words(reasons)
    order = np.argsort(raw, kind="stable")
    lengths = (np.asarray(tokens, dtype=np.int64) for tokens in (prompts, outputs))
    workload = Workload.plain(
        np.zeros(len(raw)), *lengths, name=plain_stem(file), prefix=prefix, source=source
    )  # fmt: skip
    if bailian:
        workload = replace(workload, session=np.asarray(session, dtype=np.int64))
        remarks = (*remarks, "sessions known, think times not: open loop")
    notes = Notes(
        format="bailian" if bailian else "mooncake", holder=table.kind, clock=words, used=MOONCAKE_KEYS[1:],
        unused=unused(table, (*MOONCAKE_KEYS, *BAILIAN_KEYS)), left_out=reasons, remarks=remarks,
    )  # fmt: skip
    return workload.rows(order, arrival_s=raw[order]), notes


def _whole_blocks(prompts: Sequence[int], counts: Sequence[int], block: int) -> bool:
    """Whether every prompt that has ids has one for each of its blocks, the last one perhaps left out."""
    return all(
        count == 0 or prompt // block <= count <= -(-prompt // block)
        for prompt, count in zip(prompts, counts[1:], strict=True)
    )


def clock_step(arrival_s: Floats) -> float:
    """Step in seconds of a quantised clock; 0 if fewer than half the requests share a time stamp."""
    distinct = np.unique(arrival_s)
    if len(distinct) < 2 or 2 * len(distinct) > len(arrival_s):
        return 0.0
    return float(np.median(np.diff(distinct)))
