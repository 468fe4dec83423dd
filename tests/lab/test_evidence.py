"""The study as a user meets it: configuration, site, command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slosched.cli import main
from slosched.core.errors import InputError
from slosched.lab.evidence import EvidenceConfig, headline, load_evidence, run_evidence, split_policies
from slosched.lab.scenarios import Scenario, Traffic
from slosched.lab.store import Store
from slosched.report.evidence_site import results, write_site


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario small enough for a test."""
    path = tmp_path_factory.mktemp("own") / "own.yaml"
    Scenario(
        name="own", classes=(Traffic(name="a", family="chat", ttft_x=(5.0, 5.0), tpot_x=(3.0, 3.0)),),
        requests=80, load=1.2,
    ).save(path)  # fmt: skip
    return path


def test_policies_in_one_line() -> None:
    assert split_policies("slosched, qoserve:from_first=true,margin=1.1 ,edf+d@512,") == (
        "slosched", "qoserve:from_first=true,margin=1.1", "edf+d@512",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policies": ["nobody"]}, "nobody"),
        ({"policies": ["fcfs", "fcfs"]}, "distinct"),
        ({"cells": ["no-such-cell"]}, "cells must be among tight-pace"),
        ({"first_seed": 19_990, "draws": 20}, "no seed is above 19999"),
        ({"draws": 0}, "draws must be above 0, or named cells"),
    ],
)
def test_a_bad_study_is_explained(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_evidence(None, **changes)


def test_a_config_file_may_set_knobs_of_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "policies:\n  - fcfs\n  - {policy: priority@512, long_prefill_token_threshold: 256}\ndraws: 3\n"
    )
    config = load_evidence(path, first_seed=5)
    assert config.policies == ("fcfs", "priority@512, long_prefill_token_threshold=256")
    assert config.contenders[1].long_prefill_token_threshold == 256
    assert [s.seed for s in config.random()] == [5, 6, 7]


def test_the_default_study_reports_on_reporting_seeds_only() -> None:
    config = EvidenceConfig()
    assert config.first_seed >= 10_000
    assert "slosched" in config.policies
    assert any(c.may_refuse for c in config.contenders)


def test_leagues_are_never_mixed(own: Path) -> None:
    policies = ("fcfs", "paced-edf", "paced-edf:hopeless=refuse", "paced-wspt:hopeless=refuse")
    config = EvidenceConfig(policies=policies, draws=1, first_seed=2, scenarios=(own,))
    study = run_evidence(config, Store())
    summary = study.summary()
    members = {title: {s.policy for s in found.standings} for title, found in summary.leagues.items()}
    assert members == {"serves everybody": set(policies[:2]), "may refuse": set(policies[2:])}
    assert set(summary.cells) == {"own"}
    assert study.column("paced-wspt:hopeless=refuse", "refused")[0] > 0
    assert study.column("fcfs", "refused")[0] == 0


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and standard output of the command line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return int(leaving.value.code or 0), capsys.readouterr().out


def test_command_writes_a_site_and_goes_on(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call = ("evidence", "--scenario", own, "--policies", "fcfs,paced-edf", "--jobs", 1, "--out", out)
    code, shown = run(capsys, *call)
    assert code == 0
    assert "own" in shown
    before = (out / "runs.jsonl").read_text()
    code, shown = run(capsys, *call, "--json")
    assert (out / "runs.jsonl").read_text() == before
    found = json.loads(shown)
    assert found["draws"][0]["weighted"].keys() == {"fcfs", "paced-edf"}
    assert found["provenance"]["data"] == ["generators of this package"]
    page = (out / "index.html").read_text()
    assert "own" in page
    assert "<script src" not in page
    assert Scenario.load_file(own).name in (out / "scenarios.yaml").read_text()


def test_scenario_command_prints_what_reruns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "seven.yaml"
    path.write_text(run(capsys, "scenario", 7)[1])
    run(capsys, "scenario", 7, "--out", tmp_path / "other.yaml")
    assert Scenario.load_file(path) == Scenario.load_file(tmp_path / "other.yaml")
    assert "heavy-minority" in run(capsys, "scenario")[1]
    assert run(capsys, "scenario", "no-such")[0] == 2


def test_headline_says_who_is_ahead(own: Path, tmp_path: Path) -> None:
    config = EvidenceConfig(policies=("slosched", "fcfs"), draws=1, first_seed=24)
    study = run_evidence(config, Store(tmp_path / "r.jsonl"))
    words = headline(study.summary())
    assert "slosched keeps" in words[0]
    assert "fcfs" in words[0]
    # One scenario shows nothing, whoever leads.
    assert "too few for a verdict" in words[0]
    assert "ahead of" not in words[0]
    site = write_site(study, study.summary(), tmp_path)
    assert site.is_file()
    assert results(study, study.summary())["headline"] == words
