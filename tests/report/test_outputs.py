"""Tables, pictures, page, trace and files made of results."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import struct
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from slosched.core.errors import InputError
from slosched.core.outcome import Run
from slosched.core.writing import write_files
from slosched.lab.comparison import Comparison
from slosched.lab.environment import environment
from slosched.report.bundle import check_folder, write_bundle
from slosched.report.export import results_csv, results_json
from slosched.report.html import Bar, Section, Table, render, report_html
from slosched.report.palette import lines, spaced
from slosched.report.plots import all_pngs, attainment_figure
from slosched.report.table import compare_table, notes
from slosched.report.trace import chrome_trace, slot_of_each, trace_bytes

VOID = ("meta", "img", "br", "link", "input")


class Strict(HTMLParser):
    """Collects tags and complains about one that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.references: list[str] = []
        self.rows: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="session")
def pictures(comparison: Comparison) -> dict[str, bytes]:
    """All pictures of the toy comparison."""
    return all_pngs(comparison)


def test_policies_are_ranked_by_the_crowded_rates(comparison: Comparison) -> None:
    """Ours is best in the toy, first come, first served worst; idle rates do not count."""
    assert comparison.policies[0] == "slosched"
    assert comparison.policies[-1] == "fcfs"
    assert comparison.crowded_rates_rps == [2.0, 2.8]
    assert comparison.best_baseline == comparison.policies[1]


def test_misses_beside(comparison: Comparison) -> None:
    """The ratio of misses is that of the mean attainments."""
    ours, theirs = (comparison.attainment(p, 2.8).mean for p in ("slosched", "fcfs"))
    assert comparison.misses_beside("slosched", "fcfs", 2.8) == pytest.approx((1 - ours) / (1 - theirs))
    assert np.isnan(comparison.misses_beside("slosched", "fcfs", 0.1))


def test_notes_name_the_rates_without_a_queue(comparison: Comparison) -> None:
    """Only the idle rate is said to tell policies apart not at all."""
    text = " ".join(notes(comparison))
    assert "At 0.05x: no queue formed" in text
    assert "1.00x = 2 req/s" in text
    assert "Misses of slosched" in text


def test_table_fits_a_terminal(comparison: Comparison) -> None:
    """At 120 columns no cell of the comparison is cut."""
    console = Console(width=120, file=io.StringIO())
    console.print(compare_table(comparison))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert all(policy in text for policy in comparison.policies)


def test_json_and_csv_agree(comparison: Comparison) -> None:
    """JSON is strict and holds every run; CSV has the same numbers, one row a run."""
    found = json.loads(results_json(comparison), parse_constant=pytest.fail)
    rows = list(csv.DictReader(io.StringIO(results_csv(comparison).decode())))
    assert len(found["points"]) == len(rows) == len(comparison.points)
    for point, row in zip(found["points"], rows, strict=True):
        assert float(row["weighted.value"]) == point["weighted"]["value"]
        assert float(row["by_class.chat.met"]) == point["by_class"]["chat"]["met"]
    assert found["environment"]["packages"]["numpy"] == np.__version__


def test_environment_names_no_place() -> None:
    """The environment names no folder and no user."""
    assert "/" not in json.dumps({k: v for k, v in environment().items() if k != "cpu"})


def test_page_is_valid_and_self_contained(comparison: Comparison, pictures: dict[str, bytes]) -> None:
    """The page closes what it opens and refers to nothing outside itself."""
    page = report_html(comparison, pictures).decode()
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert parser.tags["img"] == len(pictures) == 5
    assert parser.tags["table"] == 1 + len(comparison.rates_rps)
    assert all(reference.startswith("data:image/png;base64,") for reference in parser.references)
    outside = re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)
    assert "http" not in outside
    assert "A toy &amp; nothing more." in page
    assert "no queue formed" in page


def test_page_without_pictures(comparison: Comparison) -> None:
    """The tables stand on their own."""
    assert b"<img" not in report_html(comparison, {})


def test_pictures_are_pngs_of_some_size(pictures: dict[str, bytes]) -> None:
    """Each picture is a PNG at least 700 pixels wide."""
    for content in pictures.values():
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">I", content[16:20])[0] >= 700


def test_pictures_without_details(comparison: Comparison) -> None:
    """Pictures that need whole runs are left out where none were kept."""
    assert sorted(all_pngs(replace(comparison, details=()))) == ["attainment.png", "classes.png"]


def test_ours_is_always_drawn_on_top_in_its_colour(comparison: Comparison) -> None:
    """Ours comes last and keeps its colour whatever it is beside; only named lines have labels."""
    drawn = lines(comparison)
    assert drawn[-1].policy == "slosched"
    assert len([line for line in drawn if line.label]) == 6
    alone = replace(comparison, points=tuple(p for p in comparison.points if p.policy == "slosched"))
    assert lines(alone)[-1].colour == drawn[-1].colour
    assert len({line.colour for line in drawn if line.label}) == 6


def test_labels_do_not_overlap() -> None:
    """Labels keep their order and distance, and stay inside where there is room."""
    places = spaced([0.5, 0.5, 0.52, 0.9, 0.0], gap=0.1, low=0.0, high=1.0)
    assert places == [*sorted(places[:4]), places[4]]
    ordered = sorted(places)
    assert min(np.diff(ordered)) >= 0.1 - 1e-9
    assert ordered[0] >= 0
    assert ordered[-1] <= 1


def test_trace_has_the_fields_perfetto_needs(run: Run) -> None:
    """Every event has phase, process and name; slices have start, length and a slot of their own."""
    trace = chrome_trace(run)
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "b", "e", "C"}
    assert all({"ph", "pid", "name"} <= set(event) for event in events)
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == 2 * 5
    assert all(isinstance(e["ts"], int) and e["dur"] >= 0 for e in slices)
    first = [e for e in slices if e["name"].startswith("chat 0")]
    assert [(e["ts"], e["dur"]) for e in first] == [(0, 500_000), (500_000, 500_000)]
    assert first[0]["args"]["slo"] == "met"
    begun, ended = (sorted(e["id"] for e in events if e["ph"] == kind) for kind in "be")
    assert begun == ended == [1, 3]
    counters = [(e["ts"], e["args"]["waiting"]) for e in events if e["ph"] == "C"]
    assert counters == [(0, 0), (2_000_000, 3), (6_000_000, 1), (10_000_000, 0)]


def test_slices_of_a_slot_never_overlap(comparison: Comparison) -> None:
    """Whole requests on one slot follow each other."""
    out = comparison.details[0].outcomes
    slots = slot_of_each(out.admitted_s, out.finish_s)
    for slot in np.unique(slots):
        rows = np.flatnonzero(slots == slot)
        rows = rows[np.argsort(out.admitted_s[rows])]
        assert np.all(out.admitted_s[rows][1:] >= out.finish_s[rows][:-1])


def test_trace_bytes_are_reproducible(run: Run) -> None:
    """The same run gives the same bytes, plain or compressed."""
    assert trace_bytes(run, compress=True) == trace_bytes(run, compress=True)
    assert gzip.decompress(trace_bytes(run, compress=True)) == trace_bytes(run, compress=False)


def test_files_come_all_or_none(tmp_path: Path) -> None:
    """If one file cannot be written none is, and nothing temporary stays."""
    with pytest.raises(InputError, match="out must be"):
        write_files(tmp_path / "new", {"good": b"1", "no/such/folder": b"2"})
    assert list((tmp_path / "new").iterdir()) == []
    write_files(tmp_path / "new", {"good": b"1"})
    assert (tmp_path / "new" / "good").read_bytes() == b"1"


def test_bundle_refuses_a_file_in_its_place(comparison: Comparison, tmp_path: Path) -> None:
    """A folder below a file is refused early; a good one gets everything."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out must be a folder"):
        check_folder(tmp_path / "file" / "below")
    written = write_bundle(comparison, tmp_path / "good")
    assert written[0].name == "report.html"
    assert all(path.is_file() for path in written)


def test_one_load_is_drawn_as_bars(comparison: Comparison) -> None:
    """A line through one point would be an empty picture."""
    one = replace(comparison, points=tuple(p for p in comparison.points if p.rate_rps == 2.8), details=())
    (ax,) = attainment_figure(one).axes
    assert len(ax.patches) == len(one.policies)
    assert max(bar.get_width() for bar in ax.patches) > 50  # type: ignore[attr-defined]
    assert "1.40x" in ax.get_title()


def test_few_seeds_claim_nothing(comparison: Comparison) -> None:
    """With one or two seeds nobody is called ahead, however clear the figures look."""
    for seeds, words in ((1, "one seed is too few"), (2, "2 seeds are too few")):
        kept = comparison.seeds[:seeds]
        few = replace(comparison, points=tuple(p for p in comparison.points if p.seed in kept), details=())
        page = report_html(few, all_pngs(few)).decode()
        assert few.headline is not None
        assert words in few.headline
        assert "ahead" not in few.headline
        assert "Misses of" not in " ".join(notes(few))
        assert few.headline in unescape(page)


def test_intervals_look_alike_everywhere(comparison: Comparison) -> None:
    """A mean and its interval, never half of one."""
    page = report_html(comparison, {}).decode()
    assert "±" not in page
    assert re.search(r">\d+\.\d \(\d+\.\d to \d+\.\d\)</td>", page)


def test_one_policy_has_a_headline_and_a_range_of_requests(comparison: Comparison) -> None:
    """A run on a server is of one policy: the page says first what it kept, in the unit of its rate."""
    fcfs = tuple(replace(p, load=np.nan) for p in comparison.points if p.policy == "fcfs")
    page = unescape(report_html(replace(comparison, points=fcfs, details=()), {}).decode())
    assert re.search(r'class="headline">At [\d.]+ requests/s fcfs keeps [\d.]+ \([\d.]+ to [\d.]+\) %', page)
    assert "/s load" not in page
    longer = replace(fcfs[0], metrics=replace(fcfs[0].metrics, requests=7000))
    page = report_html(replace(comparison, points=(*fcfs[1:], longer), details=()), {}).decode()
    assert re.search(r"\d to 7000 requests a run", page)


def test_the_chart_of_a_study_has_a_point_where_the_mean_is() -> None:
    """A point at the mean, a line over the interval, ours marked; a single draw is a point alone."""
    bars = (
        Bar(head="slosched", mean=80.0, low=70.0, high=90.0, ours=True),
        Bar(head="<b>", mean=50.0, low=50.0, high=50.0),
    )
    table = Table(heads=("policy",), rows=(), caption="x")
    page = render(
        "study.html", title="t", size="s", headline=[], method=[], complaints=[], provenance=[],
        environment=[], sections=[Section(title="All", table=table, bars=bars)],
    ).decode()  # fmt: skip
    chart = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + len("</svg>")])
    ours, other = chart.findall("g")
    assert (ours.get("class"), other.get("class")) == ("ours", None)
    left, width = 5.0, 280.0  # of the axis, in units of the picture
    for group, bar in zip((ours, other), bars, strict=True):
        point, line, text = (group.find(name) for name in ("circle", "line", "text"))
        assert point is not None
        assert line is not None
        assert text is not None
        assert text.text == f"{bar.head} {bar.mean:.1f}"
        ends = [float(line.get(name, "")) for name in ("x1", "x2")]
        assert [(x - left) / width * 100 for x in ends] == pytest.approx([bar.low, bar.high], abs=0.05)
        assert (float(point.get("cx", "")) - left) / width * 100 == pytest.approx(bar.mean, abs=0.05)
