"""Step times of the decoders behind our presets, and how far the presets are off."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch  # noqa: TID253
from gpu_parts.decoder import Work, captured, seconds_of
from gpu_parts.settings import Settings, fastest, say

from slosched import InputError, StepTimeModel
from slosched.core.engine import preset
from slosched.core.fitting import FitReport, fit


def ceilings(settings: Settings) -> dict[str, float]:
    """Bytes and operations per second of a large copy and a large matrix product, of random numbers."""
    side, count = (256, 2**16) if settings.tiny else (8192, 2**30)
    a, b = (torch.randn(side, side, device=settings.device).to(settings.dtype) for _ in range(2))
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    copy_s = seconds_of(lambda: target.copy_(source), settings.device)
    return {
        "copy_tb_per_s": 2 * count / copy_s / 1e12,
        "product_tflop_per_s": 2 * side**3 / seconds_of(lambda: a @ b, settings.device) / 1e12,
    }


def works(settings: Settings) -> dict[str, list[Any]]:
    """Steps to measure: decoding, whole prompts or their first chunk, both together, and later chunks."""
    most = settings.kv_tokens
    return {
        "decode": [
            Work(sequences=n, context=c) for n in settings.batches for c in settings.contexts if n * c <= most
        ],
        "prompt": [Work(chunk=t) for t in settings.chunks],
        "mixed": [Work(sequences=n, context=settings.context, chunk=t) for n, t in settings.mixed],
        "later": [Work(chunk=t, before=c) for c, t in settings.later],
    }


def steps(settings: Settings) -> Iterator[dict[str, Any]]:
    """Each model's steps, the fitted coefficients, and the presets' errors on them, one model at a time."""
    family = settings.gpu
    for name, (shape, gpus) in settings.models.items():
        named = f"{family}{name}" if name.startswith("x") else f"{family}-{name}"
        try:
            model = preset(named).step_time
        except InputError:  # no such model on this GPU
            continue
        decoder = settings.decoder(shape, gpus)
        found = of_model(settings, decoder, model)
        found["launched"] = launched(settings, decoder)
        say(f"{named}: {json.dumps(found['coefficients'])}")
        yield {named: found}
        del decoder
        if settings.device == "cuda":
            torch.cuda.empty_cache()


def of_model(settings: Settings, decoder: Any, given: StepTimeModel) -> dict[str, Any]:
    """Measured steps of one decoder against one preset."""
    attention, decode, prefill = fastest(decoder, settings)
    decoder.decode_backend, decoder.prefill_backend = decode, prefill
    rows: dict[str, list[list[float]]] = {}
    for kind, wanted in works(settings).items():
        rows[kind] = []
        for work in wanted:
            replay, _ = captured(decoder.step(work), settings.device)
            rows[kind].append([*work.row(), seconds_of(replay, settings.device)])
            del replay
    kernel_s = {
        name: row["prefill_pair_ps"] * decoder.shape.layers * 1e-12
        for name, row in attention.items()
        if "prefill_pair_ps" in row
    }
    # Later chunks run on another attention kernel than whole prompts: not in the fit.
    fitted, report = fit_rest(
        [row for kind in ("decode", "prompt", "mixed") for row in rows[kind]], kernel_s[prefill]
    )
    error = {}
    for kind, cells in rows.items():
        work, seconds = np.array(cells).T[:4], np.array(cells)[:, 4]
        ratio = given.predict(*work) / seconds - 1
        error[kind] = {
            "steps": len(cells), "mean": float(ratio.mean()), "least": float(ratio.min()),
            "most": float(ratio.max()),
            "fitted_mean_abs": float(np.abs(fitted.predict(*work) / seconds - 1).mean()),
        }  # fmt: skip
    return {
        "weights_gb": decoder.weight_bytes / 1e9, "fused": decoder.fused,
        "attention_backends": attention, "decode_backend": decode, "prefill_backend": prefill,
        "attention_work_ps": {name: seconds * 1e12 for name, seconds in kernel_s.items()},
        "coefficients": coefficients(fitted, given),
        "held_out_mape": report.mape,
        "preset_over_measured_less_one": error,
        "columns": ["prefill_tokens", "attention_work", "sequences", "kv_tokens", "seconds"],
        "rows": rows,
    }  # fmt: skip


def fit_rest(rows: list[list[float]], attention_work_s: float) -> tuple[StepTimeModel, FitReport]:
    """Fit to steps with the attention of prompts held at what its kernel takes by itself.

    Few of the steps tell a prompt's attention from its tokens, so that a fit of both blames either one.
    """
    columns = np.array(rows).T
    columns[4] -= attention_work_s * columns[1]
    columns[1] = 0.0
    fitted, report = fit(*columns)
    return dataclasses.replace(fitted, attention_work_s=attention_work_s), report


def coefficients(fitted: StepTimeModel, given: StepTimeModel) -> dict[str, Any]:
    """Measured and preset's coefficients, and how far the preset is off."""

    def values(model: StepTimeModel) -> dict[str, float]:
        return {
            "base_ms": model.base_s * 1e3,
            "prefill_token_us": model.prefill_token_s * 1e6,
            "prefill_token_above_knee_us": (model.prefill_token_s + model.knee_token_s) * 1e6,
            "knee_tokens": model.knee_tokens,
            "attention_work_ps": model.attention_work_s * 1e12,
            "sequence_us": model.sequence_s * 1e6,
            "kv_token_ns": model.kv_token_s * 1e9,
        }

    ours = values(given)
    return {
        name: {
            "measured": found,
            "preset": ours[name],
            "preset_error": ours[name] / found - 1 if found else None,
        }
        for name, found in values(fitted).items()
    }


def launched(settings: Settings, decoder: Any) -> list[dict[str, float]]:
    """Decode steps launched operator by operator, against the same as a CUDA graph."""
    rows = []
    for n in settings.batches:
        call = decoder.step(Work(sequences=n, context=settings.context))
        replay, _ = captured(call, settings.device)
        launched_s, graph_s = (seconds_of(way, settings.device) for way in (call, replay))
        row = {"sequences": n, "context": settings.context, "launched_s": launched_s, "graph_s": graph_s}
        rows.append(row)
    return rows
