"""Options and output that several commands share. Imports of weight happen inside functions."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from slosched.core.engine import Engine
    from slosched.lab.bench import Bench
    from slosched.lab.store import Store
    from slosched.workloads.sources import Generated, Replayed

PLACES = {
    "simulator": "simulator of vLLM's V1 scheduler",
    "vllm": "the installed vLLM's own scheduler under a virtual clock",
}
DEFAULT_ENGINE = "h100-llama-3.1-8b"
MOST_SEQS = 1_000_000
"""Requests at once, at most: an engine has room for thousands, and memory is taken for each."""
MOST_TOKENS = 2**31 - 1
"""Tokens of a limit, at most: what 32 bits hold, thousands of times what a GPU does."""
UNBOUNDED = 10_000
"""Columns: wider than any table."""

SEED = typer.Option("--seed", min=0, help="Seed; of several, the first.")
ENGINE = typer.Option(
    "--engine",
    metavar="NAME|FILE",
    help="Engine: limits and step times measured on real GPUs by name, or a JSON file of `slosched fit`.",
)
ON = typer.Option(
    "--on", help="simulator, or vllm: the installed vLLM's own scheduler under a virtual clock."
)
DEPTH = typer.Option("--depth", min=1, help="Steps in flight at once, with --on vllm.")
ASYNC = typer.Option("--async", help="Asynchronous scheduling, with --on vllm.")
ENGINES = typer.Option(
    "--engines", min=1, help="Engines behind a --router; of kinds A and B in turn: --engine A,B."
)
WORKLOAD = typer.Option(
    "--workload",
    help="mixed, chat, code, batch, reasoning, agentic, azure, sharegpt-batch, mooncake, bursty.",
)
DURATION = typer.Option("--duration", help="Seconds of traffic, for built-in workloads.")
REQUESTS = typer.Option("--requests", help="Requests of one replay, for traces.")

Seed = Annotated[int, SEED]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
EngineName = Annotated[str, ENGINE]
EngineNames = Annotated[
    list[str] | None,
    typer.Option(
        "--engine", metavar="NAME|FILE", help="Engine: preset, or a JSON file of `slosched fit`; several."
    ),
]
MaxSeqs = Annotated[
    int | None,
    typer.Option(
        "--max-num-seqs", min=1, max=MOST_SEQS, help="Requests that run at once, over the engine's."
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-num-batched-tokens", min=1, max=MOST_TOKENS, help="Tokens of a step, over the engine's."
    ),
]
KvTokens = Annotated[
    int | None,
    typer.Option("--kv-tokens", min=1, max=MOST_TOKENS, help="Tokens of KV cache, over the engine's."),
]
On = Annotated[str, ON]
Depth = Annotated[int, DEPTH]
Asynchronous = Annotated[bool, ASYNC]
Engines = Annotated[int, ENGINES]
RouterName = Annotated[
    str | None,
    typer.Option(
        "--router", metavar="NAME",
        help="With --engines: slosched, power-of-two, least-tokens, lmetric, …, NAME:key=value, "
        "package.module:Class.",
    ),
]  # fmt: skip
WorkloadName = Annotated[str, WORKLOAD]
Traces = Annotated[
    list[str] | None,
    typer.Option(
        "--trace",
        metavar="FILE[=CLASS][@UNIT]",
        help="Replay a trace file instead; several are mixed. The classes chat, code, batch, agentic and "
        "reasoning have limits of their own. UNIT: s, ms, us or ns, where the times do not say it.",
    ),
]
Slos = Annotated[
    list[str] | None,
    typer.Option("--slo", metavar="CLASS:LIMITS", help="Limits of a trace's class: chat:ttft=1,tpot=0.05"),
]
Forecast = Annotated[
    str | None, typer.Option("--forecast", help="Length forecasts: oracle, lognormal:0.5, …")
]
Duration = Annotated[float, DURATION]
Requests = Annotated[int, REQUESTS]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; all cores by default.")]
Kept = Annotated[
    Path | None,
    typer.Option("--out", help="Folder that keeps the runs: the same command goes on from there."),
]


def print_json(content: Any) -> None:
    """Strict JSON on standard output; NaN and infinity become null."""
    print(json.dumps(_finite(content), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value


def print_table(table: Any) -> None:
    """A rich table as wide as the terminal, or 120 columns where there is none.

    Nothing is cut: words are folded first, and where that is not enough the terminal breaks the lines.
    Square brackets are text: a class of a trace may be called ``[/b]``.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(markup=False)
    width = console.width if console.is_terminal else 120
    wide = console.options.update(width=UNBOUNDED)
    room = Measurement.get(console, wide, table)
    if width < room.maximum:
        for column in table.columns:
            column.overflow, column.no_wrap = "fold", False
    Console(width=max(width, room.minimum), markup=False).print(table)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on standard error; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report


@contextmanager
def compiling() -> Iterator[None]:
    """Say on standard error when kernels are compiled, which only a first use does, and how long it takes."""
    from numba.core import event

    from slosched.core.compiling import eased

    live = sys.stderr.isatty()

    class Compiles(event.Listener):  # type: ignore[misc]
        """Counts kernels as the compiler takes them up; one kernel's parts are compiled within it."""

        begun, kernels, depth = 0.0, 0, 0

        def on_start(self, _: object) -> None:
            """Count a kernel."""
            if not self.begun:
                self.begun = time.perf_counter()
                meanwhile.enter_context(eased())
                say("First use: kernels are compiled and kept in a cache (`slosched warmup` compiles all).")
            self.kernels += self.depth == 0
            self.depth += 1
            if live:
                print(f"\rcompiling kernel {self.kernels} …", end="", file=sys.stderr, flush=True)

        def on_end(self, _: object) -> None:
            """A kernel, or a part of one, is done."""
            self.depth -= 1

    listener = Compiles()
    with ExitStack() as meanwhile, event.install_listener("numba:compile", listener):
        yield
    if listener.kernels:
        took_s = time.perf_counter() - listener.begun
        many = "kernel" if listener.kernels == 1 else f"{listener.kernels} kernels"
        say(("\r" if live else "") + f"Compiled {many} in {took_s:.1f} s.")


def prepare(policies: Iterable[str]) -> None:
    """Compile what policies and simulator need, before processes start that would each do it."""
    from dataclasses import replace

    import numpy as np

    from slosched.core.workload import Workload
    from slosched.simulator import simulate

    n = 40
    crowd = replace(
        Workload.plain(np.linspace(0.0, 0.04, n), np.full(n, 2000), np.full(n, 3)),
        ttft_s=np.full(n, 0.5), tpot_s=np.full(n, 0.05), e2e_s=np.full(n, 2.0),
    )  # fmt: skip
    with compiling():
        for policy in policies:
            simulate(crowd, policy)


def say(words: str) -> None:
    """A remark on standard error, so that standard output stays clean for `--json`."""
    print(words, file=sys.stderr)


def require_folder(out: Path) -> None:
    """Raise `InputError` unless files can be written into this folder, which may have to be made: better
    before the work than after it.
    """
    from slosched.core.errors import require

    place = out.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    require(place.is_dir(), "out", "a folder, or a name that is free", str(out))
    require(os.access(place, os.W_OK), "out", "a place that can be written to", str(out))


def store_of(folder: Path | None) -> Store:
    """The results so far in a folder, with a word on those that cannot be read; in memory without one."""
    from slosched.lab.store import Store
    from slosched.report.bundle import check_folder

    if folder is None:
        return Store()
    check_folder(folder, pictures=False)
    store = Store(folder / "runs.jsonl")
    for complaint in store.complaints:
        say(complaint)
    return store


def engine_of(
    name: str,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    kv_tokens: int | None = None,
) -> Engine:
    """The engine of a name or file, with the limits that were given over its own."""
    from slosched.core.engine import find_engine

    return find_engine(name).with_limits(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, kv_tokens=kv_tokens
    )


def engines_of(
    names: str,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    kv_tokens: int | None = None,
    *,
    engines: int,
) -> list[Engine]:
    """Kinds of engine, separated by commas, for so many engines: they take turns."""
    from slosched.core.errors import require

    kinds = names.split(",")
    require(len(kinds) <= engines, "engine", f"one name, or at most --engines ({engines})", names)
    return [engine_of(name.strip(), max_num_seqs, max_num_batched_tokens, kv_tokens) for name in kinds]


def source_of(
    *,
    engine: Engine,
    workload: str,
    traces: Sequence[str] | None,
    slos: Sequence[str] | None,
    forecast: str | None,
    duration_s: float,
    requests: int,
) -> Generated | Replayed:
    """Where requests come from, as the options say."""
    from slosched.core.errors import require
    from slosched.workloads.builtin import DEFAULT_FORECAST
    from slosched.workloads.sources import Generated, TraceFile, data_folder, parse_slo, trace_source

    guess = forecast or DEFAULT_FORECAST
    if not traces:
        require(not slos, "slo", "given with --trace", slos)
        return Generated(
            kind=workload,
            duration_s=duration_s,
            forecast=guess,
            engine=engine,
            data=data_folder(),
        )
    limits = {}
    for text in slos or ():
        name, colon, given = text.partition(":")
        require(bool(colon), "slo", "CLASS:LIMITS", text)
        limits[name] = parse_slo(given)
    words: list[str] = []
    source = trace_source(
        [TraceFile.of(text) for text in traces],
        said=words.append,
        slos=limits,
        requests=requests,
        forecast=forecast,
        engine=engine,
    )
    # Only now: bad input is one line on standard error.
    for sentence in words:
        say(sentence)
    return source


def rate_of(rate: float | None, traces: Sequence[str] | None, default_rps: float) -> float | None:
    """The rate asked for; without one a trace is replayed as it is, and the rest has a default."""
    from slosched.core.errors import require

    ok = rate is None or 0 < rate < float("inf")
    require(ok, "rate", "a finite number of requests per second above 0", rate)
    return default_rps if rate is None and not traces else rate


def bench_of(
    kinds: Sequence[Engine],
    source: Generated | Replayed,
    *,
    on: str = "simulator",
    depth: int = 1,
    asynchronous: bool = False,
    engines: int = 1,
    router: str | None = None,
) -> Bench:
    """An engine with its requests: the simulator, or vLLM's scheduler under a virtual clock; or several."""
    from slosched.core.errors import require
    from slosched.lab.bench import Bench

    require(on in PLACES, "on", f"one of {', '.join(PLACES)}", on)
    engine = kinds[0]
    if engines > 1 or router is not None:
        from slosched.lab.bench import FleetBench
        from slosched.routers import router as router_of

        require(on == "simulator", "engines", "1 with --on vllm", engines)
        router_of(router or "slosched")  # a wrong name shows now, not after kernels have been compiled
        return FleetBench(
            source=source, engine=engine, engines=engines, router=router or "slosched",
            others=tuple(kinds[1:]),
        )  # fmt: skip
    if on == "vllm":
        from slosched.testing.virtual_clock import VllmBench

        return VllmBench(
            source=source, engine=engine, depth=depth,
            asynchronous=asynchronous,
        )  # fmt: skip
    require(depth == 1, "depth", "given with --on vllm", depth)
    require(not asynchronous, "async", "given with --on vllm", asynchronous)
    return Bench(source=source, engine=engine)


def about_engine(
    kinds: Sequence[Engine], on: str = "simulator", *, engines: int = 1, router: str | None = None
) -> list[str]:
    """A sentence on each kind of engine for a report, and one on the fleet if there are several."""
    said = []
    for engine in kinds:
        limits = engine.limits
        said.append(
            f"Engine: {PLACES[on]}, {engine.name}{f' ({engine.source})' if engine.source else ''}; at most "
            f"{limits.max_num_seqs} sequences, {limits.max_num_batched_tokens} tokens a step, "
            f"{limits.kv_tokens} tokens of KV cache."
        )
    if engines > 1:
        turns = ", kinds in turn" if len(kinds) > 1 else ""
        said.append(f"{engines} engines{turns}, behind the router {router or 'slosched'}; load 1 is theirs.")
    return said
