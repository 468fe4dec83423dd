"""Derive the statistics the built-in workloads carry (`slosched/workloads/fitted.json`) from public data.

Run ``python benchmarks/fit_workloads.py``; it needs the data folder (SLOSCHED_DATA, or ../shared/data) and is
deterministic. Only summaries are written: quantile tables, rank correlations, rates and confusion counts.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from common import ROOT, data_folder, write_json
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from slosched.core.arrays import Floats

LEVELS = [0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, *(i / 40 for i in range(4, 37)),
          0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 1]  # fmt: skip
TRUE_LENGTH_BINS = 20
"""Equally filled bins of the true length in the confusion tables of the length predictor."""

AZURE = "Azure LLM inference traces 2023 (Patel et al., ISCA 2024, arXiv 2311.18677; CC BY 4.0)"
SOURCES = {
    "conversation": f"{AZURE}, conversation",
    "code": f"{AZURE}, code",
    "summarization": "arXiv summarization lengths, sarathi-serve and vidur (MIT)",
    "chat": "ShareGPT lengths, validation set of vidur_opt_scheduler (MIT), Llama-2 tokens",
    "dialog": "ShareGPT lengths, prompts with all turns so far, sarathi-serve (Apache-2.0), Llama-2 tokens",
    "documents": "Mooncake conversation trace (Qin et al., FAST 2025; Apache-2.0)",
    "agentic": "kv-cache-tester agentic coding traces (Apache-2.0)",
    "predictor": "SSJF BERT length classifier (Qiu et al., arXiv 2404.08509; Apache-2.0), 20,000 rows",
}


def columns(path: Path, names: Sequence[str]) -> list[Floats]:
    """Named columns of a gzip CSV file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [np.array([float(row[name]) for row in rows]) for name in names]


def quantiles(values: Iterable[float], digits: int = 0) -> list[float]:
    """Values at `LEVELS`."""
    return [round(float(q), digits) for q in np.quantile(np.asarray(list(values)), LEVELS)]


def lengths(prompt: Floats, output: Floats, source: str) -> dict[str, object]:
    """Length table of a class: two quantile rows and the rank correlation between them."""
    keep = (prompt >= 1) & (output >= 1)
    return {
        "source": source,
        "prompt_tokens": quantiles(prompt[keep]),
        "output_tokens": quantiles(output[keep]),
        "rank_correlation": round(float(spearmanr(prompt[keep], output[keep])[0]), 4),
    }


def dispersion(arrival_s: Floats, window_s: float) -> float:
    """Index of dispersion (variance over mean) of the counts per window."""
    counts = np.bincount((arrival_s // window_s).astype(np.int64))
    return float(counts.var() / counts.mean())


def burst_process(arrival_s: Floats) -> dict[str, float]:
    """Interrupted Poisson process with the trace's dispersion of counts at 1, 10 and 60 s.

    Arrivals come at a constant rate during exponential on-times and not at all in exponential off-times. With
    on-fraction p and relaxation time tau = 1 / (1/on + 1/off), the dispersion of counts in a window w is
    1 + 2·rate·(1 - p)/p·tau·(1 - tau/w·(1 - exp(-w/tau))) (Fischer and Meier-Hellstern, 1993).
    """
    rate = len(arrival_s) / float(arrival_s[-1])
    windows = np.array([1.0, 10.0, 60.0])
    target = np.array([dispersion(arrival_s, w) for w in windows])

    def model(x: Floats) -> Floats:
        p, tau = 1 / (1 + np.exp(-x[0])), np.exp(x[1])
        rise = 1 - tau / windows * -np.expm1(-windows / tau)
        return np.asarray(1 + 2 * rate * (1 - p) / p * tau * rise)

    def error(x: Floats) -> Floats:
        return np.asarray(np.log(model(x)) - np.log(target))

    fit = least_squares(error, x0=[-1.5, 2.0])
    p, tau = 1 / (1 + np.exp(-fit.x[0])), np.exp(fit.x[1])
    return {"on_s": round(float(tau / (1 - p)), 2), "off_s": round(float(tau / p), 2)}


def gap_cv(arrival_s: Floats) -> float:
    """Coefficient of variation of the gaps between arrivals."""
    gaps = np.diff(arrival_s)
    return round(float(gaps.std() / gaps.mean()), 3)


def agentic(path: Path) -> dict[str, object]:
    """Sessions: first prompt, growth of the context and output by turn, gaps, think times, turns."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sessions: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        sessions.setdefault((row["session"], row["agent"]), []).append(row)
    turns = list(sessions.values())
    later = [row for session in turns for row in session[1:]]
    gaps = [float(b["t_s"]) - float(a["t_s"]) for session in turns for a, b in itertools.pairwise(session)]
    return {
        "source": SOURCES["agentic"],
        "first_prompt_tokens": quantiles(float(session[0]["input_tokens"]) for session in turns),
        "new_tokens": quantiles(float(r["input_tokens"]) - float(r["reused_prefix_tokens"]) for r in later),
        "output_tokens": quantiles(max(1.0, float(row["output_tokens"])) for row in rows),
        "gap_s": quantiles(gaps, 1),
        "think_s": quantiles((max(0.1, float(r["think_time_s"])) for r in later if r["think_time_s"]), 1),
        "turns": quantiles(len(session) for session in turns),
    }


def confusion(true_tokens: Floats, predicted: NDArray[np.int64]) -> list[list[int]]:
    """Counts of predicted classes by bin of the true length's rank (rows: short to long)."""
    rank = np.argsort(np.argsort(true_tokens, kind="stable"), kind="stable")
    bins = rank * TRUE_LENGTH_BINS // len(rank)
    table = np.zeros((TRUE_LENGTH_BINS, int(predicted.max()) + 1), dtype=np.int64)
    np.add.at(table, (bins, predicted), 1)
    return [[int(x) for x in row] for row in table]


def main() -> None:
    """Derive everything and write the file."""
    folder = data_folder()
    if folder is None:
        raise SystemExit("The data folder is absent; name it in SLOSCHED_DATA.")
    traces = folder / "traces"
    lengths_of = ["input_tokens", "output_tokens"]
    conv = columns(traces / "azure2023_conv.csv.gz", ["arrival_s", *lengths_of])
    code = columns(traces / "azure2023_code.csv.gz", ["arrival_s", *lengths_of])
    arxiv = columns(traces / "lengths_arxiv_summarization_vidur.csv.gz", lengths_of)
    sharegpt = columns(traces / "lengths_sharegpt_val10k.csv.gz", lengths_of)
    dialog = columns(traces / "lengths_sharegpt8k_sarathi.csv.gz", lengths_of)
    with gzip.open(traces / "mooncake_conversation.jsonl.gz", "rt", encoding="utf-8") as file:
        kimi = [json.loads(line) for line in file]
    ssjf = columns(
        folder / "prompts" / "ssjf_bert_predictions_20k.csv.gz", ["out_tok", "pred_3class", "pred_5class"]
    )
    fitted = {
        "levels": LEVELS,
        "lengths": {
            "conversation": lengths(conv[1], conv[2], SOURCES["conversation"]),
            "code": lengths(code[1], code[2], SOURCES["code"]),
            "summarization": lengths(arxiv[0], arxiv[1], SOURCES["summarization"]),
            "chat": lengths(sharegpt[0], sharegpt[1], SOURCES["chat"]),
            "dialog": lengths(dialog[0], dialog[1], SOURCES["dialog"]),
            "documents": lengths(
                np.array([float(r["input_length"]) for r in kimi]),
                np.array([float(r["output_length"]) for r in kimi]),
                SOURCES["documents"],
            ),
        },
        "arrivals": {
            "conversation": {"cv": gap_cv(conv[0]), "source": SOURCES["conversation"]},
            "code": {**burst_process(code[0]), "cv": 1.0, "source": SOURCES["code"]},
        },
        "agentic": agentic(traces / "agentic_claudecode_wekatester.csv.gz"),
        "predictor": {
            "source": SOURCES["predictor"],
            "3": confusion(ssjf[0], ssjf[1].astype(np.int64)),
            "5": confusion(ssjf[0], ssjf[2].astype(np.int64)),
        },
    }
    print(write_json(ROOT / "slosched" / "workloads" / "fitted.json", fitted))


if __name__ == "__main__":
    main()
