"""train ranker, predict and evaluate predictor on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slosched.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("NO_COLOR", "1")

    def command(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two hundred prompts whose number tells the length."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(200):
        many = ("one line", "ten lines", "ninety lines")[i % 3]
        tokens = int((10, 100, 900)[i % 3] * rng.lognormal(0, 0.3))
        rows.append({"prompt": f"Write {many} on subject {i}.", "output_tokens": tokens, "cut": i % 10 == 0})
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_train_predict_evaluate(run: Run, data: Path, tmp_path: Path) -> None:
    """End to end, with pictures, as JSON and in words."""
    out = tmp_path / "ranker"
    code, text, error = run(
        "train", "ranker", "--data", data, "--out", out, "--plot", tmp_path / "p.png", "--json"
    )
    assert (code, error) == (0, "")
    report = json.loads(text)
    assert report["held_out"]["tau"] > 0.5
    assert report["cut"] == 20
    assert [n for n, _ in report["curve"]] == sorted(n for n, _ in report["curve"])
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")

    code, text, _ = run("predict", out, "Write one line.", "Write ninety lines.", "--json")
    short, long = json.loads(text)
    assert code == 0
    assert short["mean_tokens"] * 5 < long["mean_tokens"]
    assert len(short["atoms"]) == 8
    assert run("predict", out, "Write one line.")[0] == 0

    code, text, _ = run("evaluate", "predictor", out, "--data", data, "--json")
    assert code == 0
    assert json.loads(text)["held_out"]["answers"] == 180
    code, text, _ = run("evaluate", "predictor", out, "--data", data)
    assert "Kendall's tau" in text


def test_the_same_seed_writes_the_same_files(run: Run, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("train", "ranker", "--data", data, "--out", tmp_path / name, "--seed", 3)[0] == 0
    tensors = [(tmp_path / name / "ranker.safetensors").read_bytes() for name in ("a", "b")]
    assert tensors[0] == tensors[1]


def test_bad_input_is_one_line_and_leaves_nothing(run: Run, data: Path, tmp_path: Path) -> None:
    """Missing or poor data, unknown objective, no such model or predictor: exit code 2."""
    poor = tmp_path / "poor.jsonl"
    poor.write_text('{"prompt": "a", "output_tokens": 1}\n')
    out = tmp_path / "out"
    cases = [
        (("train", "ranker", "--data", tmp_path / "none.jsonl", "--out", out), "none.jsonl"),
        (("train", "ranker", "--data", poor, "--out", out), "at least 20 prompts"),
        (("train", "ranker", "--data", data, "--out", out, "--objective", "x"), "objective must be"),
        (("train", "ranker", "--data", data, "--out", out, "--class", "no"), "slo_class must be one of"),
        (("train", "ranker", "--data", data, "--out", out, "--method", "x"), "method must be one of light"),
        (("train", "ranker", "--data", data, "--out", out, "--method", "json:x"), "must name a function"),
        (("train", "ranker", "--data", data, "--out", out, "--method", "tuned"), "model must be given"),
        (("predict", tmp_path / "none", "Hello"), "predictor must be a folder"),
        (("evaluate", "predictor", tmp_path, "--data", data), "predictor must be a folder"),
    ]
    for arguments, words in cases:
        code, text, error = run(*arguments)
        assert (code, text) == (2, ""), arguments
        assert words in error
        assert error.count("\n") == 1
    assert not out.exists()


def test_prompts_are_shown_as_they_are_and_command_no_terminal(run: Run, data: Path, tmp_path: Path) -> None:
    """Neither markup, as in a forum's post, nor escape codes, nor half a character."""
    assert run("train", "ranker", "--data", data, "--out", tmp_path / "r")[0] == 0
    code, text, _ = run("predict", tmp_path / "r", "quote [/b] [red]this", "\x1b[31mred\x07", "caf\udce9")
    assert code == 0
    assert "quote [/b] [red]this" in text
    assert not any(c in text for c in "\x1b\x07\udce9")


def test_a_file_is_no_folder_for_a_ranker(run: Run, data: Path) -> None:
    """Said before the training, and the file stays as it is."""
    before = data.read_bytes()
    code, _, error = run("train", "ranker", "--data", data, "--out", data)
    assert code == 2
    assert "out must be a folder" in error
    assert data.read_bytes() == before


def test_a_method_of_ones_own_is_named(run: Run, data: Path, tmp_path: Path) -> None:
    code, text, _ = run(
        "train", "ranker", "--data", data, "--out", tmp_path / "out", "--json",
        "--method", "slosched.predictors.training:light",
    )  # fmt: skip
    assert code == 0
    assert json.loads(text)["held_out"]["tau"] > 0.3
    assert (tmp_path / "out" / "predictor.json").exists()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("os:system", "method must be a function of the answers and a Training, got 'os:system'"),
        ("json:loads", "method must be a function of the answers and a Training, got 'json:loads'"),
        ("operator:eq", "method operator:eq must be one that gives a predictor with a report"),
    ],
)
def test_a_method_that_is_none_is_named(
    run: Run, data: Path, tmp_path: Path, method: str, words: str
) -> None:
    """Before it is called if it takes something else; after it if it gives no predictor."""
    code, _, error = run("train", "ranker", "--data", data, "--out", tmp_path / "out", "--method", method)
    assert code == 2
    assert words in error
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_written_to_are_told_before_the_work(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("slosched.predictors.training.train_ranker", never)
    for option, place, words in (
        ("--out", data / "below" / "it", "out must be a folder, or a name that is free"),
        ("--plot", tmp_path, "plot must be a file"),
    ):
        arguments: dict[str, object] = {"--data": data, "--out": tmp_path / "out", option: place}
        code, _, error = run("train", "ranker", *(a for pair in arguments.items() for a in pair))
        assert (code, words in error) == (2, True)
    code, _, error = run("train", "probe", "--data", data, "--out", data / "below")
    assert (code, "out must be a folder" in error) == (2, True)


def test_a_missing_encoder_package_is_named(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is installed here: the message says which extra to install, and nothing is written."""
    for name in ("torch", "transformers", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    arguments = ("train", "ranker", "--data", data, "--out", tmp_path / "out", "--model", tmp_path)
    for method in ("frozen", "tuned", "ltr"):
        code, _, error = run(*arguments, "--method", method)
        assert code == 1
        assert f"extra {'predict' if method == 'ltr' else 'encoder'} of slosched)" in error
    assert not (tmp_path / "out").exists()


def test_commands_show_an_example(run: Run) -> None:
    for words in (("train", "ranker"), ("predict",), ("evaluate", "predictor")):
        code, text, _ = run(*words, "--help")
        assert code == 0
        assert "Example: slosched" in " ".join(text.split())


def test_held_out_answers_that_are_all_cut_are_said_not_to_be_measured(
    run: Run, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    rows = [{"prompt": f"say {i}", "output_tokens": 7 + i, "cut": i > 0} for i in range(40)]
    data = tmp_path / "cut.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    code, text, error = run("train", "ranker", "--data", data, "--out", tmp_path / "r", "--json")
    assert (code, error) == (0, "")
    held = json.loads(text, parse_constant=pytest.fail)["held_out"]  # NaN is no JSON
    assert held["answers"] == 0
    assert held["tau"] is None
    code, text, _ = run("train", "ranker", "--data", data, "--out", tmp_path / "r")
    assert code == 0
    assert "No answer held out ended by itself" in text
    assert not [w for w in recwarn if "empty" in str(w.message) or "Small" in str(w.message)]
