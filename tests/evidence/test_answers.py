"""Commands that answer questions: why a request missed its SLO, how many engines a traffic needs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from slosched.cli import app, main
from slosched.core.engine import Engine, EngineLimits, preset
from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel
from slosched.lab.bench import Bench
from slosched.lab.runfile import RunFile, read_run, write_run
from slosched.lab.whatif import instances_needed
from slosched.lab.why import missed, why
from slosched.simulator import simulate
from slosched.workloads import Workload
from slosched.workloads.mixes import mix
from slosched.workloads.sources import Generated

STEPS = StepTimeModel(base_s=0.01, prefill_token_s=1e-3)
ENGINE = EngineLimits(max_num_seqs=1)


def _blocked() -> RunFile:
    """A short request behind a long one on an engine that serves one at a time."""
    work = Workload.plain(np.array([0.0, 0.1, 0.2]), np.array([1000, 50, 50]), np.array([100, 5, 5]))
    work = replace(work, ttft_s=np.array([np.inf, 1.0, 0.02]))
    run = simulate(work, "fcfs", engine=Engine(limits=ENGINE, step_time=STEPS))
    return RunFile(
        policy="fcfs",
        seed=0,
        workload=work,
        engine=Engine(limits=ENGINE, step_time=STEPS),
        finish_s=run.outcomes.finish_s,
    )


def test_a_request_behind_a_long_one() -> None:
    story = why(_blocked(), "1")
    assert not story.met
    outcome = {w.change: w.met for w in story.what_ifs}
    assert outcome["Alone on the engine"]
    assert not outcome["First in line from its arrival"]  # the long one runs already
    assert any("TTFT" in fact and "missed" in fact for fact in story.facts)


def test_a_limit_nobody_could_keep() -> None:
    story = why(_blocked(), "2")
    assert not any(w.met for w in story.what_ifs)


def test_what_if_counts_agree_with_a_run() -> None:
    work = mix("azure", rate_per_s=25.0, requests=80, seed=3)
    run = simulate(work, "sjf")
    saved = RunFile(
        policy="sjf", seed=0, workload=work, engine=Engine(),
        finish_s=run.outcomes.finish_s,
    )  # fmt: skip
    late = missed(saved)
    assert late == [str(i) for i in np.flatnonzero(~run.outcomes.met)]
    story = why(saved, late[0])
    fcfs = next(w for w in story.what_ifs if w.change == "Under first come, first served")
    other = simulate(work, "fcfs").outcomes.met
    row = int(late[0])
    gained = other & ~run.outcomes.met
    lost = run.outcomes.met & ~other
    assert (fcfs.met, fcfs.others_saved, fcfs.others_lost) == (
        bool(other[row]), int(gained.sum() - gained[row]), int(lost.sum() - lost[row]),
    )  # fmt: skip
    kept = why(saved, str(int(np.flatnonzero(run.outcomes.met)[0])))
    assert kept.met
    assert kept.what_ifs == ()


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_a_run_survives_its_file(tmp_path: Path, name: str) -> None:
    limits = EngineLimits(prefix_cache=True)
    work = mix("mooncake", rate_per_s=2.0, requests=20, seed=0, limits=limits)
    run = simulate(work, "fcfs", engine=Engine(limits=limits, step_time=STEPS))
    write_run(tmp_path / name, run, Engine(limits=limits, step_time=STEPS))
    saved = read_run(tmp_path / name)
    assert saved.engine == Engine(limits=limits, step_time=STEPS)
    np.testing.assert_array_equal(saved.finish_s, run.outcomes.finish_s)
    again = simulate(saved.workload, saved.policy, engine=Engine(limits=limits, step_time=STEPS))
    np.testing.assert_array_equal(again.outcomes.finish_s, run.outcomes.finish_s)


def test_bad_run_files(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    for content, word in [
        (b"", "JSON"),
        (b"\x1f\x8bxx", "JSON"),
        (b"[]", "schema"),
        (b'{"schema": 9}', "schema"),
        (b'{"schema": 2}', "whole run"),
    ]:
        file.write_bytes(content)
        with pytest.raises(InputError, match=word):
            read_run(file)
    saved = _blocked()
    with pytest.raises(InputError, match="repeat"):
        why(replace(saved, finish_s=saved.finish_s + 1), "0")
    with pytest.raises(InputError, match="nobody"):
        why(saved, "nobody")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json.gz"
    runner = CliRunner()
    made = runner.invoke(
        app, ["simulate", "--policy", "edf", "--rate", "25", "--duration", "10", "--save", str(file)]
    )
    assert made.exit_code == 0, made.output
    late = json.loads(runner.invoke(app, ["why", "--run", str(file), "--json"]).stdout)
    if late:
        told = json.loads(runner.invoke(app, ["why", late[0], "--run", str(file), "--json"]).stdout)
        assert told["met"] is False
        assert len(told["what_ifs"]) == 5
    with pytest.raises(SystemExit) as left:
        main(["why", "x", "--run", str(tmp_path / "absent.json")])
    assert left.value.code == 2
    assert "absent.json" in capsys.readouterr().err


def test_instances() -> None:
    name = "h100-llama-3.1-8b"
    engine = Engine(limits=EngineLimits(), step_time=preset(name).step_time)
    bench = Bench(source=Generated(kind="chat", duration_s=10.0, engine=engine), engine=engine)
    (need,) = instances_needed({name: bench}, ["fcfs"], rate_rps=30.0, seeds=(0,))
    assert need.instances is not None
    assert need.attainment >= 0.95
    if need.instances > 1:
        (fewer,) = instances_needed(
            {name: bench}, ["fcfs"], rate_rps=30.0, seeds=(0,), most=need.instances - 1
        )
        assert fewer.instances is None
        assert fewer.attainment < 0.95
    bad: list[dict[str, Any]] = [
        {"rate_rps": 0.0},
        {"rate_rps": 1.0, "target": 1.5},
        {"rate_rps": 1.0, "most": 0},
    ]
    for changes in bad:
        with pytest.raises(InputError):
            instances_needed({name: bench}, ["fcfs"], seeds=(0,), **changes)
