"""Figures of a run by hand: who counts, what is cut, what a refusal costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slosched.core.outcome import Outcomes, Run, RunLog
from slosched.core.workload import Workload
from slosched.lab.figures import BURSTS, GROWS, STABLE, figures, jain


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
