"""Commands around a real server: load, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slosched.cli import common as c

if TYPE_CHECKING:
    from slosched.core.outcome import Run
    from slosched.lab.comparison import Comparison
    from slosched.lab.load import LoadCounts

STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def load(
    url: Annotated[str, typer.Argument(help="OpenAI-compatible server: http://localhost:8000, or with /v1")],
    rate: Annotated[
        float | None,
        typer.Option(help="Requests per second; 1 by default, or a trace's own times.", show_default=False),
    ] = None,
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
    timeout: Annotated[
        float, typer.Option(help="Seconds after which a request is given up, of warm-up too.")
    ] = 600.0,
    retries: Annotated[
        int, typer.Option(min=0, help="Times a request is sent again after a 429 or 503 with Retry-After.")
    ] = 2,
    abort_share: Annotated[float, typer.Option(help="Share of requests whose client hangs up early.")] = 0.0,
    thinking_end: Annotated[
        str, typer.Option(help="Text that ends thinking, where the server does not part it from the answer.")
    ] = "</think>",
    text: Annotated[bool, typer.Option("--text", help="Send words, not token numbers.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Ask for chat completions; sends words.")] = False,
    open_loop: Annotated[
        bool, typer.Option("--open-loop", help="Send turns of sessions at their recorded times.")
    ] = False,
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

    Requests leave at their arrival times whatever the server does; a turn of a session leaves think time
    after the answer before. Latencies count from the planned times. The report is that of `compare`.

    Every request ends in one of: finished, refused, cut off, failed, timed out, hung up on purpose, not sent;
    each with its reason. Ctrl-C reports what has ended by then. Exit code 1 if nothing finished, 130 after
    Ctrl-C.

    Example: slosched load http://localhost:8000 --workload chat --rate 4 --duration 60 --out out/load

    Example: slosched load http://localhost:8000/v1 --chat --trace today.jsonl.gz=chat
    """
    from dataclasses import replace

    from slosched.core.errors import require
    from slosched.lab.load import Interrupted, LoadCounts, LoadSettings
    from slosched.lab.load import load as send
    from slosched.report.bundle import check_folder

    require(not (as_json and as_csv), "format", "one of --json and --csv", "both")
    require(url.startswith(("http://", "https://")), "url", "one that begins with http:// or https://", url)
    rate_rps = c.rate_of(rate, trace, 1.0)
    settings = LoadSettings(
        model=model, timeout_s=timeout, warm_up=warm_up, abort_share=abort_share, prompt_text=text, chat=chat,
        retries=retries, thinking_end=thinking_end, send_slo=not plain, send_forecast=not plain,
        send_priority=not plain,
        api_key=api_key, seed=seed,
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
    sent = source(rate_rps, seed)
    if open_loop:
        sent = sent.open_loop()
    counts, code = LoadCounts(), 0
    try:
        with c.progress_bar("sending") as bar:
            run = send(url, sent, settings, policy=label, progress=bar, counts=counts)
    except Interrupted as stop:
        run, code = stop.run, 130
        c.say(f"Stopped: the report holds the {len(run.outcomes.workload)} requests that had ended.")
    c.say(f"Workload: {len(sent)} requests, {sent.source}.")
    _report(run, counts, out=out, as_json=as_json, as_csv=as_csv)
    if code == 0 and counts.finished == 0:
        c.say("No request finished.")
        code = 1
    if code:
        raise typer.Exit(code)


def doctor(
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that the policy may take for a dry plan.")
    ] = 60.0,
    as_json: c.AsJson = False,
) -> None:
    """Say what slosched can do with the vLLM of this machine; exit code 1 if something is wrong.

    Reads the configuration that SLOSCHED_CONFIG names, probes vLLM's scheduler, makes a dry plan, and puts a
    hundred requests through the real scheduler with every token checked. A policy that never returns is told
    after the time-out.

    Example: slosched doctor

    Example: slosched doctor --timeout 10
    """
    from dataclasses import asdict

    from slosched.testing.doctor import examine

    report = examine(timeout)
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


def _report(run: Run, counts: LoadCounts, *, out: Path | None, as_json: bool, as_csv: bool) -> None:
    import json
    from dataclasses import asdict

    from slosched.report.bundle import write_bundle
    from slosched.report.export import results_csv, results_json
    from slosched.report.table import run_table

    if len(run.outcomes.workload) == 0:
        # Stopped before anything had ended: there is nothing to report but that.
        if as_json:
            c.print_json({"client": asdict(counts)})
        else:
            print(counts.sentences())
        return
    comparison = _comparison(run, counts)
    if as_json:
        content: dict[str, Any] = json.loads(results_json(comparison))
        c.print_json(content | {"client": asdict(counts)})
    elif as_csv:
        print(results_csv(comparison).decode(), end="")
        c.say(counts.sentences())
    else:
        c.print_table(run_table(comparison.points[0].metrics))
        print(counts.sentences())
    if out is not None:
        c.say(f"Report: {write_bundle(comparison, out)[0]}")


def _comparison(run: Run, counts: LoadCounts) -> Comparison:
    """One run as a comparison of its own, so that reports are those of `compare`."""
    import math

    from slosched.core.metrics import Metrics
    from slosched.lab.comparison import Comparison, Point

    work, metrics = run.outcomes.workload, Metrics.of(run)
    rate = metrics.offered_rps
    point = Point(policy=run.policy, load=math.nan, rate_rps=rate, seed=run.seed, metrics=metrics)
    return Comparison(
        points=(point,), workload=work.name, source=work.source, details=(run,), detail_rate_rps=rate,
        about=(f"Engine: the live server {run.engine}, measured at the client. {counts.sentences()}",),
    )  # fmt: skip
