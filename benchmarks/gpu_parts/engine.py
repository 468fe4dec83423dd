"""vLLM's real engine: identity, cost of a step, and attainment of stock at its best and of ours.

One engine is loaded, and every trial puts another scheduler in its place, made as the engine made its own.
Three tiers ask for the same work with different limits, in overload. Stock's settings are chosen on one seed,
all others report.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gpu_parts.settings import Settings

LIMIT_S = 300.0
LOAD = 1.2
"""Arrivals over what the engine finishes of a burst."""

TIERS = (1.5, 4.0, 12.0)
"""Limits of the three tiers, end to end, over what an answer of mean length takes in a full engine."""

KNOBS = tuple((policy, budget) for policy in ("fcfs", "priority") for budget in (1.0, 0.25))
"""Stock's settings tried: policy, and token budget of a step over the engine's."""

TUNING, REPORTING = 0, (10_000, 10_001, 10_002)
"""Seeds."""

MADE_WITH: dict[str, Any] = {}
"""Keywords with which the engine made its scheduler."""


def vllm(settings: Settings) -> dict[str, Any]:
    """What `main` finds in a process of its own, or why there is nothing."""
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        return {"present": False, "why": "vLLM is not installed on this machine"}
    here = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "engine.json"
        code = "import sys; from gpu_parts.engine import main; main(sys.argv[1], sys.argv[2] == '1')"
        command = [sys.executable, "-c", code, folder, str(int(settings.tiny))]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=LIMIT_S,
                env={**os.environ, "PYTHONPATH": paths, **ENVIRONMENT},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"present": True, "error": f"it took longer than {LIMIT_S:g} s"}
        if done.returncode or not out.exists():
            return {"present": True, "error": done.stderr.strip()[-2000:]}
        return {"present": True, **json.loads(out.read_text())}


ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip


def recording(**keywords: Any) -> Any:
    """Given to the engine as its scheduler class: vLLM's own, keywords kept."""
    from slosched.integrations.vllm import Scheduler

    MADE_WITH.update(keywords)
    return Scheduler(**keywords)


def stock(policy: str = "fcfs", budget: float = 1.0) -> Any:
    """The own scheduler of vLLM with some of its knobs."""
    from slosched.integrations.vllm.adapter import base_class

    made = dict(MADE_WITH, vllm_config=copy.copy(MADE_WITH["vllm_config"]))
    config = made["vllm_config"].scheduler_config = copy.copy(made["vllm_config"].scheduler_config)
    config.policy = policy
    config.max_num_batched_tokens = int(budget * config.max_num_batched_tokens)
    return base_class(made["vllm_config"])(**made)


def ours() -> Any:
    """Our scheduler as an operator gets it."""
    from slosched.integrations.vllm import Scheduler

    return Scheduler(**MADE_WITH)


class Engine:
    """The engine's core, driven by hand."""

    def __init__(self, tiny: bool, folder: str) -> None:
        from vllm import LLM

        from slosched.testing.local_model import make_local_model

        self.trial, self.seqs = 0, 8 if tiny else 128
        size = {} if tiny else {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8}
        model = make_local_model(Path(folder) / "model", **size)
        llm = LLM(
            model=str(model), load_format="dummy", max_num_seqs=self.seqs, max_model_len=2048, seed=0,
            max_num_batched_tokens=256 if tiny else 8192, enforce_eager=tiny, disable_log_stats=True,
            gpu_memory_utilization=0.2 if tiny else 0.85, enable_prefix_caching=False,
            scheduler_cls="gpu_parts.engine.recording",
        )  # fmt: skip
        self.core = llm.llm_engine.engine_core.engine_core
        self.inputs, self.tasks = llm.llm_engine.input_processor, llm.llm_engine.get_supported_tasks()
        self.runner = type(self.core.model_executor.driver_worker.worker.model_runner)

    def use(self, scheduler: Any) -> None:
        """Put another scheduler in place; no name of a request is used under two."""
        self.core.scheduler = scheduler
        self.trial += 1

    def add(
        self, name: str, prompt: list[int], answer: int, slo_s: float | None = None, tier: int = 0
    ) -> None:
        """Hand over a request, as the engine's front end does."""
        from vllm import SamplingParams

        extra = None if slo_s is None else {"slo_e2e_ms": 1e3 * slo_s}
        params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True, extra_args=extra)
        request = self.inputs.process_inputs(
            f"{self.trial}-{name}", {"prompt_token_ids": prompt}, params, self.tasks, priority=tier
        )
        self.core.add_request(*self.core.preprocess_add_request(request))

    def step(self) -> list[tuple[str, list[int], bool]]:
        """One step: names, new tokens, and whether that was the last."""
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        return [
            (one.request_id.split("-")[1], list(one.new_token_ids), one.finish_reason is not None)
            for some in (outputs or {}).values()
            for one in some.outputs
        ]

    def busy(self) -> bool:
        """Whether a request is not done, or a step is on its way."""
        return bool(self.core.scheduler.has_requests() or self.core.batch_queue)


def prompts(rng: np.random.Generator, count: int, tokens: int) -> list[list[int]]:
    """Prompts of about so many tokens."""
    lengths = rng.integers(tokens // 2, 3 * tokens // 2, count)
    return [rng.integers(3, 500, n).tolist() for n in lengths]


def burst(engine: Engine, scheduler: Any, count: int, answer: int) -> dict[str, Any]:
    """All at once without limits: answers, requests per second, and the steps' wall times."""
    engine.use(scheduler)
    answers: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts(np.random.default_rng(TUNING), count, answer)):
        engine.add(f"{i}", prompt, answer)
    steps, begin = [], time.perf_counter()
    while engine.busy():
        start = time.perf_counter()
        for name, tokens, _ in engine.step():
            answers.setdefault(name, []).extend(tokens)
        steps.append(time.perf_counter() - start)
    return {"answers": answers, "rps": count / (time.perf_counter() - begin), "steps": steps}


def attained(
    engine: Engine, scheduler: Any, seed: int, rate: float, seconds: float, answer: int, answer_s: float
) -> float:
    """Share of requests that were done within their tier's limit; who is late for good counts as missed."""
    engine.use(scheduler)
    rng = np.random.default_rng(seed)
    count = max(6, int(rng.poisson(rate * seconds)))
    due, tiers = np.sort(rng.uniform(0, seconds, count)), rng.integers(0, len(TIERS), count)
    limits, texts = np.array(TIERS)[tiers] * answer_s, prompts(rng, count, answer)
    done: dict[int, float] = {}
    sent, begin = 0, time.perf_counter()
    while sent < count or engine.busy():
        now = time.perf_counter() - begin
        while sent < count and due[sent] <= now:
            tier = int(tiers[sent])
            engine.add(f"{sent}", texts[sent], answer, float(limits[sent]), tier)
            sent += 1
        if not engine.busy():
            time.sleep(1e-3)
            continue
        for name, _, last in engine.step():
            if last:
                done[int(name)] = time.perf_counter() - begin
    return float(np.mean([done.get(i, np.inf) - due[i] <= limits[i] for i in range(count)]))


def main(folder: str, tiny: bool) -> None:
    """All trials; writes ``engine.json`` into the folder."""
    engine = Engine(tiny, folder)
    answer, seconds = (8, 0.5) if tiny else (200, 8.0)
    count = 3 * engine.seqs
    burst(engine, stock(), count, answer)  # to warm up
    makers: dict[str, Callable[[], Any]] = {"stock": stock, "slosched": ours}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in makers}
    for k in range(4):
        for name in (list(makers), list(makers)[::-1])[k % 2]:
            runs[name].append(burst(engine, makers[name](), count, answer))
    first = runs["stock"][0]["answers"]
    equal = {
        name: float(np.mean([found[-1]["answers"][i] == first[i] for i in first]))
        for name, found in runs.items()
    }
    step_s = {
        name: float(np.median([np.median(run["steps"]) for run in found])) for name, found in runs.items()
    }
    rate = LOAD * float(np.median([run["rps"] for run in runs["stock"]]))
    common = rate, seconds, answer, answer * step_s["stock"]
    tuned = {
        f"{policy}, budget {budget:g}": attained(engine, stock(policy, budget), TUNING, *common)
        for policy, budget in KNOBS
    }
    best = KNOBS[int(np.argmax(list(tuned.values())))]
    makers = {"stock": stock, "stock at its best": lambda: stock(*best), "slosched": ours}
    found = {
        name: [attained(engine, make(), seed, *common) for seed in REPORTING] for name, make in makers.items()
    }
    gain = np.subtract(found["slosched"], found["stock at its best"])
    from vllm import __version__ as version

    result = {
        "vllm": version, "runner": f"{engine.runner.__module__}.{engine.runner.__qualname__}",
        "answers_equal_to_stock": equal, "step_p50_s": step_s,
        "step_over_stock": step_s["slosched"] / step_s["stock"] - 1, "rate_rps": rate,
        "tuned_on_seed": TUNING, "tuned": tuned, "best": list(best),
        "attained": found, "gain_over_best": {"mean": float(gain.mean()), "each": gain.tolist()},
    }  # fmt: skip
    (Path(folder) / "engine.json").write_text(json.dumps(result))
