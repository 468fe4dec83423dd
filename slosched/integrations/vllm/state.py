"""What is learned while serving, and kept over restarts: lengths of answers and of thinking by class, how far
sources of forecasts are followed, and the step time.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slosched.core.drift import OnlineStepTime
from slosched.core.engine import Engine, find_engine
from slosched.core.errors import InputError
from slosched.core.steptime import StepTimeModel
from slosched.integrations.vllm.publishing import write_whole
from slosched.predictors.blend import Blend
from slosched.predictors.history import ClassHistory
from slosched.predictors.prior import PRIOR

FORMAT, LENGTHS_ONLY = 3, 2
"""Format of the state file, and an older one that knows of lengths and step time only."""

HINT_TRUST = 0.95
"""Weight of a client's hint before its first answer: a client speaks of its own request. Every other source
has to earn its say."""

KEPT = 3
"""Unreadable state files that are kept to be looked at."""


class Learned:
    """Step time, class lengths and the blend of sources, with their file.

    Attributes
    ----------
    lengths, thinking
        Whole answers, and tokens before the first answer token, by class.
    blend
        How far each source of forecasts is followed.
    sources
        Digest of each source of the blend that is read from a file, by name: what was learned of another
        ranker does not hold for this one.
    """

    def __init__(self, engine: Engine | str) -> None:
        self.lengths, self.thinking = ClassHistory(), ClassHistory()
        self.blend = Blend({"hint": HINT_TRUST}, relative=(PRIOR,))
        self.sources: dict[str, str] = {}
        # Another machine's step times may be far off: the multipliers get a wide range.
        self.step_time = OnlineStepTime(find_engine(engine).step_time, bound=1000.0)

    def save(self, path: Path) -> None:
        """Write the state in one move, so that a crash leaves the old or the new one."""
        content = {
            "format": FORMAT,
            "step_time": asdict(self.step_time.model),
            "lengths": self.lengths.as_dict(),
            "thinking": self.thinking.as_dict(),
            "blend": self.blend.as_dict(),
            "sources": dict(self.sources),
        }
        write_whole(path, json.dumps(content))

    def load(self, path: Path) -> None:
        """Take up the state of an earlier run.

        Raises
        ------
        InputError
            If the file is not what `save` wrote; the caller goes on without it.
        """
        try:
            content: Any = json.loads(path.read_text())
            if content["format"] not in (FORMAT, LENGTHS_ONLY):
                raise InputError(f"format must be {FORMAT}, got {content['format']!r}.")
            if content["format"] == LENGTHS_ONLY:
                content |= {"thinking": {}, "blend": Blend().as_dict(), "sources": {}}
            step_time = StepTimeModel(**content["step_time"])
            for name in ("lengths", "thinking"):  # all of it, or nothing is taken up
                ClassHistory().restore(content[name])
            before = content["sources"]
            other = [n for n in {*before, *self.sources} if before.get(n) != self.sources.get(n)]
            self.blend.restore(content["blend"], without=other)
        except (
            OSError,
            ValueError,
            ArithmeticError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise InputError(f"{path} must be a state file of slosched: {error}") from error
        self.step_time = OnlineStepTime(step_time, bound=1000.0)
        self.lengths.restore(content["lengths"])
        self.thinking.restore(content["thinking"])


def set_aside(path: Path) -> Path:
    """Keep a state file that cannot be read under another name, the newest `KEPT`; returns that name."""
    aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
    path.rename(aside)
    older = sorted(path.parent.glob(f"{path.name}.unreadable-*"))[:-KEPT]
    for old in older:
        old.unlink(missing_ok=True)
    return aside
