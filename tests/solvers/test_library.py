"""The library of overload instances: format, recomputation, regeneration, submissions."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import preset
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.lab.overload import capture, overload, usual_load
from slosched.solvers.continuous_problem import ContinuousProblem
from slosched.solvers.instances import Instance, read, write
from slosched.solvers.library import check, folder, library, store, submit, with_best_known
from slosched.solvers.solve import solve

RTX = "rtx4090-llama-3.1-8b"


@pytest.fixture(scope="module")
def moving() -> Instance:
    """A continuous instance of 8 waiting requests with its proved best plan."""
    return with_best_known(overload("azure", 8, kind="continuous", engine=RTX, seed=3), moves=1000)


@pytest.fixture(scope="module")
def still() -> Instance:
    """A static instance of 8 requests with its proved best plans."""
    return with_best_known(overload("bursty", 8, max_batch=2, engine=RTX, seed=3), moves=1000)


def from_overload() -> list[Instance]:
    """The instances of the library that come from simulated overload."""
    return [instance for instance in library() if instance.name.startswith("overload-")]


def test_every_overload_instance_recomputes() -> None:
    """Every plan stored with an overload instance has its value by the slow evaluators, within its bound."""
    assert check(from_overload()) == []


def test_the_library_covers_mixes_sizes_and_kinds() -> None:
    """All five mixes come in both kinds, weighted and not, from 8 to 200 requests, and in few bytes."""
    found = from_overload()
    for kind, sizes in (("static", {8, 12, 20, 50, 200}), ("continuous", {8, 20, 50, 200})):
        some = [i for i in found if i.kind == kind]
        assert {i.source["mix"] for i in some} == {"azure", "sharegpt-batch", "mooncake", "agentic", "bursty"}
        waiting = {len(i.requests["weight"]) - int(i.engine.get("running", 0)) for i in some}
        assert waiting == sizes
        assert {"-w-" in i.name for i in some} == {True, False}
    assert any("traces" in i.name for i in found)
    assert sum(file.stat().st_size for file in folder().iterdir()) < 400_000


def test_small_ones_are_proved() -> None:
    """Static instances of up to 12 requests and continuous ones of 8 are stored with their optimum."""
    for instance in from_overload():
        waiting = len(instance.requests["weight"]) - int(instance.engine.get("running", 0))
        if waiting <= (12 if instance.kind == "static" else 8):
            assert instance.best["lex"].optimal
            assert instance.best["lex"].bound == instance.best["lex"].value


@pytest.mark.parametrize("kind", ["static", "continuous"])
def test_what_needs_no_trace_is_regenerated_from_its_seed(kind: str) -> None:
    """An instance from the built-in generators equals the one made anew from its parameters."""
    stored = next(i for i in from_overload() if i.kind == kind and not i.name.endswith("traces"))
    about = stored.source
    fresh = overload(
        about["mix"],
        8,
        kind=kind,
        seed=about["seed"],
        weighted="-w-" in stored.name,
        max_batch=stored.max_batch,
        engine=about["engine"],
    )
    assert (fresh.name, fresh.engine, fresh.source) == (stored.name, stored.engine, stored.source)
    for column, values in fresh.requests.items():
        assert np.array_equal(values, stored.requests[column], equal_nan=True), column


def test_both_kinds_survive_a_file(tmp_path: Path, moving: Instance, still: Instance) -> None:
    """Writing and reading gives the same problems, plans and bytes."""
    path = tmp_path / "a.json"
    write(path, [moving, still])
    back = read(path)
    assert [i.best for i in back] == [moving.best, still.best]
    assert np.array_equal(back[0].continuous().jobs, moving.continuous().jobs, equal_nan=True)
    assert np.array_equal(back[0].continuous().engine, moving.continuous().engine)
    assert back[1] == still
    write(tmp_path / "b.json", back)
    assert (tmp_path / "b.json").read_bytes() == path.read_bytes()


def test_an_instance_is_its_snapshot_with_expected_lengths() -> None:
    """Jobs rebuilt from the format equal those of a snapshot with point forecasts."""
    point = LengthForecast.point
    waiting = [
        Request(request_id="a", prompt_tokens=300, forecast=point(40), slo=Slo(ttft_s=1.5), arrival_s=7.0),
        Request(request_id="b", prompt_tokens=20, forecast=point(9), slo=Slo(e2e_s=4.0), arrival_s=8.0),
    ]
    runs = Request(
        request_id="c", prompt_tokens=50, forecast=point(80), generated_tokens=30, arrival_s=5.0, weight=2.0
    )
    problem = ContinuousProblem(snapshot=Snapshot.of(waiting, [runs], now_s=9.0))
    rebuilt = Instance.of_continuous(problem, "x").continuous()
    clock = np.zeros(problem.jobs.shape[1])
    clock[[3, 4, 6, 8]] = 9.0  # FIRST_DUE, E2E_DUE, FIRST, ARRIVAL are on the clock
    np.testing.assert_allclose(rebuilt.jobs, problem.jobs - clock, equal_nan=True, atol=2e-6)
    assert rebuilt.running == 1


def test_captured_queues_have_the_length_asked_for() -> None:
    """A snapshot has exactly n waiting, in order of arrival, none of them running, within the KV cache."""
    snapshot, load, source = capture("azure", 40, seed=2, engine=preset(RTX), load=2.0)
    arrival = snapshot.table.arrival_s[snapshot.waiting]
    assert len(snapshot.waiting) == 40
    assert np.all(np.diff(arrival) >= 0)
    assert np.all(arrival <= snapshot.now_s)
    assert not set(snapshot.waiting.tolist()) & set(snapshot.running.tolist())
    assert load >= 2.0
    assert source


def test_same_seed_same_instance() -> None:
    """An instance depends on its arguments alone, and other seeds give other ones."""
    one, two = (overload("bursty", 12, seed=5, weighted=False) for _ in range(2))
    assert one == two
    assert set(one.requests["weight"]) == {1.0}
    assert one.requests != overload("bursty", 12, seed=6, weighted=False).requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mix_name": "soup"}, "mix must be one of"),
        ({"n": 0}, "n must be"),
        ({"kind": "odd"}, "kind must be static or continuous"),
        ({"load": math.nan}, "load must be a finite number above 0"),
        ({"engine": "abacus"}, "engine must be a JSON file or one of"),
        ({"max_batch": 0}, "max_batch must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    """A value off its domain is an error that names it."""
    with pytest.raises(InputError, match=message):
        overload(**{"mix_name": "azure", "n": 8, **arguments})


def test_longer_queues_need_more_load() -> None:
    """The usual load is 1.5 up to 106 requests and in proportion to the length after that."""
    assert usual_load(8) == usual_load(106) == 1.5
    assert usual_load(1000) == pytest.approx(5 * usual_load(200))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 99.0}, "weight must be"),
        ({"value": 99.0}, "value must be"),
        ({"latency_s": 1.0}, "latency_s must be"),
        ({"bound": 0.0}, "bound must not be beyond"),
        ({"sequence": (0, 0, 1, 2, 3, 4, 5, 6)}, "permutation"),
        ({"batches": (8,)}, "batches must be empty"),
    ],
)
def test_wrong_continuous_values_are_found(moving: Instance, change: dict[str, Any], message: str) -> None:
    """A stored weight, latency, value, bound or plan of a continuous instance that is wrong is reported."""
    assert check([moving]) == []
    wrong = dataclasses.replace(moving.best["lex"], **change)
    faults = check([dataclasses.replace(moving, best={"lex": wrong})])
    assert any(message in fault for fault in faults)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("engine",), {"slots": 8}, "engine must be an object of running, max_num_seqs"),
        (("engine",), 5, "engine must be an object of numbers"),
        (("engine", "running"), 1.5, "engine must be whole counts"),
        (("engine", "running"), 99, "running must be from 0 to"),
        (("engine", "kv_blocks"), 1, "computed_tokens must be within 1 KV blocks"),
        (("engine", "base_s"), -1, "base_s must be"),
        (("requests", "first_token_s"), 3, "first_token_s must be a list"),
        (("requests", "generated_tokens", 0), 0.5, "generated_tokens must be whole"),
        (("requests", "weight", 0), None, "weight must be numbers, got None"),
        (("best", "g"), {}, "objective must be one of lex, goodput"),
        (("max_batch",), None, ""),
    ],
)
def test_wrong_continuous_files_are_named(
    tmp_path: Path, moving: Instance, where: tuple[str | int, ...], value: object, message: str
) -> None:
    """A continuous instance that breaks the schema is refused, naming file, instance and field."""
    path = tmp_path / "a.json"
    write(path, [moving])
    data = json.loads(path.read_text())
    place: Any = data["instances"][0]
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    path.write_text(json.dumps(data))
    if not message:  # a field of the other kind is not looked at
        assert read(path)[0].kind == "continuous"
        return
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert "a.json, overload-azure" in str(caught.value)


def test_better_continuous_plans_are_taken(moving: Instance) -> None:
    """A better plan replaces the stored one and keeps our bound; a worse one, a lie and a stranger do not."""
    problem, best = moving.continuous(), moving.best["lex"]
    plain = solve(problem, objective="lex", solver="fcfs")
    weak = dataclasses.replace(moving, best={}).with_best("lex", plain)
    merged, news = submit([weak], [moving])
    assert merged[0].best["lex"].sequence == best.sequence
    assert merged[0].best["lex"].bound == weak.best["lex"].bound
    assert not merged[0].best["lex"].optimal
    assert len(news) == 1
    assert submit([moving], [weak]) == ([moving], [])
    lie = dataclasses.replace(best, value=best.value + 1, weight=best.weight + 1)
    with pytest.raises(InputError, match="a plan that recomputes"):
        submit([weak], [dataclasses.replace(moving, best={"lex": lie})])
    with pytest.raises(InputError, match="instances of the library, got 'stranger'"):
        submit([weak], [dataclasses.replace(moving, name="stranger")])


def test_bounds_of_static_searches_hold(still: Instance) -> None:
    """Stored bounds are not beaten by longer searches."""
    for goal, best in still.best.items():
        found = solve(still.problem(), objective=goal, moves=20_000, seed=9)
        assert best.bound is not None
        assert found.objective <= best.bound * (1 + 1e-9)


def test_storing_writes_the_files_of_the_package(tmp_path: Path) -> None:
    """The library written back unchanged is byte for byte what the package has."""
    for path in store(library(), tmp_path):
        assert path.read_bytes() == (folder() / path.name).read_bytes()
