"""Kernels compile anywhere: without a folder to write to, and on a disk that fails."""

from __future__ import annotations

import ast
import ctypes
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import slosched
from slosched.core import jit

compiles = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="the compiler is off")
PACKAGE = Path(slosched.__file__).parent
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2

SCRIPT = """
import logging, sys
logging.basicConfig(stream=sys.stdout)
sys.path.insert(0, sys.argv[1])
import slosched
assert slosched.__file__.startswith(sys.argv[1]), slosched.__file__
import slosched.simulator.kernel, slosched.planner.planner, slosched.predictors.features
import slosched.integrations.vllm.adapter
from slosched.core.remaining import remaining_tokens
import numpy as np
none = np.zeros(1, dtype=np.int64)
print("tokens", remaining_tokens(np.full((1, 4), 8.0), none, none))
from slosched.core.jit import cache_reason
print("reason", cache_reason())
from slosched.testing.doctor import Report, _kernels
_kernels(report := Report())
print("doctor", report.findings[0].status, report.findings[0].text)
"""


def without_override() -> None:
    """Let even root respect the mode of files, from the next program on."""
    if os.getuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@compiles
@pytest.mark.skipif(sys.platform != "linux", reason="drops a capability of Linux")
def test_a_read_only_container(tmp_path: Path) -> None:
    """Package folder, HOME and NUMBA_CACHE_DIR unwritable, another user: imports, runs, says so once."""
    site = tmp_path / "site"
    shutil.copytree(PACKAGE, site / "slosched", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [site, *site.rglob("*")]:
        path.chmod(stat.S_IREAD | stat.S_IRGRP | stat.S_IROTH | (0o555 if path.is_dir() else 0))
    variables = {
        **os.environ, "HOME": "/proc/none", "NUMBA_CACHE_DIR": "/proc/none", "PYTHONPATH": "",
        "XDG_CACHE_HOME": "/proc/none", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(site)], env=variables, preexec_fn=without_override, cwd="/",
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        for path in [site, *site.rglob("*")]:
            path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "tokens [8.]" in done.stdout
    assert "reason cannot cache function" in done.stdout
    assert done.stdout.count("compiled code is not kept") == 1
    assert "doctor warning not kept" in done.stdout


@compiles
def test_a_disk_that_fails_costs_the_cache_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_UNCACHED", [])

    @jit.njit()
    def doubled(x: float) -> float:
        return 2.0 * x

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doubled._cache._impl.locator, "ensure_cache_path", full)
    assert doubled(21.0) == 42.0
    assert jit.cache_reason() == "[Errno 28] No space left on device"


@compiles
def test_other_errors_of_numba_are_not_hidden() -> None:
    @jit.njit()
    def wrong(x: float) -> float:
        return x + "a"  # type: ignore[operator]

    with pytest.raises(Exception, match="typing"):
        wrong(np.float64(1.0))


def test_every_kernel_is_compiled_in_this_way() -> None:
    """A file that takes ``njit`` from numba itself cannot be imported in a read-only container."""
    offenders = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "jit.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            of_numba = isinstance(node, ast.ImportFrom) and node.module == "numba"
            taken = {a.name for a in node.names} if isinstance(node, ast.ImportFrom) and of_numba else set()
            if {"njit", "jit", "vectorize", "guvectorize"} & taken:
                offenders.append(str(path.relative_to(PACKAGE)))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                compiles = node.attr in ("njit", "jit", "vectorize", "guvectorize")
                if node.value.id == "numba" and compiles:
                    offenders.append(str(path.relative_to(PACKAGE)))
    assert offenders == [], "import njit from slosched.core.jit"


CONSTANTS = """
FIRST, SECOND = {first}, {second}


class Nothing:
    pass
"""
LOWER = """
from slosched.core.jit import njit

SCALE = {scale}


@njit()
def scaled(x):
    return SCALE * x
"""
UPPER = """
from toy import constants as c
from toy.constants import SECOND
from toy.lower import scaled
from slosched.core.jit import njit


@njit()
def _picked(row):
    return row[c.FIRST] + 100 * row[SECOND]


@njit()
def value(row):
    return _picked(row) + scaled(1.0)
"""


def _value(folder: Path, first: int, second: int, scale: float) -> tuple[float, int]:
    """What the kernel of a toy package gives in a process of its own, and how many kernels it compiled."""
    (folder / "toy").mkdir(exist_ok=True)
    texts = {
        "__init__": "", "constants": CONSTANTS.format(first=first, second=second),
        "lower": LOWER.format(scale=scale), "upper": UPPER,
    }  # fmt: skip
    for name, text in texts.items():
        path = folder / "toy" / f"{name}.py"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    code = (
        "import numpy as np; from toy.upper import value\n"
        "print(value(np.arange(5.0)), sum(value.stats.cache_misses.values()))"
    )
    variables = {
        **os.environ, "PYTHONPATH": f"{folder}:{PACKAGE.parent}", "NUMBA_CACHE_DIR": str(folder / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    found, misses = done.stdout.split()
    return float(found), int(misses)


@compiles
def test_a_renumbered_column_reaches_the_kernels_of_other_files(tmp_path: Path) -> None:
    """Numba's cache alone would go on with the old numbers, and with the old kernel of another file."""
    assert _value(tmp_path, 1, 2, 0.5) == (201.5, 1)
    assert _value(tmp_path, 1, 2, 0.5) == (201.5, 0)  # from the cache
    assert _value(tmp_path, 3, 2, 0.5)[0] == 203.5  # through a module
    assert _value(tmp_path, 3, 4, 0.5)[0] == 403.5  # by its own name
    assert _value(tmp_path, 3, 4, 0.25)[0] == 403.25  # in a kernel of another file
    assert _value(tmp_path, 3, 4, 0.25) == (403.25, 0)


@compiles
def test_every_cache_is_guarded() -> None:
    """The installed numba still has what the guard holds on to."""
    from slosched.planner import model

    stamp = model.evaluate._cache._cache_file._source_stamp
    assert len(stamp) == 2
    assert isinstance(stamp[1], str)
