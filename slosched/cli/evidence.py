"""Commands that answer: evidence (does it help?), scenario (on what?), whatif (how many engines?), why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slosched.cli import common as c


def evidence(
    out: Annotated[Path, typer.Option(help="Folder for the site and the results so far.")] = Path(
        "out/evidence"
    ),
    config: Annotated[Path | None, typer.Option(help="YAML, TOML or JSON file: policies, draws, …")] = None,
    draws: Annotated[int | None, typer.Option(min=0, help="Random scenarios.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="First seed: below 10000 to tune on, from 10000 to report.")
    ] = None,
    policies: Annotated[str | None, typer.Option(help="Policies, separated by commas.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[@TOKENS][:KEY=VALUE,…][,router=NAME]", help="Policy; several."),
    ] = None,
    engines: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Random scenarios are fleets of so many engines; several sizes."),
    ] = None,
    cell: Annotated[
        list[str] | None, typer.Option(help="Named cell, or all; several. See `slosched scenario`.")
    ] = None,
    cell_seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each named cell.")] = None,
    scenario: Annotated[list[Path] | None, typer.Option(help="File of a scenario; several.")] = None,
    jobs: c.Jobs = None,
    ray: Annotated[bool, typer.Option("--ray", help="Spread the runs over a Ray cluster.")] = False,
    adopt: Annotated[
        int | None,
        typer.Option(
            min=1, help="Run so many results of older code again per policy; if equal, keep the rest."
        ),
    ] = None,
    as_json: c.AsJson = False,
) -> None:
    """Run policies over random scenarios, and write a site that shows wins and losses.

    Without options it takes less than ten minutes on two cores, needs no data, and gives the same digits on
    machines of one kind. Results are kept as they come: interrupted, the same command goes on where it
    stopped.

    Behind a router: slosched evidence --engines 4 --policies "slosched,slosched,router=power-of-two"

    Example: slosched evidence --draws 20 --seed 0 --policies slosched,paced-edf,qoserve:from_first=true
    """
    from slosched.core.errors import require
    from slosched.lab.cells import adopt as adopt_results
    from slosched.lab.evidence import cells_of, headline, load_evidence, run_evidence, split_policies
    from slosched.lab.named_cells import NAMED
    from slosched.lab.parallel import RayWorkers, Workers, cores
    from slosched.report.bundle import check_folder
    from slosched.report.evidence_site import results, write_site
    from slosched.report.evidence_table import evidence_tables

    asked = [*split_policies(policies or ""), *(policy or [])]
    require(policies is None or bool(asked), "policies", "one or more, separated by commas", repr(policies))
    cells = [name for given in cell or [] for name in (NAMED if given == "all" else [given])]
    only_others = draws is None and bool(cells or scenario)
    study = load_evidence(
        config, policies=asked, engines=engines, draws=0 if only_others else draws, first_seed=seed,
        cells=cells, cell_seeds=cell_seeds, scenarios=scenario,
    )  # fmt: skip
    check_folder(out, pictures=False)
    store = c.store_of(out)
    try:
        if adopt is not None:
            with c.progress_bar("checking results of older code") as bar:
                for label, (kept, old) in adopt_results(
                    cells_of(study), store, sample=adopt, progress=bar
                ).items():
                    c.say(f"{label}: {kept} of {old} results of older code kept.")
        with c.progress_bar("evidence") as bar:
            found = run_evidence(
                study, store, jobs=jobs or cores(), progress=bar, workers=RayWorkers if ray else Workers
            )
    except KeyboardInterrupt:
        c.say(f"Interrupted; the results so far are in {store.path}: the same command goes on from there.")
        raise typer.Exit(130) from None
    summary = found.summary()
    if as_json:
        c.print_json(results(found, summary))
    else:
        for shown in evidence_tables(summary):
            c.print_table(shown)
        for line in headline(summary):
            print(line)
    # Last: where the disk is full, there are tables at least.
    c.say(f"Site: {write_site(found, summary, out, store.complaints)}")


def scenario(
    which: Annotated[
        str | None,
        typer.Argument(help="Seed of a random scenario, or name of a cell; without it: the names."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of a named cell.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File to write instead of the screen.")] = None,
) -> None:
    """Print a scenario as the config file from which it reruns to the digit.

    Example: slosched scenario 17 --out mine.yaml && slosched evidence --scenario mine.yaml
    """
    from slosched.cli.written import written
    from slosched.lab.named_cells import NAMED, named
    from slosched.lab.population import draw

    if which is None:
        print("\n".join(NAMED))
        return
    found = draw(int(which)) if which.isdigit() else named(which, seed)
    if out is not None:
        with written(out) as place:
            found.save(place)
        c.say(f"Scenario {found.name} in {out}.")
    else:
        print(found.to_yaml(), end="")


def whatif(
    rate: Annotated[float, typer.Option(help="Requests per second of the whole traffic.")],
    engine: c.EngineNames = None,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    policy: Annotated[list[str] | None, typer.Option(help="Policy; several.")] = None,
    target: Annotated[float, typer.Option(help="Share of requests, by weight, to keep.")] = 0.95,
    most: Annotated[int, typer.Option(min=1, help="Most engines to try.")] = 64,
    router: c.RouterName = None,
    workload: c.WorkloadName = "mixed",
    trace: c.Traces = None,
    slo: c.Slos = None,
    forecast: c.Forecast = None,
    duration: c.Duration = 120.0,
    requests: c.Requests = 1000,
    seed: c.Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 2,
    jobs: c.Jobs = None,
    out: c.Kept = None,
    as_json: c.AsJson = False,
) -> None:
    """Find how few engines keep 95 % of a traffic's SLOs under each policy, and what reordering saves.

    A router sends requests to the engines; each runs the policy on its own queue.

    Example: slosched whatif --rate 40 --engine h100-llama-3.1-8b --engine a100-llama-3.1-8b
    """
    import dataclasses

    from rich.table import Table

    from slosched.core.errors import require
    from slosched.lab.parallel import Interrupted, cores
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
        machine.name: c.bench_of([machine], c.source_of(
            engine=machine, workload=workload, traces=trace, slos=slo, forecast=forecast,
            duration_s=duration, requests=requests,
        ))
        for machine in machines
    }  # fmt: skip
    require(len(benches) == len(machines), "engine", "of distinct names", [m.name for m in machines])
    store = c.store_of(out)
    c.prepare(policies)
    code = 0
    with c.progress_bar("planning") as bar:
        try:
            needs = instances_needed(
                benches, policies, rate_rps=rate, seeds=range(seed, seed + seeds), target=target, most=most,
                jobs=jobs or cores(), progress=bar, router=router or "slosched", store=store,
            )  # fmt: skip
        except Interrupted as stop:
            needs = [stop.results[i] for i in sorted(stop.results)]
            code = 130
    if as_json:
        c.print_json([dataclasses.asdict(need) for need in needs])
        raise typer.Exit(code)
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
    if code:
        c.say(f"Interrupted: {len(needs)} of {len(benches) * len(policies)} answers.")
        raise typer.Exit(code)


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
