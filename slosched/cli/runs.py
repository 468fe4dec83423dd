"""Commands that simulate: demo, compare, simulate, capacity."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slosched.cli import common as c

if TYPE_CHECKING:
    from slosched.lab.comparison import Comparison
    from slosched.lab.study import Study

DEMO_LOADS = (0.4, 0.6, 0.8, 1.0, 1.3)
DEMO_SEEDS = 3
DEMO_SECONDS = 120.0
"""Seconds of traffic of one run of the demonstration, which is to take less than three minutes."""
DEMO_POLICIES = (
    "slosched", "fcfs", "priority", "edf+d", "edf+d@512", "qoserve:from_first=true", "proserve",
    "slidingserve:from_first=true", "slos-serve", "paced-edf", "paced-wspt",
)  # fmt: skip
"""What the demonstration has time for, and `compare` unless told; any other by name."""

Policies = Annotated[
    list[str] | None, typer.Option("--policy", help="Policy; several; the usual ones by default.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for report, results, pictures, timeline.")]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out/demo"),
    trace: c.Traces = None,
    slo: c.Slos = None,
    seed: c.Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = DEMO_SEEDS,
    engine: c.EngineName = c.DEFAULT_ENGINE,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    engines: c.Engines = 1,
    router: c.RouterName = None,
    jobs: c.Jobs = None,
    as_json: c.AsJson = False,
) -> None:
    """Compare with the strongest other policies on a mixed workload at five loads, and write a report.

    The workload comes from generators fitted to public traces, or from the files given with --trace.

    Example: slosched demo --out out/demo
    """
    from slosched.lab.parallel import cores
    from slosched.lab.study import Study
    from slosched.report.bundle import check_folder
    from slosched.workloads.sources import Generated

    check_folder(out)
    kinds = c.engines_of(engine, max_num_seqs, max_num_batched_tokens, kv_tokens, engines=engines)
    machine = kinds[0]
    if trace:
        source = c.source_of(
            engine=machine,
            workload="mixed",
            traces=trace,
            slos=slo,
            forecast=None,
            duration_s=300.0,
            requests=2000,
        )
    else:
        source = Generated(engine=machine, duration_s=DEMO_SECONDS)
    c.say(f"Workload: {source(1.0, seed).source}")
    study = Study(
        bench=c.bench_of(kinds, source, engines=engines, router=router),
        policies=DEMO_POLICIES,
        seeds=tuple(range(seed, seed + seeds)),
        loads=DEMO_LOADS,
        jobs=jobs or cores(),
    )
    _finish(
        study, c.about_engine(kinds, engines=engines, router=router), out=out, as_json=as_json, as_csv=False
    )


def compare(
    policy: Policies = None,
    load: Annotated[
        list[float] | None, typer.Option(help="Offered work over what the engine sustains; several.")
    ] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Requests/s, instead of --load; several.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML, TOML or JSON file whose keys are these options: policy: [fcfs, edf]."),
    ] = None,
    workload: Annotated[str | None, c.WORKLOAD] = None,
    trace: c.Traces = None,
    slo: c.Slos = None,
    forecast: c.Forecast = None,
    duration: Annotated[float | None, c.DURATION] = None,
    requests: Annotated[int | None, c.REQUESTS] = None,
    engine: Annotated[str | None, c.ENGINE] = None,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    engines: Annotated[int | None, c.ENGINES] = None,
    router: c.RouterName = None,
    on: Annotated[str | None, c.ON] = None,
    depth: Annotated[int | None, c.DEPTH] = None,
    asynchronous: Annotated[bool | None, c.ASYNC] = None,
    seed: Annotated[int | None, c.SEED] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.")] = None,
    jobs: c.Jobs = None,
    out: Out = None,
    as_json: c.AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """Compare policies over loads and seeds on a built-in workload or on traces.

    What is given neither here nor in the file: 300 seconds of the workload mixed, or 2,000 requests of the
    traces, at five loads, under the policies of `demo`, three seeds, on h100-llama-3.1-8b.

    Example: slosched compare --policy fcfs --policy slosched --load 0.7 --load 1.2 --seeds 5
    """
    from slosched.cli.config import load_config
    from slosched.core.errors import require
    from slosched.lab.parallel import cores
    from slosched.lab.study import Study
    from slosched.report.bundle import check_folder

    require(not (as_json and as_csv), "format", "one of --json and --csv", "both")
    given = {
        "policy": policy, "load": load, "rate": rate, "workload": workload, "trace": trace, "slo": slo,
        "forecast": forecast, "duration": duration, "requests": requests, "engine": engine,
        "max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens,
        "kv_tokens": kv_tokens, "engines": engines, "router": router, "on": on, "depth": depth,
        "async": asynchronous, "seed": seed, "seeds": seeds, "jobs": jobs, "out": out,
    }  # fmt: skip
    plan = load_config(config, given)
    if plan.out is not None:
        check_folder(plan.out)
    kinds = c.engines_of(
        plan.engine, plan.max_num_seqs, plan.max_num_batched_tokens, plan.kv_tokens, engines=plan.engines
    )
    machine = kinds[0]
    source = c.source_of(
        engine=machine, workload=plan.workload, traces=plan.trace, slos=plan.slo, forecast=plan.forecast,
        duration_s=plan.duration, requests=plan.requests,
    )  # fmt: skip
    study = Study(
        bench=c.bench_of(
            kinds, source, on=plan.on, depth=plan.depth, asynchronous=plan.asynchronous,
            engines=plan.engines, router=plan.router,
        ),
        policies=tuple(plan.policy) or DEMO_POLICIES,
        seeds=tuple(range(plan.seed, plan.seed + plan.seeds)),
        loads=tuple(plan.load) if plan.load or plan.rate else DEMO_LOADS,
        rates_rps=tuple(plan.rate),
        jobs=plan.jobs or cores(),
    )  # fmt: skip
    about = c.about_engine(kinds, plan.on, engines=plan.engines, router=plan.router)
    _finish(study, about, out=plan.out, as_json=as_json, as_csv=as_csv)


def simulate(
    policy: Annotated[str, typer.Option(help="Policy.")] = "slosched",
    rate: Annotated[
        float | None,
        typer.Option(help="Requests per second; 5 by default, or a trace's own times.", show_default=False),
    ] = None,
    workload: c.WorkloadName = "mixed",
    trace: c.Traces = None,
    slo: c.Slos = None,
    forecast: c.Forecast = None,
    duration: c.Duration = 300.0,
    requests: c.Requests = 2000,
    on: c.On = "simulator",
    depth: c.Depth = 1,
    asynchronous: c.Asynchronous = False,
    engine: c.EngineName = c.DEFAULT_ENGINE,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    engines: c.Engines = 1,
    router: c.RouterName = None,
    seed: c.Seed = 0,
    timeline: Annotated[
        Path | None, typer.Option(help="Write a trace for ui.perfetto.dev (.json, .json.gz).")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the whole run, for `slosched why` (.json, .json.gz).")
    ] = None,
    as_json: c.AsJson = False,
) -> None:
    """Run one policy on one workload and print everything about it.

    Example: slosched simulate --policy edf --rate 8 --timeline edf.json.gz

    Several engines: slosched simulate --engines 4 --router least-tokens --rate 40

    Of two kinds: slosched simulate --engines 4 --engine h100-llama-3.1-8b,a100-llama-3.1-8b --rate 30
    """
    from slosched.cli.written import written
    from slosched.core.errors import require
    from slosched.core.metrics import Metrics
    from slosched.core.writing import write_file
    from slosched.lab.runfile import write_run
    from slosched.report.table import fleet_rows, fleet_table, run_table
    from slosched.report.trace import trace_bytes
    from slosched.simulator.fleet import FleetRun

    kinds = c.engines_of(engine, max_num_seqs, max_num_batched_tokens, kv_tokens, engines=engines)
    machine = kinds[0]
    source = c.source_of(
        engine=machine, workload=workload, traces=trace, slos=slo, forecast=forecast, duration_s=duration,
        requests=requests,
    )  # fmt: skip
    require(engines == 1 or save is None, "save", "given with one engine", save)
    rate_rps = c.rate_of(rate, trace, 5.0)
    bench = c.bench_of(
        kinds, source, on=on, depth=depth, asynchronous=asynchronous, engines=engines, router=router
    )
    c.prepare([policy])
    run = bench.run(policy, rate_rps, seed)
    metrics = Metrics.of(run)
    if timeline is not None:
        with written(timeline) as place:
            write_file(place, trace_bytes(run, compress=timeline.suffix == ".gz"))
    if save is not None:
        with written(save) as place:
            write_run(place, run, machine)
    fleet = run if isinstance(run, FleetRun) else None
    if as_json:
        c.print_json(metrics.to_dict() | ({"engines": fleet_rows(fleet)} if fleet else {}))
    else:
        c.print_table(run_table(metrics, engines=engines))
        if fleet:
            c.print_table(fleet_table(fleet))


def capacity(
    policy: Policies = None,
    target: Annotated[float, typer.Option(help="Share of requests that must meet their SLOs.")] = 0.9,
    workload: c.WorkloadName = "mixed",
    trace: c.Traces = None,
    slo: c.Slos = None,
    forecast: c.Forecast = None,
    duration: c.Duration = 300.0,
    requests: c.Requests = 2000,
    engine: c.EngineName = c.DEFAULT_ENGINE,
    max_num_seqs: c.MaxSeqs = None,
    max_num_batched_tokens: c.MaxTokens = None,
    kv_tokens: c.KvTokens = None,
    engines: c.Engines = 1,
    router: c.RouterName = None,
    seed: c.Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    jobs: c.Jobs = None,
    out: c.Kept = None,
    as_json: c.AsJson = False,
) -> None:
    """Find the highest rate at which 90 % of the requests meet their SLOs, for each policy.

    Example: slosched capacity --policy fcfs --policy slosched --seeds 5
    """
    from rich.table import Table

    from slosched.lab.lockstep import Rounds
    from slosched.lab.parallel import cores
    from slosched.lab.study import capacity as find
    from slosched.policies import PolicySpec

    names = policy or ["fcfs", "slosched"]
    for name in names:
        PolicySpec.parse(name)
    kinds = c.engines_of(engine, max_num_seqs, max_num_batched_tokens, kv_tokens, engines=engines)
    machine = kinds[0]
    source = c.source_of(
        engine=machine, workload=workload, traces=trace, slos=slo, forecast=forecast, duration_s=duration,
        requests=requests,
    )  # fmt: skip
    store = c.store_of(out)
    c.prepare(names)
    found, code = [], 0
    bench = c.bench_of(kinds, source, engines=engines, router=router)
    with c.progress_bar("capacity") as bar:
        rounds = Rounds(bar)
        for name in names:
            try:
                found.append(
                    find(
                        bench, name, seeds=range(seed, seed + seeds), target=target, store=store,
                        jobs=jobs or cores(),
                        progress=rounds,
                    )
                )  # fmt: skip
                rounds.end()
            except KeyboardInterrupt:
                c.say(f"Interrupted: {len(found)} of {len(names)} policies are done.")
                code = 130
                break
    several = seeds > 1  # one value has no interval
    if as_json:
        rows = [
            {"policy": f.policy, "target": f.target, "rates_rps": f.rates_rps, "mean_rps": f.spread.mean}
            | {"low_rps": f.spread.low if several else None, "high_rps": f.spread.high if several else None}
            for f in found
        ]
        c.print_json(rows)
        raise typer.Exit(code)
    over = f"{seeds} seed{'s' * several}"
    table = Table(title=f"Highest rate in requests/s at which {target:.0%} meet their SLOs ({over})")
    for head in ("policy", "capacity", "95 % interval"):
        table.add_column(head, justify="left" if head == "policy" else "right")
    for f in found:
        interval = f"{f.spread.low:.3g} to {f.spread.high:.3g}" if several else "–"
        table.add_row(f.policy, f"{f.spread.mean:.3g}", interval)
    c.print_table(table)
    raise typer.Exit(code)


def _finish(study: Study, about: list[str], *, out: Path | None, as_json: bool, as_csv: bool) -> None:
    from slosched.lab.study import StudyInterrupted
    from slosched.report.bundle import write_bundle
    from slosched.report.export import results_csv, results_json
    from slosched.report.table import compare_table

    begin, code = time.perf_counter(), 0
    store = c.store_of(out)
    c.prepare(study.policies)
    with c.progress_bar("simulating") as bar:
        try:
            comparison: Comparison = study.run(store, progress=bar, about=about)
        except StudyInterrupted as stop:
            comparison, code = stop.comparison, 130
    if code:
        done = len({point.seed for point in comparison.points})
        c.say(f"Interrupted: what follows holds the {done} of {len(study.seeds)} seeds that are complete.")
        if out is not None:
            c.say(f"All results so far are in {store.path}: the same command goes on from there.")
    if as_json:
        print(results_json(comparison).decode(), end="")
    elif as_csv:
        print(results_csv(comparison).decode(), end="")
    else:
        c.print_table(compare_table(comparison))
        if comparison.headline is not None:
            print(comparison.headline)
    if out is not None:
        report = write_bundle(comparison, out)[0]
        c.say(f"Report: {report} ({len(comparison.points)} runs in {time.perf_counter() - begin:.0f} s)")
    if code:
        raise typer.Exit(code)
