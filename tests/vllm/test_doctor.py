"""The doctor reports and never raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from slosched.integrations.vllm import doctor


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
    """The dry plan needs no engine; the missing vLLM is a warning."""
    path = tmp_path / "c.yaml"
    path.write_text("policy: edf\n")
    monkeypatch.setenv("SLOSCHED_CONFIG", str(path))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    report = doctor.examine()
    assert report.healthy
    found = {finding.topic: finding for finding in report.findings}
    assert "policy edf" in found["dry plan"].text
    assert found["vLLM"].status == "warning"
    path.write_text("policy: nonsense\n")
    assert not doctor.examine().healthy
