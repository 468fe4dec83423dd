"""A policy from outside that does what none may do is named, with what it did, in one line."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slosched import InputError, KeyPolicy, LengthForecast, Plan, Policy, Request, Snapshot, order
from slosched.core.workload import Workload
from slosched.policies.registry import policy_of
from slosched.policies.watched import watch
from slosched.simulator import simulate

WORK = Workload.plain(np.zeros(3), np.full(3, 40), np.full(3, 5))
QUEUE = [Request(request_id=i, prompt_tokens=9, forecast=LengthForecast.point(5)) for i in ("a", "b")]


class Own(KeyPolicy):
    """Keys as a function says."""

    name = "own"

    def __init__(self, keys: Callable[..., Any]) -> None:
        self.keys = keys

    def key(self, snapshot: Snapshot, rows: Any) -> Any:
        """What the function says."""
        return self.keys(snapshot, rows)


class Planned(Policy):
    """Plans as a function says."""

    name = "planned"

    def __init__(self, plans: Callable[..., Any]) -> None:
        self.plans = plans

    def plan(self, snapshot: Snapshot) -> Any:
        """What the function says."""
        return self.plans(snapshot)


class First(KeyPolicy):
    """First come, first served."""

    name = "first"

    def key(self, snapshot: Snapshot, rows: Any) -> Any:
        """Arrival."""
        return snapshot.table.arrival_s[rows]


def plan(snapshot: Snapshot, **parts: Any) -> Plan:
    """A plan with these parts."""
    parts = {"order": snapshot.waiting} | parts
    return Plan(snapshot=snapshot, policy="planned", **parts)


def writes(snapshot: Snapshot, rows: Any) -> Any:
    """A key that makes itself come true."""
    snapshot.table.prompt_tokens[rows] = 1
    return snapshot.table.prompt_tokens[rows]


def sorts(_: Snapshot, rows: Any) -> Any:
    """A key that works in place."""
    rows[:] = rows[::-1].copy()
    return rows.astype(float)


def ends(*_: Any) -> Any:
    """A script that was not meant to be a module."""
    raise SystemExit(0)


KEYS = {
    "never NaN, got NaN for '": lambda s, r: np.full(len(r), np.nan),
    "one number for each of ": lambda s, r: np.zeros(len(r) + 1),
    "rows, got shape ()": lambda s, r: 1.0,
    "got NoneType": lambda s, r: None,
    "an array of object": lambda s, r: np.array([None] * len(r)),
    "an array of complex128": lambda s, r: np.zeros(len(r), complex),
    "write to prompt_tokens": writes,
    "not change the rows": sorts,
    "ended the program": ends,
}

PLANS = {
    "must return a Plan, got NoneType": lambda s: None,
    "must return a Plan, got an array of int64": lambda s: s.waiting,
    "order must be distinct rows of its queue": lambda s: plan(s, order=np.repeat(s.waiting, 2)),
    "array of integers, got list": lambda s: plan(s, order=s.waiting.tolist()),
    "array of integers, got ndarray": lambda s: plan(s, order=s.waiting.astype(float)),
    "preempt must be": lambda s: plan(s, preempt=s.waiting[:1]),
    "prefill_tokens must be": lambda s: plan(s, prefill_tokens=-1),
    "invalid literal for int()": lambda s: plan(s, prefill_tokens="many"),
    "ended the program": ends,
}


@pytest.mark.parametrize("words", KEYS)
def test_a_key_that_is_none(words: str) -> None:
    """No number, too many of them, NaN, a table written to: in `order` and in `simulate`."""
    for act in (lambda p: order(QUEUE, policy=p), lambda p: simulate(WORK, p)):
        if words == "not change the rows" and act.__code__.co_names[0] == "simulate":
            continue  # one row at a time has no other order
        with pytest.raises(InputError) as caught:
            act(Own(KEYS[words]))
        assert str(caught.value).startswith("policy own: key ")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", PLANS)
def test_a_plan_that_is_none(words: str) -> None:
    """What is no plan, and one that cannot be carried out."""
    for act in (lambda p: order(QUEUE, policy=p), lambda p: simulate(WORK, p)):
        with pytest.raises(InputError) as caught:
            act(Planned(PLANS[words]))
        assert str(caught.value).startswith("policy planned: plan")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        lambda s, r: s.table.arrival_s[r].tolist(),
        lambda s, r: s.table.prompt_tokens[r],
        lambda s, r: s.table.prompt_tokens[r] > 5,
        lambda s, r: np.full(len(r), np.inf),
        lambda s, r: s.table.extra("seen")[r] + 1,
    ],
)
def test_what_can_be_sorted_is_a_key(keys: Any) -> None:
    """Lists, integers, truth values and infinity are keys; a policy's own columns are its own."""
    assert order(QUEUE, policy=Own(keys)).request_ids == ["a", "b"]
    assert simulate(WORK, Own(keys)).outcomes.finished.all()


def test_a_watched_policy_is_the_same_object() -> None:
    """It is watched once, can be copied and sent, and decides as before; ours are not watched."""
    mine = First()
    assert policy_of(mine) is mine is watch(mine)
    held = vars(mine)["key"]
    assert vars(watch(mine))["key"] is held
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert order(QUEUE, policy=other).request_ids == ["a", "b"]
    ours = policy_of("edf")
    assert "key" not in vars(ours)
    theirs, plain = simulate(WORK, First()).outcomes, simulate(WORK, "fcfs").outcomes
    np.testing.assert_array_equal(theirs.finish_s, plain.finish_s)
