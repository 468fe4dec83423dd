"""Commands on workloads: describe, generate, convert, get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slosched.cli import common as c

app = typer.Typer(help="Describe, generate, convert or download workloads.", no_args_is_help=True)

TimeUnit = Annotated[
    str | None, typer.Option(help="s, ms, us or ns, for times whose column does not say it.")
]
Output = Annotated[
    Path, typer.Option("--out", help="File to write: .csv or .jsonl, with .gz or .zst if wanted.")
]


@app.command()
def describe(
    file: Annotated[Path, typer.Argument(help="Trace, in any format that can be read.")],
    time_unit: TimeUnit = None,
    as_json: c.AsJson = False,
) -> None:
    """Print rates, lengths, burstiness and limits of a trace.

    On standard error it says what was recognised: format, unit of the times, columns read and not read.

    Example: slosched workload describe trace.csv.gz
    """
    from slosched.workloads.describe import describe as facts
    from slosched.workloads.readers import read

    found = facts(read(file, time_unit=time_unit, said=c.say))
    if as_json:
        c.print_json(found)
        return
    from rich.table import Table

    from slosched.report.export import flatten

    table = Table(title=str(file), show_header=False)
    table.add_column()
    table.add_column()
    for name, value in flatten(found).items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    c.print_table(table)


@app.command()
def generate(
    out: Output,
    workload: c.WorkloadName = "mixed",
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 5.0,
    duration: c.Duration = 300.0,
    forecast: c.Forecast = None,
    engine: c.EngineName = c.DEFAULT_ENGINE,
    seed: c.Seed = 0,
    as_json: c.AsJson = False,
) -> None:
    """Write a built-in workload to a file.

    Example: slosched workload generate --workload mixed --rate 6 --out mixed.csv.gz
    """
    from slosched.cli.written import written
    from slosched.workloads.builtin import DEFAULT_FORECAST
    from slosched.workloads.builtin import generate as make
    from slosched.workloads.writer import write

    made = make(
        workload, rate_per_s=rate, duration_s=duration, seed=seed, model=c.engine_of(engine).step_time,
        forecast=forecast or DEFAULT_FORECAST,
    )  # fmt: skip
    with written(out, ".csv") as place:
        write(made, place)
    _report(len(made), out, as_json)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="Trace, in any format that can be read.")],
    out: Output,
    slo_class: Annotated[str | None, typer.Option("--class", help="Put all requests in this class.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Stretch the clock to this rate; draw arrivals where a file has none."),
    ] = None,
    time_unit: TimeUnit = None,
    seed: c.Seed = 0,
    open_loop: Annotated[
        bool,
        typer.Option(
            "--open-loop",
            help="Send turns of sessions at their recorded times, not after the answer before.",
        ),
    ] = False,
    as_json: c.AsJson = False,
) -> None:
    """Rewrite a trace as our CSV or JSON lines.

    Example: slosched workload convert azure.csv --class chat --out chat.jsonl.gz
    """
    from slosched.cli.written import written
    from slosched.workloads import relabel
    from slosched.workloads.readers import read
    from slosched.workloads.writer import write

    made = read(
        file, rate_per_s=rate, seed=seed, open_loop=open_loop, time_unit=time_unit, said=c.say
    )  # fmt: skip
    if slo_class is not None:
        made = relabel(made, slo_class)
    with written(out, ".csv") as place:
        write(made, place)
    _report(len(made), out, as_json)


@app.command()
def get(
    names: Annotated[list[str] | None, typer.Argument(help="Names of traces; none lists them.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to put them in.")] = Path("traces"),
    mirror: Annotated[
        str | None, typer.Option(help="Address of a folder with the same files, instead of their publishers.")
    ] = None,
    as_json: c.AsJson = False,
) -> None:
    """Download public traces from their publishers and check them.

    Example: slosched workload get azure2023-code azure2023-conversation --out data/traces; then set
    SLOSCHED_DATA=data
    """
    from slosched.workloads.fetch import TRACES
    from slosched.workloads.fetch import get as download

    if not names:
        c.print_json({key: trace.url for key, trace in TRACES.items()})
        return
    paths = []
    for name in names:
        with c.progress_bar(name) as bar:
            paths.append(download(name, out, mirror=mirror, progress=bar))
        if not as_json:
            print(paths[-1])
    if as_json:
        c.print_json({"paths": [str(path) for path in paths]})


def _report(requests: int, out: Path, as_json: bool) -> None:
    from slosched.cli.written import passes_through

    if passes_through(out):
        c.say(f"{requests} requests in {out}")
    elif as_json:
        c.print_json({"requests": requests, "path": str(out)})
    else:
        print(f"{requests} requests in {out}")
