"""Commands around the engine model and the solvers: fit, bench, warmup, policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slosched.cli import common as c

NOT_IN_WORDS = ("seed", "clock", "budget_s", "params")
"""Parameters of policies that only Python can give, or that have an option of their own."""


def fit(
    log: Annotated[
        Path,
        typer.Argument(
            help="Step-time log, CSV or JSONL: prefill_tokens, attention_work, sequences, kv_tokens, seconds."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write an engine as JSON, for `--engine` of every command.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the engine; that of the log by default.")] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME|FILE", help="Engine whose limits the new one has.")
    ] = c.DEFAULT_ENGINE,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    plot: Annotated[Path | None, typer.Option(help="Draw predicted against measured steps (PNG).")] = None,
    knee: Annotated[
        int | None, typer.Option(help="Tokens beyond which steps grow faster; searched if absent.")
    ] = None,
    seed: c.Seed = 0,
    as_json: c.AsJson = False,
) -> None:
    """Fit a step-time model to a log of engine steps and test it on steps held out.

    A vLLM with slosched writes such a log where its configuration has ``step_log: steps.csv``.

    Example: slosched fit steps.csv --out engine.json --kv-tokens 430000
    """
    from dataclasses import asdict, replace

    from slosched.cli.written import written
    from slosched.core.fitting import fit_file, plot_fit

    model, report = fit_file(log, knee=knee, seed=seed)
    facts = {
        "mape": report.mape, "r2": report.r2, "rows_fitted": report.rows_fitted,
        "rows_held_out": report.rows_held_out,
    }  # fmt: skip
    if plot is not None:
        with written(plot) as place:
            plot_fit(report, place)
    if out is not None:
        base = c.engine_of(engine, max_num_seqs, max_num_batched_tokens, kv_tokens)
        source = f"fitted to {report.rows_fitted} steps of {log.name}; mean error {report.mape:.1%} held out"
        sources = {"decode": source, "prefill": source, "limits": f"those of {base.name}"}
        named = replace(base, name=name or log.name.split(".")[0], step_time=model, sources=sources)
        with written(out) as place:
            named.save(place)
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
    """List the policies with their parameters, those of installed packages included.

    Wherever a policy is named: NAME, NAME:KEY=VALUE,KEY=VALUE, or package.module:Class for one of your own
    (modules in the working directory count); @512 at the end sets the engine's token budget.

    Example: slosched policies
    """
    import inspect

    from slosched.core.errors import InputError
    from slosched.core.named import parameters_of
    from slosched.policies.registry import HOMES, find_policy, installed, unused

    found: dict[str, dict[str, Any]] = {}
    for name in (*HOMES, *installed()):
        try:
            factory = find_policy(name)
        except InputError as error:  # somebody else's package is broken: the others are still of use
            found[name] = {"summary": str(error), "parameters": {}, "error": True}
            continue
        words = " ".join((inspect.getdoc(factory) or "").split("\n\n")[0].split())
        own = {k: v for k, v in (parameters_of(factory) or {}).items() if k not in NOT_IN_WORDS}
        found[name] = {"summary": words, "parameters": own}
    for place, reason in unused().items():
        c.say(f"Not listed: {place}, since the name {reason}. Name it {place}.")
    if as_json:
        plain = (str, int, float, bool, type(None))
        for row in found.values():
            row["parameters"] = {
                k: v if isinstance(v, plain) else str(v) for k, v in row["parameters"].items()
            }
        c.print_json(found)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("policy", "what it does", "parameters")
    for name, row in found.items():
        parameters = ", ".join(f"{key}={value}" for key, value in row["parameters"].items())
        style = "red" if "error" in row else ""
        table.add_row(Text(name), Text(row["summary"], style=style), Text(parameters))
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
    from slosched.solvers.bench import main

    if what in ("--help", "-h"):
        print(context.get_help())
        return
    require(what == "solver", "benchmark", "solver", what)
    code = main(context.args)
    if code:
        raise typer.Exit(code)
