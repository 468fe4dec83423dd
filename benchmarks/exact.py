"""Labelling against CP-SAT: time to the proved optimum of static batches on the same instances.

Both start from the same annealed plan, both prove the lexicographic optimum (CP-SAT with as many batches as
requests, eight workers, a unit of 10 us), and their values are compared. A CP-SAT run that ends without a
proof counts with its budget, which understates the ratio. The ratio is of wall times; on a machine that does
other work the ratio of processor times, also given, is the fairer one. With --ratio also Huang's ratio at 12
requests.

Instances: prompts lognormal(4.8, 1.1) in 4..2048, outputs lognormal(5.0, 0.9) in 4..1024, half with an
end-to-end limit and half with TTFT and TPOT limits, each limit 1.1 times the request's own time plus a
uniform share of load times the makespan; 15 % of the TPOT limits hold in batches of half size only; every
second instance weighs requests 1, 2, 4, 8.

Run: python benchmarks/exact.py [--quick] [--ratio]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from common import RESULTS, environment, write_json
from rich.progress import track

from slosched.core.result import Result, Status
from slosched.solvers.static import cpsat, labelling
from slosched.solvers.static.problem import StaticProblem

SIZES = (12, 14, 16, 18)
LOADS = (0.5, 0.9)
BATCH = 4


def instance(n: int, max_batch: int, load: float, seed: int, weighted: bool) -> StaticProblem:
    rng = np.random.default_rng([n, max_batch, round(100 * load), seed])
    prompt = np.clip(np.round(rng.lognormal(4.8, 1.1, n)), 4, 2048)
    output = np.clip(np.round(rng.lognormal(5.0, 0.9, n)), 4, 1024)
    elapsed = rng.uniform(0, 2, n)
    base = StaticProblem.build(prompt_tokens=prompt, output_tokens=output, max_batch=max_batch)
    cost, size = base.cost, min(max_batch, n)
    makespan = np.sort(base.exec_s(size))[::-1][::size].sum()
    share = load * makespan * rng.uniform(0, 1, n)
    chat = rng.random(n) < 0.5
    prefill = np.array([cost.prefill_s(batch=1, tokens=length) for length in prompt])

    def step_s(batch: int) -> Any:
        pairs = zip(prompt, output, strict=True)
        return np.array([cost.decode_s(batch=batch, prompt_tokens=p, output_tokens=o) / o for p, o in pairs])

    tight = rng.random(n) < 0.15
    tpot = np.where(tight, 1.01 * step_s(max(1, size // 2)), 1.2 * step_s(size))
    return StaticProblem.build(
        prompt_tokens=prompt,
        output_tokens=output,
        elapsed_s=elapsed,
        ttft_s=np.where(chat, elapsed + 1.1 * prefill + share, np.inf),
        tpot_s=np.where(chat, tpot, np.inf),
        e2e_s=np.where(chat, np.inf, elapsed + 1.1 * base.exec_s(1) + share),
        weight=rng.choice([1.0, 2.0, 4.0, 8.0], n, p=[0.4, 0.3, 0.2, 0.1]) if weighted else 1.0,
        max_batch=max_batch,
    )


def compare(problem: StaticProblem, objective: str, budget_s: float) -> tuple[dict[str, Any], Result]:
    """Both solvers from the same start; their times, and whether their optima agree where both are proved."""
    start = labelling.annealed_start(problem)
    clock = [time.process_time()]
    ours = labelling.solve_static(problem, objective, budget_s, start)
    clock.append(time.process_time())
    theirs = cpsat.solve_static(problem, objective, budget_s, start)
    clock.append(time.process_time())
    ours_cpu_s, theirs_cpu_s = np.diff(clock).tolist()
    both = ours.status is theirs.status is Status.OPTIMAL
    if both and objective == "g":
        agree = abs(ours.objective - theirs.objective) <= 1e-5 * ours.objective
    else:
        near = abs(ours.score.latency_s - theirs.score.latency_s) <= 1e-4 * ours.score.latency_s
        agree = abs(ours.objective - theirs.objective) < 1e-9 and near
    return {
        "labelling_s": round(ours.seconds, 6),
        "cpsat_s": round(theirs.seconds, 4),
        "ratio": round(theirs.seconds / ours.seconds, 2),
        "cpu_ratio": round(theirs_cpu_s / ours_cpu_s, 2),
        "labelling_proved": ours.status is Status.OPTIMAL,
        "cpsat_proved": theirs.status is Status.OPTIMAL,
        "agree": agree if both else None,
    }, ours


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = np.array([row["ratio"] for row in rows])
    return {
        "instances": len(rows),
        "ratio_median": round(float(np.median(ratios)), 1),
        "ratio_min": round(float(ratios.min()), 1),
        "ratio_quartiles": [round(float(x), 1) for x in np.percentile(ratios, [25, 75])],
        "ratio_max": round(float(ratios.max()), 1),
        "cpu_ratio_median": round(float(np.median([row["cpu_ratio"] for row in rows])), 1),
        "labelling_median_s": round(float(np.median([row["labelling_s"] for row in rows])), 5),
        "cpsat_median_s": round(float(np.median([row["cpsat_s"] for row in rows])), 3),
        "labelling_unproved": sum(not row["labelling_proved"] for row in rows),
        "cpsat_unproved": sum(not row["cpsat_proved"] for row in rows),
        "disagreements": sum(row["agree"] is False for row in rows),
    }


def labelling_alone(n: int, copies: int, budget_s: float) -> dict[str, Any]:
    """Labelling beyond the sizes that CP-SAT is asked for."""
    seconds, proved = [], 0
    for seed in track(range(copies), description=f"labelling, {n} requests"):
        problem = instance(n, BATCH, LOADS[seed % 2], 1000 + seed, seed % 4 >= 2)
        result = labelling.solve_static(problem, "lex", budget_s)
        seconds.append(result.seconds)
        proved += result.status is Status.OPTIMAL
    return {
        "instances": copies,
        "proved": proved,
        "median_s": round(float(np.median(seconds)), 4),
        "max_s": round(max(seconds), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one instance per size and load, 20 s for CP-SAT"
    )
    parser.add_argument("--ratio", action="store_true", help="also Huang's ratio at 12 requests")
    parser.add_argument("--budget-s", type=float, default=None, help="seconds for each run (60; quick: 20)")
    parser.add_argument("--out", default=str(RESULTS / "exact.json"))
    options = parser.parse_args()
    budget_s = options.budget_s or (20.0 if options.quick else 60.0)
    copies = 1 if options.quick else 4
    warm = instance(8, BATCH, 0.5, 0, True)
    compare(warm, "lex", 5.0)  # compile, import

    cells = [(n, load, seed) for n in SIZES for load in LOADS for seed in range(copies)]
    rows = []
    for n, load, seed in track(cells, description="both, lexicographic"):
        weighted = (seed + (load == LOADS[1])) % 2 == 1
        row, _ = compare(instance(n, BATCH, load, seed, weighted), "lex", budget_s)
        rows.append({"n": n, "max_batch": BATCH, "load": load, "seed": seed, "weighted": weighted} | row)
    payload: dict[str, Any] = {
        "environment": environment("ortools"),
        "settings": {"budget_s": budget_s, "max_batch": BATCH, "cpsat_workers": 8},
        "lexicographic": summary(rows),
        "lexicographic_by_n": {str(n): summary([row for row in rows if row["n"] == n]) for n in SIZES},
        "instances": rows,
        "labelling_20": labelling_alone(20, 4 if options.quick else 12, budget_s),
    }
    if options.ratio:
        queue = [instance(12, BATCH, LOADS[k % 2], 50 + k, k % 4 >= 2) for k in range(copies * 2)]
        found = [compare(p, "g", budget_s)[0] for p in track(queue, description="both, ratio")]
        payload["ratio_12"] = summary(found)
    path = write_json(options.out, payload)
    for name in ("lexicographic", "lexicographic_by_n", "labelling_20", "ratio_12"):
        if name in payload:
            print(name, json.dumps(payload[name]))
    print(path)


if __name__ == "__main__":
    main()
