"""The notebooks run from top to bottom, in an empty folder, and show what they promise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
ROOT = Path(__file__).parents[2]
nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel belong to the extra `test`")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Execute a notebook, its kernel in `folder`; any exception in a cell is one here."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    monkeypatch.delenv("SLOSCHED_DATA", raising=False)
    notebook = nbformat.read(FOLDER / name, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=560, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def printed(notebook: Any) -> str:
    """All that cells have printed or returned as text."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
def test_comparing_policies_on_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints a headline and a row for each policy, draws a picture and writes a report."""
    done = run("compare-policies.ipynb", tmp_path, monkeypatch)
    text = printed(done)
    assert "slosched keeps" in text
    for policy in ("slosched", "fcfs", "sjf", "paced-edf"):
        assert f"\n{policy} " in text
    kinds = [kind for cell in done.cells for o in cell.get("outputs", []) for kind in o.get("data", {})]
    assert "image/png" in kinds
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_policy_of_one_s_own_in_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy passes the suite and has a figure in each scenario, with both of its parameters."""
    text = printed(run("your-own-policy.ipynb", tmp_path, monkeypatch))
    assert "lawful" in text
    assert text.count("mine:LeastSlack:prompt_s=1e-4") == 2
    assert text.count("% of SLOs") == 8


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    """So that a change of a notebook is a change of its text."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)
