"""The slosched command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from slosched.cli import data, evidence, instances, order, predictors, probe, router, runs, serving, tools
from slosched.core.errors import InputError, MissingExtraError

app = typer.Typer(
    name="slosched",
    help="Decide which requests an LLM inference engine serves next, so that most meet their SLOs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for module in (runs, order, serving, router, tools, instances, evidence, probe, predictors):
    for command in module.COMMANDS:
        app.command()(command)
_passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["-h"]}
app.command(context_settings=_passed_on)(tools.bench)
app.add_typer(data.app, name="workload")
predictors.train.command("probe")(probe.train_probe)
app.add_typer(predictors.train)
app.add_typer(predictors.evaluate)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        from slosched import __version__

        print(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 0 if done, 1 if it failed, 2 for bad input.

    Bad input of any kind is one line on standard error, never a traceback.
    """
    try:
        app(args=None if arguments is None else list(arguments))
    except InputError as error:
        _leave(str(error), 2)
    except (FileNotFoundError, IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        _leave(str(error), 2)
    except (MissingExtraError, OSError) as error:
        _leave(str(error), 1)
    except KeyboardInterrupt:
        _leave("interrupted; nothing was written.", 1)


def _leave(message: str, code: int) -> None:
    print(f"slosched: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
