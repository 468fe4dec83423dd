"""Ctrl-C: exit code 130, no traceback of anybody, and what was done is kept."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LONG_S = 300.0
"""Nothing that is waited for takes so long on a busy machine; each command would run for much longer."""


class Terminal:
    """What a command shows on a terminal of its own, where it draws a progress bar."""

    def __init__(self) -> None:
        self.mine, self.its = pty.openpty()
        self.shown = ""

    def read(self, until: str | None = None) -> bool:
        """Read until the words are there, or to the end; false if they never come."""
        end_s = time.monotonic() + LONG_S
        while until is None or not re.search(until, self.shown):
            assert time.monotonic() < end_s, self.shown[-500:]
            if select.select([self.mine], [], [], 1.0)[0]:
                try:
                    piece = os.read(self.mine, 65536)
                except OSError:  # nobody has it open any more
                    return False
                if not piece:
                    return False
                self.shown += piece.decode(errors="replace")
        return True


def interrupted(arguments: list[str], folder: Path, after: str) -> tuple[int, str, str]:
    """Run the command in a process group of its own; interrupt the group as a terminal does, once it shows
    these words. Its exit code, what it prints, and what its terminal shows.
    """
    terminal, out = Terminal(), folder / "out.txt"
    with (
        out.open("w") as printed,
        subprocess.Popen(
            [sys.executable, "-m", "slosched", *arguments],
            cwd=folder, stdout=printed, stderr=terminal.its, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
        ) as process,
    ):  # fmt: skip
        try:
            os.close(terminal.its)
            assert terminal.read(after), terminal.shown[-500:]
            os.killpg(process.pid, signal.SIGINT)
            terminal.read()  # to the end: of its workers, too
            code = process.wait(LONG_S)
        finally:
            os.close(terminal.mine)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return code, out.read_text(), re.sub(r"\x1b\[[\d;?]*[A-Za-z]|━", "", terminal.shown)[-3000:]


BEGUN, UNDER_WAY = r"0/\?", r"[1-9]\d*/[1-9]"
"""A bar as it appears, while processes start, and one that has counted something."""


@pytest.mark.parametrize("after", [BEGUN, UNDER_WAY], ids=["begun", "under way"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "--policy", "fcfs", "--policy", "edf", "--rate", "8", "--seeds", "900", "--jobs", "2",
         "--duration", "60"],
        ["whatif", "--rate", "10", "--duration", "30", "--seeds", "60", "--jobs", "2",
         *(f"--policy={name}" for name in ("fcfs", "edf", "sjf", "priority", "edf+d", "proserve", "hrrn"))],
        ["capacity", "--policy", "fcfs", "--seeds", "5000", "--jobs", "2"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_workers_end_without_a_word(arguments: list[str], after: str, tmp_path: Path) -> None:
    """With 130, and with no process left that has the terminal open."""
    code, _, err = interrupted(arguments, tmp_path, after)
    assert code == 130, err
    assert "Traceback" not in err
    assert "nterrupted" in err


def test_complete_seeds_are_kept(tmp_path: Path) -> None:
    """A comparison prints and writes the seeds that were done."""
    arguments = ["compare", "--policy", "fcfs", "--policy", "edf", "--rate", "4", "--seeds", "5000",
                 "--jobs", "1", "--duration", "5", "--json", "--out", "kept"]  # fmt: skip
    code, out, err = interrupted(arguments, tmp_path, r"[1-9]\d\d*/10000")
    assert code == 130, err
    assert "of 5000 seeds" in err
    points = json.loads(out)["points"]
    assert len(points) % 2 == 0
    assert len(points) >= 2
    assert (tmp_path / "kept" / "report.html").exists()
