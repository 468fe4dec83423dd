"""One grammar for policies wherever one is named."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slosched import EngineLimits, Workload, order, simulate
from slosched.cli.tools import policies
from slosched.core.engine import Engine
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request
from slosched.lab.bench import Bench
from slosched.lab.study import Study, capacity
from slosched.policies import POLICIES, PolicySpec, policy, registry

MODULE = '''
import numpy as np
from slosched import Plan, Policy


class Backwards(Policy):
    """Last come, first served."""

    name = "backwards"

    def __init__(self, times: int = 1) -> None:
        self.times = times

    def plan(self, snapshot):
        return Plan(snapshot=snapshot, policy=self.name, order=snapshot.waiting[::-1])


class NoPolicy:
    pass


class Unmakeable(Backwards):
    def __init__(self):
        raise KeyError("table of prices")
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with a policy, in the working directory only."""
    (tmp_path / "own_policies.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "own_policies", raising=False)
    return "own_policies"


def burst(n: int = 12) -> Workload:
    return Workload.plain(np.zeros(n), np.full(n, 200), np.full(n, 4))


class Burst:
    """A source of equal bursts."""

    def __call__(self, rate_rps: float, seed: int) -> Workload:
        from dataclasses import replace

        work = burst()
        return replace(work, ttft_s=np.full(len(work), 0.025), arrival_s=np.arange(len(work)) / rate_rps)


def test_every_policy_is_found_by_its_own_name() -> None:
    for name in POLICIES:
        assert policy(name).name == name


@pytest.mark.parametrize(
    ("text", "name", "parameters", "budget"),
    [
        ("edf", "edf", {}, None),
        ("edf+d@512", "edf+d", {}, 512),
        ("slosched:hopeless=reject,fairness=2,programs=true", "slosched",
         {"hopeless": "reject", "fairness": 2, "programs": True}, None),
        ("slosched@256:starvation_s=60", "slosched", {"starvation_s": 60}, 256),
        ("slosched:starvation_s=60@256", "slosched", {"starvation_s": 60}, 256),
        ("slosched.policies.orders:Edf", "slosched.policies.orders:Edf", {}, None),
        ("slosched.policies.orders:Edf@64", "slosched.policies.orders:Edf", {}, 64),
        ("slosched.policies.slosched:Slosched:hopeless=keep@64", "slosched.policies.slosched:Slosched",
         {"hopeless": "keep"}, 64),
    ],
)  # fmt: skip
def test_the_grammar(text: str, name: str, parameters: dict[str, object], budget: int | None) -> None:
    spec = PolicySpec.parse(text)
    assert (spec.label, spec.name, spec.parameters, spec.budget_tokens) == (text, name, parameters, budget)
    assert spec.make().budget_tokens == budget
    assert spec.make().name == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("efd", "Did you mean edf"),
        ("", "policy must be one of fcfs"),
        ("slosched:hopless=reject", "Did you mean hopeless"),
        ("edf:x=1", "must be left out, since it has none"),
        ("slosched:hopeless", "names a module"),
        ("slosched:hopeless=reject,fairness", "NAME or package.module:Class"),
        ("slosched:hopeless=never", "hopeless must be one of keep, demote, reject"),
        ("edf@", "token budget"),
        ("edf@-4", "token budget"),
        ("no_such_module:Mine", "No module named 'no_such_module'"),
        ("slosched.policies.orders:Edff", "Did you mean Edf"),
        ("own_policies:NoPolicy", "must make a slosched.policies.Policy, got NoPolicy"),
        ("own_policies:Unmakeable", "cannot be made with {}: KeyError: 'table of prices'"),
        ("own_policies:Backwards:times=1,time=2", "Did you mean times"),
        ("own_policies:Backwards:times=twice", "must be a number, got 'twice'"),
        ("slosched:preempt=maybe", "must be true or false, got 'maybe'"),
        ("own_policies.Backwards", "Did you mean own_policies:Backwards"),
        ("slosched:seed=3", "must be one of"),
    ],
)
def test_mistakes_are_told_with_what_is_near(module: str, text: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        PolicySpec.parse(text)
    words = words.replace("names a module", "policy must name a")
    assert words in str(raised.value)


def test_a_policy_of_the_working_directory_runs_everywhere(module: str) -> None:
    """In order, simulate, a study with worker processes and capacity; reports carry its label."""
    label = f"{module}:Backwards:times=2"
    queue = [
        Request(request_id=str(i), prompt_tokens=10, forecast=LengthForecast.point(4), arrival_s=float(i))
        for i in range(3)
    ]
    assert order(queue, policy=label).request_ids == ["2", "1", "0"]
    run = simulate(burst(), label, engine=Engine(limits=EngineLimits(max_num_seqs=1)))
    assert run.policy == label
    assert run.outcomes.finish_s.argmin() == 11
    study = Study(bench=Bench(source=Burst()), policies=("fcfs", label), seeds=(0,), rates_rps=(4.0,), jobs=2)
    assert [point.policy for point in study.run().points] == ["fcfs", label]
    assert capacity(Bench(source=Burst()), label, seeds=(0,)).spread.mean > 0


def test_a_token_budget_is_the_engine_s() -> None:
    """`@` changes the engine, in the simulator and in a plan's snapshot."""
    work = burst()
    small = simulate(work, "fcfs@400").outcomes
    same = simulate(work, "fcfs", engine=Engine().with_limits(max_num_batched_tokens=400)).outcomes
    assert small.finish_s.tolist() == same.finish_s.tolist()
    assert small.finish_s.tolist() != simulate(work, "fcfs").outcomes.finish_s.tolist()
    request = Request(request_id="a", prompt_tokens=10, forecast=LengthForecast.point(4))
    assert order([request], policy="fcfs@400").snapshot.limits.max_num_batched_tokens == 400


def test_installed_packages_offer_policies(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By entry point; a name of our own is never taken over."""
    points = [
        importlib.metadata.EntryPoint(name, f"{module}:Backwards", registry.GROUP)
        for name in ("backwards", "edf")
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])
    assert policy("backwards:times=3").name == "backwards:times=3"
    assert policy("edf").steady
    with pytest.raises(InputError, match="Did you mean backwards"):
        policy("backward")
    assert registry.unused() == {f"{module}:Backwards": "edf is taken by slosched"}


def test_a_broken_installed_package_spoils_nothing(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told when named and when policies are listed; of two offers of one name the same one counts."""
    points = [
        importlib.metadata.EntryPoint("gone", "nowhere_at_all:Gone", registry.GROUP),
        importlib.metadata.EntryPoint("twice", f"{module}:NoPolicy", registry.GROUP),
        importlib.metadata.EntryPoint("twice", f"{module}:Backwards", registry.GROUP),
    ]
    for order_of_discovery in (points, points[::-1]):
        monkeypatch.setattr(registry, "entry_points", lambda group, found=order_of_discovery: found)
        assert policy("twice").name == "backwards"
        assert registry.unused() == {f"{module}:NoPolicy": f"twice is taken by {module}:Backwards"}
    with pytest.raises(InputError, match="'gone' of an installed package cannot be loaded"):
        policy("gone")
    policies(as_json=True)
    out, err = capsys.readouterr()
    listed = json.loads(out)
    assert "cannot be loaded" in listed["gone"]["summary"]
    assert listed["twice"]["parameters"] == {"times": 1}
    assert f"Not listed: {module}:NoPolicy" in err


def test_only_what_is_named_is_imported() -> None:
    code = (
        "import sys; from slosched.policies import policy; policy('edf');"
        "heavy = ('slosched.policies.rivals', 'slosched.planner.model');"
        "print([m for m in sys.modules if m.startswith(heavy)])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_policies_of_this_package_say_that_their_plans_end() -> None:
    """Each for itself; a class derived from one does not inherit the word."""
    assert [name for name in POLICIES if not policy(name).bounded] == []

    class Mine(type(policy("edf"))):  # type: ignore[misc]
        pass

    assert Mine.steady
    assert not Mine.bounded
