"""The tutorial for authors of schedulers: its blocks run as they stand."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from slosched.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "write-your-own-scheduler.md"


def blocks() -> list[tuple[str, str]]:
    """Kind and text of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def step_log() -> str:
    """A log as an engine writes it."""
    lines = ["prefill_tokens,attention_work,sequences,kv_tokens,seconds"]
    for i in range(200):
        tokens, sequences, kv = (37 * i) % 900, (7 * i) % 60, (991 * i) % 50_000
        seconds = 0.008 + 2e-5 * tokens + 1e-4 * sequences + 5e-8 * kv
        lines.append(f"{tokens},{tokens * tokens / 2},{sequences},{kv},{seconds}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with what the page takes for granted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLOSCHED_DATA", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("mine", "paced"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "steps.csv").write_text(step_log())
    return tmp_path


@pytest.mark.slow
def test_every_block_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order; scripts print what they should, commands end well."""
    ran = 0
    for kind, text in blocks():
        if kind == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, "a Python block begins with its file's name"
            (folder / name.group(1)).write_text(text)
            runpy.run_path(name.group(1))
            ran += 1
        elif kind == "bash":
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "slosched"
                code = 0
                try:
                    main(arguments)
                except SystemExit as end:
                    code = int(end.code or 0)
                assert code == 0, line
                ran += 1
    printed = capsys.readouterr().out
    assert "passed: lawful" in printed
    assert "mine:LeastSlack:prompt_s=1e-4" in printed
    assert re.search(r"finished: \['[abcd]', ", printed)
    assert (folder / "study").is_dir()
    assert ran >= 11


def test_the_vllm_block_is_a_configuration(folder: Path) -> None:
    """The YAML block is read, and the policy it names is made with its parameter."""
    from slosched.integrations.vllm.adapter import make_policy
    from slosched.integrations.vllm.config import load_config

    (mine,) = (text for _, text in blocks() if text.startswith("# mine.py"))
    (folder / "mine.py").write_text(mine)
    (config,) = (text for kind, text in blocks() if kind == "yaml")
    (folder / "slosched.yaml").write_text(config)
    made = make_policy(load_config(folder / "slosched.yaml"))
    assert made.prompt_s == 5e-5  # type: ignore[attr-defined]
