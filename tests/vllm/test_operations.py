"""What docs/operations promises: each bad case ends as it says."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import EngineLimits
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request
from slosched.core.table import RequestTable
from slosched.integrations.vllm.adapter import take_up
from slosched.integrations.vllm.background import brisk
from slosched.integrations.vllm.clock import VirtualClock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.prometheus import bind_address
from slosched.integrations.vllm.publishing import Job, Publisher, rank_of, write_whole
from slosched.integrations.vllm.slo_fields import FORGOTTEN_S, OTHER_TENANTS, Tenants
from slosched.integrations.vllm.state import KEPT, Learned
from slosched.integrations.vllm.waits import Outlook, Waits

from .conftest import fake_request

PRESET = "h100-llama-3.1-8b"
LIMITS = EngineLimits(max_num_seqs=2, max_num_batched_tokens=64, kv_blocks=40, max_model_len=512)


# publishing -----------------------------------------------------------------------------------------------


def test_one_failing_job_silences_no_other() -> None:
    """An unwritable JSON file does not end Prometheus; each failure is counted under its own name."""
    stats, done = Stats(), threading.Event()
    runs = {"bad": 0, "good": 0}

    def bad() -> None:
        runs["bad"] += 1
        raise PermissionError(13, "Permission denied", "/nowhere/metrics.json")

    def good() -> None:
        runs["good"] += 1
        if runs["good"] >= 3:
            done.set()

    publisher = Publisher([Job("metrics file", 0.01, bad), Job("metrics page", 0.01, good)], stats)
    publisher.start()
    assert done.wait(120)
    publisher.close()
    assert runs["bad"] >= 3
    assert stats.fallbacks == {"metrics file": runs["bad"]}
    assert "Permission denied" in stats.errors["metrics file"]


def test_a_table_that_changes_while_it_is_read_is_read_again() -> None:
    stats, tries = Stats(), []

    def unlucky() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("dictionary changed size during iteration")

    publisher = Publisher([Job("metrics file", 1.0, unlucky)], stats)
    publisher.close()
    assert (len(tries), stats.fallbacks) == (2, {})


def test_a_failure_is_logged_with_what_follows(caplog: pytest.LogCaptureFixture) -> None:
    """Not every failure sends the engine back to its own order."""
    import logging

    logging.getLogger("vllm").propagate = True
    with caplog.at_level("WARNING"):
        Stats().failure("state file", OSError(28, "No space left on device"), "to be tried again")
    assert "state file failed, to be tried again: OSError: [Errno 28]" in caplog.text


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    write_whole(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


# ranks ----------------------------------------------------------------------------------------------------


def test_every_rank_is_known_by_its_number() -> None:
    """VLLM sets the rank of an independent engine to 0 and keeps its index."""
    parallel = SimpleNamespace(data_parallel_index=3, data_parallel_rank=0)
    assert rank_of(SimpleNamespace(parallel_config=parallel)) == 3
    assert rank_of(SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_rank=1))) == 1
    assert rank_of(SimpleNamespace()) == 0


def test_metrics_listen_where_the_server_does(tmp_path: Path) -> None:
    """Also where a file of options says so, and not on the network beside a server on a Unix socket."""
    file = tmp_path / "serve.yaml"
    file.write_text("host: 127.0.0.1\nport: 8000\n")
    assert bind_address(None, ["serve", "m", "--config", str(file)]) == "127.0.0.1"
    assert bind_address(None, ["serve", "m", f"--config={file}", "--host", "10.0.0.7"]) == "0.0.0.0"
    assert bind_address(None, ["serve", "m", "--uds", "/run/vllm.sock"]) == "127.0.0.1"
    for text in ("- a", "host: [", "port: 1", ""):
        file.write_text(text)
        assert bind_address(None, ["serve", "m", "--config", str(file)]) == "0.0.0.0"
    assert bind_address(None, ["serve", "m", "--config", str(tmp_path / "none.yaml")]) == "0.0.0.0"


def free_ports() -> int:
    """The first of two free ports in a row."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_ranks_have_ports_and_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are scraped while idle, before any step; both save; an occupied port costs the port only."""
    from slosched.integrations.vllm import Scheduler
    from slosched.testing.harness import make_scheduler

    port = free_ports()
    config = tmp_path / "c.yaml"
    config.write_text(
        f"policy: edf\nstate_file: {tmp_path}/s.json\nstate_every_s: 0.05\n"
        f"admission: {{folder: {tmp_path}/a}}\n"
        f"metrics: {{port: {port}, address: 127.0.0.1, json_file: {tmp_path}/m.json, json_every_s: 0.05}}\n"
    )
    monkeypatch.setenv("SLOSCHED_CONFIG", str(config))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    made = []
    for rank in (0, 1, 0):

        def factory(vllm_config: Any, rank: int = rank, **keywords: Any) -> Any:
            vllm_config.parallel_config.data_parallel_index = rank
            return Scheduler(vllm_config, **keywords)

        made.append(make_scheduler(LIMITS, factory=factory))
    try:
        for rank in (0, 1):
            with urllib.request.urlopen(f"http://127.0.0.1:{port + rank}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            assert f'slosched:waiting{{engine="{rank}"}} 0.0' in text
            assert "slosched:attainment{" not in text  # not 0 before it is known
        assert "got" in made[2].slosched.stats.errors["metrics port"]
        names = {"s.json", "s.rank1.json", "m.json", "m.rank1.json"}
        until = time.monotonic() + 120
        while time.monotonic() < until and not names <= {p.name for p in tmp_path.iterdir()}:
            time.sleep(0.05)
        assert names <= {p.name for p in tmp_path.iterdir()}
        assert json.loads((tmp_path / "m.rank1.json").read_text())["rank"] == 1
        told = {f"engine-{os.getppid()}.rank{rank}.json" for rank in (0, 1)}
        while time.monotonic() < until and told != {p.name for p in (tmp_path / "a").glob("*.json")}:
            time.sleep(0.05)
        assert {p.name for p in (tmp_path / "a").glob("*.json")} == told
    finally:
        for scheduler in made:
            scheduler.shutdown()


# state ----------------------------------------------------------------------------------------------------


def test_a_corrupt_state_file_is_kept_aside(tmp_path: Path) -> None:
    """Not overwritten, and not collected without end; what follows is said."""
    path = tmp_path / "state.json"
    for k in range(KEPT + 2):
        path.write_text(f"{{ half a file {k}")
        stats = Stats()
        take_up(path, Learned(PRESET), stats)
        assert not path.exists()
        assert "state" in stats.errors["state file"]
    kept = sorted(p.read_text() for p in tmp_path.iterdir())
    assert kept == [f"{{ half a file {k}" for k in range(2, KEPT + 2)]


def test_a_state_file_that_is_whole_is_taken_up(tmp_path: Path) -> None:
    path, learned, stats = tmp_path / "state.json", Learned(PRESET), Stats()
    learned.lengths.observe("chat", 40)
    learned.save(path)
    take_up(path, Learned(PRESET), stats)
    take_up(tmp_path / "none.json", Learned(PRESET), stats)
    assert (stats.fallbacks, path.exists()) == ({}, True)


# attainment -----------------------------------------------------------------------------------------------


def left(stats: Stats, clock: VirtualClock, status: str, extra: dict[str, Any], after_s: float) -> None:
    ledger = Ledger(Config(), clock, Learned(PRESET), stats)
    request = fake_request("a", clock.now_s(), extra=extra)
    ledger.row(request)
    request.status.name = status
    request.output = 5
    ledger.finish("a", clock.now_s() + after_s)


def test_attainment_is_over_requests_with_limits(clock: VirtualClock) -> None:
    """Best effort is neither kept nor broken; who hangs up is counted apart, late or in time."""
    stats = Stats()
    for _ in range(9):
        left(stats, clock, "FINISHED_STOPPED", {}, 1.0)
    left(stats, clock, "FINISHED_STOPPED", {"slo_e2e_ms": 500}, 1.0)
    assert (stats.attainment(), stats.without_slo) == (0.0, 9)
    left(stats, clock, "FINISHED_ABORTED", {"slo_e2e_ms": 5000}, 1.0)
    left(stats, clock, "FINISHED_ABORTED", {"slo_ttft_ms": 500}, 1.0)
    left(stats, clock, "FINISHED_ABORTED", {}, 1.0)
    assert (stats.aborted, stats.aborted_late) == (3, 1)
    unpromised, inf = Stats(), float("inf")
    for limit in (1.0, inf):
        unpromised.finished(
            slo_class="chat", natural=False, refused=True, limits_s=(limit, inf, inf, inf),
            measured_s=(1, 1, 1, 1), predicted_s=(1, 1), tokens=0, predicted_tokens=1,
        )  # fmt: skip
    assert (unpromised.rejected, unpromised.missed) == (2, {("chat", "all"): 1})
    assert stats.attainment() == 0.0


# stated waits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slower", [1.0, 4.0])
def test_stated_waits_and_chances_come_true(slower: float) -> None:
    """One server, first come, first served, in overload and out of it; its pace is not what is estimated."""
    rng = np.random.default_rng(0)
    n, service = 4000, rng.exponential(0.1, 4000)
    arrival = np.cumsum(rng.exponential(1.0 / (9 + 3 * np.sin(np.arange(n) / 300))))
    begin, free = np.zeros(n), 0.0
    for i in range(n):
        begin[i] = max(free, arrival[i])
        free = begin[i] + service[i]
    limit = rng.uniform(0.1, 6.0, n)
    waits, stated, ratios = Waits(), [], []
    model = SimpleNamespace(base_s=0.01 / slower, prefill_token_s=1e-4)
    events = sorted([(t, 0, i) for i, t in enumerate(arrival)] + [(t, 1, i) for i, t in enumerate(begin)])
    waiting = 0
    for now, kind, i in events:
        outlook = waits.outlook(waiting, model, 0.01)
        if kind == 0:
            waits.arrived(i, "chat", now, 10, limit[i], outlook)
            stated.append(outlook.wait_s(10, "chat"))
            waiting += 1
        else:
            waiting -= 1
            ratio = waits.began(i, now, waiting)
            ratios.append(ratio)
    late = np.array([r for r in ratios[n // 4 :] if r == r])
    assert 0.7 < np.median(late) < 1.4
    bins = [row for row in waits.calibration() if row["requests"] > 50]
    assert len(bins) >= 4
    assert sum(row["requests"] * abs(row["stated"] - row["kept"]) for row in bins) / n < 0.08


def test_who_leaves_late_counts_as_not_kept() -> None:
    """A client that hangs up after its limit tells as much as one that was answered late."""
    waits, outlook = Waits(), Outlook(waiting=3, gap_s=0.1)
    for row, left_s in ((0, 0.5), (1, 9.0)):
        waits.arrived(row, "chat", 0.0, 10, 1.0, outlook)
        waits.left(row, left_s)
    assert [(row["requests"], row["kept"]) for row in waits.calibration()] == [(1, 0.0)]
    assert waits.began(0, 9.0, 0) != waits.began(0, 9.0, 0)  # NaN: it is not known any more


# tenants --------------------------------------------------------------------------------------------------


def test_one_client_cannot_fill_the_tenant_table(clock: VirtualClock) -> None:
    """100,000 names with one request each leave the table bounded, and a new tenant gets its place."""
    ledger = Ledger(Config(), clock, Learned(PRESET), Stats())
    for i in range(100_000):
        name = f"fake-{i}"
        request = fake_request(str(i), extra={"slo_tenant": name, "slo_class": f"c{i}", "slo_program": name})
        row = ledger.row(request)
        assert ledger.table.tenants[ledger.table.tenant_index[row]] == name
        request.status.name = "FINISHED_ABORTED"
        ledger.finish(str(i), 0.0)
    most = Config().bounds.max_tenants
    assert len(ledger.tenants) <= most
    assert len(ledger.table.tenants) <= most + 1
    assert len(ledger.table.classes) == 1
    row = ledger.row(fake_request("real", extra={"slo_tenant": "real"}))
    assert ledger.table.tenants[ledger.table.tenant_index[row]] == "real"


def test_names_with_requests_are_not_driven_out() -> None:
    """Whoever comes while all places are taken counts as other; places are free again afterwards."""
    table = RequestTable(8)
    tenants = Tenants(table, 2)
    assert [tenants.joins(name) for name in ("a", "b", "c", "a")] == ["a", "b", OTHER_TENANTS, "a"]
    tenants.leaves("a", 1.0)
    assert tenants.joins("c") == OTHER_TENANTS
    tenants.leaves("a", 2.0)
    assert tenants.joins("c") == "c"
    tenants.leaves("b", 3.0)
    tenants.forget(3.0 + FORGOTTEN_S - 1)
    assert len(tenants) == 2
    tenants.forget(3.0 + FORGOTTEN_S + 1)
    assert len(tenants) == 1


def test_places_are_never_more_than_allowed() -> None:
    """Random comings and goings of many names, more at once than there are places."""
    rng = random.Random(0)
    table = RequestTable(8)
    tenants, live = Tenants(table, 5), list[tuple[int, str]]()
    for k in range(5000):
        if live and rng.random() < 0.5:
            row, name = live.pop(rng.randrange(len(live)))
            tenants.leaves(name, float(k))
            table.release(row)
        else:
            name = tenants.joins(f"t{rng.randrange(40)}")
            request = Request(
                request_id=str(k), prompt_tokens=1, forecast=LengthForecast.point(1), tenant=name
            )
            live.append((table.add(request), name))
        tenants.forget(float(k))
        assert len(table.tenants) <= 6
        assert all(table.tenants[table.tenant_index[row]] == name for row, name in live)


# the process ----------------------------------------------------------------------------------------------


def test_the_switch_interval_is_changed_only_while_a_plan_is_made() -> None:
    before = sys.getswitchinterval()
    with brisk():
        assert sys.getswitchinterval() < before
        with brisk():
            assert sys.getswitchinterval() < before
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before


def test_each_rank_has_a_step_log_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that append to one file would break each other's rows."""
    from slosched.integrations.vllm import adapter

    seen: list[Config] = []

    def attach(scheduler: Any, vllm_config: Any, config: Config, *others: Any) -> Any:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter, "load_config", lambda: Config(policy="fcfs", step_log=tmp_path / "s.csv"))
    monkeypatch.setattr(adapter, "base_class", lambda vllm_config: object)
    monkeypatch.setattr(adapter, "adapted", lambda base: lambda *given: None)
    monkeypatch.setattr(adapter, "attach", attach)
    for rank in (0, 2):
        monkeypatch.setattr(adapter, "rank_of", lambda vllm_config, rank=rank: rank)
        with pytest.raises(KeyboardInterrupt):
            adapter.make(None)
    assert [config.step_log for config in seen] == [tmp_path / "s.csv", tmp_path / "s.rank2.csv"]
