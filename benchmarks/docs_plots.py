"""Pictures of the documentation, from the results under benchmarks/results.

python benchmarks/docs_plots.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from common import RESULTS, ROOT
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOCS = ROOT / "docs"
COLOURS = {"slosched": "#0072B2", "fcfs": "#444444", "edf+d": "#E08A4F", "qoserve": "#4DB89A"}


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


BINS = ((0.4, 0.7), (0.7, 1.0), (1.0, 1.5), (1.5, 2.6))
"""Loads that are drawn together."""


def by_load(evidence: dict[str, Any]) -> None:
    """SLOs kept by load: ours, first come, first served, and the best rivals of the study."""
    made, (ax,) = figure(1, 7.6, 3.8)
    standings = evidence["leagues"]["serves everybody"]["standings"]
    shown = [s["policy"] for s in standings][:5]
    shown += [p for p in ("slosched", "fcfs") if p not in shown]
    for policy in shown:
        line = []
        for low, high in BINS:
            some = [100 * d["weighted"][policy] for d in evidence["draws"] if low <= d["load"] < high]
            line.append(statistics.fmean(some) if some else float("nan"))
        ax.plot(range(len(BINS)), line, marker="o", label=policy, color=COLOURS.get(policy))
    ax.set_xticks(range(len(BINS)), [f"{low:g} to {high:g}" for low, high in BINS])
    ax.set_xlabel("offered load, 1 = what the engine sustains")
    ax.set_ylabel("SLOs kept, by weight, in %")
    ax.legend(frameon=False)
    save(made, "gain-by-load.png")


def choosing(evidence: dict[str, Any]) -> None:
    """SLOs kept by every policy, means over the draws."""
    standings = [s for found in evidence["leagues"].values() for s in found["standings"]]
    standings.sort(key=lambda s: s["attainment"]["mean"])
    made, (ax,) = figure(1, 7.6, 0.28 * len(standings) + 1.0)
    names = [s["policy"] for s in standings]
    means = [100 * s["attainment"]["mean"] for s in standings]
    ax.barh(names, means, color=[COLOURS.get(p, "#9DB7C8") for p in names])
    for i, value in enumerate(means):
        ax.text(value + 0.5, i, f"{value:.1f}", va="center", fontsize=8)
    ax.margins(y=0.01)
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_xlabel(f"SLOs kept, by weight, in %, mean over {len(evidence['draws'])} random scenarios")
    save(made, "policies.png")


def limits(scale: dict[str, Any]) -> None:
    """Attainment against how loose limits are."""
    mixes = list(scale["rates_rps"])
    made, axes = figure(len(mixes), 4.2 * len(mixes), 3.6)
    for ax, mix in zip(axes, mixes, strict=True):
        rows = [r for r in scale["rows"] if r["mix"] == mix]
        for policy in dict.fromkeys(r["policy"] for r in rows):
            line = [r for r in rows if r["policy"] == policy]
            x = [r["factor"] for r in line]
            ax.plot(x, [100 * r["attainment"] for r in line], color=COLOURS[policy], label=policy, marker=".")
            low, high = [100 * r["low"] for r in line], [100 * r["high"] for r in line]
            ax.fill_between(x, low, high, color=COLOURS[policy], alpha=0.12, linewidth=0)
        ax.set_xscale("log", base=2)
        ax.set_xticks([0.25, 0.5, 1, 2, 4, 8, 16], ["¼", "½", "1", "2", "4", "8", "16"])
        ax.set_title(f"{mix}, {scale['rates_rps'][mix]:g} requests/s", loc="left", fontsize=10)
        ax.set_xlabel("all limits times")
    axes[0].set_ylabel("met, by weight, in %")
    axes[0].legend(frameon=False)
    save(made, "slo-scale.png")


def main() -> None:
    """Draw what there are results for."""
    for name, draw in (("evidence", by_load), ("evidence_breadth", choosing), ("slo_scale", limits)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            draw(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
