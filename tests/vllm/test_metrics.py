"""What an operator scrapes: every promised metric, from a scheduler that has served requests."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from pathlib import Path

import pytest

import slosched.integrations.vllm as package
from slosched.core.engine import EngineLimits

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

COUNTERS = (
    "slo_requests", "fallbacks", "malformed_fields", "plans", "held", "preempted", "rejected", "skipped",
    "aborted", "aborted_late", "without_slo", "starving", "bypassed", "forecasts", "forecast_seconds",
)  # fmt: skip
HISTOGRAMS = (
    "plan_seconds", "reorder_places", "ttft_seconds", "tpot_seconds", "e2e_seconds",
    "ttft_measured_over_predicted", "tpot_measured_over_predicted", "e2e_measured_over_predicted",
    "tokens_measured_over_predicted", "wait_measured_over_stated",
)  # fmt: skip


def test_all_metrics_are_scraped_from_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attainment, predictions against measurements, plan time, counters and level; and the JSON file."""
    pytest.importorskip("prometheus_client")
    from slosched.integrations.vllm import Scheduler
    from slosched.testing.harness import STOP, make_request, make_scheduler, runner_output

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config, snapshot = tmp_path / "c.yaml", tmp_path / "m.json"
    config.write_text(
        "policy: edf\nclasses: {chat: {ttft_ms: 60000}}\n"
        f"metrics: {{port: {port}, json_file: {snapshot}, json_every_s: 0.001}}\n"
    )
    monkeypatch.setenv("SLOSCHED_CONFIG", str(config))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    limits = EngineLimits(max_num_seqs=2, max_num_batched_tokens=64, kv_blocks=40, max_model_len=512)
    scheduler = make_scheduler(limits, factory=Scheduler)
    for i in range(8):
        extra = {"slo_class": "chat", "slo_e2e_ms": 20 if i % 2 else 3_600_000, "slo_weight": "heavy"}
        scheduler.add_request(
            make_request(
                str(i), [100 + i] * 20, max_tokens=9, arrival_s=time.time() - 5, priority=0, block_tokens=16,
                extra=extra, hashed=False,
            )
        )  # fmt: skip
    for _ in range(64):
        output = scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        scheduler.update_from_output(output, runner_output(ids, [[STOP]] * len(ids)))
        time.sleep(0.002)
    assert not scheduler.has_unfinished_requests()
    last = 'malformed_fields_total{engine="0",field="slo_weight"} 8.0'
    text, until = "", time.monotonic() + 120
    while last not in text and time.monotonic() < until:  # published by a thread, some milliseconds later
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    scheduler.shutdown()
    for name in COUNTERS:
        assert f"# TYPE slosched:{name}_total counter" in text, name
    for name in ("attainment", "capability_level", "breaker_open", "running", "waiting"):
        assert f"# TYPE slosched:{name} gauge" in text, name
    for name in HISTOGRAMS:
        assert f"# TYPE slosched:{name} histogram" in text, name
        count = re.search(rf'slosched:{name}_count\{{engine="0"\}} ([0-9.]+)', text)
        assert count is not None, name
        assert float(count[1]) > 0 or name == "reorder_places", name
    value = {
        tuple(re.findall(r'"([^"]+)"', line)): float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("slosched:slo_requests_total")
    }
    assert value["0", "ttft", "attained", "chat"] == 8
    assert value["0", "all", "attained", "chat"] == value["0", "e2e", "missed", "chat"] == 4
    assert f"slosched:{last}" in text
    assert 'slosched:capability_level{engine="0",level="full"} 1.0' in text
    told = json.loads(snapshot.read_text())
    assert told["attained"]["chat/ttft"] == 8
    assert told["malformed"] == {"slo_weight": 8}


def test_the_dashboard_shows_every_counter() -> None:
    """No metric is exported that an operator would not see."""
    text = (Path(str(package.__file__)).parent / "dashboard.json").read_text()
    for name in (*COUNTERS, "breaker_open", "capability_level"):
        assert f"slosched:{name}" in text, name
    for name in HISTOGRAMS:
        if name != "e2e_seconds":
            assert f"slosched:{name}_bucket" in text, name
