"""What every policy must do, whatever its idea."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import Engine
from slosched.core.errors import InputError
from slosched.core.limits import EngineLimits
from slosched.core.snapshot import Snapshot
from slosched.core.steptime import StepTimeModel
from slosched.core.workload import Workload
from slosched.policies import POLICIES, policy
from slosched.simulator import StepRecord, simulate

RandomSnapshot = Callable[..., Snapshot]
NAMES = list(POLICIES)
MODEL = StepTimeModel(base_s=0.004, prefill_token_s=3e-5, sequence_s=4e-5, kv_token_s=3e-8)


def overloaded(seed: int) -> tuple[Workload, EngineLimits]:
    """Thirty requests at once on an engine with little memory, some past hope from the start."""
    rng = np.random.default_rng(seed)
    n = 30
    work = Workload.plain(
        np.sort(rng.random(n) * 0.5), rng.integers(1, 200, size=n), rng.integers(1, 60, size=n)
    )
    limits = EngineLimits(
        max_num_seqs=int(rng.integers(1, 8)),
        max_num_batched_tokens=int(rng.choice([8, 64, 256])),
        kv_blocks=int(rng.integers(20, 60)),
    )
    return (
        replace(
            work,
            ttft_s=np.where(rng.random(n) < 0.5, 0.001 + rng.random(n), np.inf),
            tpot_s=np.where(rng.random(n) < 0.5, 0.004 + 0.01 * rng.random(n), np.inf),
            e2e_s=np.where(rng.random(n) < 0.5, 0.01 + 3 * rng.random(n), np.inf),
            weight=rng.choice([0.0, 1.0, 2.0], size=n),
            priority=rng.integers(0, 3, size=n),
            atoms=np.sort(np.maximum(1.0, work.atoms * rng.lognormal(0, 1, work.atoms.shape)), axis=1),
        ),
        limits,
    )


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_lawful(name: str, random_snapshot: RandomSnapshot) -> None:
    """A plan names only rows of its queue, each once, and no prefill limit that stops all work."""
    for seed in range(60):
        snapshot = random_snapshot(seed)
        plan = policy(name).plan(snapshot)
        plan.check()
        assert plan.policy == name
        assert sorted([*plan.sequence.tolist(), *plan.reject.tolist()]) == sorted(snapshot.waiting.tolist())
        assert plan.prefill_tokens is None or plan.prefill_tokens >= 1


@pytest.mark.parametrize("name", NAMES)
def test_empty_and_single(name: str, random_snapshot: RandomSnapshot) -> None:
    """A queue of nobody and a queue of one leave nothing to order."""
    for running in (0, 3):
        empty = policy(name).plan(random_snapshot(1, waiting=0, running=running))
        empty.check()
        assert len(empty.sequence) == 0
        single = policy(name).plan(random_snapshot(2, waiting=1, running=running))
        single.check()
        assert [*single.sequence.tolist(), *single.reject.tolist()] == single.snapshot.waiting.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_deterministic(name: str, random_snapshot: RandomSnapshot) -> None:
    """Two fresh objects that see the same snapshots make the same plans."""
    plans = []
    for _ in range(2):
        fresh = policy(name, seed=3)
        snapshots = [random_snapshot(7, waiting=20), random_snapshot(7, waiting=20, step=41)]
        plans.append([fresh.plan(s) for s in snapshots])
    for a, b in zip(*plans, strict=True):
        assert a.sequence.tolist() == b.sequence.tolist()
        assert a.preempt.tolist() == b.preempt.tolist()
        assert a.prefill_tokens == b.prefill_tokens


@pytest.mark.parametrize("name", NAMES)
def test_names_and_rows_do_not_matter(name: str, random_snapshot: RandomSnapshot) -> None:
    """Other request ids and other row numbers give the same order of the same requests."""
    for seed in range(8):
        ids = policy(name).plan(random_snapshot(seed)).request_ids
        other = policy(name).plan(random_snapshot(seed, label="z")).request_ids
        assert [i.removeprefix("z") for i in other] == [i.removeprefix("r") for i in ids]
        assert policy(name).plan(random_snapshot(seed, shuffle=True)).request_ids == ids


@pytest.mark.parametrize("name", NAMES)
def test_the_snapshot_is_left_alone(name: str, random_snapshot: RandomSnapshot) -> None:
    """Planning changes no column of the table and neither queue."""
    snapshot, before = random_snapshot(11, waiting=15), random_snapshot(11, waiting=15)
    policy(name).plan(snapshot)
    assert snapshot.waiting.tolist() == before.waiting.tolist()
    assert snapshot.running.tolist() == before.running.tolist()
    for column, value in vars(before.table).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(snapshot.table, column), value, equal_nan=True), column


@pytest.mark.parametrize("name", NAMES)
def test_serves_everybody_without_idling(name: str) -> None:
    """In overload all but the refused finish, and no step goes by without tokens while requests wait."""
    for seed in range(3):
        work, limits = overloaded(seed)
        logs: list[StepRecord] = []
        run = simulate(work, name, engine=Engine(limits=limits, step_time=MODEL), record=logs)
        refused = run.outcomes.rejected
        assert refused is not None
        assert (run.outcomes.finished | refused).all()
        assert policy(name).rejects or not refused.any()
        assert len(np.unique(logs[0].step)) == run.log.steps


@pytest.mark.parametrize("name", NAMES)
def test_documented(name: str) -> None:
    """Every policy says what it is, and carries its own name."""
    factory = POLICIES[name]
    assert factory.__doc__
    assert len(factory.__doc__) > 20
    assert policy(name).name == name


@pytest.mark.parametrize(
    ("name", "parameters", "field"),
    [
        ("huang", {"max_batch": 0}, "max_batch"),
        ("huang", {"replan_s": 0.0}, "replan_s"),
        ("huang", {"replan_s": float("nan")}, "replan_s"),
        ("huang", {"most": 0}, "most"),
        ("ltr", {"starvation_steps": 0}, "starvation_steps"),
        ("ltr", {"quantum_steps": 0}, "quantum_steps"),
        ("ltr", {"most_preemptions": -1}, "most_preemptions"),
        ("trail", {"preemptible_share": 1.1}, "preemptible_share"),
        ("trail", {"preemptible_share": float("nan")}, "preemptible_share"),
        ("trail", {"margin_tokens": -1.0}, "margin_tokens"),
        ("las", {"quantum_tokens": 0}, "quantum_tokens"),
        ("mlfq", {"quantum_s": 0.0}, "quantum_s"),
        ("mlfq", {"growth": 1.0}, "growth"),
        ("mlfq", {"growth": float("inf")}, "growth"),
        ("mlfq", {"levels": 0}, "levels"),
        ("mlfq", {"promote_s": float("nan")}, "promote_s"),
        ("plas", {"quantum_tokens": 0}, "quantum_tokens"),
        ("atlas", {"promote_ratio": 0.0}, "promote_ratio"),
        ("tie", {"decay": 0.0}, "decay"),
        ("tie", {"decay": 1.1}, "decay"),
        ("tie", {"decay_s": 0.0}, "decay_s"),
        ("lpm", {"most_sorted": -1}, "most_sorted"),
        ("hrrn-sglang", {"most_sorted": -1}, "most_sorted"),
        ("uniboost", {"gamma": 0.001}, "gamma"),
        ("uniboost", {"guard_tokens": 0}, "guard_tokens"),
        ("uniboost", {"token_s": 0.0}, "token_s"),
        ("uniboost", {"decode_weight": -1.0}, "decode_weight"),
        ("uniboost-sglang", {"bounds": (0.0, 1.0)}, "bounds"),
        ("uniboost-sglang", {"gamma": float("nan")}, "gamma"),
        ("uniboost-sglang", {"token_s": float("inf")}, "token_s"),
        ("past-future", {"start_tokens": 0.5}, "start_tokens"),
        ("past-future", {"least_tokens": 0}, "least_tokens"),
        ("slai", {"most": 0}, "most"),
        ("slai", {"offset_steps": -1.0}, "offset_steps"),
        ("slai", {"tight_offset_steps": -1.0}, "tight_offset_steps"),
        ("slosched", {"starvation_s": 0.0}, "starvation_s"),
        ("slosched", {"starvation_s": float("nan")}, "starvation_s"),
        ("slosched", {"rescue_share": 0.0}, "rescue_share"),
        ("slosched", {"hopeless": "drop"}, "hopeless"),
        ("slosched", {"least_chance": 0.0}, "least_chance"),
        ("slosched", {"fairness": -1.0}, "fairness"),
        ("slosched", {"fairness_s": 0.0}, "fairness_s"),
        ("slosched", {"tenant_shares": {"a": 0.0}}, "tenant_shares of a"),
        ("slosched", {"programs": "yes"}, "programs"),
    ],
)
def test_bad_parameters_are_named(name: str, parameters: dict[str, Any], field: str) -> None:
    """A parameter out of its domain is refused by name."""
    with pytest.raises(InputError, match=f"{field} must be"):
        policy(name, seed=0, **parameters)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_parameters_are_refused(name: str) -> None:
    """A parameter the policy does not have is refused, and its own are listed."""
    with pytest.raises(InputError, match=f"parameter of policy '{name}' must be one of".replace("+", r"\+")):
        policy(name, nonsense=1)


def test_unknown_names_are_refused() -> None:
    """An unknown name is answered with the known ones."""
    with pytest.raises(
        InputError, match=r"policy must be one of fcfs, .*slosched, or package.module:Class, got 'SJF'"
    ):
        policy("SJF")
