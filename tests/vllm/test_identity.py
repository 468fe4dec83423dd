"""Greedy answers of the real CPU engine do not depend on the order in which requests are served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HERE = Path(__file__).parent


def trials(model: Path, *, prefix_cache: bool, speculation: bool) -> dict[str, Any]:
    """Results by trial, all on one engine in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE / "identity.py"), str(model), str(int(prefix_cache)),
         str(int(speculation))],
        env=dict(os.environ, PYTHONPATH=str(HERE), TQDM_DISABLE="1"), capture_output=True, text=True,
        timeout=560, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("RESULT "))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("prefix_cache", "speculation"), [(True, False), (False, True)])
def test_answers_are_those_of_vllm_alone(tmp_path: Path, prefix_cache: bool, speculation: bool) -> None:
    """Chunked prefill, structured output, streaming sessions, speculation, aborts, pauses, resets."""
    from slosched.testing.local_model import make_local_model

    results = trials(make_local_model(tmp_path / "model"), prefix_cache=prefix_cache, speculation=speculation)
    wanted = results["stock"]["tokens"]
    assert len(wanted) == 30
    for same in ("order", "steps"):
        assert results["fcfs"][same] == results["stock"][same]
    assert results["slosched"]["order"] != results["stock"]["order"]
    for name, result in results.items():
        assert result["without_end"] == [], name
        assert result["errors"] == {}, name
        assert result["blocks_missing"] == 0, name
        for job, tokens in wanted.items():
            got = result["tokens"].get(job, [])
            if int(job) in result["aborted"]:
                assert got == tokens[: len(got)], (name, job)
            else:
                assert got == tokens, (name, job)
        if "disturbed" in name:
            assert len(result["aborted"]) >= 3, name
        if name.startswith("random"):
            assert result["preempted"] > 10, name
        if name.startswith(("slosched", "srpt")):
            assert result["plans"] > 10, name
