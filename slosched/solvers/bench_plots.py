"""Plots of the solver benchmark: gap against budget, size and load, and moves per second against size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slosched.core.errors import MissingExtraError


def plot(found: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write the plots that the findings of `bench.run` allow as PNG files, and return their paths.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    if "best_known" in found:
        figure = Figure(figsize=(11, 4), layout="constrained")
        by_budget, by_load = figure.subplots(1, 2)
        for cell in found["best_known"]["cells"]:
            label = f"n = {cell['n']}"
            points = [
                (float(name.split()[1]), 100 * (1 - spread["mean"]))
                for name, spread in cell["over_best"].items()
                if name.startswith("anneal")
            ]
            by_budget.plot(*zip(*points, strict=True), marker="o", label=label)
            loads = [(float(load), 100 * (1 - s["mean"])) for load, s in cell["anneal_5ms_by_load"].items()]
            by_load.plot(*zip(*sorted(loads), strict=True), marker="o", label=label)
        by_budget.set(xscale="log", xlabel="budget (ms)", ylabel="weight below best known (%)")
        by_load.set(xlabel="load (width of limits over makespan)", ylabel="the same after 5 ms (%)")
        by_budget.legend()
        figure.savefig(out / "gap.png", dpi=150)
        written.append(out / "gap.png")
    if "throughput" in found:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        cells = found["throughput"]["cells"]
        for key, label in (
            ("delta_per_s", "delta"),
            ("full_per_s", "full, compiled"),
            ("python_per_s", "Python"),
        ):
            axes.scatter([c["n"] for c in cells], [c[key]["median"] for c in cells], label=label)
        axes.set(xscale="log", yscale="log", xlabel="requests", ylabel="moves per second")
        axes.legend()
        figure.savefig(out / "moves.png", dpi=150)
        written.append(out / "moves.png")
    return written
