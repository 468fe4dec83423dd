"""The command around the library of queue instances."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slosched.cli import common as c

if TYPE_CHECKING:
    from slosched.solvers.instances import Instance

Check = Annotated[bool, typer.Option("--check", help="Recompute every stored plan by the slow evaluators.")]
File = Annotated[Path | None, typer.Option("--file", help="List or check this file, not the library.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Write a new set to this file; with --submit, the library to this folder."),
]
Submit = Annotated[
    Path | None, typer.Option("--submit", help="Take better plans from this file into the library.")
]
Mix = Annotated[str, typer.Option("--mix", help="azure, sharegpt-batch, mooncake, agentic or bursty.")]
Continuous = Annotated[bool, typer.Option("--static/--continuous", help="Kind of batching.")]
Load = Annotated[
    float | None, typer.Option("--load", help="Arrivals over capacity; 1.5, or more for long queues.")
]
Moves = Annotated[
    int, typer.Option("--moves", help="Moves of each search for best-known plans; 0: no plans.")
]


def instances(
    check: Check = False,
    file: File = None,
    out: Out = None,
    submit: Submit = None,
    mix: Mix = "azure",
    n: Annotated[int, typer.Option("--n", help="Waiting requests of an instance.")] = 50,
    count: Annotated[int, typer.Option("--count", min=1, help="Instances, one a seed.")] = 10,
    seed: c.Seed = 0,
    static: Continuous = True,
    max_batch: Annotated[int, typer.Option("--max-batch", help="Largest static batch.")] = 16,
    weighted: Annotated[bool, typer.Option("--weighted/--unweighted", help="Weights of the classes.")] = True,
    engine: c.EngineName = c.DEFAULT_ENGINE,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    load: Load = None,
    moves: Moves = 200_000,
    exact_s: Annotated[float, typer.Option("--exact-s", help="Seconds a proof may take.")] = 2.0,
    as_json: c.AsJson = False,
) -> None:
    """List the library of queue instances with the best plans known, check it, write new sets, submit plans.

    Example: slosched instances --check

    Example: slosched instances --out queues.json --mix azure --n 50 --count 10 --continuous

    Example: slosched instances --check --file queues.json

    Example: slosched instances --submit better.json

    New sets are queues of a simulated engine in overload, on real traces where SLOSCHED_DATA names their
    folder. Exit code 1: a stored plan does not recompute; 2: bad input.
    """
    from slosched.core.errors import require

    require(submit is None or not (check or file), "submit", "given without --check and --file", str(submit))
    if submit is not None:
        _take(submit, out, as_json)
        return
    require(
        out is None or not (check or file),
        "out",
        "given without --check and --file, or with --submit",
        str(out),
    )
    if out is not None:
        settings = {
            "kind": "static" if static else "continuous",
            "weighted": weighted,
            "max_batch": max_batch,
            "engine": c.engine_of(engine, max_num_seqs, max_num_batched_tokens, kv_tokens),
            "load": load,
        }
        _show(_write(out, mix, n, range(seed, seed + count), settings, moves, exact_s), [], as_json)
        return
    from slosched.solvers.instances import read
    from slosched.solvers.library import check as complaints
    from slosched.solvers.library import library

    found = library() if file is None else read(file)
    wrong = complaints(found) if check else []
    _show(found, wrong, as_json)
    if wrong:
        raise typer.Exit(1)


def _write(
    out: Path, mix: str, n: int, seeds: range, settings: dict[str, Any], moves: int, exact_s: float
) -> list[Instance]:
    """Take instances, search and prove, write."""
    from slosched.core.errors import require
    from slosched.lab.overload import overload
    from slosched.solvers.instances import write
    from slosched.solvers.library import with_best_known
    from slosched.workloads.sources import data_folder

    require(moves == 0 or moves >= 100, "moves", "0 or at least 100", moves)
    require(out.absolute().parent.is_dir(), "out", "a file in a folder that exists", str(out))
    found: list[Instance] = []
    try:
        with c.progress_bar("instances") as bar:
            for seed in seeds:
                instance = overload(mix, n, seed=seed, data_dir=data_folder(), **settings)
                found.append(with_best_known(instance, moves=moves, exact_s=exact_s) if moves else instance)
                bar(len(found), len(seeds))
    except KeyboardInterrupt:
        if found:
            write(out, found)
        c.say(f"Interrupted: {len(found)} of {len(seeds)} instances are done.")
        raise typer.Exit(130) from None
    write(out, found)
    return found


def _take(submitted: Path, out: Path | None, as_json: bool) -> None:
    """Merge a submission into the package's files, or write the merged files into a folder."""
    from slosched.core.errors import require
    from slosched.solvers.instances import read
    from slosched.solvers.library import library, store, submit

    require(out is None or out.is_dir(), "out", "a folder that exists, with --submit", str(out))
    merged, news = submit(library(), read(submitted))
    written = [str(path) for path in store(merged, out)] if news or out is not None else []
    if as_json:
        c.print_json({"improved": news, "written": written})
        return
    for line in news:
        print(line)
    print(f"{len(news)} better plans.")
    for name in written:
        print(f"Wrote {name}")


def _show(found: list[Instance], wrong: list[str], as_json: bool) -> None:
    rows = [
        {"name": i.name, "goal": goal, "value": best.value, "bound": best.bound}
        | {"optimal": best.optimal, "by": best.by}
        for i in found
        for goal, best in i.best.items()
    ]
    if as_json:
        c.print_json({"instances": rows, "wrong": wrong})
        return
    from rich.table import Table

    table = Table(title=f"{len(found)} instances")
    for head in ("name", "goal", "value", "bound", "optimal", "by"):
        table.add_column(head)
    for row in rows:
        table.add_row(*(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()))
    c.print_table(table)
    for complaint in wrong:
        c.say(complaint)
