"""A comparison as one HTML file that needs nothing else: no network, no JavaScript to be read."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2

from slosched.core.metrics import LIMIT_KINDS, Metrics
from slosched.core.words import between
from slosched.lab.comparison import OURS, Comparison
from slosched.lab.environment import environment
from slosched.report.table import notes

METHOD = (
    "Every policy sees the same requests, arrival times and length forecasts; the true output lengths are "
    "hidden from all but those called oracle.",
    "A request meets its SLO if it keeps every limit it was given on time to first token (TTFT), mean time "
    "per output token after the first (TPOT) and end-to-end latency (e2e), and finishes. Attainment is the "
    "share of requests, by weight, that do.",
    "Goodput counts the requests per second that met their SLOs; latencies are those of finished requests.",
    "Intervals are 95 %: Student's t over seeds, Wilson's within a single run.",
)

CAPTIONS = {
    "attainment.png": "Attainment against offered load.",
    "classes.png": "Who gains and who pays: attainment of each class at the highest load.",
    "latency.png": "How latencies are distributed in one run; further left is faster.",
    "timeline.png": "One minute of that run. Grey: waiting; the colour of running tells how it ended.",
    "queue.png": "How many requests wait.",
}

Column = tuple[str, Callable[[Metrics], float], str]
"""Heading, figure, format."""

COLUMNS: tuple[Column, ...] = (
    ("attain-ment %", lambda m: 100 * m.weighted.value, ".1f"),
    ("unweighted %", lambda m: 100 * m.attainment.value, ".1f"),
    ("goodput req/s", lambda m: m.goodput_rps, ".3g"),
    ("output tok/s", lambda m: m.throughput_tps, ".0f"),
    ("TTFT mean s", lambda m: m.ttft_s.mean, ".3g"),
    ("p50", lambda m: m.ttft_s.p50, ".3g"),
    ("p90", lambda m: m.ttft_s.p90, ".3g"),
    ("p99", lambda m: m.ttft_s.p99, ".3g"),
    ("TPOT mean ms", lambda m: 1e3 * m.tpot_s.mean, ".3g"),
    ("p99", lambda m: 1e3 * m.tpot_s.p99, ".3g"),
    ("e2e mean s", lambda m: m.e2e_s.mean, ".3g"),
    ("p50", lambda m: m.e2e_s.p50, ".3g"),
    ("p90", lambda m: m.e2e_s.p90, ".3g"),
    ("p99", lambda m: m.e2e_s.p99, ".3g"),
    ("longest wait s", lambda m: m.max_wait_s, ".3g"),
    ("best-effort p99 e2e s", lambda m: m.best_effort_p99_e2e_s, ".3g"),
    ("preemp-tions", lambda m: m.preemptions, ".0f"),
    ("recomputed tokens", lambda m: m.recomputed_tokens, ".0f"),
    ("queue mean", lambda m: m.queue.mean, ".1f"),
    ("queue max", lambda m: m.queue.max, ".0f"),
    ("plan p50 µs", lambda m: m.plan_p50_us, ".0f"),
    ("plan p99 µs", lambda m: m.plan_p99_us, ".0f"),
    ("busy %", lambda m: 100 * m.busy_share, ".0f"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure.

    Parameters
    ----------
    text
        As it is shown.
    key
        What it sorts by; None for its text.
    best
        Whether it is the best of its column or row.
    words
        Whether it is prose, which stands left and may take several lines.
    """

    text: str
    key: float | None = None
    best: bool = False
    words: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row: what it is about, its figures, and whether it is ours."""

    head: str
    cells: tuple[Cell, ...]
    ours: bool = False

    @classmethod
    def of(cls, head: str, texts: Iterable[str], *, ours: bool = False) -> Row:
        """A row of mere texts."""
        return cls(head=head, cells=tuple(Cell(text=text) for text in texts), ours=ours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that sorts by a click on a heading."""

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A share of a policy in a chart: in %, with its interval where there is one."""

    head: str
    mean: float
    low: float
    high: float
    ours: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A table below a heading, with a chart before it if there are bars."""

    title: str
    table: Table
    bars: tuple[Bar, ...] = ()


def render(template: str, **content: Any) -> bytes:
    """A page from a template of this package; everything in it is escaped.

    Parameters
    ----------
    template
        Name of a file in ``slosched/report/templates``.
    content
        What the template asks for; a missing name is an error.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("slosched.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return made.get_template(template).render(content).encode()


def report_html(comparison: Comparison, pictures: Mapping[str, bytes]) -> bytes:
    """The report as a self-contained page.

    Parameters
    ----------
    comparison
        Results.
    pictures
        PNG files by name, as from `slosched.report.plots.all_pngs`; may be empty.
    """
    return render(
        "comparison.html",
        title=f"slosched: {comparison.workload}",
        size=_size(comparison),
        headline=comparison.headline or _one_policy(comparison),
        attainment=_attainment_table(comparison),
        notes=notes(comparison),
        pictures=[
            {"caption": CAPTIONS.get(name, name), "data": base64.b64encode(content).decode()}
            for name, content in pictures.items()
        ],
        about=[*([comparison.source] if comparison.source else []), *comparison.about],
        method=METHOD,
        details=[_details(comparison, rate) for rate in reversed(comparison.rates_rps)],
        environment=[f"{key}: {_words(value)}" for key, value in environment().items()],
    )


def _size(comparison: Comparison) -> str:
    counts = [p.metrics.requests for p in comparison.points]
    requests = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
    engines = ", ".join(dict.fromkeys(p.metrics.engine for p in comparison.points))
    policies, loads, seeds = (len(x) for x in (comparison.policies, comparison.rates_rps, comparison.seeds))
    words = (
        f"{policies} polic{'y' if policies == 1 else 'ies'}",
        f"{loads} load{'s' * (loads > 1)}",
        f"{seeds} seed{'s' * (seeds > 1)}",
    )
    return f"{', '.join(words)}, {requests} requests a run, engine: {engines}"


def _one_policy(comparison: Comparison) -> str | None:
    """What a run of a single policy says; None of several without ours, since there is no question."""
    (policy, *others), rate = comparison.policies, comparison.rates_rps[-1]
    if others:
        return None
    kept = between(comparison.attainment(policy, rate))
    return f"At {comparison.where(rate)} {policy} keeps {kept} % of SLOs by weight."


def _attainment_table(comparison: Comparison) -> Table:
    rates = comparison.rates_rps
    best = {r: max(comparison.attainment(p, r).mean for p in comparison.policies) for r in rates}
    rows = []
    for policy in comparison.policies:
        spreads = {rate: comparison.attainment(policy, rate) for rate in rates}
        cells = [
            Cell(text=between(s), key=round(s.mean, 6), best=round(s.mean, 3) == round(best[rate], 3))
            for rate, s in spreads.items()
        ]
        rows.append(Row(head=policy, cells=tuple(cells), ours=policy == OURS))
    return Table(
        heads=("policy", *map(comparison.where, rates)),
        rows=tuple(rows),
        caption="In %, by weight: mean (95 % interval). Underlined: highest mean of its column.",
    )


def _details(comparison: Comparison, rate_rps: float) -> Section:
    kinds = [
        k
        for k in LIMIT_KINDS
        if any(k in p.metrics.by_limit and p.metrics.by_limit[k].count for p in comparison.points)
    ]
    columns: list[Column] = list(COLUMNS)
    columns += [(f"{c} %", lambda m, c=c: 100 * m.by_class[c].value, ".1f") for c in comparison.classes]  # type: ignore[misc]
    columns += [(f"{k} limits %", lambda m, k=k: 100 * m.by_limit[k].value, ".1f") for k in kinds]  # type: ignore[misc]
    rows = []
    for policy in comparison.policies:
        values = [comparison.spread(policy, rate_rps, figure).mean for _, figure, _ in columns]
        cells = [_cell(value, form) for value, (_, _, form) in zip(values, columns, strict=True)]
        rows.append(Row(head=policy, cells=tuple(cells), ours=policy == OURS))
    return Section(
        title=f"All figures at {comparison.where(rate_rps)}"
        + (f" ({rate_rps:.3g} requests/s)" if comparison.relative else ""),
        table=Table(
            heads=("policy", *(head for head, _, _ in columns)),
            rows=tuple(rows),
            caption="Means over seeds; – where there is nothing to measure.",
        ),
    )


def _cell(value: float, form: str) -> Cell:
    return Cell(text=f"{value:{form}}", key=value) if math.isfinite(value) else Cell(text="–", key=-1.0)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)
