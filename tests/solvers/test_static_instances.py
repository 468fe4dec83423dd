"""The instance library and the benchmark of static batches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from slosched.core.errors import InputError
from slosched.solvers import bench
from slosched.solvers.instances import Instance, read, write
from slosched.solvers.library import build, check, library, submit
from slosched.solvers.solve import solve
from slosched.solvers.static.generated import generate, name_of, named


def synthetic() -> list[Instance]:
    """The generated instances of the library."""
    return [instance for instance in library() if instance.name.startswith("static-")]


def test_the_library_recomputes() -> None:
    """Every plan that comes with the package has the stored value, within its bound."""
    instances = synthetic()
    assert {len(i.requests["weight"]) for i in instances} == {8, 12, 20, 50}
    assert check(instances) == []
    assert all("lex" in i.best and "g" in i.best for i in instances)


def test_the_library_is_what_its_names_generate() -> None:
    """A stored instance equals the one regenerated from its name."""
    for instance in synthetic()[::7]:
        fresh = Instance.of(named(instance.name), instance.name)
        assert fresh.requests == instance.requests
        assert fresh.max_batch == instance.max_batch


def test_no_solver_beats_a_proved_optimum_of_the_library() -> None:
    """Annealing never has more than a value stored as optimal."""
    for instance in synthetic()[::5]:
        best = instance.best["lex"]
        found = solve(instance.problem(), moves=3000)
        if best.optimal:
            assert not found.score.better(type(found.score)(best.weight, best.latency_s))
        assert best.bound is None or found.objective <= best.bound + 1e-9


def test_write_and_read_are_inverse(tmp_path: Path) -> None:
    """A file read back holds the same instances."""
    instances = build([name_of(6, 2, 0.5, 3, True)], moves=500)
    write(tmp_path / "a.json", instances)
    assert read(tmp_path / "a.json") == instances


def test_names_generate_what_they_say() -> None:
    """A name is all that an instance needs."""
    assert (
        named(name_of(9, 4, 0.5, 1, True)).prompt_tokens.tolist()
        == generate(9, 4, load=0.5, seed=1, weighted=True).prompt_tokens.tolist()
    )
    with pytest.raises(InputError, match="static-n50-b4"):
        named("static-n5")


def good_file(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A valid file of one instance, and its data."""
    path = tmp_path / "a.json"
    write(path, build([name_of(5, 2, 0.5, 3, False)], moves=100))
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("schema",), 2, r"a\.json: schema must be 1, got 2"),
        (("instances",), 5, r"a\.json: instances must be a list"),
        (("instances", 0, "name"), 7, r"a\.json: name must be a new string"),
        (("instances", 0, "kind"), "odd", r"kind must be static or continuous, got 'odd'"),
        (("instances", 0, "max_batch"), 0, r"s3: max_batch must be an integer of at least 1"),
        (("instances", 0, "cost", "decode_base"), -1, r"s3: decode_base must be"),
        (("instances", 0, "cost", "speed"), 1, r"s3: .*speed"),
        (("instances", 0, "requests", "weight"), "x", r"s3: weight must be a list"),
        (("instances", 0, "requests", "weight", 0), None, r"s3: weight must be numbers, got None"),
        (("instances", 0, "requests", "weight", 0), -2.0, r"s3: weight must be finite"),
        (("instances", 0, "requests", "prompt_tokens"), [1], r"must be an array of shape"),
        (("instances", 0, "requests", "colour"), [1], r"requests must be an object of the columns"),
        (("instances", 0, "best", "speed"), {}, r"objective must be one of"),
        (("instances", 0, "best", "lex"), {"sequence": []}, r"s3: batches is missing"),
        (("instances", 0, "best", "lex"), {"sequence": [], "batches": []}, r"s3: .*missing.*'value'"),
    ],
)
def test_wrong_files_are_named(
    tmp_path: Path, where: tuple[str | int, ...], value: object, message: str
) -> None:
    """A file that breaks the schema is refused, naming file, instance, field and value."""
    path, data = good_file(tmp_path)
    place: Any = data
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        read(path)


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    """A file that is missing or no JSON is an error that names it."""
    with pytest.raises(InputError, match=r"none\.json"):
        read(tmp_path / "none.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json"):
        read(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 99.0}, "weight must be"),
        ({"value": 99.0}, "value must be"),
        ({"latency_s": 1.0}, "latency_s must be"),
        ({"bound": 0.5}, "bound must not be beyond"),
        ({"sequence": (0, 0, 1, 2, 3)}, "permutation"),
        ({"batches": (5,)}, "batches must be sizes"),
    ],
)
def test_stored_values_that_do_not_recompute_are_found(change: dict[str, Any], message: str) -> None:
    """A stored weight, latency, value, bound or plan that is wrong is reported by the checker."""
    instance = build([name_of(5, 2, 2.0, 3, False)], moves=100)[0]
    assert check([instance]) == []
    wrong = dataclasses.replace(instance.best["lex"], **change)
    faults = check([dataclasses.replace(instance, best={"lex": wrong})])
    assert any(message in fault for fault in faults)


def test_submissions_are_recomputed_and_taken_if_better() -> None:
    """A better plan replaces the stored one, a worse one does not, a wrong one is refused."""
    name = name_of(12, 2, 0.5, 3, False)
    problem = named(name)
    weak = Instance.of(problem, name).with_best("lex", solve(problem, solver="fcfs"))
    strong = Instance.of(problem, name).with_best("lex", solve(problem, moves=5000))
    merged, news = submit([weak], [strong])
    assert merged[0].best["lex"].value == strong.best["lex"].value
    assert len(news) == 1
    assert submit([strong], [weak]) == ([strong], [])
    lie = dataclasses.replace(strong.best["lex"], value=1e6)
    with pytest.raises(InputError, match="recompute"):
        submit([weak], [dataclasses.replace(strong, best={"lex": lie})])


def test_benchmark_measures_and_plots(tmp_path: Path) -> None:
    """The quick benchmark fills every measure, and its command line writes JSON and plots."""
    arguments = ["--quick", "--json", str(tmp_path / "o.json"), "--plots", str(tmp_path)]
    assert bench.main(arguments) == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert set(bench.MEASURES) <= set(found)
    thousand = next(c for c in found["throughput"]["cells"] if (c["n"], c["b"]) == (1000, 8))
    assert thousand["delta_over_full"]["median"] > 3
    assert 0.5 < found["optimality"]["overall"]["weight"] <= 1
    assert (tmp_path / "gap.png").stat().st_size > 0
    assert (tmp_path / "moves.png").stat().st_size > 0


def test_benchmark_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Solvers run on a file of instances; an unknown solver or file is one line and code 2."""
    path, _ = good_file(tmp_path)
    found = bench.run(instances=path, solvers=["sjf", "enumerate"])
    assert [row["solver"] for row in found["instances"]["rows"]] == ["sjf", "enumerate"] * 2
    assert bench.main(["--instances", str(path)]) == 0
    assert bench.main(["--instances", str(tmp_path / "none.json")]) == 2
    assert bench.main(["--instances", str(path), "--solver", "magic"]) == 2
    assert "solver must be one of" in capsys.readouterr().out
