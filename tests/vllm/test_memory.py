"""What the adapter keeps does not grow with the number of requests it has seen."""

from __future__ import annotations

import gc
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slosched
from slosched.core.engine import EngineLimits

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

IN_ENGINE = 40
MAX_GROWTH = 96 * 1024
"""Bytes that may be held more after three times as many requests: histories fill, counters become long."""


class Traffic:
    """Requests with all kinds of SLO fields, new names and tenants, some cut off, in a live scheduler."""

    def __init__(self, scheduler: Any, seed: int) -> None:
        self.scheduler, self.rng = scheduler, np.random.default_rng(seed)
        self.left: dict[str, int] = {}
        self.count = 0

    def add(self) -> None:
        """One more request."""
        from slosched.testing.harness import make_request

        rng, i = self.rng, self.count
        self.count += 1
        extra: dict[str, Any] = {
            "slo_ttft_ms": float(rng.choice([50.0, 500.0, -1.0])),
            "slo_tpot_ms": 40.0 if i % 2 else "soon",
            "slo_class": f"class {i}",
            "slo_tenant": f"tenant {i}",
            "slo_program": f"program {i // 3}",
            "slo_weight": float(rng.integers(0, 4)),
        }
        name = f"request-{i}"
        self.left[name] = int(rng.integers(1, 12))
        prompt = rng.integers(8, 500, int(rng.integers(1, 60))).tolist()
        request = make_request(
            name, prompt, max_tokens=64, arrival_s=time.time(), priority=0, block_tokens=16,
            extra=extra if i % 5 else None,
        )  # fmt: skip
        self.scheduler.add_request(request)

    def step(self) -> None:
        """One step of the engine, perhaps after an abort."""
        from vllm.v1.request import RequestStatus

        from slosched.testing.harness import runner_output

        if self.rng.random() < 0.05:
            name = str(self.rng.choice(list(self.left)))
            del self.left[name]
            self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        output = self.scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        tokens = [self.answer(name) for name in ids]
        self.scheduler.update_from_output(output, runner_output(ids, tokens))

    def answer(self, name: str) -> list[int]:
        """The next token, none within a prompt."""
        from slosched.testing.harness import STOP

        request = self.scheduler.requests[name]
        if request.num_computed_tokens < request.num_tokens:
            return []
        self.left[name] -= 1
        if self.left[name] > 0:
            return [100 + self.left[name]]
        del self.left[name]
        return [STOP]

    def serve(self, requests: int) -> None:
        """Keep the engine and its queue full until so many more have come; then empty it."""
        last = self.count + requests
        while self.count < last or self.left:
            while self.count < last and len(self.left) < IN_ENGINE:
                self.add()
            self.step()


def held(snapshot: tracemalloc.Snapshot) -> dict[str, int]:
    """Bytes by line of slosched's own code."""
    own = str(Path(slosched.__file__).parent / "*")
    mine = snapshot.filter_traces([tracemalloc.Filter(True, own)])
    return {str(entry.traceback[0]): entry.size for entry in mine.statistics("lineno")}


def at_rest(controller: Any) -> None:
    """Wait for the threads that plan."""
    until = time.monotonic() + 120
    beside = controller.planner.background
    while beside is not None and not beside.idle and time.monotonic() < until:
        time.sleep(0.01)
    comparing = getattr(getattr(controller.planner.policy, "planner", None), "_background", None)
    if comparing is not None:
        comparing.wait(120)


@pytest.mark.parametrize("policy", ["slosched", "edf", "fcfs"])
def test_memory_does_not_grow_with_requests(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 900 requests more, slosched's code holds what it held after 300."""
    from slosched.integrations.vllm.adapter import make
    from slosched.testing.harness import make_scheduler

    config = tmp_path / "slosched.yaml"
    config.write_text(f"policy: {policy}\nbounds: {{max_tenants: 20}}\n")
    monkeypatch.setenv("SLOSCHED_CONFIG", str(config))
    # What is remembered is bounded by numbers that so few requests would not reach.
    monkeypatch.setattr("slosched.predictors.history.PROGRAMS_KEPT", 32)
    monkeypatch.setattr("slosched.planner.futures.MOST_REMEMBERED", 32)
    limits = EngineLimits(max_num_seqs=8, kv_blocks=64, max_model_len=512, max_num_batched_tokens=128)
    scheduler = make_scheduler(limits, factory=make)
    controller = scheduler.slosched
    traffic = Traffic(scheduler, seed=1)
    traffic.serve(100)
    tracemalloc.start()
    try:
        traffic.serve(300)
        at_rest(controller)
        gc.collect()
        before = held(tracemalloc.take_snapshot())
        traffic.serve(900)
        at_rest(controller)
        gc.collect()
        after = held(tracemalloc.take_snapshot())
    finally:
        tracemalloc.stop()
        controller.close()
    growth = {line: size - before.get(line, 0) for line, size in after.items()}
    most = sorted(growth.items(), key=lambda item: -item[1])[:8]
    assert sum(growth.values()) < MAX_GROWTH, most
    ledger = controller.ledger
    assert (len(ledger.rows), len(ledger._tokenless), len(controller.in_flight)) == (0, 0, 0)
    assert len(controller.watch._begun) == 0
    assert len(ledger.table.tenants) <= 22
    assert ledger.table.capacity == 256
    assert len(controller.queue._heap) <= 256
    assert sum(controller.stats.malformed.values()) > 900
    assert controller.stats.errors == {}
