"""Routers: the conformance suite on each, and what each is known to do."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import permutations
from typing import ClassVar

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.forecast import LengthForecast
from slosched.core.request import Request, Slo
from slosched.core.steptime import StepTimeModel
from slosched.core.table import Floats, RequestTable
from slosched.routers import ROUTERS, FleetSnapshot, PickRouter, Router, Routing, huang, lane, router
from slosched.routers.books import FleetBooks, PrefixIndex
from slosched.testing.routers import RouterFault, check_router, random_fleet

MODEL = StepTimeModel(base_s=0.008, prefill_token_s=2e-5, sequence_s=5e-5, kv_token_s=6e-8)
ENGINE = Engine(name="one", limits=EngineLimits(prefix_cache=True), step_time=MODEL)
FAST = [*ROUTERS, "slosched:refuse=true", "huang:joint=true", "llm-d-headroom:most=true"]


@pytest.mark.parametrize("name", FAST)
def test_conformance(name: str) -> None:
    """Every router passes the suite that outside routers are given."""
    assert len(check_router(name)) == 5


class Lawless(PickRouter):
    """Sends to engine 9."""

    name: ClassVar[str] = "lawless"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        return 9


class Dice(PickRouter):
    """Draws without a seed of its own."""

    name: ClassVar[str] = "dice"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        return int(np.random.default_rng().choice(fleet.open))


class Writer(PickRouter):
    """Changes what it reads."""

    name: ClassVar[str] = "writer"

    def pick(self, row: int, fleet: FleetSnapshot) -> int:
        fleet.table.weight[row] = 0.25
        return fleet.open[0]


class Sleeper(Router):
    """Holds though it says it does not."""

    name: ClassVar[str] = "sleeper"

    def route(self, fleet: FleetSnapshot) -> Routing:
        return Routing()


class Keeper(Router):
    """Holds every third request for ever."""

    name: ClassVar[str] = "keeper"
    holds = True
    tick_s = 0.05

    def route(self, fleet: FleetSnapshot) -> Routing:
        return Routing(send=tuple((int(row), fleet.open[0]) for row in fleet.pending if row % 3))


@pytest.mark.parametrize(
    ("faulty", "words"),
    [
        (Lawless, "lawful"),
        (Dice, "deterministic"),
        (Writer, "reads_only"),
        (Sleeper, "lawful"),
        (Keeper, "loses"),
    ],
)
def test_the_suite_finds_faults(faulty: type[Router], words: str) -> None:
    """Each kind of fault is found by the check that is there for it."""
    with pytest.raises(RouterFault, match=words):
        check_router(faulty)


def fleet_of(*queues: list[Request], newcomer: Request, engines: list[Engine] | None = None) -> FleetSnapshot:
    """Engines with these requests, the first half of each decoding, and one that waits for a decision."""
    table = RequestTable(200)
    books = FleetBooks(engines or [ENGINE] * len(queues), table)
    for engine, queue in enumerate(queues):
        for i, request in enumerate(queue):
            row = table.add(request)
            books.arrived(row)
            books.sent(row, engine)
            if i < len(queue) // 2:
                table.first_token_s[row], table.generated_tokens[row] = 0.5, 5
    books.arrived(table.add(newcomer))
    return books.snapshot(1.0)


def nobody_decodes(fleet: FleetSnapshot) -> FleetSnapshot:
    """The same fleet, all of whose requests wait."""
    fleet.table.first_token_s[:], fleet.table.generated_tokens[:] = np.nan, 0
    return fleet


def request(name: str, prompt: int = 500, answer: int = 100, weight: float = 1.0, **slo: float) -> Request:
    return Request(
        request_id=name, prompt_tokens=prompt, forecast=LengthForecast.point(answer), slo=Slo(**slo),
        arrival_s=0.9, weight=weight,
    )  # fmt: skip


def sent_to(name: str, fleet: FleetSnapshot) -> int:
    return router(name).route(fleet).send[0][1]


@pytest.mark.parametrize("name", ["least-requests", "least-tokens", "lmetric", "slosched", "power-of-two"])
def test_the_empty_engine_is_taken(name: str) -> None:
    """Between a long queue and none, the newcomer goes where nobody is."""
    queue = [request(f"q{i}", ttft_s=1.0) for i in range(12)]
    assert sent_to(name, fleet_of(queue, [], newcomer=request("new", ttft_s=1.0))) == 1


def test_ours_knows_a_slow_engine() -> None:
    """With equal queues the faster engine is taken, even where the slow one has fewer requests."""
    fields = ("base_s", "prefill_token_s", "sequence_s", "kv_token_s")
    slow = replace(ENGINE, step_time=replace(MODEL, **{f: 4 * getattr(MODEL, f) for f in fields}))
    queues = [[request(f"{e}{i}", ttft_s=2.0) for i in range(n)] for e, n in (("a", 3), ("b", 4))]
    fleet = fleet_of(*queues, newcomer=request("new", ttft_s=0.3), engines=[slow, ENGINE])
    assert sent_to("slosched", fleet) == 1
    assert sent_to("least-requests", fleet) == 0


def test_ours_counts_what_is_served_before() -> None:
    """A short request goes where less is before it, though there is more work in all behind it."""
    short = [request(f"s{i}", prompt=400, answer=60) for i in range(40)]
    long = [request(f"l{i}", prompt=16_000, answer=400) for i in range(3)]
    fleet = nobody_decodes(fleet_of(short, long, newcomer=request("new", prompt=800, answer=80)))
    assert fleet.tokens_ahead()[1] > 2 * fleet.tokens_ahead()[0]
    assert sent_to("slosched", fleet) == 1
    assert sent_to("least-tokens", fleet) == 0


@pytest.mark.parametrize(("limit", "place"), [(0.11, 1), (5.0, 0)])
def test_ours_does_not_count_who_is_lost(limit: float, place: int) -> None:
    """An engine whose queue has lost its limits counts as empty; the same queue with time left does not."""
    queues = [
        [request(f"a{i}", prompt=900, ttft_s=5.0) for i in range(4)],
        [request(f"b{i}", prompt=900, ttft_s=limit) for i in range(12)],
    ]
    fleet = nobody_decodes(fleet_of(*queues, newcomer=request("new", prompt=900, ttft_s=5.0)))
    assert len(fleet.engines[1].rows) > len(fleet.engines[0].rows)
    assert sent_to("slosched", fleet) == place


def a_line(rng: np.random.Generator, engine: Floats, n: int) -> tuple[Floats, Floats]:
    """A random line, three of it decoding, two lost, and a newcomer, who all have limits."""
    jobs = np.zeros((n + 1, lane.WIDTH))
    jobs[:, lane.PROMPT] = jobs[:, lane.TODO] = rng.integers(1, 4000, n + 1)
    jobs[:, lane.LENGTH], jobs[:, lane.WEIGHT] = rng.integers(1, 500, n + 1), rng.uniform(0.5, 8, n + 1)
    jobs[:, lane.FIRST_DUE] = rng.uniform(2, 20, n + 1)
    jobs[:, lane.E2E_DUE] = np.where(rng.random(n + 1) < 0.5, np.inf, rng.uniform(4, 60, n + 1))
    jobs[:, lane.TPOT] = rng.uniform(0.02, 0.2, n + 1)
    begun = (np.arange(n) < 3).astype(np.int64)
    jobs[:3, lane.GENERATED] = rng.integers(1, 300, 3)
    jobs[4, lane.FIRST_DUE] = jobs[0, lane.E2E_DUE] = 0.0
    new = np.empty(lane.LINE_WIDTH)
    lane.place(jobs[n], False, engine, new)
    return lane.line_up(jobs, np.arange(n), begun, engine), new


def test_gain_and_increase_against_plain_sums() -> None:
    """With and without the newcomer: met weight expected, and weighted completions, written down again."""
    rng = np.random.default_rng(5)

    def sums(line: Floats, engine: Floats, now_s: float) -> tuple[float, float]:
        alive = line[line[:, lane.START_BY] > now_s]
        begun = line[line[:, lane.BEGUN] > 0]
        base, step = engine[lane.BASE], engine[lane.BASE] + begun[:, lane.TOKEN].sum()
        paces = 0.9 * alive[:, lane.PACE]
        pace = min([engine[lane.FULL_STEP], *paces[paces >= step]])
        free, read = max(0.05, 1 - base / pace), max(0.05, 1 - step / pace)
        met, completions, clock = 0.0, 0.0, 0.0
        for place in sorted(line[(line[:, lane.START_BY] > now_s) | (line[:, lane.BEGUN] > 0)].tolist()):
            clock += place[lane.WORK]
            completions += place[lane.WORTH] * clock
        work, prompts, slots, memory = 0.0, 0.0, len(begun), begun[:, lane.HELD].sum()
        decode = step - base
        for place in sorted(alive.tolist()):
            if not place[lane.BEGUN]:
                slots, memory, decode = slots + 1, memory + place[lane.HELD], decode + place[lane.TOKEN]
                held = memory / engine[lane.MEMORY]
                guesses = held * (1 + lane.SPREAD * np.sqrt(3 / slots) * np.linspace(-1, 1, 2001))
                short = float(np.trapezoid(np.maximum(0.0, guesses - 1), dx=1 / 2000))
                own = min(pace, 0.9 * place[lane.PACE])
                room = max(own - base, 0.05 * own)
                over = max(0.0, slots / engine[lane.SLOTS] - 1, decode / room - 1, short)
                full = over * begun[:, lane.LEFT].mean() * step
                first = step + full + (prompts + place[lane.READ]) / read - place[lane.READ]
                bears = place[lane.FIRST_BY] - now_s
                bears_end = place[lane.END_BY] - now_s - place[lane.LEFT] * (step - base)
                kept = [1.0 if bears > 0 else 0.0, 1.0 if bears_end > 0 else 0.0]
                for i, (left, wait) in enumerate(((bears, first), (bears_end, full + work / free))):
                    kept[i] *= 1.0 if wait == 0 else 1 - np.exp(-max(0.0, left) / wait)
                met += place[lane.WORTH] * min(kept)
                work, prompts = work + place[lane.WORK], prompts + place[lane.READ]
        return met, completions

    for factor, slots, memory in ((1.0, 256, 1e6), (2.0, 256, 1e6), (1.0, 5, 1e6), (1.0, 256, 2e4)):
        engine = factor * np.array(lane.engine_columns(ENGINE))
        engine[lane.SLOTS], engine[lane.MEMORY] = slots, memory
        for _ in range(50):
            line, new = a_line(rng, engine, 13)
            gain, increase, seconds, _ = lane.judge(line, new, engine, 1.0)
            with_new = sums(np.vstack([line, new]), engine, 1.0)
            without = sums(line, engine, 1.0)
            assert gain == pytest.approx(with_new[0] - without[0], abs=1e-6)
            if new[lane.START_BY] > 1.0:  # a lost newcomer is placed by what it delays all the same
                assert increase == pytest.approx(with_new[1] - without[1])
            assert seconds == pytest.approx(line[:, lane.WORK].sum() + new[lane.WORK])


def test_ours_shuns_an_engine_where_everybody_is_lost_at_once() -> None:
    """An engine too slow for anybody's limits looks empty, since nobody there can be saved: a trap."""
    slow = replace(ENGINE, step_time=replace(MODEL, base_s=20 * MODEL.base_s))
    queue = [request(f"a{i}", prompt=900, ttft_s=5.0, tpot_s=0.03) for i in range(6)]
    fleet = fleet_of([], queue, newcomer=request("new", ttft_s=5.0, tpot_s=0.03), engines=[slow, ENGINE])
    assert sent_to("slosched", fleet) == 1


def test_ours_prefers_idle_engines_to_those_busy_with_lost_requests() -> None:
    """Who is lost takes time all the same: of engines that gain alike the one with least work is taken."""
    lost = [request(f"a{i}", prompt=900, answer=6000, ttft_s=0.01, e2e_s=0.02) for i in range(2)]
    short = [request(f"b{i}", prompt=50, answer=10, ttft_s=5.0) for i in range(2)]
    for queues, place in (((lost, []), 1), (([], lost), 0), ((lost, short), 1)):
        fleet = fleet_of(*queues, newcomer=request("new", ttft_s=5.0))
        assert sent_to("slosched", fleet) == place


def test_ours_refuses_what_no_engine_can_keep() -> None:
    """Only if told to; best effort is never refused."""
    fleet = fleet_of([], [], newcomer=request("new", prompt=60_000, ttft_s=0.3))
    assert router("slosched:refuse=true").route(fleet).refuse == (0,)
    assert router("slosched").route(fleet).refuse == ()
    fleet = fleet_of([], [], newcomer=request("new", prompt=20_000))
    assert router("slosched:refuse=true").route(fleet).refuse == ()


def test_affinities() -> None:
    """A cached prefix draws its requests until loads are out of balance; a session stays where it is."""
    table = RequestTable(300)
    books = FleetBooks([ENGINE] * 3, table)
    ids = np.arange(20)
    first = table.add(request("a", prompt=320))
    books.arrived(first, ids)
    books.sent(first, 2)
    row = table.add(request("b", prompt=320))
    books.arrived(row, ids)
    assert books.hits(row).tolist() == [0, 0, 319]
    assert sent_to("prefix-affinity", books.snapshot(1.0)) == 2
    assert sent_to("slosched", books.snapshot(1.0)) == 0  # its first prompt costs more than it saves
    books.ended(first)
    assert sent_to("slosched", books.snapshot(1.0)) == 2
    for i in range(130):
        other = table.add(request(f"c{i}"))
        books.arrived(other)
        books.sent(other, 2)
    assert sent_to("prefix-affinity", books.snapshot(1.0)) != 2
    table.prefix_index[row] = 7
    places = {sent_to("session-affinity", books.snapshot(1.0)) for _ in range(5)}
    assert len(places) == 1


def test_annealing_against_enumeration() -> None:
    """On six requests and two engines the scaled search finds what all assignments and orders hold."""
    rng = np.random.default_rng(3)
    for lexicographic in (False, True):
        n, engines = 6, 2
        jobs = huang.Jobs(
            prefill_s=rng.uniform(0.1, 1, (engines, n)), decode_s=rng.uniform(0.5, 4, (engines, n)),
            ttft_s=rng.uniform(0.5, 6, n), e2e_s=rng.uniform(2, 12, n), tpot_s=np.full(n, np.inf),
            tokens=np.full(n, 50.0), waited_s=rng.uniform(0, 1, n), busy_s=np.array([0.0, 1.0]), batch=2,
        )  # fmt: skip
        best = -1.0
        for order in permutations(range(n)):
            for cut in range(n + 1):
                line = np.zeros((engines, n + 1), dtype=np.int64)
                line[0, :cut], line[1, : n - cut] = order[:cut], order[cut:]
                best = max(best, huang.evaluate(jobs, line, np.array([cut, n - cut]), lexicographic))
        line, count = huang.shortest_first(jobs, np.full(2, 1e4), np.full(n, 100.0))
        start = huang.evaluate(jobs, line, count, lexicographic)
        draws = rng.random((huang.LEVELS * huang.MOVES, 6))
        found = huang.anneal(jobs, line, count, draws, 0.05 * start, huang.SCALED_COOLING, lexicographic)
        assert found == pytest.approx(huang.evaluate(jobs, line, count, lexicographic))
        assert sorted(np.concatenate([line[e, : count[e]] for e in range(2)]).tolist()) == list(range(n))
        assert start <= found <= best + 1e-12
        assert found >= 0.99 * best


def test_prefix_index_against_sets() -> None:
    """The index agrees with plain sets kept by least recent use."""
    rng = np.random.default_rng(0)
    index, kept = PrefixIndex([5, 9]), [list[int](), list[int]()]
    for _ in range(400):
        engine, ids = int(rng.integers(2)), rng.integers(0, 14, int(rng.integers(1, 5)))
        if rng.random() < 0.02:
            index.lost(engine)
            kept[engine] = []
        index.sent(engine, ids)
        for one in ids.tolist():
            if one in kept[engine]:
                kept[engine].remove(one)
            kept[engine].append(one)
        kept[engine] = kept[engine][-index.capacity[engine] :]
        asked = rng.integers(0, 14, 6)
        expected = []
        for have in kept:
            count = 0
            while count < len(asked) and int(asked[count]) in have:
                count += 1
            expected.append(count)
        assert index.leading(asked).tolist() == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("best", "router must be one of round-robin"),
        ("random:x=1", "must be left out, since it has none, got 'x'"),
        ("slosched:tolerance=1", "must be one of refuse, floors, got 'tolerance'"),
        ("slosched:refuse=maybe", "true or false"),
        ("polyserve:ratio=1", "ratio"),
        ("slosched:refuse", "must name a class of slosched"),
        ("slosched.routers.base:EngineView", "derived from Router"),
    ],
)
def test_bad_names(name: str, words: str) -> None:
    """Names and parameters outside their domain are told apart."""
    with pytest.raises(InputError, match=words):
        router(name)


@pytest.mark.speed
def test_decisions_are_fast_enough() -> None:
    """Sixteen engines with hundreds of requests: a decision takes milliseconds at most, compiled."""
    fleet = random_fleet(0, engines=16, requests=3200)
    ours = router("slosched")
    ours.route(fleet)
    took_s = []
    for _ in range(20):
        begin = time.thread_time()
        ours.route(fleet)
        took_s.append(time.thread_time() - begin)
    assert min(took_s) < 0.05
