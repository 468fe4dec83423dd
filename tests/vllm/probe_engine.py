"""The real CPU engine with the probe's plugin; test_probe_engine runs this as a process.

Nothing that needs numba may be imported before the engine runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

BASE = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}  # fmt: skip


def main(model: str, task: str, record: str) -> None:
    multiprocess = task == "serve"
    os.environ.update(BASE, VLLM_ENABLE_V1_MULTIPROCESSING=str(int(multiprocess)), PROBE_RECORD=record)
    from vllm import LLM, SamplingParams

    extra: dict[str, Any] = {"distributed_executor_backend": "mp"} if multiprocess else {}
    scheduler = "RecordingScheduler" if multiprocess else "RandomScheduler"
    llm = LLM(
        model=model, enforce_eager=True, max_num_seqs=6, max_num_batched_tokens=64, dtype="float32",
        gpu_memory_utilization=0.1, enable_prefix_caching=False, max_model_len=512, seed=0,
        disable_log_stats=True, scheduler_cls=f"probe_engine.{scheduler}", **extra,
    )  # fmt: skip
    prompts = [
        {"prompt_token_ids": [1, *(4 + (7 * i + 3 * j) % 200 for j in range(5 + 9 * (i % 12)))]}
        for i in range(24)
    ]
    params = [SamplingParams(temperature=0.0, max_tokens=12 + i, ignore_eos=i % 2 == 0) for i in range(24)]
    answers = llm.generate(prompts, params, use_tqdm=False)
    result: dict[str, Any] = {
        "prompts": [p["prompt_token_ids"] for p in prompts],
        "tokens": [list(a.outputs[0].token_ids) for a in answers],
        "reasons": [a.outputs[0].finish_reason for a in answers],
        "names": [a.request_id for a in answers],
    }
    if not multiprocess:
        from slosched.integrations.vllm.plugin import watch_of

        core = llm.llm_engine.engine_core.engine_core
        watch = watch_of(core.model_executor.driver_worker.worker.model_runner)
        watch.reader.flush()
        result["preempted"] = core.scheduler.slosched.stats.preempted
        result["left"] = [len(watch._sums), len(watch._next) - len(watch_alive(core))]
    print("RESULT " + json.dumps(result), flush=True)


def watch_alive(core: Any) -> dict[str, Any]:
    return core.model_executor.driver_worker.worker.model_runner.requests  # type: ignore[no-any-return]


def RecordingScheduler(vllm_config: Any, **keywords: Any) -> Any:
    """Slosched's scheduler that writes down which forecasts its table took up."""
    from slosched.integrations.vllm import Scheduler
    from slosched.integrations.vllm.probe_settings import ATTRIBUTE

    scheduler = Scheduler(vllm_config=vllm_config, **keywords)
    update = scheduler.update_from_output

    def recording(scheduler_output: Any, output: Any, *args: Any, **kw: Any) -> Any:
        found = getattr(output, ATTRIBUTE, {})
        at = {name: scheduler.requests[name].num_output_tokens for name in found}
        result = update(scheduler_output, output, *args, **kw)
        ledger = scheduler.slosched.ledger
        with Path(os.environ["PROBE_RECORD"]).open("a") as file:
            for name, tokens in at.items():
                row = ledger.rows.get(name)
                if row is not None:
                    taken = ledger.table.atoms[row].tolist()
                    file.write(json.dumps({"name": name, "generated": tokens, "atoms": taken}) + "\n")
        return result

    scheduler.update_from_output = recording
    return scheduler


def RandomScheduler(vllm_config: Any, **keywords: Any) -> Any:
    """Random plans and preemptions."""
    from slosched.integrations.vllm.adapter import adapted, attach, base_class
    from slosched.integrations.vllm.clock import VirtualClock
    from slosched.integrations.vllm.config import Config
    from slosched.integrations.vllm.state import Learned
    from slosched.testing.chaos import RandomPolicy

    scheduler = adapted(base_class(vllm_config))(vllm_config=vllm_config, **keywords)
    learned = Learned("h100-llama-3.1-8b")
    attach(scheduler, vllm_config, Config(), VirtualClock(), RandomPolicy(1), learned)
    return scheduler


if __name__ == "__main__":
    sys.modules["probe_engine"] = sys.modules["__main__"]
    main(*sys.argv[1:])
