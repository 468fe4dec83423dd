"""Figures of a run by hand: who counts, what is cut, what a refusal costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.outcome import Outcomes, Run, RunLog
from slosched.core.workload import Workload
from slosched.lab.figures import BURSTS, GROWS, STABLE, figures, jain, plan_times_us


def run_of(**changes: object) -> Run:
    """Ten requests, one every 10 s; TTFT limit 2 s; each has its first token after 1 s, and ends after 5."""
    n = 10
    work = Workload.plain(10.0 * np.arange(float(n)), np.full(n, 100), np.full(n, 11))
    work = replace(
        work,
        ttft_s=np.full(n, 2.0),
        weight=np.array([1.0, 1, 1, 1, 1, 5, 1, 1, 1, 1]),
        classes=("a", "b"),
        class_index=np.arange(n) % 2,
        tenants=("t", "u"),
        tenant_index=(np.arange(n) >= 5).astype(np.int64),
    )
    out = Outcomes(
        workload=work,
        arrival_s=work.arrival_s.copy(),
        admitted_s=work.arrival_s + 0.5,
        first_token_s=work.arrival_s + 1.0,
        finish_s=work.arrival_s + 5.0,
        preemptions=np.zeros(n, dtype=np.int64),
        recomputed_tokens=np.zeros(n, dtype=np.int64),
        cached_tokens=np.zeros(n, dtype=np.int64),
    )
    none = np.empty(0)
    log = RunLog(
        steps=7, plans=3, plan_s=none, depth_time_s=none, depth_waiting=np.empty(0, dtype=np.int64),
        depth_running=np.empty(0, dtype=np.int64), busy_s=1.0, wall_s=1.0,
    )  # fmt: skip
    outcomes = replace(out, **{k: v for k, v in changes.items() if k != "log"})  # type: ignore[arg-type]
    return Run(policy="x", engine="simulator", outcomes=outcomes, log=changes.get("log", log))  # type: ignore[arg-type]


def test_all_is_well() -> None:
    row = figures(run_of(), window_s=100.0)
    assert row["requests"] == 8
    assert row["weighted"] == row["attainment"] == row["lowest_class"] == row["jain"] == 1.0
    assert row["goodput_rps"] == pytest.approx(8 / 80)
    assert row["goodput_tps"] == pytest.approx(88 / 80)
    assert row["ttft_mean_s"] == row["ttft_p99_s"] == 1.0
    assert row["tpot_p50_s"] == pytest.approx(0.4)
    assert row["e2e_p99_s"] == 5.0
    assert row["longest_wait_s"] == 0.5
    assert (row["refused"], row["preempted"]) == (0, 0)
    assert row["queue"] == STABLE


def test_one_late_heavy_request_in_the_middle() -> None:
    first = run_of().outcomes.first_token_s.copy()
    first[5] += 3.0
    row = figures(run_of(first_token_s=first), window_s=100.0)
    # Weights of rows 1 to 8: 12 in all, 5 of them late.
    assert row["weighted"] == pytest.approx(7 / 12)
    assert row["attainment"] == pytest.approx(7 / 8)
    assert row["lowest_class"] == pytest.approx(3 / 8)
    assert row["worst_tenant"] == pytest.approx(3 / 8)
    assert row["jain"] == pytest.approx((1 + 3 / 8) ** 2 / (2 * (1 + (3 / 8) ** 2)))
    assert row["all_weighted"] == pytest.approx(9 / 14)
    assert row["warm_up_weighted"] == row["drain_weighted"] == 1.0


def test_warm_up_and_drain_are_cut_but_for_bursts() -> None:
    first = run_of().outcomes.first_token_s.copy()
    first[[0, 9]] += 3.0
    late = run_of(first_token_s=first)
    row = figures(late, window_s=100.0)
    assert row["weighted"] == 1.0
    assert row["warm_up_weighted"] == row["drain_weighted"] == 0.0
    assert figures(late, window_s=100.0, burst=True)["weighted"] == pytest.approx(12 / 14)


def test_refusals_are_missed_and_counted() -> None:
    base = run_of().outcomes
    gone = np.zeros(10, dtype=bool)
    gone[[3, 4]] = True
    never = np.where(gone, np.nan, 1.0)
    row = figures(
        run_of(
            rejected=gone, first_token_s=base.first_token_s * never, finish_s=base.finish_s * never,
            admitted_s=base.admitted_s * never,
        ),
        window_s=100.0,
    )  # fmt: skip
    assert row["refused"] == 2
    assert row["attainment"] == pytest.approx(6 / 8)
    assert row["weighted"] == pytest.approx(10 / 12)
    # Who was refused does not wait for ever.
    assert row["longest_wait_s"] == 0.5


def test_a_turn_never_sent_counts_with_the_refused() -> None:
    base = run_of().outcomes
    never = np.ones(10)
    never[6] = np.nan
    row = figures(
        run_of(
            arrival_s=base.arrival_s * never, first_token_s=base.first_token_s * never,
            finish_s=base.finish_s * never, admitted_s=base.admitted_s * never,
        ),
        window_s=100.0,
    )  # fmt: skip
    assert row["refused"] == 1
    assert row["attainment"] == pytest.approx(7 / 8)


def test_who_is_never_admitted_waits_to_the_end() -> None:
    base = run_of().outcomes
    never = np.ones(10)
    never[2] = np.nan
    row = figures(
        run_of(
            first_token_s=base.first_token_s * never, finish_s=base.finish_s * never,
            admitted_s=base.admitted_s * never,
        ),
        window_s=100.0,
    )  # fmt: skip
    assert row["longest_wait_s"] == pytest.approx(95.0 - 20.0)
    assert row["refused"] == 0


@pytest.mark.parametrize(
    ("waiting", "word"),
    [([0, 3, 3, 3, 3, 3], STABLE), ([0, 0, 40, 0, 1, 0], BURSTS), ([0, 5, 10, 20, 40, 60], GROWS)],
)
def test_what_the_queue_does(waiting: list[int], word: str) -> None:
    log = replace(
        run_of().log,
        depth_time_s=15.0 * np.arange(6.0),
        depth_waiting=np.array(waiting),
        depth_running=np.zeros(6, dtype=np.int64),
    )
    row = figures(run_of(log=log), window_s=90.0)
    assert row["queue"] == word
    assert row["waiting_mean"] == pytest.approx(np.mean(waiting))
    assert row["waiting_max"] == max(waiting)


def test_jain() -> None:
    assert jain(np.array([0.5, 0.5, 0.5])) == pytest.approx(1.0)
    assert jain(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert jain(np.zeros(3)) == 1.0
    assert np.isnan(jain(np.empty(0)))


def depths(times: list[float], waiting: list[int]) -> RunLog:
    """A log of the waiting line."""
    zeros = np.zeros(len(waiting), dtype=np.int64)
    return replace(
        run_of().log, depth_time_s=np.array(times), depth_waiting=np.array(waiting, dtype=np.int64),
        depth_running=zeros,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("waiting", "word"),
    [
        ((9, 10, 15), STABLE), ((9, 10, 16), GROWS), ((99, 10, 16), GROWS),  # by more than a half
        ((0, 3, 5), GROWS), ((0, 3, 4), STABLE), ((0, 0, 5), GROWS), ((0, 0, 4), STABLE),  # to five at least
    ],
)  # fmt: skip
def test_a_growing_queue_is_so_in_its_last_third(waiting: tuple[int, int, int], word: str) -> None:
    """The first third does not count; both edges belong to what grows not, but for the least length."""
    row = figures(run_of(log=depths([0.0, 30.0, 60.0], list(waiting))), window_s=90.0)
    assert row["queue"] == word


def test_a_burst_is_four_times_the_mean() -> None:
    """Of at least one request on average; at four times exactly it is none."""
    for top, word in ((4, STABLE), (5, BURSTS)):
        row = figures(run_of(log=depths([0.0, 1.0, 2.0], [0, top, 0])), window_s=90.0)
        assert (row["queue"], row["waiting_max"]) == (word, top)
        assert row["waiting_mean"] == pytest.approx(top / 90)
    # A mean of two over the window, of 8 at most.
    for top, word in ((8, STABLE), (9, BURSTS)):
        row = figures(run_of(log=depths([0.0, 90 * 2 / top], [top, 0])), window_s=90.0)
        assert row["queue"] == word


def test_the_queue_is_that_of_the_window() -> None:
    """What comes after it does not count, and a sample holds to its end; without a sample nobody waits."""
    row = figures(run_of(log=depths([0.0, 45.0, 90.0], [2, 6, 99])), window_s=90.0)
    assert (row["waiting_mean"], row["waiting_max"]) == (4.0, 6)
    row = figures(run_of(), window_s=90.0)
    assert (row["queue"], row["waiting_mean"], row["waiting_max"]) == (STABLE, 0.0, 0)


def test_edges_of_the_window_belong_to_its_middle_and_end() -> None:
    """Planned at a tenth of the window counts, at nine tenths no more."""
    first = run_of().outcomes.first_token_s.copy()
    first[1] += 3.0
    row = figures(run_of(first_token_s=first), window_s=100.0)
    assert row["attainment"] == pytest.approx(7 / 8)
    assert row["warm_up_weighted"] == 1.0
    first = run_of().outcomes.first_token_s.copy()
    first[9] += 3.0
    row = figures(run_of(first_token_s=first), window_s=100.0)
    assert (row["attainment"], row["drain_weighted"]) == (1.0, 0.0)


def test_rates_of_a_burst_are_over_all_of_it() -> None:
    row = figures(run_of(), window_s=100.0, burst=True)
    assert row["requests"] == 10
    assert row["goodput_rps"] == pytest.approx(10 / 100)
    assert row["warm_up_weighted"] is None


def test_latencies_that_are_not_there_are_left_out() -> None:
    """Of nobody they are not known; means and percentiles are of those that have them."""
    base = run_of().outcomes
    none = np.full(10, np.nan)
    row = figures(run_of(first_token_s=none, finish_s=none, admitted_s=none), window_s=100.0)
    assert row["ttft_mean_s"] is None
    assert row["e2e_p99_s"] is None
    assert row["attainment"] == 0.0
    # Nobody ends: who was never admitted has waited for no time that is known.
    assert row["longest_wait_s"] is None
    some = np.where(np.arange(10) < 3, base.first_token_s + np.arange(10), np.nan)
    row = figures(run_of(first_token_s=some), window_s=100.0)
    assert row["ttft_mean_s"] == pytest.approx(2.5)
    assert row["ttft_p50_s"] == pytest.approx(2.5)
    assert row["ttft_p99_s"] == pytest.approx(2.99)


def test_what_is_counted_is_of_the_middle() -> None:
    """Preemptions and refusals at the edges are not."""
    gone = np.zeros(10, dtype=bool)
    gone[[0, 4]] = True
    row = figures(run_of(preemptions=np.arange(10), rejected=gone), window_s=100.0)
    assert (row["preempted"], row["refused"]) == (36, 1)
    assert (row["plans"], row["steps"]) == (3, 7)


def test_digits_are_cut_to_nine() -> None:
    """So that machines agree; what is not finite is not known."""
    base = run_of().outcomes
    row = figures(run_of(first_token_s=base.arrival_s + 1 / 3), window_s=100.0)
    assert row["ttft_mean_s"] == 0.333333333


def test_plan_times() -> None:
    """In microseconds to a tenth; nothing where none was measured."""
    log = replace(run_of().log, plan_s=np.array([1e-5, 2.123e-5, 3.0e-5]))
    assert plan_times_us(log) == {"plan_p50_us": 21.2, "plan_p99_us": 29.8}
    assert plan_times_us(run_of().log) == {"plan_p50_us": None, "plan_p99_us": None}
