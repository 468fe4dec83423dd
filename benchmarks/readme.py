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


TAIL_TIE = 1.02
"""A tail at most this times the other is no worse."""

SHOWN_LOADS = (1.0, 1.6, 2.5)
"""Of the study: near capacity, overload, deep overload."""


def evidence() -> str | None:
    """The study of all policies."""
    result = load("evidence")
    if result is None:
        return None
    config, h = result["config"], result["headline"]
    rows = []
    for cell in result["cells"]:
        if cell["load"] not in SHOWN_LOADS:
            continue
        a, best, ratio = cell["attainment"], cell["best_rival"], cell["miss_ratio"]
        rows.append(
            [
                cell["mix"], f"{cell['load']:g}x", *(percent(a[p]) for p in ("slosched", "fcfs", "priority", "edf+d", "edf+d@512")),
                f"{percent(a[best])} ({best})",
                f"{100 * cell['advantage']:+.1f} ({100 * cell['advantage_low']:+.1f} to {100 * cell['advantage_high']:+.1f})",
                "–" if ratio is None else f"{ratio:.2f}", percent(cell["bound"]),
            ]
        )  # fmt: skip
    head = [
        "mix", "load", "slosched", "fcfs", "priority", "edf+d", "edf+d, 512 tokens a step", "best rival",
        "advantage, points", "misses, ratio", "nobody can beat",
    ]  # fmt: skip
    lost = [
        f"{c['mix']} at {c['load']:g}x (to {c['rival']}, {100 * c['advantage']:+.1f} points)"
        for c in h["cells_lost"]
    ]
    overload = [c["attainment"] for c in result["cells"] if c["load"] > 1]
    mean = {p: statistics.fmean(a[p] for a in overload) for p in config["policies"]}
    means = ", ".join(f"{p} {percent(mean[p])}" for p in sorted(mean, key=lambda p: -mean[p]))
    tails: dict[str, list[bool]] = {"e2e_p99_s": [], "ttft_p99_s": [], "max_wait_s": []}
    for cell in result["cells"]:
        for name, value in cell["tails"].items():
            if value is not None:
                tails[name.split()[0]].append(value <= TAIL_TIE)
    no_worse = [f"{sum(tails[name])} of {len(tails[name])}" for name in tails]
    gain = h["capacity_gain_geometric_mean"]
    gains = ", ".join(f"{v:.2f} times that of {k}" for k, v in gain.items() if v is not None)
    return (
        table(head, rows)
        + f"\n\nRequests that met all their limits, by weight, in %, means over {config['seeds']} seeds of "
        f"{config['requests']} requests; forecasts with the errors of a real predictor. The best rival is the best of "
        f"{len(config['policies']) - 1} others, chosen after the fact in each cell; the advantage over it is paired by "
        'seed, with a 95 % bootstrap interval; "misses, ratio" is our misses over its. Of all '
        f"{h['cells']} cells (loads {', '.join(f'{x:g}x' for x in config['loads'])}) slosched wins {h['cells_won']}, ties "
        f"{h['cells'] - h['cells_won'] - len(lost)} and loses {len(lost)}{': ' + '; '.join(lost) if lost else ''}. "
        f"Geometric mean of the ratios in overload: {h['overload_miss_ratio_geometric_mean']:.2f} "
        f"({h['overload_cells_without_misses_of_the_rival']} cells without misses of the rival left out). Highest load "
        f"with 90 % attainment: {gains} (geometric means). Means over all cells in overload: {means}. Tails against "
        f"{' and '.join(h['tail_rivals'])}: p99 e2e is no worse in {no_worse[0]} comparisons, p99 TTFT in {no_worse[1]}, "
        f"the longest wait in {no_worse[2]}. "
        f"`slosched evidence --config benchmarks/evidence.yaml`, {place(result)}."
    )


def forecasts() -> str | None:
    """What length knowledge is worth."""
    result = load("evidence_forecasts")
    if result is None:
        return None
    config = result["config"]
    overload = [c for c in result["cells"] if c["load"] > 1]
    lost = [
        f"{c['mix']} at {c['load']:g}x with {c['forecast']} (to {c['rival']}, {100 * c['advantage']:+.1f} points)"
        for c in result["headline"]["cells_lost"]
    ]

    def mean(policy: str, forecast: str, mix: str | None = None) -> str:
        chosen = [c for c in overload if c["forecast"] == forecast and mix in (None, c["mix"])]
        return percent(statistics.fmean(c["attainment"][policy] for c in chosen))

    rows = [[policy, *(mean(policy, f) for f in config["forecasts"])] for policy in config["policies"]]
    rows += [
        [f"slosched, {m}", *(mean("slosched", f, m) for f in config["forecasts"])] for m in config["mixes"]
    ]
    return (
        table(["policy", *config["forecasts"]], rows)
        + f"\n\nAttainment by weight in %, means over {len(config['mixes'])} mixes, "
        f"{sum(x > 1 for x in config['loads'])} loads above 1 and {config['seeds']} seeds of {config['requests']} requests, by "
        "what the policies know of answer lengths: the truth, a forecast with the errors of a real predictor, or the "
        f"mean of the class. Over all {len(result['cells'])} cells of mix, load and forecast slosched wins "
        f"{result['headline']['cells_won']} and loses {len(lost)} to the best of the others{': ' + '; '.join(lost) if lost else ''}. "
        f"`slosched evidence --config benchmarks/evidence_forecasts.yaml`, {place(result)}."
    )


def place(result: dict[str, Any]) -> str:
    """Where a study of `slosched evidence` was run."""
    e = result["environment"]
    return f"{e['cores']} cores of {e['cpu']}, Python {e['python']}, numba {e['packages']['numba']}"


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
        rows.append([name, *cells])
    text = table(["case", "slosched, FCFS", "DynoSim, FCFS", "faster"], rows)
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
    write("evidence", evidence())
    write("forecasts", forecasts())
    write("speed", speed())
    write("fidelity", fidelity())


if __name__ == "__main__":
    main()
