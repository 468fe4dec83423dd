"""The step-time model is learned while serving, whatever engine the preset was measured on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from slosched.core.steplog import read_step_log
from slosched.core.steptime import StepTimeModel
from slosched.integrations.vllm.clock import StepWatch
from slosched.integrations.vllm.state import Learned

SLOW = StepTimeModel(base_s=0.012, prefill_token_s=2.7e-4, sequence_s=1e-3)
"""A small model on two CPU cores: prefill costs twenty times what it does on the preset's GPU."""


def test_a_machine_unlike_the_preset_is_learned_within_a_hundred_steps(tmp_path: Path) -> None:
    """With noise and stalls, prefill and decode steps are predicted within a quarter."""
    rng = np.random.default_rng(0)
    learned = Learned("h100-llama-3.1-8b")
    log = tmp_path / "logs" / "steps.csv"
    watch = StepWatch(learned, measure=True, log=log)
    now_s = 0.0
    for _ in range(100):
        decoding, prompt = int(rng.integers(0, 8)), int(rng.integers(0, 250)) * int(rng.random() < 0.4)
        requests = {
            str(i): SimpleNamespace(num_computed_tokens=60 + i, num_prompt_tokens=50, num_tokens=60 + i)
            for i in range(decoding)
        }
        tokens = dict.fromkeys(requests, 1)
        if prompt > 1:
            requests["new"] = SimpleNamespace(
                num_computed_tokens=prompt, num_prompt_tokens=300, num_tokens=300
            )
            tokens["new"] = prompt
        scheduler = SimpleNamespace(requests=requests)
        watch.begin(tokens, scheduler, now_s)
        seconds = SLOW.predict(prompt if prompt > 1 else 0, 0, decoding, 60 * decoding)
        now_s += float(seconds) * float(rng.lognormal(0.0, 0.2)) * (20.0 if rng.random() < 0.03 else 1.0)
        watch.end(tokens, now_s)
    watch.close()
    assert len(read_step_log(log)) == 100
    for prefill, decoding in ((0, 4), (0, 8), (128, 8), (250, 0)):
        wanted = float(SLOW.predict(prefill, 0, decoding, 60 * decoding))
        got = float(learned.step_time.model.predict(prefill, prefill**2 / 2, decoding, 60 * decoding))
        assert abs(got / wanted - 1.0) < 0.25, (prefill, decoding)


def test_a_slow_engine_that_becomes_faster_is_followed_within_seconds() -> None:
    """Steps of 100 ms for two minutes, then of 25 ms: a machine that was shared has become free."""
    learned = Learned("h100-llama-3.1-8b")
    watch = StepWatch(learned, measure=True)
    requests = {
        str(i): SimpleNamespace(num_computed_tokens=60, num_prompt_tokens=50, num_tokens=60) for i in range(8)
    }
    scheduler, now_s = SimpleNamespace(requests=requests), 0.0

    def serve(step_s: float, until_s: float) -> None:
        nonlocal now_s
        while now_s < until_s:
            tokens = dict.fromkeys(requests, 1)
            watch.begin(tokens, scheduler, now_s)
            now_s += step_s
            watch.end(tokens, now_s)

    serve(0.1, 120.0)
    assert abs(watch.decode_s / 0.1 - 1.0) < 0.1
    serve(0.025, 125.0)
    assert abs(watch.decode_s / 0.025 - 1.0) < 0.25


def test_looking_costs_a_fast_engine_with_many_requests_little() -> None:
    """256 requests in steps of 6 ms: one step in sixteen is looked at after the first 256."""
    learned = Learned("h100-llama-3.1-8b")
    watch = StepWatch(learned, measure=True)
    requests = {
        str(i): SimpleNamespace(num_computed_tokens=60, num_prompt_tokens=50, num_tokens=60)
        for i in range(256)
    }
    seen = 0
    for step in range(1024):
        tokens = dict.fromkeys(requests, 1)
        watch.begin(tokens, SimpleNamespace(requests=requests), 0.006 * step)
        seen += len(watch._begun)
        watch.end(tokens, 0.006 * (step + 1))
    assert seen <= 256 + 768 / 16 + 1
