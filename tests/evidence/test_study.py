"""A study of the evidence: resumable, honest about corrupt results, readable without JavaScript."""

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from slosched.cli import app, main
from slosched.core.errors import InputError
from slosched.lab.evidence_config import SMALL, EvidenceConfig, load_evidence
from slosched.lab.evidence_grid import BOUND, Grid, Store, run_grid
from slosched.lab.evidence_summary import bootstrap, load_at_target, summarise
from slosched.policies import PolicySpec
from slosched.report.evidence_site import write_site
from slosched.report.metrics import Metrics

TINY = EvidenceConfig(
    mixes=("azure",), loads=(0.5, 1.5), forecasts=("predictor-5",), seeds=2, requests=30,
    policies=("slosched", "fcfs", "edf+d@512"),
)  # fmt: skip


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evidence") / "runs.jsonl"


@pytest.fixture(scope="module")
def grid(store_path: Path) -> Grid:
    return run_grid(TINY, Store(store_path))


def test_every_cell_is_there_once(grid: Grid) -> None:
    assert len(grid.cells) == len(set(grid.cells)) == 2 * 2 * (3 + 1)
    runs = list(grid.metrics("azure", "predictor-5"))
    assert len(runs) == 12
    assert all(m.requests == 30 for _, m in runs)
    assert all(0 < value <= 1 for _, value in grid.bounds("azure"))


def test_metrics_survive_the_file(grid: Grid) -> None:
    for _, metrics in grid.metrics("azure", "predictor-5"):
        assert Metrics.from_dict(json.loads(json.dumps(metrics.to_dict()))).to_dict() == metrics.to_dict()


def test_a_finished_study_runs_nothing_again(grid: Grid, store_path: Path) -> None:
    before = store_path.read_bytes()
    calls: list[tuple[int, int]] = []
    again = run_grid(TINY, Store(store_path), progress=lambda done, n: calls.append((done, n)))
    assert store_path.read_bytes() == before
    assert again == grid
    assert calls[-1][0] == calls[-1][1]


def test_corrupt_and_doubled_results(grid: Grid, store_path: Path, tmp_path: Path) -> None:
    lines = store_path.read_text().splitlines()
    spoiled = json.loads(lines[5])
    spoiled["result"] = dict.fromkeys(spoiled["result"], 0.5)
    broken = tmp_path / "runs.jsonl"
    broken.write_text("\n".join([*lines[:5], json.dumps(spoiled), *lines[6:], lines[7], lines[8][:40]]))
    store = Store(broken)
    assert [c.split(": ")[0] for c in store.complaints] == [
        f"{broken}, row 6",
        f"{broken}, row {len(lines) + 2}",
    ]
    mended = run_grid(TINY, store)
    plain = [r for c, r in zip(grid.cells, grid.results, strict=True)]
    for cell, a, b in zip(grid.cells, mended.results, plain, strict=True):
        for name in ("weighted", "e2e_s", "steps", "bound"):
            assert a.get(name) == b.get(name), cell
    # The mended line starts on a line of its own, after half a line.
    assert len(Store(broken).complaints) == 2


def test_summary_agrees_with_the_runs(grid: Grid) -> None:
    summary = summarise(grid)
    assert [c.load for c in summary.cells] == [0.5, 1.5]
    for cell in summary.cells:
        for policy in TINY.policies:
            values = [
                m.weighted.value
                for key, m in grid.metrics("azure", "predictor-5")
                if (key.policy, key.load) == (policy, cell.load)
            ]
            assert cell.attainment[policy] == pytest.approx(np.mean(values))
        assert cell.best_rival != "slosched"
        assert cell.advantage_low <= cell.advantage <= cell.advantage_high
        assert cell.attainment["slosched"] <= cell.bound + 1e-9
    assert json.dumps(summary.to_dict(), allow_nan=False)


def test_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        low, high = bootstrap(rng.normal(0.1, 1.0, 12), seed=trial)
        hits += low <= 0.1 <= high
    assert 170 <= hits <= 199  # percentile intervals of twelve values are a little short of 95 %


def test_load_at_target_at_the_ends() -> None:
    assert math.isnan(load_at_target([0.5, 1.0], [0.8, 0.7]))
    assert load_at_target([1.0, 0.5], [0.95, 0.99]) == 1.0


class _Tables(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        if tag == "a":
            self.links.append(dict(attrs)["href"] or "")


def test_site_is_whole(grid: Grid, tmp_path: Path) -> None:
    index = write_site(grid, summarise(grid), tmp_path / "site", ["a remark <b>"])
    page = _Tables()
    text = index.read_text()
    page.feed(text)
    assert page.rows >= 2 + 3
    assert all((index.parent / link).is_file() for link in page.links)
    assert len(page.links) == 1 + 3
    assert "a remark &lt;b&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    with (index.parent / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(grid.cells)
    assert {r["run_policy"] for r in rows} == {*TINY.policies, BOUND}
    assert json.loads((index.parent / "results.json").read_text())["config"]["seeds"] == 2


def test_contenders() -> None:
    found = PolicySpec.parse("slosched:starvation_s=60")
    assert (found.name, found.parameters) == ("slosched", {"starvation_s": 60})
    for text in ("nobody", "edf@", "edf@-3", "edf:x=1", "edf:x", "slosched:starvation_s=no"):
        with pytest.raises(InputError):
            PolicySpec.parse(text)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mixes": ["nowhere"]}, "nowhere"),
        ({"policies": ["slosched", "nobody"]}, "nobody"),
        ({"policies": ["slosched"]}, "rival"),
        ({"policies": ["slosched", "fcfs", "fcfs"]}, "distinct"),
        ({"loads": [-1.0]}, "-1"),
        ({"forecasts": ["tea-leaves"]}, "tea-leaves"),
        ({"seeds": 0}, "seeds"),
        ({"preset": "abacus"}, "abacus"),
    ],
)
def test_bad_config(changes: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        load_evidence(None, SMALL, **changes)


def test_bad_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("mixs: [azure]\n")
    with pytest.raises(SystemExit) as left:
        main(["evidence", "--config", str(file), "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "mixs" in error
    assert "mixes" in error
    assert not (tmp_path / "out").exists()


def test_command_goes_on_where_it_stopped(tmp_path: Path, grid: Grid, store_path: Path) -> None:
    out = tmp_path / "evidence"
    out.mkdir()
    lines = store_path.read_text().splitlines()
    (out / "runs.jsonl").write_text("\n".join(lines[:-3]) + "\n")
    arguments = [
        "evidence", "--out", str(out), "--mix", "azure", "--load", "0.5", "--load", "1.5", "--forecast",
        "predictor-5", "--policy", "slosched", "--policy", "fcfs", "--policy", "edf+d@512", "--seeds", "2",
        "--requests", "30", "--jobs", "1", "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments, env={"SLOSCHED_DATA": ""})
    assert result.exit_code == 0, result.output
    assert len((out / "runs.jsonl").read_text().splitlines()) == len(lines)
    printed = json.loads(result.stdout[result.stdout.index("{") : result.stdout.rindex("}") + 1])
    assert len(printed["cells"]) == 2
