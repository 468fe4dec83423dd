"""Pictures of a comparison as PNG files; needs matplotlib (extra ``plot``)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import MissingExtraError
from slosched.core.metrics import Spread
from slosched.core.outcome import Run
from slosched.lab.comparison import OURS, REFERENCE, Comparison
from slosched.report.palette import FAINT, INK, MET, MISSED, WAIT, Line, lines, spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW_S = 60.0
"""Length of the request timeline."""

MOST_LINES = 90
"""Requests drawn in a timeline."""

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.size": 9.5,
    "grid.color": "#EEEEEE",
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def all_pngs(comparison: Comparison) -> dict[str, bytes]:
    """Every picture by file name; those that need whole runs only if the comparison kept some.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    require_matplotlib()
    files = {
        "attainment.png": _png(lambda: attainment_figure(comparison)),
        "classes.png": _png(lambda: class_figure(comparison)),
    }
    if comparison.details:
        files |= {
            "latency.png": _png(lambda: latency_figure(comparison)),
            "timeline.png": _png(lambda: timeline_figure(comparison)),
            "queue.png": _png(lambda: queue_figure(comparison)),
        }
    return files


def require_matplotlib() -> None:
    """Raise `MissingExtraError` unless pictures can be drawn: ask before a long computation."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None


def _png(draw: Callable[[], Figure]) -> bytes:
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = draw()
        buffer = io.BytesIO()
        # Without the Software entry the bytes depend on the picture alone.
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    # Not pyplot: no global state, no display, safe in threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def attainment_figure(comparison: Comparison) -> Figure:
    """Weighted attainment against load, one line per policy, bands over seeds, labels at the lines' ends."""
    figure, axes = _figure(8.6, 4.6)
    ax = axes[0][0]
    rates = comparison.rates_rps
    if len(rates) == 1:
        return _one_load_figure(comparison)
    x = np.array([r / comparison.sustained_rps if comparison.relative else r for r in rates])
    ends = []
    drawn = lines(comparison)
    banded = (OURS, comparison.best_baseline)
    for line in drawn:
        spreads = [comparison.attainment(line.policy, rate) for rate in rates]
        mean = 100 * np.array([s.mean for s in spreads])
        _draw(ax, line, x, mean)
        if line.label:
            low, high = (100 * np.array([getattr(s, end) for s in spreads]) for end in ("low", "high"))
            if line.policy in banded:
                ax.fill_between(x, low, high, color=line.colour, alpha=0.16, linewidth=0, zorder=1)
            ends.append((line, float(mean[-1])))
    bottom = min(100 * comparison.attainment(line.policy, r).mean for line in drawn for r in rates)
    ax.set_ylim(max(0.0, bottom - 4), 101)
    _label_ends(ax, ends, float(x[-1]))
    crowd = sum(not line.label for line in drawn)
    ax.set_title("Requests that met their SLOs, by weight (bands: 95 % interval over seeds)")
    if crowd:
        ax.text(0.01, 0.03, f"grey: {crowd} other policies", transform=ax.transAxes, color="#888888")
    known = (
        "offered load, 1 = what the engine sustains" if comparison.relative else "offered load in requests/s"
    )
    ax.set_xlabel(known)
    ax.set_ylabel("attainment in %")
    return figure


def _one_load_figure(comparison: Comparison) -> Figure:
    """Weighted attainment at the only load: a bar for each policy, with its interval."""
    policies = comparison.policies[::-1]
    figure, axes = _figure(8.6, 1.2 + 0.3 * len(policies))
    ax = axes[0][0]
    spreads = [comparison.attainment(policy, comparison.rates_rps[0]) for policy in policies]
    _bars(ax, policies, spreads, {line.policy: line.colour for line in lines(comparison)})
    ax.set_title(
        f"Requests that met their SLOs at {comparison.where(comparison.rates_rps[0])}, by weight, in %"
    )
    return figure


def _bars(ax: Axes, policies: Sequence[str], spreads: Sequence[Spread], colours: Mapping[str, str]) -> None:
    """Horizontal bars of shares in %, each with its interval and its mean as a number."""
    mean = 100 * np.array([s.mean for s in spreads])
    error = np.array([[100 * (s.mean - s.low), 100 * (s.high - s.mean)] for s in spreads]).T
    thin = {"lw": 0.8, "ecolor": "#666666"}
    ax.barh(policies, mean, xerr=error, color=[colours[p] for p in policies], height=0.75, error_kw=thin)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for y, value in enumerate(mean):
        ax.text(102, y, f"{value:.0f}", va="center", fontsize=8, color=INK, bbox=behind)
    ax.grid(axis="x")
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, 116)
    ax.set_xticks(range(0, 101, 25))
    for tick in ax.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() == OURS else "normal")


def _draw(ax: Axes, line: Line, x: Floats, y: Floats, **options: Any) -> None:
    ax.plot(x, y, color=line.colour, linestyle=line.dash, linewidth=line.width, zorder=line.layer, **options)


def _label_ends(ax: Axes, ends: list[tuple[Line, float]], right: float) -> None:
    low, high = ax.get_ylim()
    places = spaced([y for _, y in ends], 0.052 * (high - low), low, high)
    for (line, y), place in zip(ends, places, strict=True):
        ax.annotate(
            line.label,
            xy=(right, y),
            xytext=(1.04, (place - low) / (high - low)),
            textcoords="axes fraction",
            color=line.colour,
            fontweight="bold" if line.policy == OURS else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.colour, "linewidth": 0.6, "shrinkB": 2},
        )


def class_figure(comparison: Comparison) -> Figure:
    """Attainment of each class at the highest load: one panel per class, one bar per policy."""
    classes, policies = comparison.classes, comparison.policies[::-1]
    colours = {line.policy: line.colour for line in lines(comparison)}
    top = comparison.rates_rps[-1]
    figure, axes = _figure(2.2 + 2.3 * len(classes), 1.1 + 0.24 * len(policies), 1, len(classes), sharey=True)
    for ax, name in zip(axes[0], classes, strict=True):
        shares = ([m.by_class[name].value for m in comparison.at(p, top)] for p in policies)
        _bars(ax, policies, [Spread.of(some, bounds=(0.0, 1.0)) for some in shares], colours)
        ax.set_title(name)
    figure.suptitle(f"SLOs met by class at {comparison.where(top)}, in %", x=0.01, ha="left", fontsize=11)
    return figure


def latency_figure(comparison: Comparison) -> Figure:
    """Cumulative distributions of TTFT, TPOT and end-to-end latency in the detailed runs."""
    figure, axes = _figure(10.5, 3.7, 1, 3, sharey=True)
    runs = {run.policy: run for run in comparison.details}
    kinds = (("ttft_s", "time to first token in s", 1.0), ("tpot_s", "time per output token in ms", 1e3))
    for ax, (kind, label, scale) in zip(
        axes[0], (*kinds, ("e2e_s", "end-to-end latency in s", 1.0)), strict=True
    ):
        for line in lines(comparison):
            if line.policy in runs:
                out = runs[line.policy].outcomes
                values = getattr(out, kind)
                if kind == "tpot_s":
                    values = values[out.workload.output_tokens > 1]
                values = np.sort(scale * values[np.isfinite(values) & (values > 0)])
                share = 100 * np.arange(1, len(values) + 1) / max(1, len(values))
                _draw(ax, line, values, share, label=line.label or None)
        _log_scale(ax)
        ax.set_xlabel(label)
        ax.set_ylim(0, 100)
    axes[0][0].set_ylabel("share of requests in %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels))
    figure.suptitle(
        f"Latencies at {comparison.where(comparison.detail_rate_rps)}", x=0.01, ha="left", fontsize=11
    )
    return figure


def _log_scale(ax: Axes) -> None:
    """Logarithmic axis with plain numbers; linear where the values span less than a factor of 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.dataLim.intervalx
    if not 0 < 5 * low < high:
        return
    decades = np.log10(high / low)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def queue_figure(comparison: Comparison) -> Figure:
    """Waiting requests over time in the detailed runs."""
    figure, axes = _figure(8.6, 3.4)
    ax = axes[0][0]
    runs = {run.policy: run for run in comparison.details}
    for line in lines(comparison):
        if line.policy in runs:
            log = runs[line.policy].log
            _draw(ax, line, log.depth_time_s, log.depth_waiting.astype(float), label=line.label or None)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper")
    ax.set_xlabel("engine clock in s")
    ax.set_ylabel("waiting requests")
    ax.set_ylim(bottom=0)
    ax.set_title(f"Queue depth at {comparison.where(comparison.detail_rate_rps)}")
    return figure


def timeline_figure(comparison: Comparison) -> Figure:
    """One overloaded minute, request by request, under first come, first served and under ours."""
    from matplotlib.patches import Patch

    runs = {run.policy: run for run in comparison.details}
    shown = [runs[p] for p in (REFERENCE, OURS) if p in runs] or list(comparison.details[:2])
    start_s = _crowded_start_s(shown[0])
    figure, axes = _figure(10.5, 3.0 * len(shown) + 0.5, len(shown), 1, sharex=True)
    for ax, run in zip(axes[:, 0], shown, strict=True):
        _gantt(ax, run, start_s)
    axes[-1, 0].set_xlabel("engine clock in s")
    patches = [
        Patch(color=WAIT, label="waiting"),
        Patch(color=MET, label="running, met its SLO"),
        Patch(color=MISSED, label="running, missed its SLO"),
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    title = f"Requests alive in one minute at {comparison.where(comparison.detail_rate_rps)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _crowded_start_s(run: Run) -> float:
    """Start of the minute around the longest queue of a run."""
    log = run.log
    if not len(log.depth_waiting):
        return 0.0
    longest_s = float(log.depth_time_s[int(np.argmax(log.depth_waiting))])
    return max(0.0, min(longest_s - WINDOW_S / 2, float(log.depth_time_s[-1]) - WINDOW_S))


def _inside(run: Run, start_s: float) -> Any:
    out = run.outcomes
    left_s = np.where(out.finished, out.finish_s, np.inf)
    return np.flatnonzero((out.arrival_s < start_s + WINDOW_S) & (left_s > start_s))


def _gantt(ax: Axes, run: Run, start_s: float) -> None:
    """One line per request, by class and arrival; every k-th request where there are many."""
    out, work = run.outcomes, run.outcomes.workload
    end_s = start_s + WINDOW_S
    alive = _inside(run, start_s)
    every = -(-len(alive) // MOST_LINES)
    rows = alive[np.argsort(work.class_index[alive], kind="stable")][::every]
    y = -np.arange(len(rows))
    finish_s = np.where(out.finished[rows], out.finish_s[rows], end_s)
    admitted_s = np.where(np.isfinite(out.admitted_s[rows]), out.admitted_s[rows], finish_s)
    for low, high, colour in (
        (out.arrival_s[rows], admitted_s, np.full(len(rows), WAIT)),
        (admitted_s, finish_s, np.where(out.met[rows], MET, MISSED)),
    ):
        low, high = np.clip(low, start_s, end_s), np.clip(high, start_s, end_s)
        ax.barh(y, high - low, left=low, height=0.8, color=colour, linewidth=0)
    kinds = work.class_index[rows]
    shown = [kind for kind in range(len(work.classes)) if (kinds == kind).any()]
    ax.set_yticks([y[kinds == kind].mean() for kind in shown], [work.classes[kind] for kind in shown])
    for kind in shown[1:]:
        ax.axhline(y[kinds == kind].max() + 0.5, color="#888888", linewidth=0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(start_s, end_s)
    ax.set_ylim(-len(rows) - 0.5, 1)
    ax.grid(visible=False)
    ax.spines["left"].set_color(FAINT)
    met = out.met[alive]
    drawn = f" (one in {every} drawn)" if every > 1 else ""
    ax.set_title(f"{run.policy}: {met.sum()} of {len(met)} requests met their SLOs{drawn}")
