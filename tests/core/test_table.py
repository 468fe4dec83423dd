"""The table of live requests, and snapshots of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.snapshot import Snapshot
from slosched.core.table import RequestTable


def request(name: str, prompt: int = 7, **fields: object) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        forecast=LengthForecast.point(20),
        **fields,  # type: ignore[arg-type]
    )


@settings(max_examples=60, deadline=None)
@given(
    actions=st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), min_size=1, max_size=80),
    capacity=st.integers(0, 5),
)
def test_rows_are_reused_and_serials_are_not(actions: list[tuple[bool, int]], capacity: int) -> None:
    """Through any comings and goings each live request keeps its row, serial and columns."""
    table = RequestTable(capacity)
    live: dict[int, tuple[int, str]] = {}
    serial = 0
    for add, number in actions:
        if add or not live:
            name = f"r{serial}"
            row = table.add(request(name, prompt=1 + number, arrival_s=float(serial)))
            assert row not in live
            assert table.extra("mine", fill=-1.0)[row] == -1.0
            table.extra("mine")[row] = serial
            live[row] = (serial, name)
            serial += 1
        else:
            row = list(live)[number % len(live)]
            table.release(row)
            del live[row]
        for row, (number_, name) in live.items():
            assert table.serial[row] == number_
            assert table.request_ids[row] == name
            assert table.arrival_s[row] == number_
            assert table.extra("mine")[row] == number_
        assert int(np.sum(table.serial >= 0)) == len(live)
    assert table.capacity >= len(live)


def test_newcomers_start_clean() -> None:
    """A row used before keeps nothing of its former request."""
    table = RequestTable(1)
    row = table.add(request("old", slo=Slo(ttft_s=1.0), weight=3.0, priority=9, generated_tokens=4))
    for column in (table.computed_tokens, table.cached_tokens, table.served_tokens, table.preemptions):
        column[row] = 5
    table.first_token_s[row] = 2.0
    table.release(row)
    assert table.add(request("new", tenant="t")) == row
    counts = (table.computed_tokens, table.cached_tokens, table.served_tokens, table.preemptions)
    assert [int(column[row]) for column in counts] == [0, 0, 0, 0]
    assert (table.weight[row], table.priority[row], table.generated_tokens[row]) == (1.0, 0, 0)
    assert math.isinf(table.ttft_s[row])
    assert math.isnan(table.first_token_s[row])
    assert [table.tenants[table.tenant_index[row]], table.serial[row]] == ["t", 1]


def test_growth_keeps_everything() -> None:
    """Doubling keeps columns, names, labels and own columns, whose new rows start at their fill."""
    table = RequestTable(2)
    for i in range(9):
        table.add(request(f"r{i}", prompt=i + 1, slo_class="ab"[i % 2], slo=Slo(e2e_s=i + 1.0)))
        table.extra("mine", fill=7.0)[table.serial == i] = i
    assert table.capacity == 16
    order = np.argsort(table.serial)[-9:]
    assert table.prompt_tokens[order].tolist() == list(range(1, 10))
    assert table.e2e_s[order].tolist() == [i + 1.0 for i in range(9)]
    assert [table.request_ids[row] for row in order.tolist()] == [f"r{i}" for i in range(9)]
    assert [table.classes[k] for k in table.class_index[order].tolist()] == list("ababababa")
    assert table.extra("mine")[order].tolist() == list(range(9))
    assert set(table.extra("mine")[table.serial < 0].tolist()) == {7.0}


def test_a_copy_follows_its_original() -> None:
    """A copy has the same columns after growth, and resets own columns of rows that changed hands."""
    live, copy = RequestTable(3), RequestTable(1)
    rows = [live.add(request(f"r{i}", prompt=i + 1)) for i in range(3)]
    copy.copy_from(live)
    assert copy.prompt_tokens[rows].tolist() == [1, 2, 3]
    copy.extra("mine", fill=-1.0)[rows] = [10.0, 11.0, 12.0]
    live.release(rows[1])
    assert live.add(request("new", prompt=99)) == rows[1]
    copy.copy_from(live)
    assert copy.extra("mine")[rows].tolist() == [10.0, -1.0, 12.0]
    assert copy.prompt_tokens[rows].tolist() == [1, 99, 3]
    assert [copy.request_ids[row] for row in rows] == ["r0", "new", "r2"]


def test_releasing_a_free_row_is_an_error() -> None:
    """A row is given back once."""
    table = RequestTable(2)
    row = table.add(request("a"))
    table.release(row)
    with pytest.raises(InputError, match=f"row must be a row in use, got {row}"):
        table.release(row)


def test_names_are_unique() -> None:
    """Two live requests of one name are refused."""
    with pytest.raises(InputError, match="request_id must be unique, got 'a' twice"):
        RequestTable.of([request("a"), request("b"), request("a")])


def test_snapshot_of_requests() -> None:
    """Waiting rows ascend with arrival, running ones have their context in memory, the rest is free."""
    waiting = [request("late", arrival_s=5.0), request("early", arrival_s=1.0), request("tie", arrival_s=5.0)]
    running = [request("run", prompt=30, generated_tokens=3, arrival_s=0.5)]
    limits = EngineLimits(max_num_seqs=4, kv_blocks=10, block_tokens=16)
    snapshot = Snapshot.of(waiting, running, engine=Engine(limits=limits))
    assert [snapshot.table.request_ids[row] for row in snapshot.waiting.tolist()] == ["early", "late", "tie"]
    assert snapshot.running.tolist() == [3]
    assert snapshot.table.computed_tokens.tolist() == [0, 0, 0, 33]
    assert (snapshot.free_blocks, snapshot.free_seqs, snapshot.now_s) == (7, 3, 5.0)
    assert Snapshot.of(waiting, now_s=9.0).now_s == 9.0


def test_snapshot_of_nobody() -> None:
    """An empty engine is a snapshot, too."""
    snapshot = Snapshot.of([])
    assert (len(snapshot.waiting), len(snapshot.running), snapshot.now_s) == (0, 0, 0.0)


def test_running_requests_must_fit() -> None:
    """Running requests that exceed the KV cache are refused."""
    with pytest.raises(InputError, match="running must be requests that fit in 2 KV blocks, got 3"):
        Snapshot.of([], [request("a", prompt=40)], engine=Engine(limits=EngineLimits(kv_blocks=2)))
