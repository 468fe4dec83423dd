"""README and docs: short, plain, with figures that a script has put there."""

from __future__ import annotations

import importlib
import re
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from slosched.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEDIAN_WORDS, LONG_WORDS, LONGEST_WORDS = 16, 25, 40
LONG_SHARE = 0.03
"""Sentences above 25 words are the exception."""


def prose(text: str) -> list[str]:
    """Paragraphs and list items, without code, tables, headings and pictures."""
    text = re.sub(r"^```.*?^```[^\n]*$", "", text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    found: list[str] = []
    joined = False
    for line in (raw.strip() for raw in text.splitlines()):
        item = re.match(r"(?:[-*]|\d+\.)\s+(.*)", line)
        if not line or line.startswith(("#", "|", "!", ":::", "---")):
            joined = False
        elif item or not joined:
            found.append(item.group(1) if item else line)
            joined = True
        else:
            found[-1] += " " + line
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a page; code counts as one word, a link as its text."""
    found = []
    for paragraph in prose(text):
        plain = re.sub(r"`[^`]*`", "Code", paragraph)
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        found += [s for s in re.split(r"(?<=[.!?:])[*)]*\s+(?=[A-Z*(\"]|slosched|vLLM)", plain) if s.strip()]
    return found


def words(sentence: str) -> int:
    """How many words a sentence has."""
    return len(re.findall(r"\w[\w'’.,/-]*", sentence))


def test_a_sentence_is_counted_as_a_reader_counts() -> None:
    text = (
        "# Head\n\nOne `code with words` more. Two\nlines here.\n\n| a |\n\n- [Item of](x.md) five words.\n"
    )
    assert [words(s) for s in sentences(text)] == [3, 3, 4]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_sentence_is_very_long(page: Path) -> None:
    """Nobody reads forty words at once."""
    long = [s for s in sentences(page.read_text(encoding="utf-8")) if words(s) > LONGEST_WORDS]
    assert not long, long


def test_sentences_are_short() -> None:
    """Half of all sentences have at most 16 words; few have more than 25."""
    counts = [words(s) for page in PAGES for s in sentences(page.read_text(encoding="utf-8"))]
    assert statistics.median(counts) <= MEDIAN_WORDS
    assert sum(count > LONG_WORDS for count in counts) <= LONG_SHARE * len(counts)


def test_the_first_page_is_short() -> None:
    """At most 900 words, tables and code included."""
    assert len(PAGES[0].read_text(encoding="utf-8").split()) <= 900


def test_links_and_pictures_are_there() -> None:
    """What a page refers to inside the repository exists; what is drawn is shown somewhere."""
    shown = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                path = (page.parent / target).resolve()
                assert path.exists(), f"{page.name}: {target}"
                shown.add(path)
    pictures = [path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".svg")]
    assert [path.name for path in pictures if path not in shown] == []


def test_commands_of_the_pages_exist() -> None:
    """Every `slosched COMMAND` that a page shows in a block is one."""
    known = set(typer.main.get_group(app).commands)
    for page in PAGES:
        for block in re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for name in re.findall(r"^(?:\$ )?slosched ([a-z]+)", block, re.M):
                assert name in known, f"{page.name}: slosched {name}"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that places figures."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module("readme")


def test_figures_are_those_of_the_results(figures: ModuleType) -> None:
    """No figure between markers is older than its result, or written by hand."""
    for page, name, source, made in figures.SECTIONS:
        text = page.read_text(encoding="utf-8")
        found = re.search(f"<!-- begin {name} -->\n(.*?)\n<!-- end {name} -->", text, re.S)
        assert found, f"{page.name}: {name}"
        assert found.group(1) == made(figures.load(source)), (
            f"{page.name}: {name}; run python benchmarks/readme.py"
        )


def test_every_result_has_a_page_and_says_what_it_measures(figures: ModuleType) -> None:
    """A result that no page shows is deleted; the next one of its name will record its code."""
    from common import measured_modules

    from slosched.lab.digests import code_digest

    assert [line for line in figures.stale() if "no page shows it" in line] == []
    for path in sorted(figures.RESULTS.glob("*.json")):
        modules = measured_modules(path.stem)
        assert path.stem == "evidence" or (modules and code_digest(*modules)), path.name


def test_the_table_has_at_most_twelve_rows(figures: ModuleType) -> None:
    rows = [
        line for line in figures.study_table(figures.load("evidence")).splitlines() if line.startswith("|")
    ]
    assert 3 <= len(rows) <= 2 + 12
