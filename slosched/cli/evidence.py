"""Commands that answer: evidence (does it help?), whatif (how many engines?), why (what happened?)."""

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
    full: Annotated[bool, typer.Option("--full", help="The whole grid instead of the small one.")] = False,
    mix: Annotated[list[str] | None, typer.Option(help="Mix of traffic; several.")] = None,
    load: Annotated[list[float] | None, typer.Option(help="Multiple of the FCFS capacity; several.")] = None,
    forecast: Annotated[list[str] | None, typer.Option(help="Forecast of lengths; several.")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(metavar="NAME[@TOKENS][:KEY=VALUE,…]", help="Policy; several.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.")] = None,
    requests: Annotated[int | None, typer.Option(min=10, help="Requests of a run.")] = None,
    engine: Annotated[str | None, typer.Option(metavar="NAME", help="Engine, by name.")] = None,
    jobs: c.Jobs = None,
    ray: Annotated[bool, typer.Option("--ray", help="Spread the runs over a Ray cluster.")] = False,
    as_json: c.AsJson = False,
) -> None:
    """Run every policy on every mix, load and forecast, and write a site that shows wins and losses.

    Results are kept as they come: interrupted, the same command goes on where it stopped. Replays the real
    traces if the variable SLOSCHED_DATA names their folder, else generators fitted to them.

    Example: slosched evidence --out out/evidence
    """
    from slosched.lab.evidence_config import FULL, SMALL, load_evidence
    from slosched.lab.evidence_grid import Store, run_grid
    from slosched.lab.evidence_summary import summarise
    from slosched.lab.parallel import RayWorkers, Workers, cores
    from slosched.report.bundle import check_folder
    from slosched.report.evidence_site import headline_words, write_site
    from slosched.workloads.sources import data_folder

    study = load_evidence(
        config, FULL if full else SMALL, mixes=mix, loads=load, forecasts=forecast, policies=policy,
        seeds=seeds, requests=requests, preset=engine,
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


def whatif(
    rate: Annotated[float, typer.Option(help="Requests per second of the whole traffic.")],
    engine: c.EngineNames = None,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    policy: Annotated[list[str] | None, typer.Option(help="Policy; several.")] = None,
    target: Annotated[float, typer.Option(help="Share of requests, by weight, to keep.")] = 0.95,
    most: Annotated[int, typer.Option(min=1, help="Most engines to try.")] = 64,
    workload: c.WorkloadName = "mixed",
    trace: c.Traces = None,
    slo: c.Slos = None,
    forecast: c.Forecast = None,
    duration: c.Duration = 120.0,
    requests: c.Requests = 1000,
    seed: c.Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 2,
    jobs: c.Jobs = None,
    as_json: c.AsJson = False,
) -> None:
    """Find how few engines keep 95 % of a traffic's SLOs under each policy, and what reordering saves.

    Requests go to the engines in turn; each engine runs the policy on its own queue.

    Example: slosched whatif --rate 40 --engine h100-llama-3.1-8b --engine a100-llama-3.1-8b
    """
    import dataclasses

    from rich.table import Table

    from slosched.core.errors import require
    from slosched.lab.parallel import cores
    from slosched.lab.whatif import instances_needed
    from slosched.policies import PolicySpec

    policies = policy or ["fcfs", "priority", "edf+d", "slosched"]
    for name in policies:
        PolicySpec.parse(name)
    machines = [
        c.engine_of(name, max_num_seqs, max_num_batched_tokens, kv_tokens)
        for name in engine or [c.DEFAULT_ENGINE]
    ]
    benches = {
        machine.name: c.bench_of(machine, c.source_of(
            engine=machine, workload=workload, traces=trace, slos=slo, forecast=forecast,
            duration_s=duration, requests=requests,
        ))
        for machine in machines
    }  # fmt: skip
    require(len(benches) == len(machines), "engine", "of distinct names", [m.name for m in machines])
    with c.progress_bar("planning") as bar:
        needs = instances_needed(
            benches, policies, rate_rps=rate, seeds=range(seed, seed + seeds), target=target, most=most,
            jobs=jobs or cores(), progress=bar,
        )  # fmt: skip
    if as_json:
        c.print_json([dataclasses.asdict(need) for need in needs])
        return
    table = Table(title=f"Engines that keep {target:.0%} at {rate:g} requests/s")
    for head in ("engine", "policy", "engines", "GPUs", "attainment", "GPUs saved against the first policy"):
        table.add_column(head, justify="left" if head in ("engine", "policy") else "right")
    for need in needs:
        first = next(n for n in needs if n.engine == need.engine)
        saved = "–" if need.gpus is None or first.gpus is None else str(first.gpus - need.gpus)
        table.add_row(
            need.engine, need.policy, str(need.instances or f"more than {most}"), str(need.gpus or "–"),
            f"{need.attainment:.1%}", saved,
        )  # fmt: skip
    c.print_table(table)


def why(
    run: Annotated[Path, typer.Option(help="Run saved by `slosched simulate --save`.")],
    request: Annotated[
        str | None, typer.Argument(help="Request, by its name or number; without it: who missed its SLO.")
    ] = None,
    as_json: c.AsJson = False,
) -> None:
    """Tell what happened to one request of a run, what cost it its SLO, and what would have saved it.

    Example: slosched simulate --policy edf --rate 9 --save run.json.gz && slosched why 17 --run run.json.gz
    """
    import dataclasses

    from slosched.lab.runfile import read_run
    from slosched.lab.why import missed
    from slosched.lab.why import why as tell

    saved = read_run(run)
    if request is None:
        late = missed(saved)
        if as_json:
            c.print_json(late)
        else:
            print(f"{len(late)} of {len(saved.workload)} missed: {' '.join(late) or 'nobody'}")
        return
    story = tell(saved, request)
    if as_json:
        c.print_json(dataclasses.asdict(story))
        return
    for line in story.words:
        print(line)


COMMANDS = (evidence, whatif, why)
