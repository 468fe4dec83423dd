"""One forecast from several sources, each weighed by how right it has been in its class.

Sources are the class's history, a ranker, a client's hint. What a source says is tried in three forms: as it
is, with its level and spread corrected by the latest answers, and so corrected but moved half way to the
class's history. Two sources together are tried as their geometric mean. Every answer that ends is scored
under each form by its pinball loss, and weights fall exponentially with the losses so far (Hedge: Freund and
Schapire 1997, https://doi.org/10.1006/jcss.1997.1504).

**A source has no say until it has earned it.** At first the forecast is the class's history. Each answer bets
on the source against the history; the wealth of such bets is a test that may be looked at after every answer.
If the source is no better in expectation, its wealth ever exceeds `EVIDENCE` with a chance of at most
1 / EVIDENCE (Ville's inequality; Waudby-Smith and Ramdas 2024, https://doi.org/10.1093/jrsssb/qkad009). Only
beyond that is it followed, so that with a chance of at least 95 % a useless one never moves a forecast.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import InputError, require
from slosched.core.forecast import FORECAST_ATOMS
from slosched.predictors.calibration import LEVELS
from slosched.predictors.scores import FORMS, STRENGTHS, Scores
from slosched.predictors.scores import HISTORY as HISTORY

RATE = 4.0
"""Weights are exp(-RATE x loss), losses being pinball losses of the logarithm of the length, about 0.2 an
answer. Between 3 and 20 the loss of the blend differs by less than 1 % (``benchmarks/cold_start.py``)."""

HALF_LIFE = 128
"""Answers after which a loss counts half."""

HANDICAP = 0.02
"""Share by which a source must be better than the class's history to gain weight. Half believed, one that
tells nothing costs next to nothing in loss, though it does in order, and would keep its say for long."""

POOLED = 32
"""Answers of its own after which a class's losses count as much as those of all classes together."""

TRUST = 0.6
"""A source's share, before losses, of the weight that more trusted sources leave. The history has what is
left in the end."""

JOINT_TRUST = 0.05
"""The same for two sources together."""

EVIDENCE = 20.0
"""Wealth at which a source may be followed: a useless one gets there with a chance of at most 5 %."""

_FIRST = np.array([0.7, 0.1, 0.2])
"""How a source's trust is shared by its forms: as it is, half way, all the way."""

_FADE = 0.5 ** (1.0 / HALF_LIFE)


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What each source said of one request, kept until its answer's length is known.

    Parameters
    ----------
    slo_class
        Its class.
    names
        Sources, the history first.
    logs
        Logarithms of their atoms, shape (sources, FORECAST_ATOMS).
    forms
        The same in every form tried, shape (sources, forms, FORECAST_ATOMS).
    history
        Atoms of the history: the forecast, to the last digit, until a source has earned a say.
    """

    slo_class: str
    names: tuple[str, ...]
    logs: Floats
    forms: Floats
    history: Floats


class Blend:
    """Learns online which sources to follow, class by class; new classes begin with what all have shown.

    Parameters
    ----------
    trusted
        Sources that are followed before they have earned it, with the weight from 0 to 1 that each begins
        with; no other has any at first.
    relative
        Sources that know which requests ask for more, not how long answers are: their forecasts are moved so
        that the middle one has the history's middle.

    Examples
    --------
    A ranker that says the opposite of the truth is never listened to:

    >>> blend, history = Blend(), np.repeat([20.0, 500.0], 4)
    >>> for i in range(100):
    ...     said = np.full(8, (20.0, 500.0)[i % 2])
    ...     told = blend.tell("chat", {"history": history, "ranker": said})
    ...     blend.observe(told, (500, 20)[i % 2])
    >>> blend.weights("chat")["ranker"] < 0.05
    True
    """

    def __init__(self, trusted: Mapping[str, float] | None = None, relative: Collection[str] = ()) -> None:
        self.trusted, self.relative = dict(trusted or {}), frozenset(relative)
        for name, value in self.trusted.items():
            require(0 <= value <= 1, f"trust of {name}", "from 0 to 1", value)
        self._centres: dict[tuple[str, str], tuple[float, int]] = {}
        self._classes: dict[str, Scores] = {}
        self._all = Scores()

    def tell(self, slo_class: str, sources: Mapping[str, Floats]) -> Told:
        """Take down what sources say of a request: atoms by name, shape (FORECAST_ATOMS,), `HISTORY` among
        them. Two or more besides it are joined by their geometric mean, one more source.

        Raises
        ------
        InputError
            If the history is missing, or a source says something else than so many finite lengths above 0.
        """
        require(HISTORY in sources, "sources", f"with {HISTORY}", tuple(sources))
        others = sorted(name for name in sources if name != HISTORY)
        logs = _logs(sources, (HISTORY, *others))
        for i, name in enumerate(others, start=1):
            if name in self.relative:
                logs[i] += float(_middle(logs[0])) - self._centre(slo_class, name, float(_middle(logs[i])))
        if len(others) > 1:
            logs = np.concatenate([logs, logs[1:].mean(axis=0, keepdims=True)])
            others.append("+".join(others))
        names = (HISTORY, *others)
        return Told(slo_class, names, logs, self._forms(slo_class, names, logs), sources[HISTORY])

    def atoms(self, told: Told) -> Floats:
        """The blended forecast, shape (FORECAST_ATOMS,), ascending, at least 1."""
        weights = self._weights(told.slo_class, told.names)
        if not weights[1:].any():
            return np.maximum.accumulate(np.maximum(told.history, 1.0))
        mixed = weights.ravel() @ told.forms.reshape(-1, FORECAST_ATOMS)
        return np.maximum.accumulate(np.maximum(np.exp(mixed), 1.0))

    def again(self, told: Told, history: Floats) -> Told:
        """The same with what has been learned since, and the class's history as it is now."""
        logs = told.logs.copy()
        logs[0] = np.log(history)
        for i, name in enumerate(told.names[1:], start=1):
            parts = name.split("+")
            share = sum(part in self.relative for part in parts) / len(parts)
            logs[i] += share * float(_middle(logs[0]) - _middle(told.logs[0]))
        return replace(told, logs=logs, forms=self._forms(told.slo_class, told.names, logs), history=history)

    def observe(self, told: Told, tokens: float, *, cut: bool = False) -> None:
        """Learn from an answer; `cut` if it did not end by itself, so that its length is a lower bound."""
        y = float(np.log(max(1.0, tokens)))
        # Beyond a cut nothing is known: a longer forecast is not blamed.
        miss = np.maximum(y - told.forms, 0.0) if cut else y - told.forms
        loss = np.maximum(LEVELS * miss, (LEVELS - 1.0) * miss).mean(axis=2)
        plain = loss.copy()
        loss[1:] += HANDICAP * loss[0, 0]
        mine = self._classes.setdefault(told.slo_class, Scores())
        silent = self._all.losses.keys() - set(told.names)
        mixed = float((self._weights(told.slo_class, told.names) * loss).sum()) if silent else 0.0
        for state in (mine, self._all):
            state.answers += 1
            for name in state.losses:
                state.losses[name] *= _FADE
                if name in silent:  # it said nothing: as good as the blend
                    state.losses[name] += mixed
            for name, found in zip(told.names, loss, strict=True):
                if name not in state.losses:
                    # A source that comes late starts level with the best.
                    best = min((v.min() for v in state.losses.values()), default=0.0)
                    state.losses[name] = np.full(FORMS, best)
                state.losses[name] += found
            for name, lost in zip(told.names[1:], plain[1:], strict=True):
                state.bet(name, plain[0, 0], lost)
        middles = _middle(told.logs)
        for i, name in enumerate(told.names[1:], start=1):
            mine.note(name, y - middles[0] - STRENGTHS * (middles[i] - middles[0]), cut)
        mine.noted()

    def weights(self, slo_class: str) -> dict[str, float]:
        """Weight of each source known so far, its forms together; they sum to 1."""
        names = tuple(self._all.losses) or (HISTORY,)
        return dict(zip(names, self._weights(slo_class, names).sum(axis=1).tolist(), strict=True))

    # files ------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """What has been learned, as plain values for JSON; numbers to six digits."""
        return {
            "all": self._all.as_dict(),
            "classes": {name: state.as_dict() for name, state in list(self._classes.items())},
            "centres": [[*key, *value] for key, value in list(self._centres.items())],
        }

    def restore(self, content: Mapping[str, Any], *, without: Collection[str] = ()) -> None:
        """Take up what `as_dict` gave.

        Parameters
        ----------
        content
            What was learned.
        without
            Sources to forget, alone and beside others, since something else has their name now.

        Raises
        ------
        InputError
            If it is something else; then nothing is taken up.
        """
        try:
            everything = Scores.of(content["all"], without)
            classes = {str(name): Scores.of(state, without) for name, state in content["classes"].items()}
            centres = {
                (str(c), str(name)): (float(mean), int(count))
                for c, name, mean, count in content["centres"]
                if name not in without
            }
            ok = all(np.isfinite(mean) and count >= 1 for mean, count in centres.values())
            require(ok, "centres", "finite means of at least one answer", centres)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"blend must be what was learned of sources by class: {error}.") from None
        self._all, self._classes, self._centres = everything, classes, centres

    # ------------------------------------------------------------------------------------------------------

    def _weights(self, slo_class: str, names: tuple[str, ...]) -> Floats:
        """Shape (sources, forms); the history has one form only."""
        mine = self._classes.get(slo_class, self._all)
        share = 0.0 if mine is self._all else POOLED / (POOLED + mine.answers)
        cost = np.zeros((len(names), FORMS))
        prior = np.zeros((len(names), FORMS))
        left = 1.0
        for i, name in enumerate(names):
            cost[i] = mine.losses.get(name, 0.0)
            if share:
                cost[i] += share * (self._all.losses.get(name, 0.0) - _least(self._all))
        open_ = [self._earned(slo_class, name) for name in names]
        for trust, i in sorted(
            ((self._trust(n), i) for i, n in enumerate(names) if i and open_[i]), reverse=True
        ):
            prior[i] = trust * left * _FIRST
            left *= 1.0 - trust
        prior[0, 0] = max(left, 0.01)  # however trusted, all can be unlearned
        known = prior > 0
        lowest = cost[known].min()
        made = np.where(known, prior * np.exp(-RATE * (cost - lowest)), 0.0)
        return np.asarray(made / made.sum())

    def _centre(self, slo_class: str, name: str, middle: float) -> float:
        """Mean of a relative source's middles in a class, this one the newest; older ones fade."""
        mean, count = self._centres.get((slo_class, name), (0.0, 0))
        count = min(count + 1, HALF_LIFE)
        mean += (middle - mean) / count
        self._centres[slo_class, name] = mean, count
        return mean

    def _trust(self, name: str) -> float:
        return self.trusted.get(name, JOINT_TRUST if "+" in name else TRUST)

    def _earned(self, slo_class: str, name: str) -> bool:
        """Whether a source has shown, in this class or in all, that it is better than the history."""
        if name in self.trusted:
            return True
        mine = self._classes.get(slo_class)
        wealth = self._all.wealth_of(name) + (0.0 if mine is None else mine.wealth_of(name))
        return wealth / 2 >= EVIDENCE

    def _forms(self, slo_class: str, names: tuple[str, ...], logs: Floats) -> Floats:
        """Logarithms of the atoms of each source and form, shape (sources, forms, FORECAST_ATOMS)."""
        state = self._classes.get(slo_class)
        middles = _middle(logs)
        found = np.empty((len(names), FORMS, FORECAST_ATOMS))
        found[:] = logs[:, None, :]
        shape = logs[0] - middles[0]
        for i, name in enumerate(names[1:], start=1):
            places = middles[0] + STRENGTHS * (middles[i] - middles[0])
            factors = None if state is None else state.factors.get(name)
            spread = np.stack([shape, logs[i] - middles[i]]) if factors is None else factors
            found[i, 1:] = places[:, None] + spread
        return found


def _logs(sources: Mapping[str, Floats], names: Sequence[str]) -> Floats:
    """Logarithms of what sources say, shape (sources, FORECAST_ATOMS)."""
    for name in names:
        said = np.asarray(sources[name])
        ok = said.shape == (FORECAST_ATOMS,) and said.dtype.kind in "iuf"
        ok = ok and bool(said.min() > 0 and said.max() < np.inf)
        require(ok, f"atoms of {name}", f"{FORECAST_ATOMS} finite lengths above 0", str(said)[:80])
    return np.asarray(np.log([sources[name] for name in names]))


def _middle(logs: Floats) -> Floats:
    half = FORECAST_ATOMS // 2
    return np.asarray(logs[..., half - 1 : half + 1].mean(axis=-1))


def _least(state: Scores) -> float:
    return min((float(v.min()) for v in state.losses.values()), default=0.0)
