"""Ctrl-C: exit code 130, no traceback of anybody, and what was done is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def interrupted(arguments: list[str], folder: Path, after_s: float) -> tuple[int, str, str, float]:
    """Run the command in a process group of its own, interrupt the group as a terminal does."""
    command = [sys.executable, "-m", "slosched", *arguments]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        time.sleep(after_s)
        begin = time.perf_counter()
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, out, err, time.perf_counter() - begin


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "--policy", "fcfs", "--policy", "edf", "--rate", "8", "--seeds", "900", "--jobs", "2",
         "--duration", "300"],
        ["whatif", "--rate", "400", "--policy", "fcfs", "--policy", "edf", "--jobs", "2"],
        ["capacity", "--policy", "fcfs", "--seeds", "5000", "--jobs", "2"],
    ],
)  # fmt: skip
def test_workers_end_without_a_word(arguments: list[str], tmp_path: Path) -> None:
    """Soon, with 130, and with no process left."""
    code, _, err, took_s = interrupted(arguments, tmp_path, 12.0)
    assert code == 130, err
    assert "Traceback" not in err
    assert "nterrupted" in err
    assert took_s < 30


def test_complete_seeds_are_kept(tmp_path: Path) -> None:
    """A comparison prints and writes the seeds that were done."""
    arguments = ["compare", "--policy", "fcfs", "--policy", "edf", "--rate", "4", "--seeds", "5000",
                 "--jobs", "1", "--duration", "5", "--json", "--out", "kept"]  # fmt: skip
    code, out, err, _ = interrupted(arguments, tmp_path, 20.0)
    assert code == 130, err
    assert "of 5000 seeds" in err
    points = json.loads(out)["points"]
    assert len(points) % 2 == 0
    assert len(points) >= 2
    assert (tmp_path / "kept" / "report.html").exists()
