"""Write the README's tables from the results under benchmarks/results, between their markers.

python benchmarks/readme.py                    # tables of the benchmarks
python benchmarks/readme.py --demo out/demo    # and the demonstration's table and picture
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT

README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "attainment.png"
SHOWN = ("slosched", "fcfs", "priority", "edf+d", "sjf+d", "hrrn", "trail", "huang")


def load(name: str) -> dict[str, Any] | None:
    """A result file, or None where it was not made yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def machine(result: dict[str, Any]) -> str:
    """Where a result was measured."""
    e = result["environment"]
    return f"{e['cpus']} cores of {e['cpu']}, Python {e['python']}, numba {e['packages']['numba']}"


def percent(share: float) -> str:
    """A share with one decimal."""
    return f"{100 * share:.1f}"


def demo(folder: Path) -> str:
    """Attainment of every policy in a demonstration run, by load."""
    result = json.loads((folder / "results.json").read_text())
    points: dict[str, dict[float, list[float]]] = {}
    for p in result["points"]:
        points.setdefault(p["policy"], {}).setdefault(p["load"], []).append(p["weighted"]["value"])
    loads = sorted(next(iter(points.values())))
    order = sorted(points, key=lambda name: -statistics.fmean(points[name][loads[-1]]))
    rows = [
        [name, *(f"{percent(statistics.fmean(v))} ± {percent(statistics.stdev(v))}" for v in map(points[name].get, loads) if v)]
        for name in order
    ]  # fmt: skip
    shutil.copyfile(folder / "attainment.png", PICTURE)
    seeds = len(points["slosched"][loads[0]])
    return (
        f"![Share of requests that met their SLOs, by load](docs/{PICTURE.name})\n\n"
        + table(["policy", *(f"{load:.2g}x" for load in loads)], rows)
        + f"\n\nRequests that met all their limits, by weight, in %; mean ± standard deviation over {seeds} seeds. 1x is "
        f"{result['capacity_rps']:.2f} requests/s, the highest rate at which first come, first served meets 90 %. "
        f"{result['about'][0]}"
    )


def quality(name: str) -> str | None:
    """The study on trace mixes."""
    result = load(name)
    if result is None:
        return None
    rows = []
    for cell in result["summary"]:
        if cell["load"] < 0.85:
            continue
        best, tuned = cell["best_baseline"], cell["best_with_any_budget"]
        a = cell["attainment"]
        violation, any_budget = cell["violation_ratio"], cell["violation_ratio_any_budget"]
        rows.append(
            [
                cell["mix"], f"{cell['load']:.2g}x",
                *(f"{percent(a[p][0])} ± {percent(a[p][1])}" for p in ("slosched", "fcfs", best)),
                best, "–" if violation is None else f"{violation:.2f}",
                f"{percent(a[tuned][0])} ({tuned})", "–" if any_budget is None else f"{any_budget:.2f}",
                percent(a["slosched, no pacing"][0]), percent(a["slosched, oracle lengths"][0]),
            ]
        )  # fmt: skip
    head = [
        "mix", "load", "slosched", "fcfs", "best baseline", "which", "misses, ratio",
        "best of any token budget", "misses, ratio", "slosched, no pacing", "slosched, true lengths",
    ]  # fmt: skip
    h = result["headline"]
    return (
        table(head, rows)
        + f"\n\nRequests that met all their limits, by weight, in %; mean ± standard deviation over {result['seeds']} seeds "
        f'of {result["requests"]} requests; forecasts with the errors of a real predictor. "misses, ratio" is slosched\'s '
        "misses over that baseline's. The baselines of the fourth column run on the same engine (2,048 tokens a step); "
        "those of the eighth may also have their engine's token budget cut to 512 or 1,024 by hand. Geometric mean of "
        f"the ratios in overload (1.1x and more, cells without misses of the baseline left out): {h['violation_ratio_overload_geometric_mean']:.2f} and "
        f"{h['violation_ratio_any_budget_overload_geometric_mean']:.2f}. Measured by `python benchmarks/quality.py` on "
        f"{machine(result)}."
    )


def speed() -> str | None:
    """Simulator speed beside DynoSim, and the million."""
    result, million = load("simulator_speed"), load("million")
    if result is None:
        return None
    rows = []
    for name, case in result["cases"].items():
        ours, other = case["ours_fcfs"], case.get("dynosim_fcfs")
        cells = [f"{ours['output_tokens_per_s'] / 1e6:.1f} M, {ours['real_time_x']:,.0f}x"]
        cells.append(
            f"{other['output_tokens_per_s'] / 1e6:.1f} M, {other['real_time_x']:,.0f}x" if other else "–"
        )
        cells.append(f"{case['ours_fcfs_times_faster']:.1f}x" if other else "–")
        own = case["ours_slosched_first_tenth"]
        rows.append([name, *cells, f"{own['output_tokens_per_s'] / 1e6:.2f} M, {own['real_time_x']:,.0f}x"])
    text = table(["case", "slosched, FCFS", "DynoSim, FCFS", "faster", "slosched, policy slosched"], rows)
    text += "\n\nOutput tokens per second of wall time, and simulated over wall time, one core. "
    if million is not None:
        text += (
            f"One million requests (Azure conversation, resampled) take {million['wall_s']:.0f} s and "
            f"{million['peak_memory_gb']:.2f} GB. "
        )
    return text + f"`python benchmarks/simulator_speed.py`, {machine(result)}."


def fidelity() -> str | None:
    """Errors against the four real vLLM runs."""
    result = load("fidelity")
    if result is None:
        return None
    rows = []
    for name, run in result["runs"].items():
        errors = run["error_percent"]
        rows.append([name, *(" / ".join(f"{errors[k][s]:+.1f}" for s in ("mean", "p50", "p99")) for k in ("ttft", "tpot", "e2e"))])  # fmt: skip
    return (
        table(["run of vLLM 0.19", "TTFT", "TPOT", "e2e"], rows)
        + "\n\nError of mean / p50 / p99 in %, step times from kernel tables, one scale and one offset fitted on the first "
        "60 of 300 requests. The Qwen3-30B-A3B run has no kernel tables of its own: another model's stand in, so it "
        "shows how the method fails gracefully rather than validating it; the Qwen3-32B run used two GPUs, its tables "
        "are of one. `python benchmarks/fidelity.py`."
    )


def write(name: str, text: str | None) -> None:
    """Replace one section of the README."""
    if text is None:
        return
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    old = README.read_text()
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(old):
        raise SystemExit(f"README.md must have the markers {begin} and {end}.")
    README.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old))


def main() -> None:
    """Write all sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path)
    options = parser.parse_args()
    if options.demo is not None:
        write("demo", demo(options.demo))
    studies = [quality("quality"), quality("quality_prefix_cache")]
    write("quality", "\n\n".join(text for text in studies if text is not None) or None)
    write("speed", speed())
    write("fidelity", fidelity())


if __name__ == "__main__":
    main()
