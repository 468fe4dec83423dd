"""The GPU script on a processor: its arithmetic against oracles, and all of it with toy models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slosched import StepTimeModel

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def decoder(**changes: Any) -> Any:
    from gpu_parts.decoder import Decoder
    from gpu_parts.settings import TINY

    settings: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "kv_tokens": 512, "fused": False}
    return Decoder(TINY, 1, **{**settings, **changes})


def attended(query: Any, keys: Any, values: Any) -> Any:
    """One query of one head over all keys, in float64."""
    score = keys.double() @ query.double() / query.shape[-1] ** 0.5
    return torch.softmax(score, 0) @ values.double()


def test_decode_attention_is_each_requests_own() -> None:
    made = decoder()
    queries, cache = made.normal(3, made.heads, 128), made.caches[0]
    found = made.decode_attention(queries, cache, 20)
    for i in range(3):
        for head in range(made.heads):
            group = head // (made.heads // made.kv_heads)
            keys, values = cache[20 * i : 20 * i + 20, :, group].unbind(1)
            torch.testing.assert_close(
                found[i, head].double(), attended(queries[i, head], keys, values), **CLOSE
            )


@pytest.mark.parametrize("before", [0, 13])
def test_chunk_attention_sees_what_came_before_and_no_more(before: int) -> None:
    made = decoder()
    queries, cache = made.normal(5, made.heads, 128), made.caches[0][: before + 5]
    found = made.chunk_attention(queries, cache)
    for i in range(5):
        for head in range(made.heads):
            group = head // (made.heads // made.kv_heads)
            keys, values = cache[: before + i + 1, :, group].unbind(1)
            torch.testing.assert_close(
                found[i, head].double(), attended(queries[i, head], keys, values), **CLOSE
            )


def test_a_step_writes_the_newest_tokens_into_the_cache_and_nothing_else() -> None:
    from gpu_parts.decoder import Work

    made = decoder()
    before = made.caches[0].clone()
    made.step(Work(sequences=2, context=30, chunk=4, before=100))()
    changed = (made.caches[0] != before).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [29, 59, 100, 101, 102, 103]


def test_decoding_does_not_depend_on_the_rest_of_the_batch() -> None:
    from gpu_parts.decoder import Work

    made = decoder()
    kept = [cache.clone() for cache in made.caches]
    torch.manual_seed(1)
    _, alone = made.step(Work(sequences=2, context=30))()
    made.caches = kept
    torch.manual_seed(1)
    # Twice the places, the first two of which draw the same tokens.
    _, both = made.step(Work(sequences=4, context=30))()
    torch.testing.assert_close(alone, both[:2], **CLOSE)


def test_work_beyond_the_cache_is_refused() -> None:
    from gpu_parts.decoder import Work

    for work in (Work(sequences=100, context=100), Work(chunk=10, before=510), Work()):
        with pytest.raises(ValueError, match="at most 512 tokens"):
            decoder().step(work)


def test_all_real_steps_have_shapes_that_fit() -> None:
    """Every kind of real step, on torch's device without memory."""
    from gpu_parts.decoder import Decoder
    from gpu_parts.settings import MODELS, Settings
    from gpu_parts.steps import works

    settings = Settings(tiny=False)
    for shape, gpus in MODELS.values():
        made = Decoder(
            shape, gpus, device="meta", dtype=torch.bfloat16, kv_tokens=settings.kv_tokens, fused=False
        )
        made.layers = made.layers[:2]
        for kind in works(settings).values():
            for work in (kind[0], kind[-1]):
                tokens, states = made.step(work)()
                assert tokens.shape == (work.sequences + (work.chunk > 0),)
                assert states.shape == (work.sequences + work.chunk, shape.hidden)


def test_the_probe_in_torch_says_what_ours_says() -> None:
    from gpu_parts.predictors import DeviceProbe, random_probe

    probe = random_probe(64, 2, width=16)
    states = torch.randn(9, 64)
    network = DeviceProbe(probe, 9, "cpu")
    network.more.copy_(torch.randn(network.more.shape))
    inputs = torch.cat([states, network.more], 1).numpy()
    np.testing.assert_allclose(network(states).numpy(), probe.decode.probabilities(inputs), atol=1e-6)


def test_errors_of_a_preset_have_the_sign_of_the_preset() -> None:
    from gpu_parts.steps import coefficients

    measured = StepTimeModel(base_s=0.005, prefill_token_s=1e-5, knee_tokens=256, knee_token_s=1e-5)
    given = StepTimeModel(base_s=0.006, prefill_token_s=1e-5, sequence_s=5e-5)
    table = coefficients(measured, given)
    assert table["base_ms"] == {"measured": 5.0, "preset": 6.0, "preset_error": pytest.approx(0.2)}
    assert table["prefill_token_above_knee_us"]["preset_error"] == pytest.approx(-0.5)
    assert table["sequence_us"]["preset_error"] is None


def test_the_fit_leaves_attention_as_its_kernel_takes_it() -> None:
    from gpu_parts.steps import fit_rest

    true: dict[str, Any] = {"base_s": 0.006, "prefill_token_s": 2e-5, "sequence_s": 5e-6, "kv_token_s": 4e-8}
    rng = np.random.default_rng(0)
    rows = [[t, a, b, k, 0.0] for t, a, b, k in rng.integers(1, 4000, (40, 4)) * [1, 2000, 0.05, 100]]
    for i, row in enumerate(rows):
        row[0] *= i % 2  # every other step decodes alone
        row[4] = float(StepTimeModel(**true, attention_work_s=1e-9).predict(*row[:4]))
    fitted, report = fit_rest(rows, 1e-9)
    assert fitted.attention_work_s == 1e-9
    assert {name: getattr(fitted, name) for name in true} == pytest.approx(true, rel=1e-6)
    assert report.mape < 1e-9


def test_the_loops_queue_stays_one_that_policies_may_see() -> None:
    from gpu_parts.planner import Churn

    from slosched.core.engine import preset
    from slosched.integrations.vllm.decision import checked
    from slosched.policies import policy

    churn, chosen = Churn(6, 30, preset("h100-llama-3.1-8b").step_time), policy("edf")
    assert not churn.table.detached  # or policies look everybody up by name at every step
    for _ in range(40):
        snapshot = churn.snapshot()
        table = snapshot.table
        assert len(snapshot.running) == 6
        assert len(snapshot.waiting) == 30
        arrivals = list(zip(table.arrival_s[snapshot.waiting], table.serial[snapshot.waiting], strict=True))
        assert arrivals == sorted(arrivals)
        rows = np.concatenate([snapshot.running, snapshot.waiting])
        assert len(set(rows.tolist())) == 36
        assert (table.serial[rows] >= 0).all()
        order = checked(chosen.plan(snapshot), snapshot).order
        churn.advance(0.01, order.tolist())
        assert order[0] in churn.running


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a process."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(out), *arguments],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finite(value: Any) -> bool:
    """Whether all numbers in it are."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or bool(np.isfinite(value))


@pytest.mark.slow
def test_the_whole_script_on_a_processor(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    parts = ["ceilings", "steps", "probe", "ranker", "planner"]
    done = run(tmp_path / "gpu.json", "--tiny", "--parts", *parts)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert finite(found)
    assert found["tiny"] is True
    assert found["provenance"]["commit"]
    model = found["steps"]["h100-llama-3.1-8b"]
    assert all(row[-1] > 0 for rows in model["rows"].values() for row in rows)
    assert all(row["largest_difference"] < 1e-5 for row in found["probe"]["rows"])
    assert {row["mode"] for row in found["planner"]["rows"]} == {"alone", "adapter", "before", "during"}
    adapter = [row for row in found["planner"]["rows"] if row["mode"] == "adapter"]
    assert not any(row["errors"] for row in adapter)
    assert sum(row["plans"] for row in adapter) > 0  # a busy machine may starve the background in one of them
    assert all(row["plan_p50_us"] > 0 for row in found["planner"]["rows"] if row["mode"] != "alone")
    assert all(row.get("batch_ms", 1) > 0 for row in found["ranker"]["rows"])


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    done = run(tmp_path / "gpu.json")
    assert done.returncode == 1
    assert "--tiny" in done.stderr
    assert not (tmp_path / "gpu.json").exists()


def test_a_part_that_fails_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu
    from gpu_parts import planner

    monkeypatch.setattr(planner, "planner", lambda settings: 1 / 0)
    with pytest.raises(SystemExit, match="failed: planner"):
        gpu.main(["--tiny", "--parts", "planner", "ceilings", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "ZeroDivisionError" in found["planner"]["error"]
    assert found["ceilings"]["copy_tb_per_s"] > 0


def test_models_measured_before_a_failure_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu
    from gpu_parts import steps

    def some(settings: Any) -> Any:
        yield {"first": 1.0}
        yield {"second": float("nan")}

    monkeypatch.setattr(steps, "steps", some)
    with pytest.raises(SystemExit, match="failed: steps"):
        gpu.main(["--tiny", "--parts", "steps", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert found["first"] == 1.0
    assert "second" not in found
    assert "JSON" in found["error"]


def test_a_compiler_that_does_not_work_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_parts.settings import TINY, Settings

    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    settings = Settings(tiny=True)
    settings.tiny = False  # asks for fused operators
    monkeypatch.setattr(torch, "compile", lambda function: broken)
    monkeypatch.setattr("gpu_parts.settings.fastest", lambda *_: ({}, "math", "math"))
    made = settings.decoder(TINY, 1)
    assert not made.fused


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_with_its_own_scheduler_and_with_ours(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    done = run(tmp_path / "gpu.json", "--tiny", "--parts", "vllm")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["vllm"]
    assert found["answers_equal_to_stock"] == {"stock": 1.0, "slosched": 1.0}
    assert len(found["tuned"]) == 4
    assert all(len(shares) == 3 for shares in found["attained"].values())
