"""Online correction of a step-time model that drifts."""

from __future__ import annotations

import math

from slosched.core.errors import require
from slosched.core.steptime import StepTimeModel


class OnlineStepTime:
    """A step-time model corrected by every step the engine reports, that no single report can wreck.

    Parameters
    ----------
    start
        Model to begin with, such as a preset.
    gain
        Share of a relative error that one step corrects, above 0 and at most 1.
    clip
        Largest relative error believed, above 0; beyond it a step counts as if it were this far off.
    bound
        Largest factor by which a coefficient may ever differ from that of `start`, at least 1.

    Attributes
    ----------
    observations
        Steps used so far.
    rejected
        Reports ignored because a value was not finite or out of its domain.
    error
        Running mean of the clipped absolute relative error: how much to trust the model now.

    Notes
    -----
    Three multipliers stand on the model's terms: the base; prefill (tokens, attention and the knee); decode
    (sequences and context). Each report makes one normalised least-mean-squares step (Widrow and Hoff's rule
    as normalised by Nagumo and Noda) on the relative error, clipped as in Huber's estimator: one report,
    however absurd, changes the predicted time of a like step by at most gain·clip (1.25 % by default), while
    a lasting change of 30 % is followed within about 100 steps. Plain floats, about a microsecond a step.

    Examples
    --------
    >>> online = OnlineStepTime(StepTimeModel(base_s=0.010))
    >>> for _ in range(300):
    ...     online.observe(0, 0, 4, 4000, 0.013)
    >>> round(online.model.base_s, 4)
    0.013
    >>> online.observe(0, 0, 4, 4000, 10.0)  # a stall of a thousand steps
    >>> round(online.model.base_s, 4)
    0.0132
    """

    def __init__(
        self, start: StepTimeModel, *, gain: float = 0.05, clip: float = 0.25, bound: float = 16.0
    ) -> None:
        require(0.0 < gain <= 1.0, "gain", "above 0 and at most 1", gain)
        require(0.0 < clip < math.inf, "clip", "a finite number above 0", clip)
        require(1.0 <= bound < math.inf, "bound", "a finite number of at least 1", bound)
        self.start = start
        self.gain = gain
        self.clip = clip
        self.bound = bound
        self.observations = 0
        self.rejected = 0
        self.error = 0.0
        self._base = self._prefill = self._decode = 1.0
        self._model: StepTimeModel | None = start

    def observe(
        self,
        prefill_tokens: float,
        attention_work: float,
        sequences: float,
        kv_tokens: float,
        seconds: float,
    ) -> None:
        """Learn from one finished step.

        Parameters
        ----------
        prefill_tokens, attention_work, sequences, kv_tokens
            T, A, B and K of the step as `StepTimeModel` defines them.
        seconds
            Its measured duration. Reports with a value out of its domain are counted and ignored, since an
            engine must not fail over its bookkeeping.
        """
        start = self.start
        above = max(0.0, prefill_tokens + sequences - start.knee_tokens)
        base = self._base * start.base_s
        prefill = self._prefill * (
            start.prefill_token_s * prefill_tokens
            + start.attention_work_s * attention_work
            + start.knee_token_s * above
        )
        decode = self._decode * (start.sequence_s * sequences + start.kv_token_s * kv_tokens)
        predicted = base + prefill + decode
        least = min(prefill_tokens, attention_work, sequences, kv_tokens)
        if not (0.0 < seconds < math.inf and 0.0 < predicted < math.inf and least >= 0.0):
            self.rejected += 1
            return
        miss = max(-self.clip, min(self.clip, seconds / predicted - 1.0))
        self.observations += 1
        self.error += max(self.gain, 1.0 / self.observations) * (abs(miss) - self.error)
        # Moving each multiplier in proportion to its share changes the prediction by exactly gain·miss.
        step = self.gain * miss * predicted / (base * base + prefill * prefill + decode * decode)
        self._base = self._bounded(self._base * (1.0 + step * base))
        self._prefill = self._bounded(self._prefill * (1.0 + step * prefill))
        self._decode = self._bounded(self._decode * (1.0 + step * decode))
        self._model = None

    def _bounded(self, multiplier: float) -> float:
        return max(1.0 / self.bound, min(self.bound, multiplier))

    @property
    def model(self) -> StepTimeModel:
        """The corrected model; built when asked for, the same object until the next observation."""
        if self._model is None:
            start = self.start
            self._model = StepTimeModel(
                base_s=self._base * start.base_s,
                prefill_token_s=self._prefill * start.prefill_token_s,
                attention_work_s=self._prefill * start.attention_work_s,
                sequence_s=self._decode * start.sequence_s,
                kv_token_s=self._decode * start.kv_token_s,
                knee_tokens=start.knee_tokens,
                knee_token_s=self._prefill * start.knee_token_s,
            )
        return self._model
