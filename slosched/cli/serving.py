"""Commands around a real server: load, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slosched.cli import common as c

if TYPE_CHECKING:
    from slosched.core.outcome import Run
    from slosched.lab.load import LoadCounts
    from slosched.report.comparison import Comparison

STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def load(
    url: Annotated[str, typer.Argument(help="Root of an OpenAI-compatible server: http://localhost:8000")],
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 1.0,
    workload: c.WorkloadName = "mixed",
    trace: c.Traces = None,
    slo: c.Slos = None,
    forecast: c.Forecast = None,
    duration: c.Duration = 60.0,
    requests: c.Requests = 200,
    seed: c.Seed = 0,
    engine: c.EngineName = c.DEFAULT_ENGINE,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    model: Annotated[str | None, typer.Option(help="Model at the server; its first one by default.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Leave out requests of more tokens than this.")
    ] = None,
    label: Annotated[str, typer.Option(help="Name of this run in reports.")] = "server",
    warm_up: Annotated[int, typer.Option(min=0, help="Requests sent first and not counted.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request is given up.")] = 600.0,
    abort_share: Annotated[float, typer.Option(help="Share of requests whose client hangs up early.")] = 0.0,
    text: Annotated[bool, typer.Option("--text", help="Send words, not token numbers.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Send no SLO, forecast or priority: for servers without vLLM.")
    ] = False,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Bearer token.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for report, results, pictures.")] = None,
    as_json: c.AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """Send a workload to a live server at its own pace and report which requests met their SLOs.

    Open loop: requests leave at their arrival times whatever the server does, and latencies count from
    those. The report is that of `compare`.

    Example: slosched load http://localhost:8000 --workload chat --rate 4 --duration 60 --out out/load
    """
    from dataclasses import replace

    from slosched.core.errors import require
    from slosched.lab.load import LoadCounts, LoadSettings
    from slosched.lab.load import load as send
    from slosched.report.bundle import check_folder

    require(not (as_json and as_csv), "format", "one of --json and --csv", "both")
    require(0 < rate < float("inf"), "rate", "a finite number of requests per second above 0", rate)
    require(url.startswith(("http://", "https://")), "url", "one that begins with http:// or https://", url)
    settings = LoadSettings(
        model=model, timeout_s=timeout, warm_up=warm_up, abort_share=abort_share, prompt_text=text,
        send_slo=not plain, send_forecast=not plain, send_priority=not plain, api_key=api_key, seed=seed,
    )  # fmt: skip
    if out is not None:
        check_folder(out)
    machine = c.engine_of(engine, max_num_seqs, max_num_batched_tokens, kv_tokens)
    if max_model_len is not None:
        machine = replace(machine, limits=replace(machine.limits, max_model_len=max_model_len))
    source = c.source_of(
        engine=machine, workload=workload, traces=trace, slos=slo, forecast=forecast, duration_s=duration,
        requests=requests,
    )  # fmt: skip
    sent = source(rate, seed)
    counts = LoadCounts()
    with c.progress_bar("sending") as bar:
        run = send(url, sent, settings, policy=label, progress=bar, counts=counts)
    _report(run, rate, counts, out=out, as_json=as_json, as_csv=as_csv)


def doctor(as_json: c.AsJson = False) -> None:
    """Say what slosched can do with the vLLM of this machine; exit code 1 if something is wrong.

    Reads the configuration that SLOSCHED_CONFIG names, probes vLLM's scheduler, makes a dry plan, and puts a
    hundred requests through the real scheduler with every token checked.

    Example: slosched doctor
    """
    from dataclasses import asdict

    from slosched.testing.doctor import examine

    report = examine()
    if as_json:
        c.print_json({"healthy": report.healthy, "findings": [asdict(f) for f in report.findings]})
    else:
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False)
        for finding in report.findings:
            table.add_row(
                finding.topic, Text(finding.status, style=STYLES[finding.status]), Text(finding.text)
            )
        c.print_table(table)
    if not report.healthy:
        raise typer.Exit(1)


def _report(
    run: Run, rate: float, counts: LoadCounts, *, out: Path | None, as_json: bool, as_csv: bool
) -> None:
    import json
    from dataclasses import asdict

    from slosched.report.bundle import write_bundle
    from slosched.report.export import results_csv, results_json
    from slosched.report.table import run_table

    comparison = _comparison(run, rate, counts)
    if as_json:
        content: dict[str, Any] = json.loads(results_json(comparison))
        c.print_json(content | {"client": asdict(counts)})
    elif as_csv:
        print(results_csv(comparison).decode(), end="")
    else:
        c.print_table(run_table(comparison.points[0].metrics))
        print(_words(counts))
    if out is not None:
        c.say(f"Report: {write_bundle(comparison, out)[0]}")


def _comparison(run: Run, rate: float, counts: LoadCounts) -> Comparison:
    """One run as a comparison of its own, so that reports are those of `compare`."""
    import math

    from slosched.report.comparison import Comparison, Point
    from slosched.report.metrics import Metrics

    work = run.outcomes.workload
    point = Point(policy=run.policy, load=math.nan, rate_rps=rate, seed=run.seed, metrics=Metrics.of(run))
    return Comparison(
        points=(point,), workload=work.name, source=work.source, details=(run,), detail_rate_rps=rate,
        about=(f"Engine: the live server {run.engine}, measured at the client. {_words(counts)}",),
    )  # fmt: skip


def _words(counts: LoadCounts) -> str:
    """What happened at the client, in a sentence."""
    bad = [f"{n} refused with status {status}" for status, n in sorted(counts.refused.items())]
    bad += [f"{n} failed with {name}" for name, n in sorted(counts.errors.items())]
    return (
        f"Client: {counts.finished} finished, {counts.aborted} aborted, {counts.timeouts} timed out"
        + "".join(f", {words}" for words in bad)
        + f"; sent at most {1000 * counts.latest_send_s:.0f} ms late."
    )


COMMANDS = (load, doctor)
