"""Promises of docs/operations.md that no other test stands behind."""

from __future__ import annotations

import json
import logging
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.integrations.vllm import clock as clocks
from slosched.integrations.vllm.clock import MAX_LAG_S, WallClock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.reporting import Reporting


def controller(config: Config) -> Any:
    """As much of a controller as is published."""
    waits = SimpleNamespace(calibration=dict)
    return SimpleNamespace(config=config, stats=Stats(), ledger=SimpleNamespace(waits=waits))


def reporting(config: Config) -> tuple[Reporting, Any]:
    made = controller(config)
    return Reporting(made, SimpleNamespace(running=[1, 2], waiting=[3]), 0), made


def test_a_metrics_port_in_use_is_named_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("prometheus_client")
    file = tmp_path / "metrics.json"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = Config.model_validate(
            {
                "metrics": {
                    "port": port, "address": "127.0.0.1", "json_file": str(file), "json_every_s": 0.02,
                },
                "admission": {"publish": False},
            }
        )  # fmt: skip
        with caplog.at_level(logging.WARNING, logger="vllm.slosched"):
            made, held = reporting(config)
        assert held.stats.fallbacks == {"metrics port": 1}
        assert str(port) in caplog.text
        made.start()
        try:
            written(file)
        finally:
            made.close()


def written(file: Path) -> dict[str, Any]:
    """What the file says, once it is there."""
    end_s = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end_s
        time.sleep(0.01)
    return dict(json.loads(file.read_text()))


def test_an_idle_engine_is_published(tmp_path: Path) -> None:
    """No step is ever scheduled; counts that change appear all the same."""
    file = tmp_path / "metrics.json"
    config = Config.model_validate(
        {"metrics": {"json_file": str(file), "json_every_s": 0.02}, "admission": {"publish": False}}
    )
    made, held = reporting(config)
    made.start()
    try:
        assert written(file)["malformed"] == {}
        held.stats.malformed["slo_ttft_ms"] = 7
        end_s = time.monotonic() + 60
        while written(file)["malformed"] != {"slo_ttft_ms": 7}:
            assert time.monotonic() < end_s
            time.sleep(0.01)
    finally:
        made.close()


def test_a_jump_of_the_wall_clock_moves_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock is set back by a day, then ahead: now goes on, and arrivals stay within a minute."""
    wall = [1e9]
    monkeypatch.setattr(
        clocks, "time", SimpleNamespace(time=lambda: wall[0], monotonic=lambda: 50.0)
    )  # fmt: skip
    clock = WallClock()
    stamp = wall[0] - 2.0
    assert clock.arrival_s(stamp) == pytest.approx(48.0)
    for jump in (-86_400.0, 86_400.0):
        wall[0] = 1e9 + jump
        assert clock.now_s() == 50.0
        assert 50.0 - MAX_LAG_S <= clock.arrival_s(stamp) <= 50.0


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", [1, 2])
def test_a_client_may_hang_up_in_every_phase(depth: int) -> None:
    """Waiting, in its prompt, in its answer, preempted: what it held is freed at once, and it is counted."""
    from slosched.testing.chaos import RandomPolicy

    n = 60
    rng = np.random.default_rng(1)
    work = Workload.plain(np.sort(rng.uniform(0, 1, n)), rng.integers(50, 300, n), rng.integers(5, 40, n))
    limits = EngineLimits(
        max_num_seqs=6, max_num_batched_tokens=64, kv_blocks=70, block_tokens=16, max_model_len=512,
        prefix_cache=False,
    )  # fmt: skip
    step_time = StepTimeModel(base_s=0.01, prefill_token_s=2e-5)
    engine = _leaving()(work, Engine(limits=limits, step_time=step_time), depth=depth, asynchronous=depth > 1)
    engine.use_policy(RandomPolicy(0))
    engine.disturb(0, abort=0.0, reset=0.0)
    engine.left = dict.fromkeys(("waiting", "prompt", "answer", "preempted"), 0)
    engine.run()
    engine.scheduler.schedule()
    engine.check_empty()
    assert min(engine.left.values()) > 0, engine.left
    stats = engine.scheduler.slosched.stats
    assert stats.aborted == sum(engine.left.values())


def _leaving() -> Any:
    from slosched.testing.chaos import ChaosEngine

    class Leaving(ChaosEngine):
        """Now and then a client hangs up, in the phase in which fewest have."""

        left: dict[str, int]

        def advance(self) -> None:
            from vllm.v1.request import RequestStatus

            if self.turns % 5 == 3:
                chosen: dict[str, str] = {}
                for name, request in self.live.items():
                    if request.status == RequestStatus.PREEMPTED:
                        phase = "preempted"
                    elif request.status != RequestStatus.RUNNING:
                        phase = "waiting"
                    else:
                        phase = "answer" if request.num_output_tokens else "prompt"
                    chosen.setdefault(phase, name)
                fewest = min(chosen, key=lambda phase: self.left[phase], default=None)
                if fewest is not None:
                    name = chosen[fewest]
                    assert name in self.scheduler.slosched.ledger.rows
                    self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
                    assert name not in self.scheduler.slosched.ledger.rows
                    del self.live[name]
                    self.left[fewest] += 1
            super().advance()

    return Leaving
