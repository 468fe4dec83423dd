"""Fleets in the study: scenarios of several engines, and routers that compete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slosched.cli import main
from slosched.core.errors import InputError
from slosched.lab.cells import Cell, Contender
from slosched.lab.evidence import EvidenceConfig, load_evidence, run_evidence
from slosched.lab.fleet import KINDS, SLOW, FleetScenario, draw_fleet, load_scenario
from slosched.lab.scenarios import Scenario, Traffic
from slosched.lab.store import Store

ONE = Scenario(
    name="own", classes=(Traffic(name="a", family="chat", ttft_x=(5.0, 5.0), tpot_x=(3.0, 3.0)),)
)  # fmt: skip


def fleet(engines: int = 2, kind: str = "equal", requests: int = 40) -> FleetScenario:
    return FleetScenario.of(ONE, engines, load=1.2, kind=kind, requests=requests)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fleet_reruns_from_its_file(kind: str, tmp_path: Path) -> None:
    """All kinds go to a file and back; a file of one engine stays one."""
    fleet(3, kind).save(tmp_path / "fleet.yaml")
    ONE.save(tmp_path / "one.yaml")
    assert load_scenario(tmp_path / "fleet.yaml") == fleet(3, kind)
    assert load_scenario(tmp_path / "one.yaml") == ONE
    assert type(load_scenario(tmp_path / "one.yaml")) is Scenario


def test_load_is_over_what_the_fleet_sustains() -> None:
    """N engines get N times the requests in the same time; a slow one counts as what it can do."""
    one = ONE.model_copy(update={"load": 1.2, "requests": 400}).traffic()
    four = fleet(4, requests=100).traffic()
    slow = fleet(4, "one slow", requests=100).traffic()
    assert one.window_s / four.window_s == pytest.approx(4)
    assert one.window_s / slow.window_s == pytest.approx(3 + 1 / SLOW)
    assert fleet(4, "one slow").fleet[0].step_time.base_s == SLOW * ONE.engine.step_time.base_s


def test_keys_tell_routers_apart_and_leave_single_engines_alone() -> None:
    """A result of a fleet depends on its router's code as well; one of an engine on no router's."""
    cells = [
        Cell(scenario=fleet(), contender=Contender.parse(f"fcfs, router={r}")) for r in ("random", "huang")
    ]
    keys = [cell.key() for cell in cells]
    assert keys[0]["router_code"] != keys[1]["router_code"]
    assert keys[0]["parameters"] == keys[1]["parameters"]
    single = Cell(scenario=ONE, contender=Contender.parse("fcfs")).key()
    assert "router_code" not in single
    assert single["contender"] == "fcfs"
    assert single["code"] != keys[0]["code"]


def test_the_study_compares_routers(tmp_path: Path) -> None:
    """Each contender's router is the one that ran; another's router makes a rival of the same policy."""
    slow = fleet(kind="one slow", requests=60)
    slow.save(tmp_path / "fleet.yaml")
    policies = ("fcfs, router=least-tokens", "fcfs, router=round-robin")
    config = EvidenceConfig(policies=policies, draws=0, scenarios=(tmp_path / "fleet.yaml",))
    study = run_evidence(config, Store())
    found = {label: study.records[label, 0].result for label in study.labels}
    for label in policies:
        router = label.split("=")[1]
        run = fleet(kind="one slow", requests=60).run(
            fleet(kind="one slow", requests=60).workload(), router, "fcfs"
        )
        weight = run.outcomes.workload.weight
        share = weight[run.outcomes.met].sum() / weight.sum()
        assert found[label]["all_weighted"] == pytest.approx(share, abs=1e-6)
    assert found[policies[0]] != found[policies[1]]
    assert len({c.family for c in config.contenders}) == 2
    assert Contender.parse("slosched").family == "slosched"
    assert Contender.parse("slosched, router=slosched:refuse=true").family == "slosched"


def test_the_command_draws_fleets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evidence --engines 2`: the draws are fleets, their contenders stand behind routers."""
    call = ["evidence", "--engines", "2", "--draws", "1", "--seed", "1", "--jobs", "1", "--json"]
    policies = "fcfs,fcfs,router=round-robin"
    with pytest.raises(SystemExit) as leaving:
        main([*call, "--policies", policies, "--out", str(tmp_path / "out")])
    assert leaving.value.code in (0, None)
    draws = json.loads(capsys.readouterr().out)["draws"]
    assert draws[0]["weighted"].keys() == {"fcfs", "fcfs, router=round-robin"}
    assert draws[0]["about"].startswith("2 engines, ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engines": [0]}, "engines must be integers of at least 1"),
        ({"policies": ["fcfs, router=nobody"]}, "nobody"),
        ({"policies": ["fcfs, router=random, router=huang"]}, "each knob once"),
    ],
)
def test_bad_fleets_are_explained(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_evidence(None, **changes)


def test_bad_scenarios_of_fleets(tmp_path: Path) -> None:
    """The file and the key are named."""
    path = tmp_path / "fleet.yaml"
    path.write_text(fleet().to_yaml().replace("kind: equal", "kind: odd"))
    with pytest.raises(InputError, match="kind must be one of equal"):
        load_scenario(path)
    path.write_text(fleet().to_yaml().replace("engines: 2", "engines: 0"))
    with pytest.raises(InputError, match="engines"):
        load_scenario(path)


def test_drawn_fleets_have_the_sizes_asked_for() -> None:
    """Sizes change nothing else that is drawn before them."""
    some = [draw_fleet(seed, (2, 8)) for seed in range(12)]
    assert {one.engines for one in some} == {2, 8}
    assert all(1.0 <= one.load <= 1.8 for one in some)
    assert np.mean([one.kind == "equal" for one in some]) > 0.2
