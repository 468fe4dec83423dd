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


def _generate(model: Path, scheduler: str, prefix_cache: bool, budget: int, config: Path) -> dict[str, Any]:
    environment = dict(os.environ, PYTHONPATH=str(HERE), SLOSCHED_CONFIG=str(config), TQDM_DISABLE="1")
    done = subprocess.run(
        [sys.executable, str(HERE / "greedy.py"), str(model), scheduler, str(int(prefix_cache)), str(budget)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("RESULT "))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("prefix_cache", "budget"), [(True, 64)])
def test_greedy_tokens_are_those_of_vllm_alone(tmp_path: Path, prefix_cache: bool, budget: int) -> None:
    """With slosched and with random plans and preemptions, prompts in chunks of 64 tokens."""
    from slosched.integrations.vllm.local_model import make_local_model

    model = make_local_model(tmp_path / "model")
    fcfs, default = tmp_path / "fcfs.yaml", tmp_path / "default.yaml"
    fcfs.write_text("policy: fcfs\n")
    default.write_text("policy: slosched\n")
    wanted = _generate(model, "stock", prefix_cache, budget, fcfs)["tokens"]
    for scheduler, config in (("ours", default), ("random", fcfs)):
        got = _generate(model, scheduler, prefix_cache, budget, config)
        assert got["tokens"] == wanted, (scheduler, config.name)
        assert got["stats"]["errors"] == {}
        if scheduler == "random":
            assert got["stats"]["preempted"] > 10
