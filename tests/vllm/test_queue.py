"""The queue behaves as vLLM's own one in native order, and as planned otherwise."""

from __future__ import annotations

from collections import deque
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.integrations.vllm.clock import VirtualClock
from slosched.integrations.vllm.config import Config
from slosched.integrations.vllm.decision import Offers
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.queue import SloQueue
from slosched.integrations.vllm.state import Learned
from slosched.integrations.vllm.waiting_rows import ArrivalLine, smallest

from .conftest import fake_request


def _queue(ledger: Ledger, arrivals: list[float]) -> tuple[SloQueue, list[Any]]:
    queue = SloQueue(ledger)
    requests = [fake_request(str(i), arrival) for i, arrival in enumerate(arrivals)]
    for request in requests:
        queue.add_request(request)
    return queue, requests


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=120))
def test_native_order_is_that_of_a_deque(steps: list[tuple[int, int]]) -> None:
    """Without a plan every operation gives what vLLM's first-come-first-served deque gives."""
    ledger = Ledger(Config(), VirtualClock(), Learned("h100-llama-3.1-8b"), Stats())
    queue, reference = SloQueue(ledger), deque[Any]()
    out: list[Any] = []
    made = 0
    for kind, number in steps:
        if kind <= 1:
            request = fake_request(str(made), float(number % 7))
            made += 1
            queue.add_request(request)
            reference.append(request)
        elif kind == 2 and reference:
            assert queue.peek_request() is reference[0]
            out.append(queue.pop_request())
            assert out[-1] is reference.popleft()
        elif kind == 3 and out:
            request = out.pop(number % len(out))
            queue.prepend_request(request)
            reference.appendleft(request)
        elif kind == 4 and reference:
            request = reference[number % len(reference)]
            queue.remove_request(request)
            reference.remove(request)
        elif kind == 5 and len(out) > 1:
            queue.prepend_requests(out)
            reference.extendleft(out)
            out = []
        assert list(queue) == list(reference)
        assert len(queue) == len(reference)
        assert bool(queue) == bool(reference)


def test_planned_requests_come_first_then_the_rest_as_they_arrived(ledger: Ledger) -> None:
    """An order may name a part of the queue only."""
    queue, _ = _queue(ledger, [0.0, 1.0, 2.0, 3.0])
    order = np.array([2, 0])
    queue.set_order(Offers.of(order, ledger.table.serial))
    assert [queue.pop_request().request_id for _ in range(4)] == ["2", "0", "1", "3"]


def test_held_requests_are_counted_but_not_offered(ledger: Ledger) -> None:
    """A queue of held requests is false and has its full length."""
    queue, requests = _queue(ledger, [0.0, 1.0])
    queue.block([0], np.array([1]))
    assert not queue
    assert len(queue) == 2
    with pytest.raises(IndexError):
        queue.peek_request()
    queue.block([0])
    assert queue.pop_request() is requests[1]


def test_a_starving_request_overrides_a_hold_but_not_a_fence(ledger: Ledger) -> None:
    """Held requests can be put first; fenced ones, whose tokens are in flight, cannot."""
    queue, requests = _queue(ledger, [0.0, 1.0])
    queue.block([0], np.array([1]))
    assert not queue.put_first(0)
    assert queue.put_first(1)
    assert queue.peek_request() is requests[1]


def test_rows_reused_since_the_plan_are_passed_over(ledger: Ledger) -> None:
    """A row that has changed hands does not inherit its predecessor's place."""
    queue, requests = _queue(ledger, [0.0, 1.0])
    order = np.array([1, 0])
    offers = Offers.of(order, ledger.table.serial)
    ledger.table._free.clear()  # so that the next row to be free is the next to be used
    queue.remove_request(requests[1])
    ledger.finish("1", 2.0)
    queue.add_request(fake_request("new", 5.0))
    assert ledger.rows["new"] == 1
    queue.set_order(offers)
    assert [queue.pop_request().request_id for _ in range(2)] == ["0", "new"]


def test_removing_a_stranger_is_an_error(ledger: Ledger) -> None:
    """As with vLLM's own queue."""
    queue, _ = _queue(ledger, [0.0])
    with pytest.raises(ValueError, match="stranger"):
        queue.remove_request(fake_request("stranger"))
    queue.remove_requests([fake_request("stranger")])
    assert len(queue) == 1


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, float("inf")]), max_size=300),
    st.integers(1, 40),
)
def test_smallest_is_a_stable_sort_cut_short(keys: list[float], count: int) -> None:
    """Same indices as sorting everything, ties included."""
    key = np.array(keys)
    assert smallest(key, count).tolist() == np.argsort(key, kind="stable")[:count].tolist()


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=200), st.integers(1, 40))
def test_the_line_is_sorted_by_arrival_and_serial(steps: list[tuple[bool, int]], every: int) -> None:
    """Whatever joins and leaves in whatever order, and however seldom the rows are asked for."""
    ledger = Ledger(Config(), VirtualClock(), Learned("h100-llama-3.1-8b"), Stats())
    line, present = ArrivalLine(ledger.table, capacity=2), list[int]()
    for i, (join, number) in enumerate(steps):
        if join or not present:
            row = ledger.row(fake_request(str(i), float(number)))
            line.insert(row)
            present.append(row)
        else:
            row = present.pop(number % len(present))
            assert line.remove(row)
            assert not line.remove(row)
        table = ledger.table
        assert len(line) == len(present)
        if present:
            assert line.oldest_s == min(float(table.arrival_s[r]) for r in present)
        if i % every and i < len(steps) - 1:
            continue
        wanted = sorted(present, key=lambda r: (float(table.arrival_s[r]), int(table.serial[r])))
        assert line.rows.tolist() == wanted


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")  # those of PyTorch
def test_the_queue_has_every_method_of_vllm() -> None:
    """No abstract method of the installed vLLM's queue is missing."""
    abstract = import_module("vllm.v1.core.sched.request_queue").RequestQueue.__abstractmethods__
    assert set(abstract) <= set(dir(SloQueue))


def test_keys_given_once_order_like_a_full_sort(ledger: Ledger) -> None:
    """Arrivals, admissions, aborts, returns with other keys, and fences: the head is always the smallest."""
    rng = np.random.default_rng(0)
    queue = SloQueue(ledger)
    queue.keyed = True
    waiting: dict[str, tuple[float, float, int]] = {}
    for i in range(3000):
        request = fake_request(str(i), float(rng.integers(0, 50)))
        queue.add_request(request)
        row = queue.joined[-1]
        key = float(rng.integers(0, 5))
        queue.set_keys([row], [key])
        waiting[request.request_id] = (key, request.arrival_time, int(ledger.table.serial[row]))
        fenced = [ledger.rows[name] for name in waiting if rng.random() < 0.05]
        queue.block(fenced)
        free = {name: rank for name, rank in waiting.items() if ledger.rows[name] not in fenced}
        assert bool(queue) == bool(free)
        listed = [r.request_id for r in queue]
        assert listed == sorted(waiting, key=waiting.__getitem__)
        for _ in range(int(rng.integers(0, 4))):
            if not free:
                break
            best = min(free, key=free.__getitem__)
            assert queue.peek_request().request_id == best
            taken = queue.pop_request()
            assert taken.request_id == best
            del free[best], waiting[best]
            if rng.random() < 0.2:  # comes back with another key
                queue.prepend_request(taken)
                row = ledger.rows[best]
                key = float(rng.integers(0, 5))
                queue.set_keys([row], [key])
                waiting[best] = free[best] = (key, taken.arrival_time, int(ledger.table.serial[row]))
            else:
                ledger.finish(best, 0.0)
        if free and rng.random() < 0.1:
            gone = str(rng.choice(list(free)))
            queue.remove_request(ledger.requests[ledger.rows[gone]])
            ledger.finish(gone, 0.0)
            del waiting[gone]


def test_line_and_bars_outgrow_the_table(ledger: Ledger) -> None:
    """Rows beyond the first size of the table are barred, left out and put first as all others."""
    queue, requests = _queue(ledger, [float(i % 7) for i in range(700)])
    queue.block([600], np.arange(300, 600))
    assert len(queue) == 700
    assert not queue.put_first(600)
    for row in (650, 601, 2):
        queue.remove_request(requests[row])
    offered = [queue.pop_request().request_id for _ in range(700 - 301 - 3)]
    assert offered == [str(i) for i in (*range(300), *range(601, 700)) if i not in (650, 601, 2)]
    assert not queue
    assert len(queue) == 301
    queue.block([])
    queue.hold(300)
    assert queue.pop_request() is requests[301]


def test_newcomers_since_a_plan_are_known(ledger: Ledger) -> None:
    """Whoever came after the newest that a plan knew, whether few or more than are remembered."""
    known = [ledger.row(fake_request(f"old{i}", 0.0)) for i in range(5)]
    newest = int(ledger.table.serial.max())
    assert ledger.since(newest) == []
    for request_id in ("old4", "old2"):
        ledger.finish(request_id, 1.0)
    for count in (1, 3, 900):
        rows = [ledger.row(fake_request(f"{count}-{i}", 0.0)) for i in range(count)]
        known += rows
        found = {row for row in ledger.since(newest) if ledger.table.serial[row] >= 0}
        assert found == {row for row in known if ledger.table.serial[row] > newest}
        newest = int(ledger.table.serial.max())


def test_whoever_waits_is_held_until_the_next_block(ledger: Ledger) -> None:
    """All but fenced ones could still be put first; who joins later is offered."""
    queue, requests = _queue(ledger, [0.0, 1.0, 2.0])
    queue.block_all([1])
    assert not queue
    assert len(queue) == 3
    assert not queue.put_first(1)
    queue.add_request(fake_request("late", 9.0))
    assert queue.peek_request().request_id == "late"
    queue.block([])
    assert queue.pop_request() is requests[0]
