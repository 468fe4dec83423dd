"""Scenarios rerun from their file to the digit; the population keeps what it promises; the unit of load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slosched.core.engine import PRESETS, Engine, EngineLimits, preset
from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import COLUMNS, Workload
from slosched.lab.named_cells import NAMED, named
from slosched.lab.offered_load import cached_tokens, demand, offered_load
from slosched.lab.population import LEAST_LIMITS, LEAST_REQUESTS, LEAST_S, MOST_S, draw
from slosched.lab.scenarios import Scenario, Traffic
from slosched.simulator import simulate
from slosched.workloads.prefix import shared_prefix

SEEDS = range(60)


def same(a: Workload, b: Workload) -> bool:
    equal = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)
    if a.prefix is None or b.prefix is None:
        return equal and a.prefix is b.prefix
    return equal and np.array_equal(a.prefix.ids, b.prefix.ids)


@pytest.mark.parametrize("seed", [0, 6, 12, 24])
@pytest.mark.parametrize("name", ["scenario.yaml", "scenario.json"])
def test_a_scenario_reruns_from_its_file_to_the_digit(seed: int, name: str, tmp_path: Path) -> None:
    scenario = draw(seed)
    if name.endswith("json"):
        (tmp_path / name).write_text(scenario.model_dump_json())
    else:
        scenario.save(tmp_path / name)
    again = Scenario.load_file(tmp_path / name)
    assert again == scenario
    assert again.engine == scenario.engine
    assert same(again.workload(), scenario.workload())


def test_every_draw_is_long_enough_or_a_burst() -> None:
    for seed in SEEDS:
        scenario = draw(seed)
        real = scenario.traffic()
        work = real.workload
        assert len(work) == scenario.requests
        assert work.arrival_s[-1] < real.window_s
        assert real.window_s / MOST_S < 1.2
        if scenario.burst:
            continue
        tightest = min(work.ttft_s.min(), work.e2e_s.min())
        assert scenario.requests >= LEAST_REQUESTS
        assert real.window_s >= LEAST_S
        assert tightest == np.inf or real.window_s >= LEAST_LIMITS * tightest


def test_the_population_is_wide() -> None:
    drawn = [draw(seed) for seed in range(200)]
    assert {s.preset for s in drawn} == set(PRESETS)
    assert {len(s.classes) for s in drawn} == {1, 2, 3, 4}
    assert {s.forecast.partition(":")[0] for s in drawn} >= {"oracle", "predictor-5", "class-mean", "hints"}
    assert min(s.max_num_seqs for s in drawn) == 64
    assert max(s.max_num_seqs for s in drawn) == 1024
    assert min(s.max_num_batched_tokens for s in drawn) == 1024
    assert max(s.max_num_batched_tokens for s in drawn) == 16_384
    loads = [s.load for s in drawn]
    assert min(loads) < 0.5
    assert max(loads) > 2
    assert any(s.heavy_share for s in drawn)
    assert any(s.greedy_share for s in drawn)
    assert any(s.burst for s in drawn)
    assert any(t.per_request for s in drawn for t in s.classes)
    limits = {(bool(t.ttft_x), bool(t.tpot_x), bool(t.e2e_x)) for s in drawn for t in s.classes}
    assert len(limits) >= 5


@pytest.mark.parametrize("name", NAMED)
def test_named_cells(name: str) -> None:
    scenario = named(name, 1)
    real = scenario.traffic()
    assert scenario.burst or real.window_s > 60
    assert not same(real.workload, named(name, 2).workload())
    assert offered_load(real.workload, scenario.engine, duration_s=real.window_s) == pytest.approx(
        scenario.load, rel=0.15
    )


def test_limits_are_multiples_of_the_unloaded_latency() -> None:
    own = Traffic(name="a", family="conversation", ttft_x=(3.0, 3.0), tpot_x=(2.0, 2.0), per_request=True)
    scenario = Scenario(classes=(own,), requests=400, load=0.5)
    work, model = scenario.workload(), scenario.engine.step_time
    long = work.prompt_tokens > 3000
    alone = [
        sum(
            float(model.predict(min(2048, p - at), min(2048, p - at) * (at + min(2048, p - at) / 2)))
            for at in range(0, p, 2048)
        )
        for p in work.prompt_tokens[long].tolist()
    ]
    assert long.any()
    assert work.ttft_s[long] == pytest.approx(np.maximum(0.2, 3.0 * np.array(alone)))
    assert 2 * model.base_s < work.tpot_s[0] < 2.2 * model.base_s + 1e-3
    assert np.all(np.isinf(work.e2e_s))


def test_heavy_requests_come_first_in_vllms_priorities() -> None:
    work = named("heavy-minority").workload()
    heavy = work.weight > 1
    assert 0.05 < heavy.mean() < 0.15
    assert work.priority[heavy].max() < work.priority[~heavy].min()


def test_a_greedy_tenant_sends_its_share() -> None:
    work = named("greedy-tenant").workload()
    share = np.bincount(work.tenant_index) / len(work)
    assert share[0] == pytest.approx(0.7, abs=0.05)
    assert len(share) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes: []", "classes"),
        ("classes: [{name: a, family: chat}]\nlod: 1", "lod"),
        ("classes: [{name: a, family: chatter}]", "family must be one of chat"),
        ("classes: [{name: a, family: chat, ttft_x: [3, 2]}]", "ttft_x must be two ascending"),
        ("classes: [{name: a, family: chat}]\nload: -1", "load"),
        ("classes: [{name: a, family: chat}]\nforecast: crystal", "forecast must be one of"),
        ("classes: [{name: a, family: chat}, {name: a, family: code}]", "distinct names"),
        ("[1, 2]", "must hold keys"),
    ],
)
def test_a_bad_file_is_explained(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        Scenario.load_file(path)


def test_draw_refuses_seeds_outside_its_domain() -> None:
    with pytest.raises(InputError, match="from 0 to 19999, got 20000"):
        draw(20_000)


def test_load_of_one_request_by_hand() -> None:
    """One slot: a request costs its own steps; two slots: they share the base."""
    model = StepTimeModel(base_s=0.01, prefill_token_s=1e-4, sequence_s=1e-3, kv_token_s=1e-6)
    one = Engine(name="x", limits=EngineLimits(max_num_seqs=1, max_num_batched_tokens=64), step_time=model)
    prompt, output, none = np.array([100]), np.array([11]), np.array([0])
    work = 100e-4 + 10e-3 + 1e-6 * sum(100 + k for k in range(1, 11))
    # Two prefill steps of at most 64 tokens, ten decode steps.
    assert demand(prompt, output, none, one).seconds == pytest.approx(work + 12 * 0.01)
    two = one.with_limits(max_num_seqs=2)
    assert demand(prompt, output, none, two).seconds == pytest.approx(work + 6 * 0.01)
    # At most 64 tokens a step: no more slots help beyond 110 / 64 steps a request.
    many = one.with_limits(max_num_seqs=1000)
    assert demand(prompt, output, none, many).seconds == pytest.approx(work + 110 / 64 * 0.01)
    # Memory for three.
    small = many.with_limits(kv_tokens=320)
    held = (2 * 100 + 1055) / 12
    assert demand(prompt, output, none, small).running == pytest.approx(320 / held)


def test_cached_tokens_are_those_seen_before() -> None:
    prefix = shared_prefix(np.array([0, 1, 0]), np.array([100, 64, 130]), np.array([0, 0, 100]), 32)
    work = Workload.plain(np.arange(3.0), np.array([100, 64, 130]), np.array([1, 1, 1]), prefix=prefix)
    assert cached_tokens(work).tolist() == [0, 0, 96]


@pytest.mark.parametrize("name", ["h100-llama-3.1-8b", "a100-mistral-7b", "rtxpro6000x2-qwen3-32b"])
@pytest.mark.parametrize("family", ["conversation", "code", "reasoning"])
def test_load_1_is_what_a_full_engine_can_do(name: str, family: str) -> None:
    """Everything at once: the engine is never short of work, and takes what the unit says it takes."""
    scenario = Scenario(
        preset=name, kv_tokens=preset(name).limits.kv_tokens, classes=(Traffic(name="a", family=family),),
        requests=1500, load=1.0,
    )  # fmt: skip
    real = scenario.traffic()
    run = simulate(
        replace(real.workload, arrival_s=np.zeros(1500)), "fcfs", engine=scenario.engine,
    )  # fmt: skip
    ratio = float(np.quantile(run.outcomes.finish_s, 0.9)) / (0.9 * real.window_s)
    assert 0.85 < ratio < 1.25
