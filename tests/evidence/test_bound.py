"""No schedule may beat the bound; where the optimum is known, the bound is it."""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slosched.core.engine import Engine, EngineLimits
from slosched.core.steptime import StepTimeModel
from slosched.lab.bound import attainment_bound, possible_alone, spans_of
from slosched.simulator import simulate
from slosched.workloads import PrefixBlocks, Workload

ENGINE = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64, kv_blocks=60, block_tokens=16)
STEPS = StepTimeModel(
    base_s=0.01, prefill_token_s=2e-4, attention_work_s=1e-7, sequence_s=1e-3, kv_token_s=2e-6,
    knee_tokens=32, knee_token_s=1e-4,
)  # fmt: skip


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    n = draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    limited = replace(
        Workload.plain(
            np.sort(rng.uniform(0, draw(st.sampled_from([0.0, 0.5, 3.0])), n)),
            rng.integers(1, 200, n),
            rng.integers(1, 60, n),
        ),
        weight=rng.uniform(0.1, 3, n),
    )
    kinds = rng.integers(0, 2, (3, n)).astype(bool)
    if draw(st.booleans()):
        session, think = rng.integers(-1, 3, n), rng.choice([-1.0, 0.0, 0.3], n)
        limited = replace(limited, session=session, think_s=think)
    if draw(st.booleans()):
        counts = rng.integers(0, 1 + limited.prompt_tokens // 16)
        ids = [np.arange(c) + 100 * int(rng.integers(2)) for c in counts]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        shared = PrefixBlocks(offsets=offsets, ids=np.concatenate(ids).astype(np.int64), block_tokens=16)
        limited = replace(limited, prefix=shared)
    return replace(
        limited,
        ttft_s=np.where(kinds[0], rng.uniform(0.02, 1.5, n), np.inf),
        tpot_s=np.where(kinds[1], rng.uniform(0.012, 0.06, n), np.inf),
        e2e_s=np.where(kinds[2], rng.uniform(0.1, 4, n), np.inf),
    )


POLICIES = ["fcfs", "edf+d", "sjf+d", "qoserve", "slos-serve", "scorpio", "slidingserve", "slosched"]


@settings(max_examples=120, deadline=None)
@given(workloads(), st.sampled_from(POLICIES), st.booleans())
def test_no_policy_beats_it(workload: Workload, policy: str, prefix_cache: bool) -> None:
    limits = replace(ENGINE, prefix_cache=prefix_cache)
    run = simulate(workload, policy, engine=Engine(limits=limits, step_time=STEPS))
    met = float(workload.weight[run.outcomes.met].sum() / workload.weight.sum())
    assert met <= attainment_bound(workload, Engine(limits=limits, step_time=STEPS)) + 1e-9


def optimum(work: Workload, limits: EngineLimits, m: StepTimeModel) -> float:
    """Largest share of the weight that keeps its limits, over all ways to fill every step: brute force.

    A step gives any requests that are there tokens of their prompts, or one of their answers, within slots,
    token budget and memory; waiting for the next arrival is allowed.
    """
    n = len(work)
    weight, ttft, tpot, e2e = (getattr(work, c).tolist() for c in ("weight", "ttft_s", "tpot_s", "e2e_s"))
    prompt, output = work.prompt_tokens.tolist(), work.output_tokens.tolist()
    arrival = work.arrival_s.tolist()

    def blocks(tokens: int) -> int:
        return -(-tokens // limits.block_tokens)

    def kept(i: int, first: float, now: float) -> bool:
        pace = (now - first) / max(1, output[i] - 1)
        return bool(first - arrival[i] <= ttft[i] and pace <= tpot[i] and now - arrival[i] <= e2e[i])

    def hopeless(i: int, tokens: int, first: float, now: float) -> bool:
        started = tokens >= prompt[i]
        return not kept(i, first if started else now, now) if started or now > arrival[i] else False

    @cache
    def best(now: float, done: tuple[int, ...], first: tuple[float, ...]) -> float:
        # done: tokens in the cache, -1 when the answer is complete; first: time of the first token.
        lost = [done[i] >= 0 and hopeless(i, done[i], first[i], now) for i in range(n)]
        done = tuple(-1 if gone else d for gone, d in zip(lost, done, strict=True))
        value = 0.0
        later = [a for i, a in enumerate(arrival) if a > now and done[i] >= 0]
        if later:
            value = best(min(later), done, first)
        choices = []
        for i in range(n):
            there = arrival[i] <= now and done[i] >= 0
            if not there:
                choices.append([0])
            elif done[i] < prompt[i]:
                choices.append(list(range(prompt[i] - done[i] + 1)))
            else:
                choices.append([0, 1])
        for tokens in itertools.product(*choices):
            busy = [i for i in range(n) if tokens[i]]
            held = sum(blocks(done[i] + tokens[i]) for i in busy)
            if not busy or sum(tokens) > limits.max_num_batched_tokens or len(busy) > limits.max_num_seqs:
                continue
            if held > limits.kv_blocks:
                continue
            prefill = [i for i in busy if done[i] < prompt[i]]
            decode = [i for i in busy if done[i] >= prompt[i]]
            tokens_p, read = sum(tokens[i] for i in prefill), sum(done[i] for i in decode)
            pairs = sum(tokens[i] * (done[i] + tokens[i] / 2) for i in prefill)
            end = now + m.base_s + m.prefill_token_s * tokens_p + m.attention_work_s * pairs
            end += m.sequence_s * len(decode) + m.kv_token_s * read
            end += m.knee_token_s * max(0, tokens_p + len(decode) - m.knee_tokens)
            after, firsts, gained = list(done), list(first), 0.0
            for i in busy:
                after[i] += tokens[i]
                if after[i] < prompt[i]:
                    continue
                if after[i] == prompt[i]:
                    firsts[i] = end
                if after[i] == prompt[i] + output[i] - 1:
                    gained += weight[i] * kept(i, firsts[i], end)
                    after[i] = -1
            value = max(value, gained + best(round(end, 9), tuple(after), tuple(round(f, 9) for f in firsts)))
        return value

    # Who has no limits has only to finish, which it can do when all others are gone.
    free = [min(ttft[i], tpot[i], e2e[i]) == np.inf for i in range(n)]
    start = tuple(-1 if none else 0 for none in free)
    gained = sum(w for w, none in zip(weight, free, strict=True) if none)
    return float((gained + best(0.0, start, (0.0,) * n)) / sum(weight))


TINY = EngineLimits(max_num_seqs=2, max_num_batched_tokens=3, kv_blocks=4, block_tokens=2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.05]), st.booleans())
def test_not_below_the_optimum(seed: int, base_s: float, knee: bool) -> None:
    """Against all schedules of a tiny engine, whatever of a step costs time."""
    rng = np.random.default_rng(seed)
    steps = StepTimeModel(
        base_s=base_s, prefill_token_s=rng.uniform(0, 0.02), attention_work_s=rng.uniform(0, 0.002),
        sequence_s=rng.uniform(0, 0.02), kv_token_s=rng.uniform(0, 0.005),
        knee_tokens=2 * knee, knee_token_s=0.01 * knee,
    )  # fmt: skip
    n = 3
    kinds = rng.integers(0, 2, (3, n)).astype(bool)
    work = replace(
        Workload.plain(
            np.round(np.sort(rng.choice([0.0, 0.02, 0.1], n)), 9),
            rng.integers(1, 4, n),
            rng.integers(1, 4, n),
        ),
        weight=rng.choice([1.0, 2.0, 5.0], n),
        ttft_s=np.where(kinds[0], rng.uniform(0.01, 0.3, n), np.inf),
        tpot_s=np.where(kinds[1], rng.uniform(0.01, 0.15, n), np.inf),
        e2e_s=np.where(kinds[2], rng.uniform(0.02, 0.5, n), np.inf),
    )
    assert attainment_bound(work, Engine(limits=TINY, step_time=steps)) >= optimum(work, TINY, steps) - 1e-6


def decoders(n: int, answer: int, pace_s: float, due_s: float) -> Workload:
    """So many requests of one prompt token at time 0, due after `due_s`, that keep `pace_s`."""
    work = Workload.plain(np.zeros(n), np.ones(n, dtype=np.int64), np.full(n, answer))
    return replace(work, ttft_s=np.full(n, due_s), tpot_s=np.full(n, pace_s))


def test_pace_limits_company() -> None:
    """At three bare steps, 40 of 1,000 answers a step: two thirds of the engine's time are its tokens'."""
    steps = StepTimeModel(base_s=0.02, prefill_token_s=0.0, sequence_s=0.001)
    limits = replace(ENGINE, max_num_seqs=1024, max_num_batched_tokens=8192, kv_blocks=100_000)
    work = decoders(1000, 101, 0.06, 0.5)
    # All within 0.5 + 100 x 0.06 s; a decode step of 40 answers takes 0.06 s: 650 token seconds x 2 / 3.
    assert attainment_bound(work, Engine(limits=limits, step_time=steps)) == pytest.approx(
        6.5 * (2 / 3) / 0.001 / 100 / 1000, abs=2e-3
    )


def test_slots_limit_company() -> None:
    """With two slots the constant time is shared by two."""
    steps = StepTimeModel(base_s=0.1, prefill_token_s=0.0, sequence_s=0.0)
    work = replace(decoders(10, 11, np.inf, np.inf), e2e_s=np.full(10, 2.1))
    bound = attainment_bound(work, Engine(limits=replace(ENGINE, max_num_seqs=2), step_time=steps))
    assert bound == pytest.approx(2 * 2.0 / (10 * 0.1) / 10, abs=1e-6)


def test_memory_limits_company() -> None:
    """With memory for two contexts the constant time is shared by two, however many slots there are."""
    steps = StepTimeModel(base_s=0.1, prefill_token_s=0.0, sequence_s=0.0)
    work = replace(decoders(10, 11, np.inf, np.inf), e2e_s=np.full(10, 2.1), prompt_tokens=np.full(10, 475))
    limits = replace(ENGINE, max_num_seqs=100, kv_blocks=60, max_num_batched_tokens=100_000)
    share = np.mean([475 + k for k in range(10)]) / 960
    assert attainment_bound(work, Engine(limits=limits, step_time=steps)) == pytest.approx(
        2.0 / (10 * 0.1 * share) / 10, abs=1e-6
    )


def test_tokens_limit_prompts() -> None:
    """With a budget of 64 tokens a prompt of 640 needs ten steps."""
    steps = StepTimeModel(base_s=0.1, prefill_token_s=0.0)
    work = Workload.plain(np.zeros(10), np.full(10, 640), np.ones(10, dtype=np.int64))
    work = replace(work, ttft_s=np.full(10, 5.0))
    assert attainment_bound(work, Engine(limits=ENGINE, step_time=steps)) == pytest.approx(0.5, abs=1e-6)


def test_turns_of_a_closed_loop_are_free() -> None:
    """When a turn is sent is up to the schedule, so no window holds it; hopeless ones are missed."""
    steps = StepTimeModel(base_s=0.0, prefill_token_s=1e-2)
    work = Workload.plain(np.zeros(10), np.full(10, 100), np.ones(10, dtype=np.int64))
    work = replace(work, ttft_s=np.full(10, 1.0), session=np.zeros(10, dtype=np.int64), think_s=np.zeros(10))
    assert attainment_bound(work, Engine(limits=ENGINE, step_time=steps)) == 1.0
    assert attainment_bound(work.open_loop(), Engine(limits=ENGINE, step_time=steps)) == pytest.approx(
        0.1, abs=1e-6
    )
    assert (
        attainment_bound(replace(work, ttft_s=np.full(10, 0.5)), Engine(limits=ENGINE, step_time=steps))
        == 0.0
    )


@pytest.mark.parametrize("due_s", [1.0, 3.0, 7.0])
def test_closed_form_of_equal_prompts(due_s: float) -> None:
    steps = StepTimeModel(base_s=0.0, prefill_token_s=1e-2)
    work = Workload.plain(np.zeros(10), np.full(10, 100), np.ones(10, dtype=np.int64))
    work = replace(work, ttft_s=np.full(10, due_s))
    assert attainment_bound(work, Engine(limits=ENGINE, step_time=steps)) == pytest.approx(
        due_s / 10, abs=1e-6
    )


def test_heavier_requests_are_kept() -> None:
    steps = StepTimeModel(base_s=0.0, prefill_token_s=1e-2)
    work = Workload.plain(np.zeros(2), np.full(2, 100), np.ones(2, dtype=np.int64))
    work = replace(work, ttft_s=np.full(2, 1.0), weight=np.array([1.0, 3.0]))
    assert attainment_bound(work, Engine(limits=ENGINE, step_time=steps)) == pytest.approx(0.75, abs=1e-6)


def test_hopeless_alone_counts_as_missed() -> None:
    work = Workload.plain(np.array([0.0, 50.0]), np.array([100, 100]), np.array([10, 10]))
    work = replace(work, e2e_s=np.array([0.05, np.inf]))
    assert attainment_bound(work, Engine(limits=ENGINE, step_time=STEPS)) == pytest.approx(0.5)


def test_nothing_to_bound() -> None:
    none = np.empty(0)
    empty = Workload.plain(none, none.astype(np.int64), none.astype(np.int64))
    assert attainment_bound(empty, Engine(limits=ENGINE, step_time=STEPS)) == 1.0
    free = Workload.plain(np.zeros(3), np.full(3, 50), np.full(3, 5))
    assert attainment_bound(free, Engine(limits=ENGINE, step_time=STEPS)) == 1.0


def timed(**parts: float) -> Engine:
    """An engine with a budget of 100 tokens whose steps take these parts."""
    steps = StepTimeModel(**({"base_s": 0.0, "prefill_token_s": 0.0} | parts))  # type: ignore[arg-type]
    limits = EngineLimits(max_num_seqs=4, max_num_batched_tokens=100, kv_blocks=1000, block_tokens=16)
    return Engine(limits=limits, step_time=steps)


def single(**limits: float) -> Workload:
    """One request of 250 prompt and 5 answer tokens."""
    one = Workload.plain(np.zeros(1), np.array([250]), np.array([5]))
    return replace(one, **{name: np.array([value]) for name, value in limits.items()})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "prefill", "decode"),
    [
        ("base_s", 3, 4),  # three steps of prompt; four further tokens, a step each
        ("prefill_token_s", 250, 0),
        ("attention_work_s", 250 * 125, 0),  # every token reads half the prompt on average
        ("sequence_s", 0, 4),
        ("kv_token_s", 0, 4 * 250 + 6),  # the prompt, and 0 + 1 + 2 + 3 tokens of the answer
    ],
)
def test_what_a_request_needs_alone(part: str, prefill: float, decode: float) -> None:
    """Each part of the step time in closed form."""
    spans = spans_of(single(), timed(**{part: 0.5}))
    assert spans.prefill_s.tolist() == [0.5 * prefill]
    assert spans.decode_s.tolist() == [0.5 * decode]
    assert (spans.new.tolist(), spans.hit.tolist(), spans.decodes.tolist()) == ([250], [0], [4])


@pytest.mark.parametrize(
    ("limits", "first_s", "last_s", "pace_s"),
    [
        ({}, np.inf, np.inf, np.inf),
        ({"ttft_s": 9.0}, 9.0, np.inf, np.inf),
        ({"e2e_s": 20.0}, 16.0, 20.0, 17 / 4),  # after the first token four steps of a second are to come
        ({"ttft_s": 9.0, "tpot_s": 2.0}, 9.0, 17.0, 2.0),
        ({"ttft_s": 9.0, "tpot_s": 2.0, "e2e_s": 12.0}, 8.0, 12.0, 2.0),
        ({"tpot_s": 2.0}, np.inf, np.inf, 2.0),
    ],
)
def test_when_a_request_is_due(
    limits: dict[str, float], first_s: float, last_s: float, pace_s: float
) -> None:
    """The latest first and last token with which all limits are kept, and the mean time for a token."""
    spans = spans_of(single(**limits), timed(base_s=1.0))
    assert (spans.first_s.tolist(), spans.last_s.tolist()) == ([first_s], [last_s])
    assert spans.pace_s.tolist() == [pace_s]


@pytest.mark.parametrize(("kind", "edge_s"), [("ttft_s", 3.0), ("tpot_s", 1.0), ("e2e_s", 7.0)])
def test_what_is_possible_alone_is_so_at_equality(kind: str, edge_s: float) -> None:
    """Three steps of prompt, four of answer, a second each."""
    engine = timed(base_s=1.0)
    assert possible_alone(single(**{kind: edge_s}), engine).tolist() == [True]
    assert possible_alone(single(**{kind: edge_s - 1e-6}), engine).tolist() == [False]
    assert attainment_bound(single(**{kind: edge_s}), engine) == 1.0
    assert attainment_bound(single(**{kind: edge_s - 1e-6}), engine) == 0.0


def test_an_answer_of_one_token_has_no_pace() -> None:
    """Nor a decode step; its TPOT limit binds nobody."""
    one = replace(single(tpot_s=1e-9, ttft_s=5.0), output_tokens=np.array([1]))
    spans = spans_of(one, timed(base_s=1.0))
    assert (spans.decodes.tolist(), spans.decode_s.tolist()) == ([0], [0.0])
    assert (spans.last_s.tolist(), spans.pace_s.tolist()) == ([5.0], [np.inf])
    assert spans.possible.tolist() == [True]


def test_prefixes_that_others_have_may_be_cached() -> None:
    """Whole leading blocks that another request has too, never the whole prompt; only with a prefix cache."""
    ids = [[1, 2, 3], [1, 2, 9], [1, 2, 3], [7], []]
    work = Workload.plain(np.zeros(5), np.array([48, 60, 100, 40, 40]), np.ones(5, dtype=np.int64))
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    blocks = PrefixBlocks(
        offsets=offsets, ids=np.array([i for row in ids for i in row], dtype=np.int64), block_tokens=16
    )  # fmt: skip
    shared = replace(work, prefix=blocks)
    plain = timed(base_s=1.0)
    cached = replace(plain, limits=replace(plain.limits, prefix_cache=True))
    assert spans_of(shared, cached).hit.tolist() == [47, 32, 48, 0, 0]
    assert spans_of(shared, cached).new.tolist() == [1, 28, 52, 40, 40]
    assert spans_of(shared, plain).hit.tolist() == [0] * 5
    # A cached prefix is read by the tokens that are computed.
    works = spans_of(shared, cached).work.tolist()
    assert works == [1 * 47.5, 28 * 46.0, 52 * 74.0, 40 * 20.0, 40 * 20.0]


def test_only_who_is_there_can_share_a_step() -> None:
    """Answers far apart in time share no steps, so each pays the constant time alone."""
    steps = {"base_s": 0.1}
    apart = replace(decoders(8, 11, np.inf, np.inf), e2e_s=np.full(8, 1.2))
    apart = replace(apart, arrival_s=np.repeat([0.0, 100.0], 4), prompt_tokens=np.full(8, 1))
    engine = replace(timed(**steps), limits=replace(timed().limits, max_num_seqs=64))
    # Four at a time share ten steps of 0.1 s within 1.1 s: all can be kept.
    assert attainment_bound(apart, engine) == pytest.approx(1.0)
    # Of twelve at one instant on four slots, 1.1 s of steps hold 11 / 10 of four.
    together = replace(decoders(12, 11, np.inf, np.inf), e2e_s=np.full(12, 1.2))
    assert attainment_bound(together, timed(**steps)) == pytest.approx(4 * 1.1 / 12, abs=1e-6)


def test_up_to_the_knee_tokens_are_free() -> None:
    """Ten prompts, each a step of one second up to the knee: half of them are in time after five."""
    engine = timed(base_s=1.0, knee_tokens=100, knee_token_s=0.01)
    work = Workload.plain(np.zeros(10), np.full(10, 100), np.ones(10, dtype=np.int64))
    work = replace(work, ttft_s=np.full(10, 5.0))
    assert attainment_bound(work, engine) == pytest.approx(0.5, abs=1e-6)
