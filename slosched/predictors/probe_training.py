"""Training of a probe from hidden states, after TRAIL: bins, cross-entropy, AdamW, cosine schedule."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError, MissingExtraError, require
from slosched.core.forecast import FORECAST_ATOMS
from slosched.predictors.probe import PROMPT_INPUTS, About, Belief, Mlp, Probe, bin_of, decode_inputs
from slosched.predictors.refinement import REFINEMENTS
from slosched.predictors.states import States

Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]

TRAIL_EDGES = tuple(51.2 * i for i in range(11))
"""TRAIL's bins: ten of equal width up to 512 tokens."""

LEAST_REQUESTS = 20
LEAST_BATCH, STEPS_PER_EPOCH = 16, 50
"""Few data, such as the one state a prompt has, are taken in smaller batches, for enough steps."""

FOLDS = 2
"""Parts of the requests for priors by networks that have not seen them."""

MOST_BINS = 1000
"""Bins of remaining tokens: beyond, the network's last layer alone takes longer than all else."""

HELD_OUT = 0.1
"""Share of requests kept from training; by request, since states of one answer resemble each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a probe is trained.

    `TRAIL` has the paper's settings, made for millions of states; from a thousand requests a smaller,
    strongly decayed network learns more (``benchmarks/probe.py``).

    Parameters
    ----------
    prompt_input
        ``mean`` over the prompt's states, as TRAIL, or ``mean+last``: beside it the last prompt token's.
    refinement
        ``none``, ``bayes`` or ``prior``.
    bins
        Bins of remaining tokens.
    spacing
        ``quantile``: as many training labels in each; ``trail``: ten of equal width up to 512 tokens.
    values
        Remaining tokens that stand for a bin: ``mean`` of those seen in it, or its ``middle``, as TRAIL.
    every_tokens
        A running request gets a new forecast each so many tokens.
    width
        Units of the hidden layer.
    epochs, batch, learning_rate, weight_decay
        Of AdamW; the rate falls to zero along a cosine. `batch` is the largest; few data take less.
    seed
        Of weights, order and held-out requests.
    """

    prompt_input: str = "mean+last"
    refinement: str = "prior"
    bins: int = 10
    spacing: str = "quantile"
    values: str = "mean"
    every_tokens: int = 8
    width: int = 128
    epochs: int = 15
    batch: int = 256
    learning_rate: float = 0.002
    weight_decay: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("refinement", REFINEMENTS), ("prompt_input", PROMPT_INPUTS)):
            got = getattr(self, name)
            require(got in known, name, f"one of {', '.join(known)}", got)
        require(self.spacing in ("quantile", "trail"), "spacing", "quantile or trail", self.spacing)
        require(self.values in ("mean", "middle"), "values", "mean or middle", self.values)
        for name in ("every_tokens", "width", "epochs", "batch"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(2 <= self.bins <= MOST_BINS, "bins", f"from 2 to {MOST_BINS}", self.bins)
        require(0 < self.learning_rate < 1, "learning_rate", "above 0 and below 1", self.learning_rate)
        require(0 <= self.weight_decay < 1, "weight_decay", "at least 0 and below 1", self.weight_decay)


TRAIL = Settings(
    prompt_input="mean", refinement="bayes", spacing="trail", values="middle", every_tokens=1, width=512,
    epochs=30, batch=32, learning_rate=0.01, weight_decay=0.01,
)  # fmt: skip
"""The paper's settings; it names no weight decay, and 0.01 is what AdamW has where nothing is said."""


@dataclass(slots=True)
class Curve:
    """Cross-entropy in nats on the data trained on and on the held-out requests, by epoch."""

    train: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)


def train_probe(
    data: States, settings: Settings | None = None, *, progress: Progress | None = None
) -> tuple[Probe, dict[str, Curve]]:
    """Train both networks of a probe.

    Answers that were cut off count with what is known, that they would have been longer: their loss is minus
    the logarithm of the probability of all bins from the cut on.

    Parameters
    ----------
    data
        Hidden states of answered requests.
    settings
        How to train.
    progress
        Called with (epochs done, all epochs).

    Returns
    -------
    Probe
        With the measures of the held-out requests in ``about.report``.
    dict
        Learning curve of each network.

    Raises
    ------
    InputError
        If there are fewer than 20 requests, no state, or all lengths are equal.
    MissingExtraError
        If torch is not installed.
    """
    settings = settings or Settings()
    data, dropped = data.finite()
    _check(data)
    count = len(data.names)
    order = np.random.default_rng(settings.seed).permutation(count)
    held_out = max(1, int(HELD_OUT * count))
    unseen, seen = data.select(order[:held_out]), data.select(order[held_out:])
    edges = _edges(seen, settings)
    fit = _Fit(settings, edges, progress)
    curves = {"prompt": Curve(), "decode": Curve()}
    inputs = data.hidden_size * len(settings.prompt_input.split("+"))
    asked, asked_unseen = seen.prompt_states[:, :inputs], unseen.prompt_states[:, :inputs]
    target, target_unseen = _target(seen, None, edges), _target(unseen, None, edges)
    prompt = fit.mlp(asked, target, asked_unseen, target_unseen, curves["prompt"], seed=settings.seed)
    x, x_unseen = seen.states, unseen.states
    if settings.refinement == "prior":
        prior = _prior_out_of_fold(fit, asked, target)
        x = decode_inputs(x, prior[seen.request], seen.generated_tokens)
        prior = prompt.probabilities(asked_unseen)
        x_unseen = decode_inputs(x_unseen, prior[unseen.request], unseen.generated_tokens)
    decode = fit.mlp(
        x, _target(seen, seen.request, edges), x_unseen, _target(unseen, unseen.request, edges),
        curves["decode"], seed=settings.seed,
    )  # fmt: skip
    about = About(
        model=data.model, hidden_size=data.hidden_size, layer=data.layer, edges=edges,
        values=_values(seen, edges, settings.values), prompt_input=settings.prompt_input,
        refinement=settings.refinement, every_tokens=settings.every_tokens,
    )  # fmt: skip
    report = {
        "requests": count,
        "held_out_requests": held_out,
        "cut_requests": int(data.cut.sum()),
        "states": len(data.states),
        "not_finite_dropped": dropped,
        "held_out": measure(Probe(about, prompt, decode), unseen),
    }
    return Probe(about.model_copy(update={"report": report}), prompt, decode), curves


def _check(data: States) -> None:
    count = len(data.names)
    require(count >= LEAST_REQUESTS, "data", f"states of at least {LEAST_REQUESTS} requests", f"{count}")
    require(len(data.states) > 0, "data", "states of at least one generated token", "none")
    lengths = data.output_tokens[~data.cut]
    if len(lengths) == 0 or lengths.min() == lengths.max():
        words = "none that ended by itself" if len(lengths) == 0 else f"all of {lengths[0]} tokens"
        raise InputError(f"data must hold answers of different lengths, got {words}.")


def _prior_out_of_fold(fit: _Fit, asked: Vectors, target: Ints) -> Floats:
    """Beliefs at the prompt's end by networks that have not seen the request, as while serving."""
    prior = np.empty((len(asked), fit.bins))
    half = np.arange(len(asked)) % FOLDS
    for part in range(FOLDS):
        mine, other = np.flatnonzero(half == part), np.flatnonzero(half != part)
        seed = fit.settings.seed + 1 + part
        mlp = fit.mlp(asked[other], target[other], asked[mine], target[mine], None, seed=seed)
        prior[mine] = mlp.probabilities(asked[mine])
    return prior


# measures ---------------------------------------------------------------------------------------------------


def replay(probe: Probe, data: States) -> tuple[Floats, Floats, Floats]:
    """A probe's forecasts over recorded answers, as it would make them while serving.

    Returns
    -------
    ndarray, ndarray
        Expected remaining tokens at each prompt's end, shape (R,), and at each state that is due by
        ``every_tokens``, shape (n,), NaN at the others.
    ndarray
        Forecast atoms of the whole length at each state, shape (n, atoms), NaN where not due.
    """
    beliefs = probe.begin(data.prompt_states)
    start = np.array([np.nan if b is None else probe.remaining_tokens(b) for b in beliefs])
    expected = np.full(len(data.states), np.nan)
    atoms = np.full((len(data.states), FORECAST_ATOMS), np.nan)
    # All requests at once, each at its next due state: few large calls instead of many small ones.
    for due in _rounds(data, probe.about.every_tokens):
        rows = [i for i in due if beliefs[data.request[i]] is not None]
        held: list[Belief] = [b for i in rows if (b := beliefs[data.request[i]]) is not None]
        if rows:
            probe.update(held, data.states[rows], data.generated_tokens[rows].tolist())
            expected[rows] = [probe.remaining_tokens(belief) for belief in held]
            atoms[rows] = probe.atoms(held)
    return start, expected, atoms


def _rounds(data: States, every_tokens: int) -> list[list[int]]:
    """States that are due, the first of each request, then the second of each, and so on."""
    rounds: list[list[int]] = []
    taken: Counter[int] = Counter()
    due: dict[int, int] = {}
    for i in np.lexsort((data.generated_tokens, data.request)).tolist():
        request, tokens = int(data.request[i]), int(data.generated_tokens[i])
        if tokens >= due.get(request, every_tokens):
            due[request] = tokens + every_tokens
            if taken[request] == len(rounds):
                rounds.append([])
            rounds[taken[request]].append(i)
            taken[request] += 1
    return rounds


def measure(probe: Probe, data: States) -> dict[str, Any]:
    """Mean absolute error of the remaining length, in tokens, at the prompt's end and later, over answers
    that ended by themselves; bias on the longest tenth.
    """
    start, expected, _ = replay(probe, data)
    whole = np.flatnonzero(~data.cut)
    found: dict[str, Any] = {"prompt_end": _errors(start[whole], data.output_tokens[whole])}
    rows = np.flatnonzero(~data.cut[data.request] & ~np.isnan(expected))
    if len(rows):
        long = data.output_tokens >= np.quantile(data.output_tokens[whole], 0.9) if len(whole) else data.cut
        found["later"] = _errors(expected[rows], data.remaining_tokens[rows])
        tail = rows[long[data.request[rows]]]
        if len(tail):
            found["later_longest_tenth"] = _errors(expected[tail], data.remaining_tokens[tail])
    return found


def _errors(expected: Floats, true: Ints) -> dict[str, float]:
    error = expected - true
    error = error[~np.isnan(error)]
    if len(error) == 0:
        return {"count": 0}
    return {
        "count": len(error),
        "mae_tokens": float(np.abs(error).mean()),
        "bias_tokens": float(error.mean()),
    }


# fitting ----------------------------------------------------------------------------------------------------


class _Fit:
    """Fits one multilayer perceptron after the other with the same settings."""

    def __init__(self, settings: Settings, edges: Sequence[float], progress: Progress | None) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError("torch", "predict") from error
        self.torch, self.settings, self.bins = torch, settings, len(edges) - 1
        self.progress, self.done = progress, 0
        self.total = settings.epochs * (2 + FOLDS * (settings.refinement == "prior"))

    def mlp(
        self, x: Vectors, y: Ints, x_unseen: Vectors, y_unseen: Ints, curve: Curve | None, *, seed: int
    ) -> Mlp:
        """Train on (x, y); keep the weights of the epoch that is best on unseen data.

        Targets have shape (n, 2): first and last bin the label may lie in.
        """
        torch, s = self.torch, self.settings
        generator = torch.Generator().manual_seed(seed)
        mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        inputs, unseen = (torch.from_numpy((a - mean) / scale) for a in (x, x_unseen))
        target, target_unseen = torch.from_numpy(y), torch.from_numpy(y_unseen)
        net = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], s.width), torch.nn.ReLU(), torch.nn.Linear(s.width, self.bins)
        )
        with torch.no_grad():
            for layer in (net[0], net[2]):
                bound = layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    parameter.uniform_(-bound, bound, generator=generator)
        optimizer = torch.optim.AdamW(net.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay)
        batch = min(s.batch, max(LEAST_BATCH, len(x) // STEPS_PER_EPOCH))
        steps = s.epochs * -(-len(x) // batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        best, kept = float("inf"), {k: v.clone() for k, v in net.state_dict().items()}
        for _ in range(s.epochs):
            order = torch.randperm(len(x), generator=generator)
            losses = []
            for chosen in order.split(batch):
                loss = self._loss(net(inputs[chosen]), target[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
            with torch.no_grad():
                unseen_loss = float(self._loss(net(unseen), target_unseen))
            if curve is not None:
                curve.train.append(float(np.mean(losses)))
                curve.held_out.append(unseen_loss)
            if unseen_loss < best:
                best, kept = unseen_loss, {k: v.clone() for k, v in net.state_dict().items()}
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        # The scaling of the inputs goes into the first layer: serving needs none.
        w1 = kept["0.weight"].numpy().T / scale[:, None]
        b1 = kept["0.bias"].numpy() - mean @ w1
        w2, b2 = kept["2.weight"].numpy().T, kept["2.bias"].numpy()
        return Mlp(*(np.ascontiguousarray(a, dtype=np.float32) for a in (w1, b1, w2, b2)))

    def _loss(self, logits: Any, target: Any) -> Any:
        """Minus the log probability of the bins from first to last, mean over the batch."""
        torch = self.torch
        bins = torch.arange(self.bins)
        allowed = (bins >= target[:, :1]) & (bins <= target[:, 1:])
        log_p = torch.log_softmax(logits, dim=1).masked_fill(~allowed, -torch.inf)
        return -torch.logsumexp(log_p, dim=1).mean()


def _target(data: States, request: Ints | None, edges: Sequence[float]) -> Ints:
    """First and last bin of each label: one where the answer ended by itself, else all from the cut."""
    labels = data.output_tokens if request is None else data.remaining_tokens
    cut = data.cut if request is None else data.cut[request]
    first = bin_of(labels, edges)
    return np.stack([first, np.where(cut, len(edges) - 2, first)], axis=1)


def _edges(data: States, settings: Settings) -> tuple[float, ...]:
    if settings.spacing == "trail":
        return TRAIL_EDGES
    labels = np.concatenate([data.output_tokens, data.remaining_tokens])
    inner = np.quantile(labels, np.linspace(0, 1, settings.bins + 1))
    return tuple(float(e) for e in np.unique(np.concatenate([[0.0], inner[1:]])))


def _values(data: States, edges: Sequence[float], kind: str) -> tuple[float, ...]:
    """Mean label of each bin, or its middle; this also where there is no label."""
    labels = np.concatenate([data.output_tokens[~data.cut], data.remaining_tokens[~data.cut[data.request]]])
    bins = bin_of(labels, edges)
    middle = (np.asarray(edges[1:]) + np.asarray(edges[:-1])) / 2
    if kind == "middle":
        return tuple(middle.tolist())
    count = np.bincount(bins, minlength=len(middle))
    total = np.bincount(bins, weights=labels, minlength=len(middle))
    return tuple(float(v) for v in np.where(count > 0, total / np.maximum(count, 1), middle))


def write_curves(curves: dict[str, Curve], folder: str | Path) -> None:
    """Write ``curves.json``, and ``curves.svg`` where matplotlib is installed."""
    target = Path(folder)
    content = {name: {"train": c.train, "held_out": c.held_out} for name, c in curves.items()}
    (target / "curves.json").write_text(json.dumps(content, indent=1))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, (name, curve) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        epochs = range(1, len(curve.train) + 1)
        axes.plot(epochs, curve.train, label="trained on")
        axes.plot(epochs, curve.held_out, label="held out")
        axes.set(title=name, xlabel="epoch", ylabel="cross-entropy, nats")
        axes.legend()
    figure.savefig(target / "curves.svg")
