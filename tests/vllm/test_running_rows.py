"""Rows of the running list are those that looking everybody up would give."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.integrations.vllm.clock import VirtualClock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.running_rows import RunningRows
from slosched.integrations.vllm.state import Learned

from .conftest import fake_request


def _ledger() -> Ledger:
    return Ledger(Config(), VirtualClock(), Learned("h100-llama-3.1-8b"), Stats())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 400)), max_size=14), max_size=20))
def test_rows_follow_the_running_list(steps: list[list[tuple[int, int]]]) -> None:
    """Between two looks requests end anywhere, enter at the end or the beginning, and change places."""
    ledger, running, made = _ledger(), list[Any](), 0
    rows = RunningRows(ledger)
    for changes in steps:
        for kind, number in changes:
            if kind <= 1:
                for _ in range(1 + number % 9):
                    running.insert(len(running) if kind == 0 else 0, fake_request(str(made), 0.0))
                    made += 1
            elif kind == 2 and running:
                running.pop(number % len(running))
            elif kind == 3 and running:
                running.append(running.pop(number % len(running)))
            elif kind == 4 and running:
                running[:] = running[: number % len(running)]
        found = rows.of(running)
        assert found.tolist() == [ledger.rows[request.request_id] for request in running]
        assert rows.requests == running


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(9)), st.integers(0, 9))
def test_named_rows_come_first_and_others_stay_behind_as_they_stood(order: list[int], named: int) -> None:
    """The list is put in the order asked for; nothing is done where it stands so already."""
    ledger = _ledger()
    running = [fake_request(str(i), 0.0) for i in range(9)]
    rows = RunningRows(ledger)
    first = order[:named]
    wanted = [str(i) for i in (*first, *(i for i in range(9) if i not in first))]
    places = rows.wanted(running, rows.of(running)[first])
    assert (places is None) == (wanted == [str(i) for i in range(9)])
    if places is not None:
        rows.rearrange(running, places)
    assert [request.request_id for request in running] == wanted
    assert rows.of(running).tolist() == [ledger.rows[name] for name in wanted]
    assert rows.places(running, np.array([ledger.rows["3"], ledger.row(fake_request("far", 0.0))])) == [
        wanted.index("3")
    ]
