"""How good forecasts of output lengths are: order, error, coverage, regret."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import thread_time
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from slosched.core.arrays import Floats
from slosched.core.errors import MissingExtraError
from slosched.predictors.answers import Answers
from slosched.predictors.base import Predictor, Prompt
from slosched.predictors.calibration import LEVELS, interval
from slosched.predictors.ranker import Progress, tau, train_ranker

LATENCY_PROMPTS = 200
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Measures of one predictor on answers it was not trained on; not a number where there were none.

    Parameters
    ----------
    answers
        Answers measured on; those cut off are left out.
    tau
        Kendall's tau-b of mean forecast and length.
    mae_tokens
        Mean absolute error of the median forecast.
    coverage
        Share of lengths between the 10 % and 90 % quantiles; 0.8 is what it should be.
    pinball_tokens
        Mean pinball loss over the levels of the atoms.
    regret
        Serving one by one, shortest expected first: mean completion time over that of the true order, less 1.
    prompt_ms, batch_ms
        Median processor time of a forecast for one prompt, and for 64 at once.
    """

    answers: int
    tau: float
    mae_tokens: float
    coverage: float
    pinball_tokens: float
    regret: float
    prompt_ms: float
    batch_ms: float

    def as_dict(self) -> dict[str, Any]:
        """Names and values; None for what was not measured."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def evaluate(predictor: Predictor, answers: Answers) -> tuple[Quality, Floats]:
    """Measure a predictor.

    Returns
    -------
    Quality
        The measures.
    ndarray
        The atoms of each whole answer, shape (answers, FORECAST_ATOMS).
    """
    atoms = predictor.forecast(answers.prompts)[answers.prompt][~answers.cut]
    tokens = answers.output_tokens[~answers.cut].astype(np.float64)
    prompt_ms, batch_ms = latency_ms(predictor, answers.prompts)
    return quality(atoms, tokens, prompt_ms=prompt_ms, batch_ms=batch_ms), atoms


def quality(atoms: Floats, tokens: Floats, *, prompt_ms: float = 0.0, batch_ms: float = 0.0) -> Quality:
    """Measures of forecasts against the lengths that came.

    Examples
    --------
    >>> right = quality(np.repeat([[10.0], [20.0], [30.0]], 8, axis=1), np.array([10.0, 20.0, 30.0]))
    >>> right.tau, right.mae_tokens, right.regret
    (1.0, 0.0, 0.0)
    """
    if len(tokens) == 0:
        nothing = float("nan")
        return Quality(
            answers=0, tau=nothing, mae_tokens=nothing, coverage=nothing, pinball_tokens=nothing,
            regret=nothing, prompt_ms=prompt_ms, batch_ms=batch_ms,
        )  # fmt: skip
    mean = atoms.mean(axis=1)
    low, high = interval(atoms)
    miss = tokens[:, None] - atoms
    return Quality(
        answers=len(tokens),
        tau=tau(mean, tokens),
        mae_tokens=float(np.abs(tokens - atoms[:, 3:5].mean(axis=1)).mean()),
        coverage=float(np.mean((low <= tokens) & (tokens <= high))),
        pinball_tokens=float(np.maximum(LEVELS * miss, (LEVELS - 1.0) * miss).mean()),
        regret=float(_completion(tokens[np.argsort(mean, kind="stable")]) / _completion(np.sort(tokens)) - 1),
        prompt_ms=prompt_ms,
        batch_ms=batch_ms,
    )


def _completion(tokens: Floats) -> float:
    return float(np.cumsum(tokens).mean())


def latency_ms(predictor: Predictor, prompts: list[Prompt]) -> tuple[float, float]:
    """Median processor milliseconds of a forecast for one prompt and for `BATCH` of them."""
    some = (prompts * (LATENCY_PROMPTS // max(1, len(prompts)) + 1))[:LATENCY_PROMPTS]
    predictor.forecast(some[:2])  # compiles
    single = [_seconds(predictor, [prompt]) for prompt in some]
    batches = [_seconds(predictor, some[i : i + BATCH]) for i in range(0, LATENCY_PROMPTS - BATCH, 16)]
    return 1e3 * float(np.median(single)), 1e3 * float(np.median(batches))


def _seconds(predictor: Predictor, prompts: list[Prompt]) -> float:
    begun = thread_time()
    predictor.forecast(prompts)
    return thread_time() - begun


def reliability(atoms: Floats, tokens: ArrayLike) -> list[tuple[float, float]]:
    """Each level of the atoms, and the share of lengths at or below it; none where there are no lengths."""
    if np.size(tokens) == 0:
        return []
    return [(float(p), float(np.mean(np.asarray(tokens) <= atoms[:, k]))) for k, p in enumerate(LEVELS)]


def learning_curve(
    train: Answers,
    test: Answers,
    *,
    objective: str = "listmle",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[tuple[int, float]]:
    """Prompts trained on, doubling, and tau on `test`."""
    sizes = [n for k in range(4, -1, -1) if (n := len(train.prompts) >> k) >= 20]
    curve = []
    for i, n in enumerate(sizes):
        part = train.select(np.sort(np.random.default_rng(seed).permutation(len(train.prompts))[:n]))
        made = train_ranker(part, objective=objective, seed=seed)
        curve.append((n, tau(made.score([p.text for p in test.prompts])[test.prompt], test.output_tokens)))
        if progress is not None:
            progress(i + 1, len(sizes))
    return curve


def plot(path: str, reliability_points: list[tuple[float, float]], curve: list[tuple[int, float]]) -> bytes:
    """Calibration, and the learning curve where there is one, as PNG."""
    try:
        import io

        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    figure = Figure(figsize=(8.6 if curve else 4.3, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if curve else 1, squeeze=False)[0]
    axes[0].plot([0, 1], [0, 1], color="#888888", linewidth=1)
    if reliability_points:
        axes[0].plot(*zip(*reliability_points, strict=True), marker="o", color="#1f5fa8")
    axes[0].set(xlabel="forecast level", ylabel="share of answers at or below", title=path)
    if curve:
        axes[1].plot(*zip(*curve, strict=True), marker="o", color="#1f5fa8")
        axes[1].set(xlabel="prompts trained on", ylabel="Kendall's tau-b, held out", xscale="log")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
