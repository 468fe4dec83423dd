"""The runner of studies, capacity, and where requests come from."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from slosched.core.engine import Engine, preset
from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel
from slosched.lab.bench import Bench
from slosched.lab.offered_load import offered_load
from slosched.lab.parallel import Workers
from slosched.lab.study import TOLERANCE, Study, capacity
from slosched.workloads import Workload
from slosched.workloads.sources import (
    Generated,
    Replayed,
    TraceFile,
    parse_slo,
    trace_source,
)

ENGINE = preset("h100-llama-3.1-8b")
DATA = Path(os.environ.get("SLOSCHED_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data")


@dataclass(frozen=True)
class Metronome:
    """One-token requests at even gaps that must end within `limit_s`."""

    limit_s: float = 0.15

    def __call__(self, rate_rps: float, seed: int) -> Workload:
        """A hundred of them."""
        n = 100
        plain = Workload.plain(np.arange(n) / rate_rps, np.full(n, 1000), np.ones(n, dtype=np.int64))
        return plain.rows(np.arange(n)) if self.limit_s == math.inf else _limited(plain, self.limit_s)


def _limited(plain: Workload, limit_s: float) -> Workload:
    from dataclasses import replace

    return replace(plain, e2e_s=np.full(len(plain), limit_s))


def metronome(limit_s: float = 0.15) -> Bench:
    """An engine whose steps take 0.1 s whatever is in them, and which takes one request a step."""
    from slosched.core.engine import EngineLimits

    limits = EngineLimits(max_num_batched_tokens=1000, max_num_seqs=1)
    return Bench(source=Metronome(limit_s), engine=Engine(limits=limits, step_time=StepTimeModel(base_s=0.1)))


def square(shared: int, cell: int) -> int:
    """A task for workers."""
    if cell < 0:
        raise InputError(f"cell must be at least 0, got {cell!r}.")
    return shared * cell * cell


def test_capacity_in_closed_form() -> None:
    """Ten requests a second keep the engine full: just there the queue starts to grow and limits break."""
    found = capacity(metronome(), "fcfs", seeds=(0, 1))
    # Over 100 requests a backlog of half a step at the ninetieth is still in time.
    exact = 10.0 / (1 - 0.5 / 89)
    for rate in found.rates_rps:
        assert exact / (1 + TOLERANCE) - 1e-6 <= rate <= exact * (1 + 1e-6)
    assert found.spread.low <= found.spread.mean <= found.spread.high


def test_capacity_of_the_impossible_is_zero() -> None:
    """Where even a lone request is late no rate will do."""
    assert capacity(metronome(0.05), "fcfs", seeds=(0,)).rates_rps == (0.0,)


def test_capacity_without_limits_is_refused() -> None:
    """Without any limit every rate is met, and the search stops with a reason."""
    with pytest.raises(InputError, match="too many"):
        capacity(metronome(math.inf), "fcfs", seeds=(0,))


def test_study_covers_the_grid_in_order() -> None:
    """Points cover seeds, rates and policies, loads are of what the engine sustains, progress counts all."""
    seen: list[tuple[int, int]] = []
    study = Study(bench=metronome(), policies=("fcfs", "sjf"), seeds=(3, 4), loads=(0.5, 1.5))
    found = study.run(progress=lambda done, total: seen.append((done, total)))
    assert [(p.seed, round(p.load, 9), p.policy) for p in found.points] == [
        (s, load, p) for s in (3, 4) for load in (0.5, 1.5) for p in ("fcfs", "sjf")
    ]
    assert seen == [(i, 8) for i in range(9)]
    work = metronome().source(1.0, 3)
    one_a_second = offered_load(work, metronome().engine, duration_s=float(len(work)))
    assert found.sustained_rps == pytest.approx(1 / one_a_second)
    assert [run.policy for run in found.details] == ["fcfs", "sjf"]
    assert found.detail_rate_rps == max(found.rates_rps)
    assert not found.queued(min(found.rates_rps))
    assert found.queued(max(found.rates_rps))


@pytest.mark.parametrize(
    "change",
    [
        {"policies": ()}, {"policies": ("nobody",)}, {"policies": ("fcfs", "fcfs")}, {"seeds": ()},
        {"loads": ()}, {"rates_rps": (1.0,)}, {"loads": (0.0,)}, {"loads": (math.nan,)}, {"jobs": 0},
    ],
)  # fmt: skip
def test_bad_studies_are_refused(change: dict[str, object]) -> None:
    """A study checks its grid before it runs."""
    good: dict[str, object] = {"policies": ("fcfs",), "seeds": (0,), "loads": (1.0,)}
    with pytest.raises(InputError):
        Study(bench=metronome(), **(good | change))  # type: ignore[arg-type]


def test_workers_keep_order_and_words_of_errors() -> None:
    """Results come in the order of the cells, and an error of a worker keeps its words."""
    for jobs in (1, 2):
        with Workers(3, jobs) as workers:
            assert workers.map(square, [3, 1, 2]) == [27, 3, 12]
            with pytest.raises(InputError, match="cell must be at least 0, got -1"):
                workers.map(square, [1, -1])


def test_generated_depends_on_rate_and_seed() -> None:
    """A generator gives about the rate asked for, and the same requests for the same seed."""
    source = Generated(duration_s=100.0, engine=ENGINE)
    first, again, other = source(6.0, 1), source(6.0, 1), source(6.0, 2)
    assert 300 < len(first) < 900
    assert np.array_equal(first.prompt_tokens, again.prompt_tokens)
    assert not np.array_equal(first.arrival_s[:50], other.arrival_s[:50])
    with pytest.raises(InputError, match="workload must be one of"):
        Generated(kind="void", engine=ENGINE)


def test_replay_takes_other_minutes_for_each_seed(tmp_path: Path) -> None:
    """A replay has the rate asked for, other requests for other seeds, and the limits of its class."""
    path = tmp_path / "t.csv"
    rows = "".join(f"{2 * i},{100 + i},20\n" for i in range(600))
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    file = TraceFile(path=path, slo_class="chat")
    source = trace_source([file], requests=100, engine=ENGINE)
    first, other = source(5.0, 0), source(5.0, 1)
    assert len(first) == 100
    assert 99 / (first.arrival_s[-1] - first.arrival_s[0]) == pytest.approx(5.0)
    assert not np.array_equal(first.prompt_tokens, other.prompt_tokens)
    assert np.isfinite(first.ttft_s).all()
    with pytest.raises(InputError, match="requests must be"):
        Replayed(trace=first, requests=0)


def test_slo_words() -> None:
    """Limits in words become a class's limits."""
    spec = parse_slo("ttft=1, tpot=0.05,e2e_x=4,weight=2")
    assert (spec.ttft_s, spec.tpot_s, spec.e2e_x, spec.weight) == (1.0, 0.05, 4.0, 2.0)
