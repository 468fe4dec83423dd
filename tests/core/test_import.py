"""What `import slosched` gives and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import slosched

HEAVY = ("numba", "torch", "ortools", "matplotlib", "vllm", "transformers", "scipy", "typer", "pydantic")


def modules_after(statement: str) -> list[str]:
    """Names of all modules loaded by a statement in a fresh interpreter."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return list(json.loads(text))


def test_import_is_light() -> None:
    """Importing the package loads nothing heavy."""
    loaded = modules_after("import slosched; assert slosched.__version__")
    assert [name for name in HEAVY if name in loaded] == []


def test_nouns_need_no_extra() -> None:
    """Ordering a queue loads none of the optional dependencies."""
    use = "r = slosched.Request(request_id='a', prompt_tokens=1, forecast=slosched.LengthForecast.point(1))"
    loaded = modules_after(f"import slosched; {use}; slosched.order([r])")
    assert [
        name for name in ("torch", "ortools", "matplotlib", "vllm", "transformers") if name in loaded
    ] == []


@pytest.mark.parametrize("name", slosched.__all__)
def test_public_names_resolve(name: str) -> None:
    """Every public name is there, documented, and listed by dir()."""
    value = getattr(slosched, name)
    assert value is not None
    assert name in dir(slosched)
    assert name == "__version__" or value.__doc__


def test_few_names() -> None:
    """The public API stays small."""
    assert len(slosched.__all__) <= 18


def test_a_policy_of_one_s_own_costs_little() -> None:
    """The base class comes with few modules and without the compiler."""
    loaded = modules_after("from slosched import KeyPolicy, Plan, Policy, Snapshot")
    assert len([name for name in loaded if name.startswith("slosched")]) <= 20
    assert [name for name in HEAVY if name in loaded] == []


def test_unknown_names_are_attribute_errors() -> None:
    """A name that does not exist is reported as for any module."""
    with pytest.raises(AttributeError, match="module 'slosched' has no attribute 'nope'"):
        _ = slosched.nope


def test_what_serves_needs_nothing_of_the_command_line() -> None:
    """The adapter and front in vLLM import no library of the command line, not even inside functions.

    So in vLLM's environment ``pip install --no-deps`` and scipy are enough: the rest comes with vLLM.
    """
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    from slosched.lab.digests import closure

    serving = [f"slosched.integrations.vllm.{name}" for name in ("adapter", "front", "middleware", "plugin")]
    modules = closure("slosched.integrations.vllm", "slosched.policies.registry", *serving)
    needed: dict[str, str] = {}
    for name in sorted(modules):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                needed |= {alias.name.partition(".")[0]: name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                needed[node.module.partition(".")[0]] = name
    commands = ("click", "rich", "typer")
    assert {package: where for package, where in needed.items() if package in commands} == {}
    rooms = {name.split(".")[1] for name in modules if name.count(".")}
    assert rooms & {"cli", "lab", "report"} == set()
