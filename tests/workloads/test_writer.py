"""What is written is read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.workload import COLUMNS
from slosched.workloads import PrefixBlocks, Workload, generate, read, write

LABEL = st.text("abcxyz -_é\"'", min_size=1, max_size=6).filter(lambda s: s == s.strip())


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Workloads that use every column."""
    n = draw(st.integers(1, 6))

    def floats(low: float, high: float) -> np.ndarray:
        return np.array(draw(st.lists(st.floats(low, high), min_size=n, max_size=n)), dtype=np.float64)

    def limits() -> np.ndarray:
        value = st.one_of(st.just(np.inf), st.floats(1e-6, 1e6))
        return np.array(draw(st.lists(value, min_size=n, max_size=n)))

    def integers(low: int, high: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)), dtype=np.int64)

    labels = tuple(draw(st.lists(LABEL, min_size=1, max_size=3, unique=True)))
    prompt = integers(1, 100_000)
    counts = np.minimum(integers(0, 4), -(-prompt // 16))
    prefix = PrefixBlocks(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=np.arange(int(counts.sum())) % 3,
        block_tokens=16,
    )
    return Workload(
        name="w",
        arrival_s=np.sort(floats(0, 1e6)),
        prompt_tokens=prompt,
        output_tokens=integers(1, 100_000),
        ttft_s=limits(),
        tpot_s=limits(),
        e2e_s=limits(),
        weight=floats(0, 1e6),
        priority=integers(-(2**31), 2**31),
        class_index=integers(0, len(labels) - 1),
        tenant_index=integers(0, len(labels) - 1),
        session=integers(-1, 3),
        think_s=np.array(draw(st.lists(st.one_of(st.just(-1.0), st.floats(0, 1e6)), min_size=n, max_size=n))),
        atoms=np.sort(floats(1, 1e6)[:, None] * np.linspace(1, draw(st.floats(1, 3)), FORECAST_ATOMS)),
        classes=labels,
        tenants=labels,
        prefix=prefix,
        request_ids=draw(st.sampled_from([(), tuple(f"r{i}" for i in range(n))])),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workload=workloads(), ending=st.sampled_from(["csv", "jsonl", "csv.gz", "jsonl.gz"]))
def test_round_trip(tmp_path: Path, workload: Workload, ending: str) -> None:
    """Every number, label and id comes back exactly, in each form."""
    again = read(write(workload, tmp_path / f"w.{ending}"))
    for name in COLUMNS:
        if name not in ("class_index", "tenant_index", "session"):
            assert np.array_equal(getattr(again, name), getattr(workload, name)), name
    for index, labels in (("class_index", "classes"), ("tenant_index", "tenants")):
        ours = [getattr(workload, labels)[i] for i in getattr(workload, index).tolist()]
        assert [getattr(again, labels)[i] for i in getattr(again, index).tolist()] == ours
    assert again.request_ids == workload.request_ids
    assert np.array_equal(again.previous, workload.previous)
    assert np.array_equal(again.turn, workload.turn)
    assert workload.prefix is not None
    if len(workload.prefix.ids):
        assert again.prefix is not None
        assert np.array_equal(again.prefix.ids, workload.prefix.ids)
        assert np.array_equal(again.prefix.offsets, workload.prefix.offsets)


@pytest.mark.parametrize("ending", ["csv", "jsonl.gz"])
def test_same_workload_same_bytes(tmp_path: Path, ending: str) -> None:
    """Writing twice gives the same bytes, so that files can be compared and cached."""
    workload = generate("mixed", rate_per_s=2.0, duration_s=20.0, seed=1)
    one, two = (write(workload, tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
    assert one == two


def test_generated_round_trip(tmp_path: Path) -> None:
    """A generated workload with prefixes and forecasts survives a round trip."""
    workload = generate("agentic", rate_per_s=1.0, duration_s=60.0, seed=1)
    again = read(write(workload, tmp_path / "w.jsonl"))
    assert np.array_equal(again.atoms, workload.atoms)
    assert workload.prefix is not None
    assert again.prefix is not None
    assert np.array_equal(again.prefix.ids, workload.prefix.ids)
