"""What somebody does who sees the command line for the first time."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.table import Table

from slosched.cli import common
from slosched.core.reading import LONGEST_FIELD, open_table
from slosched.lab.parallel import Workers
from slosched.predictors.training import trainer

OWN = '''
from pathlib import Path
from slosched import KeyPolicy
from slosched.routers import PickRouter


class Broken(KeyPolicy):
    """Asks for a column that is not there."""

    name = "broken"

    def key(self, snapshot, rows):
        return snapshot.table.nothing[rows]


class Lost(KeyPolicy):
    """Has no idea."""

    name = "lost"

    def key(self, snapshot, rows):
        return snapshot.table.arrival_s[rows] * float("nan")


class Boom(PickRouter):
    """Fails."""

    name = "boom"

    def pick(self, row, fleet):
        raise ValueError("boom")


def stranger() -> str:
    Path("called").touch()
    return "no policy"


def promised() -> Broken:
    return Broken()


def train(answers, settings):
    raise AssertionError("not called here")
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of a stranger's own."""
    (tmp_path / "strange.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "strange", raising=False)
    return tmp_path


@pytest.mark.parametrize("where", ["--policy", "--router"])
def test_what_makes_no_policy_is_not_called(slosched: Any, own: Path, where: str) -> None:
    """A function that does not say it returns one is refused before it runs: os.system, say."""
    for name in ("strange:stranger", "os:system", "subprocess:Popen"):
        ended = slosched("simulate", where, name, "--duration", 5)
        assert ended.code == 2, ended
        assert "derived from" in ended.err
    assert not (own / "called").exists()


def test_a_function_that_promises_a_policy_makes_one(own: Path) -> None:
    """Its annotation is the promise."""
    from slosched.policies import policy

    assert policy("strange:promised").name == "strange:promised"


def test_a_fault_of_ones_own_is_one_line(slosched: Any, own: Path) -> None:
    """File, line, function and error: of a policy and of a router."""
    ended = slosched("simulate", "--policy", "strange:Broken", "--duration", 5)
    assert ended.code == 1
    assert "strange.py, line 13, in key: AttributeError: " in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    ended = slosched(
        "simulate", "--policy", "fcfs", "--engines", 2, "--router", "strange:Boom", "--duration", 5
    )
    assert "strange.py, line 31, in pick: ValueError: boom" in ended.err


def test_a_fault_of_ours_keeps_its_traceback(slosched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no stranger's module had a part in is a bug of this package."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    # Other tests name classes of test modules, and `fail` stands in one.
    monkeypatch.setattr("slosched.core.named.FOREIGN", set())
    monkeypatch.setattr("slosched.lab.population.draw", fail)
    with pytest.raises(ZeroDivisionError):
        slosched("scenario", 3)


@pytest.mark.parametrize("given", ["", ",", " , "])
def test_no_policies_are_not_all_policies(slosched: Any, tmp_path: Path, given: str) -> None:
    """An empty list is an error that names the field, not the default study; so it is in a file."""
    ended = slosched("evidence", "--policies", given, "--draws", 1, "--out", tmp_path / "out")
    assert ended.code == 2
    assert "policies must be one or more" in ended.err
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump({"policies": given.strip(" ,") or [], "draws": 1}))
    ended = slosched("evidence", "--config", config, "--out", tmp_path / "out")
    assert ended.code == 2
    assert "policies must be one or more" in ended.err


@pytest.mark.parametrize("name", ["strange.py:Broken", "./strange:Broken", "./strange.py:Broken"])
def test_a_path_is_told_from_a_module(slosched: Any, own: Path, name: str) -> None:
    """The message says what was meant."""
    assert "Did you mean strange:Broken?" in slosched("simulate", "--policy", name).err


def test_several_policies_in_one_option(slosched: Any) -> None:
    """Commas part them in `evidence`, an option for each does it elsewhere: the message says so."""
    assert "--policy for each" in slosched("compare", "--policy", "fcfs,edf").err


def test_a_training_method_of_the_working_folder(own: Path) -> None:
    """Modules there count, as they do for policies."""
    assert trainer("strange:train").__name__ == "train"


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_of_bench(slosched: Any, option: str) -> None:
    """Before a benchmark is named, help is that of the command."""
    ended = slosched("bench", option)
    assert ended.code == 0
    assert "slosched bench" in ended.out


def test_no_figure_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow terminal a row is longer than a line; its figures are whole."""

    class Narrow(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen := Narrow())
    table = Table("policy", *(f"figure {i}" for i in range(8)))
    table.add_row("qoserve:from_first=true", *(f"{1000.5 + i}" for i in range(8)))
    common.print_table(table)
    shown = screen.getvalue()
    assert "…" not in shown
    assert all(f"{1000.5 + i}" in shown for i in range(8))


def test_a_terminal_without_utf8() -> None:
    """What it cannot show becomes a question mark, not an error."""
    ran = subprocess.run(
        [sys.executable, "-m", "slosched", "policies"],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-500:]
    assert "paced-wspt" in ran.stdout


def test_what_the_system_says_has_no_number(slosched: Any) -> None:
    """A file that is not there, a place that cannot be made."""
    ended = slosched("compare", "--config", "nowhere.yaml")
    assert (ended.code, ended.err) == (2, "slosched: No such file or directory: nowhere.yaml.\n")


def test_the_limit_of_a_csv_field_is_that_of_before(tmp_path: Path) -> None:
    """Reading a long prompt changes nothing for other readers of CSV in the process, at no time."""
    path, before = tmp_path / "t.csv", csv.field_size_limit()
    path.write_text("prompt,output_tokens\n" + f"{'x' * (before + 1)},3\n" * 2)
    rows = open_table(path).records()
    assert before < LONGEST_FIELD
    for _, row in rows:
        assert len(row["prompt"]) == before + 1
        assert csv.field_size_limit() == before


def _end(_: None, __: int) -> int:
    os._exit(3)


@pytest.mark.slow
def test_a_worker_that_dies_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Killed for want of memory, say: one sentence, not a traceback of the pool."""
    with pytest.raises(OSError, match="a worker was ended from outside"), Workers(None, 2) as workers:
        workers.map(_end, [1, 2])


def test_one_scenario_has_no_interval(slosched: Any, tmp_path: Path) -> None:
    """Neither in the table nor on the page: one value says nothing of its spread."""
    ended = slosched(
        "evidence", "--policies", "fcfs,sjf", "--draws", 1, "--seed", 0, "--jobs", 1, "--out", tmp_path
    )
    assert ended.code == 0
    assert "over one random scenario" in " ".join(ended.out.split())
    assert " to " not in ended.out
    page = (tmp_path / "index.html").read_text()
    begin = page.index("<table")
    assert " to " not in page[begin : page.index("</table>", begin)]


@pytest.mark.parametrize("command", [("compare", "--policy", "fcfs"), ("simulate",)])
def test_a_policy_of_ones_own_with_keys_that_are_none(slosched: Any, own: Path, command: Any) -> None:
    """One line says which policy it was, and what it did."""
    ended = slosched(*command, "--policy", "strange:Lost", "--duration", 5)
    assert ended.code == 2
    said = [line for line in ended.err.splitlines() if line.startswith("slosched: ")]
    assert len(said) == 1
    assert said[0].startswith("slosched: policy strange:Lost: key must be never NaN, got NaN for ")


@pytest.mark.parametrize(
    ("duration", "rate", "words"),
    [
        ("1e308", "5", "duration_s must be at most 8e+06"),
        ("inf", "5", "duration_s must be "),
        ("5", "1e308", "rate must be one at which at most 1e+09 requests arrive"),
        ("5", "1e12", "rate must be one at which at most 1e+09 requests arrive"),
    ],
)
def test_more_traffic_than_there_is_room_for(slosched: Any, duration: str, rate: str, words: str) -> None:
    """Numbers that no memory or clock holds are told before they are tried."""
    ended = slosched("simulate", "--policy", "fcfs", "--duration", duration, "--rate", rate)
    assert ended.code == 2
    assert words in ended.err
    ended = slosched("workload", "generate", "--out", "x.csv", "--duration", duration, "--rate", rate)
    assert ended.code == 2
    assert "must be" in ended.err
    assert not Path("x.csv").exists()


@pytest.mark.parametrize(
    "given",
    [
        ("--max-num-seqs", "9" * 23), ("--max-num-batched-tokens", "9" * 23), ("--kv-tokens", "9" * 23),
        ("--policy", "fcfs@" + "9" * 23), ("--policy", "fcfs@" + "9" * 5000), ("--policy", "fcfs@0"),
    ],
)  # fmt: skip
def test_limits_that_no_engine_has(slosched: Any, given: tuple[str, str]) -> None:
    """More than the arithmetic of kernels holds is told by name."""
    ended = slosched("simulate", "--duration", 5, *given)
    assert ended.code == 2
    assert given[0] in ended.err or "token budget of a policy must be @" in ended.err


@pytest.mark.parametrize("command", ["compare", "evidence"])
def test_a_config_that_is_no_text(slosched: Any, tmp_path: Path, command: str) -> None:
    """The message names the file."""
    (path := tmp_path / "c.yaml").write_bytes(b"\xff\xfe\xe5")
    ended = slosched(command, "--config", path)
    assert (ended.code, ended.err) == (2, f"slosched: {path} must be text in UTF-8.\n")
