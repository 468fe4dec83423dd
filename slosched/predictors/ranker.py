"""The light ranker: hashed n-grams and lexical counts, one linear score, trained to rank.

ListMLE (Fu et al. 2024, arXiv 2408.15792, section 3) says how likely the true order of a list is if the next
item is always drawn with odds exp(-score). With all training prompts as one list and cut-off answers staying
among those still to be drawn, that is Cox's partial likelihood (1972), which is what is maximised here. The
rules of thumb are a list of their own, one of Cox's strata: they say what asks for more, not how much here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.errors import InputError, require
from slosched.core.writing import write_files
from slosched.predictors.answers import Answers
from slosched.predictors.base import ABOUT, Prompt, about_of
from slosched.predictors.calibration import Calibration, calibrate, require_finite
from slosched.predictors.features import BUCKETS, COUNTS, featurise
from slosched.predictors.rules_of_thumb import rules_of_thumb
from slosched.predictors.states import read_tensors, write_tensors

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

OBJECTIVES = ("listmle", "lists", "pointwise")
"""``listmle``: the whole training set as one list. ``lists``: random lists of 32, as in the paper.
``pointwise``: squared error of the logarithm of the length, for comparison."""

PENALTIES = (2.0, 8.0)
"""Weights of the squared weights against one list; the better out of fold is taken, the more so the less a
prompt tells."""

RULES = 0.5
"""Weight of the rules of thumb, the training set's being 1. At .3 and 1 tau within four sets falls by .002
and .005. Between them it rises by .018 and .026, into chat by .025 and .042 (one tuning split)."""

FOLDS = 5
LIST_SIZE = 32
RAREST = 2
"""Prompts that must hold an n-gram for it to count."""

_WORDS, _CHARACTERS = 1.3, 0.6
"""Lengths of a text's words and of its character n-grams as vectors: words tell more."""

_LEXICAL = 0.3
_STEPS = 0.09
_DECILES = np.arange(0.1, 1.0, 0.1)

_TYPES: dict[str, Any] = {
    "rarity": np.float32, "weights": np.float32, "lexical_mean": np.float64, "lexical_scale": np.float64,
    "deciles": np.float64, "lexical_weights": np.float64,
}  # fmt: skip

FORMAT = "slosched-ranker-2"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear score; higher means longer.

    Parameters
    ----------
    rarity
        Inverse document frequency of each bucket, 0 for those left out, shape (BUCKETS,).
    weights
        Weight of each bucket, shape (BUCKETS,).
    lexical_mean, lexical_scale
        Of the lexical counts, shape (number of COUNTS,).
    deciles
        Of each count, shape (number of COUNTS, 9): the score may step there.
    lexical_weights
        Of the counts and then the steps, shape (10 x number of COUNTS,).
    """

    rarity: NDArray[np.float32]
    weights: NDArray[np.float32]
    lexical_mean: Floats
    lexical_scale: Floats
    deciles: Floats
    lexical_weights: Floats

    def __post_init__(self) -> None:
        k = len(COUNTS)
        wanted = {
            "rarity": (BUCKETS,), "weights": (BUCKETS,), "lexical_mean": (k,), "lexical_scale": (k,),
            "deciles": (k, len(_DECILES)), "lexical_weights": (k * (1 + len(_DECILES)),),
        }  # fmt: skip
        for name, shape in wanted.items():
            array = getattr(self, name)
            require(array.shape == shape, name, f"of shape {shape}", array.shape)
            require_finite(name, array)
        least = float(self.lexical_scale.min())
        require(least > 0, "lexical_scale", "above 0", least)

    def score(self, texts: Sequence[str]) -> Floats:
        """Score of each text, shape (n,); 0 n-grams known leave the lexical part."""
        if not texts:
            return np.zeros(0)
        offsets, buckets, counts, lexical = featurise(texts)
        row = np.repeat(np.arange(len(texts)), np.diff(offsets))
        values = _weigh(row, buckets, counts, self.rarity, len(texts))
        ngrams = np.bincount(row, values * self.weights[buckets], minlength=len(texts))
        steps = _lexical(lexical, self.lexical_mean, self.lexical_scale, self.deciles)
        return np.asarray(ngrams + steps @ self.lexical_weights)


@dataclass(frozen=True, slots=True, eq=False)
class Ranker:
    """The light ranker, a `slosched.predictors.Predictor`.

    Parameters
    ----------
    linear
        Its score.
    calibration
        What lengths a score stands for.
    report
        Measures of its training.
    """

    linear: Linear
    calibration: Calibration
    report: dict[str, Any] = field(default_factory=dict)

    def score(self, texts: Sequence[str]) -> Floats:
        """Score of each text, higher means longer, shape (n,)."""
        return self.linear.score(texts)

    def forecast(self, prompts: Sequence[Prompt]) -> Floats:
        """Atoms for each prompt, shape (n, FORECAST_ATOMS)."""
        return self.calibration.atoms(self.score([prompt.text for prompt in prompts]))

    def save(self, folder: str | Path) -> Path:
        """Write ``ranker.safetensors`` and ``predictor.json``; returns the folder."""
        target = Path(folder)
        arrays: dict[str, Any] = {name: getattr(self.linear, name) for name in _TYPES}
        # Most buckets hold nothing: only the others are written.
        used = np.flatnonzero(self.linear.rarity)
        arrays |= {"buckets": used.astype(np.int32), "rarity": self.linear.rarity[used]}
        arrays |= {"weights": self.linear.weights[used]}
        arrays |= {"scores": self.calibration.scores, "log_atoms": self.calibration.log_atoms}
        target.mkdir(parents=True, exist_ok=True)
        write_tensors(target / "ranker.safetensors", arrays, {"format": FORMAT})
        about = {"kind": "light", "report": self.report}
        write_files(target, {ABOUT: (json.dumps(about, indent=1) + "\n").encode()})
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Ranker:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If a file is missing, a tensor is missing, or has another shape.
        """
        about = about_of(folder)
        path = Path(folder) / "ranker.safetensors"
        arrays, about_tensors = read_tensors(path)
        if about_tensors.get("format") != FORMAT:
            found = about_tensors.get("format")
            raise InputError(f"{path}: format must be {FORMAT!r}, got {found!r}; train the ranker anew.")
        try:
            used = arrays["buckets"]
            require(not len(used) or used.min() >= 0, "buckets", "at least 0", int(used.min(initial=0)))
            for name in ("rarity", "weights"):
                whole = np.zeros(BUCKETS, dtype=np.float32)
                whole[used] = arrays[name]
                arrays[name] = whole
            linear = Linear(**{name: np.asarray(arrays[name], dtype) for name, dtype in _TYPES.items()})
            scores, log_atoms = (np.asarray(arrays[k], np.float64) for k in ("scores", "log_atoms"))
            return cls(linear, Calibration(scores, log_atoms), about.get("report", {}))
        except KeyError as error:
            raise InputError(f"{path}: tensor {error} is missing.") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (IndexError, TypeError, ValueError) as error:
            raise InputError(f"{path}: tensors must fit each other: {error}.") from None


def train_ranker(
    answers: Answers,
    *,
    objective: str = "listmle",
    rarest: int = RAREST,
    rules: float = RULES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ranker:
    """Train on all answers; calibrate on scores of each fifth by the rankers of the other four.

    Parameters
    ----------
    answers
        Prompts and lengths; several samples of one prompt stand in the list side by side.
    objective
        One of `OBJECTIVES`.
    rarest
        Prompts that must hold an n-gram for it to count, at least 1.
    rules
        Weight of `slosched.predictors.rules_of_thumb`, at least 0; the training set's is 1.
    seed
        Of the folds.
    progress
        Told of each ranker trained.

    Examples
    --------
    >>> texts = [f"Write {word} lines about {i}." for i in range(60) for word in ("ten", "ninety")]
    >>> made = train_ranker(Answers.single(texts, [10 + i % 3 + 80 * (i % 2) for i in range(120)]))
    >>> few, many = made.score(["Write ten lines about cats.", "Write ninety lines about cats."])
    >>> bool(few < many)
    True
    """
    return scored_out_of_fold(
        answers, objective=objective, rarest=rarest, rules=rules, seed=seed, progress=progress
    )[0]


def scored_out_of_fold(
    answers: Answers,
    *,
    objective: str = "listmle",
    rarest: int = RAREST,
    rules: float = RULES,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Ranker, Floats]:
    """What `train_ranker` gives, and each prompt's score by one that has not seen it, shape (prompts,)."""
    require(objective in OBJECTIVES, "objective", f"one of {', '.join(OBJECTIVES)}", objective)
    answers.require_enough()
    require(0 <= rules < np.inf, "rules", "at least 0", rules)
    design = _Design(answers, rarest, rules)
    weights, scores, penalty = design.best(objective, seed, progress)
    made = calibrate(scores[answers.prompt], answers.output_tokens, answers.cut, seed=seed)
    report = {
        "prompts": len(answers.prompts), "answers": len(answers.output_tokens),
        "cut": int(answers.cut.sum()), "objective": objective, "penalty": penalty,
        "tau_out_of_fold": tau(scores[answers.prompt], answers.output_tokens),
        "tau_trained_on": tau((design.own @ weights)[answers.prompt], answers.output_tokens),
    }  # fmt: skip
    return Ranker(design.linear(weights), made, report), scores


def fit(
    answers: Answers, *, objective: str = "listmle", penalty: float | None = None, seed: int = 0
) -> Linear:
    """A score trained on all answers, without calibration; see `train_ranker`. `penalty` is chosen out of
    fold if not given.
    """
    require(objective in OBJECTIVES, "objective", f"one of {', '.join(OBJECTIVES)}", objective)
    design = _Design(answers)
    if penalty is None:
        return design.linear(design.best(objective, seed)[0])
    return design.linear(design.weights(np.arange(len(answers.prompts)), objective, penalty, seed))


def tau(scores: Floats, tokens: NDArray[np.generic]) -> float:
    """Kendall's tau-b of scores and lengths; 0 if either is all equal, or there are fewer than two."""
    from scipy.stats import kendalltau

    if len(scores) < 2:
        return 0.0
    found = float(kendalltau(scores, np.asarray(tokens, dtype=np.float64)).statistic)
    return found if np.isfinite(found) else 0.0


def folds(answers: Answers, seed: int) -> Ints:
    """Fold of each prompt; equal texts share one."""
    texts: dict[str, int] = {}
    group = [texts.setdefault(prompt.text, len(texts)) for prompt in answers.prompts]
    return np.asarray(np.random.default_rng(seed).permutation(len(texts))[group] % FOLDS)


class _Design:
    """The prompts as one sparse matrix: n-grams, then lexical counts and steps."""

    def __init__(self, answers: Answers, rarest: int = RAREST, rules: float = RULES) -> None:
        from scipy.sparse import csr_matrix, hstack

        self.answers, self.rules = answers, rules
        own = len(answers.prompts)
        texts = [prompt.text for prompt in answers.prompts]
        if rules:
            texts += [prompt.text for prompt in rules_of_thumb().prompts]
        n = len(texts)
        offsets, buckets, counts, lexical = featurise(texts)
        holders = np.bincount(buckets, minlength=BUCKETS)
        kept = holders >= rarest
        rarity = np.where(kept, 1.0 + np.log((1.0 + n) / (1.0 + holders)), 0.0)
        self.rarity = rarity.astype(np.float32)
        row = np.repeat(np.arange(n), np.diff(offsets))
        values = _weigh(row, buckets, counts, self.rarity, n)
        self.columns = np.flatnonzero(kept)
        place = np.cumsum(kept) - 1
        known = kept[buckets]
        ngrams = csr_matrix(
            (values[known], (row[known], place[buckets[known]])), shape=(n, len(self.columns))
        )
        self.mean, self.scale = lexical.mean(axis=0), np.maximum(lexical.std(axis=0), 1e-3)
        self.deciles = np.quantile(lexical, _DECILES, axis=0).T.copy()
        dense = _lexical(lexical, self.mean, self.scale, self.deciles)
        matrix = hstack([ngrams, csr_matrix(dense)]).tocsr()
        self.own: csr_matrix = matrix[:own]
        self.general: csr_matrix = matrix[own:]

    def best(
        self, objective: str, seed: int, progress: Progress | None = None
    ) -> tuple[Floats, Floats, float]:
        """Weights, each prompt's score by a ranker that has not seen it, and the penalty taken."""
        fold = folds(self.answers, seed)
        done, steps = 0, len(PENALTIES) * FOLDS + 1
        found = []
        for penalty in PENALTIES:
            scores = np.zeros(len(fold))
            for k in range(FOLDS):
                inside, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
                scores[held] = self.own[held] @ self.weights(inside, objective, penalty, seed)
                done += 1
                if progress is not None:
                    progress(done, steps)
            order = tau(scores[self.answers.prompt], self.answers.output_tokens)
            found.append((order, penalty, scores))
        _, penalty, scores = max(found, key=lambda f: (f[0], f[1]))
        weights = self.weights(np.arange(len(fold)), objective, penalty, seed)
        if progress is not None:
            progress(steps, steps)
        return weights, scores, penalty

    def weights(self, prompts: Ints, objective: str, penalty: float, seed: int) -> Floats:
        """Weights trained on the answers of some prompts."""
        lists = [(self.own[prompts], self.answers.select(prompts), 1.0)]
        if self.rules:
            lists.append((self.general, rules_of_thumb(), self.rules))
        return _fitted(lists, objective, penalty / len(prompts), seed)

    def linear(self, weights: Floats) -> Linear:
        """The score with these weights."""
        k = len(self.columns)
        table = np.zeros(BUCKETS, dtype=np.float32)
        table[self.columns] = weights[:k]
        return Linear(self.rarity, table, self.mean, self.scale, self.deciles, weights[k:])


def _fitted(
    lists: Sequence[tuple[csr_matrix, Answers, float]], objective: str, penalty: float, seed: int
) -> Floats:
    """Weights of a linear score that make the sum of some lists' losses, each of its weight, and `penalty`
    times half the squared weights least; a list has one row for each prompt of its answers.
    """
    from scipy.optimize import minimize

    parts = [(m, m.T.tocsr(), _loss(known, objective, seed), share) for m, known, share in lists]

    def value(w: Floats) -> tuple[float, Floats]:
        """Penalised loss of the weights, and its gradient."""
        cost, slope = 0.5 * penalty * float(w @ w), penalty * w
        for matrix, turned, loss, share in parts:
            more, by_prompt = loss(matrix @ w)
            cost, slope = cost + share * more, slope + share * (turned @ by_prompt)
        return cost, slope

    start = np.zeros(lists[0][0].shape[1])
    return np.asarray(minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x)


def _loss(answers: Answers, objective: str, seed: int) -> Callable[[Floats], tuple[float, Floats]]:
    """Mean loss and its slope, as functions of the prompts' scores."""
    n, of = len(answers.output_tokens), answers.prompt
    prompts = len(answers.prompts)
    if objective == "pointwise":
        aim = np.log(answers.output_tokens)
        centre, scale = float(aim.mean()), max(1e-6, float(aim.std()))
        aim = (aim - centre) / scale

        def squared(scores: Floats) -> tuple[float, Floats]:
            miss = scores[of] - aim
            return 0.5 * float(miss @ miss) / n, np.bincount(of, miss, minlength=prompts) / n

        return squared
    rng = np.random.default_rng(seed)
    size = n if objective == "listmle" else min(n, LIST_SIZE)
    repeats = 1 if objective == "listmle" else 4
    lists = []
    for _ in range(repeats):
        drawn = rng.permutation(n)[: n // size * size].reshape(-1, size)
        # Shortest first; among equals those that ended come before those cut off.
        key = answers.output_tokens[drawn] * 2 + answers.cut[drawn]
        lists.append(np.take_along_axis(drawn, np.argsort(key, axis=1, kind="stable"), axis=1))
    rank = np.concatenate(lists)
    ended = ~answers.cut[rank]
    total = max(1, int(ended.sum()))
    who = of[rank]

    def listed(scores: Floats) -> tuple[float, Floats]:
        """Listwise loss of scores, and its gradient."""
        hazard = -scores[who]
        top = hazard.max(axis=1, keepdims=True)
        odds = np.exp(hazard - top)
        still = np.cumsum(odds[:, ::-1], axis=1)[:, ::-1]
        likely = np.where(ended, hazard - top - np.log(still), 0.0)
        slope = ended - odds * np.cumsum(np.where(ended, 1.0 / still, 0.0), axis=1)
        return -float(likely.sum()) / total, np.bincount(
            who.ravel(), slope.ravel(), minlength=prompts
        ) / total

    return listed


def _weigh(
    row: Ints, buckets: NDArray[np.int32], counts: NDArray[np.float32], rarity: NDArray[np.float32], n: int
) -> Floats:
    """TF-IDF with logarithmic counts; words, and n-grams, of a text scaled to one length together."""
    values = (1.0 + np.log(counts)) * rarity[buckets]
    block = 2 * row + (buckets >= BUCKETS // 2)
    norm = np.sqrt(np.bincount(block, values * values, minlength=2 * n))
    length = np.where(block % 2 == 1, _CHARACTERS, _WORDS)
    return np.asarray(length * values / np.maximum(norm[block], 1e-9))


def _lexical(lexical: Floats, mean: Floats, scale: Floats, deciles: Floats) -> Floats:
    level = _LEXICAL * np.clip((lexical - mean) / scale, -4.0, 4.0)
    steps = _STEPS * (lexical[:, :, None] > deciles[None, :, :])
    return np.concatenate([level, steps.reshape(len(lexical), -1)], axis=1)
