"""A static site of a study: opens from disk, needs no network, and no JavaScript to be read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from slosched.core.files import write_files
from slosched.lab.evidence_config import OURS, REFERENCE
from slosched.lab.evidence_grid import BOUND, Grid
from slosched.lab.evidence_summary import CellSummary, Summary
from slosched.report.comparison import Comparison, Point
from slosched.report.environment import environment
from slosched.report.export import flatten
from slosched.report.html import METHOD, bullets, page, picture, report_html, table
from slosched.report.plots import all_pngs, panels_png
from slosched.workloads.mixes import MIXES

METHODS = (
    *METHOD,
    "Load 1 is the highest rate at which first come, first served still lets 90 % of the requests, by "
    "weight, keep their limits (oracle lengths, mean over three seeds that are not used afterwards).",
    "The best rival of a cell is the other policy with the highest mean attainment there, chosen after the "
    "fact: that favours the rivals.",
    "Advantages are paired: the same requests, arrivals and forecasts under both policies, seed by seed; "
    "their 95 % interval is a bootstrap over seeds.",
    "A cell is lost if that interval lies below zero, won if it lies above, and tied otherwise.",
    "Nobody can do better than the bound: a linear programme over windows of time that knows all lengths and "
    "arrivals (slosched/lab/bound.py). It is loose where steps are not full, and where the prefix cache "
    "is too small for all that could be shared; benchmarks/hindsight.py measures by how much at most.",
    "How far our order is from the best one at a step, proven: benchmarks/step_gaps.py, docs/solver.md.",
    "Saturated: under first come, first served somebody waited at least 90 % of the time. Where nobody waits "
    "no policy can differ.",
    "Policies named NAME@TOKENS run on an engine whose token budget a step the operator has cut by hand.",
)


def write_site(grid: Grid, summary: Summary, folder: Path, complaints: Sequence[str] = ()) -> Path:
    """Write index.html, a page for each mix and forecast, results.json, runs.csv and summary.csv.

    Parameters
    ----------
    grid
        The finished study.
    summary
        What `summarise` made of it.
    folder
        Made if absent.
    complaints
        What a reader should know about the runs: corrupt results that were run again.

    Returns
    -------
    Path
        The index page.
    """
    files: dict[str, bytes] = {
        "index.html": _index(grid, summary, complaints),
        "results.json": json.dumps(_results(grid, summary), indent=1, allow_nan=False).encode(),
        "runs.csv": _runs_csv(grid),
        "summary.csv": _summary_csv(summary),
    }
    for name in grid.config.mixes:
        for forecast in grid.config.forecasts:
            comparison = _comparison(grid, summary, name, forecast)
            files[_page_name(name, forecast)] = report_html(comparison, all_pngs(comparison))
    write_files(folder, files)
    return folder / "index.html"


def _page_name(mix: str, forecast: str) -> str:
    return f"{mix}-{forecast.replace(':', '-')}.html"


def _comparison(grid: Grid, summary: Summary, mix: str, forecast: str) -> Comparison:
    bounds = ", ".join(
        f"{c.load:g}x {100 * c.bound:.1f} %" for c in summary.cells if (c.mix, c.forecast) == (mix, forecast)
    )
    return Comparison(
        points=tuple(
            Point(policy=cell.policy, load=cell.load, rate_rps=cell.rate_rps, seed=cell.seed, metrics=metrics)
            for cell, metrics in grid.metrics(mix, forecast)
        ),
        workload=f"{mix}, forecasts: {forecast}",
        source=MIXES[mix][2],
        about=(f"Nobody can do better than: {bounds}.",),
        capacity_rps=grid.capacity_rps[mix],
    )


def _index(grid: Grid, summary: Summary, complaints: Sequence[str]) -> bytes:
    config = grid.config
    runs = sum(cell.policy != BOUND for cell in grid.cells)
    body = [
        "<h1>slosched: the evidence</h1>",
        f'<p class="faint">{runs} runs: {len(config.policies)} policies, {len(config.mixes)} mixes, '
        f"{len(config.loads)} loads, {len(config.forecasts)} forecasts, {config.seeds} seeds of "
        f"{config.requests} requests; engine preset {escape(config.preset)}.</p>",
        "<h2>In short</h2>",
        bullets(headline_words(summary)),
        *(picture(f"Attainment by load; forecasts: {f}.", _panels(summary, f)) for f in config.forecasts),
        "<h2>Every cell</h2>",
        _filters(summary),
        _cell_table(summary.cells),
        "<h2>Highest load with 90 % attainment</h2>",
        _capacity_table(grid, summary),
        "<h2>Pages</h2>",
        "<ul>"
        + "".join(
            f'<li><a href="{_page_name(m, f)}">{escape(m)}, forecasts: {escape(f)}</a>: '
            f"{escape(MIXES[m][2])}</li>"
            for m in config.mixes
            for f in config.forecasts
        )
        + "</ul>",
        '<p>Raw: <a href="results.json">results.json</a>, <a href="runs.csv">runs.csv</a>, '
        '<a href="summary.csv">summary.csv</a>.</p>',
        "<h2>Method</h2>",
        bullets(METHODS),
        *([f"<h2>Remarks</h2>{bullets(complaints)}"] if complaints else []),
        "<h2>Environment</h2>",
        bullets([f"{key}: {value}" for key, value in flatten(environment()).items()]),
        _SCRIPT,
    ]
    return page("slosched: the evidence", body)


def _panels(summary: Summary, forecast: str) -> bytes:
    """Ours, the reference, the best rival of each cell, and the bound, in a panel for each mix."""
    panels = {}
    for mix in dict.fromkeys(c.mix for c in summary.cells):
        cells = [c for c in summary.cells if (c.mix, c.forecast) == (mix, forecast)]
        loads = [c.load for c in cells]
        known = {OURS: [c.attainment[OURS] for c in cells]}
        if all(REFERENCE in c.attainment for c in cells):
            known[REFERENCE] = [c.attainment[REFERENCE] for c in cells]
        known["best rival of each load"] = [c.attainment[c.best_rival] for c in cells]
        known["nobody can beat"] = [c.bound for c in cells]
        panels[mix] = {name: (loads, values) for name, values in known.items()}
    return panels_png(panels)


def headline_words(summary: Summary) -> list[str]:
    """The headline in sentences, losses first."""
    h = summary.headline
    lost = [f"{c['mix']} {c['load']:g}x {c['forecast']} to {c['rival']}" for c in h["cells_lost"]]
    words = [
        f"Lost {len(lost)} of {h['cells']} cells" + (f": {'; '.join(lost)}." if lost else "."),
        f"Won {h['cells_won']}, tied the others.",
        f"Misses over the best rival's in overload: geometric mean "
        f"{_number(h['overload_miss_ratio_geometric_mean'])} "
        f"({h['overload_cells_without_misses_of_the_rival']} cells where the rival misses nothing left out).",
        f"Left of what nobody can beat: median {100 * h['gap_to_bound_median']:.1f} %.",
        "Load with 90 % attainment over that of "
        + ", ".join(f"{k}: {_number(v)}" for k, v in h["capacity_gain_geometric_mean"].items())
        + " (geometric means).",
    ]
    if math.isfinite(h["tails_no_worse"]):
        words.append(
            "Tails (p99 e2e, p99 TTFT, longest wait) no worse than those of "
            f"{', '.join(h['tail_rivals'])} in "
            f"{100 * h['tails_no_worse']:.0f} % of comparisons; worse in {len(h['tails_worse'])}, "
            "all listed in results.json."
        )
    return words


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


_HEADS = (
    "mix", "load", "forecast", "slosched %", "best rival", "its %", "advantage, points", "95 % interval",
    "misses, ratio", "bound %", "gap to bound %", "queue",
)  # fmt: skip


def _cell_table(cells: Sequence[CellSummary]) -> str:
    rows = []
    for c in cells:
        verdict = "lost" if c.lost else "won" if c.advantage_low > 0 else "tied"
        values = [
            c.mix, f"{c.load:g}x", c.forecast, f"{100 * c.attainment[OURS]:.1f}", c.best_rival,
            f"{100 * c.attainment[c.best_rival]:.1f}", f"{100 * c.advantage:+.1f}",
            f"{100 * c.advantage_low:+.1f} to {100 * c.advantage_high:+.1f} ({verdict})",
            _number(c.miss_ratio),
            f"{100 * c.bound:.1f}", f"{100 * c.gap:.1f}", "saturated" if c.saturated else "",
        ]  # fmt: skip
        rows.append(
            f'<tr data-mix="{escape(c.mix)}" data-forecast="{escape(c.forecast)}" data-load="{c.load:g}x" '
            f'data-verdict="{verdict}">' + "".join(f"<td>{escape(v)}</td>" for v in values) + "</tr>"
        )
    return table(_HEADS, rows, "Attainment by weight, means over seeds. Ratio: our misses over the rival's.")


def _capacity_table(grid: Grid, summary: Summary) -> str:
    policies = sorted(
        grid.config.policies,
        key=lambda p: -sum(v for loads in summary.capacity_load.values() if math.isfinite(v := loads[p])),
    )
    rows = [
        ('<tr class="ours">' if p == OURS else "<tr>")
        + f"<td>{escape(p)}</td>"
        + "".join(f"<td>{_number(loads[p])}</td>" for loads in summary.capacity_load.values())
        + "</tr>"
        for p in policies
    ]
    return table(
        ["policy", *summary.capacity_load], rows,
        "Multiples of the capacity under first come, first served, linear between the loads run; a policy "
        "that still attains 90 % at the highest load run shows that load, – one that does not at the lowest.",
    )  # fmt: skip


def _filters(summary: Summary) -> str:
    """Selections that only JavaScript shows: without it the whole table stands there."""
    groups = {
        "mix": dict.fromkeys(c.mix for c in summary.cells),
        "forecast": dict.fromkeys(c.forecast for c in summary.cells),
        "load": dict.fromkeys(f"{c.load:g}x" for c in summary.cells),
        "verdict": ("won", "tied", "lost"),
    }
    selects = "".join(
        f'<label>{name} <select data-filter="{name}"><option value="">all</option>'
        + "".join(f"<option>{escape(v)}</option>" for v in values)
        + "</select></label> "
        for name, values in groups.items()
    )
    return f'<p id="filters" hidden>{selects}</p>'


_SCRIPT = """<script>
const filters = document.getElementById("filters");
filters.hidden = false;
filters.addEventListener("change", () => {
  const wanted = [...filters.querySelectorAll("select")].filter(s => s.value);
  for (const row of document.querySelectorAll("tr[data-mix]"))
    row.hidden = wanted.some(s => row.dataset[s.dataset.filter] !== s.value);
});
</script>"""


def _results(grid: Grid, summary: Summary) -> dict[str, Any]:
    return {
        "environment": environment(),
        "config": grid.config.model_dump(mode="json"),
        "capacity_rps": grid.capacity_rps,
        **summary.to_dict(),
    }


def _rows(grid: Grid) -> Iterator[dict[str, Any]]:
    for cell, result in zip(grid.cells, grid.results, strict=True):
        key = {
            "mix": cell.mix, "load": cell.load, "rate_rps": cell.rate_rps, "run_seed": cell.seed,
            "forecast": cell.forecast, "run_policy": cell.policy,
        }  # fmt: skip
        yield key | flatten(result)


def _runs_csv(grid: Grid) -> bytes:
    rows = list(_rows(grid))
    heads = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _summary_csv(summary: Summary) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["mix", "load", "forecast", "policy", "attainment", "best_rival", "bound", "saturated"])
    for c in summary.cells:
        for policy, value in c.attainment.items():
            line = [
                c.mix,
                c.load,
                c.forecast,
                policy,
                f"{value:.6f}",
                c.best_rival,
                f"{c.bound:.6f}",
                c.saturated,
            ]
            writer.writerow(line)
    return buffer.getvalue().encode()
