"""Pictures of the documentation, from the results under benchmarks/results.

python benchmarks/docs_plots.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from common import RESULTS, ROOT
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from readme import BINS, PICTURE, SERVES, league_of

from slosched import Engine, EngineLimits, StepTimeModel, Workload, simulate

DOCS = ROOT / "docs"
COLOURS = {"slosched": "#0072B2", "fcfs": "#444444"}
OTHERS = ("#E08A4F", "#4DB89A", "#C893B6")
"""Of rivals, in their order: none is taken for ours, nor for FCFS."""


def figure(columns: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Axes side by side, without frames above and to the right."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#EEEEEE")
        ax.set_axisbelow(True)
    return made, axes


def save(made: Figure, name: str) -> None:
    """Write a picture beside the pages."""
    made.savefig(DOCS / name, dpi=120, metadata={"Software": None})
    print(f"docs/{name}")


RIVALS_SHOWN = 3
"""So many of the best rivals are drawn beside ours and FCFS; more lines hide each other."""


def by_load(evidence: dict[str, Any]) -> None:
    """SLOs kept by load: ours, the best rivals of the study on average, and first come, first served."""
    made, (ax,) = figure(1, 7.6, 3.8)
    rivals = [p for p in league_of(evidence, SERVES) if p not in ("slosched", "fcfs")]
    for policy in ("slosched", *rivals[:RIVALS_SHOWN], "fcfs"):
        line = []
        for low, high in BINS:
            some = [100 * d["weighted"][policy] for d in evidence["draws"] if low <= d["load"] < high]
            line.append(statistics.fmean(some) if some else float("nan"))
        wide = 2.5 if policy == "slosched" else 1.4
        colour = COLOURS.get(policy) or OTHERS[rivals.index(policy)]
        ax.plot(range(len(BINS)), line, marker="o", label=policy, color=colour, linewidth=wide)
    ax.set_xticks(range(len(BINS)), [f"{low:g} to {high:g}" for low, high in BINS])
    ax.set_xlabel("offered load, 1 = what the engine sustains")
    ax.set_ylabel("SLOs kept, by weight, in %")
    ax.set_ylim(0, 100)
    ax.legend(frameon=False)
    save(made, PICTURE)


def limits(scale: dict[str, Any]) -> None:
    """Attainment against how loose limits are."""
    made, (ax,) = figure(1, 7.6, 3.8)
    others = iter(OTHERS)
    for policy in dict.fromkeys(r["policy"] for r in scale["rows"]):
        line = [r for r in scale["rows"] if r["policy"] == policy]
        x, colour = [r["factor"] for r in line], COLOURS.get(policy) or next(others)
        ax.plot(x, [100 * r["attainment"] for r in line], color=colour, label=policy, marker=".")
        low, high = [100 * r["low"] for r in line], [100 * r["high"] for r in line]
        ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    factors = sorted({r["factor"] for r in scale["rows"]})
    ax.set_xscale("log", base=2)
    ax.set_xticks(factors, [f"{factor:g}" for factor in factors])
    ax.set_ylim(0, 101)
    ax.set_xlabel("all limits times")
    ax.set_ylabel("SLOs kept, by weight, in %")
    ax.legend(frameon=False)
    save(made, "slo-scale.png")


def chances(reliability: dict[str, Any]) -> None:
    """Share that kept its limits against the chance that was said, a point's area by its requests."""
    made, (ax,) = figure(1, 5.2, 4.2)
    ax.plot([0, 100], [0, 100], color="#BBBBBB", linewidth=1.2)
    for (name, kind), colour in zip(reliability["kinds"].items(), ("#E08A4F", "#0072B2"), strict=True):
        points = [
            (100 * a, 100 * b, n)
            for a, b, n in zip(kind["said"], kind["met"], kind["requests"], strict=True)
            if n
        ]
        x, y, n = zip(*points, strict=True)
        ax.plot(x, y, color=colour, linewidth=1.2, label=f"{name}, gap {100 * kind['gap']:.1f} points")
        ax.scatter(x, y, s=[12 + 200 * (k / sum(n)) for k in n], color=colour)
    ax.set_xlabel("chance said, in %")
    ax.set_ylabel("kept all limits, in %")
    ax.legend(frameon=False)
    save(made, "reliability.png")


CROWD = 16
"""Requests of the picture of a plan: so many that each is still seen."""


def crowd() -> Workload:
    """Requests that arrive within two seconds: long and short prompts, some with tight limits."""
    rng = np.random.default_rng(4)
    long = rng.random(CROWD) < 0.4
    prompts = np.where(long, rng.integers(3000, 6000, CROWD), rng.integers(100, 600, CROWD))
    plain = Workload.plain(np.sort(rng.uniform(0.0, 2.0, CROWD)), prompts, rng.integers(10, 40, CROWD))
    return replace(plain, ttft_s=np.where(long, 6.0, 0.7))


def plans() -> None:
    """The same requests, first come first served and by our plan: waiting, prefill and answer of each."""
    step_time = StepTimeModel(base_s=0.01, prefill_token_s=1.2e-4, sequence_s=2e-4, kv_token_s=1e-8)
    engine = Engine(limits=EngineLimits(max_num_seqs=8, max_num_batched_tokens=2048), step_time=step_time)
    work = crowd()
    made, axes = figure(2, 9.2, 3.9)
    for ax, policy in zip(axes, ("fcfs", "slosched"), strict=True):
        done = simulate(work, policy, engine=engine).outcomes
        kept = done.ttft_s <= work.ttft_s
        for i in range(CROWD):
            first, end = work.arrival_s[i] + done.ttft_s[i], work.arrival_s[i] + done.e2e_s[i]
            colour = COLOURS["slosched"] if kept[i] else OTHERS[0]
            ax.plot([work.arrival_s[i], first], [i, i], color=colour, linewidth=1.5)
            ax.plot([first, end], [i, i], color=colour, linewidth=5, solid_capstyle="butt")
            due = work.arrival_s[i] + work.ttft_s[i]
            ax.plot([due, due], [i - 0.35, i + 0.35], color="#444444", linewidth=1.2)
        ax.set_title(f"{policy}: {int(kept.sum())} of {CROWD} first tokens in time", fontsize=10)
        ax.set_xlabel("seconds")
        ax.set_yticks([])
        ax.invert_yaxis()
    axes[0].set_ylabel("requests, by arrival")
    save(made, "plan.png")


def draw_all() -> None:
    """Draw what there are results for."""
    for name, draw in (("evidence", by_load), ("slo_scale", limits), ("reliability", chances)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            draw(json.loads(path.read_text()))
    plans()


if __name__ == "__main__":
    draw_all()
