"""Commands of the probe: collect training data, train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from slosched.cli import common as c


def collect(
    source: Annotated[
        str,
        typer.Argument(
            help="Root of an OpenAI-compatible server (http://…), a log file, or the folder of a model, "
            "which vLLM then runs here, writing hidden states for a probe as well."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="File of JSON lines to write; for a model's folder a folder.")
    ],
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Prompts: one a line, or JSON lines with 'prompt'.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Answers to each prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer.")] = 2048,
    temperature: Annotated[float, typer.Option(help="Of sampling, from 0 to 2.")] = 1.0,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 32,
    model: Annotated[
        str | None, typer.Option(help="Name at the server; its first model if not given.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the model's chat template around each prompt.")
    ] = False,
    layer: Annotated[
        list[int] | None,
        typer.Option(help="Layer of the hidden states, may be repeated; the middle if not given."),
    ] = None,
    every: Annotated[int, typer.Option(help="A hidden state each so many tokens.")] = 4,
    seed: c.Seed = 0,
    as_json: c.AsJson = False,
) -> None:
    """Collect prompts with the lengths of their answers, to train a predictor on.

    Of several layers the states are written to a folder each: OUT/layer-12 and so on. Ctrl-C keeps a
    server's answers so far.

    Example: slosched collect http://localhost:8000 --prompts prompts.txt --samples 3 --out answers.jsonl

    Example: slosched collect models/smollm2 --prompts prompts.jsonl --chat --layer 10 --layer 20 --out states
    """
    from slosched.core.errors import InputError
    from slosched.lab.collect import (
        CollectSettings,
        Interrupted,
        collect_log,
        collect_server,
        collect_states,
        read_prompts,
        write_records,
    )

    settings = CollectSettings(
        samples=samples, max_tokens=max_tokens, temperature=temperature, concurrency=concurrency,
        model=model, chat=chat, seed=seed,
    )  # fmt: skip
    served = source.startswith(("http://", "https://"))
    if not served and not Path(source).exists():
        raise InputError(f"source must be a server's URL, a log file or a model's folder, got {source!r}.")
    code = 0
    if served or Path(source).is_dir():
        if prompts is None:
            raise InputError("prompts must be a file of prompts, got none.")
        asked = read_prompts(prompts)
    if not served and Path(source).is_dir():
        found = collect_states(
            source, asked, out, settings, layers=tuple(layer or ()), every_tokens=every, loud=not as_json
        )
    else:
        if not out.absolute().parent.is_dir():
            raise InputError(f"out must lie in a folder that exists, got {str(out)!r}.")
        if served:
            with c.progress_bar("answers") as progress:
                try:
                    found = collect_server(source, asked, settings, progress=progress)
                except Interrupted as stop:
                    found, code = stop.found, 130
            if code and not found.records:
                raise typer.Exit(code)
        else:
            found = collect_log(source)
        if not found.records:
            raise InputError(f"{source} must give at least one answer, got {dict(found.failed)}.")
        write_records(found.records, out)
    cut = sum(record["cut"] for record in found.records)
    facts = {"answers": len(found.records), "cut": cut, "failed": dict(found.failed), "out": str(out)}
    if as_json:
        c.print_json(facts)
    else:
        print(f"{facts['answers']} answers, {cut} of them cut off, in {out}")
        for reason, count in found.failed.items():
            c.say(f"{count} failed: {reason}")
    if code:
        c.say(f"Interrupted: {out} holds the answers that had come.")
        raise typer.Exit(code)


def train_probe(
    data: Annotated[
        Path, typer.Option("--data", help="Hidden states: a file or folder of slosched collect.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    trail: Annotated[
        bool, typer.Option("--trail", help="TRAIL's settings where nothing else is said below.")
    ] = False,
    refinement: Annotated[str | None, typer.Option(help="prior (default), none, or bayes (TRAIL).")] = None,
    prompt_input: Annotated[str | None, typer.Option(help="mean+last (default), or mean (TRAIL).")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Bins: quantile (default), or trail: ten up to 512 tokens.")
    ] = None,
    bins: Annotated[int | None, typer.Option(help="Bins, with quantile spacing: 10.")] = None,
    values: Annotated[
        str | None, typer.Option(help="What stands for a bin: mean (default), or middle (TRAIL).")
    ] = None,
    every: Annotated[
        int | None, typer.Option(help="While serving, a new forecast each so many tokens: 8 (TRAIL 1).")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Units of the hidden layer: 128 (TRAIL 512).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data: 15 (TRAIL 30).")] = None,
    batch: Annotated[int | None, typer.Option(help="States of a step: 256 (TRAIL 32).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW: 0.002 (TRAIL 0.01).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW: 0.3 (TRAIL 0.01).")] = None,
    seed: c.Seed = 0,
    as_json: c.AsJson = False,
) -> None:
    """Train a probe that tells the remaining length of an answer from a model's hidden states.

    Writes probe.safetensors, probe.json with the measures on held-out requests, and learning curves.

    Example: slosched train probe --data states/ --out probe/

    Example: slosched train probe --data states/ --trail --refinement none --out probe/
    """
    from slosched.predictors.probe_training import TRAIL, Settings, train_probe, write_curves
    from slosched.predictors.states import load_states

    given = {
        "refinement": refinement, "prompt_input": prompt_input, "spacing": spacing, "bins": bins,
        "values": values, "every_tokens": every, "width": width, "epochs": epochs, "batch": batch,
        "learning_rate": learning_rate, "weight_decay": weight_decay,
    }  # fmt: skip
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = replace(TRAIL if trail else Settings(), seed=seed, **known)
    c.require_folder(out)
    states = load_states(data)
    with c.progress_bar("epochs") as progress:
        probe, curves = train_probe(states, settings, progress=progress)
    probe.save(out)
    write_curves(curves, out)
    report = probe.about.report
    if as_json:
        c.print_json({"out": str(out), **report})
        return
    from rich.table import Table

    names = {
        "prompt_end": "at the prompt's end",
        "later": "every {every} tokens",
        "later_longest_tenth": "every {every} tokens, longest tenth of answers",
    }
    table = Table(title=f"Remaining length on {report['held_out_requests']} held-out requests, tokens")
    for column in ("when", "forecasts", "mean absolute error", "bias"):
        table.add_column(column)
    for name, errors in report["held_out"].items():
        words = [f"{errors[k]:.1f}" if k in errors else "–" for k in ("mae_tokens", "bias_tokens")]
        table.add_row(names[name].format(every=settings.every_tokens), str(errors["count"]), *words)
    c.print_table(table)
    print(f"{report['requests']} requests, {report['states']} states; written to {out}")
