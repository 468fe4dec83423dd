"""Commands and blocks on pages are what the command line and the package take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from slosched.cli import app
from slosched.routers import Router
from slosched.testing.routers import check_router

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```$|((?:^    .*\n)+)", re.M | re.S)
LINE = re.compile(r"^\s*(?:\w+=\S+ )*(slosched [^\n]*)$", re.M)
INLINE = re.compile(r"`(slosched [a-z][^`\n]*)`")
SCRIPT = re.compile(r"(?:^|`)\s*(?:\w+=\S+ )*(?:\.venv\S*/bin/)?python3? ([^`\n]*)", re.M)
"""A program run by Python, in a block or in a sentence."""
COMMON = ROOT / "benchmarks" / "common.py"
"""Has the options that benchmarks share."""
OTHERS = ("vllm", "venv", "pip", "build", "coverage", "pytest")
"""Modules of others that pages run."""
PASSED_ON = "bench"
"""The command whose options another program reads."""


def commands(page: Path) -> list[str]:
    """All commands on a page, in blocks and in sentences, without shell's comments and what follows them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = "".join("".join(block) for block in BLOCK.findall(text))
    found = [*LINE.findall(blocks), *INLINE.findall(text)]
    return [re.split(r"\s#|&&|\||;|>", line)[0].strip() for line in found]


def parse(words: list[str]) -> None:
    """Parse a command as it would run, without running it; wrong options are errors, lacking ones are not."""
    command: Any = typer.main.get_command(app)  # newer releases of typer have their own copy of click
    context = command.context_class(command, info_name="slosched")
    while hasattr(command, "resolve_command"):
        if not words:
            return
        name, command, words = command.resolve_command(context, words)
        context = command.context_class(command, parent=context, info_name=name)
    if context.info_name == PASSED_ON:
        return
    stand_ins = re.search(r"\b[A-Z]+\b", " ".join(words)) is not None  # FILE and N stand for values
    try:
        command.parse_args(context, words)
    except Exception as error:
        kind = type(error).__name__
        mentioned = kind == "MissingParameter" or "requires an argument" in str(error)  # `slosched fit --out`
        if not mentioned and not (kind == "BadParameter" and stand_ins):
            raise


def scripts(page: Path) -> list[list[str]]:
    """Programs run by Python on a page, as words, without shell's comments and what follows them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (re.split(r"\s#|&&|\||;|>|…", line)[0] for line in SCRIPT.findall(text))
    return [words for line in lines if (words := shlex.split(line)) and words[0] != "-c"]


def unknown(words: list[str]) -> list[str]:
    """What a program run by Python does not have: its file, or options that its source does not name."""
    name, given = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    if name.partition(".")[0] in OTHERS:
        return []
    path = ROOT / (name.replace(".", "/") + ".py" if words[0] == "-m" else name)
    if not path.is_file():
        return [name]
    source = path.read_text(encoding="utf-8")
    if path.parent == COMMON.parent:
        source += COMMON.read_text(encoding="utf-8")
    return [word for word in given if word.startswith("--") and f'"{word.partition("=")[0]}"' not in source]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_script_is_one(page: Path) -> None:
    """Benchmarks and modules that pages run exist and have the options that pages name."""
    assert [" ".join(words) for words in scripts(page) if unknown(words)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one(page: Path) -> None:
    """Names and options exist, and values are of their type."""
    for line in commands(page):
        parse(shlex.split(line.replace("…", ""))[1:])


def test_commands_are_found_and_wrong_ones_are_told(tmp_path: Path) -> None:
    """The test above can fail."""
    page = tmp_path / "page.md"
    page.write_text("See `slosched why 3 --run r.json`.\n\n```\nX=1 slosched compare --lod 3   # so\n```\n")
    assert commands(page) == ["slosched compare --lod 3", "slosched why 3 --run r.json"]
    for wrong, words in (
        ("compare --lod 3", "--lod"),
        ("compare --seeds few", "integer"),
        ("comparison", "comparison"),
    ):
        with pytest.raises(Exception, match=words):
            parse(wrong.split())


def test_scripts_are_found_and_wrong_ones_are_told(tmp_path: Path) -> None:
    """The test of scripts can fail."""
    page = tmp_path / "page.md"
    page.write_text(
        "See `python benchmarks/gone.py`.\n\n```\nX=1 python benchmarks/hindsight.py --draws 4   # so\n"
        "python benchmarks/hindsight.py --drafts 4\n```\n"
        "    .venv/bin/python -m slosched.solvers.bench --measure cpsat\n"
    )
    assert [unknown(words) for words in scripts(page)] == [["benchmarks/gone.py"], [], ["--drafts"], []]


@pytest.mark.slow
def test_blocks_on_several_engines_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The fleet of the page prints what it kept, and its router passes the suite that the page names."""
    text = (ROOT / "docs" / "several-engines.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        if "ray" not in block:
            exec(block, names)
    assert re.match(r"\d+\.\d% of SLOs kept\n", capsys.readouterr().out)
    made = names["FewestRunning"]
    assert isinstance(made, type)
    assert issubclass(made, Router)
    check_router(made)
