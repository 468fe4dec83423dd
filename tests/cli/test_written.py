"""Files of the command line arrive where the name leads: through links, pipes and devices."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from slosched.cli.written import passes_through, written
from slosched.core.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such devices")
SCENARIO = ("scenario", "3", "--out")


def run(*arguments: object, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, since it is about the process's own output."""
    words = [sys.executable, "-m", "slosched", *map(str, arguments)]
    return subprocess.run(words, text=True, check=True, timeout=300, **keywords)


@pytest.fixture(scope="module")
def scenario() -> str:
    """What the command prints."""
    return run("scenario", 3, stdout=subprocess.PIPE).stdout


def test_a_link_is_followed_and_stays(tmp_path: Path, slosched: Any, scenario: str) -> None:
    """The file that it leads to is replaced, also where there is none yet."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link = tmp_path / "link.yaml"
    link.symlink_to(folder / "real.yaml")
    for _ in range(2):
        assert slosched(*SCENARIO, link).code == 0
        assert link.is_symlink()
        assert (folder / "real.yaml").read_text() == scenario
        assert [path.name for path in folder.iterdir()] == ["real.yaml"]


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_standard_output(tmp_path: Path, scenario: str, kind: str) -> None:
    """It gets the content, be it a pipe or a file, and is still there afterwards."""
    if kind == "pipe":
        assert run(*SCENARIO, "/dev/stdout", stdout=subprocess.PIPE).stdout == scenario
    else:
        with (tmp_path / "out.yaml").open("w") as out:
            out.write("before\n")
            out.flush()
            run(*SCENARIO, "/dev/stdout", stdout=out)
        assert (tmp_path / "out.yaml").read_text() == "before\n" + scenario
    assert stat.S_ISLNK(os.lstat("/dev/stdout").st_mode)


def test_a_table_as_csv_on_standard_output() -> None:
    """Formats that go by the name's ending take CSV, and remarks do not mix with it."""
    asked = ("workload", "generate", "--duration", 5, "--out", "/dev/stdout")
    ended = run(*asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("arrival_s,")
    assert len({line.count(",") for line in lines}) == 1
    assert f"{len(lines) - 1} requests in /dev/stdout" in ended.stderr


def test_a_device_stays_a_device(slosched: Any) -> None:
    """What is written to /dev/null is gone."""
    assert slosched(*SCENARIO, os.devnull).code == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert passes_through(Path(os.devnull))


def test_a_named_pipe(tmp_path: Path, slosched: Any, scenario: str) -> None:
    """Who reads it gets the content; it stays a pipe."""
    pipe, read = tmp_path / "pipe.yaml", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    assert slosched(*SCENARIO, pipe).code == 0
    reader.join(30)
    assert read == [scenario]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_that_is_full(slosched: Any) -> None:
    """One line says so."""
    if not Path("/dev/full").exists():
        pytest.skip("no such device")
    ended = slosched(*SCENARIO, "/dev/full")
    assert ended.code == 2
    assert "got '/dev/full': No space left on device" in ended.err


@pytest.mark.parametrize("name", ["here", ""])
def test_a_folder_is_no_file(
    slosched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is named as given, an empty name as what it stands for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    ended = slosched(*SCENARIO, name)
    assert ended.code == 2
    assert f"out must be a file, got {name or '.'!r}, which is a folder." in ended.err


def test_nothing_arrives_where_making_it_fails(tmp_path: Path) -> None:
    """A pipe or a file behind a link sees nothing of an error."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    for out in (Path(os.devnull), link):
        with pytest.raises(InputError), written(out) as place:
            raise InputError(str(place))
    assert not (tmp_path / "real").exists()
