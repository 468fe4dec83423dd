"""The rooms of the package: how many, on how many floors, and that imports go round in no circle."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest


@pytest.fixture(scope="module")
def rooms() -> dict[str, set[str]]:
    """Every package below `slosched`, with the packages that its own modules import (functions included)."""
    graph = grimp.build_graph("slosched", exclude_type_checking_imports=True, cache_dir=None)
    packages = {module for module in graph.modules if graph.find_children(module)}

    def room(module: str) -> str:
        return module if module in packages else module.rpartition(".")[0]

    imports: dict[str, set[str]] = {package: set() for package in packages - {"slosched"}}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            if room(module) != room(imported) and "slosched" not in (room(module), room(imported)):
                imports[room(module)].add(room(imported))
    return imports


def test_few_rooms(rooms: dict[str, set[str]]) -> None:
    """A newcomer can keep them in mind."""
    assert len(rooms) <= 16, sorted(rooms)


def test_no_circle_and_few_floors(rooms: dict[str, set[str]]) -> None:
    """Rooms can be stacked so that each imports lower ones only; the stack is low."""
    try:
        order = list(TopologicalSorter(rooms).static_order())
    except CycleError as error:
        pytest.fail(f"an import circle: {' -> '.join(error.args[1])}")
    floor: dict[str, int] = {}
    for room in order:
        floor[room] = 1 + max((floor[below] for below in rooms[room]), default=0)
    assert max(floor.values()) <= 11, floor


def test_the_docs_list_the_rooms_from_the_ground_up(rooms: dict[str, set[str]]) -> None:
    """The table in docs/architecture.md names every room after all those that it imports."""
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = [f"slosched.{name.replace('/', '.')}" for name in re.findall(r"^\| `([a-z/]+)/` \|", text, re.M)]
    assert sorted(listed) == sorted(rooms)
    wrong = [
        (room, below) for room in rooms for below in rooms[room] if listed.index(room) < listed.index(below)
    ]
    assert wrong == []


@pytest.mark.parametrize("high", ["lab", "report", "cli", "testing", "simulator", "workloads", "solvers"])
@pytest.mark.parametrize("low", ["core", "planner", "policies", "predictors", "integrations.vllm"])
def test_what_serves_stands_below(rooms: dict[str, set[str]], low: str, high: str) -> None:
    """What serves imports nothing of what tries and proves, not even inside a function."""
    assert f"slosched.{high}" not in rooms[f"slosched.{low}"]
