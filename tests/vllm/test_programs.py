"""Calls of one program share a number in the table."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from slosched.core.engine import Engine
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.slo_fields import program_number

from .conftest import fake_request
from .test_memory import Traffic


def test_the_field_fills_the_program_index(ledger: Ledger) -> None:
    """Equal for one program, -1 without the field, also in a row used before."""
    extras = ({"slo_program": "task"}, {"slo_program": "task"}, {"slo_program": "other"}, None)
    rows = [ledger.row(fake_request(str(i), extra=extra)) for i, extra in enumerate(extras)]
    index = ledger.table.program_index[rows].tolist()
    task, other = program_number("default", "task"), program_number("default", "other")
    assert index == [task, task, other, -1]
    request = ledger.requests[rows[0]]
    request.status = SimpleNamespace(name="FINISHED_ABORTED")
    ledger.finish("0", 1.0)
    assert ledger.table.program_index[ledger.row(fake_request("new"))] == -1


def test_a_bad_program_is_counted(ledger: Ledger) -> None:
    """And the request belongs to none."""
    row = ledger.row(fake_request("a", extra={"slo_program": ["task"]}))
    assert ledger.table.program_index[row] == -1
    assert ledger._stats.malformed == {"slo_program": 1}


def test_a_streaming_session_may_change_its_program(ledger: Ledger) -> None:
    """New parameters, new program."""
    request = fake_request("a", extra={"slo_program": "first"})
    row = ledger.row(request)
    vars(request).update(  # its next input: it has not waited since the first
        sampling_params=SimpleNamespace(extra_args={"slo_program": "second"}),
        arrival_time=vars(request)["arrival_time"] + 400.0,
    )
    assert ledger.row(request) == row
    assert ledger.table.program_index[row] == program_number("default", "second")
    assert ledger.since_s[row] == ledger.table.arrival_s[row]


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_the_virtual_engine_knows_what_the_simulator_knows() -> None:
    """The same prefixes under the virtual clock."""
    from slosched.core.engine import EngineLimits
    from slosched.core.steptime import StepTimeModel
    from slosched.simulator.engine import table_of
    from slosched.testing.chaos import chaos_workload
    from slosched.testing.harness import make_request
    from slosched.testing.virtual_clock import VirtualEngine

    work = chaos_workload(40, 1, prefix_cache=True)
    engine = VirtualEngine(work, Engine(limits=EngineLimits(), step_time=StepTimeModel(base_s=0.01)))
    requests = [
        make_request(name, [1], max_tokens=1, arrival_s=0.0, priority=0, block_tokens=16, hashed=False)
        for name in engine.ids
    ]
    found = [engine.describe(request)[1] for request in requests]
    assert np.array_equal(found, table_of(work).program_index)
    assert len(set(found)) > 3


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", ["slosched\npolicy_parameters: {programs: true}", "plas", "lpm"])
def test_policies_of_programs_serve(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the live scheduler, without an error of their own."""
    from slosched.core.engine import EngineLimits
    from slosched.integrations.vllm.adapter import make
    from slosched.testing.harness import make_scheduler

    config = tmp_path / "slosched.yaml"
    config.write_text(f"policy: {policy}\n")
    monkeypatch.setenv("SLOSCHED_CONFIG", str(config))
    limits = EngineLimits(max_num_seqs=8, kv_blocks=64, max_model_len=512, max_num_batched_tokens=128)
    scheduler = make_scheduler(limits, factory=make)
    traffic, controller = Traffic(scheduler, seed=2), scheduler.slosched
    traffic.serve(120)
    until = time.monotonic() + 120  # a plan in the background may have to compile first
    while controller.stats.plans <= 10 and time.monotonic() < until:
        traffic.serve(40)
    controller.close()
    assert controller.stats.errors == {}
    assert controller.stats.plans > 10
    index = controller.ledger.table.program_index
    assert len(set(index[index >= 0].tolist())) > 10
