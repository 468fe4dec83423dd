"""Greedy answers of one real CPU engine under many schedulers; test_identity runs this as a process.

The engine is loaded once. Every trial puts another scheduler in its place, made as the engine made its own,
and sends the same jobs: plain ones with shared prompts, structured ones, sessions whose input comes in
pieces. In a disturbed trial requests are aborted, the scheduler is paused and the prefix cache reset.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Factory = Callable[..., Any]

MAX_STEPS = 4_000
"""Steps after which requests without an end are reported as such."""

MADE_WITH: dict[str, Any] = {}
"""Keywords with which the engine made its scheduler."""


def recording(**keywords: Any) -> Any:
    """Given to the engine as ``--scheduler-cls``: slosched as an operator gets it, keywords kept."""
    from slosched.integrations.vllm import Scheduler

    MADE_WITH.update(keywords)
    return Scheduler(**keywords)


def stock(**keywords: Any) -> Any:
    """The class of vLLM itself."""
    from slosched.integrations.vllm.adapter import base_class

    return base_class(keywords["vllm_config"])(**keywords)


def configured(**settings: Any) -> Factory:
    """A scheduler of slosched with these settings, planning as in a live server."""

    def made(**keywords: Any) -> Any:
        from slosched.integrations.vllm.adapter import adapted, attach, base_class, make_policy, rehearsal
        from slosched.integrations.vllm.clock import WallClock
        from slosched.integrations.vllm.config import Config
        from slosched.integrations.vllm.state import Learned

        config = Config.model_validate({"guards": {"time_box_us": 1e6, "min_run_ms": 0}, **settings})
        scheduler = adapted(base_class(keywords["vllm_config"]))(**keywords)
        learned = Learned(config.engine)
        parts = keywords["vllm_config"], config, WallClock(), make_policy(config), learned
        controller = attach(scheduler, *parts)
        controller.planner.rehearse(rehearsal(controller.limits))
        return scheduler

    return made


def random_plans(seed: int) -> Factory:
    """A scheduler of slosched whose plans are random in all they may say, bounds off."""

    def made(**keywords: Any) -> Any:
        from slosched.integrations.vllm.adapter import adapted, attach, base_class
        from slosched.integrations.vllm.clock import VirtualClock
        from slosched.integrations.vllm.config import Config
        from slosched.integrations.vllm.state import Learned
        from slosched.testing.chaos import RandomPolicy

        scheduler = adapted(base_class(keywords["vllm_config"]))(**keywords)
        learned = Learned("h100-llama-3.1-8b")
        attach(scheduler, keywords["vllm_config"], Config(), VirtualClock(), RandomPolicy(seed), learned)
        return scheduler

    return made


@dataclass(frozen=True)
class Job:
    """One request, or the pieces of one streaming session."""

    pieces: list[list[int]]
    tokens: int
    regex: str | None = None
    slo: dict[str, float] | None = None


def jobs() -> list[Job]:
    """The same in every trial; the later ones have the tighter limits, so that reordering has work."""
    made = []
    for i in range(30):
        shared = [10 + j for j in range(40)] if i % 2 else []
        prompt = [*shared, *(5 + (7 * i + 3 * j) % 490 for j in range(20 + 7 * i))]
        slo = {"slo_ttft_ms": 20.0 + 1000 * ((30 - i) % 5), "slo_tpot_ms": 50.0} if i % 3 else None
        pieces = [prompt[: len(prompt) // 2], prompt[len(prompt) // 2 :], [9] * 5] if i % 8 == 5 else [prompt]
        regex = "(w1[0-9][0-9]){4,40}" if i % 8 == 2 else None
        made.append(Job(pieces, 10 + i, regex, slo))
    return made


class Trial:
    """All jobs through one scheduler."""

    def __init__(self, llm: Any, factory: Factory, name: str) -> None:
        self.core = llm.llm_engine.engine_core.engine_core
        self.inputs = llm.llm_engine.input_processor
        self.tasks = llm.llm_engine.get_supported_tasks()
        self.core.scheduler = self.scheduler = factory(**MADE_WITH)
        self.name = name
        self.tokens: dict[int, list[int]] = {}
        self.order: list[int] = []
        self.turns: dict[int, int] = {}

    def run(self, disturb: str) -> dict[str, Any]:
        """Serve all jobs, disturbed by "abort", "pause" or "reset" where these words are in `disturb`."""
        work = jobs()
        for i, job in enumerate(work):
            self.submit(i, job)
        aborted: list[int] = []
        step = 0
        while self.scheduler.requests or self.scheduler.has_requests():
            step += 1
            if step == MAX_STEPS:
                break
            self.disturb(disturb, step, work, aborted)
            outputs, executed = self.core.step()
            self.core.post_step(executed)
            for core in outputs.values():
                for output in core.outputs:
                    i = int(output.request_id.split("-")[1])
                    if i not in self.tokens:
                        self.order.append(i)
                    self.tokens.setdefault(i, []).extend(output.new_token_ids)
                    if output.finish_reason is not None:  # a session has one at the end of each turn
                        self.turns[i] = self.turns.get(i, 0) + 1
        pool = self.scheduler.kv_cache_manager.block_pool
        controller = getattr(self.scheduler, "slosched", None)
        stats = controller.stats if controller is not None else None
        return {
            "tokens": {str(i): tokens for i, tokens in sorted(self.tokens.items())},
            "order": self.order,
            "steps": step,
            "aborted": aborted,
            "without_end": [
                i for i, job in enumerate(work) if i not in aborted and self.turns.get(i, 0) < len(job.pieces)
            ],
            "blocks_missing": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
            "errors": stats.errors if stats is not None else {},
            "preempted": stats.preempted if stats is not None else 0,
            "plans": stats.plans if stats is not None else 0,
        }

    def submit(self, i: int, job: Job) -> None:
        """Hand a job to the engine as its front end does; a session's pieces one after the other."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        for k, piece in enumerate([*job.pieces, [0]] if len(job.pieces) > 1 else job.pieces):
            structured = StructuredOutputsParams(regex=job.regex) if job.regex else None
            params = SamplingParams(
                temperature=0.0, max_tokens=job.tokens, ignore_eos=job.regex is None, extra_args=job.slo,
                structured_outputs=structured,
            )  # fmt: skip
            request = self.inputs.process_inputs(
                f"{self.name}-{i}", {"prompt_token_ids": piece}, params, self.tasks,
                resumable=k < len(job.pieces) > 1,
            )  # fmt: skip
            self.core.add_request(*self.core.preprocess_add_request(request))

    def disturb(self, how: str, step: int, work: list[Job], aborted: list[int]) -> None:
        """Abort, pause, resume and reset at set steps."""
        alive = [i for i in range(len(work)) if f"{self.name}-{i}" in self.scheduler.requests]
        if "abort" in how and step % 11 == 3 and len(aborted) < 6 and alive:
            i = alive[(7 * step) % len(alive)]
            self.core.abort_requests([f"{self.name}-{i}", "nobody"])
            aborted.append(i)
        if "pause" in how and step % 16 == 9:
            self.core.pause_scheduler("keep", clear_cache=False)
        if "pause" in how and step % 16 == 12:
            self.core.resume_scheduler()
        if "reset" in how and step % 23 == 14:
            # All vLLM can reset while a session that waits for input holds blocks is what nobody uses.
            whole = step % 2 == 0 and not self.scheduler.kv_holding_waiting
            self.scheduler.reset_prefix_cache(reset_running_requests=whole)


TRIALS: dict[str, tuple[Factory, str]] = {
    "stock": (stock, ""),
    "fcfs": (configured(policy="fcfs"), ""),
    "slosched": (configured(), ""),
    "srpt": (configured(policy="srpt"), ""),
    "random": (random_plans(1), ""),
    "slosched, disturbed": (configured(), "abort, pause, reset"),
    "random, disturbed": (random_plans(2), "abort, pause"),
    "random, reset": (random_plans(3), "abort, pause, reset"),
}


def write_weights(folder: str) -> None:
    """Random weights so large that a token hangs on all before it; vLLM's dummy ones hardly attend."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((Path(folder) / "config.json").read_text())
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    attend = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    feed = {
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes = {"model.embed_tokens": (vocabulary, hidden), "lm_head": (vocabulary, hidden)}
    norms = ["model.norm"]
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in (attend | feed).items()}
        norms += [f"model.layers.{i}.{name}_layernorm" for name in ("input", "post_attention")]
    generator = torch.Generator().manual_seed(0)
    weights = {f"{name}.weight": torch.ones(hidden) for name in norms}
    for name, (rows, columns) in shapes.items():
        values = torch.randn((rows, columns), generator=generator)
        weights[f"{name}.weight"] = values * 2.0 * columns**-0.5
    save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def main(model: str, prefix_cache: bool, speculation: bool) -> None:
    os.environ.update(
        HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR",
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind",
    )  # fmt: skip
    from vllm import LLM

    write_weights(model)
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
    llm = LLM(
        model=model, enforce_eager=True, max_num_seqs=6, max_num_batched_tokens=64,
        gpu_memory_utilization=0.2, enable_prefix_caching=prefix_cache, max_model_len=512, seed=0,
        disable_log_stats=True, scheduler_cls="identity.recording", num_gpu_blocks_override=60,
        speculative_config=ngram if speculation else None, dtype="float32",
    )  # fmt: skip
    results = {}
    for k, (name, (factory, disturb)) in enumerate(TRIALS.items()):
        begin = time.perf_counter()
        results[name] = Trial(llm, factory, f"t{k}").run(disturb)
        print(f"{name}: {results[name]['steps']} steps, {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    print("RESULT " + json.dumps(results), flush=True)


if __name__ == "__main__":
    sys.modules.setdefault("identity", sys.modules["__main__"])  # one copy of MADE_WITH
    main(sys.argv[1], sys.argv[2] == "1", sys.argv[3] == "1")
