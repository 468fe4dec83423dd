"""Generated workloads follow the traces they are fitted to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from slosched.core.engine import EngineLimits
from slosched.core.errors import InputError
from slosched.core.workload import COLUMNS
from slosched.workloads import MIXES, Workload, describe, fit_to_engine, generate, mix, read
from slosched.workloads.builtin import DEMO_SHARES, KINDS
from slosched.workloads.describe import dispersion
from slosched.workloads.lengths import LengthTable


def same(a: Workload, b: Workload) -> bool:
    """Whether all columns are equal."""
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_seeded(kind: str) -> None:
    """Same seed, same workload; another seed, another one; limits, weights and forecasts are there."""
    one, two, other = (generate(kind, rate_per_s=5.0, duration_s=60.0, seed=s) for s in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)
    assert np.all(np.isfinite(one.ttft_s) | np.isfinite(one.e2e_s))
    assert np.all(one.arrival_s < 60.0)
    assert "generated" in one.source
    assert not np.array_equal(one.atoms[:, 0], one.output_tokens)


@pytest.mark.parametrize(
    ("kind", "file"), [("chat", "azure2023_conv.csv.gz"), ("code", "azure2023_code.csv.gz")]
)
def test_lengths_follow_the_trace(kind: str, file: str, data_folder: Path) -> None:
    """Generated lengths are within 3 % (Kolmogorov-Smirnov distance) of the trace's."""
    real = read(data_folder / "traces" / file)
    made = generate(kind, rate_per_s=50.0, duration_s=600.0, seed=3)
    assert ks_2samp(real.prompt_tokens, made.prompt_tokens).statistic < 0.03
    assert ks_2samp(real.output_tokens, made.output_tokens).statistic < 0.03


def test_arrivals_follow_the_trace(data_folder: Path) -> None:
    """At the trace's rate the generated code bursts have its dispersion of counts at 1, 10 and 60 s."""
    real = read(data_folder / "traces" / "azure2023_code.csv.gz").arrival_s
    rate = len(real) / real[-1]
    made = [generate("code", rate_per_s=rate, duration_s=float(real[-1]), seed=s).arrival_s for s in range(8)]
    for window in (1.0, 10.0, 60.0):
        target = dispersion(real, window)
        assert target is not None
        found = np.mean([d for times in made if (d := dispersion(times, window)) is not None])
        assert found == pytest.approx(target, rel=0.35)


def test_demo_mix() -> None:
    """The demonstration mix has its three classes, shares and kinds of limit, and the rate asked for."""
    w = generate("mixed", rate_per_s=10.0, duration_s=600.0, seed=5)
    assert w.classes == ("chat", "code", "batch")
    shares = np.bincount(w.class_index) / len(w)
    assert shares == pytest.approx(list(DEMO_SHARES.values()), abs=0.1)
    assert len(w) == pytest.approx(6000, rel=0.2)
    kinds = [
        tuple(
            bool(np.isfinite(getattr(w, f)[w.class_index == k]).all()) for f in ("ttft_s", "tpot_s", "e2e_s")
        )
        for k in range(3)
    ]
    assert kinds == [(True, True, False), (False, False, True), (False, False, True)]


def test_agents_share_their_prefixes() -> None:
    """Most prompt blocks of generated agents were in an earlier turn; every block of a prompt has an id."""
    w = generate("agentic", rate_per_s=3.0, duration_s=300.0, seed=1)
    share = describe(w)["prefix_share"]
    assert isinstance(share, float)
    assert share > 0.6
    assert w.prefix is not None
    assert np.array_equal(np.diff(w.prefix.offsets), -(-w.prompt_tokens // w.prefix.block_tokens))


def test_length_tables() -> None:
    """Tables are found by name and keep the rank correlation; an unknown one is refused."""
    prompt, output = LengthTable.named("chat").draw(20_000, np.random.default_rng(0))
    rank = np.corrcoef(np.argsort(np.argsort(prompt)), np.argsort(np.argsort(output)))[0, 1]
    assert rank == pytest.approx(LengthTable.named("chat").rank_correlation, abs=0.03)
    with pytest.raises(InputError, match="lengths must be one of chat, code"):
        LengthTable.named("poems")


@pytest.mark.parametrize(
    ("field", "kwargs"),
    [
        ("workload", {"kind": "poems"}),
        ("rate_per_s", {"rate_per_s": 0.0}),
        ("duration_s", {"duration_s": float("nan")}),
        ("seed", {"seed": -1}),
        ("forecast", {"forecast": "no"}),
    ],
)
def test_domains(field: str, kwargs: dict[str, object]) -> None:
    """An argument outside its domain is named."""
    values: dict[str, object] = {"kind": "chat", "rate_per_s": 1.0, "duration_s": 10.0} | kwargs
    with pytest.raises(InputError, match=f"{field} must be"):
        generate(values.pop("kind"), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(MIXES))
def test_mixes(name: str) -> None:
    """Every mix is deterministic, fits the engine, and has weights, limits and several lengths."""
    one, two = (mix(name, rate_per_s=4.0, requests=300, seed=2) for _ in range(2))
    assert same(one, two)
    assert fit_to_engine(one, EngineLimits())[1] == 0
    assert one.name == name
    assert np.isfinite(one.ttft_s).any() or np.isfinite(one.e2e_s).any()
    assert len(one) / one.arrival_s[-1] == pytest.approx(4.0, rel=0.35)
    assert set(one.classes) == set(MIXES[name][1])


@pytest.mark.parametrize("name", list(MIXES))
def test_mixes_from_traces(name: str, data_folder: Path) -> None:
    """With the data folder, mixes are made of the real traces and say so."""
    w = mix(name, rate_per_s=4.0, duration_s=100.0, seed=2, data_dir=data_folder)
    assert "generated" not in w.source
    assert same(w, mix(name, rate_per_s=4.0, duration_s=100.0, seed=2, data_dir=data_folder))
    assert not same(w, mix(name, rate_per_s=4.0, duration_s=100.0, seed=3, data_dir=data_folder))
    assert len(w) == 400
    assert np.all(w.arrival_s < 130.0)


def test_long_mix_resamples(data_folder: Path) -> None:
    """A mix longer than its trace is resampled and keeps the rate."""
    w = mix("azure", rate_per_s=10.0, requests=40_000, seed=1, data_dir=data_folder)
    assert len(w) == 40_000
    assert len(w) / w.arrival_s[-1] == pytest.approx(10.0, rel=0.01)


def test_mix_reports_what_it_leaves_out() -> None:
    """Requests over the engine's context are left out and counted in the source."""
    limits = EngineLimits(max_model_len=4096)
    w = mix("mooncake", rate_per_s=4.0, requests=300, seed=1, limits=limits)
    assert np.all(w.prompt_tokens + w.output_tokens <= 4096)
    assert f"{300 - len(w)} of 300 requests over 4096 tokens left out" in w.source


@pytest.mark.parametrize(
    ("message", "kwargs"),
    [
        ("mix must be one of azure", {"name": "poems"}),
        ("requests must be at least 10", {"requests": 3}),
        ("duration_s or requests must be given", {"duration_s": 5.0}),
        ("data_dir must be a folder", {"data_dir": "/nowhere/at/all"}),
        ("rate_per_s must be", {"rate_per_s": -1.0}),
    ],
)
def test_mix_domains(message: str, kwargs: dict[str, object]) -> None:
    """An argument of a mix outside its domain is named."""
    values: dict[str, object] = {"name": "azure", "rate_per_s": 1.0, "requests": 100} | kwargs
    with pytest.raises(InputError, match=message):
        mix(values.pop("name"), **values)  # type: ignore[arg-type]


def test_light_import() -> None:
    """Importing the workloads loads none of the heavy libraries."""
    heavy = "{'torch', 'ortools', 'vllm', 'transformers', 'matplotlib', 'pandas'}"
    code = f"import sys, slosched.workloads; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
