"""Files of talks in ShareGPT's form."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


class Words:
    """Counts words as tokens."""

    def no_truncation(self) -> None:
        """Nothing to switch off."""

    no_padding = no_truncation

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        """One id a word."""
        return [SimpleNamespace(ids=text.split()) for text in texts]


def talk(name: str, *turns: str) -> dict[str, Any]:
    return {
        "id": name,
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(turns)],
    }


def test_first_and_second_turns_of_whole_talks(tmp_path: Path) -> None:
    """Later parts of a talk begin with no first turn, empty turns tell nothing, equal prompts count once."""
    from chat_sets import read_chat, talks

    path = tmp_path / "talks.json"
    known = [
        talk("a_0", "hello", "one two", "more", "one two three"),
        talk("a_1", "not first", "four words are here", "second {of} part", "x"),
        talk("b_0", "hello", "said before"),
        talk("c_0", " ", "nothing asked"),
    ]
    path.write_text(json.dumps(known, indent=1)[:-2] + ", {")  # breaks off
    assert [t["id"] for t in talks(path)] == ["a_0", "a_1", "b_0", "c_0"]
    sets = read_chat(path, Words())
    texts, lengths = sets["chat"]
    assert (texts, lengths.tolist()) == (["hello"], [2])
    texts, lengths = sets["chat, second"]
    assert dict(zip(texts, lengths.tolist(), strict=True)) == {"more": 3, "second {of} part": 1}
