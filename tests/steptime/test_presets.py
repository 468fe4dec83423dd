"""Presets: sane, sourced, and as their public measurements say."""

import csv
import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slosched.core.engine import DEFAULT_ENGINE, PRESETS, Engine, preset
from slosched.core.errors import InputError
from slosched.core.workload import Workload
from slosched.simulator import simulate

DATA = Path(os.environ.get("SLOSCHED_DATA") or Path(__file__).parents[3] / "shared" / "data") / "latency"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the public latency data: set SLOSCHED_DATA")

BENCHED = {
    "a100-llama-3.1-8b": ("Nvidia A100 GPU", "1", "meta-llama/Meta-Llama-3-8B"),
    "a100-mistral-7b": ("Nvidia A100 GPU", "1", "mistralai/Mistral-7B-v0.1"),
    "h100-llama-3.1-8b": ("Nvidia H100 GPU", "1", "meta-llama/Meta-Llama-3-8B"),
    "h100-qwen2-7b": ("Nvidia H100 GPU", "1", "Qwen/Qwen2-7B"),
    "h100x4-llama-3.1-70b": ("Nvidia H100 GPU", "4", "meta-llama/Meta-Llama-3-70B"),
    "h100x4-qwen2-72b": ("Nvidia H100 GPU", "4", "Qwen/Qwen2-72B"),
}


@pytest.mark.parametrize("each", PRESETS.values(), ids=lambda p: p.name)
def test_preset_is_sane(each: Engine) -> None:
    """Steps take what steps of such models take, long prompts fit, and every coefficient has a source."""
    model = each.step_time
    idle, busy = model.predict(sequences=[1, 64], kv_tokens=[1000, 64_000]).tolist()
    assert 0.003 < idle < 0.06
    assert idle < busy < 5 * idle
    throughput = 2048 / float(model.predict(2048, 2048**2 / 2))
    assert 3_000 < throughput < 80_000
    assert each.limits.kv_tokens >= 32_768
    assert set(each.sources) == {"decode", "prefill", "limits"}
    assert all(each.sources.values())
    assert PRESETS[DEFAULT_ENGINE.name] == DEFAULT_ENGINE


def test_bigger_gpus_are_faster() -> None:
    """H200 beats H100 beats A100 beats RTX 4090 on the same model, in decode and in prefill."""
    models = [preset(f"{gpu}-llama-3.1-8b").step_time for gpu in ("h200", "h100", "a100", "rtx4090")]
    decode = [float(model.predict(sequences=32, kv_tokens=40_000)) for model in models]
    prefill = [float(model.predict(2048, 2048**2 / 2)) for model in models]
    assert decode == sorted(decode)
    assert prefill == sorted(prefill)


def test_unknown_preset_lists_the_known() -> None:
    """A wrong name is refused in one line with all names there are."""
    with pytest.raises(InputError, match=r"h100-llama-3.1-8b.*got 'h100-llama'") as caught:
        preset("h100-llama")
    assert all(name in str(caught.value) for name in PRESETS)
    assert preset("a100-mistral-7b").step_time is PRESETS["a100-mistral-7b"].step_time


@needs_data
@pytest.mark.parametrize("name", BENCHED)
def test_preset_gives_back_measured_batch_latencies(name: str) -> None:
    """Batches of equal requests last as Argonne measured them on vLLM, within 4 % on average."""
    model = preset(name).step_time
    misses = []
    with gzip.open(DATA / "argonne_llm_inference_bench_nvidia.csv.gz", "rt") as stream:
        for row in csv.DictReader(stream):
            if (row["Hardware"], row["gpus"], row["Model"]) != BENCHED[name] or row["Framework"] != "vLLM":
                continue
            length, batch = int(row["in_len_eq_out_len"]), int(row["batch"])
            chunks = -(-length * batch // 2048)
            prompt = model.predict(length * batch / chunks, batch * length**2 / 2 / chunks) * chunks
            total = float(prompt + model.decode_run(length, batch, batch * length))
            misses.append(total / float(row["latency_s"]) - 1.0)
    assert len(misses) >= 20
    assert np.mean(np.abs(misses)) < 0.04


@needs_data
@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("rtx4090-llama-3.1-8b", "rtx4090_llama318b"),
        ("rtxpro6000-llama-3.1-8b", "rtxpro6000_llama318b"),
        ("rtxpro6000x2-qwen3-32b", "rtxpro6000_qwen332b"),
    ],
)
def test_simulated_run_matches_the_real_one(name: str, run: str) -> None:
    """Replaying a real vLLM run gives mean TPOT and e2e within 3 % and mean TTFT within 10 % of it."""
    with gzip.open(DATA / f"vllm019_{run}_sharegpt300_requests.csv.gz", "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", skiprows=1)
    table = table[np.argsort(table[:, 3], kind="stable")]
    prompt, output, _, queued, _, first, last = table.T
    engine = preset(name)
    work = Workload.plain(queued, prompt.astype(np.int64), output.astype(np.int64))
    limits = replace(engine.limits, prefix_cache=True)
    got = simulate(work, "fcfs", engine=Engine(limits=limits, step_time=engine.step_time)).outcomes
    tpot = (last - first) / np.maximum(1, output - 1)
    assert np.mean(got.tpot_s) == pytest.approx(np.mean(tpot), rel=0.03)
    assert np.mean(got.e2e_s) == pytest.approx(np.mean(last - queued), rel=0.03)
    assert np.mean(got.ttft_s) == pytest.approx(np.mean(first - queued), rel=0.10)
