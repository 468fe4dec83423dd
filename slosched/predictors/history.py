"""History: the latest answers of a class, or of a program, are the forecast of its next one."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slosched.core.arrays import Floats
from slosched.core.errors import InputError, require
from slosched.core.forecast import FORECAST_ATOMS, LengthForecast
from slosched.core.writing import write_files
from slosched.predictors.answers import MOST_OUTPUT_TOKENS
from slosched.predictors.base import ABOUT, Prompt, about_of
from slosched.predictors.calibration import censored_quantiles

KEPT = 512
"""Latest answers kept of a class and prompt-length bucket."""

LEAST = 16
"""Answers needed before a bucket, or a class, is believed."""

GENERAL = 4.0
"""Answers that the general forecast counts for in a class that has few of its own."""

HALF_LIFE = 128
"""Answers after which one counts half: old regimes fade."""

BUCKET_TOKENS = (64, 256, 1024, 4096, 16384)
"""Edges of the prompt-length buckets."""

RENEWED_AFTER = 32
"""Answers after which forecasts already given are made anew. The first answers tell most of a class: before
that it is done after the 1st, 2nd, 4th and so on."""

PROGRAMS_KEPT = 4096
"""Programs remembered; beyond it the one longest silent is forgotten."""

FADE = 0.7
"""Weight of an answer over that of the next one: a program's latest answers tell most. On Claude Code's turns
this lowers the pinball loss by 6.3 %, the plain mean of four by 5.8 %, the last answer alone by 2.3 %."""

SIGMA = 0.8
"""Spread of the logarithm that is told; the blend finds the right one from the answers."""

Running = tuple[str, int, int]
"""Class, prompt tokens and tokens generated so far of a request still being answered."""


@dataclass(slots=True)
class _Seen:
    """Latest answers, as (length, cut off?), oldest first, and the forecast made of them."""

    answers: deque[tuple[int, bool]] = field(default_factory=lambda: deque(maxlen=KEPT))
    since: int = 0
    made: LengthForecast | None = None


class ClassHistory:
    """Streaming quantiles by class and prompt-length bucket, a `slosched.predictors.Predictor`.

    A forecast is made of the answers of the request's class and prompt-length bucket, or of the whole class
    while the bucket has fewer than `LEAST`. While the class has fewer, a broad general forecast counts beside
    them as `GENERAL` answers. Answers cut off by a limit, and those still running, count as lower bounds:
    leaving them out would favour short ones. Older answers weigh less.

    Attributes
    ----------
    running
        Gives the requests being answered now; none by default.

    Examples
    --------
    >>> history = ClassHistory()
    >>> for tokens in range(1, 101):
    ...     history.observe("chat", tokens)
    >>> 40 < history.of("chat").mean_tokens < 70
    True
    >>> history.of("unknown").mean_tokens > 150
    True
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._fallback = LengthForecast.lognormal(150.0, 1.0)
        self.running: Callable[[], Iterable[Running]] = tuple

    def observe(self, slo_class: str, tokens: int, *, prompt_tokens: int = 1, cut: bool = False) -> None:
        """Learn from an answer; `cut` if it did not end by itself."""
        for key in ((slo_class, bucket(prompt_tokens)), (slo_class, -1)):
            seen = self._seen.get(key)
            if seen is None:
                seen = self._seen[key] = _Seen()
            seen.answers.append((max(1, int(tokens)), bool(cut)))
            seen.since += 1

    def of(self, slo_class: str, prompt_tokens: int = 1) -> LengthForecast:
        """Forecast for a class and a prompt length; made anew when an eighth more has been seen."""
        for key in ((slo_class, bucket(prompt_tokens)), (slo_class, -1)):
            seen = self._seen.get(key)
            if seen is None or (key[1] >= 0 and len(seen.answers) < LEAST):
                continue
            if seen.made is None or seen.since > len(seen.answers) // 8:
                seen.made, seen.since = self._made(key, seen), 0
            return seen.made
        return self._fallback

    def forecast(self, prompts: Sequence[Prompt]) -> Floats:
        """Atoms for each prompt, shape (n, FORECAST_ATOMS)."""
        return np.array([self.of(prompt.slo_class, prompt.tokens).atoms for prompt in prompts]).reshape(
            len(prompts), -1
        )

    def _made(self, key: tuple[str, int], seen: _Seen) -> LengthForecast:
        n = len(seen.answers)
        tokens = [tokens for tokens, _ in seen.answers]
        cut = [cut for _, cut in seen.answers]
        weights = [0.5 ** ((n - 1 - i) / HALF_LIFE) for i in range(n)]
        for slo_class, prompt_tokens, generated in self.running():
            if generated > 0 and slo_class == key[0] and key[1] in (-1, bucket(prompt_tokens)):
                tokens.append(generated)
                cut.append(True)
                weights.append(1.0)
        if n < LEAST:
            tokens += [round(atom) for atom in self._fallback.atoms]
            cut += [False] * FORECAST_ATOMS
            weights += [GENERAL / FORECAST_ATOMS] * FORECAST_ATOMS
        atoms = np.maximum(1.0, censored_quantiles(tokens, cut, weights=weights))
        return LengthForecast(tuple(float(a) for a in atoms))

    # files ------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, list[list[int]]]:
        """Answers by class, oldest first: [prompt bucket, tokens, 1 if cut off]."""
        found: dict[str, list[list[int]]] = {}
        for (name, place), seen in self._seen.items():
            if place >= 0:
                found.setdefault(name, []).extend([place, t, int(c)] for t, c in seen.answers)
        return found

    def restore(self, content: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Take up what `as_dict` gave.

        Raises
        ------
        InputError
            If it is something else.
        """
        try:
            least = (1, *(edge + 1 for edge in BUCKET_TOKENS))
            answers = [
                (str(name), least[int(place)], int(tokens), bool(cut))
                for name, rows in content.items()
                for place, tokens, cut in rows
            ]
        except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
            raise InputError(f"lengths must be [bucket, tokens, cut] by class: {error}.") from None
        for name, _, tokens, _ in answers:
            ok = 0 <= tokens <= MOST_OUTPUT_TOKENS
            require(ok, f"lengths of {name}", f"from 0 to {MOST_OUTPUT_TOKENS} tokens", _short(tokens))
        for name, prompt_tokens, tokens, cut in answers:
            self.observe(name, tokens, prompt_tokens=prompt_tokens, cut=cut)

    def save(self, folder: str | Path) -> Path:
        """Write ``predictor.json``; returns the folder."""
        about: dict[str, Any] = {"kind": "history", "lengths": self.as_dict()}
        write_files(Path(folder), {ABOUT: (json.dumps(about) + "\n").encode()})
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> ClassHistory:
        """Read what `save` wrote."""
        made = cls()
        try:
            made.restore(about_of(folder).get("lengths", {}))
        except InputError as error:
            raise InputError(f"{Path(folder) / ABOUT}: {error}") from None
        return made


def _short(tokens: int) -> int | float:
    """A number that fits into a message."""
    return tokens if abs(tokens) < 10**15 else math.inf if tokens > 0 else -math.inf


def renewal_due(answers: int) -> bool:
    """Whether the answer of this number, from 1 on, is one after which forecasts are made anew.

    Examples
    --------
    >>> [n for n in range(1, 150) if renewal_due(n)]
    [1, 2, 4, 8, 16, 32, 64, 96, 128]
    """
    return answers % RENEWED_AFTER == 0 or (answers < RENEWED_AFTER and answers.bit_count() == 1)


def bucket(prompt_tokens: int) -> int:
    """Prompt-length bucket, 0 to 5.

    Examples
    --------
    >>> bucket(1), bucket(64), bucket(65), bucket(10**6)
    (0, 0, 1, 5)
    """
    return bisect_left(BUCKET_TOKENS, prompt_tokens) if math.isfinite(prompt_tokens) else 0


class PastTurns:
    """Forecasts a program's next answer from its latest ones.

    Examples
    --------
    >>> turns = PastTurns()
    >>> turns.of(7) is None
    True
    >>> for tokens in (100, 900, 900, 900):
    ...     turns.observe(7, tokens)
    >>> bool(500 < turns.of(7)[3:5].mean() < 900)
    True
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def observe(self, program: int, tokens: int) -> None:
        """Learn from an answer of a program, named by a number; a cut one counts as it is."""
        total, weight = self._seen.pop(program, (0.0, 0.0))
        self._seen[program] = (FADE * total + math.log(max(1, tokens)), FADE * weight + 1.0)
        if len(self._seen) > PROGRAMS_KEPT:
            self._seen.popitem(last=False)

    def of(self, program: int) -> Floats | None:
        """Atoms of its next answer, shape (FORECAST_ATOMS,); None before its first."""
        if program not in self._seen:
            return None
        total, weight = self._seen[program]
        return np.asarray(LengthForecast.lognormal(math.exp(total / weight), SIGMA).atoms)
