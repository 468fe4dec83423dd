"""What is learned while serving, and kept over restarts: output lengths by class, and the step time."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slosched.drift import OnlineStepTime
from slosched.errors import InputError
from slosched.forecast import LengthForecast
from slosched.integrations.vllm.fields import Claim
from slosched.steptime import StepTimeModel

KEPT_LENGTHS = 512
"""Latest answers of a class that its forecast is drawn from."""

LEAST_LENGTHS = 16
"""Answers needed before a class's own history is believed."""

FORMAT = 1


class ClassLengths:
    """Lengths of the latest natural answers of each class, and the forecast they give.

    Examples
    --------
    >>> lengths = ClassLengths()
    >>> for tokens in range(1, 101):
    ...     lengths.observe("chat", tokens)
    >>> 40 < lengths.forecast("chat").mean_tokens < 60
    True
    """

    def __init__(self) -> None:
        self._seen: dict[str, deque[int]] = {}
        self._cached: dict[str, tuple[int, LengthForecast]] = {}
        self._count: dict[str, int] = {}
        self._fallback = LengthForecast.lognormal(150.0, 1.0)

    def observe(self, slo_class: str, tokens: int) -> None:
        """Learn from an answer that ended by itself."""
        self._seen.setdefault(slo_class, deque(maxlen=KEPT_LENGTHS)).append(max(1, int(tokens)))
        self._count[slo_class] = self._count.get(slo_class, 0) + 1

    def forecast(self, slo_class: str) -> LengthForecast:
        """Forecast of a class; a broad general one before enough was seen."""
        seen = self._seen.get(slo_class)
        if seen is None or len(seen) < LEAST_LENGTHS:
            return self._fallback
        made_at, forecast = self._cached.get(slo_class, (-1, self._fallback))
        count = self._count[slo_class]
        if made_at < 0 or count - made_at >= len(seen) // 8 + 1:
            forecast = LengthForecast.sample(list(map(float, seen)))
            self._cached[slo_class] = (count, forecast)
        return forecast

    def as_dict(self) -> dict[str, list[int]]:
        """Lengths by class."""
        return {name: list(seen) for name, seen in self._seen.items()}


def forecast_of(claim: Claim, lengths: ClassLengths, max_tokens: int) -> LengthForecast:
    """The forecast of a request: its own claim, else its class's history; never beyond `max_tokens`."""
    limit = float(max(1, max_tokens))
    tokens, p90 = claim.predicted_tokens, claim.predicted_p90_tokens
    if tokens is None:
        forecast = lengths.forecast(claim.slo_class)
    elif p90 is not None and p90 > tokens:
        forecast = LengthForecast.quantiles({0.5: tokens, 0.9: p90})
    else:
        forecast = LengthForecast.lognormal(tokens, 0.4)
    if forecast.atoms[-1] > limit:
        forecast = LengthForecast(tuple(min(a, limit) for a in forecast.atoms))
    return forecast


class Learned:
    """Step time and class lengths, with their file."""

    def __init__(self, preset: str) -> None:
        self.lengths = ClassLengths()
        # A preset of another machine may be far off: the multipliers get a wide range.
        self.step_time = OnlineStepTime(StepTimeModel.preset(preset), bound=1000.0)

    def save(self, path: Path) -> None:
        """Write the state in one move."""
        content = {
            "format": FORMAT,
            "step_time": asdict(self.step_time.model),
            "lengths": self.lengths.as_dict(),
        }
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content))
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Take up the state of an earlier run.

        Raises
        ------
        InputError
            If the file is not what `save` wrote; the caller goes on without it.
        """
        try:
            content: Any = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise InputError(f"format must be {FORMAT}, got {content['format']!r}.")
            step_time = StepTimeModel(**content["step_time"])
            lengths = [(str(k), [int(v) for v in values]) for k, values in content["lengths"].items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} must be a state file of slosched: {error}") from error
        self.step_time = OnlineStepTime(step_time, bound=1000.0)
        for name, values in lengths:
            for tokens in values[-KEPT_LENGTHS:]:
                self.lengths.observe(name, tokens)
