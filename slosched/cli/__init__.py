"""The slosched command."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import typer

from slosched.cli import data, evidence, instances, order, predictors, probe, router, runs, serving, tools
from slosched.core.errors import InputError, MissingExtraError
from slosched.core.named import blame

app = typer.Typer(
    name="slosched",
    help="Decide which requests an LLM inference engine serves next, so that most meet their SLOs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
OPERATOR, RESEARCHER, PREDICTOR = "For operators", "For researchers", "For predictors of answer lengths"
_passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["-h"]}
for user, commands in (
    (OPERATOR, (serving.doctor, router.router, tools.warmup, tools.fit, serving.load, evidence.whatif)),
    (OPERATOR, (order.order, tools.policies)),
    (RESEARCHER, (runs.demo, runs.compare, runs.simulate, runs.capacity, evidence.why)),
    (RESEARCHER, (evidence.evidence, evidence.scenario, instances.instances)),
    (PREDICTOR, (probe.collect, predictors.predict)),
):
    for command in commands:
        app.command(rich_help_panel=user)(command)
app.command(context_settings=_passed_on, rich_help_panel=RESEARCHER)(tools.bench)
app.add_typer(data.app, name="workload", rich_help_panel=RESEARCHER)
predictors.train.command("probe")(probe.train_probe)
app.add_typer(predictors.train, rich_help_panel=PREDICTOR)
app.add_typer(predictors.evaluate, rich_help_panel=PREDICTOR)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        from slosched import __version__

        print(__version__)
        raise typer.Exit


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of the signal."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 0 if done, 1 if it failed, 2 for bad input, 130 after Ctrl-C.

    Bad input of any kind is one line on standard error, never a traceback. A fault in a policy, router or
    predictor of your own is one, too: it names file, line and function.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A terminal without UTF-8 shows ? for what it lacks.
            stream.reconfigure(errors="replace")
    try:
        app(args=None if arguments is None else list(arguments))
    except InputError as error:
        _leave(str(error), 2)
    except UnicodeDecodeError as error:
        _leave(str(error), 2)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        _leave(_words(error), 2)
    except OSError as error:
        _leave(_words(error), 1)
    except MissingExtraError as error:
        _leave(str(error), 1)
    except MemoryError as error:
        _leave(f"not enough memory; ask for fewer requests: {error}", 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer's answer to Ctrl-C, which says nothing.
            _leave("interrupted.", INTERRUPTED)
        raise
    except Exception as error:
        if (words := blame(error)) is None:
            raise
        _leave(words, 1)


def _words(error: OSError) -> str:
    """What the system complains of, without its number."""
    if error.strerror is None:
        return str(error)
    return f"{error.strerror}{f': {error.filename}' if error.filename else ''}."


def _leave(message: str, code: int) -> None:
    print(f"slosched: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
