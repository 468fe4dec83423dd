"""A comparison as one HTML file that needs nothing else: no network, no JavaScript to be read."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

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
    "latency.png": "How latencies are distributed in the overloaded run; further left is faster.",
    "timeline.png": "One overloaded minute. Grey: waiting; the colour of running tells how it ended.",
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


def report_html(comparison: Comparison, pictures: Mapping[str, bytes]) -> bytes:
    """The report as a self-contained page.

    Parameters
    ----------
    comparison
        Results.
    pictures
        PNG files by name, as from `slosched.report.plots.all_pngs`; may be empty.
    """
    title = f"slosched: {comparison.workload}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(_size(comparison))}</p>',
        *([f'<p class="headline">{escape(comparison.headline)}</p>'] if comparison.headline else []),
        "<h2>Requests that met their SLOs</h2>",
        _attainment_table(comparison),
        *(f"<p>{escape(line)}</p>" for line in notes(comparison)),
        *(picture(CAPTIONS.get(name, name), content) for name, content in pictures.items()),
        "<h2>Workload and engine</h2>",
        bullets([*([comparison.source] if comparison.source else []), *comparison.about]),
        "<h2>Method</h2>",
        bullets(METHOD),
        *(_detail_table(comparison, rate) for rate in reversed(comparison.rates_rps)),
        "<h2>Environment</h2>",
        bullets([f"{key}: {_words(value)}" for key, value in environment().items()]),
    ]
    return page(title, body)


def page(title: str, body: Sequence[str]) -> bytes:
    """A page with our style from pieces of HTML."""
    template = Template(files("slosched.report").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(body)).encode()


def _size(comparison: Comparison) -> str:
    requests = comparison.points[0].metrics.requests
    engines = ", ".join(dict.fromkeys(p.metrics.engine for p in comparison.points))
    policies, loads, seeds = (len(x) for x in (comparison.policies, comparison.rates_rps, comparison.seeds))
    words = (
        f"{policies} polic{'y' if policies == 1 else 'ies'}",
        f"{loads} load{'s' * (loads > 1)}",
        f"{seeds} seed{'s' * (seeds > 1)}",
    )
    return f"{', '.join(words)}, {requests} requests a run, engine: {engines}"


def _attainment_table(comparison: Comparison) -> str:
    rates = comparison.rates_rps
    heads = ["policy", *(f"{comparison.label(rate)} load" for rate in rates)]
    best = {r: max(comparison.attainment(p, r).mean for p in comparison.policies) for r in rates}
    rows = []
    for policy in comparison.policies:
        cells = []
        for rate in rates:
            spread = comparison.attainment(policy, rate)
            text = between(spread)
            mark = ' class="best"' if round(100 * spread.mean, 1) == round(100 * best[rate], 1) else ""
            cells.append(f'<td{mark} data-value="{spread.mean:.6f}">{text}</td>')
        rows.append(_row(policy, cells))
    return table(
        heads, rows, "In %, by weight: mean (95 % interval). Underlined: highest mean of its column."
    )


def _detail_table(comparison: Comparison, rate_rps: float) -> str:
    classes = comparison.classes
    kinds = [
        k
        for k in LIMIT_KINDS
        if any(k in p.metrics.by_limit and p.metrics.by_limit[k].count for p in comparison.points)
    ]
    columns: list[Column] = list(COLUMNS)
    columns += [(f"{c} %", lambda m, c=c: 100 * m.by_class[c].value, ".1f") for c in classes]  # type: ignore[misc]
    columns += [(f"{k} limits %", lambda m, k=k: 100 * m.by_limit[k].value, ".1f") for k in kinds]  # type: ignore[misc]
    rows = []
    for policy in comparison.policies:
        values = [comparison.spread(policy, rate_rps, figure).mean for _, figure, _ in columns]
        cells = [_cell(value, form) for value, (_, _, form) in zip(values, columns, strict=True)]
        rows.append(_row(policy, cells))
    heading = f"<h2>All figures at {escape(comparison.label(rate_rps))} load ({rate_rps:.3g} requests/s)</h2>"
    heads = ["policy", *(head for head, _, _ in columns)]
    return heading + table(heads, rows, "Means over seeds; – where there is nothing to measure.")


def _cell(value: float, form: str) -> str:
    if not math.isfinite(value):
        return '<td data-value="-1">–</td>'
    return f'<td data-value="{value:.6g}">{value:{form}}</td>'


def _row(policy: str, cells: Sequence[str]) -> str:
    mark = ' class="ours"' if policy == OURS else ""
    return f"<tr{mark}><td>{escape(policy)}</td>{''.join(cells)}</tr>"


def table(heads: Sequence[str], rows: Sequence[str], caption: str) -> str:
    """A table that sorts by a click on a heading; `rows` are pieces of HTML, the rest is escaped here."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    return (
        f'<div class="wide"><table class="sortable"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def picture(caption: str, content: bytes) -> str:
    """A PNG inside the page; the caption is escaped here."""
    caption = escape(caption)
    data = base64.b64encode(content).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def bullets(lines: Sequence[str]) -> str:
    """Sentences as a list; escaped here."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)
