"""Command evidence: the whole study, resumable, as a site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slosched.cli import common as c


def evidence(
    out: Annotated[Path, typer.Option(help="Folder for the site and the results so far.")] = Path(
        "out/evidence"
    ),
    config: Annotated[Path | None, typer.Option(help="YAML or TOML file: mixes, loads, policies, …")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="The whole grid instead of ten minutes' worth.")
    ] = False,
    mix: Annotated[list[str] | None, typer.Option(help="Mix of traffic; several.")] = None,
    load: Annotated[list[float] | None, typer.Option(help="Multiple of the FCFS capacity; several.")] = None,
    forecast: Annotated[list[str] | None, typer.Option(help="Forecast of lengths; several.")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(metavar="NAME[@TOKENS][:KEY=VALUE,…]", help="Policy; several.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.")] = None,
    requests: Annotated[int | None, typer.Option(min=10, help="Requests of a run.")] = None,
    preset: Annotated[str | None, typer.Option(help="Engine.")] = None,
    jobs: c.Jobs = None,
    ray: Annotated[bool, typer.Option("--ray", help="Spread the runs over a Ray cluster.")] = False,
    as_json: c.AsJson = False,
) -> None:
    """Run every policy on every mix, load and forecast, and write a site that shows wins and losses.

    Results are kept as they come: interrupted, the same command goes on where it stopped. Replays the real
    traces if the variable SLOSCHED_DATA names their folder, else generators fitted to them.

    Example: slosched evidence --out out/evidence
    """
    from slosched.evidence.config import FULL, SMALL, load_evidence
    from slosched.evidence.grid import Store, run_grid
    from slosched.evidence.site import headline_words, write_site
    from slosched.evidence.summary import summarise
    from slosched.parallel import RayWorkers, Workers, cores
    from slosched.report.bundle import check_folder
    from slosched.sources import data_folder

    study = load_evidence(
        config, FULL if full else SMALL, mixes=mix, loads=load, forecasts=forecast, policies=policy,
        seeds=seeds, requests=requests, preset=preset,
    )  # fmt: skip
    check_folder(out)
    store = Store(out / "runs.jsonl")
    for complaint in store.complaints:
        c.say(complaint)
    try:
        with c.progress_bar("evidence") as bar:
            grid = run_grid(
                study, store, jobs=jobs or cores(), data=data_folder(), progress=bar,
                workers=RayWorkers if ray else Workers,
            )  # fmt: skip
    except KeyboardInterrupt:
        c.say(f"Interrupted; the results so far are in {store.path}: the same command goes on from there.")
        raise typer.Exit(1) from None
    summary = summarise(grid)
    index = write_site(grid, summary, out, store.complaints)
    if as_json:
        c.print_json(summary.to_dict())
    else:
        for line in headline_words(summary):
            print(line)
    c.say(f"Site: {index}")


COMMANDS = (evidence,)
