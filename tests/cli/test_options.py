"""The command line as a stranger meets it: one name for one thing, and examples that are commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from slosched.cli import app, main
from slosched.cli.config import load_config


def commands(name: str = "", group: Any = None) -> Iterator[tuple[str, Any]]:
    """All commands with their full names."""
    for word, command in (typer.main.get_group(app) if group is None else group).commands.items():
        full = f"{name} {word}".strip()
        if hasattr(command, "commands"):
            yield from commands(full, command)
        else:
            yield full, command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "bench"])
def test_every_example_is_a_command(name: str) -> None:
    """The help has an example, and its options and arguments are those of the command."""
    examples = re.findall(r"Example: (slosched .*)", COMMANDS[name].help or "")
    assert examples, name
    parts = [part.strip() for example in examples for part in example.split("&&")]
    assert any(part.startswith(f"slosched {name}") for part in parts)
    for part in parts:
        words = shlex.split(part)[1:]
        called = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        with COMMANDS[called].make_context(called, words[len(called.split()) :]) as context:
            assert not context.args, part


@pytest.mark.parametrize(
    "option",
    [
        "--engine",
        "--trace",
        "--slo",
        "--forecast",
        "--jobs",
        "--max-num-seqs",
        "--kv-tokens",
        "--json",
        "--router",
    ],
)
def test_an_option_takes_the_same_everywhere(option: str) -> None:
    """What is written after it has the same form in every command."""
    forms = {
        (parameter.metavar, parameter.is_flag)
        for command in COMMANDS.values()
        for parameter in command.params
        if option in parameter.opts
    }
    assert len(forms) == 1, forms


@pytest.mark.parametrize("suffix", ["yaml", "toml", "json"])
def test_a_config_file_of_each_kind(suffix: str, tmp_path: Path) -> None:
    """The same comparison from YAML, TOML and JSON; the command line goes over it."""
    content = {"policy": ["fcfs", "edf"], "seeds": 2, "max-num-seqs": 8, "on": "simulator"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items()]
    path = tmp_path / f"plan.{suffix}"
    path.write_text("\n".join(lines) if suffix == "toml" else json.dumps(content))
    found = load_config(path, {"seeds": 4})
    assert (found.policy, found.seeds, found.max_num_seqs, found.on) == (["fcfs", "edf"], 4, 8, "simulator")


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 if done, 2 for bad input with one line on standard error that names what was wrong."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("polices: [fcfs]\n")
    cases = {
        ("policies",): 0,
        ("compare", "--config", str(bad)): 2,
        ("compare", "--config", str(tmp_path / "absent.yaml")): 2,
        ("simulate", "--policy", "nobody"): 2,
        ("simulate", "--rate", "-1"): 2,
        ("evidence", "--draws", "0", "--out", str(tmp_path / "e")): 2,
    }
    for arguments, expected in cases.items():
        code: Any = 0
        try:
            main(list(arguments))
        except SystemExit as end:
            code = end.code or 0
        shown = capsys.readouterr()
        assert code == expected, arguments
        if expected:
            assert "Traceback" not in shown.err
            assert shown.err.strip(), arguments
