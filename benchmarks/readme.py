"""Write the README's tables from the results under benchmarks/results, between their markers.

python benchmarks/readme.py                    # tables of the benchmarks
python benchmarks/readme.py --demo out/demo    # and the demonstration's table and picture
python benchmarks/readme.py --check            # only name what is stale; exit code 1 if the headline is
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, measured

from slosched.lab.cells import ENGINE_MODULES, Contender
from slosched.lab.digests import code_digest

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
        f"**{result['headline']}**\n\n"
        f"![Share of requests that met their SLOs, by load](docs/{PICTURE.name})\n\n"
        + table(["policy", *(f"{load:.2g}x" for load in loads)], rows)
        + f"\n\nRequests that met all their limits, by weight, in %; mean ± standard deviation over {seeds} seeds. 1x is "
        f"{result['sustained_rps']:.2f} requests/s: what the engine sustains with full batches. "
        f"{result['about'][0]}"
    )


SHOWN_ROWS = 12
HEADLINE = "evidence.json"
"""The result that must be fresh."""


def points(interval: dict[str, float] | None, sign: str = "") -> str:
    """A mean in points with its interval."""
    if interval is None or interval["mean"] is None:
        return "–"
    mean, low, high = (f"{100 * interval[k]:{sign}.1f}" for k in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def evidence() -> str | None:
    """The study over random scenarios: two leagues, at most twelve rows."""
    result = load("evidence")
    if result is None:
        return None
    rows = []
    for title, league in result["leagues"].items():
        for s in league["standings"]:
            duel = league["duels"].get(s["policy"])
            shares = (
                "–"
                if s["ahead"] is None
                else " / ".join(f"{100 * s[k]:.0f}" for k in ("ahead", "level", "behind"))
            )
            regret = (
                "–"
                if s["regret_mean"] is None
                else f"{100 * s['regret_mean']:.1f} / {100 * s['regret_worst']:.0f}"
            )
            name = s["policy"] + (" (may refuse)" if title == "may refuse" else "")
            rows.append([name, points(s["attainment"]), points(duel, "+"), shares, regret])
    draws = len(result["draws"])
    head = ["policy", "SLOs kept %", "ours less it", "ahead / level / behind %", "regret mean / worst"]
    return (
        table(head, rows[:SHOWN_ROWS])
        + f"\n\n{draws} random scenarios (engines, traffic, limits, loads 0.4 to 2.5), by weight, 95 % intervals over "
        "scenarios. Ahead, level, behind: of the best rival of each scenario, chosen afterwards, by two points. "
        f"`slosched evidence --config benchmarks/evidence.yaml`, {draws} of its draws; commit "
        f"{', '.join(result['provenance']['commit'])}, {', '.join(result['provenance']['machine'])}. "
        "[Protocol](benchmarks/README.md)."
    )


def stale() -> list[str]:
    """Results that pages show and that are older than the code they measured, in sentences."""
    pages = [README, *sorted((ROOT / "docs").glob("*.md"))]
    texts = {str(page.relative_to(ROOT)): page.read_text() for page in pages}
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        where = [name for name, text in texts.items() if re.search(rf"\b{path.stem}\.(py|json|yaml)", text)]
        if not where:
            found.append(f"{path.name}: no page names it.")
            continue
        for words in _age(path.stem, json.loads(path.read_text())):
            found.append(f"{path.name} ({', '.join(where)}): {words}")
    return found


def _age(name: str, result: dict[str, Any]) -> list[str]:
    """What makes a result stale; nothing if it is fresh."""
    if "policy_code" in result:
        now = code_digest(*ENGINE_MODULES)
        words = (
            [] if result["provenance"]["code"] == [now] else ["simulator or scenarios have changed since."]
        )
        for label, digest in result["policy_code"].items():
            if Contender.parse(label).key()["policy_code"] != digest:
                words.append(f"{label} has changed since.")
        return words
    made, now_made = result.get("measured"), measured(name)
    if made is None:
        return ["made before results recorded their code: age unknown."]
    if now_made is not None and made["code"] != now_made["code"]:
        return [f"made at {made['commit']}; the code that it measures has changed since."]
    return []


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
        print(f"README.md has no section {name}: left out.")
        return
    README.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old))


def main() -> None:
    """Write all sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        found = stale()
        print("\n".join(found) or "Everything shown is fresh.")
        raise SystemExit(any(line.startswith(HEADLINE) for line in found))
    if options.demo is not None:
        write("demo", demo(options.demo))
    write("evidence", evidence())
    write("speed", speed())
    write("fidelity", fidelity())


if __name__ == "__main__":
    main()
