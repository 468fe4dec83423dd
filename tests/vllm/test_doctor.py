"""The doctor reports and never raises."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from slosched.testing import doctor


def test_a_broken_configuration_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown key makes the report unhealthy and names the key."""
    path = tmp_path / "c.yaml"
    path.write_text("polcy: edf\n")
    monkeypatch.setenv("SLOSCHED_CONFIG", str(path))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    report = doctor.examine()
    assert not report.healthy
    assert "polcy" in report.findings[0].text


def test_a_plan_is_made_without_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dry plan needs no engine; the missing vLLM is an error of its own."""
    path = tmp_path / "c.yaml"
    path.write_text("policy: edf\n")
    monkeypatch.setenv("SLOSCHED_CONFIG", str(path))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    report = doctor.examine()
    found = {finding.topic: finding for finding in report.findings}
    assert found["dry plan"].status == "ok"
    assert "policy edf" in found["dry plan"].text
    assert found["vLLM"].status == "error"
    assert "pip install 'vllm>=" in found["vLLM"].text
    path.write_text("policy: nonsense\n")
    assert {f.topic: f for f in doctor.examine().findings}["dry plan"].status == "error"


def test_what_cannot_be_written_or_listened_on_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the server starts, with the setting's name; what can be is not mentioned."""
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = tmp_path / "c.yaml"
        path.write_text(
            f"policy: edf\nstate_file: {tmp_path}/file/state.json\nstep_log: {tmp_path}/new/steps.csv\n"
            f"metrics: {{port: {port}, json_file: {tmp_path}/file/m.json}}\n"
        )
        monkeypatch.setenv("SLOSCHED_CONFIG", str(path))
        monkeypatch.setattr(doctor, "find_spec", lambda name: None)
        monkeypatch.setattr(doctor, "dry_plan", lambda limit_s: ("ok", "not asked"))
        report = doctor.examine()
    told = {f.topic: f.text for f in report.findings if f.status == "warning"}
    assert "cannot be written" in told["state_file"]
    assert "cannot be written" in told["metrics.json_file"]
    assert f"port {port} cannot be listened on now" in told["metrics"]
    assert "step_log" not in told


HOSTILE = """
import os, subprocess, sys, time
from slosched import KeyPolicy


class Stuck(KeyPolicy):
    name = "stuck"

    def key(self, snapshot, rows):
        print('{"status": "ok", "text": "a lie"}')
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9)"])
        while True:
            pass


class Sure(Stuck):
    bounded = True


class Unmade(Stuck):
    def __init__(self):
        time.sleep(1e6)


class Exits(Stuck):
    def key(self, snapshot, rows):
        print("I give up", file=sys.stderr, flush=True)
        os._exit(7)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Stuck", ("planning with policy hostile:Stuck: not done within 3 s", "policy is turned off")),
        ("Sure", ("says it is bounded", "stop the engine")),
        (
            "Unmade",
            ("importing and making policy hostile:Unmade: not done within 3 s", "vLLM would not start"),
        ),
        ("Exits", ("ended with code 7", "I give up")),
    ],
)
def test_a_policy_that_never_returns_is_told(
    name: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it does, whatever it has started, the doctor goes on, and says what a server would do."""
    (tmp_path / "hostile.py").write_text(HOSTILE)
    (tmp_path / "c.yaml").write_text(f"policy: hostile:{name}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLOSCHED_CONFIG", "c.yaml")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = {finding.topic: finding for finding in doctor.examine(3.0).findings}["dry plan"]
    assert found.status == "error"
    for word in words:
        assert word in found.text


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_the_installed_vllm_is_probed_and_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both base classes, what a connector would change, the prefix cache, and a trial with right tokens."""
    monkeypatch.delenv("SLOSCHED_CONFIG", raising=False)
    report = doctor.examine()
    assert report.healthy, report.findings
    texts = {topic: [f.text for f in report.findings if f.topic == topic] for topic in
             ("vLLM", "capability", "prefix cache", "KV connector", "trial run")}  # fmt: skip
    assert [t.split()[0] for t in texts["capability"]] == ["sync", "async"]
    assert all(": full" in t for t in texts["capability"])
    assert "every token right" in texts["trial run"][0]
    assert all(texts.values())
