"""Comparisons, capacities and questions of how many engines are cells of the one study engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from slosched.cli import app
from slosched.core.engine import Engine, EngineLimits
from slosched.core.outcome import Run
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.lab import bench as bench_module
from slosched.lab.bench import Bench, FleetBench, runs_of
from slosched.lab.lockstep import in_lockstep
from slosched.lab.parallel import Interrupted
from slosched.lab.store import Store
from slosched.lab.study import Study, StudyInterrupted, capacity
from slosched.lab.whatif import instances_needed

LIMITS = EngineLimits(max_num_batched_tokens=1000, max_num_seqs=1)
ENGINE = Engine(limits=LIMITS, step_time=StepTimeModel(base_s=0.1))


class Metronome:
    """Requests of one token at even gaps; `longest` of the prompt can be told apart by data only."""

    def __init__(self, prompt_tokens: int = 1000) -> None:
        self.prompt_tokens = prompt_tokens

    def __call__(self, rate_rps: float, seed: int) -> Workload:
        """Forty of them, due after a sixth of a second."""
        n = 40
        times = np.arange(n) / rate_rps
        plain = Workload.plain(times, np.full(n, self.prompt_tokens), np.ones(n, dtype=np.int64))
        return replace(plain, e2e_s=np.full(n, 0.16))


BENCH = Bench(source=Metronome(), engine=ENGINE)
STUDY = Study(bench=BENCH, policies=("fcfs", "edf"), seeds=(3, 4), rates_rps=(4.0, 12.0))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None, int]]:
    """What benches ran, in their order."""
    found: list[tuple[str, float | None, int]] = []
    for kind in (Bench, FleetBench):
        plain = kind.run

        def run(self: Bench, policy: str, rate_rps: float | None, seed: int, plain: object = plain) -> Run:
            found.append((policy, rate_rps, seed))
            return plain(self, policy, rate_rps, seed)  # type: ignore[operator,no-any-return]

        monkeypatch.setattr(kind, "run", run)
    return found


def test_a_comparison_goes_on_where_it_stopped(tmp_path: Path, ran: list[object]) -> None:
    """A second study runs only what pictures need whole, and says the same."""
    first = STUDY.run(Store(tmp_path / "runs.jsonl"))
    assert len(ran) == 8
    ran.clear()
    again = STUDY.run(Store(tmp_path / "runs.jsonl"))
    assert ran == [("fcfs", 12.0, 3), ("edf", 12.0, 3)]
    assert [run.policy for run in again.details] == ["fcfs", "edf"]

    def timeless(comparison: object) -> list[object]:
        return [replace(p.metrics, wall_s=0, plan_p50_us=0, plan_p99_us=0) for p in comparison.points]  # type: ignore[attr-defined]

    assert repr(timeless(first)) == repr(timeless(again))
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 8


def test_other_code_data_or_engine_never_gets_an_old_result(
    tmp_path: Path, ran: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change makes another key."""
    one = replace(STUDY, policies=("fcfs",), seeds=(3,), rates_rps=(4.0,))
    store = Store(tmp_path / "runs.jsonl")
    one.run(store)
    faster = replace(ENGINE, step_time=StepTimeModel(base_s=0.09))
    for bench in (
        replace(BENCH, source=Metronome(999)),
        replace(BENCH, engine=faster),
        FleetBench(source=Metronome(), engine=ENGINE, engines=2),
        FleetBench(source=Metronome(), engine=ENGINE, engines=2, router="random"),
    ):
        ran.clear()
        replace(one, bench=bench).run(store)
        assert len(ran) == 1
    monkeypatch.setattr(bench_module, "policy_code", lambda policy: "changed")
    ran.clear()
    one.run(store)
    assert len(ran) == 1


def test_results_name_their_origin() -> None:
    """Commit, digest of the code, source of the data and its digest."""
    about = replace(STUDY, seeds=(3,), rates_rps=(4.0,)).run().provenance
    digest = runs_of(BENCH, ["fcfs"], [4.0], 3)[0].data[2]
    assert any(digest in data for data in about["data"])
    assert all(about[name] for name in ("commit", "code", "machine", "python"))


def test_an_interrupted_comparison_keeps_whole_seeds(tmp_path: Path) -> None:
    """Ctrl-C in the second seed leaves the first; what was done of the second is in the file."""
    store = Store(tmp_path / "runs.jsonl")

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(StudyInterrupted) as left:
        STUDY.run(store, progress=stop)
    assert left.value.comparison.seeds == [3]
    assert len(left.value.comparison.points) == 4
    assert len(Store(tmp_path / "runs.jsonl")) == 6


def test_capacity_and_engines_needed_keep_their_runs(tmp_path: Path, ran: list[object]) -> None:
    """The same question again is answered without a run, and alike."""
    store = Store(tmp_path / "runs.jsonl")
    rates = capacity(BENCH, "fcfs", seeds=(0, 1), store=store).rates_rps
    needs = instances_needed({"a": BENCH}, ["fcfs", "edf"], rate_rps=25.0, seeds=(0, 1), store=store)
    assert [need.instances for need in needs] == [3, 3]
    assert len(ran) == len(store) > 0
    ran.clear()
    again = Store(tmp_path / "runs.jsonl")
    assert capacity(BENCH, "fcfs", seeds=(0, 1), store=again).rates_rps == rates
    assert needs == instances_needed({"a": BENCH}, ["fcfs", "edf"], rate_rps=25.0, seeds=(0, 1), store=again)
    assert ran == []


def test_fewest_engines_in_closed_form() -> None:
    """Ten requests a second fill one engine; too few engines are said so, with what they reach."""
    for rate, fewest in ((8.0, 1), (19.0, 2), (45.0, 5), (68.0, 7)):
        (need,) = instances_needed(
            {"a": BENCH}, ["fcfs"], rate_rps=rate, seeds=(0,), router="round-robin", target=1.0
        )
        assert (need.instances, need.attainment) == (fewest, 1.0)
    (short,) = instances_needed({"a": BENCH}, ["fcfs"], rate_rps=45.0, seeds=(0,), most=4, target=1.0)
    assert short.instances is None
    assert short.gpus is None
    assert 0 < short.attainment < 1


def test_searches_that_end_at_different_times() -> None:
    """Each gets the answers to its own questions; those that have ended are asked no more."""

    def count(to: int):  # type: ignore[no-untyped-def]
        total = 0
        for step in range(to):
            total += yield step
        return total

    seen: list[list[tuple[int, int]]] = []

    def answers(asked: list[tuple[int, int]]) -> list[int]:
        seen.append(list(asked))
        return [10 * place + step for place, step in asked]

    found = in_lockstep([count(1), count(0), count(3)], answers)
    assert found == [0, 0, 63]
    assert seen == [[(0, 0), (2, 0)], [(2, 1)], [(2, 2)]]

    def tired(asked: list[tuple[int, int]]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as left:
        in_lockstep([count(1), count(0)], tired)
    assert left.value.results == {1: 0}


def test_commands_keep_their_runs(tmp_path: Path) -> None:
    """`whatif --out` and `compare --out` leave a store; results.json says where they come from."""
    runner = CliRunner()
    asked = ["whatif", "--rate", "10", "--policy", "fcfs", "--seeds", "1", "--duration", "10", "--jobs", "1",
             "--json", "--out", str(tmp_path / "w")]  # fmt: skip
    first, again = runner.invoke(app, asked), runner.invoke(app, asked)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout) == json.loads(again.stdout)
    lines = (tmp_path / "w" / "runs.jsonl").read_text().splitlines()
    keys = [json.dumps(json.loads(line)["key"], sort_keys=True) for line in lines]
    assert len(keys) == len(set(keys)) > 0
    made = runner.invoke(
        app,
        ["compare", "--policy", "fcfs", "--rate", "5", "--seeds", "1", "--duration", "10", "--jobs", "1",
         "--json"],
    )  # fmt: skip
    about = json.loads(made.stdout)["provenance"]
    assert about["commit"]
    assert about["data"]


def test_progress_counts_runs_asked_for_so_far() -> None:
    """It never falls, ends with all, and begins before the first run."""
    seen: list[tuple[int, int]] = []
    instances_needed(
        {"a": BENCH}, ["fcfs"], rate_rps=25.0, seeds=(0, 1), progress=lambda *counts: seen.append(counts)
    )
    assert seen == sorted(seen)
    assert seen[0] == (0, 2)
    assert seen[-1][0] == seen[-1][1] > 4
