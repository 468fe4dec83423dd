"""Commands around the engine model and the solvers: fit, bench, warmup, policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slosched.cli import common as c


def fit(
    log: Annotated[
        Path,
        typer.Argument(
            help="Step-time log, CSV or JSONL: prefill_tokens, attention_work, sequences, kv_tokens, seconds."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Write the model as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw predicted against measured steps (PNG).")] = None,
    knee: Annotated[
        int | None, typer.Option(help="Tokens beyond which steps grow faster; searched if absent.")
    ] = None,
    seed: c.Seed = 0,
    as_json: c.AsJson = False,
) -> None:
    """Fit a step-time model to a log of engine steps and test it on steps held out.

    Example: slosched fit steps.csv --out model.json --plot fit.png
    """
    import json
    from dataclasses import asdict

    from slosched.core.files import write_file
    from slosched.timing.fitting import fit_file, plot_fit

    model, report = fit_file(log, knee=knee, seed=seed)
    facts = {
        "mape": report.mape, "r2": report.r2, "rows_fitted": report.rows_fitted,
        "rows_held_out": report.rows_held_out,
    }  # fmt: skip
    if plot is not None:
        plot_fit(report, plot)
    if out is not None:
        write_file(out, (json.dumps(asdict(model), indent=1) + "\n").encode())
    if as_json:
        c.print_json({"model": asdict(model), **facts})
        return
    for name, value in asdict(model).items():
        print(f"{name:18} {value:.6g}")
    print(
        f"Held-out error: MAPE {100 * report.mape:.2f} %, R² {report.r2:.4f} "
        f"({report.rows_held_out} steps; fitted on {report.rows_fitted})"
    )


def policies(as_json: c.AsJson = False) -> None:
    """List the policies.

    Example: slosched policies
    """
    import inspect

    from slosched.policies import POLICIES

    words = {
        name: " ".join((inspect.getdoc(factory) or "").split("\n\n")[0].split())
        for name, factory in POLICIES.items()
    }
    if as_json:
        c.print_json(words)
        return
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, text in words.items():
        table.add_row(name, text)
    c.print_table(table)


def warmup(as_json: c.AsJson = False) -> None:
    """Compile all kernels into the cache, so that nothing compiles while requests wait.

    Example: slosched warmup
    """
    from slosched.warmup import warm_up

    with c.progress_bar("compiling") as bar:
        seconds = warm_up(bar)
    if as_json:
        c.print_json({"seconds": seconds})
    else:
        print(f"Kernels are ready ({seconds:.1f} s).")


def bench(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="What to measure: solver.")],
) -> None:
    """Run a benchmark; further options go to it (--help after the name lists them).

    Example: slosched bench solver --quick --json bench.json
    """
    from slosched.core.errors import require
    from slosched.solvers.static.bench import main

    require(what == "solver", "benchmark", "solver", what)
    code = main(context.args)
    if code:
        raise typer.Exit(code)


COMMANDS = (fit, policies, warmup)
