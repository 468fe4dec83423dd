"""The command around the library of instances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NEW = ("--mix", "bursty", "--n", 8, "--count", 2, "--moves", 500, "--exact-s", 1)


@pytest.mark.parametrize("kind", ["--static", "--continuous"])
def test_new_sets_are_written_seeded_and_recompute(slosched: Any, tmp_path: Path, kind: str) -> None:
    """A set has the instances asked for, is the same for the same seed, and passes the check."""
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        ended = slosched("instances", "--out", path, *NEW, "--seed", 4, kind)
        assert ended.code == 0, ended.err
    one, two = (json.loads(path.read_text())["instances"] for path in paths)
    assert [entry["source"]["seed"] for entry in one] == [4, 5]
    assert {entry["kind"] for entry in one} == {kind[2:]}
    assert [e["requests"] for e in one] == [e["requests"] for e in two]
    checked = slosched("instances", "--check", "--file", paths[0], "--json")
    assert checked.code == 0
    assert json.loads(checked.out)["wrong"] == []


def test_sets_without_plans(slosched: Any, tmp_path: Path) -> None:
    """Without moves nothing is searched; weights and load are as asked."""
    path = tmp_path / "a.json"
    ended = slosched(
        "instances", "--out", path, "--n", 30, "--count", 1, "--moves", 0, "--unweighted", "--load", 2
    )
    assert ended.code == 0
    entry = json.loads(path.read_text())["instances"][0]
    assert entry["best"] == {}
    assert entry["source"]["load"] >= 2
    assert set(entry["requests"]["weight"]) == {1}


def test_a_wrong_value_is_code_1(slosched: Any, tmp_path: Path) -> None:
    """A stored value that does not recompute is named on standard error with code 1."""
    path = tmp_path / "a.json"
    slosched("instances", "--out", path, *NEW)
    data = json.loads(path.read_text())
    data["instances"][1]["best"]["lex"]["latency_s"] += 1.0
    path.write_text(json.dumps(data))
    ended = slosched("instances", "--check", "--file", path)
    assert ended.code == 1
    assert data["instances"][1]["name"] in ended.err
    assert "latency_s must be" in ended.err
    assert slosched("instances", "--file", path).code == 0


def test_better_plans_are_taken_into_a_folder(slosched: Any, tmp_path: Path) -> None:
    """A submission that beats a stored plan is merged; the library in the package stays as it was."""
    from slosched.solvers.instances import write
    from slosched.solvers.library import folder, library

    before = {file.name: file.read_bytes() for file in folder().iterdir() if file.suffix == ".json"}
    # What is stored is best or nearly so: its own plans gain nothing.
    write(tmp_path / "same.json", library()[:3])
    ended = slosched("instances", "--submit", tmp_path / "same.json", "--out", tmp_path, "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert found["improved"] == []
    assert sorted(Path(name).name for name in found["written"]) == ["overload.json", "static.json"]
    assert "0 better plans" in slosched("instances", "--submit", tmp_path / "same.json").out
    assert before == {file.name: file.read_bytes() for file in folder().iterdir() if file.suffix == ".json"}


def test_an_improvement_is_told(slosched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan better than the stored one is printed with both values and written to the package's file."""
    import dataclasses

    from slosched.solvers import library as module
    from slosched.solvers.instances import read, write
    from slosched.solvers.solve import solve

    own = tmp_path / "package"
    own.mkdir()
    whole = module.library()[:2]
    weak = [dataclasses.replace(i, best={}).with_best("lex", solve(i.problem(), solver="edf")) for i in whole]
    write(own / "static.json", weak)
    write(own / "overload.json", [])
    monkeypatch.setattr(module, "folder", lambda: own)
    write(tmp_path / "better.json", whole)
    ended = slosched("instances", "--submit", tmp_path / "better.json")
    assert ended.code == 0
    assert f"{whole[0].name}, lex: " in ended.out
    assert read(own / "static.json")[0].best["lex"].value == whole[0].best["lex"].value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--submit", "NONE.json"), "NONE.json"),
        (("--submit", "LIE.json"), "a plan that recomputes"),
        (("--submit", "LIE.json", "--check"), "submit must be given without"),
        (("--submit", "LIE.json", "--out", "nowhere"), "out must be a folder"),
        (("--file", "NONE.json"), "NONE.json"),
        (("--check", "--out", "x.json"), "out must be given without"),
        (("--out", "nowhere/x.json"), "out must be a file in a folder that exists"),
        (("--out", "x.json", "--mix", "soup"), "mix must be one of"),
        (("--out", "x.json", "--n", 0), "n must be an integer of at least 1"),
        (("--out", "x.json", "--moves", 5), "moves must be 0 or at least 100"),
        (("--out", "x.json", "--engine", "abacus"), "engine must be a JSON file or one of"),
        (("--out", "x.json", "--max-batch", 0, "--n", 8), "max_batch must be"),
        (("--out", "x.json", "--load", -1), "load must be a finite number above 0"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    slosched: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    """A missing file, a lie, a wrong option or value: one line on standard error and code 2."""
    import dataclasses

    from slosched.solvers.instances import write
    from slosched.solvers.library import library

    monkeypatch.chdir(tmp_path)
    first = library()[0]
    lie = dataclasses.replace(first.best["lex"], value=99.0, weight=99.0)
    write("LIE.json", [dataclasses.replace(first, best={"lex": lie})])
    ended = slosched("instances", *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "x.json").exists()
