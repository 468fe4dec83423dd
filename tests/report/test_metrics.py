"""Figures of merit against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.metrics import Latency, Metrics, Queue, Share, Spread, attainment_spread, wilson
from slosched.core.outcome import Run
from slosched.core.thinking import Thinking


def test_attainment_by_hand(run: Run) -> None:
    """Attainment, by weight, class and kind of limit, equals what counting by hand gives."""
    m = Metrics.of(run)
    assert (m.attainment.met, m.attainment.count) == (3, 6)
    assert m.weighted.value == pytest.approx(4 / 8)
    assert {name: (s.met, s.count) for name, s in m.by_class.items()} == {
        "chat": (1, 2),
        "code": (1, 2),
        "batch": (1, 2),
    }
    assert {name: (s.met, s.count) for name, s in m.by_limit.items()} == {
        "ttft": (2, 2),
        "tpot": (1, 2),
        "e2e": (1, 2),
    }


def test_rates_and_span(run: Run) -> None:
    """Goodput, throughput and busy share are per second from the first arrival to the last finish."""
    m = Metrics.of(run)
    assert m.span_s == 10.0
    assert m.goodput_rps == pytest.approx(0.3)
    assert m.throughput_tps == pytest.approx((11 + 11 + 21 + 1 + 11) / 10)
    assert m.busy_share == pytest.approx(0.8)
    assert m.offered_rps == pytest.approx(1.0)


def test_latencies(run: Run) -> None:
    """Latency statistics leave out requests that never got there."""
    m = Metrics.of(run)
    assert m.ttft_s.mean == pytest.approx(np.mean([0.5, 1.0, 0.5, 4.0, 1.0]))
    assert m.tpot_s.mean == pytest.approx(np.mean([0.05, 0.4, 0.1, 0.0, 0.5]))
    assert m.e2e_s.p50 == pytest.approx(np.median([1.0, 5.0, 2.5, 4.0, 6.0]))
    assert m.best_effort_p99_e2e_s == pytest.approx(6.0)
    assert m.finished == 5


def test_longest_wait_counts_a_request_never_admitted(run: Run) -> None:
    """A request that was never admitted has waited from its arrival to the end of the run."""
    assert Metrics.of(run).max_wait_s == pytest.approx(5.0)


def test_costs(run: Run) -> None:
    """Preemptions and recomputed tokens are totals, planning time is in microseconds."""
    m = Metrics.of(run)
    assert (m.preemptions, m.recomputed_tokens) == (3, 120)
    assert m.plan_p50_us == pytest.approx(20.0)
    assert m.plan_p99_us == pytest.approx(29.8)


def test_queue_is_weighted_by_time(run: Run) -> None:
    """Each depth sample holds until the next one: (3 for 4 s, 1 for 4 s) of 10 s."""
    queue = Metrics.of(run).queue
    assert queue.mean == pytest.approx(1.6)
    assert queue.max == 3
    assert queue.time_share == pytest.approx(0.8)
    assert Metrics.of(run).queued


def test_no_queue_is_flagged(run: Run) -> None:
    """A run in which nobody ever waited says so."""
    log = replace(run.log, depth_waiting=np.zeros(4, dtype=np.int64))
    m = Metrics.of(replace(run, log=log))
    assert not m.queued
    assert m.to_dict()["queued"] is False


def test_queue_without_samples_or_time(run: Run) -> None:
    """No samples mean no queue; a single sample counts for itself."""
    empty = np.empty(0)
    log = replace(run.log, depth_time_s=empty, depth_waiting=empty.astype(np.int64))
    assert Queue.of(log) == Queue(mean=0.0, max=0, time_share=0.0)
    log = replace(run.log, depth_time_s=np.array([1.0]), depth_waiting=np.array([4]))
    assert Queue.of(log) == Queue(mean=4.0, max=4, time_share=1.0)


def test_to_dict_is_strict_json(run: Run) -> None:
    """The plain form is strict JSON: NaN and infinity become null."""
    log = replace(run.log, plan_s=np.empty(0))
    text = json.dumps(Metrics.of(replace(run, log=log)).to_dict(), allow_nan=False)
    assert json.loads(text)["plan_p50_us"] is None
    assert json.loads(text)["by_class"]["chat"]["met"] == 1


def test_wilson_closed_form() -> None:
    """Wilson's interval matches its published closed form at the ends and in the middle."""
    z = 1.959963984540054
    assert wilson(0.0, 10) == pytest.approx((0.0, z * z / (10 + z * z)))
    assert wilson(1.0, 10) == pytest.approx((10 / (10 + z * z), 1.0))
    low, high = wilson(0.5, 40)
    assert low + high == pytest.approx(1.0)
    assert wilson(math.nan, 0) == (0.0, 1.0)


def test_wilson_stays_within_its_domain() -> None:
    """Rounding carries no end beyond 0 or 1, however many were counted."""
    for count in range(1, 3000):
        low, high = wilson(1.0, count)
        assert 0.0 < low < high <= 1.0
        low, high = wilson(0.0, count)
        assert 0.0 <= low < high < 1.0


def test_equal_weights_give_the_plain_interval(run: Run) -> None:
    """With equal weights the weighted share and its interval are the unweighted ones."""
    work = replace(run.outcomes.workload, weight=np.full(6, 3.0))
    m = Metrics.of(replace(run, outcomes=replace(run.outcomes, workload=work)))
    assert m.weighted.value == m.attainment.value
    assert (m.weighted.low, m.weighted.high) == pytest.approx((m.attainment.low, m.attainment.high))


def test_spread_over_seeds() -> None:
    """Student's t interval over seeds, cut to the bounds, with values that are not finite left out."""
    spread = Spread.of([0.5, 0.7, math.nan])
    half = 12.706204736432095 * 0.1
    assert (spread.mean, spread.low, spread.high) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    assert spread.seeds == 2
    assert Spread.of([0.5, 0.7], bounds=(0, 1)).high == 1.0
    assert Spread.of([]).seeds == 0


def test_one_seed_falls_back_to_wilson(run: Run) -> None:
    """With one seed the attainment interval is Wilson's, with several it is over the seeds."""
    m = Metrics.of(run)
    assert attainment_spread([m]).low == m.weighted.low
    two = attainment_spread([m, m], weighted=False)
    assert (two.low, two.mean, two.high, two.seeds) == (0.5, 0.5, 0.5, 2)


def test_empty_share_and_latency() -> None:
    """Nobody asked: the share is NaN with an interval of everything, latencies are NaN."""
    share = Share.of(0, 0)
    assert math.isnan(share.value)
    assert (share.low, share.high) == (0.0, 1.0)
    assert math.isnan(Latency.of(np.array([np.nan])).p99)


def test_impossible_share_is_refused() -> None:
    """More met than counted is an error."""
    with pytest.raises(InputError, match="met must be from 0 to 2, got 3"):
        Share.of(3, 2)


def changed(run: Run, **columns: object) -> Metrics:
    """Metrics of the run with other columns."""
    return Metrics.of(replace(run, outcomes=replace(run.outcomes, **columns)))  # type: ignore[arg-type]


def test_nobody_sent_or_asked(run: Run) -> None:
    """Rates and latencies of nothing are not known; nothing weighs nothing."""
    none = np.full(6, np.nan)
    first = np.where(np.arange(6) == 0, 0.0, np.nan)
    m = changed(run, arrival_s=first, admitted_s=none, first_token_s=none, finish_s=none)
    assert (m.finished, m.attainment.met, m.attainment.count, m.span_s, m.max_wait_s) == (0, 0, 6, 0.0, 0.0)
    assert all(math.isnan(x) for x in (m.offered_rps, m.goodput_rps, m.throughput_tps, m.busy_share))
    work = run.outcomes.workload
    free = changed(run, workload=replace(work, weight=np.zeros(6)))
    assert math.isnan(free.weighted.value)
    assert (free.weighted.low, free.weighted.high, free.weighted.count) == (0.0, 1.0, 0)
    out = run.outcomes
    nobody = Metrics.of(
        replace(
            run,
            outcomes=replace(
                out, workload=work.rows(np.zeros(6, dtype=bool)),
                **{k: getattr(out, k)[:0] for k in ("arrival_s", "admitted_s", "first_token_s", "finish_s",
                                                    "preemptions", "recomputed_tokens", "cached_tokens")},
            ),
        )
    )  # fmt: skip
    assert nobody.requests == 0
    assert math.isnan(nobody.max_wait_s)


def test_one_request_offers_no_rate(run: Run) -> None:
    """A rate needs two arrivals; two at 0 s and 4 s are a quarter a second."""
    two = np.array([0.0, np.nan, np.nan, np.nan, 4.0, np.nan])
    assert changed(run, arrival_s=two).offered_rps == pytest.approx(0.25)
    assert math.isnan(changed(run, arrival_s=np.where(two > 0, np.nan, two)).offered_rps)


def test_refused_requests_are_counted_and_do_not_wait(run: Run) -> None:
    """Nobody is refused where no engine could; the refused wait no longer."""
    m = Metrics.of(run)
    assert m.rejected == 0
    gone = np.array([False] * 5 + [True])
    refused = changed(run, rejected=gone)
    assert refused.rejected == 1
    # Request 3 came at 3 s and was admitted at 6 s.
    assert refused.max_wait_s == pytest.approx(3.0)
    assert changed(run, rejected=~gone).max_wait_s == pytest.approx(5.0)


def test_limits_are_kept_at_equality_of_each_kind(run: Run) -> None:
    """A first token in time counts as such; a limit of infinity is none; thinking has its own."""
    work = run.outcomes.workload
    at = replace(work, ttft_s=np.array([0.5, 0.99, 0.5, np.inf, 1.0, 9.0]))
    assert changed(run, workload=at).by_limit["ttft"].met == 3
    assert changed(run, workload=at).by_limit["ttft"].count == 5
    assert "ttfat" not in changed(run, workload=at).by_limit
    limit_s = np.array([0.5, 2.0, np.inf, np.inf, np.inf, np.inf])
    thinking = Thinking(
        tokens=np.zeros(6, dtype=np.int64), ttfat_s=limit_s, atoms=np.zeros((6, FORECAST_ATOMS))
    )
    answer_s = np.array([0.5, 3.1, 3.0, 7.0, 5.0, np.nan])
    m = changed(run, workload=replace(work, thinking=thinking), answer_s=answer_s)
    assert (m.by_limit["ttfat"].met, m.by_limit["ttfat"].count) == (1, 2)
    assert m.ttfat_s is not None
    assert m.ttfat_s.mean == pytest.approx(np.mean([0.5, 2.1, 1.0, 4.0, 1.0]))
    assert Metrics.of(run).ttfat_s is None


def test_best_effort_has_no_limit_of_any_kind(run: Run) -> None:
    """A limit on the first answer token is a limit, too."""
    inf = np.full(6, np.inf)
    thinking = Thinking(
        tokens=np.zeros(6, dtype=np.int64), ttfat_s=np.where(np.arange(6) == 4, 99.0, inf),
        atoms=np.zeros((6, FORECAST_ATOMS)),
    )  # fmt: skip
    work = replace(run.outcomes.workload, thinking=thinking)
    assert math.isnan(changed(run, workload=work).best_effort_p99_e2e_s)


def test_the_plain_form_comes_back_whole(run: Run) -> None:
    """Numbers, nested figures and NaN, through JSON and back."""
    for m in (Metrics.of(run), changed(run, answer_s=run.outcomes.first_token_s)):
        again = Metrics.from_dict(json.loads(json.dumps(m.to_dict())))
        assert repr(again) == repr(m)
    none = Metrics.of(replace(run, log=replace(run.log, plan_s=np.empty(0), busy_s=math.nan)))
    assert repr(Metrics.from_dict(none.to_dict())) == repr(none)


def test_a_single_seed_says_so(run: Run) -> None:
    """Wilson's interval of one run, by weight or not, is of one seed."""
    m = Metrics.of(run)
    one = attainment_spread([m], weighted=False)
    assert (one.mean, one.low, one.high, one.seeds) == (0.5, m.attainment.low, m.attainment.high, 1)
    assert Spread.of([0.25]) == Spread(mean=0.25, low=0.25, high=0.25, seeds=1)
    for level in (0.0, 1.0):
        with pytest.raises(InputError, match="confidence"):
            wilson(0.5, 10, level)


def test_a_line_of_no_length_in_time(run: Run) -> None:
    """Samples at one instant count as they are."""
    log = replace(run.log, depth_time_s=np.array([1.0, 1.0]), depth_waiting=np.array([0, 2]))
    assert Queue.of(log) == Queue(mean=1.0, max=2, time_share=1.0)
    log = replace(log, depth_waiting=np.array([0, 0]))
    assert Queue.of(log).time_share == 0.0
    assert not Metrics.of(replace(run, log=log)).queued
