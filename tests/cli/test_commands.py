"""Every command does its work and speaks JSON."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slosched import StepTimeModel
from slosched.core.engine import Engine

QUEUE = {
    "now_s": 2.0,
    "requests": [
        {
            "request_id": "batch",
            "prompt_tokens": 24000,
            "forecast": {"0.5": 400, "0.9": 900},
            "arrival_s": 0.5,
        },
        {
            "request_id": "chat",
            "prompt_tokens": 350,
            "forecast": 120,
            "ttft_s": 1.0,
            "tpot_s": 0.05,
            "arrival_s": 1.6,
        },
        {
            "request_id": "old",
            "prompt_tokens": 2000,
            "forecast": 200,
            "generated_tokens": 40,
            "state": "running",
        },
    ],
}
SMALL = ("--duration", 20, "--jobs", 1)
COMMANDS = (
    "demo", "compare", "simulate", "capacity", "load", "doctor", "order", "fit", "policies", "warmup",
    "instances", "workload describe", "workload generate", "workload convert", "workload get",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(slosched: Any, command: str) -> None:
    """Each command's help names what it does and an example."""
    ended = slosched(*command.split(), "--help")
    assert ended.code == 0
    assert "Example: slosched " + command in " ".join(ended.out.split())


def test_help_is_quick_and_light() -> None:
    """The command line loads neither numpy nor numba before it knows what is asked."""
    code = (
        "import sys\nfrom slosched.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('numpy', 'numba', 'matplotlib', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(slosched: Any) -> None:
    """--version prints the version alone."""
    from slosched import __version__

    assert slosched("--version").out.strip() == __version__


def test_simulate_json_and_timeline(slosched: Any, tmp_path: Path) -> None:
    """Simulate prints all figures as JSON and writes a timeline that gzip and JSON can read."""
    path = tmp_path / "t.json.gz"
    ended = slosched(
        "simulate", "--policy", "edf", "--rate", 4, "--duration", 20, "--timeline", path, "--json"
    )
    assert ended.code == 0
    figures = json.loads(ended.out)
    assert figures["policy"] == "edf"
    assert figures["finished"] == figures["requests"] > 40
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 2 * figures["requests"]


def test_simulate_table_says_when_nobody_queued(slosched: Any) -> None:
    """At a crawling rate the table says that no queue formed."""
    ended = slosched("simulate", "--policy", "fcfs", "--rate", 0.2, "--duration", 60, "--workload", "chat")
    assert ended.code == 0
    assert "no policy can differ" in " ".join(ended.out.split())


def test_same_seed_same_result(slosched: Any) -> None:
    """The seed decides the outcome; another seed gives another workload."""
    command = ("compare", "--policy", "sjf", "--rate", 5, "--seeds", 1, *SMALL, "--json", "--seed")
    first, again, other = (json.loads(slosched(*command, s).out)["points"][0] for s in (1, 1, 2))
    for point in (first, again, other):
        for wall in ("wall_s", "plan_p50_us", "plan_p99_us"):
            del point[wall]
    assert first == again
    assert first != other


def test_compare_writes_the_folder(slosched: Any, tmp_path: Path) -> None:
    """Compare prints a table and leaves report, results, runs, pictures, timeline, and nothing temporary."""
    out = tmp_path / "out"
    ended = slosched(
        "compare", "--policy", "fcfs", "--policy", "slosched", "--load", 0.5, "--load", 1.3, "--seeds", 2,
        *SMALL, "--out", out,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "slosched" in ended.out
    assert sorted(path.name for path in out.iterdir()) == [
        "attainment.png", "classes.png", "latency.png", "queue.png", "report.html", "results.csv",
        "results.json", "runs.jsonl", "timeline.json.gz", "timeline.png",
    ]  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert len(results["points"]) == 8
    assert results["points"][0]["load"] == pytest.approx(0.5)


def test_compare_in_two_processes_gives_the_same(slosched: Any) -> None:
    """The number of processes changes nothing but wall times."""
    command = (
        "compare",
        "--policy",
        "fcfs",
        "--rate",
        3,
        "--rate",
        6,
        "--seeds",
        2,
        "--duration",
        20,
        "--json",
    )
    one, two = (json.loads(slosched(*command, "--jobs", jobs).out)["points"] for jobs in (1, 2))
    keep = ("policy", "rate_rps", "seed", "attainment", "e2e_s", "queue")
    assert [[p[k] for k in keep] for p in one] == [[p[k] for k in keep] for p in two]


def test_compare_csv_has_a_row_per_run(slosched: Any) -> None:
    """--csv prints one row per run under one header."""
    ended = slosched(
        "compare", "--policy", "fcfs", "--policy", "sjf", "--rate", 5, "--seeds", 1, *SMALL, "--csv"
    )
    lines = ended.out.splitlines()
    assert len(lines) == 3
    assert "attainment.value" in lines[0].split(",")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "policy: [fcfs, edf]\nrate: 4\nseeds: 1\nduration: 20\njobs: 1\non: simulator\n"),
        (
            "c.toml",
            'policy = ["fcfs", "edf"]\nrate = [4]\nseeds = 1\nduration = 20\njobs = 1\nmax-num-seqs = 64\n',
        ),
    ],
)
def test_config_file_and_options_on_top(slosched: Any, tmp_path: Path, name: str, text: str) -> None:
    """A YAML or TOML file sets the study; an option on the command line wins over it."""
    (tmp_path / name).write_text(text)
    ended = slosched("compare", "--config", tmp_path / name, "--policy", "hrrn", "--json")
    points = json.loads(ended.out)["points"]
    assert [(p["policy"], p["rate_rps"]) for p in points] == [("hrrn", 4.0)]


def test_one_seed_has_no_interval(slosched: Any) -> None:
    """An interval of no width would claim to be sure."""
    command = ("capacity", "--policy", "fcfs", "--seeds", 1, *SMALL)
    shown = slosched(*command)
    assert "(1 seed)" in " ".join(shown.out.split())
    assert " to " not in shown.out
    (row,) = json.loads(slosched(*command, "--json").out)
    assert row["mean_rps"] > 0
    assert row["low_rps"] is row["high_rps"] is None


def test_capacity_of_a_better_policy_is_not_lower(slosched: Any) -> None:
    """Capacity comes with an interval over seeds that contains its mean."""
    ended = slosched("capacity", "--policy", "fcfs", "--policy", "sjf+d", "--seeds", 2, "--json", *SMALL)
    found = json.loads(ended.out)
    assert [f["policy"] for f in found] == ["fcfs", "sjf+d"]
    for f in found:
        assert 0 < f["low_rps"] <= f["mean_rps"] <= f["high_rps"]
        assert len(f["rates_rps"]) == 2


def test_order_from_json(slosched: Any, tmp_path: Path) -> None:
    """Order lists all waiting requests, each with predictions, a verdict and a reason."""
    path = tmp_path / "queue.json"
    path.write_text(json.dumps(QUEUE))
    found = json.loads(slosched("order", path, "--json").out)
    assert found["now_s"] == 2.0
    assert [row["request_id"] for row in found["order"]] == ["chat", "batch"]
    chat, batch = found["order"]
    assert chat["slo"] == "will meet"
    assert 0.4 < chat["ttft_s"] < 1.0
    assert batch["slo"] == "best effort"
    assert "Moved first" in batch["why"]
    table = slosched("order", path)
    assert table.code == 0
    assert "will meet" in table.out


def test_order_names_the_refused(slosched: Any, tmp_path: Path) -> None:
    """A policy that refuses hopeless requests says whom; they are not in the order."""
    path = tmp_path / "queue.json"
    path.write_text(json.dumps(QUEUE | {"now_s": 60.0}), encoding="utf-8")
    found = json.loads(slosched("order", path, "--policy", "aibrix-slo", "--json").out)
    assert [row["request_id"] for row in found["order"]] == ["batch"]
    assert found["rejected"] == ["chat"]
    assert "Refused: chat" in slosched("order", path, "--policy", "aibrix-slo").out


def test_order_from_csv_follows_the_policy(slosched: Any, tmp_path: Path) -> None:
    """A CSV queue with empty cells works, and first come, first served goes by arrival."""
    path = tmp_path / "queue.csv"
    path.write_text("request_id,prompt_tokens,forecast,e2e_s,arrival_s\na,10,5,,2\nb,10,5,9.5,1\n")
    found = json.loads(slosched("order", path, "--policy", "fcfs", "--json").out)
    assert [row["request_id"] for row in found["order"]] == ["b", "a"]


def test_workload_round_trip(slosched: Any, tmp_path: Path) -> None:
    """A generated workload can be described, converted and replayed."""
    made, other = tmp_path / "made.csv.gz", tmp_path / "other.jsonl"
    ended = slosched("workload", "generate", "--rate", 3, "--duration", 60, "--out", made, "--json")
    count = json.loads(ended.out)["requests"]
    about = json.loads(slosched("workload", "describe", made, "--json").out)
    assert about["requests"] == count
    assert slosched("workload", "convert", made, "--class", "chat", "--out", other).code == 0
    assert len(other.read_text().splitlines()) == count
    figures = json.loads(slosched("simulate", "--trace", other, "--rate", 2, "--json").out)
    assert figures["requests"] == count
    assert list(figures["by_class"]) == ["chat"]


def test_trace_without_limits_takes_those_given(slosched: Any, tmp_path: Path) -> None:
    """Limits of a trace's class come from --slo; several traces are mixed by class."""
    path = tmp_path / "plain.csv"
    rows = "".join(f"{i},100,20\n" for i in range(30))
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    ended = slosched(
        "simulate", "--trace", f"{path}=mine", "--trace", f"{path}=code", "--slo", "mine:e2e=0.001", "--json"
    )
    assert ended.code == 0, ended.err
    shares = json.loads(ended.out)["by_class"]
    assert shares["mine"]["value"] == 0.0
    assert shares["code"]["value"] == 1.0


def test_fit_reports_and_writes(slosched: Any, tmp_path: Path) -> None:
    """A noiseless linear log is fitted exactly; model and picture are written."""
    log = tmp_path / "steps.csv"
    lines = ["prefill_tokens,attention_work,sequences,kv_tokens,seconds"]
    for i in range(200):
        tokens, sequences, kv = (37 * i) % 900, (7 * i) % 60, (991 * i) % 50_000
        work = tokens * tokens / 2
        lines.append(
            f"{tokens},{work},{sequences},{kv},{0.008 + 2e-5 * tokens + 1e-4 * sequences + 5e-8 * kv}"
        )
    log.write_text("\n".join(lines) + "\n")
    model, plot = tmp_path / "engine.json", tmp_path / "fit.png"
    found = json.loads(
        slosched("fit", log, "--out", model, "--plot", plot, "--kv-tokens", 64_000, "--json").out
    )
    assert found["mape"] < 1e-3
    assert found["r2"] > 0.999
    engine = Engine.load(model)
    assert engine.name == "steps"
    assert engine.limits.kv_tokens == 64_000
    assert engine.step_time.base_s == pytest.approx(0.008, rel=1e-2)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_fitted_engine_can_be_used(slosched: Any, tmp_path: Path) -> None:
    """A command takes an engine's file where it takes a name, and limits over its own."""
    file = tmp_path / "slow.json"
    Engine(name="slow", step_time=StepTimeModel(base_s=1.0)).save(file)
    run = ("simulate", "--workload", "chat", "--duration", 5, "--rate", 2, "--json", "--engine", file)
    slow = json.loads(slosched(*run).out)
    assert slow["ttft_s"]["mean"] > 1.0
    tight = json.loads(slosched(*run, "--max-num-seqs", 1).out)
    assert tight["ttft_s"]["mean"] > 2 * slow["ttft_s"]["mean"]
    file.write_text('{"limits": {"max_num_seqs": 0}, "step_time": {"base_s": 1}}')
    ended = slosched(*run)
    assert ended.code == 2
    assert "max_num_seqs must be" in ended.err


def test_policies_are_listed_with_words(slosched: Any) -> None:
    """Every policy comes with a sentence."""
    from slosched.policies import POLICIES

    found = json.loads(slosched("policies", "--json").out)
    assert list(found) == list(POLICIES)
    assert all(row["summary"] for row in found.values())
    assert found["slosched"]["parameters"]["hopeless"] == "demote"
    assert "edf+d" in slosched("policies").out


def test_instances_are_listed(slosched: Any) -> None:
    """The instance library is listed with values and bounds."""
    rows = json.loads(slosched("instances", "--json").out)["instances"]
    assert rows
    assert {"name", "goal", "value", "bound", "optimal", "by"} == set(rows[0])
