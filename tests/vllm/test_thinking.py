"""Where thinking ends in a live engine: the mark, limits that stand for the answer's, and what is counted."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slosched.core.engine import Engine, EngineLimits
from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel
from slosched.core.thinking import Thinking
from slosched.core.workload import Workload
from slosched.integrations.vllm.clock import VirtualClock
from slosched.integrations.vllm.config import Config, load_config
from slosched.integrations.vllm.ledger import Ledger
from slosched.integrations.vllm.metrics import Stats
from slosched.integrations.vllm.slo_fields import read_claim
from slosched.integrations.vllm.state import Learned
from slosched.simulator import simulate

from .conftest import fake_request

MARK = 77
PRESET = "h100-llama-3.1-8b"


def ledger_of(clock: VirtualClock, stats: Stats, **thinking: Any) -> Ledger:
    config = Config.model_validate({"thinking": thinking or {"end": MARK}})
    return Ledger(config, clock, Learned(PRESET), stats)


def grown(request: Any, tokens: list[int]) -> None:
    """The request has these output tokens now."""
    request.output_token_ids, request.output = tokens, len(tokens)


def served(ledger: Ledger, clock: VirtualClock, answer_s: float, tokens: list[int], status: str) -> Any:
    """One request that gets its tokens at 1 s and, if it thinks, its first answer token at `answer_s`."""
    extra = {"slo_ttfat_ms": 5000, "predicted_thinking_tokens": 3}
    request = fake_request("a", extra=extra, output_token_ids=[])
    row = ledger.row(request)
    clock.time_s = 1.0
    grown(request, tokens[:1])
    ledger.follow(request)
    ledger.tokens_seen(1.0)
    ledger.thinking.look(1.0)
    held_s = float(ledger.table.e2e_s[row])
    clock.time_s = answer_s
    grown(request, tokens)
    ledger.thinking.look(answer_s)
    request.__dict__["status"] = SimpleNamespace(name=status)
    ledger.finish("a", answer_s)
    return held_s


@pytest.mark.parametrize(
    ("answer_s", "tokens", "status", "kept"),
    [
        (4.0, [1, 2, MARK, 5, 6], "FINISHED_STOPPED", True),
        (6.0, [1, 2, MARK, 5, 6], "FINISHED_STOPPED", False),
        (4.0, [1, 2, 3], "FINISHED_STOPPED", True),  # did not think: its first token was the answer's
        (4.0, [1, 2, 3], "FINISHED_LENGTH_CAPPED", False),  # never came to its answer
    ],
)
def test_the_mark_is_found_and_the_limit_judged(
    clock: VirtualClock, answer_s: float, tokens: list[int], status: str, kept: bool
) -> None:
    """A limit stands for it while it thinks; in the end it is counted by kind."""
    stats = Stats()
    ledger = ledger_of(clock, stats)
    held_s = served(ledger, clock, answer_s, tokens, status)
    assert 5.0 <= held_s < math.inf
    counts = stats.attained if kept else stats.missed
    assert counts["default", "ttfat"] == counts["default", "all"] == 1
    assert ledger.with_slo == 0


def test_the_length_of_thinking_is_learned_by_class(clock: VirtualClock) -> None:
    """From marks; an answer cut off while thinking is a lower bound."""
    ledger = ledger_of(clock, Stats())
    for _ in range(40):
        served(ledger, clock, 2.0, [*range(100, 100 + 49), MARK, 1], "FINISHED_STOPPED")
    claim = read_claim({}, Config.model_validate({"thinking": {"end": MARK}}))
    told = ledger.thinking.forecast(claim)
    assert told is not None
    assert 45 < told.mean_tokens < 55


def test_without_a_mark_the_limit_is_named_as_ignored(clock: VirtualClock) -> None:
    """Nothing is promised that cannot be judged; a class with such a limit is refused at the start."""
    claim = read_claim({"slo_ttfat_ms": 500}, Config())
    assert claim.slo.ttfat_s is None
    assert claim.malformed == ("slo_ttfat_ms",)
    with pytest.raises(ValueError, match="thinking"):
        Config.model_validate({"classes": {"r1": {"ttfat_ms": 500}}})
    config = Config.model_validate({"classes": {"r1": {"ttfat_ms": 500}}, "thinking": {"end": "</think>"}})
    assert read_claim({"slo_class": "r1"}, config).slo.ttfat_s == 0.5


@pytest.mark.parametrize("end", ["", True, -1, 1.5, "x" * 65])
def test_a_mark_has_a_domain(tmp_path: Any, end: object) -> None:
    """A token number or a short text."""
    path = tmp_path / "c.yaml"
    path.write_text(f"thinking: {{end: {end!r}}}\n")
    with pytest.raises(InputError, match="thinking"):
        load_config(path)


@pytest.mark.parametrize("found", [[5, 6], [], RuntimeError("no tokenizer")])
def test_a_text_that_is_no_token_turns_the_watch_off(clock: VirtualClock, found: Any) -> None:
    """With a line in the log; requests go on."""
    ledger = ledger_of(clock, Stats(), end="</think>")

    def encode(text: str, add_special_tokens: bool) -> list[int]:
        if isinstance(found, Exception):
            raise found
        return list(found)

    ledger.thinking.reads(lambda: SimpleNamespace(encode=encode))
    assert not ledger.thinking.on
    served(ledger, clock, 2.0, [1, 2], "FINISHED_STOPPED")


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_the_real_scheduler_stamps_and_keeps_what_the_simulator_does(policy: str) -> None:
    """Requests that think, with limits on their answers: the same first answer tokens, to the picosecond."""
    from slosched.testing.virtual_clock import simulate_vllm

    rng = np.random.default_rng(3)
    n = 40
    tokens = np.where(rng.random(n) < 0.3, 120, 20) + rng.integers(0, 10, n)
    work = Workload.plain(np.sort(rng.random(n) * 2.0), rng.integers(5, 60, n), tokens + 15)
    due_s = np.where(rng.random(n) < 0.8, rng.uniform(1.0, 8.0, n), np.inf)
    work = replace(work, thinking=Thinking.of(tokens, due_s), request_ids=tuple(f"{i:03d}" for i in range(n)))
    limits = EngineLimits(max_num_seqs=4, max_num_batched_tokens=256, kv_blocks=100, max_model_len=512)
    engine = Engine(
        limits=limits, step_time=StepTimeModel(base_s=0.01, prefill_token_s=2e-5, sequence_s=7e-5)
    )
    real = simulate_vllm(work, policy=policy, engine=engine).outcomes
    ours = simulate(work, policy, engine=engine).outcomes
    assert real.answer_s is not None
    assert ours.answer_s is not None
    np.testing.assert_array_equal(real.answer_s, ours.answer_s)
    np.testing.assert_array_equal(real.finish_s, ours.finish_s)
    assert 0 < real.met.mean() < 1
