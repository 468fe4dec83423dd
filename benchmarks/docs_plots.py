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
FORECAST = "predictor-5"


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


def helps(evidence: dict[str, Any]) -> None:
    """What reordering and pacing gain over first come, first served, by load."""
    made, (ax,) = figure(1, 7.6, 3.8)
    for mix in evidence["config"]["mixes"]:
        cells = [c for c in evidence["cells"] if c["mix"] == mix and c["forecast"] == FORECAST]
        gain = [100 * (c["attainment"]["slosched"] - c["attainment"]["fcfs"]) for c in cells]
        ax.plot([c["load"] for c in cells], gain, marker="o", label=mix)
    ax.axhline(0, color="#888888", linewidth=0.8)
    ax.set_xlabel("offered load, 1 = the most first come, first served can take")
    ax.set_ylabel("points of attainment gained")
    ax.legend(frameon=False)
    save(made, "gain-by-load.png")


def choosing(evidence: dict[str, Any]) -> None:
    """Attainment in overload of the best policies, means over mixes."""
    cells = [c for c in evidence["cells"] if c["forecast"] == FORECAST and c["load"] > 1]
    mean = {
        p: 100 * statistics.fmean(c["attainment"][p] for c in cells) for p in evidence["config"]["policies"]
    }
    best = sorted(mean, key=lambda p: -mean[p])
    for name in ("fcfs", "priority"):
        if name in mean and name not in best:
            best.append(name)
    best.sort(key=lambda p: -mean[p])
    made, (ax,) = figure(1, 7.6, 0.28 * len(best) + 1.0)
    ax.barh(best[::-1], [mean[p] for p in best[::-1]],
            color=[COLOURS.get(p, "#9DB7C8") for p in best[::-1]])  # fmt: skip
    for i, name in enumerate(best[::-1]):
        ax.text(mean[name] + 0.5, i, f"{mean[name]:.1f}", va="center", fontsize=8)
    ax.margins(y=0.01)
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_xlabel("SLOs met in overload, by weight, in %, mean over mixes and loads")
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
    for name, draw in (("evidence", helps), ("evidence_breadth", choosing), ("slo_scale", limits)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            draw(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
