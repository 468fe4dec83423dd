"""What every policy must do, whatever its idea."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError
from slosched.core.snapshot import Snapshot
from slosched.planner.plan import Plan
from slosched.policies import POLICIES, KeyPolicy, Policy, policy
from slosched.testing import PolicyFault, check_policy
from slosched.testing.policies import CHECKS

NAMES = list(POLICIES)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_conforms(name: str, check: str) -> None:
    """The suite that `slosched.testing.check_policy` runs on any policy."""
    CHECKS[check](lambda: policy(name))


def test_every_policy_carries_its_own_name() -> None:
    for name in NAMES:
        assert policy(name).name == name


class Good(KeyPolicy):
    """Longest prompt first."""

    name = "good"

    def key(self, snapshot: Snapshot, rows: Ints) -> Floats:
        return -snapshot.table.prompt_tokens[rows].astype(np.float64)


def test_a_policy_from_outside_is_checked() -> None:
    assert check_policy(Good) == list(CHECKS)
    assert check_policy("fcfs") == list(CHECKS)
    with pytest.raises(InputError, match="policy must be one of"):
        check_policy("nobody")


class _Bad(Good):
    """Does one thing wrong."""

    fault = ""

    def plan(self, snapshot: Snapshot) -> Plan:
        plan = super().plan(snapshot)
        order, running = plan.order, snapshot.running
        match self.fault:
            case "twice":
                return replace(plan, order=np.concatenate([order, order[:1]]))
            case "foreign":
                return replace(plan, hold=running[:1])
            case "unannounced":
                return replace(plan, preempt=running[:1])
            case "stops":
                return replace(plan, prefill_tokens=0)
            case "names":
                rows = sorted(order.tolist(), key=lambda row: snapshot.table.request_ids[row][::-1])
                return replace(plan, order=np.array(rows, dtype=np.int64))
            case "writes":
                snapshot.table.weight[order] = 0.0
            case "forgets":
                return replace(plan, policy="other")
            case "random":
                return replace(plan, order=np.random.default_rng().permutation(order))
            case "holds":
                return replace(plan, hold=order)
        return plan


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("twice", "order must be distinct rows"),
        ("foreign", "hold must be distinct rows"),
        ("unannounced", "needs preempts = True"),
        ("stops", "prefill_tokens must be None or at least 1"),
        ("names", "depends on the requests' names"),
        ("writes", "changes the table's column weight"),
        ("forgets", "the plan's policy must be"),
        ("random", "different plans"),
        ("holds", "must not hold all requests for ever"),
    ],
)
def test_what_no_policy_may_do_is_found(fault: str, words: str) -> None:
    """The suite can fail, and says at what."""

    def make() -> Policy:
        made = _Bad()
        made.fault = fault
        return made

    with pytest.raises(PolicyFault, match=words):
        check_policy(make)


@pytest.mark.parametrize(
    ("name", "parameters", "field"),
    [
        ("huang", {"max_batch": 0}, "max_batch"),
        ("huang", {"replan_s": 0.0}, "replan_s"),
        ("huang", {"replan_s": float("nan")}, "replan_s"),
        ("huang", {"most": 0}, "most"),
        ("ltr", {"starvation_steps": 0}, "starvation_steps"),
        ("ltr", {"quantum_steps": 0}, "quantum_steps"),
        ("ltr", {"most_preemptions": -1}, "most_preemptions"),
        ("trail", {"preemptible_share": 1.1}, "preemptible_share"),
        ("trail", {"preemptible_share": float("nan")}, "preemptible_share"),
        ("trail", {"margin_tokens": -1.0}, "margin_tokens"),
        ("las", {"quantum_tokens": 0}, "quantum_tokens"),
        ("mlfq", {"quantum_s": 0.0}, "quantum_s"),
        ("mlfq", {"growth": 1.0}, "growth"),
        ("mlfq", {"growth": float("inf")}, "growth"),
        ("mlfq", {"levels": 0}, "levels"),
        ("mlfq", {"promote_s": float("nan")}, "promote_s"),
        ("plas", {"quantum_tokens": 0}, "quantum_tokens"),
        ("atlas", {"promote_ratio": 0.0}, "promote_ratio"),
        ("tie", {"decay": 0.0}, "decay"),
        ("tie", {"decay": 1.1}, "decay"),
        ("tie", {"decay_s": 0.0}, "decay_s"),
        ("lpm", {"most_sorted": -1}, "most_sorted"),
        ("hrrn-sglang", {"most_sorted": -1}, "most_sorted"),
        ("uniboost", {"gamma": 0.001}, "gamma"),
        ("uniboost", {"guard_tokens": 0}, "guard_tokens"),
        ("uniboost", {"token_s": 0.0}, "token_s"),
        ("uniboost", {"decode_weight": -1.0}, "decode_weight"),
        ("uniboost-sglang", {"bounds": (0.0, 1.0)}, "bounds"),
        ("uniboost-sglang", {"gamma": float("nan")}, "gamma"),
        ("uniboost-sglang", {"token_s": float("inf")}, "token_s"),
        ("past-future", {"start_tokens": 0.5}, "start_tokens"),
        ("past-future", {"least_tokens": 0}, "least_tokens"),
        ("slai", {"most": 0}, "most"),
        ("slai", {"offset_steps": -1.0}, "offset_steps"),
        ("slai", {"tight_offset_steps": -1.0}, "tight_offset_steps"),
        ("slosched", {"starvation_s": 0.0}, "starvation_s"),
        ("slosched", {"starvation_s": float("nan")}, "starvation_s"),
        ("slosched", {"rescue_share": 0.0}, "rescue_share"),
        ("slosched", {"hopeless": "drop"}, "hopeless"),
        ("slosched", {"least_chance": 0.0}, "least_chance"),
        ("slosched", {"fairness": -1.0}, "fairness"),
        ("slosched", {"fairness_s": 0.0}, "fairness_s"),
        ("slosched", {"tenant_shares": {"a": 0.0}}, "tenant_shares of a"),
        ("slosched", {"programs": "yes"}, "parameter programs of policy 'slosched'"),
    ],
)
def test_bad_parameters_are_named(name: str, parameters: dict[str, Any], field: str) -> None:
    """A parameter out of its domain is refused by name."""
    with pytest.raises(InputError, match=f"{field} must be"):
        policy(name, seed=0, **parameters)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_parameters_are_refused(name: str) -> None:
    """A parameter the policy does not have is refused, and its own are listed."""
    words = f"parameter of policy '{re.escape(name)}' must be (one of|left out)"
    with pytest.raises(InputError, match=words):
        policy(name, nonsense=1)


def test_unknown_names_are_refused() -> None:
    """An unknown name is answered with the known ones."""
    with pytest.raises(
        InputError, match=r"policy must be one of fcfs, .*slosched, or package.module:Class, got 'SJF'"
    ):
        policy("SJF")
