"""Write the figures of README and docs from the results under benchmarks/results, between their markers.

python benchmarks/readme.py            # tables, sentences and pictures, wherever a page has a place for them
python benchmarks/readme.py --check    # only name what is stale; exit code 1 if the headline is
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ages import HEADLINE, pages, stale, write_note
from common import RESULTS, ROOT
from detail import hindsight, mutants, named_cells, table, traces, tuned

from slosched.lab.evidence import LIGHT_LOAD, OURS
from slosched.lab.statistics import Interval

README = ROOT / "README.md"
DOCS = ROOT / "docs"
SERVES, REFUSES = "serves everybody", "may refuse"
"""The two leagues of a study."""


def load(name: str) -> dict[str, Any] | None:
    """A result file, or None where it was not made yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


SHOWN_ROWS = 12


def points(interval: dict[str, float] | None, sign: str = "") -> str:
    """A mean in points with its interval."""
    if interval is None or interval["mean"] is None:
        return "–"
    mean, low, high = (f"{100 * interval[k]:{sign}.1f}" for k in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def mean_points(values: Sequence[float], sign: str = "") -> str:
    """The mean of some draws in points with its interval over them."""
    found = Interval.of(np.asarray(values, dtype=float))
    return points({"mean": found.mean, "low": found.low, "high": found.high}, sign)


def study_table(result: dict[str, Any]) -> str:
    """The study over random scenarios: two leagues, at most twelve rows."""
    rows = []
    for title, league in result["leagues"].items():
        for s in league["standings"]:
            duel = league["duels"].get(s["policy"])
            known = s["ahead"] is not None
            shares = "/".join(f"{100 * s[k]:.0f}" for k in ("ahead", "level", "behind")) if known else "–"
            regret = f"{100 * s['regret_mean']:.1f}, {100 * s['regret_worst']:.0f}" if known else "–"
            name = s["policy"] + (" †" if title == REFUSES else "")
            rows.append([name, points(s["attainment"]), points(duel, "+"), shares, regret])
    head = ["policy", "SLOs kept, %", "ours less it", "ahead/level/behind, %", "regret, worst"]
    made = result["provenance"]
    return (
        table(head, rows[:SHOWN_ROWS])
        + f"\n\n{len(result['draws'])} random scenarios, by weight, 95 % intervals over scenarios. † may refuse. Ahead, "
        "level, behind, regret: against the best rival of each scenario, chosen afterwards, by two points. "
        f"`slosched evidence --config benchmarks/evidence.yaml`, commit {', '.join(made['commit'])}."
    )


def league_of(result: dict[str, Any], title: str) -> dict[str, Any]:
    """One league: its standings by policy, the best first."""
    return {s["policy"]: s for s in result["leagues"].get(title, {}).get("standings", [])}


def best_rival(result: dict[str, Any], title: str = SERVES) -> str:
    """Who is best on average among those that are not ours."""
    return next(p for p in league_of(result, title) if not p.startswith(OURS))


def where_it_loses(result: dict[str, Any]) -> str:
    """Where ours is behind, and what first tokens cost, in sentences."""
    ours = league_of(result, SERVES)[OURS]
    words = (
        f"In {100 * ours['behind']:.0f} % of the scenarios another policy is ahead by more than two points, at worst by "
        f"{100 * ours['regret_worst']:.0f}."
    )
    light = result["light"].get(OURS)
    if light is not None:
        first, whole = (light[k]["mean"] for k in ("ttft_mean_s", "e2e_mean_s"))
        words += (
            f" Below load {LIGHT_LOAD:g} its mean TTFT is {first:.1f} times that of FCFS, its mean e2e latency {whole:.1f} "
            "times."
        )
    planned = yaml.safe_load((ROOT / "benchmarks" / "evidence.yaml").read_text())
    missing = [p for p in planned["policies"] if p not in result["policy_code"]]
    if missing:
        words += f" Of that file's policies {', '.join(f'`{p}`' for p in missing)} did not run this time."
    return words


BINS = ((0.4, 0.7), (0.7, 1.0), (1.0, 1.5), (1.5, 2.6))
"""Loads that are shown together."""


def groups_table(
    result: dict[str, Any], head: str, group_of: Callable[[dict[str, Any]], str], order: Sequence[str]
) -> str:
    """SLOs kept in groups of draws: ours, the best rival on average, and first come, first served."""
    rival = best_rival(result)
    groups: dict[str, list[dict[str, Any]]] = {}
    for draw in result["draws"]:
        groups.setdefault(group_of(draw), []).append(draw)
    rows = []
    for name in order:
        some = [draw["weighted"] for draw in groups.get(name, [])]
        if some:
            rows.append([
                name, str(len(some)), *(mean_points([w[p] for w in some]) for p in (OURS, rival, "fcfs")),
                mean_points([w[OURS] - w["fcfs"] for w in some], "+"),
                mean_points([w[OURS] - w[rival] for w in some], "+"),
            ])  # fmt: skip
    heads = [head, "scenarios", OURS, rival, "fcfs", "gain over fcfs", f"gain over {rival}"]
    return table(heads, rows)


def load_of(draw: dict[str, Any]) -> str:
    """The bin of a draw's load."""
    low, high = next((b for b in BINS if draw["load"] < b[1]), BINS[-1])
    return f"{low:g} to {high:g}"


KINDS = ("TTFT only", "TTFT and TPOT", "e2e only", "several kinds")


def limits_of(draw: dict[str, Any]) -> str:
    """Which limits the classes of a draw have."""
    kinds = set(re.findall(r"\b(TTFT|TPOT|E2E)\b", draw["about"]))
    named = {
        frozenset({"TTFT"}): KINDS[0],
        frozenset({"TTFT", "TPOT"}): KINDS[1],
        frozenset({"E2E"}): KINDS[2],
    }
    return named.get(frozenset(kinds), KINDS[3])


def measured_by(result: dict[str, Any]) -> str:
    """Which command, which commit."""
    return (
        f"SLOs kept in %, by weight, with 95 % intervals over scenarios. The rival is the best one on average. "
        f"`slosched evidence --config benchmarks/evidence.yaml`, {len(result['draws'])} draws, commit "
        f"{', '.join(result['provenance']['commit'])}."
    )


def gain_by_load(result: dict[str, Any]) -> str:
    """What ours brings by load, with the picture."""
    order = [f"{low:g} to {high:g}" for low, high in BINS]
    return (
        f"![SLOs kept by load]({PICTURE})\n\n"
        + groups_table(result, "load", load_of, order)
        + f"\n\n{measured_by(result)}"
    )


def gain_by_limits(result: dict[str, Any]) -> str:
    """What ours brings by the kind of limits."""
    return groups_table(result, "limits", limits_of, KINDS) + f"\n\n{measured_by(result)}"


def policies_by_load(result: dict[str, Any]) -> str:
    """Every policy of the study, by load."""
    order = [f"{low:g} to {high:g}" for low, high in BINS]
    rows = []
    for title in (SERVES, REFUSES):
        for name, s in league_of(result, title).items():
            cells = []
            for label in order:
                some = [100 * d["weighted"][name] for d in result["draws"] if load_of(d) == label]
                cells.append(f"{np.mean(some):.1f}" if some else "–")
            rows.append([name + (" †" if title == REFUSES else ""), points(s["attainment"]), *cells])
    return (
        table(["policy", "all", *(f"load {label}" for label in order)], rows)
        + "\n\n† may refuse requests, which count as missed. "
        + measured_by(result).replace(" The rival is the best one on average.", "")
    )


def refusing(result: dict[str, Any]) -> str:
    """What `hopeless=reject` changes, in sentences."""
    name = f"{OURS}:hopeless=reject"
    if name not in result["means"]:
        return "Not in the last study."
    gains = [d["weighted"][name] - d["weighted"][OURS] for d in result["draws"]]
    ours, theirs = result["means"][OURS], result["means"][name]
    return (
        f"Against `{OURS}` as it is: {mean_points(gains, '+')} points of attainment over {len(gains)} random scenarios. "
        f"On average {theirs['refused']:.0f} requests a run are refused. The p99 of TTFT falls from {ours['ttft_p99_s']:.0f} "
        f"to {theirs['ttft_p99_s']:.0f} s, among the requests served."
    )


def fidelity(result: dict[str, Any]) -> str:
    """Errors of the simulated mean latencies against the real vLLM runs."""
    errors = [run["error_percent"] for run in result["runs"].values()]
    worst = {kind: sorted(abs(run[kind]["mean"]) for run in errors) for kind in ("ttft", "tpot", "e2e")}
    ttft = ", ".join(f"{value:.1f}" for value in worst["ttft"][:-1])
    return (
        f"On {len(errors)} real vLLM runs of 300 requests, mean TTFT was off by {ttft} and {worst['ttft'][-1]:.1f} %, mean "
        f"TPOT by at most {worst['tpot'][-1]:.1f} %, mean e2e latency by at most {worst['e2e'][-1]:.1f} % "
        "(`python benchmarks/fidelity.py`)."
    )


def tightness(result: dict[str, Any]) -> str:
    """Attainment by policy and by how loose limits are."""
    factors = sorted({row["factor"] for row in result["rows"]})
    shares = {(row["policy"], row["factor"]): row["attainment"] for row in result["rows"]}
    policies = dict.fromkeys(row["policy"] for row in result["rows"])
    rows = [[p, *(f"{100 * shares[p, factor]:.1f}" for factor in factors)] for p in policies]
    seeds = len(result["seeds"])
    bands = "; bands reach from the lowest to the highest" if seeds > 1 else ", so without an interval"
    return (
        "![SLOs kept by how loose limits are](slo-scale.png)\n\n"
        + table(["SLOs kept, %", *(f"limits x {factor:g}" for factor in factors)], rows)
        + f"\n\nThe named cell `{result['cell']}`, {result['requests']:,} requests, {seeds} seed{'s' * (seeds > 1)}{bands}. "
        f"`python benchmarks/slo_scale.py`, commit {result['measured']['commit']}."
    )


Section = tuple[Path, str, str, Callable[[dict[str, Any]], str]]
PICTURE = "gain-by-load.png"
SECTIONS: tuple[Section, ...] = (
    (README, "evidence", "evidence", study_table),
    (README, "fidelity", "fidelity", fidelity),
    (README, "where it loses", "evidence", where_it_loses),
    (DOCS / "choosing-slos.md", "tightness", "slo_scale", tightness),
    (DOCS / "does-it-help.md", "gain by load", "evidence", gain_by_load),
    (DOCS / "does-it-help.md", "gain by limits", "evidence", gain_by_limits),
    (DOCS / "choosing-a-policy.md", "policies by load", "evidence", policies_by_load),
    (DOCS / "choosing-a-policy.md", "refusing", "evidence", refusing),
    (DOCS / "study-in-detail.md", "named cells", "evidence_cells", named_cells),
    (DOCS / "study-in-detail.md", "hindsight", "hindsight", hindsight),
    (DOCS / "study-in-detail.md", "tuned rivals", "tune_rivals", tuned),
    (DOCS / "study-in-detail.md", "mutants", "mutants", mutants),
    (DOCS / "traces.md", "real traces", "traces", traces),
)
"""Where figures stand: page, name of the markers, name of the result, what is written between them."""


def write(page: Path, name: str, text: str) -> None:
    """Replace one section of a page."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    old = page.read_text()
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(old):
        raise SystemExit(f"{page.relative_to(ROOT)} has no section {name!r}.")
    page.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old))


def main() -> None:
    """Write all sections and pictures, or say what is stale."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        found = stale()
        print("\n".join(found) or "Everything shown is fresh.")
        raise SystemExit(any(line.startswith(HEADLINE) for line in found))
    for page, name, source, words in SECTIONS:
        result = load(source)
        if result is not None:
            write(page, name, words(result))
    for page in pages():
        if page != README:
            write_note(page)
    from docs_plots import draw_all

    draw_all()


if __name__ == "__main__":
    main()
