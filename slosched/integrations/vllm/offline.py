"""A process of its own in which vLLM answers prompts while hidden states are written down.

`slosched.lab.collect.collect_states` starts it: vLLM 0.32 cannot start its CPU worker in a process
with numba loaded, so nothing of slosched that needs numba may be imported here before the engine runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from slosched.core.errors import InputError
from slosched.integrations.vllm.plugin import register, watch_of


def answers(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Answer the prompts of a task; lengths, how each ended, and the name of each request."""
    # Of Model Runner V1's requests the sampling parameters, and so the natural end of an answer, are known.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    from vllm import LLM, SamplingParams

    register()  # a source checkout may not be installed, so that vLLM does not find the plugin by itself
    llm = LLM(model=task["model"], **{"async_scheduling": False, **task["engine"]})
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    watch = watch_of(runner)
    if watch is None:
        raise InputError("the engine must hand out hidden states; its log says why it does not.")
    params = SamplingParams(temperature=task["temperature"], max_tokens=task["max_tokens"])
    if task.get("chat"):
        given = llm.chat([[{"role": "user", "content": prompt}] for prompt in task["prompts"]], params)
    else:
        given = llm.generate(task["prompts"], params)
    watch.reader.flush()
    return [
        {
            "name": answer.request_id,
            "output_tokens": len(answer.outputs[0].token_ids),
            "finish_reason": answer.outputs[0].finish_reason,
        }
        for answer in given
    ]


def main() -> None:
    """``python -m slosched.integrations.vllm.offline TASK ANSWERS``, both JSON files."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        found: dict[str, Any] = {"answers": answers(task)}
    except InputError as error:
        found = {"error": str(error)}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
