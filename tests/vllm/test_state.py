"""What is learned survives a restart; metrics count what happened; importing is light."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slosched.integrations.vllm as package
from slosched.core.errors import InputError
from slosched.integrations.vllm.clock import VirtualClock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.forecaster import Forecaster
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.prometheus import SharedPage, StatsCollector
from slosched.integrations.vllm.queue import SloQueue
from slosched.integrations.vllm.slo_fields import read_claim
from slosched.integrations.vllm.state import Learned

from .conftest import fake_request

PRESET = "h100-llama-3.1-8b"


def test_what_is_learned_survives_a_restart(tmp_path: Path) -> None:
    """Step time and class lengths come back from the file."""
    learned = Learned(PRESET)
    for tokens in range(1, 101):
        learned.lengths.observe("chat", tokens)
        learned.step_time.observe(0, 0, 4, 4000, 0.05)
    learned.save(tmp_path / "state.json")
    again = Learned(PRESET)
    again.load(tmp_path / "state.json")
    assert again.step_time.model == learned.step_time.model
    assert again.lengths.of("chat") == learned.lengths.of("chat")
    assert 40 < again.lengths.of("chat").mean_tokens < 60


def test_a_file_of_lengths_alone_is_still_read(tmp_path: Path) -> None:
    """As the version before wrote it, without thinking and without what sources have earned."""
    learned = Learned(PRESET)
    for tokens in range(1, 101):
        learned.lengths.observe("chat", tokens)
    learned.save(tmp_path / "state.json")
    content = json.loads((tmp_path / "state.json").read_text())
    old = {name: content[name] for name in ("step_time", "lengths")} | {"format": 2}
    (tmp_path / "state.json").write_text(json.dumps(old))
    again = Learned(PRESET)
    again.load(tmp_path / "state.json")
    assert again.lengths.of("chat") == learned.lengths.of("chat")
    assert again.blend.weights("chat") == {"history": 1.0}


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"format": 9}', '{"format": 1, "step_time": {}, "lengths": {}}', "[" * 100_000],
)
def test_a_broken_state_file_is_refused_and_changes_nothing(tmp_path: Path, text: str) -> None:
    """The engine goes on with what it has."""
    path = tmp_path / "state.json"
    path.write_text(text)
    learned = Learned(PRESET)
    before = learned.step_time.model
    with pytest.raises(InputError, match="state"):
        learned.load(path)
    assert learned.step_time.model == before


@pytest.mark.parametrize(
    ("place", "value"),
    [(("answers",), math.inf), (("answers",), -64), (("bets", "hint"), -1), (("filled", "hint"), -1)],
)
def test_counts_that_nobody_made_are_refused(place: tuple[str, ...], value: float, tmp_path: Path) -> None:
    """They ended the start, or every forecast afterwards."""
    learned, path = Learned(PRESET), tmp_path / "state.json"
    atoms = np.arange(1.0, 9.0)
    told = learned.blend.tell("chat", {"history": atoms, "hint": atoms + 1.0})
    learned.blend.observe(told, 5)
    learned.save(path)
    content = json.loads(path.read_text())
    inner = content["blend"]["all"]
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="must be a state file"):
        Learned(PRESET).load(path)


def test_a_forecast_never_exceeds_max_tokens() -> None:
    """Whether claimed, learned or general."""
    learned = Learned(PRESET)
    for extra in ({}, {"pred_len": 500}, {"pred_len": 50, "pred_len_p90": 900}):
        forecaster = Forecaster(Config(), learned, Stats())
        claim = read_claim(extra, Config())
        assert forecaster.of(claim, fake_request("a", max_tokens=64)).atoms[-1] <= 64


def test_attainment_is_counted_by_class_and_limit(clock: VirtualClock) -> None:
    """A request that keeps TTFT and breaks e2e is missed as a whole."""
    stats = Stats()
    ledger = Ledger(Config(), clock, Learned(PRESET), stats)
    request = fake_request("a", extra={"slo_ttft_ms": 1000, "slo_e2e_ms": 2000})
    queue = SloQueue(ledger)
    queue.add_request(request)
    assert ledger.with_slo == 1
    queue.pop_request()
    ledger.admitted(queue.admitted, 0.2, 0.01)
    clock.time_s = 0.5
    request.output = 1
    ledger.tokens_seen(0.5)
    request.output = 11
    request.status.name = "FINISHED_STOPPED"
    ledger.finish("a", 3.0)
    assert stats.attained == {("default", "ttft"): 1}
    assert stats.missed == {("default", "e2e"): 1, ("default", "all"): 1}
    assert stats.attainment() == 0.0
    assert ledger.with_slo == 0
    assert ledger.rows == {}
    assert json.loads(json.dumps(stats.as_dict()))["missed"]["default/e2e"] == 1


def test_many_requests_grow_the_ledger_and_leave_nothing(clock: VirtualClock) -> None:
    """Rows are reused, arrays grow, and client-made names do not fill the memory."""
    ledger = Ledger(Config(), clock, Learned(PRESET), Stats())
    for i in range(1500):
        ledger.row(fake_request(str(i), float(i), extra={"slo_tenant": f"tenant {i}", "slo_e2e_ms": 99}))
    assert ledger.table.capacity == len(ledger.queued) == 2048
    assert len(ledger.table.tenants) <= Config().bounds.max_tenants + 1
    for i in range(1500):
        request = ledger.requests[ledger.rows[str(i)]]
        request.status.name = "FINISHED_ABORTED"
        ledger.finish(str(i), 1.0)
    assert ledger.rows == {}
    assert ledger.with_slo == 0
    assert bool(np.all(ledger.table.serial == -1))


def test_prometheus_gets_what_was_counted() -> None:
    """Under the prefix, with the rank, histograms as Prometheus knows them; what is unknown is missing."""
    prometheus = pytest.importorskip("prometheus_client")
    stats = Stats()
    registry = prometheus.CollectorRegistry()
    registry.register(StatsCollector(stats, rank=3))
    assert "slosched:attainment{" not in prometheus.generate_latest(registry).decode()
    stats.attained["chat", "all"] = 3
    stats.failure("policy")
    for seconds in (1.5e-5, 1e-4, 99.0):
        stats.plan_s.observe(seconds)
    text = prometheus.generate_latest(registry).decode()
    labels = 'engine="3",limit="all",outcome="attained",slo_class="chat"'
    assert f"slosched:slo_requests_total{{{labels}}} 3.0" in text
    assert 'slosched:fallbacks_total{engine="3",reason="policy"} 1.0' in text
    assert 'slosched:attainment{engine="3"} 1.0' in text
    assert "# TYPE slosched:plan_seconds histogram" in text
    assert 'slosched:plan_seconds_bucket{engine="3",le="0.0001"} 2.0' in text
    assert 'slosched:plan_seconds_bucket{engine="3",le="+Inf"} 3.0' in text
    assert 'slosched:plan_seconds_count{engine="3"} 3.0' in text
    assert 'slosched:plan_seconds_sum{engine="3"} 99.000115' in text
    assert "attainment 1.000" in stats.line()
    assert math.isnan(Stats().attainment())


def test_the_shared_page_says_the_same() -> None:
    """Where several processes share vLLM's page, real objects carry the values of the collector."""
    prometheus = pytest.importorskip("prometheus_client")
    stats = Stats()
    stats.attained["chat", "all"] = 2
    page_registry, own = prometheus.CollectorRegistry(), prometheus.CollectorRegistry()
    page = SharedPage(StatsCollector(stats, rank=1), page_registry)
    own.register(StatsCollector(stats, rank=1))
    for seconds in (1e-4, 0.3, 0.3, 99.0):
        stats.plan_s.observe(seconds)
        page.publish()
    stats.missed["chat", "all"] = 1
    page.publish()

    def samples(registry: Any) -> list[str]:
        lines = prometheus.generate_latest(registry).decode().splitlines()
        return sorted(line for line in lines if line[:1] != "#" and "_created" not in line)

    assert samples(page_registry) == samples(own)


def test_importing_the_integration_imports_neither_vllm_nor_torch() -> None:
    """The dotted name for --scheduler-cls costs nothing until it is called."""
    code = (
        "import sys, slosched.integrations.vllm as v; assert callable(v.Scheduler); "
        "import slosched.integrations.vllm.adapter; "
        "assert not {'vllm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Every metric named in the dashboard file is one that is exported."""
    registry = pytest.importorskip("prometheus_client").CollectorRegistry()
    stats = Stats()
    stats.attained["chat", "all"] = 1
    registry.register(StatsCollector(stats))
    exported = {metric.name for metric in registry.collect()}
    text = (Path(str(package.__file__)).parent / "dashboard.json").read_text()
    exported.add("slosched:refused_requests")  # by the front process
    asked = set(re.findall(r'__name__=\\"(slosched:[a-z0-9_]+)\\"', text))
    assert len(asked) > 8
    assert {name.removesuffix("_total").removesuffix("_bucket") for name in asked} <= exported
