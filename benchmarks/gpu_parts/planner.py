"""An engine loop that keeps the device busy, alone and with our planner beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gpu_parts.decoder import Work, captured
from gpu_parts.settings import Settings, say

from slosched import EngineLimits, LengthForecast, Request, Slo, Snapshot
from slosched.core.engine import Engine, preset
from slosched.core.steptime import StepTimeModel
from slosched.core.table import RequestTable

ROUNDS = 6
"""Times that each way of planning has its turn."""


class Churn:
    """An engine's requests under load: each step the longest-running one ends and a newcomer arrives."""

    def __init__(self, running: int, waiting: int, step_time: StepTimeModel) -> None:
        self.rng, self.now_s, self.step = np.random.default_rng(0), 100.0, 0
        limits = EngineLimits(max_num_seqs=running, max_num_batched_tokens=8192, kv_blocks=64 * running + 64)
        self.engine = Engine(limits=limits, step_time=step_time)
        # Not `Snapshot.of`: its table stands for one instant, and policies look its requests up by name.
        self.table, self.count = RequestTable(running + waiting), running + waiting
        rows = [self.table.add(self.request(f"r{i}")) for i in range(self.count)]
        self.waiting = np.array(rows, dtype=np.int64)
        self.running = self.waiting[:0]
        for row in self.waiting[:running].tolist():
            self.admit(row)

    def request(self, name: str) -> Request:
        """One more, with limits of a chat or of a job."""
        kind = int(self.rng.integers(3))
        slo = (Slo(ttft_s=1.0, tpot_s=0.05), Slo(ttft_s=5.0), Slo(e2e_s=120.0))[kind]
        prompt, answer = self.rng.integers(50, 800), self.rng.integers(20, 400)
        return Request(
            request_id=name, prompt_tokens=int(prompt), slo=slo, arrival_s=self.now_s,
            forecast=LengthForecast.point(float(answer)),
        )  # fmt: skip

    def admit(self, row: int) -> None:
        """Take a waiting row into the engine, its prompt computed."""
        self.waiting = self.waiting[self.waiting != row]
        self.running = np.append(self.running, row)
        self.table.generated_tokens[row] = 1
        self.table.computed_tokens[row] = self.table.prompt_tokens[row]
        self.table.first_token_s[row] = self.now_s

    def advance(self, seconds: float, order: Sequence[int]) -> None:
        """A step is done: everybody has a token more, one ends, the first of `order` is admitted."""
        self.now_s, self.step = self.now_s + seconds, self.step + 1
        self.table.generated_tokens[self.running] += 1
        self.table.computed_tokens[self.running] += 1
        self.table.release(int(self.running[0]))
        self.running = self.running[1:]
        first = next((row for row in order if (self.waiting == row).any()), int(self.waiting[0]))
        self.admit(first)
        self.count += 1
        self.waiting = np.append(self.waiting, self.table.add(self.request(f"r{self.count}")))

    def snapshot(self) -> Snapshot:
        """What a policy sees."""
        return Snapshot(
            now_s=self.now_s, table=self.table, waiting=self.waiting, running=self.running,
            engine=self.engine, free_blocks=64, step=self.step,
        )  # fmt: skip


def planner(settings: Settings) -> dict[str, Any]:
    """Step and plan times of an engine loop on the GPU, alone and with our planner, taking turns."""
    shape, gpus = settings.models["llama-3.1-8b"]
    decoder = settings.decoder(shape, gpus)
    call = decoder.step(Work(sequences=settings.running, context=settings.context))
    replay, (graph_tokens, _) = captured(call, settings.device)

    def graph() -> Any:
        replay()
        return graph_tokens

    def eager() -> Any:
        return call()[0]

    rows = []
    for engine, launch in (("graph", graph), ("launched", eager)):
        for waiting in settings.waiting:
            rows += beside(settings, launch, engine, waiting)
            say(" ".join(f"{r['mode']} {r['step_p50_ms']:.2f}/{r['step_p99_ms']:.2f}" for r in rows[-4:]))
    return {
        "running": settings.running,
        "context": settings.context,
        "steps_each": settings.steps,
        "rows": rows,
    }


def beside(settings: Settings, launch: Callable[[], Any], engine: str, waiting: int) -> list[dict[str, Any]]:
    """One queue length: no planner, the vLLM adapter's planner by default, and the policy on the engine's
    thread, before the launch or while the device computes.
    """
    from slosched.integrations.vllm.adapter import make_policy, rehearsal
    from slosched.integrations.vllm.config import Config
    from slosched.integrations.vllm.guarded_policy import GuardedPolicy
    from slosched.integrations.vllm.metrics import Stats

    config = Config()
    modes = ("alone", "adapter", "before", "during")
    churns, planners, policies = {}, {}, {}
    for mode in modes:
        churns[mode] = Churn(settings.running, waiting, preset("h100-llama-3.1-8b").step_time)
        if mode == "adapter":
            stats = Stats()
            planners[mode] = GuardedPolicy(make_policy(config), config.guards, stats)
            planners[mode].rehearse(rehearsal(churns[mode].engine.limits))
        elif mode != "alone":
            policies[mode] = make_policy(config)
    step_s: dict[str, list[float]] = {mode: [] for mode in modes}
    plan_s: dict[str, list[float]] = {mode: [] for mode in modes}
    for turn in range(ROUNDS + 1):
        for k in range(len(modes)):
            mode = modes[(turn + k) % len(modes)]  # everyone comes first in turn
            for _ in range(settings.steps // ROUNDS):
                taken, planned = one_step(launch, churns[mode], policies.get(mode), planners.get(mode), mode)
                if turn > 0:  # the first is to warm up
                    step_s[mode].append(taken)
                    plan_s[mode].append(planned)
    planners["adapter"].close()
    plain = np.array(step_s["alone"])
    rounds = {mode: np.median(np.reshape(taken, (ROUNDS, -1)), axis=1) for mode, taken in step_s.items()}
    rows = []
    for mode in modes:
        steps_ms, plans_us = np.array(step_s[mode]) * 1e3, np.array(plan_s[mode]) * 1e6
        rows.append({
            "engine": engine, "waiting": waiting, "mode": mode,
            "step_p50_ms": float(np.median(steps_ms)), "step_p99_ms": float(np.quantile(steps_ms, 0.99)),
            "step_p50_over_alone": float(np.median(steps_ms) / np.median(plain) / 1e3),
            "round_p50_over_alone": (rounds[mode] / rounds["alone"]).tolist(),
            "plan_p50_us": float(np.median(plans_us)), "plan_p99_us": float(np.quantile(plans_us, 0.99)),
        })  # fmt: skip
    made = rows[modes.index("adapter")]
    made |= {"plans": stats.plans, "in_background": planners["adapter"].background is not None}
    made |= {"fallbacks": dict(stats.fallbacks), "errors": dict(stats.errors)}
    made |= {"background_plan_mean_ms": 1e3 * stats.plan_s.total / max(1, stats.plans)}
    return rows


def one_step(
    launch: Callable[[], Any], churn: Churn, policy: Any, guarded: Any, mode: str
) -> tuple[float, float]:
    """Seconds of a step, launch to tokens, planning included, and those of planning on its thread."""
    begin = time.perf_counter()
    order: Any = churn.waiting[:1]
    planned = 0.0
    if mode == "before":
        order = policy.plan(churn.snapshot()).order
        planned = time.perf_counter() - begin
    elif guarded is not None:
        snapshot = churn.snapshot()
        decision = guarded.latest(snapshot.step) if guarded.background else guarded.decide(snapshot)
        if decision is not None:
            order = decision.alive(decision.order, churn.table.serial)
        planned = time.perf_counter() - begin
    tokens = launch()
    if guarded is not None and guarded.free:
        guarded.launch(churn.snapshot())
    if mode == "during":
        start = time.perf_counter()
        order = policy.plan(churn.snapshot()).order
        planned = time.perf_counter() - start
    tokens.cpu()
    taken = time.perf_counter() - begin
    churn.advance(taken, order[:16].tolist())
    return taken, planned
