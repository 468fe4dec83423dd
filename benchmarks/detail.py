"""Tables behind the study, for the pages: named cells, hindsight, tuned rivals, real traces, mutants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from slosched.lab.named_cells import NAMED

OURS = "slosched"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def percent(share: float | None, sign: str = "") -> str:
    """A share in percent to a tenth."""
    return "–" if share is None else f"{100 * share:{sign}.1f}"


def between(row: dict[str, Any], sign: str = "", prefix: str = "") -> str:
    """A mean with its interval."""
    low, high = (percent(row[f"{prefix}{edge}"], sign) for edge in ("low", "high"))
    mean = row["mean"] if not prefix else row[prefix.rstrip("_")]
    return f"{percent(mean, sign)} ({low} to {high})"


def commit(result: dict[str, Any]) -> str:
    """Where a result was made."""
    if "measured" in result:
        return f"commit {result['measured']['commit']}"
    return f"commit {', '.join(result['provenance']['commit'])}"


def named_cells(result: dict[str, Any]) -> str:
    """Attainment of each policy in each named cell, with an interval over seeds."""
    policies = list(next(iter(result["cells"].values())))
    rows = [[cell, *(between(row[p]) for p in policies)] for cell, row in result["cells"].items()]
    seeds = result["config"]["cell_seeds"]
    return (
        table(["cell", *policies], rows)
        + f"\n\nSLOs kept in %, by weight, {seeds} seeds from {result['config']['first_seed']} on, Student's t at 95 %. "
        + f"{len(rows)} of the {len(NAMED)} cells of `slosched evidence --config benchmarks/evidence_cells.yaml --policies "
        + f"{','.join(policies)}`, {commit(result)}."
    )


def hindsight(result: dict[str, Any]) -> str:
    """What could be reached, draw by draw, beside what was."""
    rows = [
        [
            str(r["draw"]), f"{r['load']:.2f}", percent(r["ours"]), r["best"], percent(r["best_reached"]),
            percent(r["hindsight"]), percent(r["bound"]),
        ]
        for r in result["rows"]
    ]  # fmt: skip
    head = [
        "draw",
        "load",
        "slosched, better of its two leagues",
        "best of all",
        "reaches",
        "hindsight",
        "bound",
    ]
    return (
        table(head, rows)
        + "\n\nSLOs kept in %, by weight, of all requests. Hindsight knows all arrivals and lengths. What it reaches "
        "can be reached. Nothing can be beyond the bound, which is left out where it is 100. "
        + f"`python benchmarks/hindsight.py --draws {len(rows)} --trials {result['trials']}`, {commit(result)}."
    )


def tuned(result: dict[str, Any]) -> str:
    """The best setting of each policy beside its default."""
    weighted = result["weighted"]
    rows = []
    for name, best in result["best"].items():
        own = [label for label in weighted if label == name or re.match(re.escape(name) + "[@:,]", label)]
        rows.append([name, str(len(own)), percent(weighted[name]), f"`{best}`", percent(weighted[best])])
    rows.sort(key=lambda row: -float(row[-1]))
    return (
        table(["policy", "settings", "default keeps, %", "best setting", "keeps, %"], rows)
        + f"\n\nMeans over {result['draws']} tuning draws from seed {result['seed']} on, too few to tell small differences. "
        + f"`python benchmarks/tune_rivals.py --draws {result['draws']}`, {commit(result)}."
    )


def traces(result: dict[str, Any]) -> str:
    """Policies on replayed traces."""
    rows = [
        [
            r["mix"],
            f"{r['load']:g}",
            r["policy"],
            between(r),
            "–" if r["policy"] == OURS else between(r, "+", "gain_"),
        ]
        for r in result["rows"]
    ]
    return (
        table(["trace", "load", "policy", "SLOs kept, %", "ours less it"], rows)
        + f"\n\n{len(result['seeds'])} seeds, each {result['seconds']:g} s of other minutes of the trace, Student's t "
        + f"at 95 %, paired by seed. `SLOSCHED_DATA=data python benchmarks/traces.py`, {commit(result)}."
    )


def mutants(result: dict[str, Any]) -> str:
    """The score of the mutation run, and who survived."""
    rows: dict[str, list[int]] = {}
    for row in result["rows"]:
        count = rows.setdefault(row["target"], [0, 0])
        count[0] += row["killed"]
        count[1] += 1
    survivors = [row for row in result["rows"] if not row["killed"]]
    lines = [f"- `{row['module']}:{row['line']}`: `{row['change']}`" for row in survivors]
    missed = [name for name, noticed in result["faults"].items() if not noticed]
    return (
        table(["room", "killed", "tried"], [[name, str(a), str(b)] for name, (a, b) in rows.items()])
        + f"\n\n{result['killed']} of {result['mutants']} mutants killed "
        + f"({100 * result['killed'] / result['mutants']:.0f} %), seed {result['seed']}, {result['processor_s']} s of "
        + f"processor. Of {len(result['faults'])} faults that once survived, {len(missed)} do"
        + (f": {', '.join(missed)}. " if missed else ". ")
        + f"`make mutants`, commits {', '.join(dict.fromkeys(r['commit'] for r in result['rows']))}. Survivors:\n\n"
        + ("\n".join(lines) or "- none")
    )
