"""Bad input ends in one clear line, exit code 2 and no half-written output."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

HEADER = "arrival_s,input_tokens,output_tokens\n"
GOOD = {"request_id": "a", "prompt_tokens": 10, "forecast": 5, "ttft_s": 1.0}


def refused(ended: Any, *words: str) -> None:
    """One line on standard error with these words, nothing on standard output, exit code 2."""
    assert ended.code == 2, ended
    assert ended.out == ""
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("slosched: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("t.csv",)),
        (HEADER, ("t.csv",)),
        ("a,b\n1,2\n", ("t.csv",)),
        (HEADER + "0,10,5\nnan,10,5\n", ("t.csv", "row 2", "arrival_s", "nan")),
        (HEADER + "-1,10,5\n", ("t.csv", "row 1", "arrival_s", "-1")),
        (HEADER + "5,10,5\n4,10,5\n", ("t.csv", "row 2", "arrival_s", "4")),
        (HEADER + "0,0,5\n", ("t.csv", "row 1", "input_tokens", "0")),
        (HEADER + "0,10,0\n", ("t.csv", "row 1", "output_tokens", "0")),
        (HEADER + "0,99999999999999,5\n", ("t.csv", "row 1", "input_tokens")),
    ],
)
def test_bad_traces(slosched: Any, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    """Each kind of broken trace is refused by name, row, field and value, before any output is made."""
    path, out = tmp_path / "t.csv", tmp_path / "out"
    path.write_text(text)
    refused(slosched("compare", "--trace", f"{path}=chat", "--jobs", 1, "--out", out), *words)
    assert not out.exists()


def test_truncated_gzip(slosched: Any, tmp_path: Path) -> None:
    """A cut-off gzip file is refused by name."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress((HEADER + "0,10,5\n" * 1000).encode())[:-30])
    refused(slosched("workload", "describe", path), "t.csv.gz")


def test_missing_file(slosched: Any, tmp_path: Path) -> None:
    """A file that is not there is refused by name."""
    refused(slosched("simulate", "--trace", f"{tmp_path / 'none.csv'}=chat"), "none.csv")
    refused(slosched("order", tmp_path / "none.json"), "none.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ttft_s": 0}, ("row 1", "ttft_s", "greater than 0", "0")),
        ({"tpot_s": -1}, ("row 1", "tpot_s", "-1")),
        ({"e2e_s": "nan"}, ("row 1", "e2e_s", "finite")),
        ({"prompt_tokens": 0}, ("row 1", "prompt_tokens", "0")),
        ({"prompt_tokens": 10**9}, ("row 1", "prompt_tokens", "hold")),
        ({"forecast": 0}, ("row 1", "tokens", "at least 1", "0")),
        ({"state": "asleep"}, ("row 1", "state", "waiting", "asleep")),
        ({"slo": 1}, ("row 1", "one of", "ttft_s", "'slo'")),
    ],
)
def test_bad_queues(slosched: Any, tmp_path: Path, change: dict[str, Any], words: tuple[str, ...]) -> None:
    """A queue with a bad field is refused by file, row, field, domain and value."""
    path = tmp_path / "queue.json"
    path.write_text(json.dumps([GOOD | change]))
    refused(slosched("order", path), "queue.json", *words)


@pytest.mark.parametrize("text", ["", "{", "3", "[]", '{"requests": [], "clock": 1}'])
def test_queues_that_are_none(slosched: Any, tmp_path: Path, text: str) -> None:
    """A file that holds no queue is refused by name."""
    path = tmp_path / "queue.json"
    path.write_text(text)
    refused(slosched("order", path), "queue.json")


def test_unknown_names_list_the_known_ones(slosched: Any, tmp_path: Path) -> None:
    """Unknown policy, preset, workload and class are refused with the names that exist."""
    refused(slosched("simulate", "--policy", "magic"), "policy", "fcfs", "'magic'")
    refused(slosched("compare", "--policy", "magic", "--jobs", 1), "policy", "fcfs", "'magic'")
    refused(slosched("simulate", "--engine", "abacus"), "engine", "h100", "'abacus'")
    refused(slosched("simulate", "--workload", "void"), "workload", "mixed", "'void'")
    refused(slosched("simulate", "--on", "steam"), "on", "simulator, vllm", "'steam'")
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "0,10,5\n")
    refused(slosched("simulate", "--trace", f"{path}=chat", "--slo", "code:e2e=1"), "class", "chat", "code")
    refused(slosched("simulate", "--trace", path), "slo", "chat")


@pytest.mark.parametrize("limits", ["e2e=0", "e2e=nan", "e2e=soon", "patience=1", "e2e"])
def test_bad_slo_words(slosched: Any, tmp_path: Path, limits: str) -> None:
    """A limit that is not above 0, not a number or not a limit is refused."""
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "0,10,5\n")
    refused(slosched("simulate", "--trace", f"{path}=chat", "--slo", f"chat:{limits}"))


def test_request_larger_than_the_engine(slosched: Any, tmp_path: Path) -> None:
    """A trace none of whose requests fits the KV cache is refused."""
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "0,9000000,5\n")
    refused(slosched("simulate", "--trace", f"{path}=chat"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.yaml", "polices: [fcfs]\n", ("c.yaml", "policy", "async", "'polices'")),
        ("c.toml", "seeds = 0\n", ("c.toml", "seeds", "0")),
        ("c.yaml", "seeds: [\n", ("c.yaml",)),
        ("c.yaml", "- 1\n", ("c.yaml",)),
        ("c.yaml", "load: [1]\nrate: [1]\n", ("loads",)),
        ("c.yaml", "load: [.nan]\n", ("loads",)),
    ],
)
def test_bad_config(slosched: Any, tmp_path: Path, name: str, text: str, words: tuple[str, ...]) -> None:
    """An unknown key is refused with the known ones, a bad value with its key."""
    path = tmp_path / name
    path.write_text(text)
    refused(slosched("compare", "--config", path, "--jobs", 1), *words)


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_bad_rates(slosched: Any, rate: str) -> None:
    """A rate must be a finite number above 0."""
    refused(slosched("simulate", f"--rate={rate}"), "rate")


def test_out_must_be_a_folder(slosched: Any, tmp_path: Path) -> None:
    """A file in the place of the output folder is refused before anything runs, and left alone."""
    path = tmp_path / "out"
    path.write_text("mine")
    refused(slosched("compare", "--policy", "fcfs", "--rate", 1, "--out", path), "out", "folder")
    assert path.read_text() == "mine"


def test_usage_errors_exit_with_2(slosched: Any) -> None:
    """An unknown option or command is bad input too."""
    assert slosched("simulate", "--speed", 3).code == 2
    assert slosched("fly").code == 2


def test_bad_step_log(slosched: Any, tmp_path: Path) -> None:
    """A step log with a bad value is refused, and no model is written."""
    log, out = tmp_path / "steps.csv", tmp_path / "model.json"
    log.write_text("prefill_tokens,attention_work,sequences,kv_tokens,seconds\n1,1,1,1,-2\n")
    refused(slosched("fit", log, "--out", out), "steps.csv", "row 1", "seconds", "-2")
    assert not out.exists()


def test_names_are_no_markup(slosched: Any, tmp_path: Path) -> None:
    """Square brackets in a trace's classes or a queue's names are shown as they are."""
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens,slo_class\n0,5,5,[/b]\n1,5,5,[red]\n")
    ended = slosched("simulate", "--trace", trace, "--slo", "[/b]:ttft=1", "--policy", "fcfs")
    assert ended.code == 0
    assert "class [/b]" in ended.out
    queue = tmp_path / "q.json"
    queue.write_text(json.dumps([{"request_id": "[/red]x", "prompt_tokens": 5, "forecast": 5}]))
    ended = slosched("order", queue, "--policy", "fcfs")
    assert ended.code == 0
    assert "[/red]x" in ended.out


@pytest.mark.parametrize("name", ["half \ud800", "\x1b[2J"])
def test_a_name_that_cannot_be_shown_is_refused(slosched: Any, tmp_path: Path, name: str) -> None:
    """Half a character, as JSON may hold, and what would clear a terminal."""
    queue = tmp_path / "q.json"
    queue.write_text(json.dumps([{"request_id": name, "prompt_tokens": 5, "forecast": 5}]))
    ended = slosched("order", queue)
    assert ended.code == 2
    assert "row 1: request_id must be a text of whole, printable characters, got" in ended.err


def test_more_requests_than_fit_in_memory(slosched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, no traceback."""

    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 18.2 TiB")

    monkeypatch.setattr("slosched.workloads.sources.generate", full)
    ended = slosched("simulate", "--rate", 5)
    assert ended.code == 1
    assert (
        ended.err.strip().splitlines()[-1].startswith("slosched: not enough memory; ask for fewer requests")
    )
