"""Greedy answers of the real CPU engine with and without slosched; test_greedy runs this as a process."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main(model: str, scheduler: str, prefix_cache: bool, budget: int) -> None:
    os.environ.update(
        HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR",
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind",
    )  # fmt: skip
    from vllm import LLM, SamplingParams

    extra: dict[str, Any] = {}
    if scheduler == "random":
        extra["scheduler_cls"] = f"{__name__ if __name__ != '__main__' else 'greedy'}.RandomScheduler"
    elif scheduler != "stock":
        extra["scheduler_cls"] = "slosched.integrations.vllm.Scheduler"
    llm = LLM(
        model=model, load_format="dummy", enforce_eager=True, max_num_seqs=6, max_num_batched_tokens=budget,
        gpu_memory_utilization=0.2, enable_prefix_caching=prefix_cache, max_model_len=512, seed=0,
        disable_log_stats=True, **extra,
    )  # fmt: skip
    prompts, params = [], []
    for i in range(24):
        shared = [10 + j for j in range(40)] if i % 2 else []
        prompts.append(
            {"prompt_token_ids": [*shared, *(5 + (7 * i + 3 * j) % 490 for j in range(20 + 9 * i))]}
        )
        slo = {"slo_ttft_ms": 20 + 1000 * ((24 - i) % 5), "slo_tpot_ms": 50} if i % 3 else None
        params.append(SamplingParams(temperature=0.0, max_tokens=12 + i, ignore_eos=True, extra_args=slo))
    answers = llm.generate(prompts, params, use_tqdm=False)
    core = llm.llm_engine.engine_core.engine_core
    controller = getattr(core.scheduler, "slosched", None)
    stats = controller.stats.as_dict() if controller is not None else {}
    result = {"tokens": [list(a.outputs[0].token_ids) for a in answers], "stats": stats}
    print("RESULT " + json.dumps(result), flush=True)


def RandomScheduler(vllm_config: Any, **keywords: Any) -> Any:
    """A scheduler with random plans, bounds off."""
    from slosched.integrations.vllm.adapter import adapted, attach, base_class
    from slosched.integrations.vllm.chaos import RandomPolicy
    from slosched.integrations.vllm.clock import VirtualClock
    from slosched.integrations.vllm.config import Config
    from slosched.integrations.vllm.state import Learned

    scheduler = adapted(base_class(vllm_config))(vllm_config=vllm_config, **keywords)
    learned = Learned("h100-llama-3.1-8b")
    attach(scheduler, vllm_config, Config(), VirtualClock(), RandomPolicy(1), learned)
    return scheduler


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]))
