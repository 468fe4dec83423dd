"""Commands around length predictors: train ranker, predict, evaluate predictor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from slosched.cli import common as c

train = typer.Typer(
    name="train", help="Train a predictor of output lengths.", no_args_is_help=True, add_completion=False
)
evaluate = typer.Typer(
    name="evaluate", help="Measure a predictor of output lengths.", no_args_is_help=True, add_completion=False
)

Data = Annotated[
    Path,
    typer.Option(
        "--data", help="JSON lines or CSV, perhaps gzipped: prompt, output_tokens, and prompt_tokens, cut, …"
    ),
]
SloClass = Annotated[str | None, typer.Option("--class", help="Only rows of this class.")]
Plot = Annotated[Path | None, typer.Option(help="Draw calibration and learning curve (PNG).")]


@train.command()
def ranker(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the ranker.")],
    slo_class: SloClass = None,
    method: Annotated[
        str,
        typer.Option(
            help="light: words and counts. frozen, tuned: a pretrained encoder beside them, as it is or "
            "trained too. ltr: Fu et al. 2024. Or package.module:function."
        ),
    ] = "light",
    objective: Annotated[
        str, typer.Option(help="listmle, lists or pointwise; with ltr also classes-10, -100 or -820.")
    ] = "listmle",
    model: Annotated[
        str | None,
        typer.Option(help="With frozen, tuned, ltr: folder of a Hugging Face model, or a package with one."),
    ] = None,
    download: Annotated[bool, typer.Option(help="Let --model be fetched from the Hugging Face hub.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs, with tuned and ltr.")] = 5,
    learning_rate: Annotated[
        float | None, typer.Option(help="With tuned (default 1e-4) and ltr (2e-5).")
    ] = None,
    window: Annotated[int, typer.Option(min=8, help="Tokens read of a prompt, with frozen and tuned.")] = 64,
    chat: Annotated[
        bool, typer.Option("--chat", help="With ltr: put the model's chat template around prompts.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where torch trains: cpu, cuda or auto.")] = "auto",
    plot: Plot = None,
    seed: c.Seed = 0,
    as_json: c.AsJson = False,
) -> None:
    """Train a ranker of prompts by answer length; a tenth of the prompts is held out and reported on.

    Example: slosched train ranker --data answers.jsonl --out ranker/

    Example: slosched train ranker --data answers.jsonl --method tuned --model models/minilm --out ranker/
    """
    from slosched.core.errors import require
    from slosched.predictors.answers import read_answers
    from slosched.predictors.evaluation import evaluate as measure
    from slosched.predictors.evaluation import learning_curve, reliability
    from slosched.predictors.training import Training, trainer

    if plot is not None:
        _require_matplotlib()
    train_by = trainer(method)
    needs_model = method in ("frozen", "tuned", "ltr")
    require(model is not None or not needs_model, "model", f"given with --method {method}", model)
    c.require_folder(out)
    require(plot is None or not plot.is_dir(), "plot", "a file", str(plot))
    answers = read_answers(data, slo_class=slo_class)
    known, held_out = answers.split(0.9, seed)
    curve: list[tuple[int, float]] = []
    with c.progress_bar("training") as bar:
        settings = Training(
            out=out, objective=objective, model=model, download=download, epochs=epochs, seed=seed,
            learning_rate=learning_rate, window_tokens=window, chat=chat, device=device, progress=bar,
        )  # fmt: skip
        made: Any = train_by(known, settings)
        whole = isinstance(getattr(made, "report", None), dict) and hasattr(made, "save")
        domain = "one that gives a predictor with a report and save(folder)"
        require(whole and hasattr(made, "forecast"), f"method {method}", domain, type(made).__name__)
        quality, atoms = measure(made, held_out)
        if method == "light":  # cheap enough to be trained again on everything
            if plot is not None:
                curve = learning_curve(known, held_out, objective=objective, seed=seed)
            made = train_by(answers, settings)
        curve = made.report.get("curve", curve)
    made.report["held_out"] = quality.as_dict()
    made.save(out)
    tokens = held_out.output_tokens[~held_out.cut]
    if plot is not None:
        _draw(plot, out.name, reliability(atoms, tokens), curve)
    _tell(made.report | {"out": str(out), "curve": curve}, as_json)


@evaluate.command()
def predictor(
    folder: Annotated[Path, typer.Argument(help="Folder of a predictor, or prior: the one that ships.")],
    data: Data,
    slo_class: SloClass = None,
    plot: Plot = None,
    as_json: c.AsJson = False,
) -> None:
    """Measure a predictor on answers it was not trained on.

    Kendall's tau, error of the median, coverage of 80 % intervals, pinball loss, schedule regret, latency.

    Example: slosched evaluate predictor ranker/ --data other.jsonl
    """
    from slosched.predictors import load_predictor
    from slosched.predictors.answers import read_answers
    from slosched.predictors.evaluation import evaluate as measure
    from slosched.predictors.evaluation import reliability

    if plot is not None:
        _require_matplotlib()
    answers = read_answers(data, slo_class=slo_class)
    quality, atoms = measure(load_predictor(folder), answers)
    points = reliability(atoms, answers.output_tokens[~answers.cut])
    if plot is not None:
        _draw(plot, folder.name, points, [])
    _tell({"held_out": quality.as_dict(), "reliability": points}, as_json)


def predict(
    folder: Annotated[Path, typer.Argument(help="Folder of a predictor, or prior: the one that ships.")],
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Prompts; lines of standard input if none.")
    ] = None,
    as_json: c.AsJson = False,
) -> None:
    """Forecast the answer length of prompts.

    Example: slosched predict ranker/ "Write a haiku." "Explain how compilers work, in detail."
    """
    from slosched.core.errors import require
    from slosched.core.forecast import LengthForecast
    from slosched.predictors import Prompt, load_predictor

    made = load_predictor(folder)
    texts = prompt or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    require(bool(texts), "prompt", "one or more texts", texts)
    atoms = made.forecast([Prompt(text, max(1, len(text) // 4)) for text in texts])
    rows = []
    for text, row in zip(texts, atoms, strict=True):
        forecast = LengthForecast(tuple(float(a) for a in row))
        levels = {f"p{round(100 * p)}": forecast.quantile_tokens(p) for p in (0.1, 0.5, 0.9)}
        rows.append({"prompt": text, "mean_tokens": forecast.mean_tokens, **levels, "atoms": list(row)})
    if as_json:
        c.print_json(rows)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for head in ("mean", "10 %", "50 %", "90 %", "prompt"):
        table.add_column(head, justify="left" if head == "prompt" else "right")
    for found in rows:
        numbers = (f"{found[k]:.0f}" for k in ("mean_tokens", "p10", "p50", "p90"))
        # A prompt may hold what looks like markup, bytes that are no text, or commands to a terminal.
        shown = "".join(x if x.isprintable() else " " for x in str(found["prompt"])[:80])
        table.add_row(*numbers, Text(shown))
    c.print_table(table)


def _tell(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        c.print_json(report)
        return
    held = report["held_out"]
    if "out" in report:
        size = f"{report['prompts']} prompts, {report['answers']} answers ({report['cut']} cut off)"
        print(f"Trained on {size}: {report['out']}")
    if held["answers"] == 0:
        print("No answer held out ended by itself: how good forecasts are was not measured.")
    else:
        print(
            f"On {held['answers']} answers held out: Kendall's tau {held['tau']:.3f}, "
            f"error of the median {held['mae_tokens']:.1f} tokens, "
            f"80 % intervals hold {held['coverage']:.1%}, pinball loss {held['pinball_tokens']:.2f} tokens, "
            f"regret {held['regret']:.1%} of the mean completion time."
        )
    print(f"A forecast takes {held['prompt_ms']:.2f} ms, 64 at once {held['batch_ms']:.2f} ms.")
    for prompts, found in report.get("curve") or ():
        print(f"  {prompts:7} prompts: tau {found:.3f}")


def _require_matplotlib() -> None:
    from slosched.report.plots import require_matplotlib

    require_matplotlib()


def _draw(path: Path, title: str, points: list[tuple[float, float]], curve: list[tuple[int, float]]) -> None:
    from slosched.cli.written import written
    from slosched.core.writing import write_file
    from slosched.predictors.evaluation import plot

    with written(path) as place:
        write_file(place, plot(title, points, curve))
