"""Several engines on the command line."""

from __future__ import annotations

import json

import pytest

from slosched.cli import main
from slosched.routers import FleetSnapshot, PickRouter

SHORT = ["--workload", "chat", "--duration", "4"]


def run(words: list[str]) -> None:
    """The command line, which leaves with code 0."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert not left.value.code


def test_simulate_several_engines(capsys: pytest.CaptureFixture[str]) -> None:
    """Two engines keep more promises than one at a rate that is too high for one."""
    shares = []
    for words in (["--engines", "1"], ["--engines", "2", "--router", "least-tokens"]):
        run(["simulate", "--policy", "edf", "--rate", "60", "--json", "--max-num-seqs", "8", *words, *SHORT])
        shares.append(json.loads(capsys.readouterr().out)["attainment"]["value"])
    assert shares[1] > shares[0] + 0.05


class Second(PickRouter):
    """Everybody to the second engine."""

    name = "second"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        """The second."""
        return 1


def test_a_router_of_ones_own_and_what_each_engine_did(capsys: pytest.CaptureFixture[str]) -> None:
    """Named by package.module:Class; the table and the JSON say what went where."""
    words = ["simulate", "--policy", "fcfs", "--rate", "20", "--engines", "2", "--router"]
    run([*words, f"{__name__}:Second", "--json", *SHORT])
    found = json.loads(capsys.readouterr().out)
    assert [row["requests"] for row in found["engines"]] == [0, found["requests"]]
    assert [row["steps"] > 0 for row in found["engines"]] == [False, True]
    run([*words, "round-robin", *SHORT])
    said = capsys.readouterr().out
    assert "2 engines behind round-robin" in said
    assert "of 2 × " in said


def test_compare_several_engines(capsys: pytest.CaptureFixture[str]) -> None:
    """Policies are compared behind the router that was named, its parameters included."""
    run(
        ["compare", "--policy", "fcfs", "--policy", "edf", "--rate", "20", "--seeds", "1", "--json",
         "--jobs", "1", "--engines", "2", "--router", "prefix-affinity:share=0.5", *SHORT]
    )  # fmt: skip
    assert {point["policy"] for point in json.loads(capsys.readouterr().out)["points"]} == {"fcfs", "edf"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engines", "2", "--router", "best"], "router must be one of round-robin"),
        (["--engines", "2", "--router", "random:x=1"], "parameter of router 'random'"),
        (["--engines", "2", "--router", "no.such:Thing"], "router must name a module that can be imported"),
        (["--engines", "2", "--save", "run.json"], "save must be given with one engine"),
        (["--engines", "2", "--on", "vllm"], "engines must be 1 with --on vllm"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake is one line that names the field, and exit code 2."""
    with pytest.raises(SystemExit) as left:
        main(["simulate", *words, *SHORT])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_engines_of_two_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    """Kinds take turns; the faster one serves more, and a kind too many is an error that names both."""
    kinds = "h100-llama-3.1-8b,a100-llama-3.1-8b"
    words = ["simulate", "--policy", "fcfs", "--rate", "40", "--router", "least-tokens", "--json", *SHORT]
    run([*words, "--engines", "4", "--engine", kinds])
    sent = [row["requests"] for row in json.loads(capsys.readouterr().out)["engines"]]
    assert len(sent) == 4
    assert min(sent[0], sent[2]) > max(sent[1], sent[3])
    with pytest.raises(SystemExit) as left:
        main([*words, "--engine", kinds])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert f"engine must be one name, or at most --engines (1), got '{kinds}'" in said


def test_load_one_is_what_all_engines_sustain(capsys: pytest.CaptureFixture[str]) -> None:
    """The same load is four times the rate on four engines."""
    rates = []
    for engines in ("1", "4"):
        run(
            ["compare", "--policy", "fcfs", "--load", "0.5", "--seeds", "1", "--json", "--jobs", "1",
             "--engines", engines, "--router", "round-robin", *SHORT]
        )  # fmt: skip
        rates.append(json.loads(capsys.readouterr().out)["points"][0]["rate_rps"])
    assert rates[1] == pytest.approx(4 * rates[0])
