"""What the source papers claim, run again in their own set-ups as far as lengths and arrivals are public.

    python benchmarks/papers.py [--seeds 5] [--quick]

Simulator, preset of Llama-3.1-8B on an A100. Fu et al. (LTR, arXiv 2408.15792): Poisson arrivals for 60 s,
2,000 requests at once, the first 1,000 answers out of 10,000 requests, and starvation control. Shahout et al.
(TRAIL, arXiv 2410.01035): Poisson arrivals. Lengths are those of LMSYS-Chat and ShareGPT conversations; their
prompts are not at hand, so forecasts carry the measured errors of a BERT classifier (tau .64 and .57; Fu et
al. report .64 and .52). GPTeacher's prompts are public: there forecasts are the light ranker's, trained on
the other half. Huang et al. has its own script, ``huang_headline.py``.
Writes ``benchmarks/results/papers.json``: medians over seeds, lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from common import RESULTS, data_folder, environment, write_json
from predictors import probed

from slosched.core.engine import Engine, preset
from slosched.core.forecast import FORECAST_ATOMS
from slosched.core.outcome import Outcomes
from slosched.core.snapshot import Snapshot
from slosched.core.workload import Workload
from slosched.planner.plan import Plan
from slosched.policies import policy as policy_by_name
from slosched.policies.base import Policy
from slosched.policies.rivals.ltr import Ltr
from slosched.policies.rivals.trail import Trail
from slosched.predictors.answers import read_answers
from slosched.predictors.ranker import train_ranker
from slosched.simulator import simulate
from slosched.workloads.arrivals import first_arrivals, gamma_arrivals
from slosched.workloads.noise import with_forecast
from slosched.workloads.readers import read

ENGINE = preset("a100-llama-3.1-8b")
LTR_LIMITS = replace(ENGINE.limits, kv_blocks=8_500)
"""An A100 with 40 GB: 90 % less 16 GB of weights and 2 GB of activations leaves room for 136,000 tokens."""
SETS = {
    "lmsys": ("lengths_apex_lmsys", "predictor-5"),
    "sharegpt": ("lengths_sharegpt_val10k", "predictor-3"),
}
ONLINE_RPS = (16.0, 32.0, 64.0)
ONLINE_S = 60.0
BURST, GENERATED_OUT_OF, GENERATED = 2_000, 10_000, 1_000
TRAIL_RPS = (10.0, 20.0, 30.0)
TRAIL_REQUESTS = 1_000
TRAIL_SEQS = (48, 256)
"""Most running at once: as in the authors' SGLang benchmark, and vLLM's default."""
PROBE_MAE_TOKENS = 33.87
"""Of the authors' released probe (`predictors.Probing`)."""

Cells = dict[str, dict[str, list[float]]]
Policies = dict[str, Callable[[], Policy]]


class Watched(Ltr):
    """LTR that notes the longest time each request went without a token after its first one."""

    def plan(self, snapshot: Snapshot) -> Plan:
        """Plan, and look who has got a token since."""
        t = snapshot.table
        last, seen, self.gap_s = (t.extra(f"watched.{name}") for name in ("last", "seen", "gap"))
        rows = np.concatenate([snapshot.waiting, snapshot.running])
        grown = t.generated_tokens[rows] - seen[rows]
        # More than one token since the last look: nobody waited, so no gap worth the name.
        one = rows[(grown == 1) & (seen[rows] > 0)]
        self.gap_s[one] = np.maximum(self.gap_s[one], snapshot.now_s - last[one])
        last[rows[grown > 0]] = snapshot.now_s
        seen[rows] = t.generated_tokens[rows]
        return super().plan(snapshot)


class Enough(Exception):
    """So many answers have ended."""


def until(inner: Policy, most_left: int) -> Policy:
    """The policy, stopped by `Enough` with the time as soon as only so many requests are left."""

    class Stopped(type(inner)):  # type: ignore[misc]
        static = False
        preempts = True  # asked at every step

        def plan(self, snapshot: Snapshot) -> Plan:
            if len(snapshot.waiting) + len(snapshot.running) <= most_left:
                raise Enough(snapshot.now_s)
            return inner.plan(snapshot)

    stopped = Stopped.__new__(Stopped)
    stopped.__dict__.update(inner.__dict__)
    return stopped


def refined(output_tokens: Any, seed: int) -> Policy:
    """TRAIL with forecasts of running requests as good as its released probe's."""
    made: Policy = probed(Trail(), output_tokens, PROBE_MAE_TOKENS, seed)
    return made


def paper_ltr() -> Ltr:
    """LTR as in its main latency runs: no starvation control, no bound on preemptions."""
    return Ltr(starvation_steps=1 << 40, most_preemptions=1 << 20)


def lengths(name: str, arrival_s: np.ndarray[Any, Any], seed: int) -> Workload:
    """Requests with lengths drawn from a public set, best effort, with the set's forecast errors."""
    folder = data_folder()
    assert folder is not None
    file, errors = SETS[name]
    known = read(folder / "traces" / f"{file}.csv.gz", rate_per_s=1.0)
    fits = (known.prompt_tokens <= 1024) & (known.prompt_tokens + known.output_tokens <= 8192)
    known = known.rows(np.flatnonzero(fits))
    rows = np.random.default_rng([seed, 1]).integers(len(known), size=len(arrival_s))
    work = Workload.plain(arrival_s, known.prompt_tokens[rows], known.output_tokens[rows], name=name)
    return with_forecast(work, errors, seed=seed, history=known)


def gpteacher(arrival_s: np.ndarray[Any, Any], seed: int) -> Workload:
    """Held-out GPTeacher prompts with the light ranker's forecasts."""
    folder = data_folder()
    assert folder is not None
    train, test = read_answers(folder / "prompts" / "gpteacher_gpt4_6458.jsonl.gz").split(0.5, seed)
    atoms = train_ranker(train, seed=seed).forecast(test.prompts)[test.prompt]
    prompt = np.array([p.tokens for p in test.prompts])[test.prompt]
    rows = np.random.default_rng([seed, 1]).permutation(len(test.output_tokens))[: len(arrival_s)]
    work = Workload.plain(arrival_s, prompt[rows], test.output_tokens[rows], name="gpteacher")
    return replace(work, atoms=atoms[rows])


def oracle(work: Workload) -> Workload:
    """The same requests with their true lengths as forecasts."""
    return replace(work, atoms=np.repeat(work.output_tokens[:, None].astype(float), FORECAST_ATOMS, axis=1))


def felt(out: Outcomes) -> dict[str, float]:
    """Latencies, seconds."""
    a_token = out.e2e_s / out.workload.output_tokens
    return {
        "token_latency_s": float(a_token.mean()),
        "token_latency_p90_s": float(np.quantile(a_token, 0.9)),
        "e2e_s": float(out.e2e_s.mean()),
        "e2e_p99_s": float(np.quantile(out.e2e_s, 0.99)),
        "ttft_s": float(out.ttft_s.mean()),
        "ttft_p99_s": float(np.quantile(out.ttft_s, 0.99)),
        "tpot_p99_s": float(np.quantile(out.tpot_s, 0.99)),
        "longest_wait_s": float(out.ttft_s.max()),
        "preemptions": float(out.preemptions.sum()),
    }


def compare(cells: Cells, place: str, work: Workload, policies: Policies, limits: Any) -> None:
    """Run the policies, each "… (oracle)" with true lengths, and note what users feel, also over FCFS's."""
    base: dict[str, float] = {}
    for name, make in policies.items():
        chosen = make()
        run = simulate(
            oracle(work) if name.endswith("(oracle)") else work,
            chosen,
            engine=Engine(limits=limits, step_time=ENGINE.step_time),
        )
        found = felt(run.outcomes)
        if isinstance(chosen, Watched):
            found["max_waiting_s"] = float(np.maximum(run.outcomes.ttft_s, chosen.gap_s[: len(work)]).mean())
        base = base or found
        for measure, value in found.items():
            cell = cells.setdefault(f"{place} | {name}", {})
            cell.setdefault(measure, []).append(value)
            if measure in base and measure != "preemptions":
                cell.setdefault(f"fcfs over it, {measure}", []).append(base[measure] / value)


def ltr(cells: Cells, seed: int) -> None:
    """Chat online, the burst, generation, starvation control."""
    policies: Policies = {
        "fcfs": lambda: policy_by_name("fcfs"),
        "sjf": lambda: policy_by_name("sjf"),
        "ltr": paper_ltr,
        "ltr (oracle)": paper_ltr,
        "slosched": lambda: policy_by_name("slosched", seed=seed),
    }
    guarded: Policies = {
        "fcfs": lambda: policy_by_name("fcfs"),
        "ltr, unguarded": lambda: Watched(starvation_steps=1 << 40, most_preemptions=1 << 20),
        "ltr, 200/10": lambda: Watched(most_preemptions=1 << 20),
        "ltr, 1000/10": lambda: Watched(starvation_steps=1000, most_preemptions=1 << 20),
    }
    for name in SETS:
        for rate in ONLINE_RPS:
            arrival = gamma_arrivals(rate, ONLINE_S, rng=np.random.default_rng([seed, 2]))
            work = lengths(name, arrival, seed)
            compare(cells, f"online {rate:g}/s | {name}", work, policies, LTR_LIMITS)
            if rate in ONLINE_RPS[-2:]:
                compare(cells, f"starvation {rate:g}/s | {name}", work, guarded, LTR_LIMITS)
        work = lengths(name, np.zeros(BURST), seed)
        compare(cells, f"burst | {name}", work, policies, LTR_LIMITS)
        compare(cells, f"starvation burst | {name}", work, guarded, LTR_LIMITS)
        work = lengths(name, np.zeros(GENERATED_OUT_OF), seed)
        first = 0.0
        for label in ("fcfs", "ltr", "ltr (oracle)"):
            given = oracle(work) if label.endswith("(oracle)") else work
            stopped = until(policies[label](), GENERATED_OUT_OF - GENERATED)
            try:
                simulate(given, stopped, engine=Engine(limits=LTR_LIMITS, step_time=ENGINE.step_time))
            except Enough as enough:
                needed = float(enough.args[0])
            first = first or needed
            cell = cells.setdefault(f"generation | {name} | {label}", {})
            cell.setdefault("seconds", []).append(needed)
            cell.setdefault("fcfs over it, seconds", []).append(first / needed)


def trail(cells: Cells, seed: int) -> None:
    """Poisson arrivals; TRAIL from its first forecast alone, refined, and with an oracle."""
    for rate in TRAIL_RPS:
        arrival = first_arrivals(TRAIL_REQUESTS, rate, rng=np.random.default_rng([seed, 2]))
        for work in (lengths("lmsys", arrival, seed), gpteacher(arrival, seed)):
            truth = work.output_tokens.astype(float)
            policies: Policies = {
                "fcfs": lambda: policy_by_name("fcfs"),
                "sjf": lambda: policy_by_name("sjf"),
                "trail, first forecast": Trail,
                "trail, refined": partial(refined, truth, seed),
                "trail (oracle)": Trail,
                "slosched": lambda: policy_by_name("slosched", seed=seed),
            }
            for seqs in TRAIL_SEQS if rate == TRAIL_RPS[-1] else TRAIL_SEQS[:1]:
                limits = replace(ENGINE.limits, max_num_seqs=seqs)
                compare(cells, f"{rate:g}/s, {seqs} at once | {work.name}", work, policies, limits)


def spread(values: list[float]) -> list[float]:
    """Median, lowest and highest, to four digits."""
    return [float(f"{q:.4g}") for q in np.quantile(values, (0.5, 0.0, 1.0))]


def main() -> int:
    """Run both papers' set-ups."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, printed, nothing written")
    options = parser.parse_args()
    if data_folder() is None:
        print("The public data is absent: set SLOSCHED_DATA.", file=sys.stderr)
        return 1
    found: dict[str, Cells] = {"ltr": {}, "trail": {}}
    for seed in range(1 if options.quick else options.seeds):
        ltr(found["ltr"], seed)
        trail(found["trail"], seed)
        print(f"seed {seed} done", file=sys.stderr)
        results = {
            paper: {place: {m: spread(v) for m, v in cell.items()} for place, cell in cells.items()}
            for paper, cells in found.items()
        }
        if options.quick:
            print(json.dumps(results, indent=1))
            continue
        about = {"environment": environment("scikit-learn"), "seeds": seed + 1}
        write_json(RESULTS / "papers.json", {**about, "results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
