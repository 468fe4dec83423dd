"""Step-time models from measured steps: non-negative least squares on relative errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from slosched.core.arrays import Floats
from slosched.core.errors import MissingExtraError, require
from slosched.core.steplog import read_step_log
from slosched.core.steptime import StepTimeModel

MIN_ROWS = 10
HELD_OUT_SHARE = 0.2
KNEES = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048)
# A knee must lower the squared relative error by this share, or the simpler model without one is kept.
KNEE_GAIN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitReport:
    """How well a fitted model predicts steps it has not seen.

    Parameters
    ----------
    rows_fitted, rows_held_out
        Steps used for the fit, and for the figures below.
    mape
        Mean absolute relative error on held-out steps (0.02 = 2 %).
    r2
        Coefficient of determination on held-out steps, in seconds; NaN if they all last equally long.
    measured_s, predicted_s
        The held-out steps, shape (rows_held_out,).
    """

    rows_fitted: int
    rows_held_out: int
    mape: float
    r2: float
    measured_s: Floats
    predicted_s: Floats


def fit(
    prefill_tokens: ArrayLike,
    attention_work: ArrayLike,
    sequences: ArrayLike,
    kv_tokens: ArrayLike,
    seconds: ArrayLike,
    *,
    knee: int | None = None,
    seed: int = 0,
) -> tuple[StepTimeModel, FitReport]:
    """Fit a step-time model to measured steps.

    Parameters
    ----------
    prefill_tokens, attention_work, sequences, kv_tokens
        T, A, B and K of each step as `StepTimeModel` defines them: shape (n,), at least 0, n at least 10.
    seconds
        Measured durations, shape (n,), above 0.
    knee
        Place of the knee in tokens: None tries a grid and takes the best on the fitted rows, if it is clearly
        better than none; 0 means no knee.
    seed
        Chooses the fifth of the rows that is held out.

    Returns
    -------
    StepTimeModel
        Fitted on the rows that are not held out. A kind of work that the rows never contain, or that costs
        nothing measurable, gets coefficient 0.
    FitReport
        Errors on the held-out rows.

    Raises
    ------
    InputError
        If shapes differ, rows are too few, or a value is out of its domain.

    Notes
    -----
    Minimises the sum of squared **relative** errors under non-negative coefficients (Lawson and Hanson's
    NNLS, in scipy). Relative errors weigh short decode steps and long prefill steps alike, and they bound the
    pull of a stalled step: however long it took, the model misses it by less than 100 %.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> batch, context = rng.integers(1, 128, 500), rng.integers(100, 4000, 500)
    >>> seconds = 0.008 + 7e-5 * batch + 6e-8 * batch * context
    >>> model, report = fit(np.zeros(500), np.zeros(500), batch, batch * context, seconds)
    >>> round(model.base_s, 6), round(model.sequence_s, 8), report.mape < 1e-6
    (0.008, 7e-05, True)
    """
    names = ("prefill_tokens", "attention_work", "sequences", "kv_tokens", "seconds")
    given = (prefill_tokens, attention_work, sequences, kv_tokens, seconds)
    columns = {name: np.asarray(value, dtype=np.float64) for name, value in zip(names, given, strict=True)}
    n = columns["seconds"].size
    for name, column in columns.items():
        require(column.shape == (n,), name, f"shape ({n},)", column.shape)
        finite = bool(np.all(np.isfinite(column) & (column >= 0)))
        require(finite, name, "finite numbers of at least 0", "another value")
    require(n >= MIN_ROWS, "rows", f"at least {MIN_ROWS}", n)
    require(bool(np.all(columns["seconds"] > 0)), "seconds", "above 0", 0.0)
    require(knee is None or knee >= 0, "knee", "None or an integer of at least 0", knee)

    order = np.random.default_rng(seed).permutation(n)
    held_out = np.sort(order[: max(1, round(n * HELD_OUT_SHARE))])
    fitted = np.setdiff1d(order, held_out)
    work = np.column_stack([columns[name] for name in names[:4]])
    model = _best_model(work[fitted], columns["seconds"][fitted], KNEES if knee is None else (knee,))
    return model, evaluate(model, work[held_out], columns["seconds"][held_out], rows_fitted=len(fitted))


def evaluate(model: StepTimeModel, work: Floats, seconds: Floats, *, rows_fitted: int = 0) -> FitReport:
    """Errors of a model on measured steps; `work` has the columns T, A, B, K."""
    predicted = model.predict(*work.T)
    spread = float(np.sum((seconds - seconds.mean()) ** 2))
    return FitReport(
        rows_fitted=rows_fitted,
        rows_held_out=len(seconds),
        mape=float(np.mean(np.abs(predicted / seconds - 1.0))),
        r2=1.0 - float(np.sum((predicted - seconds) ** 2)) / spread if spread > 0 else float("nan"),
        measured_s=seconds,
        predicted_s=predicted,
    )


def _best_model(work: Floats, seconds: Floats, knees: tuple[int, ...]) -> StepTimeModel:
    """The model of the best knee; with several to choose from, only if it clearly beats none."""
    if len(knees) == 1:
        return _solve(work, seconds, knees[0])[0]
    plain, plain_loss = _solve(work, seconds, 0)
    best, best_loss = plain, plain_loss
    for knee in knees:
        model, loss = _solve(work, seconds, knee)
        if loss < best_loss:
            best, best_loss = model, loss
    return best if best_loss < (1.0 - KNEE_GAIN) * plain_loss else plain


def _solve(work: Floats, seconds: Floats, knee: int) -> tuple[StepTimeModel, float]:
    """Non-negative least squares of relative errors for one knee; returns the model and its loss."""
    from scipy.optimize import nnls

    tokens = work[:, 0] + work[:, 2]
    above = np.maximum(0.0, tokens - knee) if knee > 0 else np.zeros_like(tokens)
    design = np.column_stack([np.ones_like(seconds), work, above]) / seconds[:, None]
    # Columns of one scale keep the solver well conditioned: K is a million where B is ten.
    scale = np.sqrt(np.mean(design**2, axis=0))
    scale[scale == 0.0] = 1.0
    solution, residual = nnls(design / scale, np.ones_like(seconds))
    base, prefill, attention, sequence, kv, knee_slope = (solution / scale).tolist()
    model = StepTimeModel(
        base_s=base,
        prefill_token_s=prefill,
        attention_work_s=attention,
        sequence_s=sequence,
        kv_token_s=kv,
        knee_tokens=knee if knee_slope > 0 else 0,
        knee_token_s=knee_slope,
    )
    return model, float(residual) ** 2


def fit_file(path: str | Path, *, knee: int | None = None, seed: int = 0) -> tuple[StepTimeModel, FitReport]:
    """Fit to a step-time log in CSV or JSONL; see `slosched.core.steplog.read_step_log` and `fit`.

    Raises
    ------
    DataError
        If the file is malformed.
    InputError
        If it has too few rows.
    """
    log = read_step_log(path)
    work = (log.prefill_tokens, log.attention_work, log.sequences, log.kv_tokens)
    return fit(*work, log.seconds, knee=knee, seed=seed)


def plot_fit(report: FitReport, path: str | Path) -> Path:
    """Draw predicted against measured times of the held-out steps; the suffix of `path` gives the format.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    measured, predicted = report.measured_s * 1e3, report.predicted_s * 1e3
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(measured, predicted, s=6, alpha=0.5, linewidths=0)
    ends = [0.0, float(max(measured.max(), predicted.max()))]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set_xlabel("measured step [ms]")
    axes.set_ylabel("predicted step [ms]")
    axes.set_title(
        f"{report.rows_held_out} held-out steps: MAPE {100 * report.mape:.1f} %, R² {report.r2:.4f}"
    )
    target = Path(path)
    figure.savefig(target, dpi=120)
    return target
